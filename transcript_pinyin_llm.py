"""The transcript of a sound: chunks with times, syllables, alternatives; formats txt, srt, vtt, tsv and json."""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from .audio_pinyin_llm import AudioError


CUE_CHARACTERS = 20  # a line of subtitles
PAUSE_SECONDS = 0.6  # a syllable and the silence after it; in running speech a syllable takes 0.1 to 0.4 s


@dataclass
class Syllable:
    """A syllable that the bridge recognised.

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
class Chunk:
    """A stretch of speech between two pauses, with times in seconds of the whole sound.

    Args:
        syllables: The syllables recognised, one per character; empty without a bridge.
        alternatives: The best hypotheses with their scores, if several were requested.
    """

    start: float
    end: float
    text: str = ""
    syllables: list[Syllable] = field(default_factory=list)
    alternatives: list[tuple[str, float]] = field(default_factory=list)

    @property
    def is_paired(self) -> bool:
        """Whether each character has its syllable."""
        return len(self.syllables) == len(self.text)


@dataclass
class Transcript:
    """The result for one sound.

    Args:
        source: The sound as it was given.
        chunks: The speech in it, in order of time.
        seconds: Length of the sound.
        error: Why there is no text.
        why_empty: What an empty text without an error means.
    """

    source: object
    chunks: list[Chunk] = field(default_factory=list)
    seconds: float = 0.0
    error: AudioError | None = None
    why_empty: str = "no speech was recognised"

    @property
    def name(self) -> str:
        """The path or URL of the sound; bytes and arrays have none."""
        return str(self.source) if isinstance(self.source, (str, Path)) else "sound"

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def alternatives(self) -> list[tuple[str, float]]:
        """The best hypotheses of the whole sound with their scores."""
        return join_hypotheses([chunk.alternatives for chunk in self.chunks])


def join_hypotheses(parts: list[list[tuple[str, float]]]) -> list[tuple[str, float]]:
    """The best hypotheses of each part -> those of the whole: parts are decoded separately, so their scores add up."""
    best = [("", 0.0)]
    for part in parts:
        joined = []
        for text, score in best:
            joined += [(text + more, score + plus) for more, plus in part]
        best = sorted(joined or best, key=lambda hypothesis: -hypothesis[1])[: max(len(part), len(best))]
    return best if any(parts) else []


def as_txt(transcript: Transcript) -> str:
    return f"{transcript.text}\n"


def as_tsv(transcript: Transcript) -> str:
    """file TAB text, as `pinyin-llm score` reads it; tabs and line breaks in a name become spaces."""
    name = re.sub(r"[\t\n\r]", " ", transcript.name)
    if name != transcript.name:
        warnings.warn(f"{transcript.name!r} is written as {name!r}. Rename the file, or choose json.", stacklevel=2)
    return f"{name}\t{transcript.text}\n"


def as_json(transcript: Transcript) -> str:
    return json.dumps(as_dict(transcript), ensure_ascii=False, indent=2) + "\n"


def as_dict(transcript: Transcript) -> dict:
    """All that is known: file, text, seconds; chunks with times; the syllables; alternatives if requested."""
    known = {"file": transcript.name, "text": transcript.text, "seconds": round(transcript.seconds, 2)}
    if transcript.error:
        known["error"] = str(transcript.error)
    known["chunks"] = [{"start": c.start, "end": c.end, "text": c.text} for c in transcript.chunks]
    syllables = chain.from_iterable(chunk.syllables for chunk in transcript.chunks)
    known["heard"] = [  # the name of this field since 0.1.0
        {"pinyin": s.pinyin, "start": s.start, "end": s.end, "confidence": round(s.confidence, 3)} for s in syllables
    ]
    if alternatives := transcript.alternatives:
        known["alternatives"] = [{"text": text, "score": round(score, 3)} for text, score in alternatives]
    return known


def as_srt(transcript: Transcript) -> str:
    return "".join(f"{i}\n{cue}" for i, cue in enumerate(_cues(transcript, ","), start=1))


def as_vtt(transcript: Transcript) -> str:
    return "WEBVTT\n\n" + "".join(_cues(transcript, "."))


def _cues(transcript: Transcript, point: str) -> Iterator[str]:
    for start, end, text in subtitles(transcript):
        yield f"{_clock(start, point)} --> {_clock(end, point)}\n{text}\n\n"


def characters_of(transcript: Transcript) -> list[dict]:
    """One entry per character, as the pipeline returns it: text, timestamp, pinyin and confidence.

    Without a bridge, or where characters and syllables cannot be paired, one entry per chunk.
    """
    rows = []
    for chunk in transcript.chunks:
        if not chunk.is_paired:
            rows.append({"text": chunk.text, "timestamp": (chunk.start, chunk.end), "pinyin": "", "confidence": 1.0})
            continue
        for character, syllable in zip(chunk.text, chunk.syllables, strict=True):
            rows.append(
                {
                    "text": character,
                    "timestamp": (syllable.start, syllable.end),
                    "pinyin": syllable.pinyin,
                    "confidence": syllable.confidence,
                }
            )
    return rows


def words_of(transcript: Transcript) -> list[dict]:
    """One entry per word, as [`characters_of`]: from the start of its first character to the end of its last one.

    The pinyin of its characters is separated by spaces, and its confidence is that of the least certain one.
    """
    characters = characters_of(transcript)
    rows, first = [], 0
    for chunk in transcript.chunks:
        if not chunk.is_paired:
            rows.append(characters[first])
            first += 1
            continue
        for word in split_into_words(chunk.text):
            own = characters[first : first + len(word)]
            first += len(word)
            rows.append(
                {
                    "text": word,
                    "timestamp": (own[0]["timestamp"][0], own[-1]["timestamp"][1]),
                    "pinyin": " ".join(character["pinyin"] for character in own),
                    "confidence": min(character["confidence"] for character in own),
                }
            )
    return rows


def split_into_words(text: str) -> list[str]:
    """Text -> its words, which joined are the text again.

    Raises:
        ImportError: rjieba is not installed.
    """
    try:  # transformers demands what a file imports outside of `try`, and only words need rjieba
        from rjieba import cut
    except ImportError as error:
        raise ImportError("Words need rjieba, which is not installed: pip install rjieba.") from error
    return cut(text)


FORMATS = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt, "tsv": as_tsv, "json": as_json}


def subtitles(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of each line, cut at pauses where the times of the characters are known."""
    for chunk in filter(lambda chunk: chunk.text, transcript.chunks):
        if chunk.is_paired:
            yield from _lines(chunk)
        else:
            yield chunk.start, chunk.end, chunk.text


def _lines(chunk: Chunk) -> Iterator[tuple[float, float, str]]:
    first = 0
    for index, syllable in enumerate(chunk.syllables):
        is_last = index + 1 == len(chunk.syllables)
        has_pause = syllable.end - syllable.start >= PAUSE_SECONDS
        if is_last or has_pause or index + 1 - first == CUE_CHARACTERS:
            yield chunk.syllables[first].start, syllable.end, chunk.text[first : index + 1]
            first = index + 1


def _clock(seconds: float, point: str) -> str:
    """12.5 -> 00:00:12,500"""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"


__all__ = [
    "FORMATS",
    "Chunk",
    "Syllable",
    "Transcript",
    "as_dict",
    "as_srt",
    "as_vtt",
    "characters_of",
    "join_hypotheses",
    "words_of",
]
