"""Decoding that knows pinyin: each slot may only write a character that can be read as the slot sounds."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers import LogitsProcessor

from .audio_pinyin_llm import SAMPLING_RATE, split_at_pauses, why_no_speech
from .tokenization_pinyin_llm import PinyinTokenizer


LONGEST_ROW = 40  # syllables, as in training: of a row of 260 in one piece, 8.5 % of the characters were wrong
LIKELY_UNITS = 8  # of heard pinyin, that a slot may be written as at their own probability
IMPOSSIBLE = -1e8  # a log-probability that only a forbidden token has
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
    """

    def __init__(self, tokenizer, pinyin_tokenizer: PinyinTokenizer, weight: float, floor: float):
        self.weight, self.floor = weight, floor
        self.num_units, self.eos_token_id = len(pinyin_tokenizer), tokenizer.eos_token_id
        vocabulary = tokenizer.get_vocab()
        readings = {
            c: ids for c, ids in pinyin_tokenizer.readings.items() if c in vocabulary or _in_gb2312(c) or c == ONLY_DEN4
        }
        self.sequences = tokenize_characters(tokenizer, list(readings))
        self.complete = set(self.sequences)
        self.starts = torch.tensor(sorted({sequence[0] for sequence in self.sequences}))
        self.written_for = self._homophones(_readable_pairs(list(readings.values()), pinyin_tokenizer))
        self._continuations: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def _homophones(self, pairs: list[tuple[int, int]]) -> torch.Tensor:
        """(U, most homophones) numbers of the characters that each unit is written as, padded with their count."""
        of_unit = [[] for _ in range(self.num_units)]
        for character, unit in pairs:
            of_unit[unit].append(character)
        rows = [torch.tensor(row, dtype=torch.long) for row in of_unit]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=len(self.sequences))

    def bind(self, units: torch.Tensor, prompt_length: int) -> "PinyinLogitsProcessor":
        """For one batch: (B, N) or (B, N, K) typed unit ids (-1: none), or (B, N, U) heard probabilities."""
        if units.is_floating_point():
            shares, ids = units.float().topk(LIKELY_UNITS)
            scores = self.weight * shares.clamp(min=self.floor).log()
            filled, rest = shares[..., 0] > 0, self.weight * math.log(self.floor)
        else:
            ids = units.reshape(*units.shape[:2], -1)
            scores = torch.zeros(ids.shape, device=ids.device).masked_fill(ids < 0, -torch.inf)
            filled, rest = (ids >= 0).any(-1), -math.inf
        return PinyinLogitsProcessor(self, ids.clamp(min=0), scores, rest, filled.sum(-1).tolist(), prompt_length)

    def score_characters(self, ids: torch.Tensor, scores: torch.Tensor, rest: float) -> torch.Tensor:
        """(R, K) unit ids and their scores -> (R, characters): each character's likeliest reading, `rest` without."""
        written = self.written_for.to(ids.device)[ids]  # R, K, M
        best = scores.new_full((len(ids), len(self.sequences) + 1), rest)
        return best.scatter_reduce(1, written.flatten(1), scores.repeat_interleave(written.shape[2], 1), "amax")[:, :-1]

    def continuations(self, prefix: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """The characters whose tokens begin with `prefix`, and the token that each takes next."""
        if prefix not in self._continuations:
            size = len(prefix)
            found = [(i, s[size]) for i, s in enumerate(self.sequences) if s[:size] == prefix and len(s) > size]
            self._continuations[prefix] = tuple(torch.tensor(found).T)
        return self._continuations[prefix]

    def progress(self, written: torch.Tensor) -> tuple[int, tuple]:
        """(L,) tokens written -> characters finished, and the tokens of the one that is half written."""
        places = torch.isin(written, self.starts).nonzero().flatten().tolist()
        last = tuple(written[places[-1] :].tolist()) if places else ()
        unfinished = bool(last) and last not in self.complete
        return len(places) - unfinished, last if unfinished else ()


class PinyinLogitsProcessor(LogitsProcessor):
    """A [`PinyinConstraint`] bound to the slots of one batch; beams of a row follow each other.

    Args:
        ids, scores: (B, N, K) units of each slot and their scores.
        rest: Score of a character that none of them is written as.
        filled: Slots of each row.
    """

    def __init__(self, constraint: PinyinConstraint, ids, scores, rest: float, filled: list[int], prompt_length: int):
        self.constraint, self.ids, self.scores, self.rest = constraint, ids, scores, rest
        self.filled, self.prompt_length = filled, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(R, L) tokens so far and (R, V) scores of the next -> scores, impossible tokens at -inf."""
        beams = len(input_ids) // len(self.filled)
        allowed = torch.full_like(scores, -torch.inf)
        end = self.constraint.eos_token_id
        open_rows = defaultdict(list)  # by the tokens of the character that is half written: (row, slot)
        for row, tokens in enumerate(input_ids[:, self.prompt_length :]):
            slot, prefix = self.constraint.progress(tokens)
            if slot >= self.filled[row // beams] or (tokens == end).any():
                allowed[row, end] = 0.0
            else:
                open_rows[prefix].append((row, slot))
        for prefix, places in open_rows.items():
            rows, slots = torch.tensor(places, device=scores.device).T
            allowed[rows] = self._allow(prefix, rows // beams, slots, allowed[rows])
        return scores + allowed

    def _allow(self, prefix: tuple, rows, slots, allowed: torch.Tensor) -> torch.Tensor:
        """(R, V) scores of the tokens that may follow `prefix` in the slots given."""
        heard = self.constraint.score_characters(self.ids[rows, slots], self.scores[rows, slots], self.rest)
        characters, following = (part.to(allowed.device) for part in self.constraint.continuations(prefix))
        index = following.expand(len(rows), -1)
        allowed = allowed.scatter_reduce(1, index, heard[:, characters].to(allowed.dtype), "amax")
        stuck = allowed.isneginf().all(1)  # no character is read so: the language model is free
        allowed[stuck] = 0.0
        allowed[stuck, self.constraint.eos_token_id] = -torch.inf
        return allowed


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


@dataclass
class Syllable:
    """A syllable that the bridge heard.

    Args:
        pinyin: The unit, e.g. "hao3".
        start, end: Seconds.
        confidence: Its probability.
    """

    pinyin: str
    start: float
    end: float
    confidence: float


@dataclass
class Written:
    """What the model wrote for one row.

    Args:
        text: The characters.
        heard: Of speech, what the bridge heard, a syllable a character where decoding is constrained; empty without a bridge.
        alternatives: The best texts with their scores, `text` first: sums of log-probabilities, the language model's and the
            weighted ones of what was heard. Empty unless several were asked for.
    """

    text: str
    heard: list[Syllable] = field(default_factory=list)
    alternatives: list[tuple[str, float]] = field(default_factory=list)


def write_characters(
    model, processor, inputs, constrained: bool = True, num_return_sequences: int = 1, **generate_kwargs
) -> list[Written]:
    """A batch of `PinyinLlamaProcessor` -> the characters that the model writes for each row.

    Args:
        inputs: Speech or pinyin, without answers.
        constrained: Only what can be read as the slots sound; needs typed pinyin, or the bridge.
        num_return_sequences: How many texts a row; from 2 on they come with their scores.
        **generate_kwargs: For `model.generate`, e.g. `num_beams=3`.
    """
    inputs = inputs.to(model.device)
    if constrained:
        generate_kwargs["pinyin_constraint"] = processor.pinyin_constraint()
    prompt_length = inputs["input_ids"].shape[1]
    if num_return_sequences == 1:
        sequences = model.generate(**inputs, **generate_kwargs)
        return [Written(text) for text in processor.decode_answers(sequences, prompt_length)]
    generate_kwargs["num_beams"] = max(generate_kwargs.get("num_beams", 1), num_return_sequences)
    best = model.generate(
        **inputs,
        num_return_sequences=num_return_sequences,
        length_penalty=0.0,  # the score is a sum: rows that are written in parts add up
        return_dict_in_generate=True,
        output_scores=True,
        **generate_kwargs,
    )
    texts, scores = processor.decode_answers(best.sequences, prompt_length), best.sequences_scores.tolist()
    ranked = list(zip(texts, scores, strict=True))
    rows = [ranked[i : i + num_return_sequences] for i in range(0, len(ranked), num_return_sequences)]
    return [Written(row[0][0], alternatives=_keep_possible(row)) for row in rows]


def _keep_possible(ranked: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Each text once; where the sound allows fewer texts than were asked for, beam search fills up with scores of -1e9."""
    best = {}
    for text, score in ranked:
        if score > IMPOSSIBLE:
            best.setdefault(text, score)
    return list(best.items())


def convert_pinyin(model, processor, rows: list, batch_size: int = 32, **kwargs) -> list[str]:
    """Rows of written syllables, or of unit ids -> their characters, in the order given. For **kwargs see above.

    A long row is written in parts of equal length.
    """
    encode = processor.pinyin_tokenizer.encode_syllables
    parts = [_cut_evenly(encode(row) if isinstance(row, str) else row) for row in rows]

    def write(batch):
        return [written.text for written in write_characters(model, processor, processor(pinyin=batch), **kwargs)]

    return _write_parts(parts, write, batch_size)


def _cut_evenly(row: list) -> list[list]:
    count = -(-len(row) // LONGEST_ROW)
    cuts = [len(row) * part // max(count, 1) for part in range(count + 1)]
    return [row[start:end] for start, end in pairwise(cuts)]


@torch.no_grad()
def write_speech(model, processor, waveforms: list, **kwargs) -> list[Written]:
    """A batch of speech of up to 15 s each -> what is written for each, with what was heard.

    Args:
        waveforms: (samples,) float32 at 16 kHz each.
        **kwargs: For `write_characters`; `constrained` where there is a bridge.
    """
    kwargs.setdefault("constrained", model.config.projector_type == "pinyin_bridge")
    inputs = processor(waveforms, sampling_rate=SAMPLING_RATE).to(model.device)
    slots = model.get_audio_features(inputs.pop("input_features"), inputs.pop("input_features_mask"))
    results = write_characters(model, processor, inputs, audio_slots=slots, **kwargs)
    for written, heard in zip(results, _syllables(slots.pinyin, len(results), processor), strict=True):
        written.heard = heard
    return results


def _syllables(pinyin: dict, rows: int, processor) -> list[list[Syllable]]:
    """The `pinyin` of [`AudioSlots`] -> the syllables of each row in order of time; none without a bridge."""
    if not pinyin:
        return [[] for _ in range(rows)]
    names = processor.pinyin_tokenizer.units
    columns = [pinyin[name].tolist() for name in ("pinyin", "pinyin_times", "pinyin_confidence")]
    return [
        [Syllable(names[unit], *times, share) for unit, times, share in zip(*row, strict=True) if unit >= 0]
        for row in zip(*columns, strict=True)
    ]


def transcribe_clips(model, processor, waveforms: list, batch_size: int = 8, **kwargs) -> list[str]:
    """Speech of any length -> its characters, in the order given.

    Args:
        waveforms: (samples,) float32 at 16 kHz each; what is longer than 15 s is cut at pauses.
        **kwargs: For `write_characters`.
    """
    pieces = [[w[a:b] for a, b in split_at_pauses(w) if not why_no_speech(w[a:b])] for w in waveforms]

    def write(batch):
        return [written.text for written in write_speech(model, processor, batch, **kwargs)]

    return _write_parts(pieces, write, batch_size)


def _write_parts(rows: list[list], write, batch_size: int) -> list[str]:
    """Rows of parts -> the text of each row, its parts written apart and joined."""
    texts = iter(_in_batches([part for parts in rows for part in parts], write, batch_size))
    return ["".join(next(texts) for _ in parts) for parts in rows]


@torch.no_grad()
def hear_pinyin(model, processor, waveforms: list, batch_size: int = 8) -> list[list[int]]:
    """Speech of up to 30 s each -> the unit ids that the bridge hears, in the order given."""

    def hear(batch):
        inputs = processor(batch, sampling_rate=SAMPLING_RATE).to(model.device)
        slots = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
        return [[unit for unit in row if unit >= 0] for row in slots.pinyin["pinyin"].tolist()]

    return _in_batches(waveforms, hear, batch_size)


def _in_batches(rows: list, work, batch_size: int) -> list:
    """`work` on batches of like length; an empty row gives an empty text."""
    results = [""] * len(rows)
    order = sorted((i for i, row in enumerate(rows) if len(row)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for i, result in zip(batch, work([rows[i] for i in batch]), strict=True):
            results[i] = result
    return results


__all__ = [
    "PinyinConstraint",
    "PinyinLogitsProcessor",
    "Syllable",
    "Written",
    "convert_pinyin",
    "hear_pinyin",
    "transcribe_clips",
    "write_speech",
]
