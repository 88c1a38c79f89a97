"""Pinyin to characters: CER of the model on tsv files of text, toned and toneless pinyin, beside a dictionary engine.

    python benchmarks/p2c.py benchmarks/p2c_dev/*.tsv

The peer is Pinyin2Hanzi's DAG (PyPI Pinyin2Hanzi, MIT), which reads toneless pinyin only.
"""

import argparse
import csv
import time
from pathlib import Path

from tabulate import tabulate

from pinyin_llm.inference.loading import MINI_MODEL, load_model
from pinyin_llm.scoring.cer import score
from pinyin_llm.transcription_pinyin_llm import NUM_BEAMS, convert_pinyin


def read_table(path: str) -> list[dict]:
    with open(path, encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def pinyin2hanzi(rows: list[str]) -> list[str]:
    """The best path of Pinyin2Hanzi's word graph; a syllable that it does not know stays unwritten."""
    from Pinyin2Hanzi import DefaultDagParams, dag, simplify_pinyin

    parameters = DefaultDagParams()
    texts = []
    for row in rows:
        paths = dag(parameters, [simplify_pinyin(syllable) for syllable in row.replace("ü", "v").split()])
        texts.append("".join(paths[0].path) if paths else "")
    return texts


def measure(name: str, kind: str, convert, tables: dict[str, list[dict]]) -> list[str]:
    """One line of the table: CER in % for each file and for all, and characters a CPU-second."""
    start = time.process_time()
    texts = {file: convert([row[kind] for row in rows]) for file, rows in tables.items()}
    seconds = time.process_time() - start
    said = {file: [row["text"] for row in rows] for file, rows in tables.items()}
    scores = [score(said[file], texts[file]) for file in tables]
    pooled = score(sum(said.values(), []), sum(texts.values(), []))
    interval = f"{100 * pooled.cer:.2f} ({100 * pooled.low:.2f} - {100 * pooled.high:.2f})"
    return [name, kind, *(f"{100 * s.cer:.2f}" for s in scores), interval, f"{pooled.characters / seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="tsv files: text, toned, toneless")
    parser.add_argument("--model", default=MINI_MODEL)
    parser.add_argument("--num_beams", type=int, nargs="+", default=[1, NUM_BEAMS])
    parser.add_argument("--rows", type=int, default=None, help="only the first rows of each file")
    arguments = parser.parse_args()
    tables = {Path(path).stem: read_table(path)[: arguments.rows] for path in arguments.tables}
    model, processor = load_model(arguments.model)
    lines = []
    for kind in ("toned", "toneless"):
        for beams in arguments.num_beams:
            convert = lambda rows, beams=beams: convert_pinyin(model, processor, rows, num_beams=beams)  # noqa: E731
            lines.append(measure(f"PinyinLLM, beam {beams}", kind, convert, tables))
        free = lambda rows: convert_pinyin(model, processor, rows, constrained=False)  # noqa: E731
        lines.append(measure("PinyinLLM, unconstrained", kind, free, tables))
    lines.append(measure("Pinyin2Hanzi DAG", "toneless", pinyin2hanzi, tables))
    print(
        tabulate(lines, headers=["CER %", "input", *tables, "pooled (95 %)", "characters / CPU-s"], tablefmt="github")
    )


if __name__ == "__main__":
    main()
