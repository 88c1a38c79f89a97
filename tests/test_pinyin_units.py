"""The 1417 units and the readings of characters: every row of the pinyin table keeps its meaning."""

import csv
import hashlib
import random
import re
import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypinyin import Style, pinyin
from pypinyin.constants import PHRASES_DICT, PINYIN_DICT
from pypinyin.style import convert

from pinyin_llm.corpora.pinyin_units import main as rebuild
from pinyin_llm.tokenization_pinyin_llm import PINYIN_UNITS_SHA256, PinyinError, PinyinTokenizer, is_han


UNITS = PinyinTokenizer.from_file()
POLYPHONES = Path(__file__).parent / "fixtures" / "polyphones.tsv"
# emoji, zero-width, right-to-left, control bytes, CJK extension B, compatibility forms, accents that combine, 〇
STRANGE = (
    *range(0x1F300, 0x1F650), *range(0x200B, 0x2010), *range(0x05D0, 0x05EB), *range(0x202A, 0x202F), *range(0x20),
    *range(0x20000, 0x20100), *range(0xF900, 0xFADA), *range(0x2F800, 0x2FA1E), *range(0x0300, 0x0330),
    *range(0xFF01, 0xFF5F), 0x3007, 0xFFFD, *map(ord, "中国银行重要abc 12，。"),
)  # fmt: skip


def spell(text: str) -> list[str]:
    return [UNITS.units[i] for i in UNITS.encode_characters(text)[1]]


def test_list_is_the_frozen_one_and_can_be_rebuilt(tmp_path):
    assert len(UNITS) == 1417
    assert rebuild(["--output", str(tmp_path / "units.txt")]) == 0
    assert hashlib.sha256((tmp_path / "units.txt").read_bytes()).hexdigest() == PINYIN_UNITS_SHA256


@pytest.mark.parametrize(
    "change",
    [
        lambda units: ["aa1", *units[1:]],
        lambda units: [units[1], units[0], *units[2:]],
        lambda units: units[:-1],
        lambda units: [],
    ],
    ids=["edited", "reordered", "shortened", "empty"],
)
def test_changed_list_is_refused_with_both_hashes_and_counts(change):
    changed = change(UNITS.units)
    found = hashlib.sha256(("\n".join(changed) + "\n").encode()).hexdigest()
    with pytest.raises(PinyinError) as refusal:
        PinyinTokenizer(changed)
    assert all(part in str(refusal.value) for part in ("1417", str(len(changed)), PINYIN_UNITS_SHA256, found))


def test_every_syllable_of_pypinyin_has_a_unit():
    readings = {reading for options in PINYIN_DICT.values() for reading in options.split(",")}
    readings |= {reading for phrase in PHRASES_DICT.values() for options in phrase for reading in options}
    toned = {convert(reading, Style.TONE3, False, None) for reading in readings}
    syllables = {(s if s[-1].isdigit() else f"{s}5").replace("v", "ü") for s in toned}
    assert len(syllables) >= 1559
    assert [s for s in sorted(syllables) if not 0 <= UNITS.syllable_to_id(s) < 1417] == []


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_one_unit_for_each_character_kept(text):
    kept, ids = UNITS.encode_characters(text)
    assert len(kept) == len(ids)
    assert set(kept) <= set(filter(is_han, text))
    assert len(UNITS.encode_characters(text, errors="keep")[1]) == len(text)


def test_alignment_holds_on_ten_thousand_strange_strings():
    draw = random.Random(0)
    for _ in range(10_000):
        text = "".join(map(chr, draw.choices(STRANGE, k=draw.randint(0, 12))))
        kept, ids = UNITS.encode_characters(text, errors="keep")
        assert kept == text, f"{text!r} came back as {kept!r}"
        assert len(ids) == len(text), f"{len(text)} characters but {len(ids)} units for {text!r}"


def test_character_without_reading_follows_the_policy():
    assert UNITS.encode_characters("AI很好") == ("很好", [UNITS.ids["hen3"], UNITS.ids["hao3"]])
    assert UNITS.encode_characters("A好", errors="keep") == ("A好", [None, UNITS.ids["hao3"]])
    with pytest.raises(PinyinError, match=r"'A' \(U\+0041\)"):
        UNITS.encode_characters("好A", errors="raise")
    with pytest.raises(ValueError, match="errors"):
        UNITS.encode_characters("好", errors="strict")


def test_compatibility_form_and_ideographic_zero_are_read():
    assert spell("\uf9d1〇") == ["liu4", "ling2"]
    assert unicodedata.normalize("NFC", "\uf9d1") == "六"


@pytest.mark.parametrize(
    ("one", "other"),
    [("nǐ hǎo", "ni3 hao3"), ("NǏ HǍO", "ni3 hao3"), ("lǜ", "lv4"), ("nu:3", "nü3"), ("xī'ān", "xi1 an1"), ("ma", "ma"),
     ("ma0", "ma5"), ("lue4 nue4", "lüe4 nüe4"), ("lue", "lüe"), ("ｎｉ３", "ni3"), ("ê̄", "e1"),
     # fonts for phonetics, a breve for a caron, punctuation
     ("ɡuɑ̌nɡ", "guang3"), ("nĭ hăo", "ni3 hao3"), ("lü̆", "lü3"), ("Nǐ hǎo, nǐ ne?", "ni3 hao3 ni3 ne"),
     ("“shì、bú：shi4”……", "shi4 bu2 shi4"), ("lǐ-xiǎng_ma5.", "li3 xiang3 ma5"), ("ni3\u200bhao3\ufeff", "ni3 hao3"),
     # erhua
     ("huar1", "hua1 r5"), ("hua1r", "hua1 r5"), ("hua1r5", "hua1 r5"), ("nar3", "na3 r5"), ("huār", "hua1 r5"),
     ("wanr", "wan r5"), ("yi4dian3r", "yi4 dian3 r5"), ("yìdiǎnr", "yi4 dian3 r5"), ("er2zi5", "er2 zi5"),
     # written together
     ("nihaoma", "ni hao ma"), ("ni3hao3", "ni3 hao3"), ("xi'an", "xi an"), ("xī’ān", "xi1 an1"), ("xīān", "xi1 an1"),
     ("xian", "xian"), ("fangan", "fan gan"), ("fang'an", "fang an"), ("zhongguoren", "zhong guo ren"),
     ("nver", "nü er"), ("Tiān'ānmén", "tian1 an1 men2"), ("zhanlue", "zhan lüe"), ("ertong", "er tong"),
     ("beijing1 ren2", "bei jing1 ren2"),
     # syllables without a row
     ("biang2", "bang2"), ("nia1", "niang2"), ("ng2", "en2"), ("ḿ", "mu2")],
)  # fmt: skip
def test_spellings_of_a_syllable_agree(one, other):
    assert UNITS.encode_syllables(one) == UNITS.encode_syllables(other)


def test_lue_and_nue_are_typed_for_lüe_and_nüe():
    """As syllables of their own, with marks too; not where they only meet in a word, as in 努尔 and 鲁尔."""
    for written in ("nue4", "nuè", "nu:e4", "nve4", "nüè"):
        assert UNITS.encode_syllables(written) == [(UNITS.ids["nüe4"],)], written
    assert UNITS.encode_syllables("lue") == [UNITS.bases["lüe"]]
    assert UNITS.encode_syllables("nuerhachi") == UNITS.encode_syllables("nu er ha chi")


def test_neutral_tone_without_a_row_stands_for_all_tones():
    without = [base for base in UNITS.bases if f"{base}5" not in UNITS.ids]
    assert len(without) == 246
    for base in without:
        all_tones = [UNITS.bases[base]]
        assert UNITS.encode_syllables(f"{base}5") == UNITS.encode_syllables(f"{base}0") == all_tones, base
    assert UNITS.encode_syllables("ma5") == [(UNITS.ids["ma5"],)]


def test_every_two_syllables_may_be_written_together():
    """With tones always; without them as the orthography has it, which puts an apostrophe before a vowel."""
    draw = random.Random(0)
    units = [unit for unit in UNITS.units if unit != "r5"]
    for _ in range(2000):
        first, second = draw.choices(units, k=2)
        apart = UNITS.encode_syllables(f"{first} {second}")
        assert UNITS.encode_syllables(first + second) == apart, first + second
        if second[0] not in "aeo":
            toneless = UNITS.encode_syllables(f"{first[:-1]} {second[:-1]}")
            assert UNITS.encode_syllables(first[:-1] + second[:-1]) == toneless, first[:-1] + second[:-1]


def test_toneless_syllable_stands_for_all_its_tones():
    assert UNITS.encode_syllables("hao") == [tuple(UNITS.ids[f"hao{tone}"] for tone in "12345")]


@pytest.mark.parametrize("written", ["xyz", "ni33", "nǐ3", "hao6", "你", "3", "n1i", "nihaox", "ng1a", "rhua1"])
def test_no_syllable_is_named_or_left_out(written):
    with pytest.raises(PinyinError, match=f"'{written}'"):
        UNITS.encode_syllables(f"ni3 {written}")
    assert UNITS.encode_syllables(f"ni3 {written}", errors="ignore") == [(UNITS.ids["ni3"],)]


@pytest.mark.parametrize(
    ("written", "point"),
    [("hаo3", "U+0430"), ("ni3🙂", "U+1F642"), ("你好", "U+4F60"), ("ni+", "U+002B"), ("ma\x00", "U+0000")],
)
def test_character_that_cannot_be_read_is_named_with_its_code_point(written, point):
    with pytest.raises(PinyinError, match=re.escape(f"({point})")):
        UNITS.encode_syllables(f"ni3 {written}")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text):
    with suppress(PinyinError):
        UNITS.encode_syllables(text)
    assert all(UNITS.encode_syllables(text, errors="ignore"))


def test_polyphones_are_read_by_their_phrase():
    rows = list(csv.DictReader(POLYPHONES.open(encoding="utf-8"), delimiter="\t"))
    wrong = [row["text"] for row in rows if " ".join(spell(row["text"])) != row["pinyin"]]
    assert len(rows) == 200
    assert len(wrong) <= 0.02 * len(rows), wrong


def test_a_character_may_be_read_in_every_way_that_pypinyin_knows():
    options = {"style": Style.TONE3, "heteronym": True, "neutral_tone_with_five": True, "v_to_u": True}
    for character in [*map(chr, sorted(PINYIN_DICT)[::40]), *"子没底嘞鿿的了"]:
        ids = {UNITS._id_or_none(reading) for reading in pinyin(character, **options)[0]} - {None}
        assert set(UNITS.readings.get(character, ())) == ids, character
