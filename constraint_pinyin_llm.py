"""What each slot may be written as: only characters that can be read as the slot sounds, and rather those that follow
each other in text."""

import math
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from transformers import LogitsProcessor

from .ngrams_pinyin_llm import CharacterNgrams
from .tokenization_pinyin_llm import PinyinTokenizer


LIKELY_UNITS = 8  # of heard pinyin, that a slot may be written as at their own probability
ONLY_DEN4 = "扽"  # the one syllable that GB 2312 has no character for


def tokenize_characters(tokenizer, characters: list[str]) -> list[tuple[int, ...]]:
    """Each character on its own -> its tokens, in training and in decoding alike: a slot is one character.

    Many tokenizers have tokens of several characters, which no slot could write. Some begin every text with a piece:
    it stays with the line break, which joins no character.
    """
    start, *written = tokenizer(["\n", *(f"\n{c}" for c in characters)], add_special_tokens=False).input_ids
    return [tuple(ids[len(start) :]) for ids in written]


class PinyinConstraint:
    """What each pinyin unit can be written as, in the tokens of one tokenizer.

    A character may be one token or several (byte fallback: three), so the next token follows from the character that
    is half written. Characters are those of GB 2312 and those that have a token of their own.

    Args:
        tokenizer: The language model's.
        pinyin_tokenizer: The units.
        weight: For heard pinyin, the weight of its log-probability beside the language model's.
        floor: For heard pinyin, the least probability that a unit may have; typed pinyin is strict.
        ngrams: What follows what in text.
        ngram_weight: The weight of their log-probability beside the language model's.
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
        self.characters = dict(zip(self.sequences, readings, strict=True))  # tokens -> the character that they are
        if self.ngrams:  # characters that they never met are as unlikely as can be: the last of the row
            self.numbers = torch.tensor([self.ngrams.numbers.get(character, -1) for character in readings])
        self.starts = torch.tensor(sorted({sequence[0] for sequence in self.sequences}))
        self.written_for = self._homophones(_readable_pairs(list(readings.values()), pinyin_tokenizer))
        self._continuations: dict[tuple, tuple[torch.Tensor, ...]] = {}
        self.guesses: dict[tuple, tuple] = {}  # units of a slot -> tokens written for it alone (drafting_pinyin_llm.py)

    def _homophones(self, pairs: list[tuple[int, int]]) -> torch.Tensor:
        """(U, most homophones) numbers of the characters that each unit is written as, padded with their count."""
        of_unit = [[] for _ in range(self.num_units)]
        for character, unit in pairs:
            of_unit[unit].append(character)
        rows = [torch.tensor(row, dtype=torch.long) for row in of_unit]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=len(self.sequences))

    def bind(self, units: torch.Tensor, prompt_length: int, beams: bool = False) -> "PinyinLogitsProcessor":
        """For one batch: (B, N) or (B, N, K) typed unit ids (-1: none), or (B, N, U) heard probabilities.

        n-grams are heard where beams are searched: they look back only, and what they prefer too early a greedy choice
        cannot take back (docs/log.md).
        """
        if units.is_floating_point():
            shares, ids = units.float().topk(LIKELY_UNITS)
            scores = self.weight * shares.clamp(min=self.floor).log()
            filled, rest = shares[..., 0] > 0, self.weight * math.log(self.floor)
            likeliest = ids[..., :1]
        else:
            likeliest = ids = units.reshape(*units.shape[:2], -1)
            scores = torch.zeros(ids.shape, device=ids.device).masked_fill(ids < 0, -torch.inf)
            filled, rest = (ids >= 0).any(-1), -math.inf
        sizes = filled.sum(-1).tolist()
        named = [
            [tuple(i for i in slot if i >= 0) for slot in row[:n]]
            for row, n in zip(likeliest.tolist(), sizes, strict=True)
        ]
        return PinyinLogitsProcessor(self, ids.clamp(min=0), scores, rest, named, prompt_length, beams)

    def score_characters(self, ids: torch.Tensor, scores: torch.Tensor, rest: float) -> torch.Tensor:
        """(R, K) unit ids and their scores -> (R, characters): each character's likeliest reading, `rest` without."""
        written = self.written_for.to(ids.device)[ids]  # R, K, M
        best = scores.new_full((len(ids), len(self.sequences) + 1), rest)
        return best.scatter_reduce(1, written.flatten(1), scores.repeat_interleave(written.shape[2], 1), "amax")[:, :-1]

    def continuations(self, prefix: tuple) -> tuple[torch.Tensor, ...]:
        """The characters whose tokens begin with `prefix`, and the token that each takes next; () where there is none."""
        if prefix not in self._continuations:
            size = len(prefix)
            found = [(i, s[size]) for i, s in enumerate(self.sequences) if s[:size] == prefix and len(s) > size]
            self._continuations[prefix] = tuple(map(torch.tensor, zip(*found, strict=True)))
        return self._continuations[prefix]

    def progress(self, written: torch.Tensor) -> tuple[int, tuple, str]:
        """(L,) tokens written -> characters finished, tokens of the one that is half written, the last two before it."""
        places = torch.isin(written, self.starts).nonzero().flatten().tolist()
        tokens = written.tolist()
        last = [tuple(tokens[start:end]) for start, end in pairwise([*places[-3:], len(tokens)])]
        unfinished = bool(last) and last[-1] not in self.characters
        prefix = last.pop() if unfinished else ()
        return len(places) - unfinished, prefix, "".join(self.characters.get(tokens, "?") for tokens in last[-2:])

    @lru_cache(maxsize=512)  # noqa: B019  (a constraint lives as long as its processor)
    def follow(self, before: str) -> torch.Tensor:
        """(characters,) what the n-grams say of each behind these two."""
        log_probs = torch.from_numpy(self.ngrams.log_probs(before))
        return self.ngram_weight * torch.cat([log_probs, log_probs.min()[None]])[self.numbers]


class Place(NamedTuple):
    """Where a token is to be written: a slot of a row of the batch, behind the tokens that its character has already.

    `before` is the two characters before that; greedy decoding does not ask for them.
    """

    row: int
    slot: int
    prefix: tuple
    before: str = ""


class PinyinLogitsProcessor(LogitsProcessor):
    """A [`PinyinConstraint`] bound to the slots of one batch; beams of a row follow each other.

    Args:
        ids, scores: (B, N, K) units of each slot and their scores.
        rest: Score of a character that none of them is written as.
        named: [row][slot] the units typed, or the one heard most likely, of the slots that are filled.
        beams: Whether n-grams are heard.
    """

    def __init__(
        self,
        constraint: PinyinConstraint,
        ids,
        scores,
        rest: float,
        named: list[list[tuple]],
        prompt_length,
        beams: bool,
    ):
        self.constraint, self.ids, self.scores, self.rest = constraint, ids, scores, rest
        self.ngrams = constraint.ngrams if beams else None
        self.named, self.prompt_length = named, prompt_length
        self._heard: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(R, L) tokens so far and (R, V) scores of the next -> scores, impossible tokens at -inf."""
        beams, end = len(input_ids) // len(self.named), self.constraint.eos_token_id
        allowed = torch.full_like(scores, -torch.inf)
        places = {}
        written = input_ids[:, self.prompt_length :].cpu()  # read a row at a time: on a GPU each look would wait for it
        for index, tokens in enumerate(written):
            slot, *behind = self.constraint.progress(tokens)
            if slot >= len(self.named[index // beams]) or (tokens == end).any():
                allowed[index, end] = 0.0
            else:
                places[index] = Place(index // beams, slot, *behind)
        if places:
            allowed[list(places)] = self.score(list(places.values()), scores.shape[1]).to(scores.dtype)
        return scores + allowed

    def score(self, places: list[Place], vocabulary: int) -> torch.Tensor:
        """What may be written at each of the places: (R, V) scores, -inf for what may not."""
        if self._heard is None:  # what a slot sounds like is asked again and again
            heard = self.constraint.score_characters(self.ids.flatten(0, 1), self.scores.flatten(0, 1), self.rest)
            self._heard = heard.view(*self.ids.shape[:2], -1)
        rows, slots = torch.tensor([place[:2] for place in places], device=self.ids.device).T
        characters = self._heard[rows, slots]
        if self.ngrams:
            follow = [self.constraint.follow(place.before) for place in places]
            characters += torch.stack(follow).to(characters.device)
        alike = defaultdict(list)
        for index, place in enumerate(places):
            alike[place.prefix].append(index)
        scores = characters.new_empty((len(places), vocabulary))
        for prefix, index in alike.items():
            scores[index] = self._tokens(prefix, characters[index], vocabulary)
        return scores

    def _tokens(self, prefix: tuple, scores: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """(R, characters) scores -> (R, V) scores of the tokens that may follow `prefix`.

        Each token gets what the best character behind it has more than `prefix` promised: their sum is the character's score.
        """
        characters, following = (part.to(scores.device) for part in self.constraint.continuations(prefix))
        scores = scores[:, characters]
        allowed = scores.new_full((len(scores), vocabulary), -torch.inf)
        allowed = allowed.scatter_reduce(1, following.expand(len(scores), -1), scores, "amax")
        promised = scores.amax(1, keepdim=True)
        stuck = promised[:, 0].isneginf()  # no character is read so: the language model is free
        allowed = allowed - promised if prefix else allowed
        allowed[stuck] = 0.0
        allowed[stuck, self.constraint.eos_token_id] = -torch.inf
        return allowed

    def nearest(self, row: int, slot: int, tokens: tuple) -> tuple:
        """The character whose tokens begin with as many of `tokens` as can be; of several the one that sounds best."""
        size = len(tokens)
        while tokens[:size] not in self.constraint.characters:
            if found := self.constraint.continuations(tokens[:size]):
                ids, scores = self.ids[row, slot, None], self.scores[row, slot, None]
                heard = self.constraint.score_characters(ids, scores, self.rest)[0].cpu()
                return self.constraint.sequences[found[0][heard[found[0]].argmax()]]
            size -= 1  # ends at none at all, which every character begins with
        return tokens[:size]


def _readable_pairs(readings: list[tuple[int, ...]], pinyin_tokenizer: PinyinTokenizer) -> list[tuple[int, int]]:
    """(character number, unit) of all that may be written for a unit.

    Besides its own readings any character may be said in the neutral tone (妈妈 is ma1 ma5), and a unit that is no
    character's reading is written like the other tones of its syllable.
    """
    tones = [pinyin_tokenizer.bases[unit[:-1]] for unit in pinyin_tokenizer.units]
    read = {unit for units in readings for unit in units}
    loose = [unit for unit, name in enumerate(pinyin_tokenizer.units) if name[-1] == "5" or unit not in read]
    spread = {unit: [other for other in loose if other in tones[unit]] for unit in read}
    pairs = {(c, other) for c, units in enumerate(readings) for unit in units for other in (unit, *spread[unit])}
    return sorted(pairs)


def _in_gb2312(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


__all__ = ["PinyinConstraint", "PinyinLogitsProcessor", "tokenize_characters"]
