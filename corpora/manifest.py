"""A manifest: a tsv or jsonl of audio files and their texts -> one schema.

Split it into DIR/train.tsv and DIR/held_out.tsv:

python -m pinyin_llm.corpora.manifest --manifests DIR/manifest.tsv --held_out files.txt
"""

import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset


COLUMNS = ("id", "audio", "text", "speaker", "seconds", "split")
WRITTEN = ("file", "text", "speaker", "seconds", "split")


class ManifestError(ValueError):
    """A manifest that cannot be read; the message names the file, the row and what was expected."""


def read_manifest(path: str | Path) -> "Dataset":
    """A manifest with the columns file (or audio) and text, and perhaps speaker, seconds and split.

    Args:
        path: .tsv with a header line, or .jsonl. Files are found relative to it.

    Returns:
        id, audio (path), text, speaker, seconds (0 where unknown), split (empty where unknown).

    Raises:
        ManifestError: A column is missing, or a file lies outside the manifest's folder.
    """
    from datasets import Dataset, Features, Value

    path = Path(path)
    kinds = Features({name: Value("float64" if name == "seconds" else "string") for name in COLUMNS})
    rows = [_row(path, number, row) for number, row in enumerate(_read_rows(path), start=1)]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, features=kinds)


def _read_rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as lines:  # as spreadsheets write it
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
    speaker, split = (str(row.get(name) or "") for name in ("speaker", "split"))
    seconds = float(row.get("seconds") or 0)
    return dict(zip(COLUMNS, (Path(file).stem, str(audio), text, speaker, seconds, split), strict=True))


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
    header, *rows = path.read_text(encoding="utf-8-sig").splitlines()
    kept_out = [row for row in rows if row.split("\t")[0] in held_out]
    rest = [row for row in rows if row.split("\t")[0] not in held_out]
    for name, part in (("train.tsv", rest), ("held_out.tsv", kept_out)):
        path.with_name(name).write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
    return len(rest), [row.split("\t")[0] for row in kept_out]


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
    sys.exit(main())
