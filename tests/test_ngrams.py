"""n-grams of characters: a distribution after any context, saved with the processor, used in beam search."""

from collections import Counter
from copy import copy

import numpy as np
import pytest
import torch
from conftest import build_config, build_processor
from hypothesis import given
from hypothesis import strategies as st

from pinyin_llm import PinyinLlamaProcessor
from pinyin_llm.inference.loading import add_subject_text
from pinyin_llm.ngrams_pinyin_llm import FILE_NAME, CharacterNgrams, MixedNgrams
from pinyin_llm.training import count_ngrams
from pinyin_llm.transcription_pinyin_llm import convert_pinyin


def with_ngrams(*lines: str) -> PinyinLlamaProcessor:
    processor = copy(build_processor())  # which is shared
    processor.ngrams = CharacterNgrams.from_lines(lines, least=1)
    return processor


LINES = st.lists(st.text("甲乙丙丁𠮷", max_size=6), min_size=1).filter(any)


@given(LINES, st.text("甲乙丙戊", max_size=3), st.integers(1, 3))
def test_probabilities_add_up_to_one(lines, before, least):
    log_probs = CharacterNgrams.from_lines(lines, least).log_probs(before)
    assert np.isfinite(log_probs).all()
    assert np.exp(log_probs).sum() == pytest.approx(1, abs=5e-3)


def test_interpolated_kneser_ney():
    """By hand: 乙 was followed by 丙 twice and by 丁 once behind 甲; 丙 came behind 乙 alone, 丁 behind 乙 and 甲."""
    ngrams = CharacterNgrams.from_lines(["甲乙丙", "甲乙丙", "甲乙丁", "甲丁"], least=1)
    triples = Counter({"##甲": 4, "#甲乙": 3, "#甲丁": 1, "甲乙丙": 2, "甲乙丁": 1})
    once, twice = (sum(count == n for count in triples.values()) for n in (1, 2))
    discount = once / (once + 2 * twice)
    pairs = Counter(triple[1:] for triple in triples)  # how many different characters they stood behind
    pair_discount = 0.75  # each of the five came behind one character: too few to tell
    singles = Counter(pair[1] for pair in pairs)
    alone = singles["丙"] / (sum(singles.values()) + 0.5)  # and half for what begins a line
    behind_one = (pairs["乙丙"] - pair_discount) / 2 + pair_discount * 2 / 2 * alone
    behind_two = (triples["甲乙丙"] - discount) / 3 + discount * 2 / 3 * behind_one
    found = np.exp(ngrams.log_probs("甲乙"))[ngrams.numbers["丙"]]
    assert found == pytest.approx(behind_two, rel=2e-3)


@pytest.mark.parametrize("text", ["中国", "忠国", "钟果"])
def test_tokens_add_up_to_the_characters(bridge_model, text):
    """Whether a character is one token (中, 国) or three."""
    processor = with_ngrams("人民", text, "终国")
    inputs = processor(pinyin="zhong guo")
    bound = processor.pinyin_constraint(ngram_weight=2.0).for_batch(
        inputs["pinyin_ids"], prompt_length=0, with_beams=True
    )
    tokens = torch.tensor([processor._answer_ids(text)])
    silent = torch.zeros(1, bridge_model.config.vocab_size)
    found = sum(bound(tokens[:, :step], silent)[0, token].item() for step, token in enumerate(tokens[0].tolist()))
    ngrams = processor.ngrams
    each = [ngrams.log_probs(text[:place])[ngrams.numbers[c]] for place, c in enumerate(text) if c in ngrams.numbers]
    assert found == pytest.approx(2.0 * sum(each), abs=1e-3)


def test_homophones_are_written_as_the_text_has_them(bridge_model):
    processor = with_ngrams("人民", "钟果")
    greedy = convert_pinyin(bridge_model, processor, ["zhong guo"])
    decided = processor.pinyin_constraint(ngram_weight=1000.0)
    processor.pinyin_constraint = lambda *_: decided
    assert convert_pinyin(bridge_model, processor, ["zhong guo"], num_beams=3) == ["钟果"]
    assert convert_pinyin(bridge_model, processor, ["zhong guo"]) == greedy != ["钟果"]


def test_text_is_heard_from_then_on(processor, tmp_path):
    """Also between Latin letters, also where the processor has been in use; and it is no part of what is saved."""
    given, ward = with_ngrams("今天天气很好"), tmp_path / "ward.txt"
    before = given.pinyin_constraint()
    ward.write_text("CT检查\n张效烟 A12, 李沐辰\n", encoding="utf-8")
    add_subject_text(given, ward)
    assert given.pinyin_constraint() is not before
    for start, end in (("检", "查"), ("张效", "烟"), ("李沐", "辰")):
        log_probs = given.ngrams.log_probs(start)
        assert log_probs.argmax() == given.ngrams.numbers[end]
    given.save_pretrained(tmp_path / "kept")
    assert "沐" not in PinyinLlamaProcessor.from_pretrained(tmp_path / "kept").ngrams.numbers
    processor.save_pretrained(tmp_path / "kept")
    assert PinyinLlamaProcessor.from_pretrained(tmp_path / "kept").ngrams is None


@given(LINES, LINES, st.text("甲乙丙戊", max_size=3))
def test_mixture_is_the_weighted_mean(general, topic, before):
    parts = [CharacterNgrams.from_lines(lines, least=1) for lines in (general, topic)]
    mixed = MixedNgrams(*parts, share=0.25)
    for character, number in mixed.numbers.items():
        shares = [np.exp(p.log_probs(before))[p.numbers[character]] if character in p.numbers else 0 for p in parts]
        assert np.exp(mixed.log_probs(before))[number] == pytest.approx(0.75 * shares[0] + 0.25 * shares[1], rel=1e-3)


def test_folder_keeps_them(processor, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("今天天气很好\n" * 2, encoding="utf-8")
    processor.save_pretrained(tmp_path / "model")
    build_config("pinyin_bridge").save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--texts"]
    assert count_ngrams.main([*words, str(tmp_path / "text.txt")]) == 0
    PinyinLlamaProcessor.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "copy")
    found = PinyinLlamaProcessor.from_pretrained(tmp_path / "copy").ngrams
    assert found.log_probs("天天").argmax() == found.numbers["气"]
    before = (tmp_path / "model" / FILE_NAME).read_bytes()
    (tmp_path / "empty.txt").write_text("")
    assert count_ngrams.main([*words, str(tmp_path / "empty.txt")]) == 2
    assert "found none" in capsys.readouterr().err
    (tmp_path / "gbk.txt").write_text("今天天气很好", encoding="gbk")
    assert count_ngrams.main([*words, str(tmp_path / "text.txt"), str(tmp_path / "gbk.txt")]) == 2
    assert "gbk.txt: expected UTF-8" in capsys.readouterr().err
    assert (tmp_path / "model" / FILE_NAME).read_bytes() == before
    assert count_ngrams.main(["--model", str(tmp_path / "modle"), "--texts", str(tmp_path / "text.txt")]) == 2
    assert "expected the folder of a model" in capsys.readouterr().err
