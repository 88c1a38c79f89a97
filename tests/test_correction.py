"""`pinyin-llm correct`: what changes, what must not, and files that keep their form."""

import json
import random
from pathlib import Path

import pytest

from pinyin_llm import correct
from pinyin_llm.correction.confusions import PinyinConfusions, align_units, split_unit
from pinyin_llm.correction.corrector import Correction, get_corrector
from pinyin_llm.correction.files import FORMS, correct_lines, correct_parts, cut, read_parts
from pinyin_llm.correction.rows import complicate, in_traditional, read_number, rows_of, simplify
from pinyin_llm.inference.cli import main
from pinyin_llm.inference.loading import load_model
from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer, is_han


WRONG, RIGHT = "十年后的需求还能继续支撑仿价吗", "十年后的需求还能继续支撑房价吗"
FAULTLESS = "我们在公园里散步，看见很多孩子在放风筝。"


@pytest.fixture(scope="module")
def mini():
    return load_model()


@pytest.fixture(scope="module")
def pinyin_tokenizer():
    return PinyinTokenizer.from_file()


def test_a_clear_mistake_is_corrected(mini):
    (correction,) = correct(*mini, [WRONG])
    assert correction.text == RIGHT
    (change,) = correction.changes
    assert (change.before, change.after) == ("仿", "房")
    assert 0 < change.confidence <= 1
    assert WRONG[change.start : change.end] == change.before


def test_faultless_text_stays(mini):
    assert correct(*mini, [FAULTLESS]) == [Correction(FAULTLESS)]


def test_all_but_han_stays_to_the_byte(mini):
    text = f"  GDP增长了7.5%，\t{WRONG}？ ok…\u3000😀 "
    (correction,) = correct(*mini, [text], strength=0.0)
    assert len(correction.text) == len(text)
    for before, after in zip(text, correction.text, strict=True):
        assert before == after or (is_han(before) and is_han(after))


@pytest.mark.parametrize("text", ["", " ", "abc", "123", "。。。", "\U0002ffff", "〇", "𠮷", "\ufa11"])
def test_odd_lines_stay(mini, text):
    assert correct(*mini, [text])[0].text == text


def test_one_result_per_line_and_batches_do_not_matter(mini):
    texts = [WRONG, "", FAULTLESS, WRONG[:8], "今天"]
    together = correct(*mini, texts)
    assert [correction.text for correction in together] == [correct(*mini, [text])[0].text for text in texts]
    assert together == correct(*mini, texts, batch_size=2)


def test_traditional_text_stays_traditional(mini):
    text = complicate(WRONG)
    (correction,) = correct(*mini, [text])
    assert correction.text == complicate(RIGHT)
    (correction,) = correct(*mini, [complicate(FAULTLESS)])
    assert correction.text == complicate(FAULTLESS)


def test_traditional_text_is_simplified_where_asked(mini):
    texts = ["今後的天氣會很乾燥", "乾坤"]
    assert [c.text for c in correct(*mini, texts, simplified=True)] == ["今后的天气会很干燥", "乾坤"]


def test_more_strength_changes_less(mini):
    counts = [sum(len(c.before) for c in correct(*mini, [WRONG], strength=s)[0].changes) for s in (0.0, 1.0, 2.0, 6.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_every_change_sounds_near(mini):
    corrector = get_corrector(*mini)
    rng = random.Random(0)
    text = "".join(rng.sample(RIGHT + FAULTLESS.replace("，", "").replace("。", ""), 30))
    for change in correct(*mini, [text], strength=-2.0)[0].changes:
        for before, after, place in zip(change.before, change.after, range(change.start, change.end), strict=True):
            (row,) = rows_of(text, corrector.tokenizer)
            _, _, characters, _ = corrector.near_sounds(row.units[place])
            assert after in {corrector.characters[i] for i in characters}, (before, after)


def test_without_ngrams_it_says_so(mini):
    model, processor = mini
    ngrams, processor.ngrams = processor.ngrams, None
    try:
        with pytest.raises(ValueError, match="n-grams"):
            correct(model, processor, [WRONG])
    finally:
        processor.ngrams = ngrams


NUMBERS = [
    *[
        ("30", "年", "三十"),
        ("15", "", "十五"),
        ("2014", "年", "二零一四"),
        ("1005", "个", "一千零五"),
        ("0", "", "零"),
    ],
    *[
        ("13800138000", "", "一三八零零一三八零零零"),
        ("007", "", "零零七"),
        ("２０", "", "二十"),
        ("110", "", "一百一十"),
    ],
]


@pytest.mark.parametrize(("digits", "following", "read"), NUMBERS)
def test_numbers_are_context(digits, following, read):
    assert read_number(digits, following) == read


def test_scripts():
    assert simplify("頭髮") == "头发"
    assert complicate("头发") == "頭髮"
    assert [in_traditional(text) for text in ("今後可能會出現", "今后可能会出现", "皇后")] == [True, False, False]


def test_confusions_are_learned_and_kept(pinyin_tokenizer, tmp_path):
    ids = pinyin_tokenizer.ids
    pairs = [(ids["shi4"], ids["shi4"])] * 90 + [(ids["shi4"], ids["si4"])] * 10
    confusions = PinyinConfusions.learn(pairs, pinyin_tokenizer)
    confusions.save(tmp_path / "confusions.json")
    loaded = PinyinConfusions.load(tmp_path / "confusions.json", pinyin_tokenizer)
    assert (loaded.log_probs == confusions.log_probs).all()
    seen, unseen = (loaded.log_probs[ids["shi4"], ids[heard]] for heard in ("si4", "bi4"))
    assert loaded.log_probs[ids["shi4"], ids["shi4"]] > seen > unseen


def test_alignment_survives_what_is_missing(pinyin_tokenizer):
    said, heard = ([pinyin_tokenizer.ids[unit] for unit in row.split()] for row in ("ni3 hao3 ma5", "ni3 ma5"))
    assert align_units(said, heard, pinyin_tokenizer) == [(said[0], heard[0]), (said[2], heard[1])]
    assert [split_unit(unit) for unit in ("zhuang4", "er2")] == [("zh", "uang", "4"), ("", "er", "2")]


FILES = {
    "txt": f"{WRONG}\r\n\r\n  {FAULTLESS}\n{WRONG}",
    "tsv": f"file\tspeaker\ttext\na.wav\t仿价\t{WRONG}\n\nb.wav\tx\t\n",
    "srt": f"1\n00:00:00,000 --> 00:00:02,500\n{WRONG}\n{FAULTLESS}\n\n2\n00:00:03,000 --> 00:00:04,000\n好\n",
    "vtt": f"WEBVTT 仿价\n\nNOTE 支撑仿价吗\n\n仿价\n00:00.000 --> 00:02.500 align:start\n<v 小明>{WRONG}</v>\n",
}


@pytest.mark.parametrize("form", FILES)
def test_files_keep_their_form(mini, tmp_path, form):
    path = tmp_path / f"talk.{form}"
    path.write_bytes(b"\xef\xbb\xbf" + FILES[form].encode())
    parts = read_parts(path)
    assert "".join(part.content for part in parts).encode() == path.read_bytes()
    results = correct_parts(*mini, parts)
    assert FORMS["text"](results) == "\ufeff" + FILES[form].replace(WRONG, RIGHT)
    rows = [json.loads(line) for line in FORMS["json"](results).splitlines()]
    assert sum(len(row["changes"]) for row in rows) == FILES[form].count(WRONG)
    assert FORMS["diff"](results).count("→") == FILES[form].count(WRONG)


@pytest.mark.parametrize(
    ("files", "named"),
    [(["a/talk.txt", "b/talk.txt"], "both be written"), (["out/talk.txt"], "overwritten")],
)
def test_no_file_is_overwritten(tmp_path, monkeypatch, capsys, files, named):
    monkeypatch.chdir(tmp_path)
    for file in files:
        Path(file).parent.mkdir()
        Path(file).write_text(WRONG)
    assert main(["correct", *files, "-o", "out"]) != 0
    assert all(Path(file).read_text() == WRONG for file in files)
    assert named in capsys.readouterr().err


def test_a_tsv_line_without_text_is_named(tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("a.wav\t好\nb.wav\n")
    with pytest.raises(ValueError, match=r"texts.tsv, line 2: expected file TAB text"):
        read_parts(path)


def test_lines_of_stdin(mini):
    lines = [f"{WRONG}\n", "\n", f"{FAULTLESS}\n"]
    assert "".join(correct_lines(*mini, lines, at_once=2)) == f"{RIGHT}\n\n{FAULTLESS}\n"


def test_pieces_of_every_line_end():
    content = "一\r二\r\n三\n\n四"
    assert "".join(part.content for part in cut(content, "txt")) == content
    assert [part.content for part in cut(content, "txt") if part.is_text] == ["一", "二", "三", "", "四"]
