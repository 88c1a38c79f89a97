"""What the README tells the reader to type works as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

from pinyin_llm.inference.cli import main


ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "README_zh.md")
WITH_COMMANDS = (*NAMES, "docs/usage.md")
QUICK = (
    "pinyin-llm transcribe",
    "pinyin-llm convert",
    "pinyin-llm pinyin",
    "pinyin-llm score",
)  # the others train, publish or serve


def blocks(name: str, language: str = "") -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The quick `pinyin-llm` lines of the bash blocks, continued lines joined."""
    bash = [block for name in WITH_COMMANDS for block in blocks(name, "bash")]
    lines = [line for block in bash for line in block.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line for line in lines if any(command in line for command in QUICK)))


@pytest.mark.parametrize("command", commands())
def test_command(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    output = run_by_shell(command) if set(command) & set("|<>&;$") else run_here(command, capsys)
    assert output.strip() or ">" in command


def run_here(command: str, capsys) -> str:
    """The output of a command without pipes and redirections, which needs no process of its own."""
    program, *words = shlex.split(command, comments=True)
    assert program == "pinyin-llm"
    words = [found for word in words for found in (sorted(glob(word)) if set(word) & set("*?[") else [word])]
    assert main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def run_by_shell(command: str) -> str:
    """The output of a command as a shell runs it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", "-euo", "pipefail", "-c", command]
    run = subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "readme"}
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), namespace)
    written = capsys.readouterr().out
    assert "甚至出现交易几乎停滞的情况" in written
    assert "今天天气很好" in written


def skeleton(name: str) -> tuple:
    """What no translation changes: how many headings, the code without its comments, the numbers of the tables."""
    text = (ROOT / name).read_text(encoding="utf-8")
    headings = len(re.findall("^## ", text, flags=re.MULTILINE))
    fences = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    code = [re.sub(r"\s+#.*", "", line) for block in fences for line in block.splitlines()]
    tables = re.findall(r"^\|.*\|$", text, flags=re.MULTILINE)
    numbers = [re.findall(r"\d+\.\d+|`[^`]+`", row) for row in tables]
    return headings, code, numbers


def test_the_chinese_readme_is_as_complete():
    english, chinese = map(skeleton, NAMES)
    assert english == chinese
