"""The character error rate: counted by hand, with its interval, after one normalisation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinyin_llm.scoring.cer import score, score_syllables
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
