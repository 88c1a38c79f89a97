"""Speech as users have it: a tsv or jsonl of audio files and what is said in them -> one schema."""

import csv
import json
from pathlib import Path

from datasets import Dataset


COLUMNS = ("id", "audio", "text", "speaker", "seconds")


class ManifestError(ValueError):
    """A manifest that cannot be read; the message names the file, the row and what was expected."""


def read_manifest(path: str | Path) -> Dataset:
    """A manifest with the columns file (or audio) and text, and perhaps speaker and seconds.

    Args:
        path: .tsv with a header line, or .jsonl. Files are found relative to it.

    Returns:
        id, audio (path), text, speaker, seconds (0 where unknown).

    Raises:
        ManifestError: A column is missing, or a file lies outside the manifest's folder.
    """
    path = Path(path)
    return Dataset.from_list([_row(path, number, row) for number, row in enumerate(_read_rows(path), start=1)])


def _read_rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in lines if line.strip()]
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _row(path: Path, number: int, row: dict) -> dict:
    file, text = row.get("file") or row.get("audio"), row.get("text")
    if not file or text is None:
        raise ManifestError(f"{path}, row {number}: expected the columns file and text, found {', '.join(row)}.")
    folder = path.parent.resolve()
    audio = folder / file
    if not Path(file).is_absolute() and folder not in audio.resolve().parents:
        raise ManifestError(f"{path}, row {number}: {file} lies outside the manifest's folder. Give an absolute path.")
    seconds, speaker = float(row.get("seconds") or 0), str(row.get("speaker") or "")
    return dict(zip(COLUMNS, (Path(file).stem, str(audio), text, speaker, seconds), strict=True))
