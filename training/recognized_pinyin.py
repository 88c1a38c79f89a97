"""What a bridge hears of clips it has not learned: a file of slots a unit, drawn as the pinyin of text (noise.py).

python -m pinyin_llm.training.recognized_pinyin --model data/bridge-without-S0150 --manifests unheard.tsv --output data/heard_pinyin.json

Speech is unsure in its own way: half of the syllables that a bridge gets wrong are right but for the tone, and it says
so. A language model that has met such slots in text reads them better than one that knows made-up noise.
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import jiwer
import torch


SHARES = 8  # a slot is written as ids whose mean it is: (12, 12, 12, 12, 12, 12, 40, 41) is 6/8, 1/8 and 1/8


@dataclass
class HeardArguments:
    """Which bridge hears what."""

    model: str = field(metadata={"help": "PinyinLLM folder with a bridge that has not learned these clips."})
    manifests: list[str] = field(metadata={"help": "Sentences. tsv or jsonl files: file, text, speaker, seconds."})
    output: Path = field(metadata={"help": "json: for each unit id, the slots that were heard for it."})
    cache_features: str = field(default="data/features", metadata={"help": "Folder of the encoder's outputs."})
    speeds: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Hear the clips at these speeds."})


def quantize(shares: torch.Tensor) -> tuple[int, ...]:
    """(U,) probabilities of one slot -> about SHARES ids whose mean comes near it, the likeliest first."""
    best, ids = shares.topk(SHARES)
    counts = (best * SHARES).round().int().tolist()
    counts[0] = max(counts[0], 1)
    return tuple(unit for unit, count in zip(ids.tolist(), counts, strict=True) for _ in range(count))


def align(said: list[int], slots: list[tuple[int, ...]]) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Each unit said with the slots heard for it: one, none (missed), or more (what nobody said goes with the one before)."""
    words = [" ".join(map(str, row)) for row in (said, [slot[0] for slot in slots])]
    heard: list[list[tuple[int, ...]]] = [[] for _ in said]
    for chunk in jiwer.process_words(*words).alignments[0]:
        of_chunk = slots[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            heard[max(chunk.ref_start_idx - 1, 0)] += of_chunk
        for offset in range(chunk.ref_end_idx - chunk.ref_start_idx if chunk.type != "delete" else 0):
            heard[chunk.ref_start_idx + offset].append(of_chunk[offset])
    return list(zip(said, heard, strict=True))


@torch.no_grad()
def hear(model, rows, width: int):
    """Rows with cached encoder outputs -> (units said, slots heard) of each."""
    from tqdm import tqdm

    from .features import unpack

    for row in tqdm(rows, desc="hearing"):
        hidden = unpack(row, width)[None].to(model.device)
        frames = torch.tensor([hidden.shape[1]], device=model.device)
        slots = model.multi_modal_projector(hidden, frames, model.pinyin_embeddings.weight)
        yield row["units"], [quantize(shares) for shares in slots.units[0][slots.filled[0]]]


def main(argv: list[str] | None = None) -> int:
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(HeardArguments).parse_args_into_dataclasses(argv)
    from ..inference.files import load_model
    from ..train_asr import DataArguments, read_features

    model, processor = load_model(arguments.model)
    speech = DataArguments(arguments.manifests, cache_features=arguments.cache_features, speeds=arguments.speeds)
    rows, counts = read_features(speech, model, processor)
    heard = defaultdict(list)
    right = total = 0
    for said, slots in hear(model, rows, model.config.audio_config.d_model):
        for unit, found in align(said, slots):
            heard[unit].append(found)
            right += [slot[0] for slot in found] == [unit]
            total += 1
    arguments.output.write_text(json.dumps(heard), encoding="utf-8")
    heard_of = f"{counts['sentences']}: {total} syllables of {len(heard)} units"
    print(f"{heard_of}, {right / total:.1%} heard right", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
