"""A Whisper folder of transformers -> the one file that whisper.cpp reads, in float16.

The file: magic number, sizes, mel filters, the vocabulary as bytes, then every tensor with its shape and name
(loader of whisper.cpp, src/whisper.cpp, whisper_model_load). Names are OpenAI's.
"""

import re
import struct
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode


MAGIC, FLOAT32, FLOAT16 = 0x67676D6C, 0, 1
OPENAI_NAMES = [
    (r"\.layers\.", ".blocks."),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"final_layer_norm", "mlp_ln"),
    (r"self_attn", "attn"),
    (r"encoder_attn", "cross_attn"),
    (r"q_proj", "query"),
    (r"k_proj", "key"),
    (r"v_proj", "value"),
    (r"out_proj", "out"),
    (r"fc1", "mlp.0"),
    (r"fc2", "mlp.2"),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"encoder\.layer_norm", "encoder.ln_post"),
    (r"decoder\.layer_norm", "decoder.ln"),
]


def openai_name(name: str) -> str:
    """E.g. model.encoder.layers.0.fc1.bias -> encoder.blocks.0.mlp.0.bias."""
    name = name.removeprefix("model.")
    for pattern, replacement in OPENAI_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def sizes(config) -> list[int]:
    """The numbers of the header in their order; the last says that matrices are float16."""
    audio = (config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers)
    text = (config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers)
    return [config.vocab_size, *audio, *text, config.num_mel_bins, FLOAT16]


def vocabulary(tokenizer) -> list[bytes]:
    """The plain tokens as bytes; whisper.cpp makes up the special ones itself."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(tokenizer.get_added_vocab())
    ranked = sorted((i, token) for token, i in tokenizer.get_vocab().items() if token not in special)
    return [bytes(byte_of[character] for character in token) for _, token in ranked]


def tensor_bytes(name: str, tensor: torch.Tensor) -> bytes:
    """One entry of the file: matrices in float16, vectors and positions in float32."""
    data = tensor.float().numpy()
    plain = data.ndim == 1 or name.endswith("positional_embedding")
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        data = data[:, None]
    kind, data = (FLOAT32, data) if plain else (FLOAT16, data.astype(np.float16))
    head = struct.pack("<iii", data.ndim, len(name), kind) + struct.pack(f"<{data.ndim}i", *reversed(data.shape))
    return head + name.encode() + data.tobytes()


def write_ggml(folder: str, path: Path) -> None:
    """Write the file to `path`, from the Whisper checkpoint in `folder`."""
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    filters = np.ascontiguousarray(processor.feature_extractor.mel_filters.T, dtype=np.float32)
    tokens = vocabulary(processor.tokenizer)
    with path.open("wb") as file:
        file.write(struct.pack("<12i", MAGIC, *sizes(model.config)))
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", len(tokens)))
        file.writelines(struct.pack("<i", len(token)) + token for token in tokens)
        for name, tensor in model.state_dict().items():
            if name != "proj_out.weight":  # tied to the token embedding
                file.write(tensor_bytes(openai_name(name), tensor))
