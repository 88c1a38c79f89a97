"""Which characters follow each other in text: trigrams that support the language model (shallow fusion).

A small language model forgets the rare words that it has read; counts forget nothing, and take seconds to make.
Smoothing is interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999).

Shape letters: C characters, B bigrams, T trigrams that are kept.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


FILE_NAME = "ngrams.safetensors"
START = "\n"  # precedes every line, twice
BITS = 21  # of a code point
LAST, LAST_TWO = (1 << BITS) - 1, (1 << 2 * BITS) - 1
DEFAULT_DISCOUNT = 0.75  # where there are too few counts to estimate one
CHARACTERS_AT_ONCE = 5_000_000  # sorting them takes half a gigabyte


@dataclass(eq=False)
class CharacterNgrams:
    """The probabilities of the next character after one or two others; what is left over goes to the shorter context.

    Bigrams are sorted by their two characters, trigrams by the bigram of their first two.

    Args:
        characters: (C,) uint32 code points, ascending.
        unigrams: (C,) float32 probabilities.
        bigram_counts: (C,) int32, number of bigrams that begin with a character.
        bigrams: (B,) uint16 number of the second character.
        bigram_shares: (B,) float16, log of its share of the probability; -inf if it only serves as a context of
            trigrams.
        bigram_rest: (C,) float32, probability left for the unigrams.
        trigram_counts: (B,) uint16, number of trigrams that begin with a bigram.
        trigrams: (T,) uint16 number of the third character.
        trigram_shares: (T,) float16, logarithms.
        trigram_rest: (B,) float16, probability left for the bigrams.
    """

    characters: np.ndarray
    unigrams: np.ndarray
    bigram_counts: np.ndarray
    bigrams: np.ndarray
    bigram_shares: np.ndarray
    bigram_rest: np.ndarray
    trigram_counts: np.ndarray
    trigrams: np.ndarray
    trigram_shares: np.ndarray
    trigram_rest: np.ndarray

    def __post_init__(self):
        self.numbers = {chr(code): number for number, code in enumerate(self.characters.tolist())}
        self.bigram_starts = np.concatenate([[0], self.bigram_counts.cumsum(dtype=np.int64)])
        self.trigram_starts = np.concatenate([[0], self.trigram_counts.cumsum(dtype=np.int64)])
        self._least = float(np.log(self.unigrams.min()))

    @classmethod
    def from_lines(cls, lines: Iterable[str], least: int = 2) -> "CharacterNgrams":
        """Count the lines. Bigrams and trigrams that occur less than `least` times are dropped.

        Raises:
            ValueError: There are no lines.
        """
        keys, counts = _count_trigrams(lines)
        if not len(keys):
            raise ValueError("Expected lines of text to count, found none.")
        characters = np.unique(np.concatenate([keys & LAST, keys >> BITS & LAST]))
        # of each pair: after how many characters it occurs, which is Kneser and Ney's idea, and how often
        pairs, indices, before = np.unique(keys & LAST_TWO, return_inverse=True, return_counts=True)
        pairs_kept = np.bincount(indices, counts) >= least
        singles, before_pairs = np.unique(pairs & LAST, return_counts=True)
        unigrams = np.full(len(characters), 0.5)
        unigrams[np.searchsorted(characters, singles)] = before_pairs
        pair_shares, bigram_rest = _discount(pairs >> BITS, before, characters, pairs_kept)
        all_contexts = np.unique(np.concatenate([keys >> BITS, pairs]))
        shares, trigram_rest = _discount(keys >> BITS, counts, all_contexts, counts >= least)
        keys, shares = keys[shares > 0], shares[shares > 0]
        # a context without trigrams leaves everything to its bigrams, so it need not be stored
        contexts = np.union1d(keys >> BITS, pairs[pairs_kept])
        trigram_rest = trigram_rest[np.searchsorted(all_contexts, contexts)]
        bigram_shares = np.zeros(len(contexts))
        bigram_shares[np.searchsorted(contexts, pairs[pairs_kept])] = pair_shares[pairs_kept]
        with np.errstate(divide="ignore"):
            return cls(
                characters=characters.astype(np.uint32),
                unigrams=(unigrams / unigrams.sum()).astype(np.float32),
                bigram_counts=_sizes(contexts >> BITS, characters).astype(np.int32),
                bigrams=np.searchsorted(characters, contexts & LAST).astype(np.uint16),
                bigram_shares=np.log(bigram_shares).astype(np.float16),
                bigram_rest=bigram_rest.astype(np.float32),
                trigram_counts=_sizes(keys >> BITS, contexts).astype(np.uint16),
                trigrams=np.searchsorted(characters, keys & LAST).astype(np.uint16),
                trigram_shares=np.log(shares).astype(np.float16),
                trigram_rest=trigram_rest.astype(np.float16),
            )

    @classmethod
    def load(cls, path: str | Path) -> "CharacterNgrams":
        return cls(**load_file(path))

    def save(self, path: str | Path) -> None:
        save_file({field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}, path)

    def log_probs(self, before: str) -> np.ndarray:
        """The characters before, the last two of which count -> (C,) float32 log-probabilities of the next."""
        first, second = (self.numbers.get(character) for character in (2 * START + before)[-2:])
        if second is None:
            return np.log(self.unigrams)
        here = slice(*self.bigram_starts[second : second + 2])
        found = self.bigram_rest[second] * self.unigrams
        found[self.bigrams[here]] += np.exp(self.bigram_shares[here], dtype=np.float32)
        if (bigram := self._find(first, second)) is not None:
            here = slice(*self.trigram_starts[bigram : bigram + 2])
            found *= self.trigram_rest[bigram]
            found[self.trigrams[here]] += np.exp(self.trigram_shares[here], dtype=np.float32)
        return np.log(found)

    def log_prob(self, before: str, character: str) -> float:
        """As [`log_probs`], of one character; one that is unknown gets the least probability there is."""
        first, second = (self.numbers.get(other) for other in (2 * START + before)[-2:])
        third = self.numbers.get(character)
        if third is None:
            return self._least
        prob = float(self.unigrams[third])
        if second is not None:
            here = slice(*self.bigram_starts[second : second + 2])
            prob *= float(self.bigram_rest[second])
            prob += _share(self.bigrams[here], self.bigram_shares[here], third)
            if (bigram := self._find(first, second)) is not None:
                here = slice(*self.trigram_starts[bigram : bigram + 2])
                prob *= float(self.trigram_rest[bigram])
                prob += _share(self.trigrams[here], self.trigram_shares[here], third)
        return math.log(prob)

    def _find(self, first: int | None, second: int) -> int | None:
        """The index of a bigram, if it ever occurred."""
        if first is None:
            return None
        start, end = self.bigram_starts[first : first + 2]
        index = start + np.searchsorted(self.bigrams[start:end], second)
        return index if index < end and self.bigrams[index] == second else None


class MixedNgrams:
    """A mixture: the topic's n-grams have a share of the probability, the general ones the rest.

    Args:
        general, topic: Each a [`CharacterNgrams`], or itself a mixture.
        share: Of the topic, 0 to 1.
    """

    def __init__(self, general, topic, share: float):
        self.general, self.topic, self.share = general, topic, share
        new = topic.numbers.keys() - general.numbers.keys()
        self.numbers = general.numbers | {c: number for number, c in enumerate(sorted(new), len(general.numbers))}
        self._topic_numbers = np.array([self.numbers[character] for character in topic.numbers])

    def log_probs(self, before: str) -> np.ndarray:
        """As [`CharacterNgrams.log_probs`]."""
        found = np.zeros(len(self.numbers), np.float32)
        found[: len(self.general.numbers)] = (1 - self.share) * np.exp(self.general.log_probs(before))
        found[self._topic_numbers] += self.share * np.exp(self.topic.log_probs(before))
        return np.log(found)

    def log_prob(self, before: str, character: str) -> float:
        """As [`CharacterNgrams.log_prob`]."""
        parts = ((1 - self.share, self.general), (self.share, self.topic))
        return math.log(sum(share * math.exp(part.log_prob(before, character)) for share, part in parts))

    def save(self, path: str | Path) -> None:
        """Save the general n-grams only: a topic is not part of a model."""
        self.general.save(path)


def _share(numbers: np.ndarray, shares: np.ndarray, number: int) -> float:
    """The share of the probability of one of the ascending `numbers`, 0 if it is not among them."""
    index = int(np.searchsorted(numbers, number))
    return math.exp(shares[index]) if index < len(numbers) and numbers[index] == number else 0.0


def _count_trigrams(lines: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lines -> (T,) trigrams, each three code points in an int64, ascending, and their counts."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for text in _parts(lines):
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        found = codes[:-2] << 2 * BITS | codes[1:-1] << BITS | codes[2:]
        found, times = np.unique(found[codes[2:] != ord(START)], return_counts=True)
        keys, indices = np.unique(np.concatenate([keys, found]), return_inverse=True)
        counts = np.bincount(indices, np.concatenate([counts, times])).astype(np.int64)
    return keys, counts


def _parts(lines: Iterable[str]) -> Iterator[str]:
    """Lines with their START characters, joined into texts of the size that is sorted at once."""
    part, size = [], 0
    for line in lines:
        part.append(f"{2 * START}{line}")
        size += len(part[-1])
        if size >= CHARACTERS_AT_ONCE:
            yield "".join(part)
            part, size = [], 0
    if part:
        yield "".join(part)


def _discount(contexts: np.ndarray, counts: np.ndarray, known: np.ndarray, kept: np.ndarray):
    """Counts of events after their contexts -> their shares of the probability, and what is left in each context.

    The same discount is taken from each count (Ney, Essen and Kneser 1994); events that are not `kept` get no share.
    """
    once, twice = (np.count_nonzero(counts == times) for times in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else DEFAULT_DISCOUNT
    indices = np.searchsorted(known, contexts)
    totals = np.bincount(indices, counts, len(known))
    shares = np.where(kept, (counts - discount) / totals[indices], 0.0)
    return shares, 1.0 - np.bincount(indices, shares, len(known))


def _sizes(contexts: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(known, contexts), minlength=len(known))


__all__ = ["CharacterNgrams", "MixedNgrams"]
