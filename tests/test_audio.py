"""The door for audio: what is sound comes in whatever its form, and everything else is refused by name."""

import io
import warnings

import numpy as np
import pytest
import soundfile
from conftest import tone
from hypothesis import given, settings
from hypothesis import strategies as st

from pinyin_llm.audio_pinyin_llm import (
    SAMPLING_RATE,
    AudioError,
    AudioWarning,
    load_waveform,
    read_pieces,
    split_at_pauses,
    why_no_speech,
)


OTHER_KINDS = {
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "a PDF": b"%PDF-1.7\n" + bytes(64),
    "an HTML page": b"\n<!doctype html><html></html>",
    "an MP4 or M4A file": b"\x00\x00\x00\x20ftypM4A " + bytes(64),
    "a zip archive": b"PK\x03\x04" + bytes(64),
}


def encoded(samples: np.ndarray, rate: int = SAMPLING_RATE, **kwargs) -> bytes:
    """The bytes of a sound file, wav unless told."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, **{"format": "WAV", **kwargs})
    return stream.getvalue()


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestFiles:
    def test_empty_file_is_an_error(self, tmp_path):
        path = tmp_path / "empty.wav"
        path.touch()
        with pytest.raises(AudioError, match="empty.wav: is empty"):
            load_waveform(path)

    def test_missing_file_and_folder_are_errors(self, tmp_path):
        for path in (tmp_path / "nobody.wav", tmp_path):
            with pytest.raises(AudioError, match="no such file"):
                load_waveform(path)

    @pytest.mark.parametrize("kind", OTHER_KINDS)
    def test_other_kinds_are_named(self, kind, tmp_path):
        path = tmp_path / "sound.wav"
        path.write_bytes(OTHER_KINDS[kind])
        with pytest.raises(AudioError, match=f"sound.wav: is {kind}"):
            load_waveform(path)

    @pytest.mark.parametrize("junk", [b"Hello, this is text.\n" * 20, b"RIFF", bytes(1000)])
    def test_junk_is_an_error(self, junk):
        with pytest.raises(AudioError, match="Expected wav, flac, mp3 or ogg"):
            load_waveform(junk)

    @pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
    def test_containers(self, container, no_warning):
        waveform = load_waveform(encoded(tone(1.0), format=container))
        assert waveform.dtype == np.float32
        assert abs(len(waveform) - SAMPLING_RATE) < 2500  # mp3 pads
        assert np.abs(waveform).max() == pytest.approx(np.abs(tone(1.0)).max(), abs=0.05)

    @pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
    def test_cut_in_half_gives_the_same_every_time(self, container):
        half = encoded(tone(4.0), format=container)
        half = half[: len(half) // 2]
        first, second = _outcome(half), _outcome(half)
        assert first == second

    def test_wav_cut_in_half_is_read_with_a_warning(self):
        half = encoded(tone(2.0))[:32044]
        with pytest.warns(AudioWarning, match="shorter than its header says"):
            assert len(load_waveform(half)) == SAMPLING_RATE

    def test_header_that_claims_four_gigabytes_costs_nothing(self):
        header = bytearray(encoded(tone(1.0)))
        header[40:44] = b"\xf0\xff\xff\xff"
        with pytest.warns(AudioWarning, match="header"):
            assert len(load_waveform(bytes(header))) == SAMPLING_RATE

    def test_first_bad_sample_is_named(self):
        for value in (np.nan, np.inf, -np.inf):
            samples = tone(40.0)
            samples[[600_000, 620_000]] = value
            with pytest.raises(AudioError, match=f"sample 600000 is {value}"):
                load_waveform(encoded(samples, subtype="FLOAT"))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=20))
    def test_mutated_bytes_raise_nothing_but_audio_errors(self, changes):
        damaged = bytearray(encoded(tone(0.5)))
        for place, byte in changes:
            damaged[place % (60 if place % 2 else len(damaged))] = byte  # half of them in the header
        assert _outcome(bytes(damaged))


def _outcome(content: bytes) -> str | bytes:
    """The sound of a file, or its AudioError, as something to compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        try:
            return load_waveform(content).tobytes() or b"no sample"
        except AudioError as error:
            return str(error)


class TestRates:
    @pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000, 192000])
    def test_other_rates_are_resampled(self, rate, no_warning):
        time = np.arange(rate) / rate
        waveform = load_waveform(encoded(0.5 * np.sin(2 * np.pi * 440 * time), rate))
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLING_RATE) / SAMPLING_RATE)
        assert len(waveform) == SAMPLING_RATE
        np.testing.assert_allclose(waveform[200:-200], expected[200:-200], atol=2e-3)

    def test_telephone_rate_warns(self):
        with pytest.warns(AudioWarning, match="8000 Hz"):
            assert len(load_waveform(encoded(tone(1.0)[::2], 8000))) == SAMPLING_RATE

    @pytest.mark.parametrize("rate", [0, -16000, 10, 10_000_000])
    def test_impossible_rates(self, rate):
        with pytest.raises(AudioError, match="expected a sampling rate"):
            load_waveform(tone(0.1), sampling_rate=rate)

    def test_file_and_array_agree(self):
        samples = np.repeat(tone(20.0), 3)  # longer than one block
        from_array = load_waveform(samples, sampling_rate=48000)
        from_file = load_waveform(encoded(samples, 48000, subtype="FLOAT"))
        np.testing.assert_allclose(from_file, from_array, atol=1e-6)

    def test_array_without_its_rate(self):
        with pytest.raises(ValueError, match="sampling_rate"):
            load_waveform(tone(0.1))


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float64, np.float16])
    def test_equal_sound_gives_equal_features(self, dtype, processor):
        steps = np.round(tone(0.5) * 100)  # exact in eight bits
        scale = {np.int16: 2**8, np.int32: 2**24, np.uint8: 1}.get(dtype, 2.0**-7)
        middle = 128 if dtype is np.uint8 else 0
        samples = (steps * scale + middle).astype(dtype)
        features = [
            processor(array, sampling_rate=SAMPLING_RATE)["input_features"]
            for array in (samples, (steps / 128).astype(np.float32))
        ]
        np.testing.assert_allclose(*features, atol=1e-5)

    @pytest.mark.parametrize("channels", [1, 2, 6])
    def test_channels_on_either_axis_are_mixed(self, channels):
        clip = np.stack([tone(0.2, 200 + 50 * i) for i in range(channels)])
        expected = clip.mean(0)
        for array in (clip, clip.T):
            np.testing.assert_allclose(load_waveform(array, SAMPLING_RATE), expected, atol=1e-6)
        in_file = load_waveform(encoded(clip.T, subtype="FLOAT"))
        np.testing.assert_allclose(in_file, expected, atol=1e-6)

    @pytest.mark.parametrize("shape", [(), (1, 2, 3), (40, 50)])
    def test_shapes_that_are_no_sound(self, shape):
        with pytest.raises(AudioError, match="expected"):
            load_waveform(np.zeros(shape), SAMPLING_RATE)

    @pytest.mark.parametrize("array", [np.zeros(10, np.int64), np.zeros(10, bool), np.array(["a"])])
    def test_types_that_are_no_sound(self, array):
        with pytest.raises(AudioError, match="expected floats"):
            load_waveform(array, SAMPLING_RATE)

    def test_first_bad_sample_is_named(self):
        samples = np.stack([tone(0.1)] * 2)
        samples[1, [700, 900]] = np.nan
        with pytest.raises(AudioError, match="sample 700 is nan"):
            load_waveform(samples, SAMPLING_RATE)

    @pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
    def test_no_sample_at_all(self, shape):
        assert load_waveform(np.zeros(shape), SAMPLING_RATE).shape == (0,)


class TestSpeech:
    @pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
    def test_ten_seconds_of_one_value_are_silence(self, level):
        assert why_no_speech(np.full(160_000, level, np.float32)) == "silent"

    def test_too_short(self):
        assert why_no_speech(np.zeros(0, np.float32)) == "0 ms long"
        assert why_no_speech(tone(0.01)) == "10 ms long"
        assert why_no_speech(tone(0.2)) is None

    def test_header_without_sound(self):
        assert load_waveform(encoded(np.zeros(0))).shape == (0,)

    def test_clipping_warns(self):
        for loud in (encoded(np.clip(tone(1.0) * 20, -1, 1)), encoded(np.ones(48000), 48000)):
            with pytest.warns(AudioWarning, match="clipped"):
                load_waveform(loud)


class TestPieces:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 100 * 1600), st.floats(1.0, 30.0), st.integers(0, 100))
    def test_pieces_cover_every_sample_once(self, tenths, longest, seed):
        waveform = np.random.default_rng(seed).normal(scale=0.1, size=tenths * 10).astype(np.float32)
        pieces = split_at_pauses(waveform, longest)
        assert pieces[0][0] == 0
        assert pieces[-1][1] == len(waveform)
        assert all(end == start for (_, end), (start, _) in zip(pieces, pieces[1:], strict=False))
        assert all(end - start <= longest * SAMPLING_RATE for start, end in pieces)

    def test_cuts_fall_into_pauses(self):
        speech, pause = tone(9.0), np.zeros(SAMPLING_RATE, np.float32)
        waveform = np.concatenate([speech, pause, speech, pause, speech])
        cuts = [end / SAMPLING_RATE for _, end in split_at_pauses(waveform, 12.0)[:-1]]
        assert all(9 <= cut <= 10 or 19 <= cut <= 20 for cut in cuts)

    def test_file_is_cut_like_its_array_while_it_is_read(self):
        waveform = np.random.default_rng(0).normal(scale=0.1, size=100 * SAMPLING_RATE).astype(np.float32)
        pieces = list(read_pieces(encoded(waveform, subtype="FLOAT")))
        expected = [waveform[start:end] for start, end in split_at_pauses(waveform)]
        assert len(pieces) == len(expected) > 3
        for piece, other in zip(pieces, expected, strict=True):
            np.testing.assert_array_equal(piece, other)
