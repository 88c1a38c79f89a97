"""A corpus on Ray Data: everything once, also where a worker is killed, and nothing twice when it is given again."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import soundfile
from conftest import build_model, save_folder, tone
from datasets import Audio, Dataset

from pinyin_llm.bulk import read_done


SOUNDS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A tiny model, and a folder of sounds of which one cannot be read."""
    place = tmp_path_factory.mktemp("bulk")
    save_folder(build_model("pinyin_bridge"), place / "model")
    (place / "in" / "deep").mkdir(parents=True)
    for number in range(SOUNDS - 1):
        soundfile.write(place / "in" / "deep" / f"{number}.wav", tone(1.0, 200 + 10 * number), 16000)
    (place / "in" / "empty.wav").touch()
    return place


def start(place: Path, corpus: Path, output: Path) -> subprocess.Popen:
    flags = ["--model", place / "model", "--output", output, "--workers", "2", "--part", "2"]
    words = [sys.executable, "-m", "pinyin_llm.bulk", corpus, *flags]
    # Ray starts its workers at niceness 15: beside other tests on two cores they got no time (300 s instead of 40).
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    return subprocess.Popen(list(map(str, words)), env=environment, stderr=subprocess.PIPE, text=True)


def read(output: Path) -> list[dict]:
    return [json.loads(line) for part in output.glob("*.jsonl") for line in part.read_text("utf-8").splitlines()]


def test_everything_once_though_a_worker_is_killed(corpus, tmp_path):
    process = start(corpus, corpus / "in", tmp_path / "out")
    end = time.time() + 120
    while not list((tmp_path / "out").glob("*.jsonl")) and time.time() < end:
        time.sleep(0.1)
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in child.name()]
    assert workers, "no worker was found"
    workers[0].kill()
    talk = process.communicate(timeout=240)[1]
    assert process.returncode == 1, talk  # one sound is empty
    assert "1 of them could not be read" in talk
    rows = read(tmp_path / "out")
    assert len(rows) == len({row["file"] for row in rows}) == SOUNDS
    assert [Path(row["file"]).name for row in rows if "error" in row] == ["empty.wav"]
    assert sum(bool(row["text"]) for row in rows) == SOUNDS - 1
    missing = next((tmp_path / "out").glob("*.jsonl"))
    lost = len(missing.read_text("utf-8").splitlines())
    missing.unlink()
    again = start(corpus, corpus / "in", tmp_path / "out")
    assert f"{lost} sounds" in again.communicate(timeout=240)[1]
    assert again.returncode == 1  # the empty one still has no text, whichever run met it
    assert len(read(tmp_path / "out")) == SOUNDS


def test_parquet(corpus, tmp_path):
    sounds = sorted((corpus / "in" / "deep").glob("*.wav"))[:4]
    names = ["1.wav", "1.wav", None, None]  # datasets keeps no folders, and of arrays no path
    rows = [{"audio": {"path": n, "bytes": p.read_bytes()}} for n, p in zip(names, sounds, strict=True)]
    Dataset.from_list(rows).cast_column("audio", Audio(decode=False)).to_parquet(tmp_path / "corpus.parquet")
    process = start(corpus, tmp_path / "corpus.parquet", tmp_path / "out")
    assert process.wait(240) == 0, process.stderr.read()
    found = read(tmp_path / "out")
    assert sorted(row["file"] for row in found) == sorted(["1.wav"] * 2 + [str(tmp_path / "corpus.parquet")] * 2)
    assert len({row["sound"] for row in found}) == 4
    assert all(row["text"] for row in found)
    assert len(read_done(tmp_path / "out")) == 4
    shutil.rmtree(tmp_path / "out")
