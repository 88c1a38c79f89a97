"""The checkpoint that ships: half the bytes, and the code linked instead of copied, since it lies in the repository.

python -m pinyin_llm.publishing.release data/mini-bridge .
"""

import json
import os
import sys
from pathlib import Path


PACKAGE = Path(__file__).resolve().parent
LARGEST_BYTES = 95_000_000


def release(source: str, target: str) -> int:
    """Write the model of `source` to `target`, its weights as float16, to be loaded as float32; their bytes.

    Whisper-base's weights were published as float16, so its encoder loses nothing.

    Raises:
        ValueError: The weights are too large to be shipped.
    """
    import torch

    from .. import PinyinLlamaForASR, PinyinLlamaProcessor

    for link in Path(target).glob("*_pinyin_llm.py"):
        link.unlink()  # else the code would be copied onto itself
    model = PinyinLlamaForASR.from_pretrained(source, dtype=torch.float32)
    model.half().save_pretrained(target)
    PinyinLlamaProcessor.from_pretrained(source).save_pretrained(target)
    config = Path(target, "config.json")
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2, ensure_ascii=False) + "\n"
    )
    for copy in Path(target).glob("*_pinyin_llm.py"):
        copy.unlink()
        copy.symlink_to(os.path.relpath(PACKAGE / copy.name, Path(target).resolve()))
    size = Path(target, "model.safetensors").stat().st_size
    if size > LARGEST_BYTES:
        raise ValueError(
            f"{target}: expected weights of at most {LARGEST_BYTES} bytes, found {size}. Make the model smaller."
        )
    return size


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pinyin_llm.publishing.release SOURCE TARGET")
    print(f"{sys.argv[2]}: {release(*sys.argv[1:]):,} bytes")
