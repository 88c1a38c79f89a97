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
    with (folder / "transcript" / "aishell_transcript_v0.8.txt").open(encoding="utf-8", errors="replace") as lines:
        texts = {name: "".join(words) for name, *words in map(str.split, filter(str.strip, lines))}
    for audio in sorted(folder.glob("wav/*/*/*.wav")):
        speaker = audio.parent
        yield Clip(audio, texts.get(audio.stem), speaker.name, speaker.parent.name)


def thchs30(root: Path) -> Iterator[Clip]:
    """THCHS-30 (openslr.org/18): data_thchs30/train/A11_0.wav; its words are the first line of data/A11_0.wav.trn.

    The train/A11_0.wav.trn beside the sound only names that file.
    """
    folder = _only(root, "data_thchs30")
    for split in SPLITS:
        for audio in sorted((folder / split).glob("*.wav")):
            text = _first_line(folder / "data" / f"{audio.name}.trn")
            # one line of the corpus ends in a stray "l ="
            text = text and "".join(text.split()).removesuffix("l=")
            yield Clip(audio, text, audio.stem.partition("_")[0], split)


def st_cmds(root: Path) -> Iterator[Clip]:
    """ST-CMDS (openslr.org/38): 20170001P00001A0001.wav and .txt in one folder, of speaker P00001A; all is train."""
    for audio in sorted(_only(root, "ST-CMDS-20170001_1-OS").glob("*.wav")):
        yield Clip(audio, _first_line(audio.with_suffix(".txt")), audio.stem[8:15], "train")


def common_voice(root: Path) -> Iterator[Clip]:
    """Common Voice (commonvoice.mozilla.org), any release: cv-corpus-*/zh-CN/train.tsv and clips/*.mp3."""
    folder = _only(root, "cv-corpus-*/zh-CN")
    for split in SPLITS:
        table = folder / f"{split}.tsv"
        with table.open(encoding="utf-8", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                if Path(row["path"]).name != row["path"]:
                    raise CorpusError(f"{table}: expected names of files in clips/, found {row['path']!r}.")
                yield Clip(folder / "clips" / row["path"], row["sentence"], row["client_id"], split)


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
