"""What a run leaves in its folder: the arguments it was given, its record, its model; and where it can resume."""

import json
import platform
import re
import shutil
import sys
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from .. import PinyinLlamaProcessor
from ..delta_pinyin_llm import save_delta


# A run may only resume with the arguments that it began with, except for these of a stage's own:
FREE_TO_CHANGE = {"dry_run", "eval_rows", "eval_texts", "eval_manifests", "num_proc", "cache_features", "attention"}
FREE_TO_CHANGE |= {"devices", "device_tflops", "save"}
# Of transformers' TrainingArguments only these are fixed:
FIXED_IN_TRAINING = ("learning_rate", "lr_scheduler_type", "weight_decay", "seed")
RECORDED_PACKAGES = ("torch", "transformers", "peft", "datasets", "pypinyin")


def find_checkpoint(output_dir: str) -> str | None:
    """The newest complete checkpoint of an interrupted run, or `None`: the Trainer writes its state last."""
    complete = [path.parent for path in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None


def keep_arguments(output_dir: str, own: list, settings) -> None:
    """Write arguments.json into the folder of the run.

    Args:
        own: The dataclasses of the stage.
        settings: TrainingArguments.

    Raises:
        ValueError: The folder holds a run with other arguments; its weights are not what these would give.
    """
    path = Path(output_dir, "arguments.json")
    given = {name: value for part in own for name, value in _plain(part).items() if name not in FREE_TO_CHANGE}
    given |= {name: _plain(settings)[name] for name in FIXED_IN_TRAINING}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else given
    if changed := [name for name in given if kept.get(name, given[name]) != given[name]]:
        found = "; ".join(f"{name}: {kept[name]}, now {given[name]}" for name in changed)
        raise ValueError(f"{output_dir} holds a run with other arguments ({found}). Choose another --output_dir.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_record(output_dir: str, model: str | None, own: list, settings, counts: dict, metrics: dict) -> None:
    """run.json beside the weights: arguments, versions, data counts and metrics of the run that made them.

    The records of the model that it started from are kept as run_1.json, run_2.json, ..., with its NOTICE and
    card.yaml, so that the origin of a model is never lost.

    Args:
        model: The folder that the run started from, if any.
        own: The dataclasses of the stage.
        settings: TrainingArguments.
        counts: What the data held and what was dropped.
        metrics: Of the evaluation.
    """
    record = {
        "command": describe_command(sys.argv),
        "arguments": {name: value for part in (*own, settings) for name, value in _plain(part).items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "data": counts,
        "metrics": metrics,
    }
    copy_origin(model, Path(output_dir))
    path = Path(output_dir, "run.json")
    path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def describe_command(argv: list[str]) -> str:
    """The command line as anyone may see it: without the folder of the script and without tokens."""
    words = [Path(argv[0]).name]
    for before, word in pairwise(argv):
        if "token" in before and before.startswith("--") and "=" not in before:
            word = "***"
        elif "token" in word and "=" in word:
            word = f"{word.partition('=')[0]}=***"
        words.append(word)
    return " ".join(words)


def copy_origin(model: str | None, output_dir: Path) -> None:
    """Copy records, NOTICE and card.yaml of the local folder that a run started from."""
    if not model or not Path(model).is_dir() or Path(model).resolve() == output_dir.resolve():
        return
    for number, record in enumerate(records_of(Path(model)), start=1):
        shutil.copyfile(record, output_dir / f"run_{number}.json")
    if (notice := Path(model, "NOTICE")).exists():
        shutil.copyfile(notice, output_dir / "NOTICE")
    if (card := origin_folder(Path(model)) / "card.yaml").exists():  # it does not describe the data of this run
        text = re.sub("^training_data:", "went_on_from:", card.read_text("utf-8"), flags=re.MULTILINE)
        (output_dir / "card.yaml").write_text(text, "utf-8")


def origin_folder(folder: Path) -> Path:
    """Where a model keeps its run records and card.yaml: docs/mini in this repository, else beside the weights."""
    of_repository = folder / "docs" / "mini"
    return of_repository if of_repository.is_dir() else folder


def records_of(folder: Path) -> list[Path]:
    """The records of a model's stages in order: run_1.json, run_2.json, ..., and the last stage's run.json."""
    folder = origin_folder(folder)
    last = folder / "run.json"
    return [*sorted(folder.glob("run_*.json"), key=lambda path: int(path.stem[4:])), *([last] if last.exists() else [])]


def save_model(model, processor: PinyinLlamaProcessor, output_dir: str, kind: str = "whole") -> None:
    """Weights, configuration and processor in one folder: "whole" with the LoRA merged in, or the "delta" alone."""
    if kind == "delta":
        save_delta(model, output_dir)
    else:
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


def _plain(arguments) -> dict:
    return arguments.to_sanitized_dict() if hasattr(arguments, "to_sanitized_dict") else asdict(arguments)
