"""What both stages share: arguments, the model on its parts, LoRA, the Trainer that writes as it learns, the record."""

import ctypes
import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, HfArgumentParser, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from pinyin_llm.configuration_pinyin_llm import PinyinLlamaConfig
from pinyin_llm.modeling_pinyin_llm import PinyinLlamaForASR
from pinyin_llm.optimizer import build_optimizer
from pinyin_llm.processing_pinyin_llm import PinyinLlamaProcessor


@dataclass
class ModelArguments:
    """Which model learns. The defaults are the paper's; its hyper-parameters are not published, so ranks are ours."""

    model: str | None = field(default=None, metadata={"help": "A PinyinLLM folder to go on from; else the two parts:"})
    audio_tower: str = field(default="openai/whisper-large-v3", metadata={"help": "Whisper checkpoint."})
    language_model: str = field(default="meta-llama/Llama-2-7b-hf", metadata={"help": "Any causal LM."})
    prompt: str = field(default="{slot}\n汉字：", metadata={"help": "{slot} is where pinyin or speech goes."})
    projector_type: str = field(default="pooling", metadata={"help": "pooling (the paper's) or pinyin_bridge."})
    projector_stride: int = field(default=5, metadata={"help": "Encoder frames (20 ms) a slot."})
    projector_pooling: str = field(default="mean", metadata={"help": "mean, max, attention, stack or conv."})
    bridge_hidden_size: int = field(default=384, metadata={"help": "Width of the bridge."})
    bridge_num_layers: int = field(default=2, metadata={"help": "Transformer layers of the bridge."})
    lora: int | None = field(default=16, metadata={"help": "LoRA rank; null (or 0) trains the language model in full."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    optimizer: str = field(default="adamw", metadata={"help": "adamw, or muon (for training from scratch)."})
    compile_language_model: bool = field(default=False, metadata={"help": "torch.compile its training step."})
    dry_run: bool = field(default=False, metadata={"help": "Show two rows with what is learned in [brackets]; stop."})
    eval_rows: int = field(default=100, metadata={"help": "Rows of each evaluation file that are written out."})


def parse_arguments(dataclasses: list, argv: list[str], section: str) -> list:
    """Flags, or `FILE.yaml[:section]` with flags after it that override the file.

    Raises:
        ValueError: The file has no such section.
    """
    parser = HfArgumentParser(dataclasses)
    if not argv or ".yaml" not in argv[0]:
        return list(parser.parse_args_into_dataclasses(argv))
    import yaml

    path, _, named = argv[0].partition(":")
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if (named or section) not in recipe:
        raise ValueError(f"{path} has no section {named or section!r}; it has {', '.join(recipe)}.")
    values = recipe[named or section]
    for action in parser._actions:  # what the recipe gives need not be given again
        action.required = action.required and action.dest not in values
    unknown = values.keys() - {action.dest for action in parser._actions}
    if unknown:
        raise ValueError(f"{path} sets {', '.join(sorted(unknown))}, which {section} does not know.")
    parser.set_defaults(**values)
    return list(parser.parse_args_into_dataclasses(argv[1:]))


def load_model(arguments: ModelArguments) -> tuple[PinyinLlamaForASR, PinyinLlamaProcessor]:
    """A PinyinLLM folder, or a new model on a Whisper encoder and a causal LM."""
    if arguments.model:
        model = PinyinLlamaForASR.from_pretrained(arguments.model, dtype=torch.float32)
        return model, PinyinLlamaProcessor.from_pretrained(arguments.model)
    processor = PinyinLlamaProcessor(
        AutoFeatureExtractor.from_pretrained(arguments.audio_tower),
        AutoTokenizer.from_pretrained(arguments.language_model),
        prompt=arguments.prompt,
        projector_stride=arguments.projector_stride,
    )
    config = PinyinLlamaConfig(
        audio_config=AutoConfig.from_pretrained(arguments.audio_tower),
        text_config=AutoConfig.from_pretrained(arguments.language_model),
        audio_token_id=processor.audio_token_id,
        pinyin_token_id=processor.pinyin_token_id,
        pinyin_units=processor.pinyin_units,
        projector_type=arguments.projector_type,
        projector_stride=arguments.projector_stride,
        projector_pooling=arguments.projector_pooling,
        bridge_hidden_size=arguments.bridge_hidden_size,
        bridge_num_layers=arguments.bridge_num_layers,
    )
    return PinyinLlamaForASR.from_base_models(config, arguments.audio_tower, arguments.language_model), processor


def set_trainable(model: PinyinLlamaForASR, arguments: ModelArguments, parts: list[str], layers: list[int] | None):
    """Train `parts` of the model and the LM: by LoRA in the decoder layers named, in full if `lora` is null.

    Args:
        parts: Modules trained in full ("pinyin_embeddings", "multi_modal_projector").
        layers: Decoder layers; `None` leaves the language model as it is.

    Returns:
        The model, wrapped by PEFT where LoRA is used.
    """
    model.requires_grad_(False)
    for part in parts:
        model.get_submodule(part).requires_grad_(True)
    if layers is None:
        return model
    if not arguments.lora:
        model.language_model.requires_grad_(True)
        return model
    from peft import LoraConfig, get_peft_model

    numbers = "|".join(map(str, layers))  # a full path: layers_to_transform would hit the Whisper layers too
    pattern = rf"language_model\..*layers\.({numbers})\..*(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(r=arguments.lora, lora_alpha=arguments.lora_alpha, target_modules=pattern, modules_to_save=parts)
    return get_peft_model(model, config)


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them: page faults cost a third of a training step.

    Measured on 2 cores, d = 256, 6 layers, eager: 4,900 -> 7,100 tokens/s.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


class PinyinTrainer(Trainer):
    """HF Trainer that can use Muon, compile the language model's step, and evaluates by writing characters.

    Args:
        model_arguments: For the optimizer and the compilation.
        write: () -> (metrics, [(reference, hypothesis)]): writes out evaluation rows with the model as it stands.
    """

    def __init__(self, *args, model_arguments: ModelArguments, write, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_arguments, self.write = model_arguments, write
        if model_arguments.compile_language_model:
            self.accelerator.unwrap_model(self.model).language_model.compile(dynamic=True)

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = list(self.train_dataset[self.args.length_column_name])  # the lazy column is read once a comparison
        return LengthGroupedSampler(self.args.train_batch_size * self.args.gradient_accumulation_steps, lengths=lengths)

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.model_arguments.optimizer == "muon":
            self.optimizer = build_optimizer(self.model, self.args.learning_rate, self.args.weight_decay)
        return super().create_optimizer(model)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self.model.eval()
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            metrics, samples = self.write()
        for reference, hypothesis in samples[:3]:
            print(f"  said  {reference}\n  wrote {hypothesis}", file=sys.stderr)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def show_rows(batch: dict, processor: PinyinLlamaProcessor) -> str:
    """The rows of a batch as text; what the loss sees stands in [brackets]."""
    lines = []
    for ids, labels in zip(batch["input_ids"][:2], batch["labels"][:2], strict=True):
        pieces = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
        learned = (labels != -100).tolist()
        lines.append(" ".join(f"[{piece}]" if on else piece for piece, on in zip(pieces, learned, strict=True)))
    return "\n".join(lines)


def resume_point(output_dir: str) -> str | None:
    """The newest checkpoint of an interrupted run, or `None`."""
    return get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None


def write_record(output_dir: str, arguments: list, data: dict, metrics: dict) -> None:
    """run.json beside the weights: arguments, versions, data counts and metrics of the run that made them."""
    packages = ("torch", "transformers", "peft", "datasets", "pypinyin")
    record = {
        "command": " ".join(sys.argv),
        "arguments": {k: v for part in arguments for k, v in _plain(part).items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "data": data,
        "metrics": metrics,
    }
    path = Path(output_dir, "run.json")
    path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _plain(arguments) -> dict:
    return arguments.to_sanitized_dict() if hasattr(arguments, "to_sanitized_dict") else asdict(arguments)


def save_whole(model, processor: PinyinLlamaProcessor, output_dir: str) -> None:
    """Weights with the LoRA merged in, configuration and processor in one folder."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
