"""What the command line works on: a checkpoint, sound files by name, folder or pattern, lines of pinyin."""

import glob
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from uuid import uuid4

import torch

from .. import PinyinLlamaForASR, PinyinLlamaProcessor
from ..audio_pinyin_llm import AudioWarning
from ..generation_pinyin_llm import convert_pinyin
from ..tokenization_pinyin_llm import PinyinError


MINI_MODEL = Path(__file__).parents[1]
TOPIC_SHARE = 0.5  # of the words of a given text
SOUND_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64"}
SOURCES = ".sources.jsonl"  # of an output folder: a transcript and its sound each line
OTHER_SOUNDS = {".m4a", ".mp4", ".aac", ".amr", ".webm", ".wma", ".mkv"}  # libsndfile cannot read them


@dataclass
class Result:
    """What became of one line.

    Args:
        source: The line, as it was given.
        text: Its characters; empty after an error.
        error: Why there is no text, what was expected instead.
    """

    source: str
    text: str = ""
    error: str | None = None


def load_model(name: str | Path = MINI_MODEL) -> tuple[PinyinLlamaForASR, PinyinLlamaProcessor]:
    """The folder or Hub id of a checkpoint -> model and processor, on the GPU if there is one.

    On a CPU weights are float32, for many laptops are slow at bfloat16; one that has instructions for it encodes in it.
    The language model stays float32: there it is exact, and as fast on single clips.

    Raises:
        OSError, ValueError: No such checkpoint, or one that is not whole.
    """
    if name == MINI_MODEL and not (MINI_MODEL / "model.safetensors").is_file():
        raise OSError(f"{MINI_MODEL}: the release's model is not here. Name another with --model FOLDER or HUB_ID.")
    on_gpu = torch.cuda.is_available()
    model = PinyinLlamaForASR.from_pretrained(name, dtype="auto" if on_gpu else torch.float32)
    known = torch.cpu.get_capabilities()
    if not on_gpu and (known.get("amx_bf16") or known.get("avx512_bf16")):
        model.audio_tower.bfloat16()
    return model.eval().to("cuda" if on_gpu else "cpu"), PinyinLlamaProcessor.from_pretrained(name)


def read_words(processor: PinyinLlamaProcessor, file: str | Path) -> None:
    """Text of any kind: from now on beam search leans towards its words where several sound the same.

    Raises:
        OSError, ValueError: No such file, not in UTF-8, or no Han characters in it.
    """
    from ..ngrams_pinyin_llm import CharacterNgrams, MixedNgrams
    from ..scoring.normalization import HAN, read_aloud

    try:
        text = Path(file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, found other bytes. Save it as UTF-8.") from error
    # whatever is no Han character ends a line: a name beside a room number, a word of two beside a Latin one, count too
    lines = re.findall(f"{HAN.pattern}+", read_aloud(text))
    if not lines:
        raise ValueError(f"{file}: expected sentences or names in Han characters, found none.")
    topic = CharacterNgrams.from_lines(lines, least=1)
    processor.ngrams = MixedNgrams(processor.ngrams, topic, TOPIC_SHARE) if processor.ngrams else topic


def find_sounds(names: list[str]) -> dict[str, str]:
    """Files, folders (searched through) and patterns -> {sound file: its place in an output folder}.

    What names nothing stays in the list, to be reported with the files that cannot be read.
    """
    found = {}
    for name in names:
        folder = Path(name)
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if not path.name.startswith("._"))  # macOS' own notes
            inside = [path for path in files if path.suffix.lower() in SOUND_SUFFIXES]
            if left_out := [path for path in files if path.suffix.lower() in OTHER_SOUNDS]:
                found_so = f"{len(left_out)} sounds that cannot be read, as {left_out[0].name}"
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


def plan_outputs(sounds: dict[str, str], folder: str, suffix: str) -> dict[str, Path]:
    """{sound file: where its transcript goes}; of talk.wav and talk.ogg in one folder, talk.wav.txt and talk.ogg.txt.

    Raises:
        ValueError: Two sounds whose transcripts would be one file, or an output folder that is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"{folder}: expected a folder for the output, found a file.")
    stems = Counter(Path(place).with_suffix("") for place in sounds.values())
    taken: dict[Path, str] = {}
    for sound, place in sounds.items():
        alone = stems[Path(place).with_suffix("")] == 1
        target = Path(folder, place).with_suffix(f".{suffix}") if alone else Path(folder, f"{place}.{suffix}")
        if target in taken:
            raise ValueError(
                f"{taken[target]} and {sound} would both be written to {target}. Give each its own -o DIR."
            )
        taken[target] = sound
    return {sound: target for target, sound in taken.items()}


def find_done(targets: dict[str, Path], folder: str) -> set[str]:
    """The sounds whose transcripts are in `folder` already.

    Raises:
        ValueError: A transcript there is that of another sound, which `note_source` wrote down.
    """
    index = Path(folder, SOURCES)
    lines = index.read_text("utf-8").split("\n") if index.exists() else []
    made_of = dict(json.loads(line) for line in lines if line.endswith("]"))  # not one that a full disk cut off
    done = {sound for sound, target in targets.items() if target.exists()}
    for sound in sorted(done):
        own = os.path.realpath(sound)
        other = made_of.get(str(targets[sound].relative_to(folder)), own)
        if other != own:
            hint = f"Give {sound} another -o DIR; if it was moved, remove {index}."
            raise ValueError(f"{targets[sound]} is the transcript of {other}. {hint}")
    return done


def note_source(sound: str, target: Path, folder: str) -> None:
    """Write down which sound a transcript in `folder` was made of."""
    line = json.dumps([str(target.relative_to(folder)), os.path.realpath(sound)])
    with Path(folder, SOURCES).open("a", encoding="utf-8") as index:
        index.write(f"\n{line}")


def write_whole(target: Path, text: str) -> None:
    """Write a file in one step: a job that is killed leaves no half transcript, which would count as done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{uuid4().hex}.unfinished")  # short: the name itself may be as long as names can be
    try:
        unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


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
