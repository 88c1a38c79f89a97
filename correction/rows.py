"""A line of text -> rows that are corrected as sentences; simplified and traditional characters; numbers as context."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ..tokenization_pinyin_llm import HAN_BLOCKS, PinyinTokenizer, is_han
from ..transcription_pinyin_llm import cut_evenly


NUMERALS = "零一二三四五六七八九"
HAN = "〇" + "".join(f"{chr(first)}-{chr(last)}" for first, last in HAN_BLOCKS)
# Runs of Han, of digits, and what ends a row: letters of other scripts, and the end of a sentence.
RUNS = re.compile(rf"[{HAN}]+|\d+|[^\W\d_{HAN}]+|[。！？；!?;…\n\r]+")


@dataclass
class Row:
    """A stretch of Han characters and numbers, at most `LONGEST_ROW`, that is corrected as one sentence.

    Args:
        text: Its characters, simplified; they change as edits are applied.
        units: The unit of each as it was given.
        indices: The position of each in the line; `None` for a numeral, which is context only.
        changed: {slot: score of the edit that changed it}.
        doubts: (N,) probability of the best edit of each slot when the row was first scored.
    """

    text: str
    units: list[int]
    indices: list[int | None]
    changed: dict[int, float] = field(default_factory=dict)
    doubts: np.ndarray | None = None

    def apply(self, edit) -> None:
        """Apply an edit to the row."""
        self.changed |= {
            slot: edit.score for slot in range(edit.start, edit.end) if self.text[slot] != edit.after[slot - edit.start]
        }
        self.text = self.text[: edit.start] + edit.after + self.text[edit.end :]


def rows_of(text: str, tokenizer: PinyinTokenizer) -> Iterator[Row]:
    """The rows of a line. Punctuation within a sentence is skipped; its end and foreign words end a row."""
    part: list[tuple[str, int, int | None]] = []
    for match in RUNS.finditer(text):
        run = match[0]
        if is_han(run[0]):
            simplified = simplify(run)
            units = tokenizer.encode_characters(simplified, errors="keep")[1]
            for index, slot in enumerate(zip(simplified, units, strict=True), start=match.start()):
                if slot[1] is None:  # a character without a reading
                    yield from _cut(part)
                    part = []
                else:
                    part.append((*slot, index))
        elif run[0].isdecimal():
            numerals = read_number(run, text[match.end() : match.end() + 1])
            units = tokenizer.encode_characters(numerals)[1]
            part += [(numeral, unit, None) for numeral, unit in zip(numerals, units, strict=True)]
        else:
            yield from _cut(part)
            part = []
    yield from _cut(part)


def _cut(part: list[tuple[str, int, int | None]]) -> Iterator[Row]:
    """Rows of equal length, at most `LONGEST_ROW`; stretches of numbers alone are left out."""
    for slots in cut_evenly(part):
        characters, units, indices = map(list, zip(*slots, strict=True))
        if any(index is not None for index in indices):
            yield Row("".join(characters), units, indices)


def read_number(digits: str, following: str) -> str:
    """Digits -> numerals for the language model to read: by value up to 9999, years and longer ones digit by digit."""
    values = [unicodedata.decimal(digit) for digit in digits]
    if len(values) > 4 or (len(values) > 1 and values[0] == 0) or (len(values) == 4 and following == "年"):
        return "".join(NUMERALS[value] for value in values)
    powers = ("千", "百", "十", "")[-len(values) :]
    read = "".join(NUMERALS[v] + (power if v else "") for v, power in zip(values, powers, strict=True))
    read = re.sub("零+", "零", read).removesuffix("零") or NUMERALS[0]
    return read.removeprefix("一") if read.startswith("一十") else read


def simplify(run: str) -> str:
    """Each character in its simplified form."""
    return "".join(map(_simplified, run))


def simplify_line(text: str) -> str:
    """A line in simplified characters, by its phrases (乾燥 -> 干燥, 乾坤 -> 乾坤)."""
    return _converter("t2s").convert(text)


def complicate(run: str) -> str:
    """A simplified run in traditional characters, by its phrases (头发 -> 頭髮)."""
    converted = _converter("s2t").convert(run)
    return converted if len(converted) == len(run) else "".join(map(_traditional, run))


def in_traditional(text: str) -> bool:
    """Whether more characters of a line are only traditional than only simplified."""
    return sum(_simplified(c) != c for c in text) > sum(_traditional(c) != c for c in text)


@cache
def _simplified(character: str) -> str:
    return _converted("t2s", character)


@cache
def _traditional(character: str) -> str:
    return _converted("s2t", character)


def _converted(direction: str, character: str) -> str:
    converted = _converter(direction).convert(character) if is_han(character) else character
    return converted if len(converted) == 1 else character


@cache
def _converter(direction: str):
    from opencc import OpenCC

    return OpenCC(direction)
