"""Sounds of any kind, length and number -> transcripts; transformers' pipeline("automatic-speech-recognition") on top."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
from transformers import Pipeline

from .audio_pinyin_llm import (
    LONGEST_PIECE_SECONDS,
    SAMPLING_RATE,
    AudioError,
    AudioWarning,
    read_pieces,
    why_no_speech,
)
from .generation_pinyin_llm import Written, write_speech
from .transcript_pinyin_llm import FORMATS, Chunk, Transcript, characters_of


NUM_BEAMS = 5  # with n-grams: CER of S0150 13.9 with 3, 13.1 with 5 (docs/log.md)
LONGEST_WINDOW_SECONDS = 30.0  # of the audio tower
ADDRESS_MARKS = "%/:?#[]@!$&'()*+,;=~"  # of a URL; other characters, 汉字.wav too, are sent in their percent form
TASK = "automatic-speech-recognition"
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_pinyin_llm.PinyinLlamaPipeline",
        "pt": ["AutoModelForSpeechSeq2Seq"],
        "type": "multimodal",
    }
}


def transcribe(
    model,
    processor,
    sources: Iterable,
    batch_size: int = 8,
    longest_seconds: float = LONGEST_PIECE_SECONDS,
    on_progress: Callable[[float], None] = lambda seconds: None,
    num_beams: int | None = None,
    **kwargs,
) -> Iterator[Transcript]:
    """Sounds of any length, rate and number of channels -> a [`Transcript`] each, in the order given.

    No more than `batch_size` pieces are in memory. A sound that cannot be read does not stop the others.

    Args:
        sources: What `open_sound` takes, read as it is needed.
        longest_seconds: Longer sounds are cut at pauses.
        on_progress: Called with the seconds that have just been written down.
        num_beams: 5, where neither this nor a `generation_config` says how many. 1 is three times as fast, and worse: it
            hears no n-grams.
        **kwargs: For `write_characters`, e.g. `num_return_sequences=5`.
    """
    if num_beams or "generation_config" not in kwargs:
        kwargs["num_beams"] = num_beams or NUM_BEAMS
    waiting: list[Transcript] = []
    batch: list[tuple[Chunk, np.ndarray]] = []

    def write():
        pieces = [piece for _, piece in batch]
        written = write_speech(model, processor, pieces, **kwargs) if pieces else []
        for (chunk, piece), found in zip(batch, written, strict=True):
            _fill(chunk, found)
            on_progress(len(piece) / SAMPLING_RATE)
        batch.clear()

    for source in sources:
        waiting.append(Transcript(source))
        for chunk, piece in _speech(waiting[-1], longest_seconds):
            batch.append((chunk, piece))
            if len(batch) == batch_size:
                write()
                yield from _finish(waiting[:-1])
                del waiting[:-1]
    write()
    yield from _finish(waiting)


def _fill(chunk: Chunk, written: Written) -> None:
    chunk.text, chunk.alternatives, chunk.heard = written.text, written.alternatives, written.heard
    for syllable in chunk.heard:  # the bridge counts in frames of 40 ms, the last of which may reach beyond the piece
        times = (min(round(chunk.start + time, 2), chunk.end) for time in (syllable.start, syllable.end))
        syllable.start, syllable.end = times


def _speech(transcript: Transcript, longest_seconds: float) -> Iterator[tuple[Chunk, np.ndarray]]:
    """The pieces of a sound in which somebody may speak; the transcript says why there are none."""
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
    except Exception as error:  # whatever a file, an address or a decoder does, the other sounds go on
        transcript.error = AudioError(f"{transcript.name}: {type(error).__name__}: {error}")
        transcript.error.__cause__ = error
        return
    if None not in reasons:
        transcript.why_empty = reasons[0]


def _finish(transcripts: list[Transcript]) -> Iterator[Transcript]:
    """Transcripts on their way out; of a sound that broke off nothing is kept, and one that says nothing is named."""
    for transcript in transcripts:
        if transcript.error:
            transcript.chunks = []
        elif not transcript.text:
            warnings.warn(f"{transcript.name}: {transcript.why_empty}; its text is empty.", AudioWarning, stacklevel=2)
        yield transcript


def open_sound(source):
    """What users call a sound -> what `read_pieces` takes.

    Args:
        source: A path, the bytes of a file, an open file, a URL; {"array" or "raw": ..., "sampling_rate": ...}, an array at 16 kHz;
            {"bytes": ...} or {"path": ...}, or a decoder of `datasets`.

    Raises:
        AudioError: A URL that gives no file.
    """
    if hasattr(source, "read"):
        return source.read()
    if isinstance(source, memoryview):
        return bytes(source)
    if isinstance(source, dict):
        if "array" not in source and "raw" not in source:
            return source.get("bytes") or source.get("path") or source
        return {"array": source.get("array", source.get("raw")), "sampling_rate": source.get("sampling_rate")}
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _fetch(source)
    if hasattr(source, "__array__"):
        return {"array": source, "sampling_rate": SAMPLING_RATE}
    return source


def _fetch(url: str) -> bytes:
    try:
        with urlopen(quote(url, safe=ADDRESS_MARKS), timeout=60) as response:
            return response.read()
    except OSError as error:
        raise AudioError(f"{url}: cannot be fetched ({error}). Expected the address of a sound file.") from error


class PinyinLlamaPipeline(Pipeline):
    """Speech -> text, as transformers' `pipeline` does it.

    One sound (path, URL, bytes, array at 16 kHz, {"raw" or "array": ..., "sampling_rate": ...}) gives {"text": ...}, and raises if
    it cannot be read. A list gives a list, a dataset or generator gives a generator; there, a sound that cannot be read has
    an "error" beside its empty text, and the others go on.

    Args:
        batch_size: Pieces at once.
        chunk_length_s: Longer sounds are cut at pauses; 30 s at most.
        return_timestamps: True or "chunk" adds "chunks": [{"text", "timestamp": (start, end)}], cut at pauses; "char" has a
            chunk for each character, with the "pinyin" heard and its "confidence".
        num_return_sequences: From 2 on adds "alternatives": [{"text", "score"}], best first.
        formats: Adds the text as "txt", "srt", "vtt", "tsv" or "json", each under its name.
        generate_kwargs: For `model.generate`, e.g. {"num_beams": 5}.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def _sanitize_parameters(
        self,
        return_timestamps=None,
        chunk_length_s=None,
        num_return_sequences=None,
        formats=None,
        generate_kwargs=None,
        **unknown,
    ):
        if unknown:
            raise ValueError(f"Unknown: {', '.join(unknown)}. What `generate` takes goes into generate_kwargs={{...}}.")
        if return_timestamps not in (None, False, True, "chunk", "char"):
            raise ValueError(f"return_timestamps must be True, 'chunk' or 'char', found {return_timestamps!r}.")
        if chunk_length_s and not 1 <= chunk_length_s <= LONGEST_WINDOW_SECONDS:
            raise ValueError(f"chunk_length_s must be 1 to {LONGEST_WINDOW_SECONDS:g}, found {chunk_length_s}.")
        if wrong := set(formats or ()) - FORMATS.keys():
            raise ValueError(f"formats must be of {', '.join(FORMATS)}, found {', '.join(sorted(wrong))}.")
        forward = dict(generate_kwargs or {})
        forward |= {"longest_seconds": chunk_length_s} if chunk_length_s else {}
        forward |= {"num_return_sequences": num_return_sequences} if num_return_sequences else {}
        alternatives = num_return_sequences > 1 if num_return_sequences else None
        post = {"return_timestamps": return_timestamps, "formats": formats, "alternatives": alternatives}
        return {}, forward, {name: value for name, value in post.items() if value is not None}

    def __call__(self, inputs, batch_size: int | None = None, **parameters):
        _, forward, post = self._sanitize_parameters(**parameters)
        size = self._batch_size or 8 if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be 1 or more, found {size}.")
        forward = {"batch_size": size, **self._forward_params, **forward}
        post = self._postprocess_params | post
        sources, single = self.preprocess(inputs)
        results = (self.postprocess(each, single, **post) for each in self._forward(sources, **forward))
        if single:
            return next(results)
        return list(results) if isinstance(inputs, (list, tuple)) else results

    def preprocess(self, inputs) -> tuple[Iterable, bool]:
        """What was given -> sounds, and whether it was one."""
        single = isinstance(inputs, (str, Path, bytes, bytearray, memoryview, dict))
        single = single or any(hasattr(inputs, name) for name in ("__array__", "get_all_samples", "read"))
        rows = [inputs] if single else inputs
        return (row["audio"] if isinstance(row, dict) and "audio" in row else row for row in rows), single

    def _forward(self, sources: Iterable, **parameters) -> Iterator[Transcript]:
        return transcribe(self.model, self.processor, sources, **parameters)

    def postprocess(
        self,
        transcript: Transcript,
        single: bool,
        return_timestamps: bool | str = False,
        formats: tuple[str, ...] = (),
        alternatives: bool = False,
    ) -> dict:
        """The answer of the task for one sound."""
        result = {"text": transcript.text}
        if transcript.error:
            if single:
                raise transcript.error
            warnings.warn(str(transcript.error), AudioWarning, stacklevel=2)
            result["error"] = str(transcript.error)
        if return_timestamps == "char":
            result["chunks"] = characters_of(transcript)
        elif return_timestamps:
            result["chunks"] = [{"text": c.text, "timestamp": (c.start, c.end)} for c in transcript.chunks]
        if alternatives:
            result["alternatives"] = [{"text": text, "score": score} for text, score in transcript.alternatives]
        return result | {name: FORMATS[name](transcript) for name in formats}


__all__ = ["PinyinLlamaPipeline", "transcribe"]
