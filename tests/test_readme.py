"""What the README tells the reader to type works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK = ("pinyin-llm transcribe", "pinyin-llm convert", "pinyin-llm score")  # the others train, publish or serve

pytestmark = pytest.mark.skipif(
    not (ROOT / "checkpoints" / "mini").is_dir(), reason="checkpoints/mini is not in this copy of the repository"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The quick `pinyin-llm` lines of the bash blocks, continued lines joined."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if any(command in line for command in QUICK)]


@pytest.mark.parametrize("command", commands())
def test_command(command):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() or ">" in command


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
