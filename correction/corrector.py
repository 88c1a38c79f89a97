"""The corrector: proposes edits of a text, scores them, and applies the good ones.

One pass of the language model over a row of text, prompted with its pinyin, gives the likeliest characters of each
slot, near sounds included. Each of them, and each pair of neighbours, is a possible edit. A logistic regression
(experiments/learn_correction.py) scores an edit by

* the n-gram gain, which looks at both sides;
* how much more frequent the new characters are, which counts against them: a recogniser seldom writes a rare character
  by mistake, and n-grams always prefer a frequent one;
* the gain in the language model's log-probability;
* how often the recogniser confuses the two sounds (confusions.py);
* how doubtful the rest of the line is: recognition errors cluster, and faultless text seldom looks odd.

Shape letters: B rows, N slots, U pinyin units, V vocabulary.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch

from ..encoder_pinyin_llm import Slots
from ..ngrams_pinyin_llm import START
from .confusions import PinyinConfusions
from .rows import Row, complicate, in_traditional, rows_of, simplify_line


SETTINGS_FILE, CONFUSIONS_FILE = (Path(__file__).with_name(name) for name in ("settings.json", "confusions.json"))
ROUNDS = 3  # a changed row is scored again: a corrected word makes its neighbours clearer
LIKELIEST = 8  # characters tried per slot
FARTHEST = -6.5  # log p(recognised | spoken) of the most distant sounds that are tried
SPREAD = 0.5  # share of a slot's vector given to similar sounds
SHARPNESS = 0.5  # of that spread: an exponent of p(recognised | spoken)
UNSPELLED = 3.0  # a character of several tokens is scored by its first one; the others cost about as much
SUSPICIOUS = -1.5  # log-probability of a character next to which pairs are tried
RAREST_PAIR = -7.5  # log-probability of the second character of a pair after its first
MOST_LM_GAIN = 10.0
LEAST_DOUBT = 0.02  # per character, of the rest of a line
DOUBT_PRIOR = 3  # characters without doubt that are added to a line, since the rest of a short one says little
NO_CONTEXT = "\ue000"  # a character that no text has, so that n-grams look only at the one after it
STRENGTH_STEP = 2.0  # log-odds per unit of strength


@dataclass
class Change:
    """Characters `start` to `end` of the given text, and their replacement.

    Args:
        confidence: Probability that the change is right, in text by a recogniser.
    """

    start: int
    end: int
    before: str
    after: str
    confidence: float


@dataclass
class Correction:
    """The corrected text, as long as the given one, and its changes in order."""

    text: str
    changes: list[Change] = field(default_factory=list)


@dataclass
class Edit:
    """Slots `start` to `end` of a row may become `after`.

    Args:
        features: The values of `TextCorrector.FEATURES`.
        score: Log-odds that it is right.
    """

    start: int
    end: int
    after: str
    features: tuple[float, ...]
    score: float


def correct(
    model, processor, texts: Iterable[str], strength: float = 1.0, batch_size: int = 32, simplified: bool = False
) -> list[Correction]:
    """Lines of text by any recogniser -> each with its clear errors corrected, in the order given.

    Only Han characters change, each into one that sounds the same or nearly so. Everything else stays, to the byte, and
    traditional text stays traditional.

    Args:
        texts: Lines; an empty one stays empty.
        strength: Preference for the given text: 0 changes a lot, 1 (the default) only clear errors, 2 almost nothing.
        batch_size: Rows of up to 40 characters.
        simplified: Write traditional lines in simplified characters first; changes then refer to those.

    Raises:
        ValueError: The model has no n-grams.
    """
    lines = [simplify_line(text) if simplified else text for text in texts]
    return get_corrector(model, processor).correct(lines, strength, batch_size)


def get_corrector(model, processor) -> "TextCorrector":
    """The corrector of a model, with the settings of this release and the processor's present n-grams."""
    return _make_corrector(model, processor, processor.ngrams)


@lru_cache(maxsize=2)  # its tables take a second
def _make_corrector(model, processor, ngrams) -> "TextCorrector":
    settings = json.loads(SETTINGS_FILE.read_text("utf-8"))
    confusions = PinyinConfusions.load(CONFUSIONS_FILE, processor.pinyin_tokenizer)
    return TextCorrector(model, processor, confusions, settings)


class TextCorrector:
    """Proposes edits, scores them, and applies the good ones.

    Args:
        confusions: Which syllables recognisers confuse.
        settings: `weights` of `FEATURES` and their `bias`; `line`, the slope of their sum, the weight of the doubt
            about the rest of the line, and an offset; `threshold` of the log-odds at strength 1; `calibration` (slope
            and offset), which makes the log-odds a probability in text of a recogniser.

    Raises:
        ValueError: The processor has no n-grams.
    """

    FEATURES = ("ngrams", "frequency", "language_model", "sound")

    def __init__(self, model, processor, confusions: PinyinConfusions, settings: dict):
        if processor.ngrams is None:
            raise ValueError("Correction needs n-grams, which this model lacks. Add them with pinyin-llm count_ngrams.")
        self.model, self.processor, self.settings = model, processor, settings
        self.weights = [settings["weights"][name] for name in self.FEATURES]
        self.tokenizer, self.constraint = processor.pinyin_tokenizer, processor.pinyin_constraint()
        self.log_confusions = confusions.log_probs
        self.characters = list(self.constraint.characters.values())
        self.first_tokens = np.array([tokens[0] for tokens in self.constraint.sequences])
        self.token_costs = np.array([UNSPELLED * (len(tokens) > 1) for tokens in self.constraint.sequences])
        self.ngram = lru_cache(1 << 18)(processor.ngrams.log_prob)
        self.near_sounds = cache(self._near_sounds)

    def correct(self, texts: list[str], strength: float, batch_size: int) -> list[Correction]:
        """As the function [`correct`]."""
        threshold = self.settings["threshold"] + STRENGTH_STEP * (strength - 1.0)
        lines = [list(rows_of(text, self.tokenizer)) for text in texts]
        waiting = lines
        for _ in range(ROUNDS):
            found = self.propose([row for line in waiting for row in line], batch_size)
            waiting = [line for line in waiting if self._accept(line, found, threshold)]
        return [self._write_back(text, rows) for text, rows in zip(texts, lines, strict=True)]

    def _accept(self, line: list[Row], found: dict[int, list[Edit]], threshold: float) -> bool:
        """Apply the best edits to the rows of a line; whether there were any."""
        self.weigh(line, found)
        return any([accept(row, found[id(row)], threshold) for row in line])  # a list, so that every row has its turn

    def weigh(self, line: list[Row], found: dict[int, list[Edit]]) -> None:
        """Set the score of each edit, with the doubt about the rest of its line."""
        slope, weight, offset = self.settings["line"]
        total, size = sum(float(row.doubts.sum()) for row in line), sum(len(row.text) for row in line)
        for row in line:
            for edit in found[id(row)]:
                around = row.doubts[max(edit.start - 1, 0) : edit.end + 1]
                rest = (total - float(around.sum())) / (size - len(around) + DOUBT_PRIOR)
                edit.score = slope * self._sum(edit.features) + weight * math.log(LEAST_DOUBT + rest) + offset

    def _sum(self, features: tuple[float, ...]) -> float:
        return self.settings["bias"] + sum(w * x for w, x in zip(self.weights, features, strict=True))

    def propose(self, rows: list[Row], batch_size: int) -> dict[int, list[Edit]]:
        """The possible edits of each row, by its id."""
        rows = sorted(rows, key=lambda row: len(row.text))  # rows of similar length need little padding
        found = {}
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            for row, log_probs in zip(batch, self._score_tokens(batch), strict=True):
                found[id(row)] = self._edits(row, *log_probs)
                self.note_doubts(row, found[id(row)])
        return found

    @staticmethod
    def note_doubts(row: Row, edits: list[Edit]) -> None:
        """Keep the probability of the best edit of each slot, as it is before the row is changed."""
        if row.doubts is None:
            row.doubts = np.zeros(len(row.text))
            for edit in edits:
                here = row.doubts[edit.start : edit.end]
                np.maximum(here, 1 / (1 + math.exp(-edit.score)), out=here)

    @torch.no_grad()
    def _score_tokens(self, rows: list[Row]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each row (N,) log-probabilities of its characters, and (N, V) of every token at each position."""
        slots = self._slots(rows)
        audio = self.processor.audio_token_id
        texts = [row.text for row in rows]
        inputs = self.processor.make_prompts(audio, slots.counts.tolist(), texts, padding_side="right")
        inputs = {name: values.to(self.model.device) for name, values in inputs.items()}
        embeds, mask = self.model.merge_inputs(inputs["input_ids"], inputs["attention_mask"], {audio: slots})
        answers = inputs["labels"][:, 1:].amax(0) >= 0  # the positions where any row has its answer
        keep = answers.nonzero().flatten()  # B, L -> the positions whose logits are needed
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, logits_to_keep=keep).logits
        for row, labels, own in zip(rows, inputs["labels"][:, 1:][:, answers], logits, strict=True):
            own, labels = own[labels >= 0].float().log_softmax(-1).cpu().numpy(), labels[labels >= 0].cpu().numpy()
            sizes = [len(self.processor._character_ids(character)) for character in row.text]
            starts = np.cumsum([0, *sizes])
            of_tokens = own[np.arange(len(labels)), labels]  # T, V -> T: of the tokens that are there
            # A character's log-probability is the sum of its tokens'; its alternatives are seen at its first token.
            yield np.add.reduceat(of_tokens[: starts[-1]], starts[:-1]), own[starts[:-1]]

    def _slots(self, rows: list[Row]) -> Slots:
        """The units of the rows, each spread over the sounds near it."""
        counts = torch.tensor([len(row.units) for row in rows])
        probs = np.zeros((len(rows), int(counts.max()), len(self.tokenizer)), np.float32)
        for b, row in enumerate(rows):
            for n, unit in enumerate(row.units):
                near, likelihoods = self.near_sounds(unit)[:2]
                probs[b, n, near] = SPREAD * likelihoods
                probs[b, n, unit] += 1 - SPREAD
        table = self.model.pinyin_embeddings.weight
        vectors = torch.from_numpy(probs).to(table) @ table
        filled = torch.arange(vectors.shape[1]) < counts[:, None]
        return Slots(vectors, filled.to(vectors.device), counts.to(vectors.device))

    def _near_sounds(self, given: int) -> tuple[np.ndarray, ...]:
        """The units near a given one and their likelihoods; their characters and log p(recognised | spoken) of each."""
        near = np.flatnonzero(self.log_confusions[:, given] > FARTHEST)
        near = np.union1d(near, [given])
        costs = self.log_confusions[near, given]
        likelihoods = np.exp(SHARPNESS * costs)
        best: dict[int, float] = {}
        for unit, cost in zip(near.tolist(), costs.tolist(), strict=True):
            for character in self.constraint.homophones[unit].tolist():
                best[character] = max(best.get(character, -math.inf), 0.0 if unit == given else cost)
        best.pop(len(self.characters), None)  # the padding
        return near, likelihoods / likelihoods.sum(), np.array(list(best)), np.array(list(best.values()))

    def _edits(self, row: Row, log_probs: np.ndarray, of_tokens: np.ndarray) -> list[Edit]:
        """Single characters, and pairs where something looks odd."""
        options = [self._options(unit, tokens) for unit, tokens in zip(row.units, of_tokens, strict=True)]
        is_open = [index is not None and slot not in row.changed for slot, index in enumerate(row.indices)]
        edits = []
        for slot, free in enumerate(is_open):
            if not free:
                continue
            for option in options[slot]:
                if option[0] != row.text[slot]:
                    edits.append(self._edit(row, slot, [option], log_probs))
            if slot + 1 < len(is_open) and is_open[slot + 1] and log_probs[slot : slot + 2].min() < SUSPICIOUS:
                edits += self._pairs(row, slot, options, log_probs)
        return edits

    def _options(self, unit: int, of_tokens: np.ndarray) -> list[tuple[str, float, float]]:
        """The likeliest characters of a slot: each with its log-probability and log p(recognised | spoken)."""
        _, _, characters, costs = self.near_sounds(unit)
        scores = of_tokens[self.first_tokens[characters]] - self.token_costs[characters]
        best = np.argsort(-(scores + 0.5 * costs))[:LIKELIEST]
        return [(self.characters[characters[i]], float(scores[i]), float(costs[i])) for i in best]

    def _pairs(self, row: Row, slot: int, options: list, log_probs: np.ndarray) -> Iterator[Edit]:
        """Pairs of which both characters differ, and which occur in text."""
        for first in options[slot]:
            for second in options[slot + 1]:
                both_differ = first[0] != row.text[slot] and second[0] != row.text[slot + 1]
                if both_differ and self.ngram(NO_CONTEXT + first[0], second[0]) > RAREST_PAIR:
                    yield self._edit(row, slot, [first, second], log_probs)

    def _edit(self, row: Row, start: int, options: list[tuple[str, float, float]], log_probs: np.ndarray) -> Edit:
        """An edit with its score."""
        after, end = "".join(character for character, _, _ in options), start + len(options)
        before = row.text[start:end]
        lm_gain = sum(score for _, score, _ in options) - float(log_probs[start:end].sum())
        features = (
            self._count(row.text, start, after) - self._count(row.text, start, before),
            sum(self.ngram(NO_CONTEXT, a) - self.ngram(NO_CONTEXT, b) for a, b in zip(after, before, strict=True)),
            min(max(lm_gain, 0.0), MOST_LM_GAIN),
            sum(cost for _, _, cost in options),
        )
        return Edit(start, end, after, features, self._sum(features))

    def _count(self, text: str, start: int, characters: str) -> float:
        """n-gram log-probability of these characters in this position and of the two after them."""
        end = start + len(characters)
        window = (2 * START + text)[start : start + 2] + characters + text[end : end + 2]
        return sum(self.ngram(window[i : i + 2], window[i + 2]) for i in range(len(window) - 2))

    def _write_back(self, text: str, rows: list[Row]) -> Correction:
        """The line with the changes of its rows, in its own script."""
        new = {}
        is_traditional = in_traditional(text) if any(row.changed for row in rows) else False
        for row in rows:
            own = complicate(row.text) if is_traditional and row.changed else row.text
            for slot, score in row.changed.items():
                index = row.indices[slot]
                if index is not None and own[slot] != text[index]:
                    new[index] = (own[slot], self._confidence(score))
        characters = "".join(new[index][0] if index in new else text[index] for index in range(len(text)))
        return Correction(characters, _join_changes(text, new))

    def _confidence(self, score: float) -> float:
        slope, offset = self.settings["calibration"]
        return round(1 / (1 + math.exp(-slope * score - offset)), 3)


def _join_changes(text: str, new: dict[int, tuple[str, float]]) -> list[Change]:
    """{index: (character, confidence)} -> the changes in order, characters of one edit together."""
    changes: list[Change] = []
    for index, (character, confidence) in sorted(new.items()):
        last = changes[-1] if changes else None
        if last and last.end == index and last.confidence == confidence:
            last.end, last.before, last.after = index + 1, last.before + text[index], last.after + character
        else:
            changes.append(Change(index, index + 1, text[index], character, confidence))
    return changes


def accept(row: Row, edits: list[Edit], threshold: float) -> bool:
    """Apply the best edits that do not overlap; whether there were any."""
    taken: set[int] = set()
    for edit in sorted(edits, key=lambda edit: -edit.score):
        if edit.score <= threshold:
            break
        if taken.isdisjoint(range(edit.start - 1, edit.end + 1)):  # neighbours of a change are scored again after it
            row.apply(edit)
            taken.update(range(edit.start, edit.end))
    return bool(taken)


__all__ = ["Change", "Correction", "TextCorrector", "correct"]
