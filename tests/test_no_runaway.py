"""The shipped model: where nobody speaks (noise, hum, clicks, tones like music, silence), hardly any text comes out."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pinyin_llm.inference.loading import load_model
from pinyin_llm.scoring.cer import pair_texts, read_texts, score
from pinyin_llm.transcription_pinyin_llm import NUM_BEAMS, transcribe


SAMPLES = Path(__file__).parents[1] / "samples"
RATE = 16000
MOST_CHARACTERS = 3
SECONDS = (1.0, 1.5, 2.0, 2.5, 3.0, 1.2, 1.7, 4.0, 2.2, 12.0)  # one in ten is long
LEVELS = (0.3, 0.1, 0.03, 0.01, 0.003)  # root mean square
SCALE = (0, 2, 4, 7, 9, 12)  # semitones of a pentatonic melody
ROWS_A_KIND = 10

pytestmark = [
    pytest.mark.filterwarnings("ignore::pinyin_llm.audio_pinyin_llm.AudioWarning"),  # of each empty text
]


def coloured(random, time, power: float) -> np.ndarray:
    """Noise whose spectrum falls with frequency ** -power: 0 white, 0.5 pink, 1 brown."""
    spectrum = np.fft.rfft(random.normal(size=len(time)))
    hertz = np.fft.rfftfreq(len(time), 1 / RATE)
    return np.fft.irfft(spectrum / np.maximum(hertz, 20.0) ** power, len(time))


def hum(random, time) -> np.ndarray:
    """Mains hum and its overtones over a little hiss."""
    tones = sum(random.random() / k * np.sin(2 * np.pi * 50 * k * time + k) for k in range(1, 12))
    return tones + 0.02 * random.normal(size=len(time))


def clicks(random, time) -> np.ndarray:
    """Two to eight short decaying knocks a second."""
    impulses = (random.random(len(time)) < random.uniform(2, 8) / RATE) * random.normal(size=len(time))
    impulses[len(time) // 2] = 1.0
    return np.convolve(impulses, np.exp(-np.arange(800) / 80) * random.normal(size=800))[: len(time)]


def note(random, time, hertz: float) -> np.ndarray:
    """A struck string: harmonics that decay, the higher the faster, with vibrato."""
    phase = 2 * np.pi * hertz * time + random.uniform(0, 3) * np.sin(2 * np.pi * random.uniform(4, 7) * time)
    decay = random.uniform(0.3, 3)
    return sum(np.exp(-time * decay * k) / k * np.sin(k * phase) for k in range(1, 9))


def chords(random, time) -> np.ndarray:
    """Three strings at once, struck anew every 0.4 to 1.2 seconds."""
    return _struck(random, time, random.uniform(0.4, 1.2), voices=3)


def melody(random, time) -> np.ndarray:
    """One string, two to eight notes a second."""
    return _struck(random, time, random.uniform(0.12, 0.5), voices=1)


def _struck(random, time, seconds: float, voices: int) -> np.ndarray:
    size = int(seconds * RATE)
    root = random.uniform(110, 440)
    bars = [
        sum(note(random, time[:size], root * 2 ** (step / 12)) for step in random.choice(SCALE, voices, replace=False))
        for _ in range(0, len(time), size)
    ]
    return np.concatenate(bars)[: len(time)]


def sweep(random, time) -> np.ndarray:
    """A tone that glides up or down."""
    low, high = sorted(random.uniform(60, 6000, 2))
    way = time / time[-1] if random.random() < 0.5 else 1 - time / time[-1]
    return np.sin(2 * np.pi * np.cumsum(low * (high / low) ** way) / RATE)


def quiet(random, time) -> np.ndarray:
    """Digital silence, a constant, or the last bits of a recording with nobody in the room."""
    level = random.choice([0.0, 1e-5, 1e-4, 1e-3])
    return random.choice([0.0, 0.02]) + level * random.normal(size=len(time))


KINDS = {
    "white": lambda random, time: coloured(random, time, 0.0),
    "pink": lambda random, time: coloured(random, time, 0.5),
    "brown": lambda random, time: coloured(random, time, 1.0),
    "hum": hum,
    "clicks": clicks,
    "chords": chords,
    "melody": melody,
    "sweep": sweep,
    "babble of tones": lambda random, time: melody(random, time) + chords(random, time),
    "quiet": quiet,
}


def make_clip(kind: str, number: int, seed: int = 0) -> np.ndarray:
    """(samples,) float32 at 16 kHz, at one of `LEVELS`."""
    random = np.random.default_rng([seed, list(KINDS).index(kind), number])
    time = np.arange(int(SECONDS[number % len(SECONDS)] * RATE)) / RATE
    samples = KINDS[kind](random, time)
    if kind != "quiet":
        samples = samples * (LEVELS[number % len(LEVELS)] / np.sqrt(np.mean(samples**2)))
    return np.clip(samples, -1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def mini() -> tuple:
    return load_model()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """A hundred clips on disk, named after what they are, the short ones first: batches of like length are quick."""
    folder = tmp_path_factory.mktemp("no_speech")
    clips = {f"{kind}_{row}.wav": make_clip(kind, row) for kind in KINDS for row in range(ROWS_A_KIND)}
    for name, samples in clips.items():
        soundfile.write(folder / name, samples, RATE, subtype="FLOAT")
    return [str(folder / name) for name in sorted(clips, key=lambda name: len(clips[name]))]


@pytest.mark.parametrize("num_beams", [1, NUM_BEAMS])
def test_where_nobody_speaks_next_to_nothing_is_written(num_beams, mini, files):
    results = list(transcribe(*mini, files, num_beams=num_beams))
    wrote = {Path(result.source).name: result.text for result in results}
    assert len(wrote) == 100
    assert not any(result.error for result in results)
    assert {name: text for name, text in wrote.items() if len(text) > MOST_CHARACTERS} == {}


def test_speech_is_written_without_repetitions(mini):
    said = {str(SAMPLES / name): text for name, text in read_texts(SAMPLES / "references.tsv").items()}
    wrote = {result.source: result.text for result in transcribe(*mini, said)}
    found = score(*pair_texts(said, wrote))
    assert found.repetitions == 0
    assert found.cer < 0.5  # an empty text repeats nothing either
