"""Audio in: a file or an array becomes 16 kHz mono float32, or an AudioError says why not."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np


SAMPLING_RATE = 16000
MAX_CHANNELS = 32
BLOCK_FRAMES = 2**18  # read at once: memory depends neither on the length of a file nor on what its header claims
SILENCE_PEAK = 1e-3  # -60 dBFS around the mean: below it there is no speech
SHORTEST_SECONDS = 0.05
FETCH_SECONDS = 60
URL_PUNCTUATION = "%/:?#[]@!$&'()*+,;=~"  # kept in a URL; other characters, as in 汉字.wav, are sent percent-encoded
# The encoder takes 30 s. CER of three long recordings in pieces of 10, 15, 20, 28 s: 12.2 13.5 12.8 12.2;
# 7.1 6.0 6.7 7.7; 1.7 1.8 2.7 3.3 (docs/log.md). Short pieces mean more cuts, long ones more work for the encoder.
LONGEST_PIECE_SECONDS = 15.0
CLIPPED_LEVEL, CLIPPED_SHARE = 0.999, 0.05
FULL_SCALE = {np.dtype("int16"): 2.0**15, np.dtype("int32"): 2.0**31, np.dtype("uint8"): 2.0**7}
MAGIC = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture", b"%PDF": "a PDF",
         b"<!DOCTYPE": "an HTML page", b"<HTML": "an HTML page", b"PK\x03\x04": "a zip archive",
         b"\x1f\x8b": "a gzip archive", b"\x1aE\xdf\xa3": "a WebM or Matroska file"}  # fmt: skip


class AudioError(ValueError):
    """Audio that cannot be read; the message names it, what was found and what to do."""


class AudioWarning(UserWarning):
    """Audio that can be read, but may give a worse text."""


def load_waveform(audio, sampling_rate: int | None = None) -> np.ndarray:
    """Path, URL, bytes, array or clip of `datasets` -> (samples,) float32 in [-1, 1] at 16 kHz.

    Args:
        audio: A path, a URL or the bytes of a wav, flac, mp3 or ogg file; or an array or tensor of (samples,),
            (channels, samples) or (samples, channels), float or int16 / int32 / uint8; or what `datasets` gives, a
            decoder or {"array": ..., "sampling_rate": ...}.
        sampling_rate: Of an array, in Hz.

    Raises:
        AudioError: An empty, unreadable or impossible sound; NaN or infinite samples.
        ValueError: An array without its sampling rate, or with one that is not a number.
    """
    if isinstance(audio, (str, Path, bytes, bytearray)):
        return np.concatenate(list(read_blocks(audio)))
    if hasattr(audio, "get_all_samples"):
        samples = audio.get_all_samples()
        audio = {"array": samples.data, "sampling_rate": samples.sample_rate}
    if isinstance(audio, dict):
        audio, sampling_rate = _array_and_rate(audio, sampling_rate)
    if not isinstance(sampling_rate, Real):
        found = "none" if sampling_rate is None else repr(sampling_rate)
        raise ValueError(
            f"An array needs its sampling_rate in Hz, e.g. processor(audio, sampling_rate=16000); found {found}."
        )
    return to_waveform(np.asarray(audio), sampling_rate)


def _array_and_rate(clip: dict, sampling_rate: int | None) -> tuple:
    if not {"array", "sampling_rate"} <= clip.keys():
        raise ValueError(f"Expected a clip with 'array' and 'sampling_rate', found the keys {list(clip)}.")
    if sampling_rate not in (None, clip["sampling_rate"]):
        rates = f"sampling_rate={sampling_rate} beside a clip of {clip['sampling_rate']} Hz"
        raise ValueError(f"Found {rates}. Leave sampling_rate out: the clip has its own.")
    return clip["array"], clip["sampling_rate"]


def read_pieces(audio, longest_seconds: float = LONGEST_PIECE_SECONDS) -> Iterator[np.ndarray]:
    """Anything `load_waveform` takes -> the pieces that `split_at_pauses` cuts; files are read as pieces are needed."""
    held = np.zeros(0, dtype=np.float32)
    in_file = isinstance(audio, (str, Path, bytes, bytearray))
    for block in read_blocks(audio) if in_file else [load_waveform(audio)]:
        held = np.concatenate([held, block])
        *pieces, (start, _) = split_at_pauses(held, longest_seconds)
        yield from (held[a:b] for a, b in pieces)
        held = held[start:]
    yield held


def read_blocks(audio: str | Path | bytes) -> Iterator[np.ndarray]:
    """A file or URL of any rate and number of channels -> (samples,) float32 at 16 kHz, block by block."""
    if isinstance(audio, (bytes, bytearray)):
        yield from _decode(io.BytesIO(audio), "the bytes given")
        return
    if isinstance(audio, str) and audio.startswith(("http://", "https://")):
        yield from _decode(io.BytesIO(_fetch(audio)), audio)
        return
    if not Path(audio).is_file():
        raise AudioError(f"{audio}: no such file, or a folder.")
    with _decoding(audio), Path(audio).open("rb") as stream:
        yield from _decode(stream, str(audio))


def _fetch(url: str) -> bytes:
    try:
        with urlopen(quote(url, safe=URL_PUNCTUATION), timeout=FETCH_SECONDS) as response:
            return response.read()
    except OSError as error:
        raise AudioError(f"{url}: cannot be fetched ({error}). Expected the address of a sound file.") from error


@contextmanager
def _decoding(name):
    try:
        yield
    except (OSError, RuntimeError, TypeError, MemoryError) as error:
        found = str(getattr(error, "error_string", error)).rstrip(".")  # libsndfile's own message
        raise AudioError(f"{name}: cannot be read as sound ({found}). Expected wav, flac, mp3 or ogg.") from error


def seconds_of(path: str | Path) -> float:
    """The length of a file according to its header; 0 if it cannot be read."""
    import soundfile

    try:
        with Path(path).open("rb") as stream:  # soundfile itself cannot open names that are not UTF-8
            return soundfile.info(stream).duration
    except (OSError, RuntimeError, TypeError):
        return 0.0


def _decode(stream, name: str) -> Iterator[np.ndarray]:
    import soundfile

    _refuse_other_files(stream.read(64), name)
    stream.seek(0)
    with _decoding(name), soundfile.SoundFile(stream) as sound:
        if "(should be" in sound.extra_info:  # libsndfile's note on a file shorter than its header says
            warnings.warn(f"{name}: is shorter than its header says; was it cut off?", AudioWarning, stacklevel=2)
        resampler = _resampler(sound.samplerate, name)
        frames = clipped = 0
        while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            mono = _mix(block, name, frames)
            frames, clipped = frames + len(mono), clipped + _clipped(mono)
            yield resampler.resample_chunk(mono)
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
    _warn_if_clipped(clipped, frames, name)


def _refuse_other_files(head: bytes, name: str) -> None:
    if not head:
        raise AudioError(f"{name}: is empty (0 bytes). Expected wav, flac, mp3 or ogg.")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").upper()
    kind = next((kind for magic, kind in MAGIC.items() if text.startswith(magic)), None)
    kind = "an MP4 or M4A file" if head[4:8] == b"ftyp" else kind
    if kind:
        raise AudioError(f"{name}: is {kind}. Expected wav, flac, mp3 or ogg.")


def to_waveform(samples: np.ndarray, sampling_rate: int, name: str = "array") -> np.ndarray:
    """Any array of samples -> (samples,) float32 in [-1, 1] at 16 kHz; of two axes the shorter is the channels."""
    if samples.ndim not in (1, 2):
        shapes = "(samples,), (channels, samples) or (samples, channels)"
        raise AudioError(f"{name}: expected {shapes}, found {samples.shape}.")
    samples, resampler = _scale(samples, name), _resampler(sampling_rate, name)
    if samples.size == 0:
        return np.zeros(0, dtype=np.float32)
    samples = samples[:, None] if samples.ndim == 1 else samples
    mono = _mix(samples if np.argmin(samples.shape) == 1 else samples.T, name)
    _warn_if_clipped(_clipped(mono), len(mono), name)
    return resampler.resample_chunk(mono, last=True)


def _scale(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.dtype in FULL_SCALE:
        middle = FULL_SCALE[samples.dtype] if samples.dtype == np.uint8 else 0.0
        return (samples.astype(np.float64) - middle) / FULL_SCALE[samples.dtype]
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name}: expected floats in [-1, 1], int16, int32 or uint8, found {samples.dtype}.")
    return samples


def _mix(samples: np.ndarray, name: str, first: int = 0) -> np.ndarray:
    """(samples, channels) -> (samples,) float32; `first` is the index of the first sample in its file."""
    if samples.shape[1] > MAX_CHANNELS:
        raise AudioError(f"{name}: expected at most {MAX_CHANNELS} channels, found {samples.shape[1]}.")
    wrong = np.argwhere(~np.isfinite(samples))
    if wrong.size:
        frame, channel = wrong[0]
        raise AudioError(f"{name}: sample {first + frame} is {samples[frame, channel]}. Expected finite numbers.")
    return samples.mean(axis=1).astype(np.float32)


def _resampler(sampling_rate: int, name: str):
    import soxr

    if not 1000 <= sampling_rate <= 768000:
        raise AudioError(f"{name}: expected a sampling rate of 1 to 768 kHz, found {sampling_rate} Hz.")
    if sampling_rate < SAMPLING_RATE:
        warning = f"{name}: {sampling_rate} Hz; speech under 16 kHz is recognised less well."
        warnings.warn(warning, AudioWarning, stacklevel=3)
    return soxr.ResampleStream(sampling_rate, SAMPLING_RATE, 1, dtype="float32")


def _clipped(samples: np.ndarray) -> int:
    return int(np.count_nonzero(np.abs(samples) >= CLIPPED_LEVEL))


def _warn_if_clipped(clipped: int, samples: int, name: str) -> None:
    if clipped > CLIPPED_SHARE * samples:
        warning = f"{name}: {clipped / samples:.0%} of the samples are clipped; expect more errors."
        warnings.warn(warning, AudioWarning, stacklevel=3)


def why_no_speech(waveform: np.ndarray) -> str | None:
    """Why (samples,) at 16 kHz cannot hold speech, or `None`; clips with a reason get an empty text."""
    seconds = len(waveform) / SAMPLING_RATE
    if seconds < SHORTEST_SECONDS:
        return f"{seconds * 1000:.0f} ms long"
    if np.abs(waveform - waveform.mean()).max() < SILENCE_PEAK:
        return "silent"
    return None


def split_at_pauses(waveform: np.ndarray, longest_seconds: float = LONGEST_PIECE_SECONDS) -> list[tuple[int, int]]:
    """(samples,) at 16 kHz -> [(start, end)] in samples, none longer than `longest_seconds`, cut where it is quietest.

    Cuts lie in the second half of each window, so that pieces stay long enough to give context.
    """
    longest, window = int(longest_seconds * SAMPLING_RATE), SAMPLING_RATE // 10
    pieces, start = [], 0
    while len(waveform) - start > longest:
        search = waveform[start + longest // 2 : start + longest]
        power = np.cumsum(search.astype(np.float64) ** 2)
        energy = (power[window:] - power[:-window])[:: window // 4]
        end = start + longest // 2 + int(energy.argmin()) * (window // 4) + window // 2
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(waveform))]


__all__ = ["AudioError", "AudioWarning", "load_waveform", "read_pieces", "split_at_pauses", "why_no_speech"]
