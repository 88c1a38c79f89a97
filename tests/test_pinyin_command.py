"""`pinyin-llm pinyin`: text to pinyin, line by line, and back through `convert`'s reader."""

import io

import pytest

from pinyin_llm.inference.cli import main
from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "yin2 hang2 hang2 zhang3 ，AI 3.5 ban3"),
        (["--style", "toneless"], "yin hang hang zhang ，AI 3.5 ban"),
        (["--style", "accented"], "yín háng háng zhǎng ，AI 3.5 bǎn"),
        (["--drop_other"], "yin2 hang2 hang2 zhang3 ban3"),
    ],
)
def test_styles(flags, expected, capsys):
    assert main(["pinyin", *flags, "银行行长，AI 3.5版"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_a_line_in_is_a_line_out_that_convert_reads(monkeypatch, capsys):
    lines = ["重庆人爱走路", "", "🙂", "我们去上海的大学"]
    stdin = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["pinyin", "--drop_other"]) == 0
    pinyin = capsys.readouterr().out.split("\n")[:-1]
    tokenizer = PinyinTokenizer.from_file()
    for line, written in zip(lines, pinyin, strict=True):
        assert [units[0] for units in tokenizer.encode_syllables(written)] == tokenizer.encode_characters(line)[1]


def test_version_and_module(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("pinyin-llm 0.")


@pytest.mark.parametrize("words", [["base"], ["base", "gpt"], ["release", "only-one"]])
def test_modules_refuse_bad_usage(words, capsys):
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_device_that_is_not_there_is_named(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["convert", "--device", "cuda", "ni3 hao3"]) == 2
    assert "'cuda'" in capsys.readouterr().err
