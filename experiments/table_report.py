"""Results of the table -> markdown, CSV, JSON and a plot of CER against the amount of text."""

import csv
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

from ..scoring.cer import Score, score


HEADER = [
    "section",
    "row",
    "test set",
    "CER %",
    "low",
    "high",
    "seeds",
    "seeds' spread",
    "gain % over the first row",
    "homophones %",
    "learning rate",
]


INTRODUCTION = """# The paper's table

Written by `pinyin-llm paper_table`. CER in % over all seeds together, its 95 % interval by bootstrap over utterances
(each with all its seeds), the number of seeds, the standard deviation of their CER, the gain relative to the first row
of the section, the share of errors that are homophones, and the learning rate of the last stage. The rows of the
sections named in the recipe chose it for themselves, on clips of the training set's kind. Results that do not help are
reported as they are.
"""


def score_pairs(pairs: list[tuple[str, str]], times: int = 1) -> Score:
    """The score of (reference, hypothesis) pairs, the same utterances `times` over."""
    return score(*map(list, zip(*pairs, strict=True)), times=times)


def add_seed(row: dict, found: dict[str, list[tuple[str, str]]]) -> None:
    """Add the (reference, hypothesis) pairs of one more seed to a row of the results.

    Args:
        row: "seeds": {test set: pairs of each seed}; gets "tests": {test set: (score of all seeds, CER of each)}.
    """
    for name, pairs in found.items():
        row["seeds"].setdefault(name, []).append(pairs)
    row["tests"] = {name: score_seeds(seeds) for name, seeds in row["seeds"].items()}


def score_seeds(seeds: list[list[tuple[str, str]]]) -> tuple[Score, list[float]]:
    """(reference, hypothesis) pairs per seed -> the score of all together, and the CER of each."""
    return score_pairs(sum(seeds, []), len(seeds)), [score_pairs(pairs).cer for pairs in seeds]


def summarize(section: str, rows: dict[str, dict]) -> list[dict]:
    """One line per row and test set.

    Args:
        rows: {row: {"learning rate": the one that did best, "tests": {test set: its `score_seeds`}}}; gains are
            relative to the first row.
    """
    lines, first = [], {}
    for row, found in rows.items():
        for name, (pooled, each) in found["tests"].items():
            start = first.setdefault(name, pooled.cer)
            spread = stdev(each) if len(each) > 1 else 0.0
            gain = 1 - mean(each) / start if start else 0.0
            rates = (pooled.cer, pooled.low, pooled.high, spread, gain, pooled.homophones)
            cer, low, high, spread, gain, homophones = (f"{100 * rate:.1f}" for rate in rates)
            figures = (cer, low, high, len(each), spread, gain, homophones, f"{found['learning rate']:g}")
            cells = (section, row, name, *figures)
            lines.append(dict(zip(HEADER, cells, strict=True)))
    return lines


def write_report(results: dict[str, dict], folder: Path, tests: Iterable[str]) -> None:
    """Write table.json, table.csv, table.md and, for the section `paper`, cer_by_text.png.

    A section without rows, because it was not requested, keeps its lines from the table in the folder, if they name one
    of the test sets (another recipe may have sections of the same names). Its title says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.json"
    earlier = json.loads(path.read_text("utf-8")) if path.exists() else []
    known = {line["section"] for line in earlier if line["test set"] in tests}
    tables = {
        section: summarize(section, rows)
        or [line for line in earlier if line["section"] == section and section in known]
        for section, rows in results.items()
    }
    lines = list(chain(*tables.values()))
    path.write_text(json.dumps(lines, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    titles = {section: section if rows else f"{section} (of an earlier run)" for section, rows in results.items()}
    parts = [INTRODUCTION.rstrip(), *(_markdown(titles[section], own) for section, own in tables.items() if own)]
    (folder / "table.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if tables.get("paper"):
        plot(lines, folder / "cer_by_text.png")


def _markdown(title: str, lines: list[dict]) -> str:
    from tabulate import tabulate

    own = [list(line.values())[1:] for line in lines]
    return f"## {title}\n\n" + tabulate(own, headers=HEADER[1:], tablefmt="github", disable_numparse=True)


def plot(lines: list[dict], path: Path) -> None:
    """CER against the amount of text, one line per test set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    own = [line for line in lines if line["section"] == "paper"]
    for name in dict.fromkeys(line["test set"] for line in own):
        points = [line for line in own if line["test set"] == name]
        heights = [float(point["CER %"]) for point in points]
        spans = [
            [float(p["CER %"]) - float(p["low"]) for p in points],
            [float(p["high"]) - float(p["CER %"]) for p in points],
        ]
        axes.errorbar([point["row"] for point in points], heights, spans, marker="o", capsize=3, label=name)
    axes.set(xlabel="text of P2C, in multiples of the transcripts", ylabel="CER %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
