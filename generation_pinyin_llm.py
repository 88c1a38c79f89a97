"""Speech or pinyin of any length -> characters: batches, parts, what was heard and the best alternatives."""

from dataclasses import dataclass, field
from itertools import chain, pairwise

import torch
from transformers import BatchFeature

from .audio_pinyin_llm import SAMPLING_RATE, split_at_pauses, why_no_speech
from .projector_pinyin_llm import AudioSlots


LONGEST_ROW = 40  # syllables, as in training: of a row of 260 in one piece, 8.5 % of the characters were wrong
IMPOSSIBLE = -1e8  # a log-probability that only a forbidden token has


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
            weighted ones of what was heard and of the n-grams. Empty unless several were asked for.
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
        written = model.generate(**inputs, **generate_kwargs)
        sequences = getattr(written, "sequences", written)  # with return_dict_in_generate
        return [Written(text) for text in processor.decode_answers(sequences, prompt_length)]
    beams = max(generate_kwargs.get("num_beams") or 1, num_return_sequences)
    generate_kwargs |= {"num_beams": beams, "num_return_sequences": num_return_sequences}
    generate_kwargs |= {"return_dict_in_generate": True, "output_scores": True}
    generate_kwargs.setdefault("length_penalty", 0.0)  # the score is a sum: rows that are written in parts add up
    best = model.generate(**inputs, **generate_kwargs)
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

    return list(map("".join, _in_parts(parts, write, batch_size)))


def _cut_evenly(row: list) -> list[list]:
    count = -(-len(row) // LONGEST_ROW)
    cuts = [len(row) * part // max(count, 1) for part in range(count + 1)]
    return [row[start:end] for start, end in pairwise(cuts)]


@torch.no_grad()
def write_speech(model, processor, waveforms: list, **kwargs) -> list[Written]:
    """A batch of speech of up to 30 s each -> what is written for each, with what was heard.

    What the bridge heard becomes rows of at most `LONGEST_ROW` syllables, whose prompts have no empty slots.

    Args:
        waveforms: (samples,) float32 at 16 kHz each.
        **kwargs: For `write_characters`; `constrained` where there is a bridge.
    """
    kwargs.setdefault("constrained", model.config.projector_type == "pinyin_bridge")
    inputs = processor(waveforms, sampling_rate=SAMPLING_RATE).to(model.device)
    slots = model.get_audio_features(inputs.pop("input_features"), inputs.pop("input_features_mask"))
    if not slots.pinyin:
        return write_characters(model, processor, inputs, audio_slots=slots, **kwargs)
    heard = _syllables(slots.pinyin, processor)
    spans = [[(row, *span) for span in _cut_at_pauses(syllables)] for row, syllables in enumerate(heard)]
    rows = list(chain(*spans))
    written = iter(_write_slots(model, processor, slots.cut(rows), **kwargs) if rows else [])
    parts = [[next(written) for _ in spans_of_row] for spans_of_row in spans]
    return [_join(of_row, syllables) for of_row, syllables in zip(parts, heard, strict=True)]


def _write_slots(model, processor, slots: AudioSlots, **kwargs) -> list[Written]:
    prompts = processor.make_prompts(processor.audio_token_id, slots.bound.tolist())
    return write_characters(model, processor, BatchFeature(prompts), audio_slots=slots, **kwargs)


def _cut_at_pauses(heard: list[Syllable], start: int = 0) -> list[tuple[int, int]]:
    """Spans of at most `LONGEST_ROW` syllables; longer ones are cut in their middle half, behind the longest syllable.

    A syllable lasts until the next one is heard, so the longest has a pause behind it.
    """
    if len(heard) <= LONGEST_ROW:
        return [(start, start + len(heard))] if heard else []
    middle = range(len(heard) // 4, 3 * len(heard) // 4)
    cut = 1 + max(middle, key=lambda i: heard[i].end - heard[i].start)
    return [*_cut_at_pauses(heard[:cut], start), *_cut_at_pauses(heard[cut:], start + cut)]


def _join(parts: list[Written], heard: list[Syllable]) -> Written:
    return Written("".join(part.text for part in parts), heard, join_ranked([part.alternatives for part in parts]))


def join_ranked(parts: list[list[tuple[str, float]]]) -> list[tuple[str, float]]:
    """The best texts of each part -> those of the whole: parts are written apart, so their scores add up."""
    best = [("", 0.0)]
    for part in parts:
        joined = [(text + more, score + plus) for text, score in best for more, plus in part]
        best = sorted(joined or best, key=lambda ranked: -ranked[1])[: max(len(part), len(best))]
    return best if any(parts) else []


def _syllables(pinyin: dict, processor) -> list[list[Syllable]]:
    """The `pinyin` of [`AudioSlots`] -> the syllables of each row in order of time."""
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

    return list(map("".join, _in_parts(pieces, write, batch_size)))


def _in_parts(rows: list[list], work, batch_size: int) -> list[list]:
    """Rows of parts -> what `work` gives for each part, row by row."""
    results = iter(_in_batches([part for parts in rows for part in parts], work, batch_size))
    return [[next(results) for _ in parts] for parts in rows]


@torch.no_grad()
def hear_pinyin(model, processor, waveforms: list, batch_size: int = 8) -> list[list[int]]:
    """Speech of any length -> the unit ids that the bridge hears, in the order given."""
    pieces = [[w[a:b] for a, b in split_at_pauses(w)] for w in waveforms]

    def hear(batch):
        inputs = processor(batch, sampling_rate=SAMPLING_RATE).to(model.device)
        slots = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
        return [[unit for unit in row if unit >= 0] for row in slots.pinyin["pinyin"].tolist()]

    return [list(chain(*heard)) for heard in _in_parts(pieces, hear, batch_size)]


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
    "Syllable",
    "Written",
    "convert_pinyin",
    "hear_pinyin",
    "join_ranked",
    "transcribe_clips",
    "write_speech",
]
