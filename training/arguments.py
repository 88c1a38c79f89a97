"""The arguments of both stages. Nothing heavy is imported before they are parsed, so `--help` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


MORE_FLAGS = """Each field of transformers.TrainingArguments is a flag too: --output_dir, --learning_rate, --max_steps,
--per_device_train_batch_size, --bf16, --use_cpu, ..."""

OtherLetters = Literal["leave_out", "drop"]


@dataclass
class ModelArguments:
    """Which model is trained. The defaults are the paper's; it gives no hyper-parameters, so ranks are ours."""

    model: str | None = field(
        default=None, metadata={"help": "A PinyinLLM folder to start from; by default the two base models below."}
    )
    audio_tower: str = field(default="openai/whisper-large-v3", metadata={"help": "Whisper checkpoint."})
    language_model: str = field(default="meta-llama/Llama-2-7b-hf", metadata={"help": "Any causal LM."})
    prompt: str = field(default="{slot}\n汉字：", metadata={"help": "{slot} is where pinyin or speech goes."})
    projector_type: str = field(default="pooling", metadata={"help": "pooling (the paper's) or pinyin_bridge."})
    projector_stride: int = field(default=5, metadata={"help": "Encoder frames (20 ms) per slot."})
    projector_pooling: str = field(default="mean", metadata={"help": "mean, max, attention, stack or conv."})
    new_projector: bool = field(
        default=False, metadata={"help": "With --model: replace its projector as the flags above say."}
    )
    bridge_hidden_size: int = field(default=384, metadata={"help": "Width of the bridge."})
    bridge_num_layers: int = field(default=2, metadata={"help": "Transformer layers of the bridge."})
    lora: int | None = field(
        default=16, metadata={"help": "LoRA rank; 0 (in a recipe also null) trains the whole language model."}
    )
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    save: Literal["whole", "delta"] = field(
        default="whole",
        metadata={"help": "delta: the trained weights and the names of the two bases, not their weights."},
    )
    optimizer: str = field(default="adamw", metadata={"help": "adamw, or muon (for training from scratch)."})
    attention: str = field(default="sdpa", metadata={"help": "Of the language model; eager is faster on short rows."})
    compile_language_model: bool = field(default=False, metadata={"help": "torch.compile its training step."})
    frozen_bf16: bool = field(default=False, metadata={"help": "Keep frozen weights in bfloat16: half the memory."})
    dry_run: bool = field(
        default=False, metadata={"help": "Show two rows with the learned tokens in [brackets], memory and hours; stop."}
    )
    devices: int = field(default=1, metadata={"help": "GPUs that --dry_run assumes."})
    device_tflops: float = field(
        default=400.0,
        metadata={"help": "TFLOP/s that --dry_run assumes: 0.4 of the 989 that an H100 has in bfloat16."},
    )
    eval_rows: int = field(default=100, metadata={"help": "Rows of each evaluation file that are decoded."})

    def __post_init__(self):
        if self.save == "delta" and not self.lora:
            raise ValueError("save='delta' keeps LoRA; lora 0 trains the whole language model. Choose --save whole.")


@dataclass
class TextArguments:
    """The text of stage 1."""

    texts: list[str] = field(
        metadata={
            "help": "Text files, one sentence per line (see corpora/plain_text.py); FILE@3: three times per epoch."
        }
    )
    eval_texts: list[str] = field(default_factory=list, metadata={"help": "tsv files: text, toned, toneless."})
    most_characters: int = field(default=60, metadata={"help": "Longer sentences are dropped, and counted."})
    other_letters: OtherLetters = field(
        default="leave_out", metadata={"help": "Latin letters and digits, which no pinyin spells; drop: the sentence."}
    )
    num_proc: int = field(default=2, metadata={"help": "Processes that read the text."})


@dataclass
class SpeechArguments:
    """The speech of stage 2, and what is learned from it."""

    manifests: list[str] = field(metadata={"help": "Sentences. tsv or jsonl files: file, text, speaker, seconds."})
    word_manifests: list[str] = field(default_factory=list, metadata={"help": "Words or syllables recorded alone."})
    eval_manifests: list[str] = field(default_factory=list, metadata={"help": "Speech for evaluation only."})
    cache_features: str = field(default="data/features", metadata={"help": "Folder of the encoder's outputs."})
    speeds: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Use sentences at these speeds."})
    rooms: int = field(
        default=0, metadata={"help": "Number of simulated small rooms for each sentence, with noise (needs [corpora])."}
    )
    learn: Literal["text", "pinyin"] = field(
        default="text", metadata={"help": "pinyin: the bridge alone, by CTC; text: characters too."}
    )
    lowest_layers: int = field(default=5, metadata={"help": "LLM layers that learn (the paper: 5); 0 for none."})
    other_letters: OtherLetters = field(
        default="leave_out", metadata={"help": "Latin words in a text, which no pinyin spells; drop: the clip."}
    )
    mask_time: float = field(default=0.0, metadata={"help": "Share of a clip's frames that is masked, in short spans."})
    replay_texts: list[str] = field(
        default_factory=list, metadata={"help": "Text of stage 1; each batch of speech has as many sentences of it."}
    )


def parse_arguments(dataclasses: list, argv: list[str], section: str) -> list:
    """An instance of each of `dataclasses`, then transformers' TrainingArguments.

    They come from flags, or from `FILE.yaml[:section]` followed by flags that override the file.

    Raises:
        ValueError: The file has no such section, or sets an unknown argument.
    """
    from transformers import HfArgumentParser

    if {"-h", "--help"} & set(argv):  # without TrainingArguments, whose import takes seconds
        HfArgumentParser(dataclasses, epilog=MORE_FLAGS).print_help()
        raise SystemExit(0)
    from transformers import TrainingArguments

    parser = HfArgumentParser([*dataclasses, TrainingArguments])
    parser.set_defaults(remove_unused_columns=False)  # the collators make the model's inputs from all columns
    if not argv or ".yaml" not in argv[0]:
        return list(parser.parse_args_into_dataclasses(argv))
    import yaml

    path, _, named = argv[0].partition(":")
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if (named or section) not in recipe:
        raise ValueError(f"{path} has no section {named or section!r}; it has {', '.join(recipe)}.")
    values = recipe[named or section]
    for action in parser._actions:  # an argument that the recipe sets is no longer required as a flag
        action.required = action.required and action.dest not in values
    unknown = values.keys() - {action.dest for action in parser._actions}
    if unknown:
        raise ValueError(f"{path} sets {', '.join(sorted(unknown))}, which {section} does not know.")
    parser.set_defaults(**values)
    return list(parser.parse_args_into_dataclasses(argv[1:]))
