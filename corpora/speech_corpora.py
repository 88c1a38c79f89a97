"""Speech corpora in the layouts in which they are published -> clips.

Each reader takes the folder that the archive lies in (or was unpacked in) and changes nothing.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


SPLITS = ("train", "dev", "test")


class CorpusError(ValueError):
    """A corpus that is not as it was published; the message names what was expected, what was found and what to do."""


class Clip(NamedTuple):
    """One recording and what is said in it; no text (None) where it was never written down."""

    audio: Path
    text: str | None
    speaker: str
    split: str


def aishell1(root: Path) -> Iterator[Clip]:
    """AISHELL-1 (openslr.org/33): data_aishell/wav/train/S0002/BAC009S0002W0122.wav and one file of transcripts."""
    folder = _only(root, "data_aishell")
    texts = _read_transcripts(folder / "transcript" / "aishell_transcript_v0.8.txt")
    for audio in _sounds(folder, "wav/*/*"):
        speaker = audio.parent
        yield Clip(audio, texts.get(audio.stem), speaker.name, speaker.parent.name)


def thchs30(root: Path) -> Iterator[Clip]:
    """THCHS-30 (openslr.org/18): data_thchs30/train/A11_0.wav; its words are the first line of data/A11_0.wav.trn.

    The train/A11_0.wav.trn beside the sound only names that file.
    """
    folder = _only(root, "data_thchs30")
    for audio in _sounds(folder, *SPLITS):
        text = _first_line(folder / "data" / f"{audio.stem}.wav.trn")
        # one line of the corpus ends in a stray "l ="
        text = text and "".join(text.split()).removesuffix("l=")
        yield Clip(audio, text, audio.stem.partition("_")[0], audio.parent.name)


def st_cmds(root: Path) -> Iterator[Clip]:
    """ST-CMDS (openslr.org/38): 20170001P00001A0001.wav and .txt in one folder, of speaker P00001A; all is train."""
    for audio in _sounds(_only(root, "ST-CMDS-20170001_1-OS"), "."):
        yield Clip(audio, _first_line(audio.with_suffix(".txt")), audio.stem[8:15], "train")


def common_voice(root: Path) -> Iterator[Clip]:
    """Common Voice (commonvoice.mozilla.org), any release: cv-corpus-*/zh-CN/train.tsv and clips/*.mp3."""
    folder = _only(root, "cv-corpus-*/zh-CN")
    for split in SPLITS:
        for path, sentence, speaker in _read_columns(folder / f"{split}.tsv", ("path", "sentence", "client_id")):
            yield Clip(folder / "clips" / path, sentence, speaker, split)


def _read_columns(table: Path, names: tuple[str, ...]) -> Iterator[list[str]]:
    """The cells of the columns `names` in each row of a tsv; the first is a file of clips/."""
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(rows, [])
        if missing := [name for name in names if name not in header]:
            raise CorpusError(f"{table}: expected the columns {', '.join(names)}, found no {', '.join(missing)}.")
        columns = [header.index(name) for name in names]
        for row in filter(None, rows):
            where = f"{table}, line {rows.line_num}"
            if len(row) != len(header):
                raise CorpusError(f"{where}: expected {len(header)} cells, found {len(row)}. Fetch it again.")
            cells = [row[column] for column in columns]
            if Path(cells[0]).name != cells[0]:
                raise CorpusError(f"{where}: expected the name of a file in clips/, found {cells[0]!r}.")
            yield cells


def _read_transcripts(path: Path) -> dict[str, str]:
    """Lines of an utterance and its words -> {utterance: its text without spaces}."""
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for name, *words in map(str.split, filter(str.strip, lines)):
            text = "".join(words)
            if texts.setdefault(name, text) != text:
                raise CorpusError(f"{path}: expected one text for {name}, found {texts[name]} and {text}. Remove one.")
    return texts


def _sounds(folder: Path, *patterns: str) -> list[Path]:
    """The wav files in the folders that match one of `patterns`, in order.

    Raises:
        CorpusError: There are none; the message names one that lies elsewhere.
    """
    inside = (path for pattern in patterns for path in folder.glob(f"{pattern}/*"))
    found = sorted(path for path in inside if path.suffix.lower() == ".wav")
    if not found:
        elsewhere = next((path for path in folder.rglob("*") if path.suffix.lower() == ".wav"), None)
        others = f"some elsewhere, such as {elsewhere.relative_to(folder)}" if elsewhere else "none"
        expected = " or ".join(f"{pattern}/*.wav" for pattern in patterns)
        raise CorpusError(f"{folder}: expected sounds as {expected}, found {others}. Unpack it as it was published.")
    return found


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise CorpusError(f"{root}: expected one {pattern} (or its archive) in it, found {names}.")
    return found[0]


def _first_line(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return lines.readline().strip()


@dataclass(frozen=True)
class Corpus:
    """A published corpus.

    Attributes:
        read: The folder that it lies in -> its clips.
        archives: Archives without their suffix -> what each becomes, {name} being its own; in the order of unpacking.
        published: The clips with a transcript in each split; empty where every release has its own.
    """

    read: Callable[[Path], Iterator[Clip]]
    archives: dict[str, str]
    published: dict[str, int] = field(default_factory=dict)


CORPORA = {
    "aishell1": Corpus(
        aishell1,
        {"data_aishell": "data_aishell", "data_aishell/wav/S*": "data_aishell/wav/*/{name}"},
        {"train": 120_098, "dev": 14_326, "test": 7_176},
    ),
    "thchs30": Corpus(thchs30, {"data_thchs30": "data_thchs30"}, {"train": 10_000, "dev": 893, "test": 2_495}),
    "st_cmds": Corpus(st_cmds, {"ST-CMDS-20170001_1-OS": "ST-CMDS-20170001_1-OS"}, {"train": 102_600}),
    "common_voice": Corpus(common_voice, {"*zh-CN*": "cv-corpus-*/zh-CN"}),
}
