"""The paper's table: rows share what they have in common, text sizes are nested, figures are those of the texts."""

import csv
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import SENTENCES

from pinyin_llm.corpora import prepare
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.corpora.pack import pack
from pinyin_llm.experiments import paper_table
from pinyin_llm.experiments.table_report import add_seed, summarize, write_report


SAID = SENTENCES[:4]  # in the clips of `parts`
STEPS = {"max_steps": 1, "use_cpu": True, "remove_unused_columns": False, "eval_strategy": "no", "save_strategy": "no"}


def result(*seeds: dict) -> dict:
    """A row of the results: what each seed found, (reference, hypothesis) pairs by test set."""
    row = {"learning rate": 0.01, "seeds": {}}
    for found in seeds:
        add_seed(row, found)
    return row


ROOT = Path(__file__).parents[1]
OTHER = {"model": {"projector_type": "pinyin_bridge", "projector_stride": 4}}


@pytest.fixture
def recipe(parts, tmp_path) -> dict:
    """A table of two rows on tiny parts."""
    speech = parts / "speech" / "manifest.tsv"
    asr = STEPS | {"learn": "text", "lora": 2, "lowest_layers": 1, "cache_features": str(tmp_path / "features")}
    return {
        "model": {"audio_tower": str(parts / "whisper"), "language_model": str(parts / "llama")},
        "data": {
            "speech": [str(speech)],
            "dev": str(speech),
            "tests": {"tones": str(speech)},
            "auxiliary": [str(parts / "texts.txt")],
            "learning_rates": [0.01],
        },
        "seeds": [0],
        "base": {"p2c": STEPS | {"lora": 2}, "asr": asr},
        "sections": {"paper": {"no P2C": {"text": 0}, "2x": {"text": 2}, "other": {"text": 2, "replay": True} | OTHER}},
    }


def test_table_is_made_and_made_once(recipe, tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8")
    command = ["--recipe", str(path), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    command += ["--workers", "2"]
    assert paper_table.main(command) == 0
    runs = {folder.name: folder.stat().st_mtime for folder in (tmp_path / "work" / "runs").glob("*-*/")}
    assert sorted(name.split("-")[0] for name in runs) == ["asr", "asr", "asr", "p2c"]
    with (tmp_path / "results" / "table.csv").open(encoding="utf-8") as lines:
        assert [line["row"] for line in csv.DictReader(lines)] == ["no P2C", "2x", "other"]
    assert (tmp_path / "results" / "cer_by_text.png").stat().st_size > 1000
    table = (tmp_path / "results" / "table.json").read_bytes()
    shutil.rmtree(tmp_path / "results")
    assert paper_table.main(command) == 0  # the models are there: they write again, and are not trained again
    assert runs == {folder.name: folder.stat().st_mtime for folder in (tmp_path / "work" / "runs").glob("*-*/")}
    shutil.rmtree(tmp_path / "work" / "runs")
    assert paper_table.main(command) == 0  # on another machine: what the rows wrote lies beside the tables
    assert not any((tmp_path / "work" / "runs").iterdir())
    assert (tmp_path / "results" / "table.json").read_bytes() == table


def test_quick_form_runs_the_sections_it_names(recipe, tmp_path, monkeypatch):
    recipe["sections"]["tones"] = {"with": {"text": 1}}
    recipe["quick"] = {"only": ["paper"]}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(paper_table, "run_row", lambda *_: (0.01, {"tones": [("好", "好")]}))
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert paper_table.main(["--recipe", str(tmp_path / "table.yaml"), *folders, "--quick"]) == 0
    with (tmp_path / "results" / "quick" / "table.csv").open(encoding="utf-8") as lines:
        assert [line["section"] for line in csv.DictReader(lines)] == ["paper"] * 3


def test_texts_are_kept_while_the_test_set_stays_as_it_is(recipe, tmp_path, monkeypatch):
    def transcribe_tests(folder, tests):
        written.append(list(tests))
        return {name: [(text, "") for text in read_manifest(file)["text"]] for name, file in tests.items()}

    written: list[list[str]] = []
    monkeypatch.setattr(paper_table, "transcribe_tests", transcribe_tests)
    monkeypatch.setattr(paper_table.Runner, "run", lambda *_: tmp_path)
    data, runner = paper_table.Data(recipe["data"], tmp_path), paper_table.Runner(tmp_path, tmp_path)
    test, other = tmp_path / "test.tsv", tmp_path / "other.tsv"
    test.write_text("file\ttext\na.wav\t你好\n", encoding="utf-8")
    shutil.copyfile(test, other)
    for _ in range(2):
        paper_table.row_texts(recipe, {}, data, runner, 0, {"test": str(test), "other": str(other)})
    test.write_text("file\ttext\nb.wav\t上海\n", encoding="utf-8")
    found = paper_table.row_texts(recipe, {}, data, runner, 0, {"test": str(test), "other": str(other)})
    assert written == [["test", "other"], ["test"]]
    assert found["test"] == [("上海", "")]


def test_further_speech_is_learned_from(tmp_path):
    mine = tmp_path / "mine.tsv"
    mine.write_text("file\ttext\na.wav\t你好\n", encoding="utf-8")
    without, added = paper_table.folder_of(tmp_path, []), paper_table.folder_of(tmp_path, [str(mine)])
    mine.write_text("file\ttext\nb.wav\t上海\n", encoding="utf-8")
    assert len({without, added, paper_table.folder_of(tmp_path, [str(mine)])}) == 3
    with pytest.raises(ValueError, match="a set is named by its folder"):
        paper_table.name_tests(["mine/dev.tsv", "mine/test.tsv"])


def test_rows_share_stages_and_smaller_texts_are_in_larger(recipe, tmp_path):
    data = paper_table.Data(recipe["data"], tmp_path)
    one, ten = (data.text(times).read_text(encoding="utf-8").split() for times in (1, 3))
    assert one == SAID == ten[:4]
    assert 3 <= len("".join(ten)) / len("".join(one)) < 3.3
    clips = [data.speech(share).read_text(encoding="utf-8").splitlines()[1:] for share in (0.5, 1.0)]
    assert len(clips[0]) == 2
    assert clips[0] == clips[1][:2]
    with pytest.raises(ValueError, match="for 100x, found"):
        data.text(100)
    assert [name for name, _ in paper_table.stages_of(recipe, {"text": 0}, data, 0)] == ["asr"]
    plain, changed = (
        paper_table.stages_of(recipe, {"text": 2} | row, data, 0)
        for row in ({}, {"asr": {"lora": 4}, "model": {"projector_stride": 3}, "replay": True})
    )
    assert changed[0] == plain[0]
    differs = {name for name in changed[1][1] if changed[1][1][name] != plain[1][1].get(name)}
    assert differs == {"lora", "projector_stride", "new_projector", "replay_texts"}


def test_each_stage_goes_on_from_the_one_before_it(recipe, tmp_path):
    data, runner = paper_table.Data(recipe["data"], tmp_path), paper_table.Runner(tmp_path, tmp_path)
    recipe["model"]["start"] = {"texts": ["news.txt"], "learn_steps": 30}
    start, p2c, asr = runner.plan(paper_table.stages_of(recipe, {"text": 1}, data, 0))
    assert p2c.arguments["language_model"] == str(start.folder)
    assert asr.arguments["model"] == str(p2c.folder)
    assert start.command("")[-6:] == ["--texts", "news.txt", "--learn_steps", "30", "--output", str(start.folder)]
    recipe["model"]["start"]["learn_steps"] = 60
    assert not {start.folder, p2c.folder, asr.folder} & {
        stage.folder for stage in runner.plan(paper_table.stages_of(recipe, {"text": 1}, data, 0))
    }


def test_speech_travels_in_parquet(recipe, tmp_path):
    (tmp_path / "packed").mkdir()
    pack(recipe["data"]["speech"][0], str(tmp_path / "packed" / "validation.parquet"), num_proc=1)
    assert prepare.main(["dataset", "--root", str(tmp_path / "packed"), "--output", str(tmp_path / "speech")]) == 0
    rows = read_manifest(tmp_path / "speech" / "dev.tsv")
    assert rows["text"][:] == SAID
    assert rows["seconds"][:] == pytest.approx([1.0, 1.2, 1.4, 1.6], abs=0.05)


def test_failed_stage_shows_its_log(recipe, tmp_path):
    stage = ("p2c", {"texts": ["nowhere.txt"]} | STEPS | recipe["model"])
    runner = paper_table.Runner(tmp_path, tmp_path)
    with pytest.raises(RuntimeError, match="nowhere.txt"):
        runner.run(runner.plan([stage]))


def test_gain_is_relative_to_the_first_row():
    rows = {
        "no P2C": result({"a": [("一二三四", "一二五六")]}),
        "10x": result({"a": [("一二三四", "一二三六")]}, {"a": [("一二三四", "一二三四")]}),
    }
    first, second = summarize("paper", rows)
    assert (first["CER %"], second["CER %"]) == ("50.0", "12.5")
    assert second["gain % over the first row"] == "75.0"
    assert (first["seeds"], second["seeds"]) == (1, 2)


def test_another_seed_is_no_other_utterance():
    found = {"a": [("一二三四", "一二三四"), ("一二三四", "五六七八")]}
    (one,), (three,) = (summarize("paper", {"row": result(*[found] * times)}) for times in (1, 3))
    assert (one["low"], one["high"]) == (three["low"], three["high"]) == ("0.0", "100.0")


def test_section_that_was_not_asked_for_stays_in_the_table(tmp_path):
    one, other = ({"row": result({"a": [("一二", "一二")]})}, {"row": result({"a": [("一二", "三四")]})})
    write_report({"paper": one, "units": other, "gone": one}, tmp_path, ["a"])
    write_report({"paper": {}, "units": one, "new": {}}, tmp_path, ["a", "b"])
    with (tmp_path / "table.csv").open(encoding="utf-8") as lines:
        assert [(line["section"], line["CER %"]) for line in csv.DictReader(lines)] == [
            ("paper", "0.0"),
            ("units", "0.0"),
        ]
    titles = [line for line in (tmp_path / "table.md").read_text("utf-8").splitlines() if line.startswith("## ")]
    assert titles == ["## paper (of an earlier run)", "## units"]
    write_report(
        {"paper": {}, "units": {"row": result({"c": [("一二", "一二")]})}}, tmp_path, ["c"]
    )  # another recipe's
    assert "## paper" not in (tmp_path / "table.md").read_text("utf-8")


def test_committed_texts_belong_to_the_recipe(monkeypatch):
    """A stage is named by a hash of its arguments: were it to change, all rows would be trained again."""
    monkeypatch.setattr(paper_table.Data, "speech", lambda self, share: self.folder / f"speech_{share:g}.tsv")
    monkeypatch.setattr(paper_table.Data, "text", lambda self, times: self.folder / f"text_{times}x.txt")
    recipe = yaml.safe_load((ROOT / "recipes" / "paper_table.yaml").read_text("utf-8"))
    data = paper_table.Data(recipe["data"], Path("data/table"))
    runner = paper_table.Runner(Path("data/table/runs"), Path("texts"))
    planned = set()
    for rows in recipe["sections"].values():
        for row in rows.values():
            for rate in recipe["data"]["learning_rates"]:
                for seed in recipe["seeds"]:
                    stages = paper_table.stages_of(recipe, paper_table.at_rate(row or {}, rate), data, seed)
                    planned.add(runner.plan(stages)[-1].folder.name)
    committed = {path.stem for path in (ROOT / "docs" / "results" / "texts").glob("*.json")}
    assert len(committed) == 49
    assert committed <= planned
