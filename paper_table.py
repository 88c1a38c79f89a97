"""The paper's table from one command: the rows of a recipe -> both stages -> CER on every test set -> docs/results/.

python paper_table.py          # hours; given again, it goes on where it stopped
python paper_table.py --quick  # to see it work: few steps, one seed

A row differs from the recipe's base in what it names and in nothing else. A stage that two rows share is run once: its
folder is named by a hash of its arguments and of the stages before it.
"""

import hashlib
import json
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


SCRIPTS = {"p2c": "train_p2c.py", "projector": "train_asr.py", "asr": "train_asr.py"}


@dataclass
class TableArguments:
    """Which table, and where it goes."""

    recipe: str = field(default="recipes/paper_table.yaml", metadata={"help": "YAML: base, data, sections of rows."})
    work: str = field(default="data/table", metadata={"help": "Folder for texts, runs and hypotheses; may be large."})
    results: str = field(default="docs/results", metadata={"help": "Folder for the tables and the plot."})
    quick: bool = field(default=False, metadata={"help": "The recipe's quick settings."})
    sections: list[str] | None = field(default=None, metadata={"help": "Only these; all when left out."})
    speech: list[str] = field(default_factory=list, metadata={"help": "Further manifests to learn from."})
    tests: list[str] = field(default_factory=list, metadata={"help": "Further manifests to be tested on."})


@dataclass
class Data:
    """What all rows share: sentences to learn from, texts by size, test sets.

    Args:
        recipe: The `data` of the recipe.
        folder: Where the derived files go.
    """

    recipe: dict
    folder: Path

    def speech(self, share: float) -> Path:
        """A manifest of a random `share` of the clips; a smaller share is a part of a larger one."""
        from pinyin_llm.corpora.manifest import write_manifest

        path = self.folder / f"speech_{share:g}.tsv"
        if not path.exists():
            rows = self._clips()
            random.Random(0).shuffle(rows)
            kept = rows[: max(1, round(share * len(rows)))]
            write_manifest(path, [(Path(r["audio"]), r["text"], r["speaker"], r["seconds"], r["split"]) for r in kept])
        return path

    def text(self, times: int) -> Path:
        """Sentences of `times` the characters of the transcripts: those themselves, then auxiliary text."""
        path = self.folder / f"text_{times}x.txt"
        if not path.exists():
            from pinyin_llm.text_normalization import han_only, read_aloud

            lines = [han_only(read_aloud(row["text"])) for row in self._clips()]
            said = sum(map(len, lines))
            more = [line for file in self.recipe["auxiliary"] for line in Path(file).read_text("utf-8").splitlines()]
            random.Random(0).shuffle(more)
            missing = (times - 1) * said
            for line in more:
                if missing <= 0:
                    break
                lines.append(line)
                missing -= len(line)
            if missing > 0:
                raise ValueError(
                    f"Expected {times * said} characters for {times}x, found {times * said - missing}. Add auxiliary."
                )
            path.write_text("\n".join(filter(None, lines)) + "\n", encoding="utf-8")
        return path

    def _clips(self) -> list[dict]:
        from pinyin_llm.corpora.manifest import read_manifest

        return [row for path in self.recipe["speech"] for row in read_manifest(path).to_list()]


def stages_of(base: dict, row: dict, data: Data, seed: int) -> list[tuple[str, dict]]:
    """The stages of one row in their order: (name, arguments). A stage that the row sets to null is left out."""
    times, share = row.get("text", 0), row.get("speech", 1.0)
    left_out = {name for name in SCRIPTS if name in row and row[name] is None} | (set() if times else {"p2c"})
    stages = []
    for name in SCRIPTS:
        if name in left_out or name not in base:
            continue
        arguments = base[name] | (row.get(name) or {}) | {"seed": seed}
        if name == "p2c":
            arguments |= {"texts": [str(data.text(times))]}
        else:
            arguments |= {"manifests": [str(data.speech(share))]}
        stages.append((name, arguments))
    return stages


def run_stages(stages: list[tuple[str, dict]], parts: dict, runs: Path) -> Path:
    """Run the stages one after the other, each from the model before it; the folder of the last.

    Raises:
        RuntimeError: A stage failed; the message ends with the end of its log.
    """
    folder = None
    for name, arguments in stages:
        arguments = arguments | ({"model": str(folder)} if folder else parts)
        digest = hashlib.sha256(json.dumps([name, arguments], sort_keys=True).encode()).hexdigest()[:12]
        folder = runs / f"{name}-{digest}"
        if (folder / "run.json").exists():
            continue
        import yaml

        recipe, log = runs / f"{folder.name}.yaml", runs / f"{folder.name}.log"
        recipe.write_text(yaml.safe_dump({name: arguments | {"output_dir": str(folder)}}, allow_unicode=True), "utf-8")
        command = [sys.executable, str(Path(__file__).with_name(SCRIPTS[name])), f"{recipe}:{name}"]
        with log.open("w") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code:
            raise RuntimeError(f"{' '.join(command)}: exit code {code}.\n{log.read_text()[-2000:]}")
    return folder


def write_down(folder: Path, tests: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """(reference, hypothesis) of every clip of every test set; kept beside the model."""
    from pinyin_llm.audio_pinyin_llm import load_waveform
    from pinyin_llm.corpora.manifest import read_manifest
    from pinyin_llm.generation_pinyin_llm import transcribe_clips
    from pinyin_llm.transcription import load_model

    path = folder / "hypotheses.json"
    written = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if missing := {name: file for name, file in tests.items() if name not in written}:
        model, processor = load_model(folder)
        for name, manifest in missing.items():
            rows = read_manifest(manifest)
            texts = transcribe_clips(model, processor, [load_waveform(file) for file in rows["audio"]])
            written[name] = list(zip(rows["text"], texts, strict=True))
        path.write_text(json.dumps(written, ensure_ascii=False), "utf-8")
    return {name: written[name] for name in tests}


def at_rate(row: dict, rate: float) -> dict:
    """`row` with that learning rate in its last stage."""
    return merge(row, {"asr": {"learning_rate": rate}})


def best_learning_rate(base: dict, row: dict, data: Data, parts: dict, runs: Path) -> float:
    """The rate of the last stage that this very row does best with, on clips that are in no test set."""
    from pinyin_llm.table_report import score_pairs

    def error(rate: float) -> float:
        folder = run_stages(stages_of(base, at_rate(row, rate), data, seed=0), parts, runs)
        return score_pairs(write_down(folder, {"dev": data.recipe["dev"]})["dev"]).cer

    return min(data.recipe["learning_rates"], key=error)


def run_row(recipe: dict, row: dict, data: Data, runs: Path) -> dict[str, list[list[tuple[str, str]]]]:
    """One row with every seed: (reference, hypothesis) pairs a seed, by test set."""
    base, parts = recipe["base"], recipe["model"] | row.get("model", {})
    row = at_rate(row, best_learning_rate(base, row, data, parts, runs))
    pairs: dict[str, list] = {name: [] for name in data.recipe["tests"]}
    for seed in recipe["seeds"]:
        folder = run_stages(stages_of(base, row, data, seed), parts, runs)
        for name, found in write_down(folder, data.recipe["tests"]).items():
            pairs[name].append(found)
    return pairs


def main(argv: list[str] | None = None) -> int:
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(TableArguments).parse_args_into_dataclasses(argv)
    import yaml
    from tqdm import tqdm

    from pinyin_llm.table_report import write_report

    recipe = yaml.safe_load(Path(arguments.recipe).read_text("utf-8"))
    if arguments.quick:
        recipe = merge(recipe, recipe["quick"])
    recipe["data"]["speech"] += arguments.speech
    recipe["data"]["tests"] |= {Path(path).parent.name: path for path in arguments.tests}
    runs = Path(arguments.work, "runs")
    runs.mkdir(parents=True, exist_ok=True)
    data = Data(recipe["data"], Path(arguments.work))
    sections = {name: rows for name, rows in recipe["sections"].items() if rows}  # null: the quick form does without
    wanted = {name: rows for name, rows in sections.items() if name in (arguments.sections or [name])}
    rows = [(section, name, row or {}) for section, rows in wanted.items() for name, row in rows.items()]
    results: dict[str, dict] = {section: {} for section in wanted}
    for section, name, row in tqdm(rows, unit="row"):
        results[section][name] = run_row(recipe, row, data, runs)
        write_report(results, Path(arguments.results))  # after every row: a reader need not wait for the last
    return 0


def merge(base: dict, changes: dict) -> dict:
    """`base` with the leaves of `changes` put into it."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


if __name__ == "__main__":
    sys.exit(main())
