"""A clip at another speed, or in another room: many recordings from few.

A bridge trained on synthetic voices only recognises a real speaker better with it (docs/log.md).
"""

from dataclasses import dataclass

import numpy as np
import soxr

from ..audio_pinyin_llm import SAMPLING_RATE
from .noise import row_generator


MOST_REFLECTIONS = 6
BANDS = np.log(np.array([60, 150, 400, 1000, 2500, 5000, 8000]))  # of a microphone; log Hz


@dataclass(frozen=True)
class Speed:
    """0.9 plays a clip slower and lower, 1.1 faster and higher: more voices from few (Ko et al. 2015)."""

    speed: float

    def __call__(self, waveform: np.ndarray, clip: str) -> np.ndarray:
        return waveform if self.speed == 1.0 else soxr.resample(waveform, self.speed * SAMPLING_RATE, SAMPLING_RATE)


@dataclass(frozen=True)
class Room:
    """A small noisy room and a cheap microphone, drawn by `number` and the clip's name.

    Length and peak stay as they are. Rooms are made of image sources (pyroomacoustics); audiomentations would do all of
    it, but requires a soxr before 1.0.
    """

    number: int
    speed = 1.0  # a copy is as long as the clip

    def __call__(self, waveform: np.ndarray, clip: str) -> np.ndarray:
        random = row_generator(self.number, clip)
        changed = waveform
        if random.random() < 0.6:
            changed = _reverberate(changed, random)
        if random.random() < 0.8:
            changed = _add_noise(changed, random)
        if random.random() < 0.8:
            changed = _colour(changed, random)
        loudest = np.abs(changed).max()
        return (changed * (np.abs(waveform).max() / loudest if loudest else 1.0)).astype(np.float32)


Change = Speed | Room


def changes_of(speeds: list[float], rooms: int) -> dict[str, Change]:
    """The names of a clip's copies, and the change that makes each from (samples,) float32 and the clip's name."""
    at_speeds = {str(speed): Speed(speed) for speed in speeds}
    return at_speeds | {f"room_{number}": Room(number) for number in range(1, rooms + 1)}


def _reverberate(waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Between two points 0.15 to 1.5 m apart, in a room of 2 to 6 m per side; the direct sound is not delayed."""
    from pyroomacoustics import Material, ShoeBox
    from scipy.signal import fftconvolve

    size = random.uniform([2, 2, 2.2], [6, 6, 3])
    mouth = random.uniform([0.5, 0.5, 1], size - [0.5, 0.5, 0.7])
    direction = random.normal(size=3)
    microphone = mouth + random.uniform(0.15, 1.5) * direction / np.linalg.norm(direction)
    room = ShoeBox(size, fs=SAMPLING_RATE, materials=Material(random.uniform(0.15, 0.6)), max_order=MOST_REFLECTIONS)
    room.add_source(mouth)
    room.add_microphone(np.clip(microphone, 0.1, size - 0.1))
    room.compute_rir()
    response = room.rir[0][0]
    return fftconvolve(waveform, response[np.abs(response).argmax() :])[: len(waveform)]


def _add_noise(waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """8 to 40 dB below the speech, from rumble (amplitude as 1 / f) to hiss."""
    spectrum = np.fft.rfft(random.normal(size=len(waveform)))
    noise = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** random.uniform(-1, 0.5), len(waveform))
    ratio = 10 ** (-random.uniform(8, 40) / 20)
    return waveform + noise * ratio * np.linalg.norm(waveform) / np.linalg.norm(noise)


def _colour(waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Up to 8 dB more or less in seven bands; a fifth of the clips lose everything above 3.4 to 7.5 kHz."""
    frequencies = np.fft.rfftfreq(len(waveform), 1 / SAMPLING_RATE)
    gain = 10 ** (np.interp(np.log(frequencies.clip(1)), BANDS, random.uniform(-8, 8, len(BANDS))) / 20)
    if random.random() < 0.2:
        gain /= np.sqrt(1 + (frequencies / random.uniform(3400, 7500)) ** 8)  # a Butterworth filter of fourth order
    return np.fft.irfft(np.fft.rfft(waveform) * gain, len(waveform))
