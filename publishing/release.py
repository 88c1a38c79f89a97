"""A trained model prepared for release: float16 weights, one shard per group of parts, the records of its runs.

pinyin-llm release data/mini-bridge .       # into this repository, which is the mini model's folder
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ..inference.console import report_errors
from ..training.records import origin_folder, records_of


LARGEST_BYTES = 95_000_000  # per file: code hosts refuse files of 100 MB
SHARDS = (("audio_tower",), ("language_model", "pinyin_embeddings"), ("multi_modal_projector",), ("text_decoder",))


def release(source: str, target: str) -> int:
    """Write the model of `source` to `target` with float16 weights, to be loaded as float32; returns their bytes.

    Whisper-base's weights were published as float16, so its encoder loses nothing.

    Raises:
        ValueError: The weights are too large to be shipped; `target` is as it was.
    """
    import torch
    from safetensors.torch import load_file

    from .. import PinyinLlamaForASR, PinyinLlamaProcessor

    model = PinyinLlamaForASR.from_pretrained(source, dtype=torch.float32).half()
    with TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        PinyinLlamaProcessor.from_pretrained(source).save_pretrained(scratch)
        config = Path(scratch, "config.json")
        values = json.loads(config.read_text("utf-8")) | {"dtype": "float32"}
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
        saved = Path(scratch, "model.safetensors")  # without tensors that are tied to another
        sizes = write_shards(load_file(saved), Path(scratch))
        saved.unlink()
        if max(sizes) > LARGEST_BYTES:
            raise ValueError(
                f"{target}: expected files of at most {LARGEST_BYTES} bytes, found {max(sizes)}. Make parts smaller."
            )
        for old in Path(target).glob("model*.safetensors*"):
            old.unlink()
        for file in Path(scratch).iterdir():
            if file.suffix != ".py":  # the repository has the code already
                shutil.copyfile(file, Path(target, file.name))
    for number, record in enumerate(records_of(Path(source)), start=1):
        shutil.copyfile(record, origin_folder(Path(target)) / f"run_{number}.json")
    return sum(sizes)


def write_shards(state: dict, folder: Path) -> list[int]:
    """Write one shard per group of parts, and their index; returns the size of each.

    A shard whose parts were not trained again stays the same file, which version control stores once.
    """
    from safetensors.torch import save_file

    groups = [{name: t for name, t in state.items() if name.partition(".")[0] in parts} for parts in SHARDS]
    groups = [group for group in groups if group]
    weight_map, sizes = {}, []
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in group.items()}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(sorted(group), file)
        sizes.append((folder / file).stat().st_size)
    if forgotten := state.keys() - weight_map.keys():
        raise ValueError(f"{folder}: expected every tensor in a group of SHARDS, found {', '.join(sorted(forgotten))}.")
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return sizes


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad usage."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 2 or words[0].startswith("-"):
        wants_help = bool(set(words) & {"-h", "--help"})
        print("usage: pinyin-llm release SOURCE TARGET", file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    print(f"{words[1]}: {release(*words):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
