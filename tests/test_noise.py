"""Noise of stage 1: seeded, and as frequent as asked."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer
from pinyin_llm.training.noise import NoiseArguments, PinyinNoise
from pinyin_llm.training.recognized_pinyin import align, quantize


UNITS = PinyinTokenizer.from_file()
ROWS = [[int(i) for i in np.random.default_rng(row).integers(1417, size=20)] for row in range(300)]


def corrupt(seed: int = 0, **rates) -> list[list[tuple[int, ...]]]:
    random = np.random.default_rng(seed)
    noise = PinyinNoise(NoiseArguments(**rates), UNITS)
    return [noise(row, random) for row in ROWS]


def test_without_rates_nothing_changes():
    assert corrupt() == [[(unit,) for unit in row] for row in ROWS]


def test_same_seed_gives_the_same_noise():
    rates = {field.name: 0.2 for field in fields(NoiseArguments) if "heard" not in field.name}
    assert corrupt(seed=1, **rates) == corrupt(seed=1, **rates)
    assert corrupt(seed=1, **rates) != corrupt(seed=2, **rates)


@pytest.mark.parametrize(("name", "sign"), [("drop", -1), ("insert", 1), ("repeat", 1)])
def test_rates_of_drops_insertions_and_repeats(name, sign):
    lengths = [len(row) / 20 - 1 for row in corrupt(**{name: 0.2})]
    assert np.mean(lengths) == pytest.approx(sign * 0.2, abs=0.02)


def test_rate_of_confusions_keeps_sound_or_tone_near():
    pairs = [(UNITS.units[a], UNITS.units[b]) for row, new in zip(ROWS, corrupt(confuse=0.2), strict=True)
             for a, (b,) in zip(row, new, strict=True) if a != b]  # fmt: skip
    assert len(pairs) / 6000 == pytest.approx(0.2, abs=0.02)
    assert all(a[:-1] == b[:-1] or a[-1] == b[-1] for a, b in pairs)


def test_rates_of_lost_tones():
    lost = [[slot == UNITS.bases[UNITS.units[unit][:-1]] and len(slot) > 1 for unit, slot in zip(row, new, strict=True)]
            for row, new in zip(ROWS, corrupt(toneless_rows=0.3, toneless=0.1), strict=True)]  # fmt: skip
    assert np.mean(lost) == pytest.approx(0.3 + 0.7 * 0.1, abs=0.05)


def test_blend_keeps_the_unit_said_and_adds_a_near_one():
    slots = [(unit, slot) for row, new in zip(ROWS, corrupt(blend=0.2), strict=True)
             for unit, slot in zip(row, new, strict=True) if len(slot) > 1]  # fmt: skip
    assert len(slots) / 6000 == pytest.approx(0.2, abs=0.02)
    assert all(slot[0] == unit and len(slot) <= 4 for unit, slot in slots)


def test_row_never_becomes_empty():
    assert all(corrupt(drop=1.0))
    assert PinyinNoise(NoiseArguments(drop=1.0), UNITS)([], np.random.default_rng(0)) == []


def test_heard_rows_are_slots_that_a_bridge_heard(tmp_path):
    (tmp_path / "heard.json").write_text('{"5": [[[5, 5, 6]], [], [[5], [7]]]}')
    noise = PinyinNoise(NoiseArguments(heard_rows=1.0, heard_pinyin=str(tmp_path / "heard.json")), UNITS)
    slots = noise([5] * 60 + [8], np.random.default_rng(0))
    assert slots[-1] == (8,)  # never heard: as it is
    assert set(slots[:-1]) == {(5, 5, 6), (5,), (7,)}
    assert slots.count((5,)) == slots.count((7,))
    assert noise([5], np.random.default_rng(1))  # also where it was missed


@given(st.lists(st.integers(0, 6), min_size=1), st.lists(st.integers(0, 6)))
def test_each_slot_heard_goes_with_one_unit_said(said, heard):
    aligned = align(said, [(unit,) for unit in heard])
    assert [unit for unit, _ in aligned] == said
    assert [slot[0] for _, slots in aligned for slot in slots] == heard


def test_slot_is_written_as_ids_whose_mean_it_is():
    shares = torch.zeros(1417)
    shares[[12, 40, 41]] = torch.tensor([0.74, 0.14, 0.12])
    assert quantize(shares) == (12,) * 6 + (40, 41)
    assert len(quantize(torch.full((1417,), 1 / 1417))) == 1
