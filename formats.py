"""A transcript as txt, srt, vtt, tsv or json."""

import json
import re
from collections.abc import Iterator
from itertools import chain

from pinyin_llm.pipeline_pinyin_llm import Chunk, Transcript


CUE_CHARACTERS = 20  # a line of subtitles
PAUSE_SECONDS = 0.6  # a syllable and the silence behind it; spoken on, it takes 0.1 to 0.4


def as_txt(transcript: Transcript) -> str:
    return f"{transcript.text}\n"


def as_tsv(transcript: Transcript) -> str:
    """file TAB text, as `pinyin-llm score` reads it; tabs and line breaks of a name become blanks."""
    name = re.sub(r"[\t\n\r]", " ", str(transcript.source))
    return f"{name}\t{transcript.text}\n"


def as_json(transcript: Transcript) -> str:
    return json.dumps(as_dict(transcript), ensure_ascii=False, indent=2) + "\n"


def as_dict(transcript: Transcript) -> dict:
    """All that is known: file, text, seconds; chunks with times; the syllables heard; alternatives, if asked for."""
    known = {"file": str(transcript.source), "text": transcript.text, "seconds": round(transcript.seconds, 2)}
    if transcript.error:
        known["error"] = str(transcript.error)
    known["chunks"] = [{"start": c.start, "end": c.end, "text": c.text} for c in transcript.chunks]
    heard = chain.from_iterable(chunk.heard for chunk in transcript.chunks)
    known["heard"] = [
        {"pinyin": s.pinyin, "start": s.start, "end": s.end, "confidence": round(s.confidence, 3)} for s in heard
    ]
    if transcript.alternatives:
        known["alternatives"] = [{"text": text, "score": round(score, 3)} for text, score in transcript.alternatives]
    return known


def as_srt(transcript: Transcript) -> str:
    cues = enumerate(subtitles(transcript), start=1)
    return "".join(f"{i}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n" for i, (start, end, text) in cues)


def as_vtt(transcript: Transcript) -> str:
    cues = subtitles(transcript)
    return "WEBVTT\n\n" + "".join(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n\n" for start, end, text in cues)


FORMATS = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt, "tsv": as_tsv, "json": as_json}


def subtitles(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of each line: cut at pauses where the bridge heard when each character was said."""
    for chunk in filter(lambda chunk: chunk.text, transcript.chunks):
        if len(chunk.heard) == len(chunk.text):
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
