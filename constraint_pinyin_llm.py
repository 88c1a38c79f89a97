"""Which characters each slot may become: only those that can be read as it sounds, weighted by n-grams of text."""

import math
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from transformers import LogitsProcessor

from .ngrams_pinyin_llm import CharacterNgrams
from .tokenization_pinyin_llm import PinyinTokenizer


SOUND_WEIGHT = 0.3  # of what a bridge recognised, relative to the language model: alone, a bridge is overconfident
NGRAM_WEIGHT = 0.6  # of n-grams of 60 million characters: 0.4 and 0.7 make a few more errors (docs/log.md)
LIKELY_UNITS = 8  # units of recognised speech that keep their own probability in a slot; all others get the floor
ONLY_DEN4 = "扽"  # the one syllable that GB 2312 has no character for


def tokenize_characters(tokenizer, characters: list[str]) -> list[tuple[int, ...]]:
    """Each character on its own -> its tokens, in training and in decoding alike: a slot is one character.

    Many tokenizers have tokens of several characters, which would span slots. Some begin every text with a prefix
    piece; it stays with the line break, which merges with no character.
    """
    start, *with_start = tokenizer(["\n", *(f"\n{c}" for c in characters)], add_special_tokens=False).input_ids
    return [tuple(ids[len(start) :]) for ids in with_start]


class PinyinConstraint:
    """The candidate characters of each pinyin unit, in the tokens of one tokenizer.

    A character may be one token or several (byte fallback: three), so the next token depends on the character that is
    incomplete. Candidates are the characters of GB 2312 and those that have a token of their own.

    Args:
        tokenizer: The language model's.
        pinyin_tokenizer: The units.
        weight: Weight of the log-probability of recognised units relative to the language model's.
        floor: Least probability of a unit of recognised speech; typed pinyin is strict.
        ngrams: Which characters follow each other in text.
        ngram_weight: Weight of their log-probability relative to the language model's.
    """

    def __init__(
        self,
        tokenizer,
        pinyin_tokenizer: PinyinTokenizer,
        weight: float,
        floor: float,
        ngrams: CharacterNgrams | None = None,
        ngram_weight: float = 0.0,
    ):
        self.weight, self.floor = weight, floor
        self.ngrams, self.ngram_weight = ngrams if ngram_weight else None, ngram_weight
        self.num_units, self.eos_token_id = len(pinyin_tokenizer), tokenizer.eos_token_id
        vocabulary = tokenizer.get_vocab()
        readings = {
            c: ids for c, ids in pinyin_tokenizer.readings.items() if c in vocabulary or _in_gb2312(c) or c == ONLY_DEN4
        }
        self.sequences = tokenize_characters(tokenizer, list(readings))
        self.characters = dict(zip(self.sequences, readings, strict=True))  # tokens -> the character they spell
        if self.ngrams:  # a character unknown to the n-grams gets the last entry, the lowest log-probability
            self.numbers = torch.tensor([self.ngrams.numbers.get(character, -1) for character in readings])
        self.first_tokens = torch.tensor(sorted({sequence[0] for sequence in self.sequences}))
        self.homophones = self._homophones(_readable_pairs(list(readings.values()), pinyin_tokenizer))
        self._continuations: dict[tuple, tuple[torch.Tensor, ...]] = {}

    def _homophones(self, pairs: list[tuple[int, int]]) -> torch.Tensor:
        """(U, most homophones) numbers of the candidate characters of each unit, padded with their total count."""
        of_unit = [[] for _ in range(self.num_units)]
        for character, unit in pairs:
            of_unit[unit].append(character)
        rows = [torch.tensor(row, dtype=torch.long) for row in of_unit]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=len(self.sequences))

    def for_batch(
        self, evidence: torch.Tensor, prompt_length: int, with_beams: bool = False
    ) -> "PinyinLogitsProcessor":
        """The constraint on the slots of one batch.

        n-grams count in beam search only: they look back only, and greedy decoding cannot take back what they prefer
        too early (docs/log.md).

        Args:
            evidence: (B, N) or (B, N, K) typed unit ids (-1: none), or (B, N, U) unit probabilities of speech.
            prompt_length: Tokens before the answers.
            with_beams: Whether beam search will use it.
        """
        if evidence.is_floating_point():
            probs, ids = evidence.float().topk(LIKELY_UNITS)
            scores = self.weight * probs.clamp(min=self.floor).log()
            filled, other_score = probs[..., 0] > 0, self.weight * math.log(self.floor)
            likeliest = ids[..., :1]
        else:
            likeliest = ids = evidence.reshape(*evidence.shape[:2], -1)
            scores = torch.zeros(ids.shape, device=ids.device).masked_fill(ids < 0, -torch.inf)
            filled, other_score = (ids >= 0).any(-1), -math.inf
        num_filled = filled.sum(-1).tolist()
        likeliest_units = []
        for row, size in zip(likeliest.tolist(), num_filled, strict=True):
            likeliest_units.append([tuple(i for i in slot if i >= 0) for slot in row[:size]])
        return PinyinLogitsProcessor(
            self, ids.clamp(min=0), scores, other_score, likeliest_units, prompt_length, with_beams
        )

    def score_characters(self, ids: torch.Tensor, scores: torch.Tensor, other_score: float) -> torch.Tensor:
        """(R, K) unit ids and their scores -> (R, characters): the score of each character's likeliest reading."""
        readable = self.homophones.to(ids.device)[ids]  # R, K, M
        best = scores.new_full((len(ids), len(self.sequences) + 1), other_score)
        spread = scores.repeat_interleave(readable.shape[2], 1)
        return best.scatter_reduce(1, readable.flatten(1), spread, "amax")[:, :-1]  # the last column is padding

    def continuations(self, prefix: tuple) -> tuple[torch.Tensor, ...]:
        """The characters whose tokens begin with `prefix`, and the next token of each; () if there are none."""
        if prefix not in self._continuations:
            size = len(prefix)
            found = [(i, s[size]) for i, s in enumerate(self.sequences) if s[:size] == prefix and len(s) > size]
            self._continuations[prefix] = tuple(map(torch.tensor, zip(*found, strict=True)))
        return self._continuations[prefix]

    def progress(self, answer: torch.Tensor) -> tuple[int, tuple, str]:
        """(L,) tokens so far -> complete characters, tokens of the incomplete one, the two characters before it."""
        starts = torch.isin(answer, self.first_tokens).nonzero().flatten().tolist()
        tokens = answer.tolist()
        last = [tuple(tokens[start:end]) for start, end in pairwise([*starts[-3:], len(tokens)])]
        is_incomplete = bool(last) and last[-1] not in self.characters
        prefix = last.pop() if is_incomplete else ()
        before = "".join(self.characters.get(tokens, "?") for tokens in last[-2:])
        return len(starts) - is_incomplete, prefix, before

    @lru_cache(maxsize=512)  # noqa: B019  (a constraint lives as long as its processor)
    def ngram_scores(self, before: str) -> torch.Tensor:
        """(characters,) weighted n-gram log-probability of each character after these two."""
        log_probs = torch.from_numpy(self.ngrams.log_probs(before))
        return self.ngram_weight * torch.cat([log_probs, log_probs.min()[None]])[self.numbers]


class Position(NamedTuple):
    """Where a token goes: a slot of a row of the batch, after the `prefix` of tokens that its character has so far.

    `before` holds the two characters before that; greedy decoding does not need them.
    """

    row: int
    slot: int
    prefix: tuple
    before: str = ""


class PinyinLogitsProcessor(LogitsProcessor):
    """A [`PinyinConstraint`] on the slots of one batch; the beams of a row follow each other.

    Args:
        ids, scores: (B, N, K) units of each slot and their scores.
        other_score: Score of a character that none of these units can be read as.
        likeliest_units: [row][slot] the units typed, or the likeliest unit recognised, of the slots that are filled.
        with_beams: Whether n-grams count.
    """

    def __init__(
        self,
        constraint: PinyinConstraint,
        ids,
        scores,
        other_score: float,
        likeliest_units: list[list[tuple]],
        prompt_length: int,
        with_beams: bool,
    ):
        self.constraint, self.ids, self.scores, self.other_score = constraint, ids, scores, other_score
        self.ngrams = constraint.ngrams if with_beams else None
        self.likeliest_units, self.prompt_length = likeliest_units, prompt_length
        self._unit_scores: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(R, L) tokens so far and (R, V) scores of the next -> scores, impossible tokens at -inf."""
        beams, end = len(input_ids) // len(self.likeliest_units), self.constraint.eos_token_id
        allowed = torch.full_like(scores, -torch.inf)
        positions = {}
        # Rows are inspected one by one: on a GPU each look would wait for the device.
        answers = input_ids[:, self.prompt_length :].cpu()
        for index, tokens in enumerate(answers):
            slot, *state = self.constraint.progress(tokens)
            if slot >= len(self.likeliest_units[index // beams]) or (tokens == end).any():
                allowed[index, end] = 0.0
            else:
                positions[index] = Position(index // beams, slot, *state)
        if positions:
            token_scores = self.score_tokens(list(positions.values()), scores.shape[1])
            allowed[list(positions)] = token_scores.to(scores.dtype)
        return scores + allowed

    def score_tokens(self, positions: list[Position], vocabulary: int) -> torch.Tensor:
        """The tokens allowed at each of R positions: (R, V) scores, -inf for those that are not."""
        if self._unit_scores is None:  # the sound of a slot is needed again for each of its beams and steps
            flat = self.constraint.score_characters(self.ids.flatten(0, 1), self.scores.flatten(0, 1), self.other_score)
            self._unit_scores = flat.view(*self.ids.shape[:2], -1)
        rows, slots = torch.tensor([position[:2] for position in positions], device=self.ids.device).T
        characters = self._unit_scores[rows, slots]
        if self.ngrams:
            ngram_scores = [self.constraint.ngram_scores(position.before) for position in positions]
            characters += torch.stack(ngram_scores).to(characters.device)
        by_prefix = defaultdict(list)
        for index, position in enumerate(positions):
            by_prefix[position.prefix].append(index)
        scores = characters.new_empty((len(positions), vocabulary))
        for prefix, index in by_prefix.items():
            scores[index] = self._next_tokens(prefix, characters[index], vocabulary)
        return scores

    def _next_tokens(self, prefix: tuple, scores: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """(R, characters) scores -> (R, V) scores of the tokens that may follow `prefix`.

        Each token gets the score of the best character behind it, less what `prefix` has received already, so that the
        tokens of a character add up to the character's score.
        """
        characters, next_tokens = (part.to(scores.device) for part in self.constraint.continuations(prefix))
        scores = scores[:, characters]
        allowed = scores.new_full((len(scores), vocabulary), -torch.inf)
        allowed = allowed.scatter_reduce(1, next_tokens.expand(len(scores), -1), scores, "amax")
        received = scores.amax(1, keepdim=True)
        is_stuck = received[:, 0].isneginf()  # no candidate at all: leave the choice to the language model
        allowed = allowed - received if prefix else allowed
        allowed[is_stuck] = 0.0
        allowed[is_stuck, self.constraint.eos_token_id] = -torch.inf
        return allowed

    def nearest_character(self, row: int, slot: int, tokens: tuple) -> tuple:
        """The candidate that shares the longest prefix with `tokens`; among several the likeliest by sound."""
        size = len(tokens)
        while tokens[:size] not in self.constraint.characters:
            if found := self.constraint.continuations(tokens[:size]):
                ids, scores = self.ids[row, slot, None], self.scores[row, slot, None]
                by_sound = self.constraint.score_characters(ids, scores, self.other_score)[0].cpu()
                return self.constraint.sequences[found[0][by_sound[found[0]].argmax()]]
            size -= 1  # ends at the empty prefix, which every character has
        return tokens[:size]


def _readable_pairs(readings: list[tuple[int, ...]], pinyin_tokenizer: PinyinTokenizer) -> list[tuple[int, int]]:
    """All pairs (character number, unit) where the character is a candidate for the unit.

    Besides its own readings, any character may be spoken in the neutral tone (妈妈 is ma1 ma5). A unit that is no
    character's reading takes the characters of the other tones of its syllable.
    """
    tones = [pinyin_tokenizer.bases[unit[:-1]] for unit in pinyin_tokenizer.units]
    read = {unit for units in readings for unit in units}
    loose = [unit for unit, name in enumerate(pinyin_tokenizer.units) if name[-1] == "5" or unit not in read]
    spread = {unit: [other for other in loose if other in tones[unit]] for unit in read}
    pairs = set()
    for character, units in enumerate(readings):
        for unit in units:
            pairs.add((character, unit))
            pairs.update((character, other) for other in spread[unit])
    return sorted(pairs)


def _in_gb2312(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


__all__ = ["PinyinConstraint", "PinyinLogitsProcessor", "Position", "tokenize_characters"]
