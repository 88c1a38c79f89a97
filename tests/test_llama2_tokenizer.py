"""LLaMA2's own tokenizer, which is fetched: prompt and slot, characters that it spells in bytes, and back."""

import random

import pytest
from transformers import AutoTokenizer, WhisperFeatureExtractor

from pinyin_llm import PinyinLlamaProcessor
from pinyin_llm.bases.llama2_tokenizer import write_tokenizer
from pinyin_llm.corpora.packages import PackageError


@pytest.fixture(scope="module")
def llama2(tmp_path_factory) -> PinyinLlamaProcessor:
    folder = tmp_path_factory.mktemp("llama2")
    try:
        write_tokenizer(folder, folder)
    except PackageError as error:
        pytest.skip(f"LLaMA2's tokenizer cannot be fetched: {error}")
    return PinyinLlamaProcessor(WhisperFeatureExtractor(feature_size=128), AutoTokenizer.from_pretrained(folder))


def test_placeholders_lie_behind_the_vocabulary(llama2):
    assert (llama2.audio_token_id, llama2.pinyin_token_id) == (32000, 32001)  # the configuration's defaults


def test_it_is_llama2s(llama2):
    """The example of transformers' own documentation, and 你好 as anyone who prints LLaMA2's ids sees it."""
    plain = llama2.tokenizer
    assert plain("Hello this is a test", add_special_tokens=False).input_ids == [15043, 445, 338, 263, 1243]
    assert plain("你好", add_special_tokens=False).input_ids == [29871, 30919, 31076]


def test_golden_prompt(llama2):
    batch = llama2(pinyin="ni3 hao3 pi4", text="你好譬")
    prompt = [
        1,
        *[32001] * 3,
        29871,
        13,
        31593,
        30578,
        30383,
    ]  # <s>, the slot, piece before a text, line break, 汉 字 ：
    answer = [30919, 31076, 235, 176, 175, 2]  # 你 and 好 have tokens; 譬 is three bytes; </s>
    assert batch["input_ids"][0].tolist() == [*prompt, *answer]
    assert batch["labels"][0].tolist() == [-100] * len(prompt) + answer


def test_ten_thousand_strings_come_back(llama2):
    choose = random.Random(0)
    characters = list(llama2.pinyin_tokenizer.readings)
    for _ in range(10_000):
        text = "".join(choose.choices(characters, k=choose.randint(1, 12)))
        assert llama2.tokenizer.decode(llama2._answer_ids(text), skip_special_tokens=True) == text


def test_constraint_writes_what_has_no_token(llama2):
    constraint = llama2.pinyin_constraint()
    spelled = [sequence for sequence in constraint.sequences if len(sequence) == 3]
    assert len(constraint.sequences) - len(spelled) == 700  # Han characters that LLaMA2 has a token for
    assert {len(sequence) for sequence in constraint.sequences} == {1, 3}
    assert (constraint.homophones[:, 0] < len(constraint.sequences)).all()
