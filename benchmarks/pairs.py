"""Characters -> pinyin pairs for stage 1, with 1 and 2 processes: characters per second and peak memory by text size.

    python benchmarks/pairs.py data/text/clean/inews.txt --millions 1 10 100

The text is repeated, with the number of each copy in front, until it has that many characters. Memory is the largest
anonymous memory of the processes (not backed by a file): datasets maps its tables from disk.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import psutil
from tabulate import tabulate


def enlarge(source: Path, characters: int, target: Path) -> None:
    """Write copies of `source` until there are so many characters."""
    lines, written, copy = source.read_text("utf-8").splitlines(), 0, 0
    with target.open("w", encoding="utf-8") as file:
        while written < characters:
            for line in lines:
                file.write(f"{copy}{line}\n")
                written += len(line)
                if written >= characters:
                    break
            copy += 1


class Peak(threading.Thread):
    """The largest anonymous memory of this process and its children, sampled once per second; a sample takes 10 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.largest, self.over = 0, threading.Event()

    def run(self):
        me = psutil.Process(os.getpid())
        while not self.over.wait(1):
            for process in (me, *me.children(recursive=True)):
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                self.largest = max(self.largest, memory.rss - memory.shared)


def read(text: Path, num_proc: int, cache: str) -> tuple[int, float, int]:
    """(characters, seconds, peak bytes) of reading the text as stage 1 does."""
    import datasets

    from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer
    from pinyin_llm.training.arguments import TextArguments
    from pinyin_llm.training.text_data import read_pairs

    datasets.config.HF_DATASETS_CACHE = Path(cache)
    units, peak = PinyinTokenizer.from_file(), Peak()
    units.encode_characters("先读词典")  # pypinyin reads its dictionary once
    peak.start()
    start = time.perf_counter()
    _, counts = read_pairs(TextArguments([str(text)], num_proc=num_proc), units)
    seconds = time.perf_counter() - start
    peak.over.set()
    return counts["characters"], seconds, peak.largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--num_proc", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = []
    for millions in arguments.millions:
        first = None
        for num_proc in arguments.num_proc:
            with tempfile.TemporaryDirectory() as folder:
                text = Path(folder, "text.txt")
                enlarge(arguments.text, round(1e6 * millions), text)
                characters, seconds, peak = read(text, num_proc, folder)
            first = first or seconds
            efficiency = first * arguments.num_proc[0] / (seconds * num_proc)
            cells = [f"{characters / seconds:,.0f}", f"{100 * efficiency:.0f} %", f"{peak / 2**20:.0f}"]
            rows.append([f"{millions:g}", num_proc, *cells, f"{seconds:.0f}"])
    headers = ["million characters", "processes", "characters/s", "parallel efficiency", "peak MiB of one", "seconds"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
