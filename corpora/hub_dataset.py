"""Any audio dataset of the `datasets` library -> clips. Nothing is decoded: sounds stay as they are stored."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .speech_corpora import Clip, CorpusError


HOUSE_SPLITS = {"validation": "dev", "valid": "dev", "val": "dev"}


@dataclass
class DatasetArguments:
    """For `dataset` alone: which of its configurations, and what its columns are called."""

    config: str | None = field(default=None, metadata={"help": "For `dataset`: its configuration, e.g. zh-CN."})
    audio_column: str = field(default="audio", metadata={"help": "For `dataset`: the column of sounds."})
    text_column: str = field(default="text", metadata={"help": "For `dataset`: the column of texts."})
    speaker_column: str | None = field(default=None, metadata={"help": "For `dataset`: the column of speakers."})


def read_dataset(name: str, output: Path, arguments: DatasetArguments) -> Iterator[Clip]:
    """The clips of all splits; `validation` is called dev.

    Args:
        name: A Hub id, a folder of audio or parquet files, or a folder that `save_to_disk` wrote.
        output: Where sounds go that the dataset holds as bytes: audio/ in it, a file for each, named by its content.

    Raises:
        CorpusError: It lacks one of the columns, or cannot be read. (`datasets` 5 needs torchcodec for folders of sound
            files and for WebDataset, though not for parquet, which is what nearly all of the Hub is.)
    """
    from datasets import Audio
    from tqdm import tqdm

    columns = [arguments.audio_column, arguments.text_column, arguments.speaker_column]
    wanted = [column for column in columns if column]
    for split, rows in _load(name, arguments.config).items():
        if missing := set(wanted) - set(rows.column_names):
            found = f"expected the columns {', '.join(wanted)}, found {', '.join(rows.column_names)}"
            raise CorpusError(f"{name}, {split}: {found}. Name {', '.join(sorted(missing))} by --..._column.")
        rows = rows.select_columns(wanted).cast_column(arguments.audio_column, Audio(decode=False))
        for row in tqdm(rows, desc=f"reading {split}", unit="clip", disable=None):
            sound, text, speaker = (row.get(column) for column in columns)
            audio = _file_of(sound or {}, output / "audio")
            yield Clip(audio, None if text is None else str(text), str(speaker or ""), HOUSE_SPLITS.get(split, split))


def _load(name: str, config: str | None) -> dict:
    """Splits by name."""
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError

    saved = any(Path(name, file).exists() for file in ("state.json", "dataset_dict.json"))
    try:
        loaded = load_from_disk(name) if saved else load_dataset(name, config)
    except DatasetGenerationError as error:
        raise CorpusError(f"{name}: `datasets` cannot read it ({error.__cause__}).") from error
    return loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _file_of(sound: dict, folder: Path) -> Path:
    """The file of `sound`; if the dataset contains bytes, they are written to a file now."""
    path, content = Path(sound.get("path") or ""), sound.get("bytes")
    if content is None:
        return path.absolute()
    # named by content: row numbers would mean other sounds when the dataset changes
    target = folder / (hashlib.sha256(content).hexdigest()[:20] + path.suffix)
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(target)
    return target
