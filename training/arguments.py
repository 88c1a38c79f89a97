"""The arguments of both stages. Nothing heavy is imported before they are read: `--help` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


MORE_FLAGS = """Each field of transformers.TrainingArguments is a flag too: --output_dir, --learning_rate, --max_steps,
--per_device_train_batch_size, --bf16, --use_cpu, ..."""


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
    new_projector: bool = field(
        default=False, metadata={"help": "With --model: put in a new projector, as the flags above say."}
    )
    bridge_hidden_size: int = field(default=384, metadata={"help": "Width of the bridge."})
    bridge_num_layers: int = field(default=2, metadata={"help": "Transformer layers of the bridge."})
    lora: int | None = field(
        default=16, metadata={"help": "LoRA rank; 0 (in a recipe also null) trains the whole language model."}
    )
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    save: Literal["whole", "delta"] = field(
        default="whole", metadata={"help": "delta: what was learned and the names of the two parts, not their weights."}
    )
    optimizer: str = field(default="adamw", metadata={"help": "adamw, or muon (for training from scratch)."})
    attention: str = field(default="sdpa", metadata={"help": "Of the language model; eager is faster on short rows."})
    compile_language_model: bool = field(default=False, metadata={"help": "torch.compile its training step."})
    frozen_bf16: bool = field(
        default=False, metadata={"help": "Keep what does not learn in bfloat16: half the memory."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Show two rows with what is learned in [brackets], memory and hours; stop."}
    )
    devices: int = field(default=1, metadata={"help": "GPUs that --dry_run counts on."})
    device_tflops: float = field(
        default=400.0,
        metadata={"help": "TFLOP/s that --dry_run counts on: 0.4 of the 989 that an H100 has in bfloat16."},
    )
    eval_rows: int = field(default=100, metadata={"help": "Rows of each evaluation file that are written out."})

    def __post_init__(self):
        if self.save == "delta" and not self.lora:
            raise ValueError("save='delta' keeps LoRA; lora 0 trains the whole language model. Choose --save whole.")


def parse_arguments(dataclasses: list, argv: list[str], section: str) -> list:
    """An instance of each of `dataclasses`, then transformers' TrainingArguments.

    They come from flags, or `FILE.yaml[:section]` with flags after it that override the file.

    Raises:
        ValueError: The file has no such section.
    """
    from transformers import HfArgumentParser

    if {"-h", "--help"} & set(argv):  # without TrainingArguments, whose import takes seconds
        HfArgumentParser(dataclasses, epilog=MORE_FLAGS).print_help()
        raise SystemExit(0)
    from transformers import TrainingArguments

    parser = HfArgumentParser([*dataclasses, TrainingArguments])
    parser.set_defaults(remove_unused_columns=False)  # the collators make the model's inputs of all columns
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
