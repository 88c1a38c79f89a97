"""Chinese text is normalised alike for training and for every system that is scored; twice is the same as once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinyin_llm.scoring.normalization import han_only, normalize_text, read_aloud
from pinyin_llm.tokenization_pinyin_llm import HAN_BLOCKS, is_han


WRITTEN = st.text(
    st.sampled_from("0123456789.,:/-%¥$°C年月日点分版个两萬億歷瞭乾后後〇一二AIb ，。\u200b") | st.characters(),
    max_size=40,
)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("2024年5月1日", "二零二四年五月一日"),
        ("2024-05-01", "二零二四年五月一日"),
        ("1998－2000年", "一九九八到二零零零年"),
        ("80后", "八零后"),
        ("会议3:05开始", "会议三点零五分开始"),
        ("¥12.5", "十二点五元"),
        ("1,200块", "一千二百块"),
        ("增长了7.5%", "增长了百分之七点五"),
        ("-3°C", "负三摄氏度"),
        ("比分3:2", "比分三比二"),
        ("占1/3", "占三分之一"),
        ("2个人", "两个人"),
        ("第2次", "第二次"),
        ("2年级的2个班", "二年级的两个班"),
        ("2分之1", "二分之一"),
        ("AI 3.5版", "ai三点五版"),
        ("Python3.5.2", "python三点五点二"),
        ("电话13800138000", "电话一三八零零一三八零零零"),
        ("我們學習漢語，瞭解歷史。", "我们学习汉语了解历史"),
        ("乾隆皇帝後來", "乾隆皇帝后来"),
        ("二〇二四年", "二零二四年"),
        ("ＡＢＣ，１２３！", "abc一百二十三"),
        ("\u200b\x00。！？", ""),
    ],
)
def test_numbers_and_traditional_characters_are_read_as_spoken(written, spoken):
    assert normalize_text(written) == spoken


@settings(max_examples=500, deadline=None)
@given(WRITTEN)
def test_normalising_never_raises_and_twice_is_once(text):
    once = normalize_text(text)
    assert normalize_text(once) == once
    assert not set(once) & set("0123456789，。 ")


def test_punctuation_stays_when_read_aloud():
    assert read_aloud("會議在3:05開始，共2個小時。") == "会议在三点零五分开始,共两个小时。"


def test_han_is_what_the_pinyin_units_call_han():
    edges = [edge for first, last in HAN_BLOCKS for edge in (first - 1, first, last, last + 1)]
    assert all(bool(han_only(chr(edge))) == is_han(chr(edge)) for edge in [*edges, 0x3006, 0x3007, 0x3008])


def test_han_only_keeps_every_plane():
    assert han_only("A中\U00020000〇\uf9d1。b") == "中\U00020000〇\uf9d1"
