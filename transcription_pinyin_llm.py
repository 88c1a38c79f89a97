"""Speech or pinyin of any length -> text. The one path for users, for evaluation in training, and for the table.

`transcribe` takes sounds of any kind and yields transcripts; `convert_pinyin` takes rows of pinyin. Both cut what is
long into rows that the language model can take, decode the rows in batches, and join the results.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, pairwise, repeat

import numpy as np
import torch
from transformers import BatchFeature

from .audio_pinyin_llm import (
    LONGEST_PIECE_SECONDS,
    SAMPLING_RATE,
    AudioError,
    AudioWarning,
    read_pieces,
    split_at_pauses,
    why_no_speech,
)
from .configuration_pinyin_llm import num_encoder_frames
from .constraint_pinyin_llm import SOUND_WEIGHT
from .decoder_pinyin_llm import MandarinTokens, Recognition, recognize
from .encoder_pinyin_llm import Slots
from .fusion_pinyin_llm import FUSED_SOUND_WEIGHT, PinyinFusion, SecondOpinion, recognize_text
from .tokenization_pinyin_llm import PinyinTokenizer
from .transcript_pinyin_llm import Chunk, Syllable, Transcript, join_hypotheses


NUM_BEAMS = 5  # with n-grams: CER of S0150 13.9 with 3, 13.1 with 5 (docs/log.md)
LONGEST_ROW = 40  # syllables, as in training: a row of 260 at once had 8.5 % of its characters wrong
IMPOSSIBLE = -1e8  # a log-probability that only a forbidden token has


@dataclass
class RowResult:
    """The decoded text of one row.

    Args:
        text: The characters.
        syllables: Of speech, the syllables recognised: one per character if decoding is constrained, none without a
            bridge.
        alternatives: The best hypotheses with their scores, `text` first. A score is a sum of log-probabilities: the
            language model's, and the weighted ones of the units recognised and of the n-grams. Empty unless several
            were requested.
    """

    text: str
    syllables: list[Syllable] = field(default_factory=list)
    alternatives: list[tuple[str, float]] = field(default_factory=list)


def transcribe(
    model,
    processor,
    sources: Iterable,
    batch_size: int = 8,
    longest_seconds: float = LONGEST_PIECE_SECONDS,
    on_progress: Callable[[float], None] = lambda seconds: None,
    num_beams: int | None = None,
    second_opinions: Iterable[str | None] | None = None,
    **kwargs,
) -> Iterator[Transcript]:
    """Sounds of any length, rate and number of channels -> one [`Transcript`] each, in the order given.

    At most `batch_size` pieces are in memory. A sound that cannot be read does not stop the others.

    Args:
        sources: Anything `open_sound` takes; each is read when its turn comes.
        longest_seconds: Longer sounds are cut at pauses.
        on_progress: Called with the seconds that have just been transcribed.
        num_beams: 5 by default, unless a `generation_config` is given. 1 is three times as fast and less accurate, as
            it uses no n-grams.
        second_opinions: For each source the transcript of another recogniser, its numbers read aloud, or `None`. It is
            combined with what the bridge recognises, in place of Whisper's decoder.
        **kwargs: For `transcribe_waveforms`, e.g. `num_return_sequences=5`.
    """
    if num_beams or "generation_config" not in kwargs:
        kwargs["num_beams"] = num_beams or NUM_BEAMS
    waiting: list[Transcript] = []
    batch: list[tuple[Chunk, np.ndarray, tuple[SecondOpinion, bool] | None]] = []
    opinions = repeat(None) if second_opinions is None else second_opinions

    def decode_batch():
        pieces = [piece for _, piece, _ in batch]
        texts = None if second_opinions is None else [opinion for *_, opinion in batch]
        results = transcribe_waveforms(model, processor, pieces, texts, **kwargs) if pieces else []
        for (chunk, piece, _), result in zip(batch, results, strict=True):
            _store(chunk, result)
            on_progress(len(piece) / SAMPLING_RATE)
        batch.clear()

    for source, text in zip(sources, opinions, strict=second_opinions is not None):
        waiting.append(Transcript(source))
        opinion = None if text is None else SecondOpinion(recognize_text(text, processor.pinyin_tokenizer))
        for chunk, piece, is_last in _mark_last(_speech_pieces(waiting[-1], longest_seconds)):
            batch.append((chunk, piece, opinion and (opinion, is_last)))
            if len(batch) == batch_size:
                decode_batch()
                yield from _finish(waiting[:-1])
                del waiting[:-1]
    decode_batch()
    yield from _finish(waiting)


def transcribe_clips(model, processor, waveforms: list, batch_size: int = 8, num_beams: int = 1, **kwargs) -> list[str]:
    """Speech of any length -> its text, in the order given; greedy by default, for evaluation.

    Args:
        waveforms: (samples,) float32 at 16 kHz each; longer ones than 15 s are cut at pauses.
        **kwargs: For `decode_rows`.

    Raises:
        AudioError: A waveform that cannot be read.
    """
    order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))  # batches of similar length pad little
    texts = [""] * len(waveforms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)  # a silent clip is an empty text, which the score counts
        transcripts = transcribe(
            model, processor, [waveforms[i] for i in order], batch_size, num_beams=num_beams, **kwargs
        )
        for i, transcript in zip(order, transcripts, strict=True):
            if transcript.error:
                raise transcript.error
            texts[i] = transcript.text
    return texts


@torch.no_grad()
def transcribe_waveforms(
    model,
    processor,
    waveforms: list,
    second_opinions: list | None = None,
    recognizers: list[str] | None = None,
    **kwargs,
) -> list[RowResult]:
    """A batch of speech of up to 30 s each -> the result of each, with the syllables recognised.

    The syllables recognised become rows of at most `LONGEST_ROW`, whose prompts have no empty slots.

    Args:
        waveforms: (samples,) float32 at 16 kHz each.
        second_opinions: For each waveform `None`, or the transcript of its sound, which the waveforms of a sound share,
            and whether it is the last of them.
        recognizers: As in the configuration, which gives the default.
        **kwargs: For `decode_rows`; `constrained` defaults to whether there is a bridge.

    Raises:
        ValueError: A recogniser that the model does not have.
    """
    if recognizers is not None:
        model.config.check_recognizers(recognizers)
    kwargs.setdefault("constrained", model.config.projector_type == "pinyin_bridge")
    inputs = processor(waveforms, sampling_rate=SAMPLING_RATE).to(model.device)
    mask = inputs.pop("input_features_mask")
    hidden = model.audio_tower(inputs.pop("input_features"), mask)
    slots = model.get_audio_features(input_features_mask=mask, audio_hidden_states=hidden)
    if not slots.recognized:
        if any(second_opinions or ()):
            raise ValueError("A second opinion needs a pinyin_bridge; this model has a pooling projector.")
        return decode_rows(model, processor, inputs, audio_slots=slots, **kwargs)
    fusion = _fusion(model.config.pinyin_units)
    recognizers = recognizers or model.config.recognizers or ["bridge"]
    if "whisper" in recognizers or second_opinions is not None:  # of the whole call, so that a batch is its clips
        kwargs.setdefault("sound_weight", FUSED_SOUND_WEIGHT)
    others: list = [None] * len(waveforms)
    if any(second_opinions or ()):
        others = _take_opinions(fusion, slots, second_opinions)
    if None in others and "whisper" in recognizers:
        others = [a or b for a, b in zip(others, _recognize_by_whisper(model, hidden, mask, slots), strict=True)]
    if any(others):
        slots = fusion.fuse(slots, others, model.pinyin_embeddings.weight)
    syllables = _syllables_of(slots.recognized, processor)
    spans = [_cut_at_pauses(of_waveform) for of_waveform in syllables]
    cuts = [(waveform, start, end) for waveform, own in enumerate(spans) for start, end in own]
    results = iter(_decode_slots(model, processor, slots.cut(cuts), **kwargs) if cuts else [])
    rows = [[next(results) for _ in own] for own in spans]
    return [_join(own_rows, own) for own_rows, own in zip(rows, syllables, strict=True)]


def _recognize_by_whisper(model, hidden, mask, slots: Slots) -> list[Recognition]:
    """What Whisper's own decoder makes of each waveform, from the encoder output that the bridge was given."""
    tokens = _mandarin_tokens(model.config.decoder_tokens, model.config.pinyin_units)
    hidden = hidden.to(model.text_decoder.embed_tokens.weight.dtype)
    return recognize(model.text_decoder, tokens, hidden, num_encoder_frames(mask.sum(-1)), slots.filled.sum(-1))


def _take_opinions(fusion: PinyinFusion, slots: Slots, opinions: list) -> list[Recognition | None]:
    """The part of its sound's transcript that belongs to each waveform; `None` where there is none of any use."""
    parts: list[Recognition | None] = []
    for row, opinion in enumerate(opinions):
        unit_probs = slots.unit_probs[row, : int(slots.filled[row].sum())].float().cpu()
        part = fusion.take(opinion[0], unit_probs, opinion[1]) if opinion else None
        parts.append(part if part and fusion.agree(unit_probs, part) else None)
    return parts


@lru_cache(maxsize=2)
def _fusion(units: str) -> PinyinFusion:
    return PinyinFusion(PinyinTokenizer(units.split()))


@lru_cache(maxsize=2)
def _mandarin_tokens(tokens: str, units: str) -> MandarinTokens:
    return MandarinTokens(tokens.split(), PinyinTokenizer(units.split()))


@torch.no_grad()
def recognize_pinyin(model, processor, waveforms: list, batch_size: int = 8) -> list[list[int]]:
    """Speech of any length -> the unit ids that the bridge recognises, in the order given."""
    pieces = [[w[a:b] for a, b in split_at_pauses(w)] for w in waveforms]

    def recognize(batch):
        inputs = processor(batch, sampling_rate=SAMPLING_RATE).to(model.device)
        slots = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
        return [[unit for unit in row if unit >= 0] for row in slots.recognized["pinyin"].tolist()]

    return [list(chain(*units)) for units in _batched_by_length(pieces, recognize, batch_size)]


def convert_pinyin(model, processor, rows: list, batch_size: int = 32, **kwargs) -> list[str]:
    """Rows of written syllables, or of unit ids -> their characters, in the order given.

    A long row is cut into parts of equal length.

    Args:
        rows: Strings as "ni3 hao3", or lists of unit ids (tuples of ids where a syllable has no tone).
        **kwargs: For `decode_rows`.
    """
    encode = processor.pinyin_tokenizer.encode_syllables
    parts = [cut_evenly(encode(row) if isinstance(row, str) else row) for row in rows]

    def convert(batch):
        return [result.text for result in decode_rows(model, processor, processor(pinyin=batch), **kwargs)]

    return ["".join(texts) for texts in _batched_by_length(parts, convert, batch_size)]


def decode_rows(
    model,
    processor,
    inputs,
    constrained: bool = True,
    sound_weight: float = SOUND_WEIGHT,
    num_return_sequences: int = 1,
    **generate_kwargs,
) -> list[RowResult]:
    """A batch made by `PinyinLlamaProcessor` -> the text of each row.

    Args:
        inputs: Speech or pinyin, without answers.
        constrained: Allow only characters that can be read as their slots sound; needs typed pinyin, or a bridge.
        sound_weight: Of the probabilities of recognised syllables, relative to the language model's.
        num_return_sequences: Hypotheses per row; from 2 on they are returned with their scores.
        **generate_kwargs: For `model.generate`, e.g. `num_beams=3`.
    """
    inputs = inputs.to(model.device)
    if constrained:
        generate_kwargs["pinyin_constraint"] = processor.pinyin_constraint(sound_weight)
    prompt_length = inputs["input_ids"].shape[1]
    if num_return_sequences == 1:
        output = model.generate(**inputs, **generate_kwargs)
        sequences = getattr(output, "sequences", output)  # with return_dict_in_generate
        return [RowResult(text) for text in processor.decode_answers(sequences, prompt_length)]
    beams = max(generate_kwargs.get("num_beams") or 1, num_return_sequences)
    generate_kwargs |= {"num_beams": beams, "num_return_sequences": num_return_sequences}
    generate_kwargs |= {"return_dict_in_generate": True, "output_scores": True}
    generate_kwargs.setdefault("length_penalty", 0.0)  # scores are sums, so those of a row's parts add up
    best = model.generate(**inputs, **generate_kwargs)
    texts, scores = processor.decode_answers(best.sequences, prompt_length), best.sequences_scores.tolist()
    hypotheses = list(zip(texts, scores, strict=True))
    rows = [hypotheses[i : i + num_return_sequences] for i in range(0, len(hypotheses), num_return_sequences)]
    return [RowResult(row[0][0], alternatives=_keep_possible(row)) for row in rows]


def _keep_possible(hypotheses: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Each text once, without the impossible ones (-1e9) that beam search adds where the sound allows too few."""
    best = {}
    for text, score in hypotheses:
        if score > IMPOSSIBLE:
            best.setdefault(text, score)
    return list(best.items())


def _decode_slots(model, processor, slots: Slots, **kwargs) -> list[RowResult]:
    prompts = processor.make_prompts(processor.audio_token_id, slots.counts.tolist())
    return decode_rows(model, processor, BatchFeature(prompts), audio_slots=slots, **kwargs)


def _syllables_of(recognized: dict, processor) -> list[list[Syllable]]:
    """The `recognized` of [`Slots`] -> the syllables of each row in order of time."""
    names = processor.pinyin_tokenizer.units
    columns = [recognized[name].tolist() for name in ("pinyin", "pinyin_times", "pinyin_confidence")]
    rows = []
    for units, times, confidences in zip(*columns, strict=True):
        slots = zip(units, times, confidences, strict=True)
        rows.append([Syllable(names[unit], *span, confidence) for unit, span, confidence in slots if unit >= 0])
    return rows


def _cut_at_pauses(syllables: list[Syllable], start: int = 0) -> list[tuple[int, int]]:
    """Spans of at most `LONGEST_ROW` syllables; longer ones are cut in their middle half, after the longest syllable.

    A syllable lasts until the next one is recognised, so the longest has a pause after it.
    """
    if len(syllables) <= LONGEST_ROW:
        return [(start, start + len(syllables))] if syllables else []
    middle = range(len(syllables) // 4, 3 * len(syllables) // 4)
    cut = 1 + max(middle, key=lambda i: syllables[i].end - syllables[i].start)
    return [*_cut_at_pauses(syllables[:cut], start), *_cut_at_pauses(syllables[cut:], start + cut)]


def cut_evenly(row: list) -> list[list]:
    """Parts of at most `LONGEST_ROW` items, of lengths that differ by one at most."""
    count = -(-len(row) // LONGEST_ROW)
    cuts = [len(row) * part // max(count, 1) for part in range(count + 1)]
    return [row[start:end] for start, end in pairwise(cuts)]


def _join(rows: list[RowResult], syllables: list[Syllable]) -> RowResult:
    text = "".join(row.text for row in rows)
    return RowResult(text, syllables, join_hypotheses([row.alternatives for row in rows]))


def _batched_by_length(rows: list[list], work: Callable[[list], list], batch_size: int) -> list[list]:
    """Rows of parts -> the results of `work` for each part, row by row; batches hold parts of similar length."""
    parts = [part for own in rows for part in own]
    results: list = [""] * len(parts)  # an empty part gives an empty text
    order = sorted((i for i, part in enumerate(parts) if len(part)), key=lambda i: len(parts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for i, result in zip(batch, work([parts[i] for i in batch]), strict=True):
            results[i] = result
    remaining = iter(results)
    return [[next(remaining) for _ in own] for own in rows]


def _store(chunk: Chunk, result: RowResult) -> None:
    """Put a result into its chunk, with times of the whole sound."""
    chunk.text, chunk.alternatives, chunk.syllables = result.text, result.alternatives, result.syllables
    for syllable in chunk.syllables:
        # The bridge counts in frames of 40 ms, the last of which may reach beyond the piece.
        syllable.start = min(round(chunk.start + syllable.start, 2), chunk.end)
        syllable.end = min(round(chunk.start + syllable.end, 2), chunk.end)


def _speech_pieces(transcript: Transcript, longest_seconds: float) -> Iterator[tuple[Chunk, np.ndarray]]:
    """The pieces of a sound that may hold speech; if there are none, the transcript says why."""
    reasons, samples = [], 0
    try:
        for piece in read_pieces(open_sound(transcript.source), longest_seconds):
            start, samples = samples, samples + len(piece)
            transcript.seconds = samples / SAMPLING_RATE
            reasons.append(why_no_speech(piece))
            if reasons[-1] is None:
                transcript.chunks.append(Chunk(round(start / SAMPLING_RATE, 2), round(transcript.seconds, 2)))
                yield transcript.chunks[-1], piece
    except AudioError as error:
        transcript.error = error
        return
    except Exception as error:  # whatever a file, a URL or a decoder does, the other sounds are still transcribed
        transcript.error = AudioError(f"{transcript.name}: {type(error).__name__}: {error}")
        transcript.error.__cause__ = error
        return
    if None not in reasons:
        transcript.why_empty = reasons[0]


def _mark_last(pieces: Iterable[tuple[Chunk, np.ndarray]]) -> Iterator[tuple[Chunk, np.ndarray, bool]]:
    """The pieces of a sound, and whether each is the last."""
    held = None
    for piece in pieces:
        if held is not None:
            yield *held, False
        held = piece
    if held is not None:
        yield *held, True


def _finish(transcripts: list[Transcript]) -> Iterator[Transcript]:
    """Finished transcripts: a sound that broke off keeps no text, and an empty text is warned about."""
    for transcript in transcripts:
        if transcript.error:
            transcript.chunks = []
        elif not transcript.text:
            warnings.warn(f"{transcript.name}: {transcript.why_empty}; its text is empty.", AudioWarning, stacklevel=2)
        yield transcript


def open_sound(source):
    """A sound in any form that users have it -> a form that `read_pieces` takes.

    Args:
        source: A path, the bytes of a file, an open file, a URL; {"array" or "raw": ..., "sampling_rate": ...}, an
            array at 16 kHz; {"bytes": ...} or {"path": ...}, or a decoder of `datasets`.
    """
    if hasattr(source, "read"):
        return source.read()
    if isinstance(source, memoryview):
        return bytes(source)
    if isinstance(source, dict):
        if "array" not in source and "raw" not in source:
            return source.get("bytes") or source.get("path") or source
        return {"array": source.get("array", source.get("raw")), "sampling_rate": source.get("sampling_rate")}
    if hasattr(source, "__array__"):
        return {"array": source, "sampling_rate": SAMPLING_RATE}
    return source


__all__ = [
    "NUM_BEAMS",
    "RowResult",
    "convert_pinyin",
    "cut_evenly",
    "decode_rows",
    "recognize_pinyin",
    "transcribe",
    "transcribe_clips",
    "transcribe_waveforms",
]
