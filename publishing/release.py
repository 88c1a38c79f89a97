"""A trained model as it ships: half the bytes, checked for size, with the records of its runs.

pinyin-llm release data/mini-bridge .       # into this repository, which is the mini model's folder
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


LARGEST_BYTES = 95_000_000  # per file: code hosts refuse files of 100 MB


def release(source: str, target: str) -> int:
    """Write the model of `source` to `target` with float16 weights, to be loaded as float32; returns their bytes.

    Whisper-base's weights were published as float16, so its encoder loses nothing.

    Raises:
        ValueError: The weights are too large to be shipped; `target` is as it was.
    """
    import torch

    from .. import PinyinLlamaForASR, PinyinLlamaProcessor

    model = PinyinLlamaForASR.from_pretrained(source, dtype=torch.float32)
    with TemporaryDirectory() as scratch:
        model.half().save_pretrained(scratch)
        PinyinLlamaProcessor.from_pretrained(source).save_pretrained(scratch)
        config = Path(scratch, "config.json")
        values = json.loads(config.read_text("utf-8")) | {"dtype": "float32"}
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
        size = Path(scratch, "model.safetensors").stat().st_size
        if size > LARGEST_BYTES:
            raise ValueError(
                f"{target}: expected weights of at most {LARGEST_BYTES} bytes, found {size}. Make the model smaller."
            )
        for file in Path(scratch).iterdir():
            if file.suffix != ".py":  # the code has its own place in the repository
                shutil.copyfile(file, Path(target, file.name))
    return size


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad usage."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 2 or words[0].startswith("-"):
        print("usage: pinyin-llm release SOURCE TARGET", file=sys.stderr)
        return 0 if set(words) & {"-h", "--help"} else 2
    print(f"{words[1]}: {release(*words):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
