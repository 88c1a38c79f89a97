"""The paper's table: rows share what they have in common, text sizes are nested, figures are those of the texts."""

import csv

import pytest
import soundfile
import torch
import yaml
from conftest import tone, whisper_config
from transformers import WhisperFeatureExtractor, WhisperModel

from pinyin_llm import paper_table
from pinyin_llm.corpora import prepare
from pinyin_llm.corpora.han_llama import HanLlamaArguments, write_language_model
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.corpora.pack import pack
from pinyin_llm.table_report import summarize


SENTENCES = ["中国人民银行", "长江和黄河", "今天天气很好", "他要去北京"]
STEPS = {"max_steps": 1, "use_cpu": True, "remove_unused_columns": False, "eval_strategy": "no", "save_strategy": "no"}


@pytest.fixture
def recipe(tmp_path) -> dict:
    """A table of two rows on tiny parts."""
    texts = tmp_path / "auxiliary.txt"
    texts.write_text("\n".join(["汉字：", *SENTENCES * 10]) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "fewest": 1}
    write_language_model(HanLlamaArguments(texts=[str(texts)], output=str(tmp_path / "llama"), **sizes))
    torch.manual_seed(0)
    WhisperModel(whisper_config()).save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(tmp_path / "whisper")
    rows = ["file\ttext"]
    for number, sentence in enumerate(SENTENCES):
        soundfile.write(tmp_path / f"{number}.wav", tone(1.0 + 0.2 * number, 200 + 100 * number), 16000)
        rows.append(f"{number}.wav\t{sentence}")
    speech = tmp_path / "speech.tsv"
    speech.write_text("\n".join(rows) + "\n", encoding="utf-8")
    asr = STEPS | {"learn": "text", "lora": 2, "lowest_layers": 1, "cache_features": str(tmp_path / "features")}
    return {
        "model": {"audio_tower": str(tmp_path / "whisper"), "language_model": str(tmp_path / "llama")},
        "data": {
            "speech": [str(speech)],
            "dev": str(speech),
            "tests": {"tones": str(speech)},
            "auxiliary": [str(texts)],
            "learning_rates": [0.01],
        },
        "seeds": [0],
        "base": {"p2c": STEPS | {"lora": 2}, "asr": asr},
        "sections": {"paper": {"no P2C": {"text": 0}, "2x": {"text": 2}}},
    }


def test_table_is_made_and_made_once(recipe, tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8")
    command = ["--recipe", str(path), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert paper_table.main(command) == 0
    runs = {folder.name: folder.stat().st_mtime for folder in (tmp_path / "work" / "runs").glob("*-*/")}
    assert sorted(name.split("-")[0] for name in runs) == ["asr", "asr", "p2c"]
    with (tmp_path / "results" / "table.csv").open(encoding="utf-8") as lines:
        assert [line["row"] for line in csv.DictReader(lines)] == ["no P2C", "2x"]
    assert (tmp_path / "results" / "cer_by_text.png").stat().st_size > 1000
    assert paper_table.main(command) == 0
    assert runs == {folder.name: folder.stat().st_mtime for folder in (tmp_path / "work" / "runs").glob("*-*/")}


def test_rows_share_stages_and_smaller_texts_are_in_larger(recipe, tmp_path):
    data = paper_table.Data(recipe["data"], tmp_path)
    one, ten = (data.text(times).read_text(encoding="utf-8").split() for times in (1, 3))
    assert one == SENTENCES == ten[:4]
    assert 3 <= len("".join(ten)) / len("".join(one)) < 3.3
    clips = [data.speech(share).read_text(encoding="utf-8").splitlines()[1:] for share in (0.5, 1.0)]
    assert len(clips[0]) == 2
    assert clips[0] == clips[1][:2]
    with pytest.raises(ValueError, match="for 100x, found"):
        data.text(100)
    base = recipe["base"]
    assert [name for name, _ in paper_table.stages_of(base, {"text": 0}, data, 0)] == ["asr"]
    changed = paper_table.stages_of(base, {"text": 2, "asr": {"lora": 4}}, data, 0)
    assert changed[0] == paper_table.stages_of(base, {"text": 2}, data, 0)[0]
    assert changed[1][1]["lora"] == 4


def test_speech_travels_in_parquet(recipe, tmp_path):
    (tmp_path / "packed").mkdir()
    pack(recipe["data"]["speech"][0], str(tmp_path / "packed" / "validation.parquet"), num_proc=1)
    assert prepare.main(["dataset", "--root", str(tmp_path / "packed"), "--output", str(tmp_path / "speech")]) == 0
    rows = read_manifest(tmp_path / "speech" / "dev.tsv")
    assert rows["text"][:] == SENTENCES
    assert rows["seconds"][:] == pytest.approx([1.0, 1.2, 1.4, 1.6], abs=0.05)


def test_failed_stage_shows_its_log(recipe, tmp_path):
    stage = ("p2c", {"texts": ["nowhere.txt"]} | STEPS)
    with pytest.raises(RuntimeError, match="nowhere.txt"):
        paper_table.run_stages([stage], recipe["model"], tmp_path)


def test_gain_is_relative_to_the_first_row():
    rows = {
        "no P2C": {"a": [[("一二三四", "一二五六")]]},
        "10x": {"a": [[("一二三四", "一二三六")], [("一二三四", "一二三四")]]},
    }
    first, second = summarize("paper", rows)
    assert (first["CER %"], second["CER %"]) == ("50.0", "12.5")
    assert second["gain % over the first row"] == "75.0"
