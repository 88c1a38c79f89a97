"""What becomes of text that pinyin cannot spell: it is counted and said, and by policy left out or its row dropped."""

import pytest

from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer
from pinyin_llm.training.arguments import TextArguments
from pinyin_llm.training.speech_data import read_speech
from pinyin_llm.training.text_data import read_pairs


UNITS = PinyinTokenizer.from_file()
CLIPS = {
    "我用python写报告": "我用写报告",
    "ＡＩ 很好": "很好",
    "他买了3个": "他买了三个",  # numbers are read aloud
    "今天天气很好。": "今天天气很好",
    "OK": None,
}
WRITTEN_PINYIN = {"ni3 hao3 ma5": ["ni3", "hao3", "ma5"], "hao ma5": ["ma5"], "lǐ MP3": ["li3"], "tai4 yang5": ["tai4"]}


def manifest(folder, texts) -> list[str]:
    rows = "".join(f"{number}.wav\t{text}\n" for number, text in enumerate(texts))
    (folder / "m.tsv").write_text(f"file\ttext\n{rows}", "utf-8")
    return [str(folder / "m.tsv")]


def test_words_without_a_unit_are_left_out_of_labels_with_a_warning(tmp_path, capsys):
    clips, counts = read_speech(manifest(tmp_path, CLIPS), UNITS)
    assert clips["characters"][:] == [characters for characters in CLIPS.values() if characters]
    assert counts == {"clips": 4, "seconds": 0, "without_text": 1, "other_letters_left_out": 2}
    warning = capsys.readouterr().err
    assert "2 of 4 clips contain words that pinyin cannot spell, such as '我用python写报告' in " in warning


def test_clips_with_words_without_a_unit_are_dropped(tmp_path, capsys):
    clips, counts = read_speech(manifest(tmp_path, CLIPS), UNITS, other_letters="drop")
    assert clips["characters"][:] == ["他买了三个", "今天天气很好"]
    assert counts == {"clips": 2, "seconds": 0, "without_text": 1, "other_letters_dropped": 2}
    assert "2 of 4 clips" in capsys.readouterr().err


def test_clips_that_pinyin_spells_are_not_warned_of(tmp_path, capsys):
    _, counts = read_speech(manifest(tmp_path, ["今天天气很好。", "“你好！”", "ni3 hao3, ma5?", "80%"]), UNITS)
    assert counts == {"clips": 4, "seconds": 0, "without_text": 0}
    assert "warning" not in capsys.readouterr().err


def test_written_pinyin_that_is_no_label_counts_as_well(tmp_path):
    clips, counts = read_speech(manifest(tmp_path, WRITTEN_PINYIN), UNITS)
    assert [[UNITS.units[unit] for unit in units] for units in clips["units"]] == list(WRITTEN_PINYIN.values())
    assert counts["other_letters_left_out"] == 3
    clips, counts = read_speech(manifest(tmp_path, WRITTEN_PINYIN), UNITS, other_letters="drop")
    assert clips["text"][:] == ["ni3 hao3 ma5"]
    assert counts["other_letters_dropped"] == 3


@pytest.mark.parametrize(
    ("policy", "characters", "count"),
    [
        ("leave_out", ["我用写报告", "买了个", "今天天气很好"], "other_letters_left_out"),
        ("drop", ["今天天气很好"], "other_letters_dropped"),
    ],
)
def test_lines_of_stage_one(policy, characters, count, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("我用Rust写报告\n买了3个\n今天天气很好。\n", "utf-8")
    arguments = TextArguments([str(tmp_path / "texts.txt")], other_letters=policy, num_proc=1)
    pairs, counts = read_pairs(arguments, UNITS)
    assert pairs["characters"][:] == characters
    assert (counts["sentences"], counts[count]) == (len(characters), 2)
    assert ("2 lines" in capsys.readouterr().err) == (policy == "leave_out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("今天天气很好，我们去公园散步。".encode("gbk"), "texts.txt: expected text in UTF-8, found GB18030"),
        (b"only English\n", "texts.txt: expected sentences to learn from, found none .*without_han 1"),
        ("好".encode() * 99, "found none .*too_long 1"),
    ],
)
def test_text_without_a_sentence_is_refused(content, message, tmp_path):
    (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(TextArguments([str(tmp_path / "texts.txt")], num_proc=1), UNITS)
