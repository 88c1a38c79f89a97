"""Stand-ins for the two bases of full size: true shapes, names, shards and tokenizer, random weights in bfloat16.

pinyin-llm base random_bases --parts data/parts --output data/full_size     # 16.6 GB

They show what loading and training cost; their output is meaningless. LLaMA2's tokenizer is the real one, from an npm
package.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from ..inference.console import report_errors
from .llama2_tokenizer import write_tokenizer


# meta-llama/Llama-2-7b-hf and openai/whisper-large-v3, their config.json
LLAMA2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
WHISPER_LARGE_V3 = {
    "vocab_size": 51866,
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_layers": 32,
    "decoder_attention_heads": 20,
    "decoder_ffn_dim": 5120,
}
SHARD_BYTES = {"llama2-7b": 10**10, "whisper-large-v3": 4 * 10**9}  # as they were sharded when they were published
BLOCK = 2**24  # random numbers drawn; larger tensors repeat them


def write_random(model, folder: Path, shard_bytes: int) -> None:
    """Write a model of the meta device to `folder`, sharded, with random weights."""
    generator = torch.Generator().manual_seed(0)
    block = torch.empty(BLOCK).normal_(std=0.02, generator=generator).to(torch.bfloat16)
    shards: list[list[str]] = [[]]
    sizes = [0]
    shapes = {name: p.shape for name, p in model.named_parameters()}  # tied ones once
    for name, shape in shapes.items():
        if sizes[-1] + 2 * shape.numel() > shard_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(name)
        sizes[-1] += 2 * shape.numel()
    single = len(shards) == 1
    names = (
        ["model.safetensors"]
        if single
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for file, tensors in zip(names, tqdm(shards, desc=folder.name, unit="shard"), strict=True):
        filled = {name: _random_tensor(name, shapes[name], block) for name in tensors}
        save_file(filled, folder / file, {"format": "pt"})
    if not single:
        places = {name: file for file, tensors in zip(names, shards, strict=True) for name in tensors}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _random_tensor(name: str, shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    count = shape.numel()
    return block.repeat(-(-count // BLOCK))[:count].view(shape).clone()


def main(argv: list[str] | None = None) -> int:
    """Write both folders; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True, help="folder of the fetched packages")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    llama, whisper = (arguments.output / name for name in SHARD_BYTES)
    for folder in (llama, whisper):
        folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(arguments.parts, llama)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(whisper)
    for folder, kind, config in (
        (llama, LlamaForCausalLM, LlamaConfig(**LLAMA2_7B, dtype="bfloat16")),
        (whisper, WhisperForConditionalGeneration, WhisperConfig(**WHISPER_LARGE_V3, dtype="bfloat16")),
    ):
        with torch.device("meta"):
            model = kind(config)
        config.architectures = [kind.__name__]
        config.save_pretrained(folder)
        write_random(model, folder, SHARD_BYTES[folder.name])
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
