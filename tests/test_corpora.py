"""Corpora in the layouts in which they are published, made small; archives and manifests that mean harm."""

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pinyin_llm.corpora import manifest, plain_text, prepare, speech_corpora, unpack
from pinyin_llm.corpora.manifest import ManifestError, read_manifest
from pinyin_llm.corpora.unpack import ArchiveError


RATE = 8000


def record(path: Path, seconds: float = 0.5) -> Path:
    """Write noise of that length as wav or mp3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(scale=0.1, size=int(seconds * RATE))
    soundfile.write(path, noise.clip(-1, 1), RATE)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pack(archive: Path, folder: Path) -> None:
    """Pack `folder` into `archive` beside it, and remove it."""
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, arcname=folder.name)
    shutil.rmtree(folder)


# Each corpus as it is downloaded; what its clips are is returned as {id: (text, speaker, split)}.


def aishell1(root: Path) -> dict:
    clips = {
        "BAC009S0002W0122": ("而对楼市成交抑制作用最大的限购", "S0002", "train"),
        "BAC009S0003W0121": ("甚至出现交易几乎停滞的情况", "S0003", "train"),
        "BAC009S0724W0121": ("广州市房地产中介协会分析", "S0724", "dev"),
        "BAC009S0764W0121": ("ａｐｐ也在内", "S0764", "test"),
    }
    folder = root / "data_aishell"
    for name, (_, speaker, split) in clips.items():
        record(folder / "wav" / split / speaker / f"{name}.wav")
        record(folder / "wav" / split / speaker / f"{name[:-4]}9999.wav")  # a sound without a transcript
    lines = [f"{name} {text[0]} {text[1:4]}  {text[4:]}\n" for name, (text, _, _) in clips.items()]
    write(folder / "transcript" / "aishell_transcript_v0.8.txt", "".join(lines))
    for _, speaker, split in clips.values():  # as published: an archive of archives
        with tarfile.open(folder / "wav" / f"{speaker}.tar.gz", "w:gz") as packed:
            packed.add(folder / "wav" / split / speaker, arcname=f"{split}/{speaker}")
    for split in ("train", "dev", "test"):
        shutil.rmtree(folder / "wav" / split)
    pack(root / "data_aishell.tgz", folder)
    return clips


def thchs30(root: Path) -> dict:
    clips = {
        "A11_0": ("绿是阳春烟景", "A11", "train"),
        "C12_750": ("东北军的一些爱国将士", "C12", "dev"),
        "D31_999": ("他仅凭腰部的力量", "D31", "test"),
    }
    folder = root / "data_thchs30"
    for name, (text, _, split) in clips.items():
        sound = record(folder / "data" / f"{name}.wav")
        write(folder / "data" / f"{name}.wav.trn", f"{text[:2]} {text[2:]} l = \nlv4 shi4\nl v4 sh ix4\n")
        (folder / split).mkdir()
        shutil.copy(sound, folder / split)
        write(folder / split / f"{name}.wav.trn", f"../data/{name}.wav.trn\n")
    pack(root / "data_thchs30.tgz", folder)
    return clips


def st_cmds(root: Path) -> dict:
    clips = {
        "20170001P00001A0001": ("你好小明", "P00001A", "train"),
        "20170001P00241I0052": ("给我讲个笑话吧", "P00241I", "train"),
    }
    folder = root / "ST-CMDS-20170001_1-OS"
    for name, (text, _, _) in clips.items():
        record(folder / f"{name}.wav")
        write(folder / f"{name}.txt", text)  # without a line end
        write(folder / f"{name}.metadata", "LHD\tDatahall Audio Label\n")
    pack(root / "ST-CMDS-20170001_1-OS.tar.gz", folder)
    return clips


def common_voice(root: Path) -> dict:
    clips = {
        "common_voice_zh-CN_18524189": ('他说："好。', "c1ie", "train"),
        "common_voice_zh-CN_18531536": ("它们是宫崎骏画的。", "c1ie", "dev"),
        "common_voice_zh-CN_18531538": ("1999年", "n7", "test"),
    }
    folder = root / "cv-corpus-17.0-2024-03-15"
    for name, (text, speaker, split) in clips.items():
        record(folder / "zh-CN" / "clips" / f"{name}.mp3")
        row = f"{speaker}\t{name}.mp3\t5f0a\t{text}\t\t2\t0\n"
        header = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\n"
        write(folder / "zh-CN" / f"{split}.tsv", header + row)
    pack(root / "cv-corpus-17.0-2024-03-15-zh-CN.tar.gz", folder)
    return clips


def run(corpus: str, root: Path | str, output: Path, *arguments: str) -> int:
    return prepare.main([corpus, "--root", str(root), "--output", str(output), *arguments])


def rows(output: Path, *splits: str) -> list[dict]:
    return [row for split in splits for row in read_manifest(output / f"{split}.tsv")]


def counts(output: Path, split: str) -> dict:
    """What was counted and is not 0."""
    return {name: n for name, n in json.loads((output / "counts.json").read_text())["splits"][split].items() if n}


@pytest.fixture
def whole(monkeypatch):
    """whole(corpus): its small copy counts as all that was published."""

    def pretend(corpus: str, clips: dict) -> None:
        splits = [split for _, _, split in clips.values()]
        published = speech_corpora.CORPORA[corpus].published
        for split in published:
            monkeypatch.setitem(published, split, splits.count(split))

    return pretend


@pytest.fixture
def small(tmp_path, whole) -> tuple[Path, Path]:
    """ST-CMDS, unpacked, and an output folder."""
    whole("st_cmds", st_cmds(tmp_path))
    unpack.unpack([tmp_path / "ST-CMDS-20170001_1-OS.tar.gz"])
    return tmp_path, tmp_path / "ST-CMDS-20170001_1-OS"


# Corpora


@pytest.mark.parametrize("make", [aishell1, thchs30, st_cmds, common_voice])
def test_published_archives_become_manifests(make, tmp_path, whole, monkeypatch):
    corpus = make.__name__
    clips, output = make(tmp_path), tmp_path / "out"
    whole(corpus, clips)
    monkeypatch.chdir(tmp_path)
    assert run(corpus, ".", Path("out")) == 0
    splits = dict.fromkeys(split for _, _, split in clips.values())
    found = rows(output, *splits)
    assert {row["id"]: (row["text"], row["speaker"], row["split"]) for row in found} == clips
    assert all(Path(row["audio"]).is_absolute() and Path(row["audio"]).exists() for row in found)
    assert [row["seconds"] for row in found] == pytest.approx([0.5] * len(clips), abs=0.15)  # mp3 pads
    assert not list(tmp_path.rglob("*.partial"))


def test_aishell_without_transcript_is_counted_and_missing_clips_are_named(tmp_path, capsys):
    aishell1(tmp_path)
    assert run("aishell1", tmp_path, tmp_path / "out") == 1
    assert counts(tmp_path / "out", "train") == {"read": 4, "kept": 2, "seconds": 1.0, "no_transcript": 2}
    talk = capsys.readouterr().err
    for split, published, found in (("train", "120,098", 2), ("dev", "14,326", 1), ("test", "7,176", 1)):
        assert f"{split}: expected {published} clips with a transcript, as published, found {found}." in talk


def test_filters_are_counted_and_every_dropped_clip_is_named(small, tmp_path, capsys):
    root, folder = small
    texts = {"0": "", "1": "OK!", "2": "3", "3": "短", "4": "长", "5": "坏", "6": "空"}
    for number, text in texts.items():
        record(folder / f"20170001P00002A000{number}.wav", {"3": 0.2, "4": 1.5}.get(number, 0.5))
        write(folder / f"20170001P00002A000{number}.txt", text)
    (folder / "20170001P00002A0001.txt").write_bytes("编码".encode("gbk"))
    (folder / "20170001P00002A0005.wav").write_bytes(b"RIFF, but no sound")
    (folder / "20170001P00002A0006.wav").write_bytes(b"")
    record(folder / "20170001P00002A0007.wav")
    write(folder / "20170001P00002A0007.txt", "OK!")
    assert run("st_cmds", root, tmp_path / "out", "--longest", "1") == 1
    dropped = {"empty_text": 1, "undecodable_text": 1, "no_han": 1, "too_short": 1, "too_long": 1, "unreadable": 2}
    assert counts(tmp_path / "out", "train") == {"read": 10, "kept": 3, "seconds": 1.5, **dropped}
    lines = (tmp_path / "out" / "dropped.tsv").read_text().splitlines()[1:]
    reasons = {Path(file).stem[-1]: reason for file, _, reason in (line.split("\t") for line in lines)}
    assert reasons["5"] == reasons["6"] == "unreadable"
    assert (reasons["3"], reasons["4"], reasons["7"]) == ("too_short", "too_long", "no_han")
    assert "2 clips are missing, empty or unreadable: see dropped.tsv" in capsys.readouterr().err


def test_measures_only_what_is_new(small, tmp_path, monkeypatch):
    root, folder = small
    output, measured = tmp_path / "out", []
    assert run("st_cmds", root, output, "--num_proc", "1") == 0
    monkeypatch.setattr(prepare, "seconds_of", lambda path: measured.append(path.stem[-4:]) or 0.7)
    monkeypatch.setattr(prepare, "unpack", None)  # done, so not called
    assert run("st_cmds", root, output) == 0
    assert measured == []

    journal = output / "seconds.jsonl"
    journal.write_text(journal.read_text()[:-20])  # killed in the middle of its last line
    assert run("st_cmds", root, output) == 0
    assert measured == ["0052"]
    record(folder / "20170001P00001A0001.wav", 0.6)  # another file now
    assert run("st_cmds", root, output) == 0
    assert measured == ["0052", "0001"]
    assert [row["seconds"] for row in rows(output, "train")] == [0.7, 0.7]


def test_bad_usage_and_nothing_done(small, tmp_path, capsys):
    root, folder = small
    assert run("thchs30", root, tmp_path / "out") == 2
    assert "expected one data_thchs30 (or its archive) in it, found none" in capsys.readouterr().err
    assert run("st_cmds", root, tmp_path / "out", "--shortest", "20") == 2
    assert "no clip was kept" in capsys.readouterr().err
    assert run("thchs30", root, tmp_path / "out") == 2
    assert "expected nothing or thchs30, found st_cmds" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run("st_cmds", root, tmp_path / "out", "--text_column", "sentence")


def test_help_comes_without_torch():
    command = [sys.executable, "-X", "importtime", "-m", "pinyin_llm.corpora.prepare", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "--root" in printed.stdout
    assert not re.search(r"\| +(torch|datasets|soundfile)$", printed.stderr, re.MULTILINE)


# `datasets`


def test_dataset_with_bytes_is_written_out_once(tmp_path):
    from datasets import Audio, Dataset, DatasetDict

    sounds = [record(tmp_path / f"{seconds}.wav", seconds).read_bytes() for seconds in (0.4, 0.5, 0.6)]

    def table(*clips):
        sound = [{"bytes": content, "path": path} for content, path, _ in clips]
        texts = [text for *_, text in clips]
        rows = Dataset.from_dict({"sound": sound, "sentence": texts, "who": ["甲"] * len(clips)})
        return rows.cast_column("sound", Audio())

    clips = {"train": table((sounds[0], "../../a.wav", "早上"), (sounds[1], None, "中午"), (sounds[2], "b", None))}
    DatasetDict(clips | {"validation": table((sounds[1], "c.wav", "中午"))}).save_to_disk(tmp_path / "saved")
    columns = ["--audio_column", "sound", "--text_column", "sentence", "--speaker_column", "who"]
    output = tmp_path / "out"
    for _ in range(2):
        assert run("dataset", tmp_path / "saved", output, *columns) == 0
        found = [(row["text"], row["speaker"], row["seconds"], row["split"]) for row in rows(output, "train", "dev")]
        assert found == [("早上", "甲", 0.4, "train"), ("中午", "甲", 0.5, "train"), ("中午", "甲", 0.5, "dev")]
        assert len(list((output / "audio").iterdir())) == 4
        assert counts(output, "train")["no_transcript"] == 1
    assert not (tmp_path.parent / "a.wav").exists()
    assert (output / "train.tsv").read_text().splitlines()[1].startswith("audio/")  # so the folder can be moved


def test_dataset_of_paths_stays_where_it_is(tmp_path, capsys):
    sound = record(tmp_path / "a.wav")
    rows_there = [{"audio": str(sound), "text": "你好"}, {"audio": str(tmp_path / "gone.wav"), "text": "再见"}]
    write(tmp_path / "mine" / "validation.jsonl", "\n".join(map(json.dumps, rows_there)))
    assert run("dataset", tmp_path / "mine", tmp_path / "out") == 1
    (row,) = rows(tmp_path / "out", "dev")
    assert (row["audio"], row["text"]) == (str(sound), "你好")
    assert str(tmp_path / "gone.wav") in (tmp_path / "out" / "dropped.tsv").read_text()
    assert run("dataset", tmp_path / "mine", tmp_path / "out", "--speaker_column", "who") == 2
    assert "expected the columns audio, text, who, found audio, text. Name who by" in capsys.readouterr().err


# Row 29: refused before anything is written


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> tuple:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size = kind, link, len(content)
    return header, content


def make_tar(path: Path, *members: tuple) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for header, content in members:
            packed.addfile(header, io.BytesIO(content))
    return path


def make_zip(path: Path, *members: tuple) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for header, content in members:
            entry = zipfile.ZipInfo(header.name + "/" * header.isdir())
            entry.external_attr = (0o120777 if header.issym() else 0o100644) << 16
            packed.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


GOOD = member("corpus/good.txt", content=b"good")
HARM = {
    "parent": (member("corpus/../../evil"), "'corpus/../../evil' leads outside"),
    "absolute": (member("/tmp/evil"), "'/tmp/evil' leads outside"),
    "windows": (member("a\\..\\..\\evil"), "leads outside"),
    "drive": (member("C:/evil"), "leads outside"),
    "symlink": (member("corpus/link", tarfile.SYMTYPE, "/etc"), "is a link or device"),
    "hard link": (member("corpus/link", tarfile.LNKTYPE, "corpus/good.txt"), "is a link or device"),
    "device": (member("corpus/null", tarfile.CHRTYPE), "is a link or device"),
    "pipe": (member("corpus/pipe", tarfile.FIFOTYPE), "is a link or device"),
    "bomb": (member("corpus/zeros", content=bytes(10**6)), "looks like a bomb"),
}
IN_ZIP = ("parent", "absolute", "windows", "drive", "symlink", "bomb")


@pytest.mark.parametrize(
    ("make", "suffix", "harm"),
    [(make_tar, "tgz", harm) for harm in HARM] + [(make_zip, "zip", harm) for harm in IN_ZIP],
)
def test_harmful_archives_are_refused_before_anything_is_written(make, suffix, harm, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "ALWAYS_ALLOWED", 10**5)
    bad, message = HARM[harm]
    archive = make(tmp_path / f"corpus.{suffix}", GOOD, bad)
    with pytest.raises(ArchiveError, match=re.escape(message)):
        unpack.unpack([archive])
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize(("make", "suffix"), [(make_tar, "tgz"), (make_tar, "tar.gz"), (make_zip, "zip")])
def test_good_archives_are_merged_into_what_is_there(make, suffix, tmp_path):
    write(tmp_path / "corpus" / "old.txt", "old")
    write(tmp_path / f".corpus.{suffix}.partial" / "corpus" / "half.txt", "")  # left by an interruption
    unpack.unpack([make(tmp_path / f"corpus.{suffix}", member("./corpus", tarfile.DIRTYPE), GOOD)])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["corpus", f"corpus.{suffix}", "good.txt", "old.txt"]


def test_damaged_and_too_large_archives_leave_nothing(tmp_path, monkeypatch, capsys):
    archive = make_tar(
        tmp_path / "data_thchs30.tgz", GOOD, member("noise", content=np.random.default_rng(0).bytes(10**5))
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10**4))
    assert run("thchs30", tmp_path, tmp_path / "out") == 2
    assert "needs more than the 10,000 bytes that are free" in capsys.readouterr().err
    archive.write_bytes(archive.read_bytes()[:-1000])
    monkeypatch.undo()
    assert run("thchs30", tmp_path, tmp_path / "out") == 2
    assert "data_thchs30.tgz: is damaged or cut off" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [archive]


def test_manifest_as_a_spreadsheet_saves_it(tmp_path, capsys):
    """With a byte order mark and Windows' line ends; and one that holds no row yet."""
    rows = "file\ttext\r\nmy clip 1.wav\t你好\r\nother.wav\t上海\r\n"
    (tmp_path / "manifest.tsv").write_text(rows, encoding="utf-8-sig", newline="")
    (tmp_path / "names.txt").write_text("my clip 1.wav\r\nmy clip 2.wav\r\n", encoding="utf-8-sig", newline="")
    assert read_manifest(tmp_path / "manifest.tsv")["text"][:] == ["你好", "上海"]
    assert (
        manifest.main(["--manifests", str(tmp_path / "manifest.tsv"), "--held_out", str(tmp_path / "names.txt")]) == 0
    )
    assert read_manifest(tmp_path / "held_out.tsv")["id"][:] == ["my clip 1"]
    assert "1 of 2 names are in no manifest, as my clip 2.wav" in capsys.readouterr().err
    write(tmp_path / "manifest.tsv", "file\ttext\n")
    assert read_manifest(tmp_path / "manifest.tsv")["seconds"][:] == []


def test_tables_that_lead_outside_are_refused(tmp_path):
    write(tmp_path / "corpus" / "manifest.tsv", "file\ttext\n../../etc/passwd\t你好\n")
    with pytest.raises(ManifestError, match="lies outside the manifest's folder"):
        read_manifest(tmp_path / "corpus" / "manifest.tsv")
    write(tmp_path / "cv-corpus-1" / "zh-CN" / "train.tsv", "client_id\tpath\tsentence\n甲\t../../x.mp3\t你好\n")
    assert run("common_voice", tmp_path, tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


# Text


def clean(output: Path, *inputs: str) -> list[str]:
    assert plain_text.main(["--output", str(output), "--inputs", *inputs]) == 0
    return output.read_text(encoding="utf-8").splitlines()


def test_text_of_every_kind(tmp_path):
    write(tmp_path / "raw" / "a.txt", "今天天气很好。\n\n我们去公园散步\n")
    (tmp_path / "raw" / "deep").mkdir()
    (tmp_path / "raw" / "deep" / "b.txt.gz").write_bytes(gzip.compress("他在图书馆看书。".encode()))
    (tmp_path / "raw" / "deep" / "c.tsv.gz").write_bytes(gzip.compress("id\ttext\n1\t孩子们都睡着了\n".encode()))
    write(tmp_path / "raw" / "notes.md", "这个文件不算在内")
    write(tmp_path / "table" / "rows.jsonl", '{"sentence": "火车八点钟出发", "n": 1}\n{"sentence": null, "n": 2}\n')
    dataset = f"dataset:{tmp_path / 'table'},column=sentence"
    lines = clean(tmp_path / "out.txt", str(tmp_path / "raw"), dataset)
    assert lines == ["今天天气很好", "我们去公园散步", "他在图书馆看书", "孩子们都睡着了", "火车八点钟出发"]


def test_text_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress("他在图书馆看书。".encode())[:-9])
    write(tmp_path / "table" / "rows.jsonl", '{"sentence": "火车八点钟出发"}\n')
    table = f"dataset:{tmp_path / 'table'}"
    wrong = {
        str(tmp_path / "cut.txt.gz"): "cut.txt.gz: is damaged or cut off",
        table: "expected a column 'text', found sentence",
        f"{table},columm=sentence": "expected config, split, column, found columm",
        str(tmp_path / "nowhere"): "found nothing",
    }
    for name, message in wrong.items():
        assert plain_text.main(["--inputs", name, "--output", str(tmp_path / "out.txt")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.txt").exists()


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_text.RecentLines, "CAPACITY", 3)
    monkeypatch.setattr(plain_text, "LONGEST_PIECE", 12)
    seen = plain_text.RecentLines()
    assert [seen.count(line) for line in "aabacadaeaf"] == [1, 2, 1, 3, 1, 4, 1, 5, 1, 6, 1]
    assert len(seen.newer) + len(seen.older) <= 6
    write(
        tmp_path / "endless.txt", "今天天气很好。" * 20
    )  # cut every twelve characters, not kept in memory as one line
    assert set(clean(tmp_path / "out.txt", str(tmp_path / "endless.txt"))) >= {"今天天气很好"}
