"""Files of the command line: which sounds it reads, where it writes transcripts, and lines of pinyin."""

import glob
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from uuid import uuid4

from ..audio_pinyin_llm import AudioWarning
from ..scoring.cer import name_some, read_texts, suffix_hint
from ..scoring.normalization import normalize_text
from ..tokenization_pinyin_llm import PinyinError
from ..transcription_pinyin_llm import convert_pinyin


SOUND_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64"}
UNREADABLE_SUFFIXES = {".m4a", ".mp4", ".aac", ".amr", ".webm", ".wma", ".mkv"}  # libsndfile cannot read them
SOURCES = ".sources.jsonl"  # of an output folder: a transcript and its sound per line


@dataclass
class LineResult:
    """The result for one line of pinyin.

    Args:
        source: The line as it was given.
        text: Its characters; empty after an error.
        error: Why there is no text.
    """

    source: str
    text: str = ""
    error: str | None = None


def find_sounds(names: list[str]) -> dict[str, str]:
    """Files, folders (with their subfolders) and patterns -> {sound file: its relative path in an output folder}.

    A name that matches nothing stays in the list, to be reported with the files that cannot be read.
    """
    found = {}
    for name in names:
        folder = Path(name)
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if not path.name.startswith("._"))  # macOS' metadata
            inside = [path for path in files if path.suffix.lower() in SOUND_SUFFIXES]
            if left_out := [path for path in files if path.suffix.lower() in UNREADABLE_SUFFIXES]:
                found_so = f"{len(left_out)} sounds that cannot be read, such as {left_out[0].name}"
                warnings.warn(f"{name}: {found_so}, are left out. Convert them to wav.", AudioWarning, stacklevel=2)
            if not inside:
                raise ValueError(
                    f"{name}: expected sounds ({', '.join(sorted(SOUND_SUFFIXES))}), found none in this folder."
                )
            found |= {str(path): str(path.relative_to(folder)) for path in inside}
        else:
            matching = [name] if folder.exists() else sorted(glob.glob(name, recursive=True)) or [name]
            found |= {path: Path(path).name for path in matching}
    return found


def match_texts(sounds: list[str], table: str) -> list[str | None]:
    """The text of each sound in a table of file and text, its numbers read aloud; `None` where there is none.

    Files are matched by path, or else by name.

    Raises:
        ValueError: A table that cannot be read, or that has no text for any of the sounds.
    """
    texts = {file: normalize_text(text) for file, text in read_texts(table).items()}
    by_name = {Path(file).name: text for file, text in texts.items()}
    found = [texts.get(sound, by_name.get(Path(sound).name)) for sound in sounds]
    missing = [sound for sound, text in zip(sounds, found, strict=True) if text is None]
    hint = suffix_hint({Path(sound).name for sound in missing}, by_name)
    if len(missing) == len(sounds):
        expected = f"expected texts for the sounds, found none for any of them: {name_some(missing)}"
        raise ValueError(f"{table}: {expected}.{hint}")
    if missing:
        message = f"{table} has no text for {len(missing)} sounds: {name_some(missing)}."
        warnings.warn(message, AudioWarning, stacklevel=2)
    return found


def plan_outputs(sounds: dict[str, str], folder: str, suffix: str) -> dict[str, Path]:
    """{sound file: its transcript}; for talk.wav and talk.ogg in one folder, talk.wav.txt and talk.ogg.txt.

    Raises:
        ValueError: Two sounds whose transcripts would be one file, or an output folder that is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"{folder}: expected a folder for the output, found a file.")
    stems = Counter(Path(relative).with_suffix("") for relative in sounds.values())
    taken: dict[Path, str] = {}
    for sound, relative in sounds.items():
        is_unique = stems[Path(relative).with_suffix("")] == 1
        target = Path(folder, relative).with_suffix(f".{suffix}") if is_unique else Path(folder, f"{relative}.{suffix}")
        _claim(target, sound, taken)
    return {sound: target for target, sound in taken.items()}


def plan_corrections(files: list[str], folder: str) -> dict[str, Path]:
    """{text file: its corrected file of the same name in `folder`}.

    Raises:
        ValueError: Two files of one name, or a file that would be overwritten.
    """
    taken: dict[Path, str] = {}
    for file in files:
        target = Path(folder, Path(file).name)
        if target.resolve() == Path(file).resolve():
            raise ValueError(f"{file} would be overwritten. Choose another -o DIR.")
        _claim(target, file, taken)
    return {file: target for target, file in taken.items()}


def _claim(target: Path, source: str, taken: dict[Path, str]) -> None:
    """Note whose output `target` is; an error if it is another's already."""
    if target in taken:
        raise ValueError(f"{taken[target]} and {source} would both be written to {target}. Give each its own -o DIR.")
    taken[target] = source


def find_done(targets: dict[str, Path], folder: str) -> set[str]:
    """The sounds whose transcripts are in `folder` already.

    Raises:
        ValueError: A transcript there belongs to another sound, according to `note_source`.
    """
    index = Path(folder, SOURCES)
    lines = index.read_text("utf-8").split("\n") if index.exists() else []
    source_of = dict(json.loads(line) for line in lines if line.endswith("]"))  # a full disk may have cut a line off
    done = {sound for sound, target in targets.items() if target.exists()}
    for sound in sorted(done):
        own = os.path.realpath(sound)
        other = source_of.get(str(targets[sound].relative_to(folder)), own)
        if other != own:
            hint = f"Give {sound} another -o DIR; if it was moved, remove {index}."
            raise ValueError(f"{targets[sound]} is the transcript of {other}. {hint}")
    return done


def note_source(sound: str, target: Path, folder: str) -> None:
    """Record which sound a transcript in `folder` was made from."""
    line = json.dumps([str(target.relative_to(folder)), os.path.realpath(sound)])
    with Path(folder, SOURCES).open("a", encoding="utf-8") as index:
        index.write(f"\n{line}")


def write_whole(target: Path, text: str) -> None:
    """Write a file in one step: a job that is killed leaves no partial transcript, which would count as done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{uuid4().hex}.unfinished")  # short: the name itself may be as long as names can be
    try:
        unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def convert_lines(model, processor, lines: Iterable[str], batch_size: int = 32, **kwargs) -> Iterator[LineResult]:
    """Lines of pinyin, toned or not -> one [`LineResult`] each, in the order given.

    Args:
        **kwargs: For `decode_rows`, e.g. `num_beams=3`.
    """
    numbered = enumerate(lines, start=1)
    while batch := list(islice(numbered, batch_size)):
        results = [LineResult(line.strip()) for _, line in batch]
        rows = [_parse_line(processor, result, number) for result, (number, _) in zip(results, batch, strict=True)]
        for result, text in zip(results, convert_pinyin(model, processor, rows, batch_size, **kwargs), strict=True):
            result.text = text
            yield result


def _parse_line(processor, result: LineResult, number: int) -> list[tuple[int, ...]]:
    """The syllables of a line; none, and an error in its result, if it cannot be read."""
    try:
        return processor.pinyin_tokenizer.encode_syllables(result.source)
    except PinyinError as error:
        result.error = f"line {number}: {error}"
        return []
