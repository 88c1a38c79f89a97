"""What both stages share: the model on its parts, LoRA, the Trainer that writes as it learns, the record."""

import json
import platform
import re
import shutil
import sys
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby, pairwise
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from .. import PinyinLlamaConfig, PinyinLlamaForASR, PinyinLlamaProcessor  # also tells the Auto classes
from ..delta_pinyin_llm import save_delta
from .arguments import ModelArguments
from .muon import build_optimizer
from .sharding import is_shared_out, put_together


# What makes a run: it may not change while the run goes on. Of a stage's own arguments, all but these:
FREE_TO_CHANGE = {"dry_run", "eval_rows", "eval_texts", "eval_manifests", "num_proc", "cache_features", "attention"}
FREE_TO_CHANGE |= {"devices", "device_tflops", "save"}
# and of transformers' these alone:
FIXED_IN_TRAINING = ("learning_rate", "lr_scheduler_type", "weight_decay", "seed")


def load_config(arguments: ModelArguments) -> tuple[PinyinLlamaConfig, PinyinLlamaProcessor]:
    """All of the model but its weights: from a PinyinLLM folder, or from a Whisper encoder and a causal LM."""
    if arguments.model:
        config = PinyinLlamaConfig.from_pretrained(arguments.model)
        processor = PinyinLlamaProcessor.from_pretrained(arguments.model)
        if arguments.new_projector:
            config.update(projector_of(arguments))
            processor.projector_stride = arguments.projector_stride
        return config, processor
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
        **projector_of(arguments),
    )
    return config, processor


def projector_of(arguments: ModelArguments) -> dict:
    """The fields of the configuration that say what projector the model has."""
    names = ("projector_type", "projector_stride", "projector_pooling", "bridge_hidden_size", "bridge_num_layers")
    return {name: getattr(arguments, name) for name in names}


def load_model(arguments: ModelArguments, config: PinyinLlamaConfig) -> PinyinLlamaForASR:
    """The model that `config` of `load_config` describes; what the checkpoint lacks is untrained.

    Weights are float32, but with --frozen_bf16 the two bases are never read as anything but bfloat16.
    """
    dtype = torch.bfloat16 if arguments.frozen_bf16 and arguments.lora else torch.float32
    if not arguments.model:
        return PinyinLlamaForASR.from_base_models(config, arguments.audio_tower, arguments.language_model, dtype)
    model = PinyinLlamaForASR.from_pretrained(arguments.model, dtype=dtype if config.delta else torch.float32)
    if arguments.save == "delta" and model.delta is None:
        raise ValueError(f"{arguments.model} is whole, a delta needs its two parts. Start from those, or --save whole.")
    return put_in_projector(model, config) if arguments.new_projector else model


def put_in_projector(model: PinyinLlamaForASR, config: PinyinLlamaConfig) -> PinyinLlamaForASR:
    """The model with an untrained projector, as `config` describes it: one model of stage 1 serves any kind of it."""
    renewed = PinyinLlamaForASR.from_parts(config, model.audio_tower, model.language_model)
    for name in ("pinyin_embeddings", "delta", "adapters"):
        setattr(renewed, name, getattr(model, name))
    return renewed


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
    if layers is not None and not arguments.lora:
        model.language_model.requires_grad_(True)
    for parameter in model.parameters():
        if arguments.frozen_bf16 and not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    if layers is None or not arguments.lora:
        return model
    from peft import LoraConfig, get_peft_model

    numbers = "|".join(map(str, layers))  # a full path: layers_to_transform would hit the Whisper layers too
    pattern = rf"language_model\..*layers\.({numbers})\..*(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(
        r=arguments.lora, lora_alpha=arguments.lora_alpha, target_modules=pattern, modules_to_save=parts
    )
    return get_peft_model(model, config)


class ShuffledLengthSampler(LengthGroupedSampler):
    """Batches of like length, in random order.

    transformers' sampler goes from long to short every 50 batches; the loss swings with it (1.7 to 4.9 in P2C).
    """

    def __init__(self, *args, seed: int, **kwargs):
        super().__init__(*args, **kwargs, generator=torch.Generator())
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        """The order depends on seed and epoch alone, so that a resumed run goes on in it."""
        self.generator.manual_seed(10_000 * self.seed + epoch)

    def __iter__(self):
        indices = list(super().__iter__())
        starts = torch.randperm(-(-len(indices) // self.batch_size), generator=self.generator) * self.batch_size
        return (i for start in starts.tolist() for i in indices[start : start + self.batch_size])


class EpochOfCollator(TrainerCallback):
    """Tells the collator which epoch's noise to draw."""

    def __init__(self, collator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch = int(state.epoch or 0)


class PinyinTrainer(Trainer):
    """HF Trainer that can use Muon, compile the language model's step, and evaluates by writing characters.

    Args:
        model_arguments: For the optimizer and the compilation.
        write: () -> (metrics, [(reference, hypothesis)]): writes out evaluation rows with the model as it stands.
    """

    def __init__(self, *args, model_arguments: ModelArguments, write, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_arguments, self.write = model_arguments, write
        self.add_callback(EpochOfCollator(self.data_collator))
        self.accelerator.unwrap_model(self.model).language_model.set_attn_implementation(model_arguments.attention)
        if model_arguments.compile_language_model:
            self.accelerator.unwrap_model(self.model).language_model.compile(dynamic=True)

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = list(self.train_dataset[self.args.length_column_name])  # the lazy column is read once a comparison
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return ShuffledLengthSampler(size, lengths=lengths, seed=self.args.seed)

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.model_arguments.optimizer == "muon":
            self.optimizer = build_optimizer(self.model, self.args.learning_rate, self.args.weight_decay)
        return super().create_optimizer(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the batch, and that of the rows of stage 1 which it may bring along, each a mean over its own."""
        replay = inputs.pop("replay", None)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if replay is None:
            return loss
        # the Trainer divides only what was not counted over the whole step
        parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        return loss + super().compute_loss(model, replay) / parts

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        if is_shared_out(self):  # no process could write a character alone
            return {}
        self.model.eval()
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            metrics, samples = self.write()
        for reference, hypothesis in samples[:3]:
            print(f"  said  {reference}\n  wrote {hypothesis}", file=sys.stderr)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def learn(model, processor: PinyinLlamaProcessor, arguments: list, rows, collator, write, counts: dict) -> None:
    """Train, or go on where a run was interrupted; then write out the evaluation, the model and the record.

    Of several processes the main one writes. Where they share out the weights nothing is evaluated.

    Args:
        arguments: The ModelArguments first, the TrainingArguments last.
        rows: The dataset; `collator` makes its batches.
        write: See [`PinyinTrainer`].
        counts: What the data held and what was dropped, for the record.
    """
    output_dir, is_main = arguments[-1].output_dir, arguments[-1].process_index == 0
    checkpoint = arguments[-1].resume_from_checkpoint or resume_point(output_dir)
    if is_main:
        keep_arguments(output_dir, arguments)
    if checkpoint:
        print(f"going on from {checkpoint}", file=sys.stderr)
    trainer = PinyinTrainer(
        model,
        arguments[-1],
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=rows.select(()),  # the Trainer wants one; `write` brings its own rows
        model_arguments=arguments[0],
        write=write,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    try:
        metrics = trainer.evaluate()
    finally:  # what was learned in hours is not lost to a clip that cannot be written out
        if is_shared_out(trainer):
            put_together(model, trainer.accelerator.get_state_dict(trainer.model_wrapped))
        if is_main:
            save_model(model, processor, output_dir, arguments[0].save)
    if is_main:
        write_record(output_dir, arguments, counts, metrics)
    trainer.accelerator.wait_for_everyone()  # a process that ended while another wrote was aborted by gloo
    trainer.accelerator.end_training()


def reach_of_answers(labels: torch.Tensor) -> int:
    """(B, L) labels -> how many positions from the end need logits, for `logits_to_keep`: those of prompts have no loss."""
    return labels.shape[1] - int((labels != -100).int().argmax(-1).min()) + 1


def show_rows(batch: dict, processor: PinyinLlamaProcessor) -> str:
    """The rows of a batch as text: what fills the slot, and in [brackets] what the loss sees."""
    units = processor.pinyin_tokenizer.units
    if "input_ids" not in batch:  # a bridge that learns pinyin alone
        return "\n".join(" ".join(f"[{units[i]}]" for i in row if i >= 0) for row in batch["pinyin_labels"].tolist())
    return "\n".join(_show_row(batch, row, processor) for row in range(len(batch["input_ids"])))


def _show_row(batch: dict, row: int, processor: PinyinLlamaProcessor) -> str:
    ids, learned = batch["input_ids"][row], batch["labels"][row] != -100
    start = int((batch["attention_mask"][row] == 0).sum()) if "attention_mask" in batch else 0
    here = slice(start, int(learned.nonzero().max()) + 1)  # the rest is padding
    ids, learned = ids[here], learned[here]
    pieces = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    shown = [f"[{piece}]" if on else piece for piece, on in zip(pieces, learned.tolist(), strict=True)]
    if "pinyin_ids" in batch:
        names = iter(_slot_name(slot, processor.pinyin_tokenizer) for slot in batch["pinyin_ids"][row].tolist())
        shown = [next(names) if i == processor.pinyin_token_id else piece for i, piece in zip(ids, shown, strict=True)]
    runs = [(piece, len(list(run))) for piece, run in groupby(shown)]
    return " ".join(f"{piece} x {n}" if piece.startswith("<|") else " ".join([piece] * n) for piece, n in runs)


def _slot_name(slot: list[int], tokenizer) -> str:
    """Shown as "hao3", "hao" where all its tones are meant, "hao3+hao4" for a blend."""
    ids = sorted({i for i in slot if i >= 0})
    base = tokenizer.units[ids[0]][:-1]
    return base if tuple(ids) == tokenizer.bases[base] and len(ids) > 1 else "+".join(tokenizer.units[i] for i in ids)


def resume_point(output_dir: str) -> str | None:
    """The newest whole checkpoint of an interrupted run, or `None`: the Trainer writes its state last."""
    whole = [path.parent for path in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None


def keep_arguments(output_dir: str, arguments: list) -> None:
    """Write arguments.json into the folder of the run.

    Raises:
        ValueError: The run that the folder holds was given others; its weights are not what these would make.
    """
    path = Path(output_dir, "arguments.json")
    *own, settings = map(_plain, arguments)
    given = {k: v for part in own for k, v in part.items() if k not in FREE_TO_CHANGE}
    given |= {k: settings[k] for k in FIXED_IN_TRAINING}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else given
    if changed := [k for k in given if kept.get(k, given[k]) != given[k]]:
        found = "; ".join(f"{k}: {kept[k]}, now {given[k]}" for k in changed)
        raise ValueError(f"{output_dir} holds a run with other arguments ({found}). Choose another --output_dir.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_record(output_dir: str, arguments: list, data: dict, metrics: dict) -> None:
    """run.json beside the weights: arguments, versions, data counts and metrics of the run that made them.

    The records of the model that it went on from come along as run_1.json, run_2.json, ..., and so do its NOTICE and
    card.yaml: where a model comes from must not be lost on the way.
    """
    packages = ("torch", "transformers", "peft", "datasets", "pypinyin")
    record = {
        "command": describe_command(sys.argv),
        "arguments": {k: v for part in arguments for k, v in _plain(part).items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "data": data,
        "metrics": metrics,
    }
    copy_origin(arguments[0].model, Path(output_dir))
    path = Path(output_dir, "run.json")
    path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def describe_command(argv: list[str]) -> str:
    """The command line as it may be shown to anyone: without the folder of the script and without tokens."""
    words = [Path(argv[0]).name]
    for before, word in pairwise(argv):
        if "token" in before and before.startswith("--") and "=" not in before:
            word = "***"
        elif "token" in word and "=" in word:
            word = f"{word.partition('=')[0]}=***"
        words.append(word)
    return " ".join(words)


def copy_origin(model: str | None, output_dir: Path) -> None:
    """Copy records, NOTICE and card.yaml of the folder that a run went on from; the Hub's are not looked for."""
    if not model or not Path(model).is_dir() or Path(model).resolve() == output_dir.resolve():
        return
    for number, record in enumerate(records_of(Path(model)), start=1):
        shutil.copyfile(record, output_dir / f"run_{number}.json")
    if (notice := Path(model, "NOTICE")).exists():
        shutil.copyfile(notice, output_dir / "NOTICE")
    if (card := origin_folder(Path(model)) / "card.yaml").exists():  # it knows nothing of what this run learns from
        text = re.sub("^training_data:", "went_on_from:", card.read_text("utf-8"), flags=re.MULTILINE)
        (output_dir / "card.yaml").write_text(text, "utf-8")


def origin_folder(folder: Path) -> Path:
    """Where a model folder keeps its run records and card.yaml: docs/mini in this repository, else beside the weights."""
    of_repository = folder / "docs" / "mini"
    return of_repository if of_repository.is_dir() else folder


def records_of(folder: Path) -> list[Path]:
    """The records of a model's stages in their order: run_1.json, run_2.json, ..., and the last one's run.json."""
    folder = origin_folder(folder)
    last = folder / "run.json"
    return [*sorted(folder.glob("run_*.json"), key=lambda path: int(path.stem[4:])), *([last] if last.exists() else [])]


def _plain(arguments) -> dict:
    return arguments.to_sanitized_dict() if hasattr(arguments, "to_sanitized_dict") else asdict(arguments)


def save_model(model, processor: PinyinLlamaProcessor, output_dir: str, kind: str = "whole") -> None:
    """Weights, configuration and processor in one folder: "whole" with the LoRA merged in, or the "delta" alone."""
    if kind == "delta":
        save_delta(model, output_dir)
    else:
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
