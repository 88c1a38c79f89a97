"""A checkpoint ready to use: model and processor, with the words of a subject if a text is given."""

import re
from pathlib import Path

import torch

from .. import PinyinLlamaForASR, PinyinLlamaProcessor
from ..ngrams_pinyin_llm import CharacterNgrams, MixedNgrams
from ..scoring.normalization import HAN, read_aloud


MINI_MODEL = Path(__file__).parents[1]  # the repository, and the installed package, is a model folder
TOPIC_SHARE = 0.5  # of the words of a given text


def load_model(
    name: str | Path = MINI_MODEL, device: str | None = None, dtype: str | None = None
) -> tuple[PinyinLlamaForASR, PinyinLlamaProcessor]:
    """The folder or Hub id of a checkpoint -> model and processor.

    On a CPU weights are float32, as many laptops are slow at bfloat16. If the CPU has instructions for it, the parts of
    Whisper run in bfloat16; the language model stays float32, which is exact there and as fast on single clips.

    Args:
        device: "cpu", "cuda", "cuda:1", ...; by default a GPU if there is one.
        dtype: "float32", "bfloat16", "float16" or "auto"; by default as above, and as saved on a GPU.

    Raises:
        OSError, ValueError: No such checkpoint, an incomplete one, or a device that is not there.
    """
    if name == MINI_MODEL and not any(MINI_MODEL.glob("model*.safetensors")):
        raise OSError(
            f"{MINI_MODEL}: the mini model is not installed here. Name another with --model FOLDER or HUB_ID."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"Expected a device of this machine, found {device!r}, but there is no GPU. Use --device cpu.")
    on_cpu = device == "cpu"
    model = PinyinLlamaForASR.from_pretrained(name, dtype=dtype or (torch.float32 if on_cpu else "auto"))
    if on_cpu and dtype is None and has_fast_bfloat16(device):
        model.audio_tower.bfloat16()
        if model.text_decoder is not None:  # it reads all its weights for each token: half the bytes, half the time
            model.text_decoder.bfloat16()
    return model.eval().to(device), PinyinLlamaProcessor.from_pretrained(name)


def has_fast_bfloat16(device: str) -> bool:
    """Whether products of bfloat16 are at least as fast as those of float32.

    A CPU without instructions for it emulates them: 1.6 GFLOP/s on AVX2, where float32 reaches 55.
    """
    if device != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def add_subject_text(processor: PinyinLlamaProcessor, file: str | Path) -> None:
    """Make beam search prefer the words of a text, of any kind, among homophones.

    Raises:
        OSError, ValueError: No such file, not in UTF-8, or no Han characters in it.
    """
    try:
        text = Path(file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, found other bytes. Save it as UTF-8.") from error
    # Anything but a Han character ends a line: a name next to a room number counts, and so does a word of two
    # characters next to a Latin one.
    lines = re.findall(f"{HAN.pattern}+", read_aloud(text))
    if not lines:
        raise ValueError(f"{file}: expected sentences or names in Han characters, found none.")
    topic = CharacterNgrams.from_lines(lines, least=1)
    processor.ngrams = MixedNgrams(processor.ngrams, topic, TOPIC_SHARE) if processor.ngrams else topic
