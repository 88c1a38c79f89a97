"""Two recognisers combined into one row of slots: the bridge and another, as probabilities over the pinyin units.

The other one is Whisper's decoder (decoder_pinyin_llm.py) or anybody's transcript. Its syllables are aligned with the
bridge's. Where both have one, their probabilities are averaged; where only one has it, the likelihood of the bridge's
CTC output decides whether it is kept.

Shape letters: B batch, N slots of the bridge, M syllables of the other recogniser, J slots of an alignment, S bridge
frames, U pinyin units, W syllables without tone, H width of the language model.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .decoder_pinyin_llm import Recognition
from .encoder_pinyin_llm import Slots, length_mask
from .tokenization_pinyin_llm import PinyinTokenizer


# (slot of the bridge, syllable of the other); one of them may be missing
Alignment = list[tuple[int | None, int | None]]

# Log-odds of the bridge's weight in a slot that both have: constant, log of the row's slots, the bridge's confidence
# there, and the other's. On unknown voices the bridge is overconfident, and context helps Whisper in sentences;
# in words spoken alone it has none, and is worse than the bridge (docs/log.md).
SHARE_WEIGHTS = (0.5, -0.68, 1.53, -0.84)
FUSED_SOUND_WEIGHT = 1.5  # of fused probabilities, relative to the language model: two agree on them (docs/log.md)
TEXT_CONFIDENCE = 2 / 3  # of a transcript's syllables: each recogniser then has half, and the language model decides
UNPAIRED = 0.7  # alignment cost of a syllable that only one has; a pair costs 0 to 1
TONED_SHARE = 0.5  # of the similarity of two syllables; the rest ignores the tone
# Nats by which the CTC log-likelihood must rise for each syllable more or less than the other recogniser has, for it
# seldom loses or adds one. Wrong syllables of the bridge alone were below 4, right ones of the other alone above -7.
COUNT_PENALTY = 5.0
LEAST = 1e-4  # least probability of a syllable in a frame
# Where less than this share of the syllables agrees, the other recogniser has broken down or read something else.
LEAST_AGREEMENT = 0.2
MOST_RATIO = 3  # a piece is looked for among so many times its syllables of a transcript


@dataclass
class SecondOpinion:
    """The transcript of a whole sound, which is taken piece by piece.

    Args:
        whole: All of it.
        start: How many of its syllables were taken.
    """

    whole: Recognition
    start: int = 0

    def left(self) -> torch.Tensor:
        """(M, U) what was not taken yet."""
        return self.whole.unit_probs[self.start :]

    def take(self, size: int) -> Recognition:
        """The next syllables."""
        part = slice(self.start, self.start + size)
        self.start += size
        return Recognition(self.whole.text[part], self.whole.unit_probs[part])


def recognize_text(text: str, pinyin_tokenizer: PinyinTokenizer) -> Recognition:
    """Anybody's transcript, with its numbers read aloud -> its Han characters and their units by context."""
    characters, ids = pinyin_tokenizer.encode_characters(text)
    unit_probs = torch.zeros(len(ids), len(pinyin_tokenizer))
    unit_probs[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.long)] = TEXT_CONFIDENCE
    return Recognition(characters, unit_probs)


class PinyinFusion:
    """Combines the bridge's slots with the result of another recogniser.

    Args:
        pinyin_tokenizer: The units.
        share_weights: See `SHARE_WEIGHTS`.
        penalty: Nats for each slot by which the result differs from the other recogniser's syllables.
    """

    def __init__(
        self,
        pinyin_tokenizer: PinyinTokenizer,
        share_weights: tuple[float, ...] = SHARE_WEIGHTS,
        penalty: float = COUNT_PENALTY,
    ):
        self.share_weights, self.penalty = share_weights, penalty
        self.syllables = torch.empty(len(pinyin_tokenizer), dtype=torch.long)  # U: each unit's number without its tone
        for number, units in enumerate(pinyin_tokenizer.bases.values()):
            self.syllables[list(units)] = number

    def fuse(self, slots: Slots, others: list[Recognition | None], pinyin_table: torch.Tensor) -> Slots:
        """The bridge's slots of a batch, the other result of each row, and the (U, H) pinyin table -> fused slots."""
        rows = [self._fuse_row(slots, row, other) for row, other in enumerate(others)]
        unit_probs, times = (pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True))
        filled = unit_probs.sum(-1) > 0  # B, J
        confidence, units = unit_probs.max(-1)
        recognized = {
            "pinyin": units.masked_fill(~filled, -1),
            "pinyin_times": times,
            "pinyin_confidence": confidence,
        }
        vectors = unit_probs.to(pinyin_table) @ pinyin_table  # B, J, U @ U, H -> B, J, H
        filled, unit_probs = filled.to(vectors.device), unit_probs.to(vectors.device)
        return Slots(vectors, filled, filled.sum(-1), slots.log_probs, slots.frames, unit_probs, recognized)

    def _fuse_row(self, slots: Slots, row: int, other: Recognition | None) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (J, U) probabilities and (J, 2) times of a row."""
        count = int((slots.recognized["pinyin"][row] >= 0).sum())
        # A row is aligned step by step, which is the work of a CPU.
        units, times = slots.unit_probs[row, :count].float().cpu(), slots.recognized["pinyin_times"][row, :count].cpu()
        if not count or other is None or not len(other.unit_probs):  # nothing is added where the bridge finds no speech
            return units, times
        log_probs = slots.log_probs[row, : int(slots.frames[row])].float().cpu()
        others = self._cut_tail(other.unit_probs.to(units), count, log_probs)
        pairs = self.align(units, others)
        if self.agreement(pairs, units, others) < LEAST_AGREEMENT:
            return units, times
        pairs = self.choose(pairs, units, others, log_probs)
        return self._average(pairs, units, others), _slot_times(pairs, times)

    def _cut_tail(self, others: torch.Tensor, count: int, log_probs: torch.Tensor) -> torch.Tensor:
        """(M, U) -> its likeliest beginning: a decoder that misses the end repeats itself.

        Checked only if it has more syllables than the bridge's `count` by two or more.
        """
        if len(others) <= count + 1:
            return others
        pairs: Alignment = [(None, syllable) for syllable in range(len(others))]
        emissions = self._emissions(pairs, others[:0], others, log_probs)
        sizes = torch.arange(len(others), 0, -1)
        scores = score_sequences(emissions, length_mask(sizes, len(others)))
        return others[: sizes[(scores - self.penalty * (len(others) - sizes)).argmax()]]

    def align(self, units: torch.Tensor, others: torch.Tensor) -> Alignment:
        """(N, U) and (M, U) probabilities -> which rows are the same syllable, by edit distance."""
        return _shortest_path(self._pair_costs(units, others), len(units), len(others))

    def _pair_costs(self, units: torch.Tensor, others: torch.Tensor) -> list[list[float]]:
        """(N, U) and (M, U) -> N lists of M costs, 0 where both are sure of one unit."""
        toned, toneless = units @ others.T, self._without_tone(units) @ self._without_tone(others).T
        return (1 - TONED_SHARE * toned - (1 - TONED_SHARE) * toneless).tolist()

    def take(self, opinion: SecondOpinion, unit_probs: torch.Tensor, is_last: bool) -> Recognition:
        """Take the part of an opinion that belongs to the next piece of its sound.

        Args:
            unit_probs: (N, U) syllables of the piece.
            is_last: Whether it is the last piece, which gets all that is left.
        """
        others = opinion.left().to(unit_probs)
        size = len(others)
        if not is_last:
            window = others[: MOST_RATIO * len(unit_probs) + MOST_RATIO]
            costs = _edit_costs(self._pair_costs(unit_probs, window), len(unit_probs), len(window))
            size = min(range(len(window) + 1), key=costs[-1].__getitem__)  # the cheapest beginning of what is left
        return opinion.take(size)

    def _without_tone(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(.., U) -> (.., W)"""
        size = int(self.syllables.max()) + 1
        summed = probabilities.new_zeros(*probabilities.shape[:-1], size)
        return summed.index_add(-1, self.syllables.to(probabilities.device), probabilities)

    def agree(self, units: torch.Tensor, other: Recognition) -> bool:
        """Whether a result has enough in common with the bridge's (N, U) syllables to be combined with them."""
        others = other.unit_probs.to(units)
        if not len(units) or not len(others):
            return False
        return self.agreement(self.align(units, others), units, others) >= LEAST_AGREEMENT

    def agreement(self, pairs: Alignment, units: torch.Tensor, others: torch.Tensor) -> float:
        """Share of the syllables that both recognisers have in common, ignoring tones: 0 to 1."""
        own, other = self.syllables[units.argmax(-1)].tolist(), self.syllables[others.argmax(-1)].tolist()
        both = [(slot, syllable) for slot, syllable in pairs if slot is not None and syllable is not None]
        return sum(own[slot] == other[syllable] for slot, syllable in both) / max(len(own), len(other))

    def choose(self, pairs: Alignment, units: torch.Tensor, others: torch.Tensor, log_probs: torch.Tensor) -> Alignment:
        """Drop slots that only one recogniser has, if the CTC output (S, 1 + U) speaks against them.

        The search starts from the other's syllables and changes one slot at a time while the score rises.
        """
        single = [slot for slot, pair in enumerate(pairs) if None in pair]
        if not single:
            return pairs
        emissions = self._emissions(pairs, units, others, log_probs)
        start = torch.tensor([other is not None for _, other in pairs])
        kept, best = start, -torch.inf
        while True:
            flips = kept.repeat(len(single) + 1, 1)
            flips[torch.arange(len(single)), torch.tensor(single)] ^= True  # the last one stays as it is
            scores = score_sequences(emissions, flips) - self.penalty * (flips != start).sum(-1)
            if scores.max() <= best:
                return [pair for pair, keep in zip(pairs, kept.tolist(), strict=True) if keep]
            best, kept = scores.max(), flips[scores.argmax()]

    def _emissions(self, pairs: Alignment, units, others, log_probs) -> torch.Tensor:
        """(S, 1 + J) log-probability per frame of blank, then of each slot: of either's syllable, in any tone."""
        toneless = self._without_tone(log_probs[:, 1:].exp())  # S, W
        columns = [log_probs[:, 0]]
        for slot, syllable in pairs:
            found = {int(self.syllables[units[slot].argmax()])} if slot is not None else set()
            found |= {int(self.syllables[others[syllable].argmax()])} if syllable is not None else set()
            columns.append(toneless[:, list(found)].sum(-1).clamp(min=LEAST).log())
        return torch.stack(columns, dim=-1)

    def _share(self, slots: int, own: float, other: float) -> float:
        """The bridge's weight in a slot of a row of `slots`, from the confidence of both."""
        constant, of_length, of_own, of_other = self.share_weights
        return 1 / (1 + math.exp(-(constant + of_length * math.log(slots) + of_own * own + of_other * other)))

    def _average(self, pairs: Alignment, units: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """-> (J, U). What the other leaves open goes to the bridge."""
        rows = []
        for slot, syllable in pairs:
            if slot is None:
                rows.append(others[syllable] / others[syllable].sum())
            elif syllable is None:
                rows.append(units[slot])
            else:
                own, other = units[slot], others[syllable]
                share = self._share(len(pairs), float(own.max()), float(other.max()))
                rows.append((1 - (1 - share) * other.sum()) * own + (1 - share) * other)
        return torch.stack(rows) if rows else units[:0]


def _edit_costs(costs: list[list[float]], rows: int, columns: int) -> list[list[float]]:
    """Costs of all pairs -> (rows + 1) lists of (columns + 1) least costs of aligning the beginnings of both."""
    best = [[UNPAIRED * (i + j) if not i or not j else 0.0 for j in range(columns + 1)] for i in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            paired = best[i - 1][j - 1] + costs[i - 1][j - 1]
            best[i][j] = min(paired, best[i - 1][j] + UNPAIRED, best[i][j - 1] + UNPAIRED)
    return best


def _shortest_path(costs: list[list[float]], rows: int, columns: int) -> Alignment:
    """Costs of all pairs -> the alignment of least cost."""
    best = _edit_costs(costs, rows, columns)
    pairs: Alignment = []
    i, j = rows, columns
    while i or j:
        if i and j and best[i][j] == best[i - 1][j - 1] + costs[i - 1][j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and (not j or best[i][j] == best[i - 1][j] + UNPAIRED):
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


def score_sequences(emissions: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(S, 1 + J) log-probabilities, blank first, and (C, J) bool, each candidate's slots -> (C,) log-likelihoods."""
    lengths = kept.sum(-1)
    order = torch.arange(1, kept.shape[1] + 1, device=kept.device)
    targets = (order * kept).masked_fill(~kept, kept.shape[1] + 1).sort(-1).values.clamp(max=kept.shape[1])
    frames = lengths.new_full(lengths.shape, len(emissions))
    expanded = emissions[:, None].expand(-1, len(kept), -1)
    return -nn.functional.ctc_loss(expanded, targets, frames, lengths, reduction="none")


def _slot_times(pairs: Alignment, times: torch.Tensor) -> torch.Tensor:
    """(N, 2) times of the bridge's syllables -> (J, 2); syllables that it missed share the time of the one before."""
    starts = [None if slot is None else float(times[slot, 0]) for slot, _ in pairs]
    bounds = [*starts, float(times[-1, 1])]
    for index in range(len(starts)):
        if bounds[index] is None:
            following = next(i for i in range(index + 1, len(bounds)) if bounds[i] is not None)
            before = bounds[index - 1] if index else 0.0
            bounds[index] = before + (bounds[following] - before) / (following - index + 1)
    return torch.tensor(list(zip(bounds[:-1], bounds[1:], strict=True))).to(times).reshape(-1, 2)


__all__ = ["PinyinFusion", "SecondOpinion", "recognize_text", "score_sequences"]
