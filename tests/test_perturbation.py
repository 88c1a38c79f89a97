"""Copies of a clip say the same at the same times, and are the same when they are made again."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.training.perturbation import Room, changes_of


CLIP = load_waveform(Path(__file__).parents[1] / "samples/BAC009S0764W0121.wav")


def envelope(waveform: np.ndarray) -> np.ndarray:
    """Loudness of each 20 ms."""
    return np.sqrt((waveform[: len(waveform) // 320 * 320].reshape(-1, 320) ** 2).mean(-1))


@settings(max_examples=10, deadline=None)
@given(number=st.integers(1, 10**6), name=st.text(min_size=1))
def test_room_keeps_length_loudness_and_times(number, name):
    heard = Room(number)(CLIP, name)
    assert (heard.shape, heard.dtype) == (CLIP.shape, np.float32)
    assert np.abs(heard).max() == pytest.approx(np.abs(CLIP).max(), rel=1e-5)
    now, late, early = (
        np.corrcoef(envelope(CLIP)[10:-10], np.roll(envelope(heard), by)[10:-10])[0, 1] for by in (0, -5, 5)
    )
    assert now > max(late, early)  # by 100 ms


def test_rooms_differ_by_number_and_clip_and_are_drawn_again_the_same():
    copies = [Room(1)(CLIP, "a"), Room(2)(CLIP, "a"), Room(1)(CLIP, "b")]
    assert not any(np.array_equal(one, other) for one, other in zip(copies, [*copies[1:], copies[0]], strict=True))
    assert np.array_equal(Room(1)(CLIP, "a"), copies[0])


def test_silence_stays_silent_in_every_room():
    silence = np.zeros(16000, np.float32)
    assert not any(Room(number)(silence, "a").any() for number in range(1, 9))


def test_copies_are_named_by_speed_and_room():
    changes = changes_of([1.0, 0.9], rooms=2)
    assert list(changes) == ["1.0", "0.9", "room_1", "room_2"]
    lengths = [len(change(CLIP, "a")) / len(CLIP) for change in changes.values()]
    assert lengths == pytest.approx([1, 1 / 0.9, 1, 1], rel=1e-3)
