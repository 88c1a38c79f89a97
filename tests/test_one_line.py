"""What a file or an argument causes ends in one line that names it, and exit code 2: model folders, recipes, data."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from conftest import build_model, save_folder

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.inference.cli import main
from pinyin_llm.ngrams_pinyin_llm import CharacterNgrams


ROOT = Path(__file__).parents[1]
DAMAGES = {"junk": b"\x00\xffjunk" * 9, "empty": b"", "list": b"[]", "null": b"null"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    save_folder(build_model("pinyin_bridge"), folder)
    CharacterNgrams.from_lines(["今天天气很好"], least=1).save(folder / "ngrams.safetensors")
    return folder


def run_script(name: str, *arguments, capsys) -> str:
    """A training script as it is started by its name; what it says on stderr. Its exit code must be 2."""
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / name), run_name="__main__")
    finally:
        sys.argv = before
    assert exit.value.code == 2
    return capsys.readouterr().err


def assert_one_line(talk: str, *words) -> None:
    (line,) = (line for line in talk.splitlines() if "error: " in line)
    assert "Traceback" not in talk
    assert all(str(word) in line for word in words), line
    assert len(line) < 1000


@pytest.mark.parametrize("damage", ["junk", "empty", "list", "null"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "ngrams.safetensors",
     "model.safetensors"],
)  # fmt: skip
def test_damaged_files_of_a_model(name, damage, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(DAMAGES[damage])
    assert main(["convert", "ni3 hao3", "--model", str(tmp_path)]) == 2
    assert_one_line(capsys.readouterr().err, tmp_path)


@pytest.mark.parametrize("part", ["audio_config", "text_config"])
@pytest.mark.parametrize("value", ["x", -1, 0])
def test_impossible_sizes(part, value, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text("utf-8"))
    for key in (
        "d_model",
        "encoder_attention_heads",
        "num_mel_bins",
        "hidden_size",
        "num_key_value_heads",
        "hidden_act",
    ):
        if key in values[part]:
            changed = json.loads(json.dumps(values))
            changed[part][key] = value
            (tmp_path / "config.json").write_text(json.dumps(changed), "utf-8")
            with pytest.raises(ValueError, match=str(tmp_path)):
                PinyinLlamaForASR.from_pretrained(tmp_path)


def test_model_that_is_not_there(tmp_path, capsys):
    for model, found in (("nowhere", "found no such folder"), ("", "expected a model folder with config.json")):
        assert main(["convert", "ni3 hao3", "--model", str(tmp_path / model)]) == 2
        assert_one_line(capsys.readouterr().err, tmp_path / model, found)


def test_errors_of_the_program_keep_their_traceback(whole, monkeypatch):
    monkeypatch.setattr(PinyinLlamaProcessor, "pinyin_constraint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["convert", "ni3 hao3", "--model", str(whole)])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("p2c: [1, 2\n", ["expected ',' or ']'"]),
        ("other: {}\n", ["has no section 'p2c'"]),
        ("p2c: {colour: red}\n", ["colour"]),
        (None, ["recipe.yaml"]),
    ],
)
def test_recipes(recipe, words, tmp_path, capsys):
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    assert_one_line(run_script("train_p2c.py", tmp_path / "recipe.yaml", capsys=capsys), *words)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train_p2c.py", "--model {whole} --texts {tmp}/none.txt", ["none.txt"]),
        ("train_p2c.py", "--model {tmp}/none --texts {good}", ["/none: expected the folder of a PinyinLLM model"]),
        ("train_p2c.py", "--model {whole} --texts {tmp}/gbk", ["gbk: expected text in UTF-8", "GB18030"]),
        ("train_p2c.py", "--model {whole} --texts {good} --eval_texts {tmp}/gbk", ["gbk: expected UTF-8"]),
        ("train_p2c.py", "--model {whole} --texts {good} --eval_texts {tmp}/cut", ["cut, line 2: expected"]),
        ("train_p2c.py", "--model {whole} --texts {good} --eval_texts {tmp}/bad", ["bad, line 2: 'xq3'"]),
        ("train_asr.py", "--model {whole} --manifests {tmp}/none.tsv", ["none.tsv: expected a manifest"]),
        ("train_asr.py", "--model {whole} --manifests {tmp}/gbk", ["gbk: expected text in UTF-8"]),
        ("train_asr.py", "--model {whole} --manifests {tmp}/lost.tsv", ["none in 1 clips (1 unreadable)", "a.wav"]),
    ],
)
def test_training_scripts(script, arguments, words, whole, parts, tmp_path, capsys):
    (tmp_path / "gbk").write_bytes("今天天气很好，我们去公园散步。\n".encode("gbk"))
    (tmp_path / "cut").write_text("text\ttoned\ttoneless\n你好\tni3 hao3\n", "utf-8")
    (tmp_path / "bad").write_text("text\ttoned\ttoneless\n你好\txq3\tni hao\n", "utf-8")
    (tmp_path / "lost.tsv").write_text("file\ttext\na.wav\t你好\n", "utf-8")
    places = {"whole": whole, "tmp": tmp_path, "good": parts / "texts.txt"}
    own = "--num_proc 1" if "p2c" in script else "--cache_features {tmp}/cache"
    given = f"{arguments} {own} --output_dir {{tmp}}/out --use_cpu".format(**places).split()
    assert_one_line(run_script(script, *given, capsys=capsys), *words)
    assert not list(tmp_path.glob("out/*.safetensors"))
