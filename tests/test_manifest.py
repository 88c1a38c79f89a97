"""Manifests as people make them: each fault is a ManifestError with the path, the row, what was expected and found."""

import json
import os

import pytest

from pinyin_llm.corpora import manifest
from pinyin_llm.corpora.manifest import ManifestError, read_manifest
from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer
from pinyin_llm.training.preview import check_sounds
from pinyin_llm.training.speech_data import read_speech


TEXT = "甚至出现交易几乎停滞的情况"
HEADER = "file\ttext\tseconds\n"


def refusal(path) -> str:
    with pytest.raises(ManifestError) as refused:
        read_manifest(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert all(word in message for word in ("expected", "found"))
    assert len(message) < len(str(path)) + 300
    return message.removeprefix(str(path))


@pytest.mark.parametrize("seconds", ["four", "-4.2", "NaN", "inf", "-inf", "0:04", "4,2", "4.2 s"])
def test_seconds_that_are_no_number_of_seconds(seconds, tmp_path):
    (tmp_path / "m.tsv").write_text(f"{HEADER}a.wav\t{TEXT}\t4.2\nb.wav\t{TEXT}\t{seconds}\n", "utf-8")
    assert refusal(tmp_path / "m.tsv").startswith(
        f", row 2: expected seconds as a number such as 4.2, found {seconds!r}"
    )


@pytest.mark.parametrize("scale", [1000, 1 / 60, 1 / 3600], ids=["milliseconds", "minutes", "hours"])
def test_seconds_in_another_unit(scale, tmp_path):
    rows = [(f"{number}.wav", TEXT, 4.2 + number) for number in range(5)]
    lines = [f"{file}\t{text}\t{seconds * scale}\n" for file, text, seconds in rows]
    (tmp_path / "m.tsv").write_text("".join([HEADER, *lines]), "utf-8")
    assert "row 1: expected seconds, found" in (message := refusal(tmp_path / "m.tsv"))
    assert "5 of 5 rows are implausible. Are they in another unit?" in message


def test_a_few_implausible_seconds_are_counted_and_named(tmp_path):
    """A long recording with a long text is plausible; so is one whose text is unknown."""
    lengths = [
        ("a", TEXT, 4.2),
        ("b", TEXT, 4200),
        ("c", TEXT * 900, 3000),
        ("d", "", 60),
        ("e", TEXT, 0),
        ("f", "好", 0.3),
    ]
    lines = [f"{file}.wav\t{text}\t{seconds}\n" for file, text, seconds in lengths]
    (tmp_path / "m.tsv").write_text("".join([HEADER, *lines]), "utf-8")
    with pytest.warns(UserWarning, match="row 2: .* found 4200 for 13 characters; 1 of 4 rows are implausible"):
        assert len(read_manifest(tmp_path / "m.tsv")) == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tsv", "file\ttext\na.wav\t你好\nb.wav\n", ", row 2: expected 2 cells, as the header has, found 1: b.wav"),
        ("m.tsv", "file\ttext\na.wav\t你好\t再见\n", ", row 1: expected 2 cells, as the header has, found 3: a.wav"),
        ("m.tsv", "file\ttext\n\t你好\n", ", row 1: expected the columns file and text, each a string"),
        ("m.tsv", "file,text\na.wav,你好\n", ": expected the columns .* by tabs, found file,text"),
        ("m.tsv", "a.wav\t你好\n", ": expected the columns file and text, separated by tabs, found a.wav, 你好"),
        ("m.tsv", "", ": expected the columns file and text, separated by tabs, found an empty file"),
        ("m.jsonl", '{"file": "a.wav", "text": null}\n', ', row 1: expected .* found {"file": "a.wav", "text": null}'),
        ("m.jsonl", '{"file": null, "text": "你好"}\n', ", row 1: expected the columns file and text"),
        ("m.jsonl", '{"file": "a.wav", "text": 110}\n', ", row 1: expected the columns file and text"),
        ("m.jsonl", '{"file": 7, "text": "你好"}\n', ", row 1: expected the columns file and text"),
        ("m.jsonl", '\n["a.wav", "你好"]\n', r', row 1: expected a JSON object of file and text, found \["a.wav"'),
        ("m.jsonl", '{"file": "a", "text": "好"}\n{"file": "b', ', row 2: expected a JSON object .* found {"file": "b'),
        ("m.jsonl", "[" * 100_000, ", row 1: expected a JSON object"),
        ("m.jsonl", '{"file": "a", "text": "好", "seconds": true}', ", row 1: expected seconds .* found True"),
        ("m.jsonl", '{"file": "a", "text": "好", "seconds": [4]}', r", row 1: expected seconds .* found \[4\]"),
        ("m.json", '[{"file": "a.wav", "text": "你好"}]', ": expected .tsv, or .jsonl .* found .json"),
        ("m.tsv", "file\ttext\nsub/../../a.wav\t你好\n", ", row 1: sub/../../a.wav lies outside"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ManifestError, match=f"{name}{message}"):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("encoding", "named"), [("gb18030", "GB18030"), ("utf-16", "UTF-16"), ("big5", "BIG5"), ("utf-16-le", "UTF-16-LE")]
)
@pytest.mark.parametrize("name", ["m.tsv", "m.jsonl"])
def test_other_encodings_are_named(name, encoding, named, tmp_path):
    content = json.dumps({"file": "a.wav", "text": "他在公司看了一本很好的中文字典"}, ensure_ascii=False) + "\n"
    (tmp_path / name).write_bytes((content if name == "m.jsonl" else f"file\ttext\na.wav\t{content}").encode(encoding))
    assert refusal(tmp_path / name).startswith(
        f": expected text in UTF-8, found {named} or the like. Convert it: iconv"
    )


def test_linked_sounds_are_inside(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.wav").touch()
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "wav").symlink_to(tmp_path / "disk")
    (tmp_path / "corpus" / "b.wav").symlink_to(tmp_path / "disk" / "a.wav")
    (tmp_path / "corpus" / "m.tsv").write_text("file\ttext\nwav/a.wav\t你好\nb.wav\t再见\n", "utf-8")
    assert all(map(os.path.isfile, read_manifest(tmp_path / "corpus" / "m.tsv")["audio"]))


def test_split_finds_the_column_of_files(tmp_path):
    (tmp_path / "m.tsv").write_text("text\tfile\n你好\ta.wav\n再见\tb.wav\n", "utf-8")
    (tmp_path / "names.txt").write_text("b.wav\n", "utf-8")
    assert manifest.main(["--manifests", str(tmp_path / "m.tsv"), "--held_out", str(tmp_path / "names.txt")]) == 0
    assert read_manifest(tmp_path / "train.tsv")["id"][:] == ["a"]
    assert read_manifest(tmp_path / "held_out.tsv")["id"][:] == ["b"]


@pytest.mark.parametrize(("rows", "found"), [("", "no row"), ("a.wav\t。\nb.wav\tOK\n", "2 rows, none with Han")])
def test_manifest_without_speech_to_learn(rows, found, tmp_path):
    (tmp_path / "m.tsv").write_text(f"file\ttext\n{rows}", "utf-8")
    with pytest.raises(ManifestError, match=f"m.tsv: expected clips and what is said in them, found {found}"):
        read_speech([str(tmp_path / "m.tsv")], PinyinTokenizer.from_file())


def test_dry_run_says_which_sounds_are_missing(tmp_path, capsys):
    files = [str(tmp_path / f"{number}.wav") for number in range(9)]
    with pytest.raises(ManifestError, match="found none of 9: .*0.wav, .*1.wav, .*2.wav and 6 more"):
        check_sounds(files)
    for file in files[1:]:
        open(file, "w").close()
    check_sounds(files)
    assert f"1 of 9 sounds are missing: {files[0]}." in capsys.readouterr().err
