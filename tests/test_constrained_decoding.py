"""Decoding that knows pinyin: one character a slot, and only one that can be read as the slot sounds."""

from itertools import accumulate, pairwise

import pytest
import torch
from conftest import CHARACTERS, build_model
from hypothesis import given
from hypothesis import strategies as st

from pinyin_llm.transcription_pinyin_llm import (
    LONGEST_ROW,
    Syllable,
    _cut_at_pauses,
    convert_pinyin,
    decode_rows,
    transcribe_clips,
    transcribe_waveforms,
)


ROWS = ["zhong1 guo2 ren2 min2", "ni hao", "lü4 chong2 chang", "nüe4 zhei4"]


def readable(processor, character: str, slot: tuple[int, ...]) -> bool:
    """All rows here have a tone that some character has, so its own readings decide."""
    return bool(set(slot) & set(processor.pinyin_tokenizer.readings.get(character, ())))


def test_every_unit_can_be_written(processor):
    constraint = processor.pinyin_constraint()
    assert (constraint.homophones[:, 0] < len(constraint.sequences)).all()


def test_any_character_may_lose_its_tone(bridge_model, processor):
    """妈妈 is ma1 ma5 and 花儿 hua1 r5, though no dictionary reads 妈 as ma5 or 儿 alone as r5."""
    ids = processor.tokenizer(["妈妈", "朋友", "花儿"], add_special_tokens=False).input_ids
    inputs = processor(pinyin=["ma1 ma5", "peng2 you5", "hua1 r5"])
    limit = processor.pinyin_constraint().for_batch(inputs["pinyin_ids"], prompt_length=0)
    scores = torch.zeros(3, bridge_model.config.vocab_size)
    for step in range(6):
        written = torch.tensor([row[:step] for row in ids], dtype=torch.long)
        allowed = limit(written, scores)
        assert all(allowed[row, tokens[step]] > -torch.inf for row, tokens in enumerate(ids)), step


def test_speech_without_a_bridge_cannot_be_constrained(processor, clips):
    inputs = processor(clips, sampling_rate=16000)
    with pytest.raises(ValueError, match="'pooling' recognises no pinyin"):
        build_model("mean").generate(**inputs, pinyin_constraint=processor.pinyin_constraint())


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampled"])
def test_one_readable_character_a_syllable(bridge_model, processor, settings):
    torch.manual_seed(0)
    written = convert_pinyin(bridge_model, processor, ROWS, **settings)
    for row, text in zip(ROWS, written, strict=True):
        slots = processor.pinyin_tokenizer.encode_syllables(row)
        assert len(text) == len(slots), f"{text!r} for {row!r}"
        assert all(readable(processor, *pair) for pair in zip(text, slots, strict=True)), f"{text!r} for {row!r}"
    assert set("".join(written)) - set(CHARACTERS), "no character was written in bytes: the test is too easy"


def test_rows_keep_their_order_and_empty_rows_stay_empty(bridge_model, processor):
    rows = [ROWS[0], "", ROWS[1]]
    written = convert_pinyin(bridge_model, processor, rows, batch_size=2)
    assert [len(text) for text in written] == [4, 0, 2]
    assert written == [convert_pinyin(bridge_model, processor, [row])[0] for row in rows]


def test_long_row_is_written_in_parts_of_forty_syllables_at_most(bridge_model, processor):
    syllables = ("ni3 hao3 zhong1 guo2 ren2 " * 20).split()
    written = convert_pinyin(bridge_model, processor, [" ".join(syllables), "ni3"])
    parts = [" ".join(syllables[start:end]) for start, end in ((0, 33), (33, 66), (66, 100))]
    assert written[0] == "".join(convert_pinyin(bridge_model, processor, parts))
    assert [len(text) for text in written] == [100, 1]


def test_speech_writes_one_character_a_unit_heard(bridge_model, processor, clips):
    heard = bridge_model(**processor(clips, sampling_rate=16000)).pinyin
    written = transcribe_clips(bridge_model, processor, clips)
    assert [len(text) for text in written] == (heard >= 0).sum(-1).tolist()
    assert written == [transcribe_clips(bridge_model, processor, [clip])[0] for clip in clips]


def speak(seconds: list[float]) -> list[Syllable]:
    """One syllable over and over, each as long as said."""
    return [Syllable("ma1", start, end, 1.0) for start, end in pairwise(accumulate(seconds, initial=0.0))]


@given(st.lists(st.floats(0.1, 2.0), max_size=300))
def test_rows_hold_all_that_was_heard_and_no_more_than_forty_syllables(seconds):
    spans = _cut_at_pauses(speak(seconds))
    assert [place for span in spans for place in range(*span)] == list(range(len(seconds)))
    assert all(1 <= end - start <= LONGEST_ROW for start, end in spans)


def test_row_ends_where_somebody_paused():
    seconds = [0.2] * 70
    seconds[44] = seconds[20] = 0.5
    assert _cut_at_pauses(speak(seconds)) == [(0, 21), (21, 45), (45, 70)]


def test_rows_of_one_clip_are_joined_in_order(bridge_model, processor, clips, monkeypatch):
    (whole, *_) = transcribe_waveforms(bridge_model, processor, clips)
    monkeypatch.setattr("pinyin_llm.transcription_pinyin_llm.LONGEST_ROW", 2)
    spans = _cut_at_pauses(whole.syllables)
    assert len(spans) > 2
    written = transcribe_waveforms(bridge_model, processor, clips, num_return_sequences=2)[0]
    assert written.syllables == whole.syllables
    assert [len(text) for text, _ in written.alternatives] == [len(whole.syllables)] * 2
    assert written.text == written.alternatives[0][0]
    assert written.alternatives[0][1] > written.alternatives[1][1]


def test_heard_pinyin_outweighs_the_language_model(bridge_model, processor, clips):
    inputs = processor(clips, sampling_rate=16000)
    heard = bridge_model(**inputs).pinyin
    constraint = processor.pinyin_constraint(weight=1000.0)
    ids = bridge_model.generate(**inputs, pinyin_constraint=constraint, max_new_tokens=60, do_sample=False)
    for text, units in zip(processor.decode_answers(ids, inputs["input_ids"].shape[1]), heard, strict=True):
        syllables = [processor.pinyin_tokenizer.units[unit][:-1] for unit in units.tolist() if unit >= 0]
        slots = [processor.pinyin_tokenizer.bases[syllable] for syllable in syllables]
        assert all(map(readable, [processor] * len(text), text, slots))


def test_without_the_constraint_the_model_writes_freely(bridge_model, processor):
    (free,) = decode_rows(bridge_model, processor, processor(pinyin=ROWS[0]), constrained=False)
    assert not all(map(readable, [processor] * 4, free.text, processor.pinyin_tokenizer.encode_syllables(ROWS[0])))
