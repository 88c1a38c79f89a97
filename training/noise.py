"""Pinyin as speech would give it: confusable units, lost tones, drops, insertions, repeats and blends (stage 1)."""

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..tokenization_pinyin_llm import PinyinTokenizer


# What listeners and recognisers mix up in Mandarin: retroflex and dental, n and l, f and h, r and l, front and back
# nasals. The tone is the fourth kind and needs no table.
CONFUSABLE_INITIALS = (("zh", "z"), ("ch", "c"), ("sh", "s"), ("n", "l"), ("f", "h"), ("r", "l"))
CONFUSABLE_FINALS = (("ang", "an"), ("eng", "en"), ("ing", "in"), ("ong", "eng"), ("uo", "ou"), ("ie", "i"))
TONE_SHARE = 0.5  # of the confusions: half of what the bridge gets wrong is the tone alone


@dataclass
class NoiseArguments:
    """Rates a syllable (0 to 1), except `toneless_rows` and `heard_rows`, rates a sentence."""

    toneless_rows: float = field(default=0.0, metadata={"help": "Sentences that lose all their tones."})
    toneless: float = field(default=0.0, metadata={"help": "Syllables that lose their tone."})
    confuse: float = field(default=0.0, metadata={"help": "Syllables replaced by a confusable one."})
    blend: float = field(default=0.0, metadata={"help": "Syllables mixed with a confusable one."})
    drop: float = field(default=0.0, metadata={"help": "Syllables left out."})
    insert: float = field(default=0.0, metadata={"help": "Syllables followed by one that nobody said."})
    repeat: float = field(default=0.0, metadata={"help": "Syllables said twice."})
    heard_rows: float = field(default=0.0, metadata={"help": "Sentences whose slots are drawn from heard_pinyin."})
    heard_pinyin: str | None = field(default=None, metadata={"help": "What a bridge heard (heard_pinyin.py)."})


def generator_of(epoch: int, row: str) -> np.random.Generator:
    """The noise of one row in one epoch: drawn afresh each epoch, and the same again when a run is resumed.

    A global generator would not do: batches are made ahead of the step that a checkpoint is taken at.
    """
    digest = blake2b(row.encode(), digest_size=8).digest()  # a seed of many words takes 0.1 ms a row
    return np.random.default_rng([epoch, int.from_bytes(digest)])


class PinyinNoise:
    """Corrupts rows of unit ids.

    Args:
        rates: How often.
        tokenizer: The units.
    """

    def __init__(self, rates: NoiseArguments, tokenizer: PinyinTokenizer):
        self.rates, self.tokenizer = rates, tokenizer
        self.tones = [[j for j in tokenizer.bases[u[:-1]] if j != i] for i, u in enumerate(tokenizer.units)]
        self.sounds = [self._confusable(unit) for unit in tokenizer.units]
        heard = json.loads(Path(rates.heard_pinyin).read_text(encoding="utf-8")) if rates.heard_rows else {}
        self.heard = {int(unit): [list(map(tuple, slots)) for slots in rows] for unit, rows in heard.items()}

    def _confusable(self, unit: str) -> list[int]:
        """Units whose initial or final is easily taken for this one's, with the same tone."""
        sound, tone = unit[:-1], unit[-1]
        swaps = [(a, b) for pair in CONFUSABLE_INITIALS for a, b in (pair, pair[::-1])]
        found = [
            b + sound[len(a) :] for a, b in swaps if sound.startswith(a) and not (a in "zcs" and sound[1:2] == "h")
        ]
        swaps = [(a, b) for pair in CONFUSABLE_FINALS for a, b in (pair, pair[::-1])]
        found += [sound[: -len(a)] + b for a, b in swaps if sound.endswith(a)]
        return [self.tokenizer.ids[s + tone] for s in found if s + tone in self.tokenizer.ids]

    def __call__(self, row: list[int], random: np.random.Generator) -> list[tuple[int, ...]]:
        """Unit ids -> slots: a tuple of ids is read as their mean (no tone: all tones of the base)."""
        rates = self.rates
        if self.heard and random.random() < rates.heard_rows:
            return self._hear(row, random)
        toneless = rates.toneless + (random.random() < rates.toneless_rows)
        draws = random.random((len(row), 6)).tolist()
        slots = []
        for unit, (tone, confuse, blend, drop, insert, repeat) in zip(row, draws, strict=True):
            if drop < rates.drop and len(row) > 1:
                continue
            if confuse < rates.confuse:
                unit = self._other(unit, random)
            slot = (unit,)
            if tone < toneless:
                slot = self.tokenizer.bases[self.tokenizer.units[unit][:-1]]
            elif blend < rates.blend:
                slot = (unit,) * int(random.integers(1, 4)) + (self._other(unit, random),)
            slots += [slot] * (1 + (repeat < rates.repeat))
            if insert < rates.insert:
                slots.append((int(random.integers(len(self.tokenizer))),))
        return slots or [(unit,) for unit in row[:1]]

    def _hear(self, row: list[int], random: np.random.Generator) -> list[tuple[int, ...]]:
        """Each unit as a bridge heard it somewhere; one that it never met as it is."""
        slots = []
        for unit in row:
            options = self.heard.get(unit, [[(unit,)]])
            slots += options[random.integers(len(options))]
        return slots or [(unit,) for unit in row[:1]]

    def _other(self, unit: int, random: np.random.Generator) -> int:
        near = self.sounds[unit]
        options = self.tones[unit] if not near or random.random() < TONE_SHARE else near
        return int(random.choice(options)) if options else unit
