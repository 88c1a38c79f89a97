"""How a bridge recognises clips that it was not trained on: the slots it gives for each unit, as noise for stage 1.

pinyin-llm recognized_pinyin --model data/bridge-without-S0150 --manifests rest.tsv --output data/heard_pinyin.json

Speech is uncertain in its own way: half of the syllables that a bridge gets wrong are right except for the tone, and
their probabilities show it. A language model that has met such slots in text reads them better than one that knows
made-up noise only (docs/log.md).
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jiwer
import torch
from tqdm import tqdm
from transformers import HfArgumentParser

from ..inference.console import report_errors
from ..inference.loading import load_model
from .arguments import SpeechArguments
from .features import unpack
from .speech_data import read_features


SHARES = 8  # a slot is stored as ids with this mean: (12, 12, 12, 12, 12, 12, 40, 41) is 6/8, 1/8 and 1/8


@dataclass
class RecognizedArguments:
    """Which bridge, and which clips."""

    model: str = field(metadata={"help": "PinyinLLM folder with a bridge that was not trained on these clips."})
    manifests: list[str] = field(metadata={"help": "Sentences. tsv or jsonl files: file, text, speaker, seconds."})
    output: Path = field(metadata={"help": "json: for each unit id, the slots recognised for it."})
    cache_features: str = field(default="data/features", metadata={"help": "Folder of the encoder's outputs."})
    speeds: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Use the clips at these speeds."})


def quantize(probs: torch.Tensor) -> tuple[int, ...]:
    """(U,) probabilities of one slot -> about SHARES ids whose mean is near it, the likeliest first."""
    best, ids = probs.topk(SHARES)
    counts = (best * SHARES).round().int().tolist()
    counts[0] = max(counts[0], 1)
    return tuple(unit for unit, count in zip(ids.tolist(), counts, strict=True) for _ in range(count))


def align(spoken: list[int], slots: list[tuple[int, ...]]) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Each unit spoken with the slots recognised for it: one, none (missed), or more (with insertions after it)."""
    words = [" ".join(map(str, row)) for row in (spoken, [slot[0] for slot in slots])]
    of_unit: list[list[tuple[int, ...]]] = [[] for _ in spoken]
    for chunk in jiwer.process_words(*words).alignments[0]:
        of_chunk = slots[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            of_unit[max(chunk.ref_start_idx - 1, 0)] += of_chunk
        for offset in range(chunk.ref_end_idx - chunk.ref_start_idx if chunk.type != "delete" else 0):
            of_unit[chunk.ref_start_idx + offset].append(of_chunk[offset])
    return list(zip(spoken, of_unit, strict=True))


@torch.no_grad()
def recognize(model, rows, width: int) -> Iterator[tuple[list[int], list[tuple[int, ...]]]]:
    """Rows with cached encoder outputs -> (units spoken, slots recognised) of each."""
    for row in tqdm(rows, desc="recognising"):
        hidden = unpack(row, width)[None].to(model.device)
        frames = torch.tensor([hidden.shape[1]], device=model.device)
        slots = model.multi_modal_projector(hidden, frames, model.pinyin_embeddings.weight)
        yield row["units"], [quantize(probs) for probs in slots.unit_probs[0][slots.filled[0]]]


def main(argv: list[str] | None = None) -> int:
    (arguments,) = HfArgumentParser(RecognizedArguments).parse_args_into_dataclasses(argv)
    model, processor = load_model(arguments.model)
    speech = SpeechArguments(arguments.manifests, cache_features=arguments.cache_features, speeds=arguments.speeds)
    rows, counts = read_features(speech, model, processor)
    slots_of_unit = defaultdict(list)
    correct = total = 0
    for spoken, slots in recognize(model, rows, model.config.audio_config.d_model):
        for unit, found in align(spoken, slots):
            slots_of_unit[unit].append(found)
            correct += [slot[0] for slot in found] == [unit]
            total += 1
    arguments.output.write_text(json.dumps(slots_of_unit), encoding="utf-8")
    summary = f"{counts['sentences']}: {total} syllables of {len(slots_of_unit)} units"
    print(f"{summary}, {correct / total:.1%} recognised correctly", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
