"""Bulk transcription by 1 and by 2 workers of one thread each: sounds per second.

    python benchmarks/bulk.py data/speech/aishell1_S0150

Counted from each worker's first part to the last of all: a long corpus does not feel the start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate


def rate(corpus: str, workers: int, part: int) -> tuple[float, float]:
    """(sounds per second after the first part of each worker, seconds of the whole command)."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "pinyin_llm.bulk", corpus, "--output", output]
        start = time.perf_counter()
        subprocess.run([*command, "--workers", str(workers), "--threads", "1", "--part", str(part)], check=True)
        seconds = time.perf_counter() - start
        parts = sorted((os.stat(path).st_mtime, len(path.read_text("utf-8").splitlines()))
                       for path in Path(output).glob("*.jsonl"))  # fmt: skip
    return sum(sounds for _, sounds in parts[workers:]) / (parts[-1][0] - parts[workers - 1][0]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder of sounds, or parquet")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--part", type=int, default=16, help="sounds of a part")
    arguments = parser.parse_args()
    rows, first = [], None
    for workers in arguments.workers:
        sounds, seconds = rate(arguments.corpus, workers, arguments.part)
        first = first or sounds
        rows.append([workers, f"{sounds:.2f}", f"{sounds / first:.2f}", f"{seconds:.0f}"])
    print(tabulate(rows, headers=["workers", "sounds/s", "ratio", "seconds with the start"], tablefmt="github"))


if __name__ == "__main__":
    main()
