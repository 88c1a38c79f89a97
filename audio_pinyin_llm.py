"""The door for audio: a file or an array becomes 16 kHz mono float32, or an AudioError says why not."""

import io
import warnings
from pathlib import Path

import numpy as np


SAMPLING_RATE = 16000
MAX_CHANNELS = 32
SILENCE_PEAK = 1e-3  # -60 dBFS around the mean: below it nobody speaks
SHORTEST_SECONDS = 0.05
CLIPPED_SHARE = 0.05
FULL_SCALE = {np.dtype("int16"): 2.0**15, np.dtype("int32"): 2.0**31, np.dtype("uint8"): 2.0**7}
MAGIC = {b"\x89PNG": "a PNG picture", b"%PDF": "a PDF", b"\xff\xd8\xff": "a JPEG picture", b"PK\x03\x04": "a zip archive",
         b"GIF8": "a GIF picture", b"<!DO": "an HTML page", b"<htm": "an HTML page", b"\x1f\x8b": "a gzip archive"}  # fmt: skip


class AudioError(ValueError):
    """Audio that cannot be read; the message names it, what was found and what to do."""


def load_waveform(audio, sampling_rate: int | None = None) -> np.ndarray:
    """Path, bytes or array -> (samples,) float32 in [-1, 1] at 16 kHz.

    Args:
        audio: A path or the bytes of a wav, flac, mp3 or ogg file; or an array or tensor of (samples,),
            (channels, samples) or (samples, channels), float or int16 / int32 / uint8.
        sampling_rate: Of an array, in Hz.

    Raises:
        AudioError: An empty, unreadable or impossible sound; NaN or infinite samples.
        ValueError: An array without its sampling rate.
    """
    if isinstance(audio, (str, Path)):
        return read_file(Path(audio))
    if isinstance(audio, (bytes, bytearray)):
        return _decode(io.BytesIO(audio), bytes(audio[:4]), "the bytes given")
    if sampling_rate is None:
        raise ValueError("An array needs its sampling_rate in Hz, e.g. processor(audio, sampling_rate=16000).")
    return to_waveform(np.asarray(audio), sampling_rate)


def read_file(path: Path) -> np.ndarray:
    """A sound file of any rate and number of channels -> (samples,) float32 at 16 kHz."""
    if not path.is_file():
        raise AudioError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes).")
    with path.open("rb") as stream:
        return _decode(stream, stream.read(4), str(path))


def _decode(stream, head: bytes, name: str) -> np.ndarray:
    import soundfile

    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if kind:
        raise AudioError(f"{name}: is {kind}, no sound. Expected wav, flac, mp3 or ogg.")
    stream.seek(0)
    try:
        samples, rate = soundfile.read(stream, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise AudioError(f"{name}: cannot be read as sound ({error}). Expected wav, flac, mp3 or ogg.") from error
    return to_waveform(samples.T, rate, name)


def to_waveform(samples: np.ndarray, sampling_rate: int, name: str = "array") -> np.ndarray:
    """Any array of samples -> (samples,) float32 in [-1, 1] at 16 kHz; the shorter axis of two is the channels."""
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and min(samples.shape) > MAX_CHANNELS):
        raise AudioError(f"{name}: expected (samples,), (channels, samples) or (samples, channels), found {samples.shape}.")
    if not 1000 <= sampling_rate <= 768000:
        raise AudioError(f"{name}: expected a sampling rate of 1 to 768 kHz, found {sampling_rate} Hz.")
    samples = _scale(samples, name)
    wrong = np.flatnonzero(~np.isfinite(samples))
    if wrong.size:
        raise AudioError(f"{name}: sample {wrong[0]} is {samples.flat[wrong[0]]}. Expected finite numbers.")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if sampling_rate != SAMPLING_RATE:
        samples = _resample(samples, sampling_rate, name)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _scale(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.dtype in FULL_SCALE:
        middle = FULL_SCALE[samples.dtype] if samples.dtype == np.uint8 else 0.0
        return (samples.astype(np.float64) - middle) / FULL_SCALE[samples.dtype]
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name}: expected floats in [-1, 1], int16, int32 or uint8, found {samples.dtype}.")
    return samples


def _resample(samples: np.ndarray, sampling_rate: int, name: str) -> np.ndarray:
    import soxr

    if sampling_rate < SAMPLING_RATE:
        warnings.warn(f"{name}: {sampling_rate} Hz; speech under 16 kHz is recognised less well.", stacklevel=2)
    return soxr.resample(samples, sampling_rate, SAMPLING_RATE) if samples.size else samples


def why_no_speech(waveform: np.ndarray) -> str | None:
    """The reason not to look for speech in (samples,) at 16 kHz, or `None`: such clips get an empty text."""
    seconds = len(waveform) / SAMPLING_RATE
    if seconds < SHORTEST_SECONDS:
        return f"{seconds * 1000:.0f} ms long"
    if np.abs(waveform - waveform.mean()).max() < SILENCE_PEAK:
        return "silent"
    return None


def warn_if_clipped(waveform: np.ndarray, name: str) -> None:
    """A warning where more than 5 % of the samples stand at full scale."""
    share = float(np.mean(np.abs(waveform) >= 0.999)) if waveform.size else 0.0
    if share > CLIPPED_SHARE:
        warnings.warn(f"{name}: {share:.0%} of the samples are clipped; expect more errors.", stacklevel=2)


def split_at_pauses(waveform: np.ndarray, longest_seconds: float = 28.0) -> list[tuple[int, int]]:
    """(samples,) at 16 kHz -> [(start, end)] in samples, none longer than `longest_seconds`, cut where it is quietest.

    A cut is looked for in the second half of each window, so that pieces stay long enough to give context.
    """
    longest, window = int(longest_seconds * SAMPLING_RATE), SAMPLING_RATE // 10
    pieces, start = [], 0
    while len(waveform) - start > longest:
        search = waveform[start + longest // 2 : start + longest]
        energy = np.convolve(search**2, np.ones(window), mode="valid")[:: window // 4]
        end = start + longest // 2 + int(energy.argmin()) * (window // 4) + window // 2
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(waveform))]


__all__ = ["AudioError", "load_waveform", "split_at_pauses", "warn_if_clipped", "why_no_speech"]
