"""Files that `pinyin-llm correct` takes: txt, tsv, srt and vtt, returned in the same form.

A file is cut into parts of text and of everything else, which stays to the byte.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from ..scoring.cer import FILE_COLUMNS
from .corrector import Correction, correct


LINES_AT_ONCE = 256
LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|$)")
BYTE_ORDER_MARK = "\ufeff"
TIMES = re.compile(r"\s*(?:\d+:)?\d+:\d+[.,]\d+\s+-->\s+(?:\d+:)?\d+:\d+[.,]\d+")
NOT_CUES = ("WEBVTT", "NOTE", "STYLE", "REGION")  # first words of the blocks of a vtt that are not speech
RED, GREEN, PLAIN = "\033[31m", "\033[32m", "\033[0m"


@dataclass
class Part:
    """A part of a file; `line` counts from 1."""

    content: str
    is_text: bool
    line: int


def read_parts(path: str | Path, form: str | None = None) -> list[Part]:
    """A file -> its parts in order.

    Args:
        form: "txt", "tsv", "srt" or "vtt"; by default from the name, txt if it has another suffix.

    Raises:
        ValueError: No such file, not in UTF-8, or a line of a tsv without a text.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: expected a text file, found {'a folder' if Path(path).is_dir() else 'none'}.")
    try:
        content = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found something else ({error}). Convert it with iconv.") from error
    form = form or Path(path).suffix.lower().removeprefix(".")
    try:
        return list(cut(content, form))
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error


def cut(content: str, form: str) -> Iterator[Part]:
    """The content of a file -> its parts, which joined are the content again."""
    if content.startswith(BYTE_ORDER_MARK):
        yield Part(BYTE_ORDER_MARK, False, 1)
        content = content.removeprefix(BYTE_ORDER_MARK)
    lines = [match.groups() for match in LINE.finditer(content) if match[0]]
    texts = [line for line, _ in lines]
    spans = {"tsv": _tsv_spans, "srt": _cue_spans, "vtt": _cue_spans}.get(form, _txt_spans)(texts)
    for number, ((line, end), (start, stop)) in enumerate(zip(lines, spans, strict=True), start=1):
        yield Part(line[:start], False, number)
        yield Part(line[start:stop], True, number)
        yield Part(line[stop:] + end, False, number)


def _txt_spans(lines: list[str]) -> list[tuple[int, int]]:
    return [(0, len(line)) for line in lines]


def _tsv_spans(lines: list[str]) -> list[tuple[int, int]]:
    """The text column of each line; empty for a header and for blank lines."""
    header = lines[0].lower().split("\t") if lines else []
    has_header = "text" in header and bool(FILE_COLUMNS & set(header))
    column = header.index("text") if has_header else 1
    spans = []
    for number, line in enumerate(lines, start=1):
        cells = line.split("\t")
        if (has_header and number == 1) or not line.strip():
            spans.append((0, 0))
            continue
        if len(cells) <= column:
            raise ValueError(f"line {number}: expected file TAB text, found {line!r}.")
        start = sum(len(cell) + 1 for cell in cells[:column])
        spans.append((start, start + len(cells[column])))
    return spans


def _cue_spans(lines: list[str]) -> list[tuple[int, int]]:
    """The lines below the times of subtitles, up to the next blank line."""
    spans, in_cue = [], False
    for line in lines:
        is_times = bool(TIMES.match(line))
        in_cue = bool(line.strip()) and (in_cue or is_times)
        is_text = in_cue and not is_times and not line.startswith(NOT_CUES)
        spans.append((0, len(line) if is_text else 0))
    return spans


def correct_parts(model, processor, parts: list[Part], **kwargs) -> list[tuple[Part, Correction | None]]:
    """Each part with its correction; `None` for everything but text.

    Args:
        **kwargs: For `correct`, e.g. `strength=1.5`.
    """
    corrections = iter(correct(model, processor, [p.content for p in parts if p.is_text], **kwargs))
    return [(part, next(corrections) if part.is_text else None) for part in parts]


def correct_lines(model, processor, lines: Iterable[str], at_once: int = LINES_AT_ONCE, **kwargs) -> Iterator[str]:
    """Lines of stdin -> the corrected lines, with their line ends, as they come."""
    lines = iter(lines)
    while batch := list(islice(lines, at_once)):
        parts = [part for line in batch for part in cut(line, "txt")]
        yield as_text(correct_parts(model, processor, parts, **kwargs))


def as_text(results: list[tuple[Part, Correction | None]]) -> str:
    """The file with its corrections."""
    return "".join(correction.text if correction else part.content for part, correction in results)


def as_json(results: list[tuple[Part, Correction | None]]) -> str:
    """One JSON object per line of text: its number, the text before and after, and each change."""
    rows = []
    for part, correction in results:
        if correction and part.content:
            row = {"line": part.line, "before": part.content, "text": correction.text}
            rows.append(row | {"changes": [asdict(change) for change in correction.changes]})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_diff(results: list[tuple[Part, Correction | None]], in_color: bool | None = None) -> str:
    """The changed lines with their changes marked: 也成为地方政府的眼中[丁→钉]"""
    in_color = sys.stdout.isatty() if in_color is None else in_color
    before, arrow, after = (RED, f"{PLAIN}{GREEN}", PLAIN) if in_color else ("[", "→", "]")
    shown = []
    for part, correction in results:
        if correction and correction.changes:
            line, end = "", 0
            for change in correction.changes:
                line += f"{part.content[end : change.start]}{before}{change.before}{arrow}{change.after}{after}"
                end = change.end
            shown.append(f"{part.line}: {line}{part.content[end:]}\n")
    return "".join(shown)


FORMS = {"text": as_text, "json": as_json, "diff": as_diff}
