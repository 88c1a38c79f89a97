"""transformers' `pipeline("automatic-speech-recognition")` for this model."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import Pipeline

from .audio_pinyin_llm import AudioWarning
from .transcript_pinyin_llm import FORMATS, Transcript, characters_of, words_of
from .transcription_pinyin_llm import transcribe


LONGEST_WINDOW_SECONDS = 30.0  # of the audio tower
TASK = "automatic-speech-recognition"
TIMESTAMPS = (None, False, True, "chunk", "word", "char")
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_pinyin_llm.PinyinLlamaPipeline",
        "pt": ["AutoModelForSpeechSeq2Seq"],
        "type": "multimodal",
    }
}


class PinyinLlamaPipeline(Pipeline):
    """Speech -> text, as transformers' `pipeline` does it.

    One sound (path, URL, bytes, array at 16 kHz, {"raw" or "array": ..., "sampling_rate": ...}) gives {"text": ...},
    and raises if it cannot be read. A list gives a list, a dataset or generator gives a generator; there, a sound that
    cannot be read has an "error" beside its empty text, and the others go on.

    Args:
        batch_size: Pieces at once.
        chunk_length_s: Longer sounds are cut at pauses; 30 s at most.
        return_timestamps: True or "chunk" adds "chunks": [{"text", "timestamp": (start, end)}], cut at pauses; "word"
            and "char" have a chunk for each word or character, with its "pinyin" and "confidence".
        num_return_sequences: From 2 on adds "alternatives": [{"text", "score"}], best first.
        formats: Adds the text as "txt", "srt", "vtt", "tsv" or "json", each under its name.
        recognizers: ["bridge"], or ["bridge", "whisper"] for both combined; the configuration gives the default.
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
        recognizers=None,
        generate_kwargs=None,
        **unknown,
    ):
        if unknown:
            raise ValueError(f"Unknown: {', '.join(unknown)}. What `generate` takes goes into generate_kwargs={{...}}.")
        if return_timestamps not in TIMESTAMPS:
            raise ValueError(f"return_timestamps must be one of {TIMESTAMPS}, found {return_timestamps!r}.")
        if chunk_length_s and not 1 <= chunk_length_s <= LONGEST_WINDOW_SECONDS:
            raise ValueError(f"chunk_length_s must be 1 to {LONGEST_WINDOW_SECONDS:g}, found {chunk_length_s}.")
        if wrong := set(formats or ()) - FORMATS.keys():
            raise ValueError(f"formats must be of {', '.join(FORMATS)}, found {', '.join(sorted(wrong))}.")
        forward = dict(generate_kwargs or {})
        forward |= {"longest_seconds": chunk_length_s} if chunk_length_s else {}
        forward |= {"num_return_sequences": num_return_sequences} if num_return_sequences else {}
        forward |= {"recognizers": recognizers} if recognizers else {}
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
        elif return_timestamps == "word":
            result["chunks"] = words_of(transcript)
        elif return_timestamps:
            result["chunks"] = [{"text": c.text, "timestamp": (c.start, c.end)} for c in transcript.chunks]
        if alternatives:
            result["alternatives"] = [{"text": text, "score": score} for text, score in transcript.alternatives]
        return result | {name: FORMATS[name](transcript) for name in formats}


__all__ = ["PinyinLlamaPipeline", "transcribe"]
