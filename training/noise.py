"""Noise for the pinyin of stage 1, as in speech: confusable units, lost tones, drops, insertions, repeats, blends."""

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..tokenization_pinyin_llm import PinyinTokenizer


# What listeners and recognisers confuse in Mandarin: retroflex and dental, n and l, f and h, r and l, front and back
# nasals. Tones are confused too, and need no table.
CONFUSABLE_INITIALS = (("zh", "z"), ("ch", "c"), ("sh", "s"), ("n", "l"), ("f", "h"), ("r", "l"))
CONFUSABLE_FINALS = (("ang", "an"), ("eng", "en"), ("ing", "in"), ("ong", "eng"), ("uo", "ou"), ("ie", "i"))
TONE_SHARE = 0.5  # of the confusions: half of the bridge's errors are in the tone only (docs/log.md)


@dataclass
class NoiseArguments:
    """Rates per syllable (0 to 1), except `toneless_rows` and `heard_rows`, which are per sentence."""

    toneless_rows: float = field(default=0.0, metadata={"help": "Sentences that lose all their tones."})
    toneless: float = field(default=0.0, metadata={"help": "Syllables that lose their tone."})
    confuse: float = field(default=0.0, metadata={"help": "Syllables replaced by a confusable one."})
    blend: float = field(default=0.0, metadata={"help": "Syllables mixed with a confusable one."})
    drop: float = field(default=0.0, metadata={"help": "Syllables left out."})
    insert: float = field(default=0.0, metadata={"help": "Syllables followed by one that was not spoken."})
    repeat: float = field(default=0.0, metadata={"help": "Syllables repeated."})
    heard_rows: float = field(default=0.0, metadata={"help": "Sentences whose slots are drawn from heard_pinyin."})
    heard_pinyin: str | None = field(
        default=None, metadata={"help": "File of recognized_pinyin: slots as a bridge recognised them."}
    )


def row_generator(epoch: int, row: str) -> np.random.Generator:
    """The random numbers of one row in one epoch: different in each epoch, the same when a run is resumed.

    A global generator would not do, because batches are prepared ahead of the step of a checkpoint.
    """
    digest = blake2b(row.encode(), digest_size=8).digest()  # a seed of many words takes 0.1 ms per row
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
        recorded = json.loads(Path(rates.heard_pinyin).read_text(encoding="utf-8")) if rates.heard_rows else {}
        self.recognized = {int(unit): [list(map(tuple, slots)) for slots in rows] for unit, rows in recorded.items()}

    def _confusable(self, unit: str) -> list[int]:
        """Units with the same tone whose initial or final is easily confused with this one's."""
        sound, tone = unit[:-1], unit[-1]
        others = []
        for pair in CONFUSABLE_INITIALS:
            for old, new in (pair, pair[::-1]):
                is_retroflex = old in "zcs" and sound[1:2] == "h"  # "z" is not the initial of "zh"
                if sound.startswith(old) and not is_retroflex:
                    others.append(new + sound[len(old) :])
        for pair in CONFUSABLE_FINALS:
            for old, new in (pair, pair[::-1]):
                if sound.endswith(old):
                    others.append(sound[: -len(old)] + new)
        return [self.tokenizer.ids[other + tone] for other in others if other + tone in self.tokenizer.ids]

    def __call__(self, row: list[int], random: np.random.Generator) -> list[tuple[int, ...]]:
        """Unit ids -> slots. A slot of several ids stands for their mean; without tone it has all tones of the base."""
        rates = self.rates
        if self.recognized and random.random() < rates.heard_rows:
            return self._as_recognized(row, random)
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

    def _as_recognized(self, row: list[int], random: np.random.Generator) -> list[tuple[int, ...]]:
        """Each unit as a bridge recognised it somewhere, or as it is if the bridge never met it."""
        slots = []
        for unit in row:
            options = self.recognized.get(unit, [[(unit,)]])
            slots += options[random.integers(len(options))]
        return slots or [(unit,) for unit in row[:1]]

    def _other(self, unit: int, random: np.random.Generator) -> int:
        near = self.sounds[unit]
        options = self.tones[unit] if not near or random.random() < TONE_SHARE else near
        return int(random.choice(options)) if options else unit
