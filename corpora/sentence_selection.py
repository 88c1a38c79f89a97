"""Choose sentences to be spoken so that any prefix of the list covers Mandarin's syllables well.

    python -m pinyin_llm.corpora.sentence_selection --texts aishell1_dev.tsv stcmds_part.tsv \
        --shares 0.4 0.6 --output sentences.tsv --count 4000 [--held_out hashes.txt] [--exclude test.tsv]

Every sentence is drawn in two steps: a source by its share, then, among a few hundred sentences of that
source taken at random, the one whose syllables the list has said least so far.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import fsum
from pathlib import Path

import numpy as np

from .plain_text import HeldOut


SPEAKABLE = re.compile(r"[\u4e00-\u9fff]{4,24}")
CANDIDATES = 256


@dataclass
class SelectionArguments:
    """Where the sentences come from and how many are wanted."""

    texts: list[Path] = field(metadata={"help": "TSV files with a column `text`."})
    output: Path = field(metadata={"help": "TSV file to write (columns text, source)."})
    shares: list[float] | None = field(
        default=None,
        metadata={"help": "Share of the list drawn from each file of --texts; even when left out."},
    )
    count: int = field(default=4000, metadata={"help": "Sentences wanted at most."})
    held_out: Path | None = field(
        default=None, metadata={"help": "File of hashes of the held-out windows; see `HeldOut`."}
    )
    exclude: list[Path] = field(default_factory=list, metadata={"help": "TSV files whose texts are left out."})
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the shares against the files (ValueError)."""
        self.shares = self.shares or [1.0] * len(self.texts)
        if len(self.shares) != len(self.texts):
            raise ValueError(
                f"--shares needs one number for each of the {len(self.texts)} files of --texts, "
                f"found {len(self.shares)}: give as many, or none."
            )


def read_sentences(path: Path) -> list[str]:
    """Return the column `text` of a TSV file with a header line (ValueError where it has none)."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if "text" not in (reader.fieldnames or []):
            raise ValueError(f"{path} needs a header line with a column `text`, found {reader.fieldnames}.")
        return [row["text"] for row in reader]


@cache
def syllables(text: str) -> frozenset[str]:
    """Return the distinct toned syllables of a Han-only text, the neutral tone being 5."""
    from pypinyin import Style, lazy_pinyin

    return frozenset(lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True))


def speakable_texts(paths: list[Path], held_out: HeldOut, excluded: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each file's stem with its Han-only sentences of 4 to 24 characters, no sentence twice."""
    seen = set(excluded)
    for path in paths:
        texts = dict.fromkeys(text for text in read_sentences(path) if SPEAKABLE.fullmatch(text))
        fresh = [text for text in texts if text not in seen and text not in held_out]
        seen.update(fresh)
        yield path.stem, fresh


def novelty(text: str, said: Counter[str]) -> float:
    """Score a sentence: its distinct syllables, each worth less the more often it has been said.

    The square root of the length keeps long sentences from winning by length alone, and short ones by
    holding nothing else but one rare syllable. `fsum` adds a set, whose order changes from run to run, to
    the same number always.
    """
    return fsum(1 / (1 + said[syllable]) for syllable in syllables(text)) / len(text) ** 0.5


def select_sentences(
    pools: dict[str, list[str]], shares: list[float], count: int, seed: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield up to `count` pairs (text, source), ordered so that any prefix covers the syllables well.

    `pools` maps a source to its sentences, `shares` gives each source's weight in the same order; a source
    that runs dry leaves the rest to the others. `pools` is not changed.
    """
    generator = np.random.default_rng(seed)
    remaining = {source: list(texts) for source, texts in pools.items()}
    weights = np.array(shares, dtype=float)
    said: Counter[str] = Counter()
    for _ in range(min(count, sum(map(len, remaining.values())))):
        weights *= [bool(texts) for texts in remaining.values()]
        source = str(generator.choice(list(remaining), p=weights / weights.sum()))
        texts = remaining[source]
        candidates = generator.choice(len(texts), size=min(CANDIDATES, len(texts)), replace=False)
        best = max(candidates, key=lambda index: novelty(texts[index], said))
        # Order within the pool does not matter, so the last sentence fills the gap.
        texts[best], texts[-1] = texts[-1], texts[best]
        text = texts.pop()
        said.update(syllables(text))
        yield text, source


def write_sentences(arguments: SelectionArguments) -> int:
    """Select the sentences and write them; return how many distinct syllables they hold."""
    excluded = {text for path in arguments.exclude for text in read_sentences(path)}
    pools = dict(speakable_texts(arguments.texts, HeldOut(arguments.held_out), excluded))
    chosen = list(select_sentences(pools, arguments.shares, arguments.count, arguments.seed))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([("text", "source"), *chosen])
    return len(frozenset().union(*(syllables(text) for text, _ in chosen)))


def main(argv: list[str] | None = None) -> int:
    """Select sentences; return 0, or 2 with a message where an argument or a file is wrong."""
    from transformers import HfArgumentParser

    try:
        (arguments,) = HfArgumentParser(SelectionArguments).parse_args_into_dataclasses(argv)
        distinct = write_sentences(arguments)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.output}: {distinct} distinct syllables", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
