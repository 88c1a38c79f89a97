"""An installation that is not editable brings its model along: built as an index would, tried from an empty folder."""

import configparser
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SOUND, TEXT = ROOT / "samples" / "BAC009S0764W0121.wav", "甚至出现交易几乎停滞的情况"
LARGEST_FILE, LARGEST_WHEEL = 95e6, 200e6
OTHER_FILES = {
    "pinyin_llm/config.json",
    "pinyin_llm/tokenizer.json",
    "pinyin_llm/ngrams.safetensors",
    "pinyin_llm/pinyin_units.txt",
    "pinyin_llm/NOTICE",
    "pinyin_llm/docs/mini/card.yaml",
    "pinyin_llm/publishing/hub/handler.py",
    "pinyin_llm/publishing/hub/space/README.md",
    f"pinyin_llm/samples/{SOUND.name}",
}


def run(*words, folder: Path, **environment: str) -> str:
    """The output of a process that must succeed."""
    words = list(map(str, words))
    process = subprocess.run(words, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the source distribution. Neither is compressed, which takes most of the time of a release."""
    place = tmp_path_factory.mktemp("wheel")
    # Whatever the build leaves behind lies outside the repository.
    (place / "setup.cfg").write_text(f"[egg_info]\negg_base = {place}\n")
    setup = [sys.executable, "-c", "import setuptools; setuptools.setup()"]
    sdist = ["sdist", "--formats", "tar", "--dist-dir", place]
    run(*setup, *sdist, folder=ROOT, DIST_EXTRA_CONFIG=str(place / "setup.cfg"))
    (archive,) = place.glob("*.tar")
    with tarfile.open(archive) as file:
        file.extractall(place, filter="data")
    run(*setup, "bdist_wheel", "--compression", "stored", "--dist-dir", place, folder=place / archive.stem)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel) -> Path:
    """An environment with the wheel, and with the dependencies that are installed here."""
    place = wheel.parent / "environment"
    venv.create(place, with_pip=False)
    python, here = place / "bin" / "python", sysconfig.get_path("purelib")
    install = ["install", "--no-deps", "--no-index", "--no-compile", "--quiet", wheel]
    run(sys.executable, "-m", "pip", "--python", python, *install, folder=wheel.parent)
    # A path that a .pth file adds has its own .pth files ignored: the editable installation stays invisible.
    there = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=wheel.parent).strip()
    Path(there, "dependencies.pth").write_text(f"{here}\n", encoding="utf-8")
    return place


def test_files_of_the_wheel(wheel):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = setup["options"]["packages"].split()
    folders = [Path(*package.split(".")[1:]) for package in packages]
    modules = {
        f"pinyin_llm/{path.relative_to(ROOT).as_posix()}" for each in folders for path in (ROOT / each).glob("*.py")
    }
    with zipfile.ZipFile(wheel) as file:
        sizes = {entry.filename: entry.file_size for entry in file.infolist()}
    assert (modules | OTHER_FILES) - sizes.keys() == set()
    assert {name.split("/")[1] for name in sizes} & {"tests", "benchmarks", "examples", "build"} == set()
    assert max(sizes.values()) < LARGEST_FILE
    assert sum(sizes.values()) < LARGEST_WHEEL


def test_commands_from_an_empty_folder(environment, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    where = run(
        environment / "bin" / "python", "-c", "import pinyin_llm; print(pinyin_llm.__file__)", folder=empty, **home
    )
    assert Path(where.strip()).is_relative_to(environment)
    command = environment / "bin" / "pinyin-llm"
    assert run(command, "transcribe", SOUND, folder=empty, **home) == f"{TEXT}\n"
    assert run(command, "convert", "ni3 hao3", folder=empty, **home) == "你好\n"
    assert list(empty.iterdir()) == []
