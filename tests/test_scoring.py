"""The character error rate: counted by hand, with its interval, after one normalisation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinyin_llm.scoring.cer import pair_texts, read_texts, score, score_each, score_syllables
from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer


@pytest.mark.parametrize(
    ("said", "wrote", "counts", "cer"),
    [
        (["今天天气很好"], ["今天天气很好"], (0, 0, 0), 0.0),
        (["今天天气很好"], ["明天天气很好"], (1, 0, 0), 1 / 6),
        (["今天天气很好"], ["今天气很好"], (0, 1, 0), 1 / 6),
        (["今天天气很好"], ["今天天气很好啊"], (0, 0, 1), 1 / 6),
        (["今天天气很好"], [""], (0, 6, 0), 1.0),
        (["你好", "长江黄河"], ["你", "长江黄"], (0, 2, 0), 2 / 6),
        (["你"], ["我们大家"], (1, 0, 3), 4.0),
        (["你好", "。"], ["你好", "啊"], (0, 0, 1), 1 / 2),
    ],
)
def test_errors_are_those_counted_by_hand(said, wrote, counts, cer):
    found = score(said, wrote)
    assert (found.substitutions, found.deletions, found.insertions) == counts
    assert found.cer == pytest.approx(cer)
    assert (found.characters, found.utterances) == (sum(len(text.strip("。")) for text in said), len(said))


@pytest.mark.parametrize(
    ("said", "wrote"),
    [("2024年，GDP增長了7.5%。", "二零二四年gdp增长了百分之七点五"), ("AI 3.5版", "ai三点五版"), ("兩個人！", "2个人")],
)
def test_spelling_that_sounds_alike_is_no_error(said, wrote):
    assert score([said], [wrote]).cer == 0


def test_homophones_are_a_share_of_all_errors():
    """他/她 and 在/再 sound alike (tones apart: 是/时), 天/地 do not; a lost character is no homophone."""
    found = score(["他在是天好"], ["她再时地"])
    assert (found.substitutions, found.deletions) == (4, 1)
    assert found.homophones == pytest.approx(3 / 5)


def test_substitutions_by_what_is_wrong():
    """他/她 are read alike, 是/时 differ in the tone, 天/地 in the syllable; 长 may be read like 常 or like 涨."""
    found = score(["他是天长长"], ["她时地常涨"])
    assert (found.wrong_syllables, found.wrong_tones, found.wrong_characters) == (1, 1, 3)


TEXTS = st.lists(st.text("他她是时天地长好", max_size=8), min_size=1, max_size=5)


@given(TEXTS.filter(any), st.data())
def test_kinds_of_error_add_up(said, data):
    wrote = data.draw(st.lists(st.text("他她是时天地长好", max_size=8), min_size=len(said), max_size=len(said)))
    found = score(said, wrote)
    assert found.wrong_syllables + found.wrong_tones + found.wrong_characters == found.substitutions
    total = found.substitutions + found.deletions + found.insertions
    assert found.homophones * total == pytest.approx(found.wrong_tones + found.wrong_characters)
    assert min(found.wrong_syllables, found.wrong_tones, found.wrong_characters) >= 0


@given(
    st.permutations("中国人民"), st.integers(1, 4), st.integers(0, 6), st.integers(0, 6), st.text("天地", max_size=2)
)
def test_stretch_repeats_from_the_third_time_unless_it_is_said_as_often(characters, size, spoken, written, around):
    stretch = "".join(characters[:size])
    said, wrote = (f"好{around}{stretch * times}好" for times in (spoken, written))
    assert score([said], [wrote]).repetitions == float(written >= 3 and written > spoken)


@pytest.mark.parametrize(
    ("said", "wrote", "repeats"),
    [
        ("看看书", "看看看书", True),
        ("哈哈哈", "哈哈哈", False),
        ("哈哈哈哈", "哈哈哈", False),
        ("好的", "好的好的", False),
        ("我们去上海吧", "去上海吧去上海吧去上海吧", True),
        ("今天去北京", "今天去北京" * 3, False),  # five characters: a sentence said again, not a stretch
        ("", "嗯嗯嗯", True),
        ("啊", "", False),
    ],
)
def test_repetitions(said, wrote, repeats):
    assert score(["好", said], ["好", wrote]).repetitions == repeats / 2


@pytest.mark.parametrize("seed", range(10))
def test_interval_contains_the_rate(seed):
    draw = random.Random(seed)
    said = ["".join(draw.choices("中国人民银行", k=8)) for _ in range(30)]
    wrote = ["".join(draw.choice("天地") if draw.random() < 0.2 else c for c in text) for text in said]
    found = score(said, wrote)
    assert 0 < found.low < found.cer < found.high < 0.5


def test_interval_narrows_with_more_utterances():
    few, many = (score(["中国人民"] * n, ["中国人民", "中国人"] * (n // 2)) for n in (10, 1000))
    assert few.low < few.cer < few.high
    assert many.high - many.low < 0.2 * (few.high - few.low)


@pytest.mark.parametrize(("said", "wrote", "message"), [(["你"], [], "found 1 and 0"), (["。"], ["你"], "no Chinese")])
def test_impossible_lists_are_refused(said, wrote, message):
    with pytest.raises(ValueError, match=message):
        score(said, wrote)


def test_syllable_errors_with_and_without_tones():
    units = PinyinTokenizer.from_file().ids
    heard = [[units["ni3"], units["hao4"]], [units["da4"]]]
    rates = score_syllables(["你好", "大学"], heard)
    assert rates == {"toned_syllable_errors": 2 / 4, "toneless_syllable_errors": 1 / 4}


@pytest.mark.parametrize(
    ("added", "count"),
    [("です", 2), ("한국어", 3), ("Привет", 6), ("ไทย", 3), ("é", 1), ("ｶﾞ", 1), ("، 。🙂", 0), ("٣", 1)],
    ids=["kana", "hangul", "Cyrillic", "Thai", "accented", "half-width", "no letters", "Arabic digit"],
)
def test_each_letter_of_another_script_is_an_insertion(added, count):
    found = score(["今天天气很好"], [f"今天{added}天气很好"])
    assert (found.substitutions, found.deletions, found.insertions) == (0, 0, count)
    assert score_each([f"今天{added}"], [f"今天{added.upper()}"]) == [0]  # said, it is no error


TABLES = {
    "Common Voice": ("client_id\tpath\tsentence\nc9\ta.mp3\t你好\nc9\tb.mp3\t上海\n", ".mp3"),
    "text first": ("Transcription\tgender\tWAV\n你好\tf\ta\n上海\tm\tb\n", ""),
    "Kaldi": ("utt_id transcript\na 你好\n\nb 上海\n", ""),
    "Kaldi without a header": ("a 你好\nb 上海\n", ""),
    "two cells": ("a.wav\t你好\nb.wav\t上海\n", ".wav"),
}


@pytest.mark.parametrize(("table", "suffix"), TABLES.values(), ids=list(TABLES))
def test_text_is_read_from_its_own_column(table, suffix, tmp_path):
    (tmp_path / "table.tsv").write_text(table, encoding="utf-8")
    assert read_texts(tmp_path / "table.tsv") == {f"a{suffix}": "你好", f"b{suffix}": "上海"}


def test_texts_of_kaldi_keep_their_spaces_and_may_be_empty(tmp_path):
    (tmp_path / "text").write_text("a 你 好\nb\n", encoding="utf-8")
    assert read_texts(tmp_path / "text") == {"a": "你 好", "b": ""}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file\tcontent\na.wav\t你好\n", "line 1: expected one column of files .* found file, content"),
        ("text\tspeaker\n你好\tA\n", "line 1: .* found text, speaker"),
        ("id\ttext\tsentence\na\t你\t好\n", "line 1: .* found id, text, sentence"),
        ("name\tcontent\na1.wav\t你好\nb2.wav\t上海\n", "line 1: .* found name, content"),
        ("文件\t文本\nd/1\t你好\n", "line 1: .* found 文件, 文本"),
        ("a.wav\t你好\tA\n", "line 1: expected file TAB text, .* found 3 cells"),
        ("a.wav\t你好\nb.wav\t上海\t大学\n", "line 2: expected file TAB text, .* found 3 cells"),
        ("file\ttext\na.wav\t你好\t上海\n", "line 2: expected 2 cells, as the first line has, found 3"),
        ("\nfile\ttext\tx\na.wav\t你好\n", "line 3: expected 3 cells, as the first line has, found 2"),
        ("今天天气 很好\n", "line 1: expected file TAB text, found text alone"),
        ("a.wav\nb.wav\n", "found no line with a text"),
    ],
)
def test_tables_whose_columns_are_not_known_are_refused_with_the_line(table, message, tmp_path):
    (tmp_path / "table.tsv").write_text(table, encoding="utf-8")
    with pytest.raises(ValueError, match=f"table.tsv.*{message}"):
        read_texts(tmp_path / "table.tsv")


def test_files_that_do_not_match_are_named_in_short():
    names = [f"utt{number:04}" for number in range(2000)]
    with pytest.raises(ValueError, match="found missing: ") as refusal:
        pair_texts(dict.fromkeys(names, "好"), {f"x/{name}.flac": "好" for name in names})
    message = str(refusal.value)
    assert "utt0000, utt0001, utt0002 and 1,997 more" in message
    assert "They differ only in the suffix .flac." in message
    assert len(message) < 300
    with pytest.raises(ValueError, match=r"missing: utt0001; extra: other.flac\.$"):
        pair_texts(dict.fromkeys(names[:2], "好"), {"utt0000": "好", "other.flac": "好"})
