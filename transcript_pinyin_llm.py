"""What was said in a sound: chunks with times, the syllables heard, N-best; and all that as txt, srt, vtt, tsv or json."""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from .audio_pinyin_llm import AudioError
from .generation_pinyin_llm import Syllable, join_ranked


CUE_CHARACTERS = 20  # a line of subtitles
PAUSE_SECONDS = 0.6  # a syllable and the silence behind it; spoken on, it takes 0.1 to 0.4


@dataclass
class Chunk:
    """A stretch of speech between two pauses, with times in seconds of the whole sound.

    Args:
        heard: The syllables that the bridge heard, one a character; empty without a bridge.
        alternatives: The best texts and their scores, if several were asked for.
    """

    start: float
    end: float
    text: str = ""
    heard: list[Syllable] = field(default_factory=list)
    alternatives: list[tuple[str, float]] = field(default_factory=list)

    @property
    def is_paired(self) -> bool:
        """Whether each character has the syllable that it was written for."""
        return len(self.heard) == len(self.text)


@dataclass
class Transcript:
    """What became of one sound.

    Args:
        source: As it was given.
        chunks: What was said, in order of time.
        seconds: Length of the sound.
        error: Why there is no text, and what was expected instead.
        why_empty: What an empty text without error means.
    """

    source: object
    chunks: list[Chunk] = field(default_factory=list)
    seconds: float = 0.0
    error: AudioError | None = None
    why_empty: str = "nothing was heard"

    @property
    def name(self) -> str:
        """The path or address of the sound; bytes and arrays have none."""
        return str(self.source) if isinstance(self.source, (str, Path)) else "sound"

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def alternatives(self) -> list[tuple[str, float]]:
        """The best texts of the whole sound and their scores."""
        return join_ranked([chunk.alternatives for chunk in self.chunks])


def as_txt(transcript: Transcript) -> str:
    return f"{transcript.text}\n"


def as_tsv(transcript: Transcript) -> str:
    """file TAB text, as `pinyin-llm score` reads it; tabs and line breaks of a name become blanks."""
    name = re.sub(r"[\t\n\r]", " ", transcript.name)
    if name != transcript.name:
        warnings.warn(f"{transcript.name!r} is written as {name!r}. Rename the file, or take json.", stacklevel=2)
    return f"{name}\t{transcript.text}\n"


def as_json(transcript: Transcript) -> str:
    return json.dumps(as_dict(transcript), ensure_ascii=False, indent=2) + "\n"


def as_dict(transcript: Transcript) -> dict:
    """All that is known: file, text, seconds; chunks with times; the syllables heard; alternatives, if asked for."""
    known = {"file": transcript.name, "text": transcript.text, "seconds": round(transcript.seconds, 2)}
    if transcript.error:
        known["error"] = str(transcript.error)
    known["chunks"] = [{"start": c.start, "end": c.end, "text": c.text} for c in transcript.chunks]
    heard = chain.from_iterable(chunk.heard for chunk in transcript.chunks)
    known["heard"] = [
        {"pinyin": s.pinyin, "start": s.start, "end": s.end, "confidence": round(s.confidence, 3)} for s in heard
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
    """A chunk of the pipeline for each character: text, timestamp, and the pinyin heard with its confidence.

    Without a bridge, or where characters and syllables cannot be paired, a chunk is a piece between pauses.
    """
    rows = []
    for chunk in transcript.chunks:
        if not chunk.is_paired:
            rows.append({"text": chunk.text, "timestamp": (chunk.start, chunk.end), "pinyin": "", "confidence": 1.0})
            continue
        for character, heard in zip(chunk.text, chunk.heard, strict=True):
            times = (heard.start, heard.end)
            rows.append({"text": character, "timestamp": times, "pinyin": heard.pinyin, "confidence": heard.confidence})
    return rows


FORMATS = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt, "tsv": as_tsv, "json": as_json}


def subtitles(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of each line: cut at pauses where the bridge heard when each character was said."""
    for chunk in filter(lambda chunk: chunk.text, transcript.chunks):
        if chunk.is_paired:
            yield from _lines(chunk)
        else:
            yield chunk.start, chunk.end, chunk.text


def _lines(chunk: Chunk) -> Iterator[tuple[float, float, str]]:
    first = 0
    for place, syllable in enumerate(chunk.heard):
        paused = syllable.end - syllable.start >= PAUSE_SECONDS
        if place + 1 == len(chunk.heard) or paused or place + 1 - first == CUE_CHARACTERS:
            yield chunk.heard[first].start, syllable.end, chunk.text[first : place + 1]
            first = place + 1


def _clock(seconds: float, point: str) -> str:
    """12.5 -> 00:00:12,500"""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"


__all__ = ["FORMATS", "Chunk", "Transcript", "as_dict", "as_srt", "as_vtt", "characters_of"]
