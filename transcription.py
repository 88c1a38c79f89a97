"""Files -> texts and lines of pinyin -> texts: read as they are needed, with a result for each in the order given."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.audio_pinyin_llm import SAMPLING_RATE, AudioError, AudioWarning, read_pieces, why_no_speech
from pinyin_llm.generation_pinyin_llm import convert_pinyin, transcribe_clips
from pinyin_llm.tokenization_pinyin_llm import PinyinError


MINI_MODEL = Path(__file__).parent / "checkpoints" / "mini"


@dataclass
class Result:
    """What became of one file or line.

    Args:
        source: The file or line, as it was given.
        text: Its characters; empty where nothing is said, and after an error.
        error: Why there is no text, what was expected instead.
        why_empty: What an empty text without error means.
    """

    source: str
    text: str = ""
    error: str | None = None
    why_empty: str = "nothing was heard"


def load_model(name: str | Path = MINI_MODEL) -> tuple[PinyinLlamaForASR, PinyinLlamaProcessor]:
    """The folder or Hub id of a checkpoint -> model and processor, on the GPU if there is one.

    Raises:
        OSError, ValueError: No such checkpoint, or one that is not whole.
    """
    if name == MINI_MODEL and not MINI_MODEL.is_dir():
        raise OSError(f"{MINI_MODEL}: the release's model is not here. Name another with --model FOLDER or HUB_ID.")
    on_gpu = torch.cuda.is_available()
    # Many laptops are slow at bfloat16.
    model = PinyinLlamaForASR.from_pretrained(name, dtype="auto" if on_gpu else torch.float32)
    return model.eval().to("cuda" if on_gpu else "cpu"), PinyinLlamaProcessor.from_pretrained(name)


def transcribe_files(
    model,
    processor,
    files: Iterable[str | Path],
    batch_size: int = 8,
    on_progress: Callable[[float], None] = lambda seconds: None,
    **kwargs,
) -> Iterator[Result]:
    """Sound files of any length, rate and number of channels -> a [`Result`] each, in the order given.

    No more than `batch_size` pieces of up to 15 s are in memory. A file that cannot be read does not stop the others.

    Args:
        on_progress: Called with the seconds of speech that have just been written.
        **kwargs: For `write_characters`, e.g. `num_beams=3`.
    """
    waiting: list[Result] = []
    batch: list[tuple[Result, np.ndarray]] = []

    def write():
        texts = transcribe_clips(model, processor, [piece for _, piece in batch], batch_size, **kwargs)
        for (result, piece), text in zip(batch, texts, strict=True):
            result.text += "" if result.error else text
            on_progress(len(piece) / SAMPLING_RATE)
        batch.clear()

    for file in files:
        waiting.append(Result(str(file)))
        for piece in _speech(waiting[-1]):
            batch.append((waiting[-1], piece))
            if len(batch) == batch_size:
                write()
                yield from _finish(waiting[:-1])
                del waiting[:-1]
    write()
    yield from _finish(waiting)


def _finish(results: list[Result]) -> Iterator[Result]:
    """Results on their way out, with a warning for each that says nothing."""
    for result in results:
        if not result.text and not result.error:
            warnings.warn(f"{result.source}: {result.why_empty}; its text is empty.", AudioWarning, stacklevel=2)
        yield result


def _speech(result: Result) -> Iterator[np.ndarray]:
    """The pieces of a file in which somebody may speak; the result says why there are none."""
    reasons = []
    try:
        for piece in read_pieces(result.source):
            reasons.append(why_no_speech(piece))
            if reasons[-1] is None:
                yield piece
    except AudioError as error:
        result.error, result.text = str(error), ""
        return
    if None not in reasons:
        result.why_empty = reasons[0]


def convert_lines(model, processor, lines: Iterable[str], batch_size: int = 32, **kwargs) -> Iterator[Result]:
    """Lines of written pinyin, toned or not -> a [`Result`] each, in the order given.

    Args:
        **kwargs: For `write_characters`, e.g. `num_beams=3`.
    """
    numbered = enumerate(lines, start=1)
    while batch := list(islice(numbered, batch_size)):
        results = [Result(line.strip()) for _, line in batch]
        rows = [_syllables(processor, result, number) for result, (number, _) in zip(results, batch, strict=True)]
        for result, text in zip(results, convert_pinyin(model, processor, rows, batch_size, **kwargs), strict=True):
            result.text = text
            yield result


def _syllables(processor, result: Result, number: int) -> list[tuple[int, ...]]:
    try:
        return processor.pinyin_tokenizer.encode_syllables(result.source)
    except PinyinError as error:
        result.error = f"line {number}: {error}"
        return []
