"""Raw text -> clean training sentences: one per line, Han characters only, none from a held-out text.

python -m pinyin_llm.corpora.plain_text --inputs raw/ --output clean.txt --held_out hashes.txt
python -m pinyin_llm.corpora.plain_text --inputs dataset:wikimedia/wikipedia,config=20231101.zh --output clean.txt

Inputs are read piece by piece and may be larger than memory.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..scoring.normalization import HAN_CLASS, han_only, normalize_text, read_aloud
from .encoding import SAMPLE_BYTES, describe_encoding, is_utf8


NonHan = Literal["split", "drop", "delete"]

# \ufffd: bytes that are not UTF-8, where characters are lost
SENTENCE_END = re.compile(r"[。!?;\n\r\u2028\ufffd]|\.{2,}|\.(?=\s|$)")
CLAUSE_END = re.compile(r"[,、:\s—]+")
# Letters and digits of any script but Han. Punctuation is not foreign; it is simply dropped.
FOREIGN_RUN = re.compile(rf"(?:[^\W{HAN_CLASS}_]|[@#$%&*+/=\\|<>^~_])+")


COUNTS = (
    "read",
    "kept",
    "characters",
    "held_out",
    "duplicate",
    "nothing_left",
    "with_foreign_words",
    "undecodable_bytes",
)

WINDOW = 10
SHORTEST_FRAGMENT = 5
SHORT_COPIES = 5

TEXT_SUFFIXES = (".txt", ".tsv", ".txt.gz", ".tsv.gz")
LONGEST_PIECE = 2**20  # characters read at once from an endless line
DATASET = "dataset:"
DATASET_OPTIONS = {"config": None, "split": "train", "column": "text"}


class HeldOut:
    """The held-out texts, known only by hashes of their windows.

    Args:
        hash_file: lines of the first 10 hex digits of the sha256 of every 10-character window (Han only) of
            the held-out texts, and of the whole text where it is shorter.
        texts: further held-out texts, in plain words.

    Raises:
        ValueError: a line of `hash_file` is not 10 hex digits.
    """

    def __init__(self, hash_file: Path | None = None, texts: Iterable[str] = ()):
        self.hashes = set(hash_file.read_text("utf-8", errors="replace").split()) if hash_file else set()
        for digest in self.hashes:
            if not re.fullmatch("[0-9a-f]{10}", digest):
                raise ValueError(f"{hash_file}: expected lines of 10 hex digits, found {digest[:20]!r}")
        for text in texts:
            self.hashes.update(_window_hashes(normalize_text(text)))

    def __contains__(self, sentence: str) -> bool:
        return any(digest in self.hashes for digest in _window_hashes(sentence))


def _window_hashes(text: str) -> Iterator[str]:
    characters = han_only(text)
    for start in range(max(1, len(characters) - WINDOW + 1)):
        window = characters[start : start + WINDOW]
        yield hashlib.sha256(window.encode()).hexdigest()[:10]


def sentences(text: str, max_characters: int = 40, non_han: NonHan = "split") -> Iterator[str]:
    """Training sentences of `text`: 2 to `max_characters` Han characters each, numbers read aloud.

    Args:
        text: any text; it ends a sentence at 。！？；… and line ends.
        max_characters: longer sentences are cut at commas first, then anywhere.
        non_han: what a foreign word does to its sentence: "split" it in two (fragments under five characters
            are left out), "drop" it, or "delete" the word alone.

    >>> list(sentences("今天，天氣很好！他用Python写3个程序。"))
    ['今天天气很好', '写三个程序']
    """
    for sentence in whole_sentences(text):
        yield from lines_of(sentence, max_characters, non_han)


def whole_sentences(text: str) -> Iterator[str]:
    """`text` read aloud, cut at the ends of its sentences; empty ones are left out."""
    return (sentence for sentence in SENTENCE_END.split(read_aloud(text)) if sentence.strip())


def lines_of(sentence: str, max_characters: int = 40, non_han: NonHan = "split") -> Iterator[str]:
    """The training lines of one whole sentence (see `sentences`)."""
    pieces = FOREIGN_RUN.split(sentence)
    if non_han == "drop" and len(pieces) > 1:
        return
    if non_han == "delete":
        pieces = ["".join(pieces)]
    shortest = 2 if len(pieces) == 1 else SHORTEST_FRAGMENT
    for piece in pieces:
        clauses = [han_only(clause) for clause in CLAUSE_END.split(piece)]
        lines = _packed(clauses, max_characters)
        yield from (line for line in lines if len(line) >= shortest and _is_speech(line))


def _is_speech(line: str) -> bool:
    """Not one character repeated; 爸爸 is a word all the same."""
    return len(set(line)) > 1 or len(line) == 2


def _packed(clauses: Iterable[str], limit: int) -> Iterator[str]:
    """Joins clauses while they fit into `limit` characters; cuts a clause that is longer by itself."""
    line = ""
    for clause in clauses:
        if len(line) + len(clause) <= limit:
            line += clause
            continue
        yield line
        # equal parts rather than a full line and a short rest
        size = -(-len(clause) // -(-len(clause) // limit))
        *full, line = [clause[start : start + size] for start in range(0, len(clause), size)]
        yield from full
    yield line


class RecentLines:
    """How often each line occurred; lines not seen for five to ten million other lines are forgotten.

    So the memory stays under 1 GiB, at about 90 bytes per line, however long the text is.
    """

    CAPACITY = 5_000_000

    def __init__(self):
        self.newer: dict[bytes, int] = {}
        self.older: dict[bytes, int] = {}

    def count(self, line: str) -> int:
        """Count `line`; returns how often it occurred so far."""
        key = hashlib.blake2b(line.encode(), digest_size=8).digest()
        times = 1 + (self.newer.get(key) or self.older.get(key, 0))
        self.newer[key] = times
        if len(self.newer) >= self.CAPACITY:
            self.older, self.newer = self.newer, {}
        return times


def prepare(
    files: Iterable[Path | str],
    output: Path,
    held_out: HeldOut,
    max_characters: int = 40,
    non_han: NonHan = "split",
) -> dict[str, int]:
    """Writes the clean sentences of `files` (see `text_files`) to `output`, and their counts beside it as JSON.

    A sentence that shares a window with a held-out text is dropped whole, before it is cut into lines, so
    that no half of it stays. A line of eight characters or more is kept once, a shorter one up to five times
    (as far as `RecentLines` remembers).

    Returns:
        counts: sentences read, lines and characters kept, and what was dropped by reason.

    Raises:
        ValueError: A file that is damaged or in another encoding, or no sentence was kept; nothing is written.
    """
    counts = Counter(dict.fromkeys(COUNTS, 0))
    seen = RecentLines()
    partial = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "w", encoding="utf-8") as target:
            for text in _texts(files, counts):
                for sentence in whole_sentences(text):
                    lines = _clean_lines(sentence, held_out, max_characters, non_han, seen, counts)
                    target.writelines(line + "\n" for line in lines)
        if not counts["kept"]:
            found = ", ".join(f"{name} {number}" for name, number in counts.items() if number) or "no text"
            raise ValueError(f"Expected sentences in Han characters, kept none ({found}). {output} was not written.")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    record = output.with_suffix(".json")
    record.write_text(json.dumps(dict(counts), indent=2) + "\n")
    return dict(counts)


def _clean_lines(
    sentence: str, held_out: HeldOut, max_characters: int, non_han: NonHan, seen: RecentLines, counts: Counter
) -> Iterator[str]:
    """The lines of one sentence that are neither held out nor repeated; counts the others."""
    counts["read"] += 1
    counts["with_foreign_words"] += bool(FOREIGN_RUN.search(sentence))
    if sentence in held_out:
        counts["held_out"] += 1
        return
    empty = True
    for line in lines_of(sentence, max_characters, non_han):
        empty = False
        times = seen.count(line)
        # the whole sentence passed, but a line of it may equal a short held-out text
        if line in held_out:
            counts["held_out"] += 1
        elif times > (1 if len(line) >= 8 else SHORT_COPIES):
            counts["duplicate"] += 1
        else:
            counts["kept"] += 1
            counts["characters"] += len(line)
            yield line
    if empty:
        counts["nothing_left"] += 1


def _texts(files: Iterable[Path | str], counts: Counter) -> Iterator[str]:
    """Lines of .txt files, the `text` column of .tsv files, the texts of datasets."""
    for source in files:
        for text in _stream(source) if isinstance(source, str) else _read(source):
            counts["undecodable_bytes"] += text.count("\ufffd")
            yield text


def _read(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as content:
            buffered = io.BufferedReader(content, SAMPLE_BYTES)
            if not is_utf8(sample := buffered.peek()):
                raise ValueError(describe_encoding(path, sample))
            lines = io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="replace", newline="")
            is_table = path.name.removesuffix(".gz").endswith(".tsv")
            pieces = iter(lambda: lines.readline(LONGEST_PIECE), "")
            yield from _column(path, lines, "text") if is_table else pieces
    except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise ValueError(f"{path}: is damaged or cut off ({error}). Fetch it again, or leave it out.") from error


def _stream(source: str) -> Iterator[str]:
    """The texts of `dataset:NAME[,config=...][,split=...][,column=...]`, loaded as they are needed."""
    name, *pairs = source.removeprefix(DATASET).split(",")
    given = dict(pair.partition("=")[::2] for pair in pairs)
    if unknown := given.keys() - DATASET_OPTIONS.keys():
        raise ValueError(f"{source}: expected {', '.join(DATASET_OPTIONS)}, found {', '.join(sorted(unknown))}")
    from datasets import load_dataset

    options = DATASET_OPTIONS | given
    column = options["column"]
    rows = load_dataset(name, options["config"], split=options["split"], streaming=True)
    if column not in (rows.column_names or [column]):
        raise ValueError(f"{source}: expected a column {column!r}, found {', '.join(rows.column_names)}; name one")
    # the other columns may be sounds that nobody can decode here
    yield from (row[column] or "" for row in rows.select_columns(column))


def _column(path: Path, lines: Iterable[str], name: str) -> Iterator[str]:
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if name not in (rows.fieldnames or ()):
        raise ValueError(f"{path}: expected a column {name!r} in the first line, found {rows.fieldnames}")
    return (row[name] or "" for row in rows)


def text_files(inputs: Iterable[str]) -> list[Path | str]:
    """The files named, the .txt and .tsv files (also .gz) anywhere in the folders named; dataset:... as it is.

    Raises:
        FileNotFoundError: one of `inputs` is not there.
    """
    files = []
    for name in inputs:
        path = Path(name)
        if name.startswith(DATASET):
            files.append(name)
        elif path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.name.endswith(TEXT_SUFFIXES))
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: expected a text file or a folder of them, found nothing")
    return files


@dataclass
class PlainTextArguments:
    """Cleans raw text into training sentences."""

    inputs: list[str] = field(
        metadata={"help": "Files (.txt, .tsv with a column `text`, .gz), folders, dataset:NAME,column=text."}
    )
    output: str = field(metadata={"help": "the file of clean sentences; its counts go beside it as .json"})
    held_out: str | None = field(default=None, metadata={"help": "file of hashes of the held-out windows"})
    held_out_texts: str | None = field(default=None, metadata={"help": ".tsv of further held-out texts"})
    max_characters: int = field(default=40, metadata={"help": "longest sentence"})
    non_han: NonHan = field(default="split", metadata={"help": "what a foreign word does to its sentence"})


def main(argv: list[str] | None = None) -> int:
    """Cleans the files named on the command line; prints the counts."""
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(PlainTextArguments).parse_args_into_dataclasses(argv)
    try:
        further = _texts([Path(arguments.held_out_texts)], Counter()) if arguments.held_out_texts else ()
        held_out = HeldOut(Path(arguments.held_out) if arguments.held_out else None, further)
        files = text_files(arguments.inputs)
        counts = prepare(files, Path(arguments.output), held_out, arguments.max_characters, arguments.non_han)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(counts))
    if damaged := counts["undecodable_bytes"]:
        print(f"warning: {damaged:,} bytes are not UTF-8; each ends a sentence.", file=sys.stderr)
    if arguments.non_han == "delete" and (foreign := counts["with_foreign_words"]):
        print(f"warning: foreign words are cut out of {foreign:,} sentences, which read otherwise.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
