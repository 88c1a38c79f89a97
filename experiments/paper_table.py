"""The paper's table from one command: the rows of a recipe -> both stages -> CER on every test set -> docs/results/.

pinyin-llm paper_table          # hours; resumes if interrupted
pinyin-llm paper_table --quick  # a smoke test: few steps, one seed, the first section
pinyin-llm paper_table --recipe recipes/paper_table_aishell1.yaml --results data/table_aishell1/results \
  --launcher "accelerate launch --config_file recipes/accelerate_8_gpus.yaml"

A row differs from the recipe's base only in what it names. A stage that two rows share is run once: its folder is named
by a hash of its arguments and of the stages before it. The texts of a row are kept beside the tables, under the name of
its last stage: where those texts are, the row needs no training.
"""

import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from threading import Lock

from ..inference.console import report_errors


SCRIPTS = {"p2c": "train_p2c.py", "projector": "train_asr.py", "asr": "train_asr.py"}
LOADING = Lock()  # from_pretrained changes transformers' globals: of two calls at once, one lost its lm_head


@dataclass
class TableArguments:
    """Which table, and where it is written."""

    recipe: str = field(default="recipes/paper_table.yaml", metadata={"help": "YAML: base, data, sections of rows."})
    work: str = field(default="data/table", metadata={"help": "Folder for texts, runs and hypotheses; may be large."})
    results: str = field(default="docs/results", metadata={"help": "Folder for the tables and the plot."})
    quick: bool = field(default=False, metadata={"help": "The recipe's quick settings; into RESULTS/quick."})
    sections: list[str] | None = field(
        default=None, metadata={"help": "Only these; the others keep their lines in the tables."}
    )
    speech: list[str] = field(default_factory=list, metadata={"help": "Further manifests to train on."})
    tests: list[str] = field(default_factory=list, metadata={"help": "Further manifests to test on."})
    workers: int = field(default=1, metadata={"help": "Rows trained in parallel; each gets its share of the cores."})
    launcher: str = field(default=sys.executable, metadata={"help": "The command that starts a training script."})


@dataclass
class Data:
    """What all rows share: training speech, texts by size, test sets.

    Args:
        recipe: The `data` of the recipe.
        folder: Where the derived files go.
    """

    recipe: dict
    folder: Path
    lock: Lock = field(default_factory=Lock)  # rows trained in parallel need the same files

    def speech(self, share: float) -> Path:
        """A manifest of a random `share` of the clips; smaller shares are subsets of larger ones."""
        from ..corpora.manifest import write_manifest

        path = self.folder / f"speech_{share:g}.tsv"
        with self.lock:
            if not path.exists():
                rows = self._clips()
                random.Random(0).shuffle(rows)
                rows = rows[: max(1, round(share * len(rows)))]
                columns = ("text", "speaker", "seconds", "split")
                write_manifest(path, [(Path(row["audio"]), *(row[name] for name in columns)) for row in rows])
        return path

    def text(self, times: int) -> Path:
        """Sentences of `times` the characters of the transcripts: those themselves, then auxiliary text."""
        path = self.folder / f"text_{times}x.txt"
        with self.lock:
            if not path.exists():
                path.write_text("\n".join(filter(None, self._sentences(times))) + "\n", encoding="utf-8")
        return path

    def _sentences(self, times: int) -> list[str]:
        from ..scoring.normalization import han_only, read_aloud

        lines = [han_only(read_aloud(row["text"])) for row in self._clips()]
        said = sum(map(len, lines))
        more = [line for file in self.recipe["auxiliary"] for line in Path(file).read_text("utf-8").splitlines()]
        random.Random(0).shuffle(more)
        missing = (times - 1) * said
        for line in more:
            if missing <= 0:
                return lines
            lines.append(line)
            missing -= len(line)
        if missing > 0:
            found = times * said - missing
            raise ValueError(f"Expected {times * said} characters for {times}x, found {found}. Add auxiliary.")
        return lines

    def _clips(self) -> list[dict]:
        from ..corpora.manifest import read_manifest

        return [row for path in self.recipe["speech"] for row in read_manifest(path).to_list()]


def stages_of(recipe: dict, row: dict, data: Data, seed: int) -> list[tuple[str, dict]]:
    """The stages of one row in their order: (name, arguments). A stage that the row sets to null is left out.

    The first makes the language model, if the recipe has a `start`. Rows that differ in their projector share stage 1,
    which does not use it; the projector is replaced after that.
    """
    base, projector, times = recipe["base"], row.get("model", {}), row.get("text", 0)
    left_out = {name for name in SCRIPTS if name in row and row[name] is None} | (set() if times else {"p2c"})
    model = dict(recipe["model"])
    start = [("start", model.pop("start"))] if "start" in model else []
    stages: list[tuple[str, dict]] = []
    for name in (name for name in SCRIPTS if name in base and name not in left_out):
        arguments = base[name] | (row.get(name) or {}) | {"seed": seed}
        arguments |= model if not stages else {}
        if name == "p2c":
            stages.append((name, arguments | {"texts": [str(data.text(times))]}))
            continue
        if projector and not any(done != "p2c" for done, _ in stages):
            arguments |= projector | ({"new_projector": True} if stages else {})
        if row.get("replay") and name == "asr":
            arguments["replay_texts"] = [str(data.text(times))]
        stages.append((name, arguments | {"manifests": [str(data.speech(row.get("speech", 1.0)))]}))
    return start + stages


@dataclass
class Stage:
    """One stage of a row: its arguments, which name the model of the stage before, and the folder of its own model."""

    name: str
    arguments: dict
    folder: Path

    def command(self, launcher: str) -> list[str]:
        """The command that runs it; writes its recipe beside its folder."""
        import yaml

        if self.name == "start":
            given = self.arguments | {"output": str(self.folder)}
            command = [sys.executable, "-m", "pinyin_llm.bases.han_llama"]
            for name, value in given.items():
                command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
            return command
        recipe, given = self.folder.with_suffix(".yaml"), self.arguments | {"output_dir": str(self.folder)}
        recipe.write_text(yaml.safe_dump({self.name: given}, allow_unicode=True), "utf-8")
        script = str(Path(__file__).parents[1] / SCRIPTS[self.name])
        return [*shlex.split(launcher), script, f"{recipe}:{self.name}"]


@dataclass
class Runner:
    """Runs stages, each in a process of its own, which writes a folder and a log beside it.

    Args:
        runs: Where the folders go.
        texts: Where the texts of the rows are kept.
        launcher: The command that starts a script.
        workers: How many stages may run at once.
    """

    runs: Path
    texts: Path
    launcher: str = sys.executable
    workers: int = 1
    locks: dict[str, Lock] = field(default_factory=lambda: defaultdict(Lock))  # by folder: rows share them

    def plan(self, stages: list[tuple[str, dict]]) -> list[Stage]:
        """The stages with the model of the one before each, and their folders. Nothing is run."""
        planned: list[Stage] = []
        for name, arguments in stages:
            if planned:
                before = "language_model" if planned[-1].name == "start" else "model"
                arguments = arguments | {before: str(planned[-1].folder)}
            digest = hashlib.sha256(json.dumps([name, arguments], sort_keys=True).encode()).hexdigest()[:12]
            planned.append(Stage(name, arguments, self.runs / f"{name}-{digest}"))
        return planned

    def run(self, stages: list[Stage]) -> Path:
        """Run the stages that have not been run; returns the folder of the last.

        Raises:
            RuntimeError: A stage failed; the message ends with the end of its log.
        """
        for stage in stages:
            with self.locks[stage.folder.name]:
                if not (stage.folder / "done").exists():
                    self._start(stage)
        return stages[-1].folder

    def _start(self, stage: Stage) -> None:
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.workers))} if self.workers > 1 else {}
        command, log = stage.command(self.launcher), stage.folder.with_suffix(".log")
        with log.open("w") as output:
            run = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | threads)
        if run.returncode:
            raise RuntimeError(f"{shlex.join(command)}: exit code {run.returncode}.\n{log.read_text()[-2000:]}")
        (stage.folder / "done").touch()


def transcribe_tests(folder: Path, tests: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """(reference, hypothesis) of every clip of every test set, transcribed by the model in `folder`."""
    from ..audio_pinyin_llm import load_waveform
    from ..corpora.manifest import read_manifest
    from ..inference.loading import load_model
    from ..transcription_pinyin_llm import transcribe_clips

    with LOADING:
        model, processor = load_model(folder)
    pairs = {}
    for name, manifest in tests.items():
        rows = read_manifest(manifest)
        texts = transcribe_clips(model, processor, [load_waveform(file) for file in rows["audio"]])
        pairs[name] = list(zip(rows["text"], texts, strict=True))
    return pairs


def at_rate(row: dict, rate: float) -> dict:
    """`row` with this learning rate in its last stage."""
    return merge(row, {"asr": {"learning_rate": rate}})


def best_learning_rate(recipe: dict, row: dict, data: Data, runner: Runner, rates: list[float]) -> float:
    """The learning rate among `rates` with the lowest CER of this row on clips that are in no test set."""
    from .table_report import score_pairs

    def error(rate: float) -> float:
        found = row_texts(recipe, at_rate(row, rate), data, runner, recipe["seeds"][0], {"dev": data.recipe["dev"]})
        return score_pairs(found["dev"]).cer

    return min(rates, key=error) if len(rates) > 1 else rates[0]


def row_texts(recipe: dict, row: dict, data: Data, runner: Runner, seed: int, tests: dict) -> dict[str, list]:
    """The result of `transcribe_tests` for a row with one seed; it is trained only if its texts are not kept yet.

    Texts of a test set that has changed since do not count.
    """
    from ..corpora.manifest import read_manifest

    stages = runner.plan(stages_of(recipe, row, data, seed))
    path = runner.texts / f"{stages[-1].folder.name}.json"
    with runner.locks[path.name]:
        pairs = json.loads(path.read_text("utf-8")) if path.exists() else {}
        missing = {}
        for name, file in tests.items():
            references = list(read_manifest(file)["text"])
            if references != [reference for reference, _ in pairs.get(name, [])]:
                missing[name] = file
        if missing:
            pairs |= transcribe_tests(runner.run(stages), missing)
            path.write_text(json.dumps(pairs, ensure_ascii=False, indent=0) + "\n", "utf-8")
    return {name: pairs[name] for name in tests}


def run_row(recipe: dict, section: str, row: dict, data: Data, runner: Runner, seed: int) -> tuple[float, dict]:
    """One row with one seed: its learning rate, which the first seed chose, and the pairs of each test set.

    Only the sections listed as `choosing` choose (all, if there is no such list); the others take the last rate.
    """
    rates = data.recipe["learning_rates"]
    rates = rates if section in data.recipe.get("choosing", [section]) else rates[-1:]
    rate = best_learning_rate(recipe, row, data, runner, rates)
    return rate, row_texts(recipe, at_rate(row, rate), data, runner, seed, data.recipe["tests"])


def name_tests(manifests: list[str]) -> dict[str, str]:
    """Test sets by the names of their folders.

    Raises:
        ValueError: Two sets of one name, whose texts would be confused.
    """
    named: dict[str, str] = {}
    for path in manifests:
        if (other := named.setdefault(Path(path).absolute().parent.name, path)) != path:
            raise ValueError(f"{other} and {path}: a set is named by its folder, so expected two folders. Move one.")
    return named


def folder_of(work: Path, speech: list[str]) -> Path:
    """Where files made from the speech go; with further speech a folder named by its content."""
    digest = hashlib.sha256(b"".join(Path(path).read_bytes() for path in speech)).hexdigest()[:12]
    return work / f"with-{digest}" if speech else work


def read_recipe(arguments: TableArguments) -> dict:
    """The recipe, with the speech and the test sets that the command adds."""
    import yaml

    recipe = yaml.safe_load(Path(arguments.recipe).read_text("utf-8"))
    if arguments.quick:
        recipe = merge(recipe, recipe["quick"])
    recipe["data"]["speech"] += arguments.speech
    recipe["data"]["tests"] |= name_tests(arguments.tests)
    return recipe


def main(argv: list[str] | None = None) -> int:
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(TableArguments).parse_args_into_dataclasses(argv)
    from tqdm import tqdm

    from .table_report import add_seed, write_report

    recipe = read_recipe(arguments)
    work, results = Path(arguments.work), Path(arguments.results, "quick" if arguments.quick else "")
    runner = Runner(work / "runs", results / "texts", arguments.launcher, arguments.workers)
    data = Data(recipe["data"], folder_of(work, arguments.speech))
    for folder in (runner.runs, runner.texts, data.folder):
        folder.mkdir(parents=True, exist_ok=True)
    named = arguments.sections or recipe.get("only") or list(recipe["sections"])
    wanted = {name: recipe["sections"][name] for name in named}
    rows = [(section, name, row or {}) for section, rows in wanted.items() for name, row in rows.items()]
    found_so_far: dict[str, dict] = {section: {} for section in recipe["sections"]}
    pool, shared = ThreadPoolExecutor(runner.workers), (recipe, data, runner)
    try:  # seed by seed, so that all rows can be compared early; the next seed starts while the last rows still run
        runs = [run_rows(pool, rows, shared, seed) for seed in recipe["seeds"]]
        for (section, name, _), (rate, found) in tqdm(chain(*runs), total=len(rows) * len(runs), unit="run"):
            add_seed(found_so_far[section].setdefault(name, {"learning rate": rate, "seeds": {}}), found)
            write_report(found_so_far, results, data.recipe["tests"])
    finally:  # after an error, waiting rows are not started
        pool.shutdown(cancel_futures=True)
    return 0


def run_rows(pool, rows: list[tuple], shared: tuple[dict, Data, Runner], seed: int) -> Iterator[tuple]:
    """Run all `rows` (section, name, settings) with one seed in the pool; (row, result of `run_row`) in their order."""
    recipe, data, runner = shared
    runs = pool.map(lambda row: run_row(recipe, row[0], row[2], data, runner, seed), rows)
    return zip(rows, runs, strict=True)


def merge(base: dict, changes: dict) -> dict:
    """`base` with the leaves of `changes` put into it."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


if __name__ == "__main__":
    sys.exit(report_errors(main))
