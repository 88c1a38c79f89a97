"""A speech corpus as it is published -> train.tsv, dev.tsv and test.tsv, ready for train_asr.py.

    python -m pinyin_llm.corpora.prepare aishell1 --root DOWNLOADS --output data/speech/aishell1
    python -m pinyin_llm.corpora.prepare dataset --root HUB_ID --text_column sentence --output data/speech/mine

Archives in DOWNLOADS are unpacked there. The output gets a manifest for each split (file, text, speaker, seconds,
split), dropped.tsv with a reason for every other clip, and counts.json. The command resumes if interrupted. Exit codes:
0 all done, 1 unreadable clips or an incomplete corpus, 2 bad usage or nothing done.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from ..audio_pinyin_llm import seconds_of
from ..scoring.normalization import HAN, read_aloud
from .hub_dataset import DatasetArguments, read_dataset
from .manifest import write_manifest
from .speech_corpora import CORPORA, Clip, Corpus
from .unpack import SUFFIXES, unpack


TEXT_REASONS = ("no_transcript", "empty_text", "undecodable_text", "no_han")
SOUND_REASONS = ("unreadable", "too_short", "too_long")
COUNTS = ("read", "kept", "seconds", *TEXT_REASONS, *SOUND_REASONS)


@dataclass
class PrepareArguments:
    """Which clips are kept, and where corpus and manifests are."""

    root: str = field(metadata={"help": "Folder of the corpus or its archive; for `dataset` a Hub id or a folder."})
    output: str = field(metadata={"help": "Folder for the manifests and counts; one for each corpus."})
    shortest: float = field(default=0.3, metadata={"help": "Seconds; shorter clips are dropped, and counted."})
    longest: float = field(default=30.0, metadata={"help": "Seconds; longer clips are dropped, and counted."})
    num_proc: int = field(default=2, metadata={"help": "Archives unpacked, or clips measured, at once."})


def unpack_corpus(corpus: Corpus, root: Path, num_proc: int) -> None:
    """Unpack the archives in `root` that are not unpacked yet (ArchiveError: see `unpack`)."""
    for pattern, becomes in corpus.archives.items():
        archives = [path for path in sorted(root.glob(f"{pattern}.*")) if path.name.endswith(SUFFIXES)]
        # a folder appears whole, so an existing one is complete
        missing = [path for path in archives if not any(root.glob(becomes.format(name=path.name.partition(".")[0])))]
        if missing:
            unpack(missing, num_proc)


def measure(files: list[Path], journal: Path, num_proc: int = 2) -> dict[Path, float]:
    """Seconds of each file; 0 if it cannot be read.

    What is measured is written to `journal` at once, and not measured again while the file has the same size.
    """
    from tqdm import tqdm

    known = _read_journal(journal)

    def look(path: Path) -> tuple[tuple[str, int], float]:
        key = str(path), path.stat().st_size if path.is_file() else 0
        return key, known.get(key) or seconds_of(path)

    measured = {}
    # threads: libsndfile works without Python's lock
    with ThreadPool(num_proc) as pool, journal.open("a", encoding="utf-8", buffering=1) as lines:
        paths = tqdm(files, desc="measuring", unit="clip", disable=None)
        for path, (key, seconds) in zip(paths, pool.imap(look, files, chunksize=16), strict=True):
            measured[path] = seconds
            if seconds and key not in known:
                lines.write(
                    "\n" + json.dumps([*key, seconds])
                )  # the line end first: it also ends a line that was cut off
    return measured


def _read_journal(journal: Path) -> dict[tuple[str, int], float]:
    known = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            path, size, seconds = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        known[path, size] = seconds
    return known


def prepare(
    clips: Iterable[Clip], output: Path, shortest: float = 0.3, longest: float = 30.0, num_proc: int = 2
) -> dict[str, dict]:
    """Write a manifest for each split and dropped.tsv.

    Returns:
        By split: clips read and kept, seconds kept, and clips dropped by reason.
    """
    clips = list(clips)
    reasons = [why_no_text(clip.text) for clip in clips]
    output.mkdir(parents=True, exist_ok=True)
    spoken = [clip.audio for clip, reason in zip(clips, reasons, strict=True) if reason is None]
    seconds = measure(spoken, output / "seconds.jsonl", num_proc)

    counts = defaultdict(lambda: Counter(dict.fromkeys(COUNTS, 0)))
    kept, dropped = defaultdict(list), []
    for clip, reason in zip(clips, reasons, strict=True):
        reason = reason or sound_problem(seconds[clip.audio], shortest, longest)
        counts[clip.split].update(["read", reason or "kept"])
        if reason:
            dropped.append(f"{clip.audio}\t{clip.split}\t{reason}\n")
        else:
            counts[clip.split]["seconds"] += seconds[clip.audio]
            kept[clip.split].append((clip.audio, clip.text, clip.speaker, seconds[clip.audio], clip.split))
    for split in counts:
        write_manifest(output / f"{split}.tsv", kept[split])
    (output / "dropped.tsv").write_text("".join(["file\tsplit\treason\n", *dropped]), encoding="utf-8")
    return {split: {**numbers, "seconds": round(numbers["seconds"], 1)} for split, numbers in counts.items()}


def why_no_text(text: str | None) -> str | None:
    """The reason to drop `text`, one of `TEXT_REASONS`, or None.

    >>> why_no_text("OK"), why_no_text("3年")
    ('no_han', None)
    """
    if text is None:
        return "no_transcript"
    if not text.strip():
        return "empty_text"
    if "\ufffd" in text:
        return "undecodable_text"
    # numbers are Han when they are read
    return None if HAN.search(text) or HAN.search(read_aloud(text)) else "no_han"


def sound_problem(seconds: float, shortest: float, longest: float) -> str | None:
    """The reason to drop a clip of this length, one of `SOUND_REASONS`, or None."""
    if not seconds:
        return "unreadable"
    if seconds < shortest:
        return "too_short"
    return "too_long" if seconds > longest else None


def what_is_wrong(counts: dict[str, dict], published: dict[str, int]) -> list[str]:
    """What is missing from the corpus, in words."""
    wrong = []
    for split, expected in published.items():
        numbers = counts.get(split, Counter())
        found = numbers["read"] - numbers["no_transcript"]
        if found != expected:
            hint = "Was it downloaded and unpacked whole?"
            wrong.append(
                f"{split}: expected {expected:,} clips with a transcript, as published, found {found:,}. {hint}"
            )
    unreadable = sum(numbers["unreadable"] for numbers in counts.values())
    if unreadable:
        wrong.append(f"{unreadable:,} clips are missing, empty or unreadable: see dropped.tsv.")
    return wrong


def check_output(output: Path, corpus: str) -> None:
    """Raise ValueError if `output` contains the manifests of another corpus."""
    record = output / "counts.json"
    if record.exists() and (found := json.loads(record.read_text()).get("corpus")) != corpus:
        raise ValueError(f"{output}: expected nothing or {corpus}, found {found}. Choose another --output.")


def run(name: str, arguments: PrepareArguments, columns: DatasetArguments) -> int:
    """Prepare corpus `name`; the exit code."""
    root, output = Path(arguments.root).absolute(), Path(arguments.output).absolute()
    check_output(output, name)
    if name == "dataset":
        clips, published = read_dataset(arguments.root, output, columns), {}
    else:
        unpack_corpus(CORPORA[name], root, arguments.num_proc)
        clips, published = CORPORA[name].read(root), CORPORA[name].published
    counts = prepare(clips, output, arguments.shortest, arguments.longest, arguments.num_proc)
    (output / "counts.json").write_text(json.dumps({"corpus": name, "splits": counts}, indent=2) + "\n")
    print(json.dumps(counts))
    wrong = what_is_wrong(counts, published)
    for message in wrong:
        print(f"warning: {message}", file=sys.stderr)
    if not any(numbers["kept"] for numbers in counts.values()):
        print(f"error: {arguments.root}: no clip was kept; {output / 'dropped.tsv'} says why.", file=sys.stderr)
        return 2
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    """Prepare the corpus named on the command line; the exit code."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser([PrepareArguments, DatasetArguments])
    parser.add_argument("corpus", choices=[*CORPORA, "dataset"], help="What --root holds.")
    arguments, columns, named = parser.parse_args_into_dataclasses(argv)
    if named.corpus != "dataset" and columns != DatasetArguments():
        parser.error(f"--config and --..._column are for `dataset`; {named.corpus} has its own.")
    try:
        return run(named.corpus, arguments, columns)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
