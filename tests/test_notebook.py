"""The notebook runs from top to bottom on the clone."""

import json
import os
import subprocess
import sys
from pathlib import Path


NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
LARGEST_BYTES = 100_000  # with its outputs


def test_quickstart(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=NOTEBOOK.parent,
        env=os.environ | {"HF_HOME": str(tmp_path), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "jin tian tian qi hen hao  ->  今天天气很好" in lines
    assert lines[-1].split() == ["fine-tuned", "甚至出现交易几乎停滞的情况"]
    assert NOTEBOOK.stat().st_size < LARGEST_BYTES
