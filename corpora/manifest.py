"""A manifest: a tsv or jsonl of audio files and their texts -> one schema.

Split it into DIR/train.tsv and DIR/held_out.tsv:

python -m pinyin_llm.corpora.manifest --manifests DIR/manifest.tsv --held_out files.txt
"""

import csv
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.console import report_errors
from .encoding import describe_encoding


if TYPE_CHECKING:
    from datasets import Dataset


COLUMNS = ("id", "audio", "text", "speaker", "seconds", "split")
WRITTEN = ("file", "text", "speaker", "seconds", "split")
# Characters per second of any speech, by a wide margin: people say 3 to 8, and toned pinyin has up to 8 for each.
FEWEST_PER_SECOND, MOST_PER_SECOND = 0.1, 80


class ManifestError(ValueError):
    """A manifest that cannot be read; the message names the file, the row and what was expected."""


def read_manifest(path: str | Path) -> "Dataset":
    """A manifest with the columns file (or audio) and text, and perhaps speaker, seconds and split.

    Args:
        path: .tsv with a header line, or .jsonl. Files are found relative to it.

    Returns:
        id, audio (path), text, speaker, seconds (0 where unknown), split (empty where unknown).

    Raises:
        ManifestError: Not a manifest in UTF-8, a column or a cell is missing, a file lies outside the manifest's
            folder, or seconds are not seconds.
    """
    from datasets import Dataset, Features, Value

    path = Path(path)
    kinds = Features({name: Value("float64" if name == "seconds" else "string") for name in COLUMNS})
    rows = [_row(path, number, row) for number, row in enumerate(_read_rows(path), start=1)]
    _check_seconds(path, rows)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, features=kinds)


def _read_rows(path: Path) -> Iterator[dict]:
    if path.suffix == ".jsonl":
        lines = filter(str.strip, _read_lines(path))
        yield from (_parse_json(path, number, line) for number, line in enumerate(lines, start=1))
        return
    header, rows = _read_table(path)
    yield from (dict(zip(header, row, strict=True)) for row in rows)


def _read_lines(path: Path) -> list[str]:
    """The lines of the file, with or without a byte order mark, which spreadsheets write."""
    if path.is_dir() or not path.exists():
        raise ManifestError(
            f"{path}: expected a manifest (tsv or jsonl), found {'a folder' if path.is_dir() else 'none'}."
        )
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(describe_encoding(path)) from error


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a tsv; blank lines are skipped."""
    if path.suffix == ".json":
        raise ManifestError(f"{path}: expected .tsv, or .jsonl with one object per line, found .json. Convert it.")
    table = [line.split("\t") for line in _read_lines(path) if line.strip()]
    header, rows = (table[0], table[1:]) if table else ([], [])
    if "text" not in header or not {"file", "audio"} & set(header):
        found = ", ".join(header) or "an empty file"
        raise ManifestError(f"{path}: expected the columns file and text, separated by tabs, found {found[:80]}.")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            found = f"found {len(row)}: {' | '.join(row)[:80]}"
            raise ManifestError(f"{path}, row {number}: expected {len(header)} cells, as the header has, {found}.")
    return header, rows


def _parse_json(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ManifestError(f"{path}, row {number}: expected a JSON object of file and text, found {line[:80]}.")
    return row


def _row(path: Path, number: int, row: dict) -> dict:
    file, text = row.get("file") or row.get("audio"), row.get("text")
    if not file or not isinstance(file, str) or not isinstance(text, str):
        found = json.dumps(row, ensure_ascii=False)[:80]
        raise ManifestError(f"{path}, row {number}: expected the columns file and text, each a string, found {found}.")
    inside = os.path.normpath(file)  # without following links: the sounds may be on another disk
    if not os.path.isabs(file) and Path(inside).parts[:1] == (os.pardir,):
        raise ManifestError(f"{path}, row {number}: {file} lies outside the manifest's folder. Give an absolute path.")
    audio = path.parent.resolve() / inside
    speaker, split = (str(row.get(name) or "") for name in ("speaker", "split"))
    seconds = _seconds(path, number, row.get("seconds"))
    return dict(zip(COLUMNS, (Path(file).stem, str(audio), text, speaker, seconds, split), strict=True))


def _seconds(path: Path, number: int, value) -> float:
    """A cell of seconds as a number; 0 where it is empty."""
    if value is None or value == "":
        return 0.0
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ManifestError(f"{path}, row {number}: expected seconds as a number such as 4.2, found {value!r}.")
    return seconds


def _check_seconds(path: Path, rows: list[dict]) -> None:
    """Warn of seconds that the texts make implausible; an error if most are, as where they are milliseconds."""
    known = [(number, row) for number, row in enumerate(rows, start=1) if row["seconds"] and row["text"].strip()]
    strange = [(number, row) for number, row in known if not _is_plausible(row["seconds"], len(row["text"]))]
    if not strange:
        return
    number, row = strange[0]
    found = f"found {row['seconds']:g} for {len(row['text'])} characters"
    count = f"{len(strange):,} of {len(known):,} rows are implausible"
    message = f"{path}, row {number}: expected seconds, {found}; {count}. Are they in another unit?"
    if 2 * len(strange) > len(known):
        raise ManifestError(message)
    warnings.warn(message, stacklevel=3)


def _is_plausible(seconds: float, characters: int) -> bool:
    return characters <= MOST_PER_SECOND * seconds and (seconds <= 10 or characters >= FEWEST_PER_SECOND * seconds)


def write_manifest(path: Path, rows: Iterable[tuple[Path, str, str, float, str]]) -> None:
    """Write (audio, text, speaker, seconds, split) of each row as tsv, whole or not at all.

    Audio in the manifest's folder is named relative to it, so that both can be moved; other audio by its whole path.
    """
    folder = path.parent.resolve()
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as lines:
        # without quotes, as manifests are read
        table = csv.writer(lines, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        table.writerow(WRITTEN)
        for audio, text, speaker, seconds, split in rows:
            resolved = audio.resolve()
            file = resolved.relative_to(folder) if folder in resolved.parents else audio.absolute()
            text, speaker = (" ".join(words.split()) for words in (text, speaker))
            table.writerow((file, text, speaker, f"{seconds:.3f}", split))
    partial.replace(path)


@dataclass
class SplitArguments:
    """Which files are kept out of training."""

    manifests: list[str] = field(
        metadata={"help": "tsv manifests; train.tsv and held_out.tsv are written next to each."}
    )
    held_out: str = field(metadata={"help": "Names of files, one per line."})


def split_manifest(path: Path, held_out: set[str]) -> tuple[int, list[str]]:
    """Write the rows of `path` whose file is named to held_out.tsv beside it, the others to train.tsv.

    Returns:
        How many are left to learn from; the file of each row that is held out.
    """
    header, rows = _read_table(path)
    file = header.index("file" if "file" in header else "audio")
    kept_out = [row for row in rows if row[file] in held_out]
    rest = [row for row in rows if row[file] not in held_out]
    for name, part in (("train.tsv", rest), ("held_out.tsv", kept_out)):
        lines = ["\t".join(row) + "\n" for row in (header, *part)]
        path.with_name(name).write_text("".join(lines), encoding="utf-8")
    return len(rest), [row[file] for row in kept_out]


def main(argv: list[str] | None = None) -> int:
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(SplitArguments).parse_args_into_dataclasses(argv)
    held_out = set(filter(None, map(str.strip, Path(arguments.held_out).read_text("utf-8-sig").splitlines())))
    met: set[str] = set()
    for manifest in arguments.manifests:
        train, kept_out = split_manifest(Path(manifest), held_out)
        print(f"{manifest}: {train} rows to learn from, {len(kept_out)} held out")
        met.update(kept_out)
    if unmet := held_out - met:  # a misspelt name would let its clip into training
        print(f"{len(unmet)} of {len(held_out)} names are in no manifest, as {min(unmet)}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
