"""Greedy decoding in passes writes what greedy decoding a token at a time writes, and needs fewer passes."""

import numpy as np
import pytest
import torch
from conftest import build_processor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinyin_llm.inference.loading import load_model
from pinyin_llm.transcription_pinyin_llm import convert_pinyin


UNITS = build_processor().pinyin_tokenizer.units
STEPS = {"min_new_tokens": 0}  # asks for nothing, but not for plain greedy decoding either
SYLLABLES = st.one_of(st.sampled_from(UNITS), st.sampled_from([unit[:-1] for unit in UNITS]))


def answers(model, processor, inputs, **how) -> list[str]:
    ids = model.generate(**inputs, pinyin_constraint=processor.pinyin_constraint(), **how)
    return processor.decode_answers(ids, inputs["input_ids"].shape[1])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(SYLLABLES, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=4))
def test_typed_pinyin_is_written_as_step_by_step(bridge_model, processor, rows):
    inputs = processor(pinyin=rows)
    assert answers(bridge_model, processor, inputs) == answers(bridge_model, processor, inputs, **STEPS)


def test_speech_is_written_as_step_by_step(bridge_model, processor, clips):
    inputs = processor([*clips, np.zeros(3200, np.float32)], sampling_rate=16000)
    written = answers(bridge_model, processor, inputs)
    assert written == answers(bridge_model, processor, inputs, **STEPS)
    assert any(written)


def test_bytes_are_guessed_too(bridge_model, processor):
    """The tiny tokenizer has some sixty characters; others take three tokens each. Guesses of both kinds fail."""
    written = convert_pinyin(bridge_model, processor, ["zhong1 nüe4 ren2 zhei4 lü4 chong2"])[0]
    sizes = {len(processor.tokenizer(character, add_special_tokens=False).input_ids) for character in written}
    assert sizes >= {1, 3}, f"{written} is all of one kind: the tests of this file are too easy"


def test_what_else_is_asked_for_is_heeded(bridge_model, processor):
    inputs = processor(pinyin=["zhong1 guo2"])
    constraint = processor.pinyin_constraint()
    found = bridge_model.generate(
        **inputs, pinyin_constraint=constraint, return_dict_in_generate=True, output_scores=True
    )
    assert len(found.scores) == found.sequences.shape[1] - inputs["input_ids"].shape[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge_model.generation_config, "max_new_tokens", 1)
        assert (
            bridge_model.generate(**inputs, pinyin_constraint=constraint).shape[1] == inputs["input_ids"].shape[1] + 1
        )


@torch.no_grad()
def test_a_sentence_takes_the_shipped_model_a_third_of_the_passes():
    model, processor = load_model()
    sentence = "jin1 tian1 tian1 qi4 hen3 hao3 wo3 men5 yi4 qi3 qu4 gong1 yuan2 san4 bu4"
    convert_pinyin(model, processor, [sentence])  # from here on it knows what each syllable is alone
    passes = []
    handle = model.language_model.register_forward_hook(lambda *_: passes.append(1))
    (text,) = convert_pinyin(model, processor, [sentence])
    handle.remove()
    assert len(passes) <= len(text) / 3
