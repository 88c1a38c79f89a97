"""Which syllables recognisers confuse: a small table learned from their errors.

A unit is an initial, a final and a tone. Each part is confused on its own, so that a few hundred errors are enough for
all pairs of the 1417 units: log p(recognised | spoken) is the sum over the three parts.

Shape letters: U pinyin units.
"""

import json
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from ..encoder_pinyin_llm import INITIALS
from ..tokenization_pinyin_llm import PinyinTokenizer


UNIT_PARTS = ("initials", "finals", "tones")
LEAST = 1e-9  # probability of a part that was never confused
SMOOTHING = 0.5  # pseudo-errors of each part in all, spread over everything it could be confused with
ALIKE_SMOOTHING = 4.0  # pseudo-errors of each part, spread like the errors in both directions
ANYTHING = 0.05  # share of the errors that may be anything


class PinyinConfusions:
    """log p(recognised | spoken) of pairs of units.

    Args:
        counts: For each of `UNIT_PARTS`, {spoken: {recognized: times}}, correct ones included, in TONE3 spelling.
        pinyin_tokenizer: The units.
    """

    def __init__(self, counts: dict[str, dict[str, dict[str, float]]], pinyin_tokenizer: PinyinTokenizer):
        self.counts, self.pinyin_tokenizer = counts, pinyin_tokenizer

    @classmethod
    def learn(cls, pairs: Iterable[tuple[int, int]], pinyin_tokenizer: PinyinTokenizer) -> "PinyinConfusions":
        """Count (spoken, recognized) pairs of unit ids, as `align_units` pairs them."""
        counts: dict[str, dict[str, Counter]] = {name: {} for name in UNIT_PARTS}
        for spoken, recognized in pairs:
            parts = (split_unit(pinyin_tokenizer.units[unit]) for unit in (spoken, recognized))
            for name, a, b in zip(UNIT_PARTS, *parts, strict=True):
                counts[name].setdefault(a, Counter())[b] += 1
        return cls(counts, pinyin_tokenizer)

    @classmethod
    def load(cls, path: str | Path, pinyin_tokenizer: PinyinTokenizer) -> "PinyinConfusions":
        return cls(json.loads(Path(path).read_text("utf-8")), pinyin_tokenizer)

    def save(self, path: str | Path) -> None:
        """Write the counts, one line per part spoken."""
        rows = {
            name: ",\n".join(
                f'    "{spoken}": {json.dumps(dict(sorted(recognized.items())), ensure_ascii=False)}'
                for spoken, recognized in sorted(self.counts[name].items())
            )
            for name in UNIT_PARTS
        }
        text = ",\n".join(f'  "{name}": {{\n{lines}\n  }}' for name, lines in rows.items())
        Path(path).write_text(f"{{\n{text}\n}}\n", "utf-8")

    @cached_property
    def log_probs(self) -> np.ndarray:
        """(U, U) float32 log p(recognised | spoken), spoken first."""
        parts = [split_unit(unit) for unit in self.pinyin_tokenizer.units]
        total = np.zeros((len(parts), len(parts)), np.float32)
        for number, name in enumerate(UNIT_PARTS):
            known = sorted({part[number] for part in parts})
            index = np.array([known.index(part[number]) for part in parts])
            total += self._smoothed(name, known)[np.ix_(index, index)]
        return total

    def _smoothed(self, name: str, known: list[str]) -> np.ndarray:
        """Log-probabilities of one part: counts in both directions, backed off to the rate of errors."""
        size = len(known)
        counts = np.zeros((size, size))
        for spoken, recognized in self.counts[name].items():
            for other, times in recognized.items():
                counts[known.index(spoken), known.index(other)] = times
        wrong = counts * (1 - np.eye(size))
        both = wrong + wrong.T + SMOOTHING / size
        np.fill_diagonal(both, 0)
        target = both / both.sum(1, keepdims=True)  # what this part is confused with, in either direction
        rate = wrong.sum() / counts.sum()
        seen = counts.sum(1, keepdims=True)
        own_rate = (wrong.sum(1, keepdims=True) + ALIKE_SMOOTHING * rate) / (seen + ALIKE_SMOOTHING)
        shares = (wrong + ALIKE_SMOOTHING * target) / (wrong.sum(1, keepdims=True) + ALIKE_SMOOTHING)
        shares = (1 - ANYTHING) * shares + ANYTHING * (1 - np.eye(size)) / (size - 1)
        probs = own_rate * shares
        np.fill_diagonal(probs, 1 - own_rate[:, 0])
        return np.log(np.maximum(probs, LEAST))


def split_unit(unit: str) -> tuple[str, str, str]:
    """zhong1 -> zh, ong, 1"""
    initial = next((letters for letters in INITIALS if unit.startswith(letters)), "")
    return initial, unit[len(initial) : -1], unit[-1]


def align_units(spoken: list[int], recognized: list[int], pinyin_tokenizer: PinyinTokenizer) -> list[tuple[int, int]]:
    """The pairs of two rows of unit ids that edit distance aligns; a part that differs costs 0.4."""
    spans = [[split_unit(pinyin_tokenizer.units[unit]) for unit in row] for row in (spoken, recognized)]
    costs = np.zeros((len(spoken) + 1, len(recognized) + 1))
    costs[:, 0], costs[0] = np.arange(len(spoken) + 1), np.arange(len(recognized) + 1)
    moves = np.zeros(costs.shape, int)
    moves[1:, 0], moves[0, 1:] = 1, 2
    for i, a in enumerate(spans[0], start=1):
        for j, b in enumerate(spans[1], start=1):
            different = sum(x != y for x, y in zip(a, b, strict=True))
            options = (costs[i - 1, j - 1] + 0.4 * different, costs[i - 1, j] + 0.8, costs[i, j - 1] + 0.8)
            moves[i, j] = int(np.argmin(options))
            costs[i, j] = options[moves[i, j]]
    pairs, i, j = [], len(spoken), len(recognized)
    while i or j:
        move = moves[i, j]
        i, j = i - (move != 2), j - (move != 1)
        if move == 0:
            pairs.append((spoken[i], recognized[j]))
    return pairs[::-1]


__all__ = ["PinyinConfusions", "align_units", "split_unit"]
