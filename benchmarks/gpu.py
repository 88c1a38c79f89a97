"""Full size on a GPU beside GLM-ASR of transformers in the same shape: prompt, decoding, steps of stage 2.

    python benchmarks/gpu.py

Both models have an encoder of Whisper-large's size before a LLaMA2-7b, one slot per 80 ms and random weights in
bfloat16; GLM-ASR gets the input of its own processor, in windows of 30 s. "Work" is what torch counts in matrix
products and attention; its share is of the speed of one large product in the same run. The share of decoding is of the
bandwidth of one large copy, as a token needs every weight of the language model. Lines on training update the projector
and the LoRA of the lowest 5 layers with AdamW.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import Any

import torch
from decoding import bytes_a_token
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode
from transformers import GlmAsrConfig, GlmAsrForConditionalGeneration, StoppingCriteria

from pinyin_llm import PinyinLlamaConfig, PinyinLlamaForASR
from pinyin_llm.bases import random_bases
from pinyin_llm.configuration_pinyin_llm import num_audio_slots
from pinyin_llm.training.arguments import ModelArguments, SpeechArguments
from pinyin_llm.training.setup import train_stage_2


DEVICE = "cuda"
LLAMA2_7B = {"model_type": "llama", "num_key_value_heads": 32, **random_bases.LLAMA2_7B}
PROMPT, ANSWER = 8, 32  # tokens around the speech, and behind it: 14 characters, two or three tokens each
WINDOW = 3000  # mel frames that GLM-ASR's processor pads to
STRIDE = 4
PEER_SLOT = LLAMA2_7B["vocab_size"] - 1
TURNS = 5


@dataclass
class System:
    """A model and what it is fed.

    Args:
        inputs: (rows, seconds) -> keyword arguments of its `forward`.
    """

    model: Any
    inputs: Any

    def with_answers(self, rows: int, seconds: float) -> dict:
        """Inputs of a step of training: random answers after the prompts."""
        inputs = self.inputs(rows, seconds)
        prompts = inputs["input_ids"]
        answers = torch.randint(10, 1000, (rows, ANSWER), device=DEVICE)
        ids = torch.cat([prompts, answers], dim=1)
        labels = torch.cat([torch.full_like(prompts, -100), answers], dim=1)
        return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def build_ours() -> System:
    config = PinyinLlamaConfig(text_config=LLAMA2_7B, projector_stride=STRIDE)
    model = build(lambda: PinyinLlamaForASR(config))

    def inputs(rows, seconds):
        frames = round(100 * seconds)
        return batch(rows, frames, frames, num_audio_slots(frames, STRIDE), config.audio_token_id)

    return System(model, inputs)


def build_peer() -> System:
    config = GlmAsrConfig(text_config=LLAMA2_7B, audio_token_id=PEER_SLOT, tie_word_embeddings=False)
    model = build(lambda: GlmAsrForConditionalGeneration(config))

    def inputs(rows, seconds):
        frames = round(100 * seconds)
        return batch(rows, frames, WINDOW, ((frames - 1) // 2 + 1) // 4, PEER_SLOT)

    return System(model, inputs)


def build(make):
    """The model with random weights in bfloat16, made on the GPU."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return make().eval()
    finally:
        torch.set_default_dtype(torch.float32)


def batch(rows: int, frames: int, padded: int, slots: int, token_id: int) -> dict:
    """Random speech of `frames` mel frames in `padded`, and a prompt with `slots` placeholders."""
    ids = torch.randint(10, 1000, (rows, PROMPT + slots), device=DEVICE)
    ids[:, PROMPT // 2 : PROMPT // 2 + slots] = token_id
    mask = (torch.arange(padded, device=DEVICE) < frames).long().expand(rows, -1)
    speech = torch.randn(rows, 128, padded, device=DEVICE, dtype=torch.bfloat16)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": speech,
        "input_features_mask": mask,
    }


def seconds_of(work, turns: int = TURNS) -> float:
    """The best of several turns, after one that warms up."""
    times = []
    for _ in range(turns + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def operations_of(work) -> int:
    """FLOPs of the matrix products and attention in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peaks() -> tuple[float, float]:
    """(FLOP/s of a product of bfloat16 matrices, bytes/s read and written by a copy)."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    memory = torch.empty(2**31, device=DEVICE, dtype=torch.int8)
    return 2 * 8192**3 / seconds_of(lambda: a @ a, 20), 2 * 2**31 / seconds_of(memory.clone, 20)


@torch.no_grad()
def measure_prompt(system: System, rows: int, seconds: float) -> tuple[float, int]:
    """Seconds and FLOPs from features to the first token's logits."""
    inputs = system.inputs(rows, seconds)

    def work():
        system.model(**inputs, logits_to_keep=1, use_cache=True)

    return seconds_of(work), operations_of(work)


class Clock(StoppingCriteria):
    """Notes when each token was written, and never stops."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def measure_decoding(system: System, rows: int, seconds: float, **how) -> float:
    """Seconds per step after the first tokens: the median of all steps, the first of which may compile."""
    inputs, steps = system.inputs(rows, seconds), []
    for _ in range(4):
        clock = Clock()
        bounds = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "max_length": None}
        system.model.generate(**inputs, **bounds, do_sample=False, stopping_criteria=[clock], **how)
        steps.append([end - start for start, end in pairwise(clock.times[1:])])
    return statistics.median(chain(*steps[1:]))


def compare_prompts(systems: dict, rates: tuple, arguments) -> None:
    """Print the table of the time to the first token."""
    lines = []
    for seconds, rows in product(arguments.seconds, arguments.rows):
        found = {name: measure_prompt(system, rows, seconds) for name, system in systems.items()}
        for name, (taken, work) in found.items():
            share = f"{100 * work / taken / rates[0]:.0f} %"
            cells = [f"{1000 * taken:.1f}", f"{work / 1e12:.2f}", share, f"{found['glmasr'][0] / taken:.2f}"]
            lines.append([name, f"{seconds:g}", rows, *cells])
            report(lines[-1])
    show(lines, ["prompt", "clip, s", "rows", "ms", "TFLOP", "share of peak", "times glmasr"])


def compare_decoding(systems: dict, rates: tuple, arguments) -> None:
    """Print the time per token: with a growing cache, and with a static one whose steps are compiled."""
    limit, lines = bytes_a_token(systems["ours"].model) / rates[1], []
    ways = {"": ({}, arguments.rows), ", static": ({"cache_implementation": "static"}, arguments.static)}
    for way, (how, sizes) in ways.items():
        for rows in sizes:
            found = {
                name: measure_decoding(system, rows, arguments.seconds[0], **how) for name, system in systems.items()
            }
            for name, step in found.items():
                cells = [f"{1000 * step:.1f}", f"{1000 * limit:.1f}", f"{100 * limit / step:.0f} %"]
                lines.append([name + way, rows, *cells, f"{found['glmasr'] / step:.2f}"])
                report(lines[-1])
    show(lines, ["decoding", "rows", "ms per step", "limit, ms", "share of the limit", "times glmasr"])


def train_ours(system: System):
    """The model as train_asr.py trains it."""
    return train_stage_2(system.model, ModelArguments(lora=16, frozen_bf16=True), SpeechArguments(manifests=[]))


def train_peer(system: System):
    """The same parts of GLM-ASR."""
    from peft import LoraConfig, get_peft_model

    layers = r"model\.language_model\.layers\.[0-4]\..*(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(r=16, lora_alpha=32, target_modules=layers, modules_to_save=["multi_modal_projector"])
    return get_peft_model(system.model, config)


def step_of(model, inputs: dict):
    """A step of training as a function."""
    learned = [p for p in model.train().parameters() if p.requires_grad]
    for parameter in learned:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(learned, lr=1e-4)

    def step():
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def keep_features(system: System, inputs: dict) -> dict:
    """The encoder's output in place of the features, as train_asr.py reads it from its cache."""
    features, mask = inputs["input_features"], inputs["input_features_mask"]
    kept = {name: value for name, value in inputs.items() if name != "input_features"}
    return kept | {"audio_hidden_states": system.model.audio_tower(features, mask), "logits_to_keep": ANSWER + 1}


def measure_training(name: str, step, rows: int, rate: float, work: int) -> tuple[list, float]:
    """A line of the table, and the seconds of a step."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    time_taken = seconds_of(step)
    memory = (torch.cuda.max_memory_allocated() - before) / 2**30
    share = f"{100 * work / time_taken / rate:.0f} %"
    line = [
        name,
        rows,
        f"{1 / time_taken:.2f}",
        f"{rows / time_taken:.1f}",
        f"{work / 1e12:.1f}",
        share,
        f"{memory:.0f}",
    ]
    report(line)
    return line, time_taken


def compare_training(systems: dict, rates: tuple, arguments) -> None:
    """Print the table of stage 2; the models stay changed."""
    ours, peer = systems["ours"], systems["glmasr"]
    sizes, seconds = [rows for rows in arguments.rows if rows > 1], arguments.seconds[0]
    batches = {rows: ours.with_answers(rows, seconds) for rows in sizes}
    kept = {rows: keep_features(ours, batch) for rows, batch in batches.items()}
    our_model, lines, work = train_ours(ours), [], {}
    ways = {
        "glmasr": (train_peer(peer), {rows: peer.with_answers(rows, seconds) for rows in sizes}),
        "ours, encoder in every step": (our_model, batches),
        "ours, cached features": (our_model, kept),
    }
    for rows, (name, (model, inputs)) in product(sizes, ways.items()):
        step = step_of(model, inputs[rows])
        work[name, rows] = operations_of(step)
        lines.append(measure_training(name, step, rows, rates[0], work[name, rows]))
    ours.model.language_model.compile(dynamic=True)
    for rows in sizes:
        step, same = step_of(our_model, kept[rows]), work["ours, cached features", rows]
        lines.append(measure_training("ours, cached, compiled", step, rows, rates[0], same))
    lines.sort(key=lambda measured: measured[0][1])  # by rows
    peers = {line[1]: taken for line, taken in lines if line[0] == "glmasr"}
    lines = [[*line, f"{peers[line[1]] / taken:.2f}"] for line, taken in lines]
    show(lines, ["stage 2", "rows", "steps/s", "examples/s", "TFLOP", "share of peak", "GiB per step", "times glmasr"])


TABLES = {"prompt": compare_prompts, "decoding": compare_decoding, "training": compare_training}


def show(lines: list, headers: list[str]) -> None:
    print(tabulate(lines, headers=headers, tablefmt="github"), end="\n\n", flush=True)


def report(line: list) -> None:
    print(*line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, nargs="+", default=[4.5, 15], help="the first: AISHELL-1's mean")
    parser.add_argument("--static", type=int, nargs="*", default=[1], help="rows decoded with a static cache, too")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    arguments = parser.parse_args()
    rates = peaks()
    print(f"{torch.cuda.get_device_name()}: {rates[0] / 1e12:.0f} TFLOP/s, {rates[1] / 1e12:.2f} TB/s\n", flush=True)
    systems = {"ours": build_ours(), "glmasr": build_peer()}
    for name in arguments.tables:
        TABLES[name](systems, rates, arguments)


if __name__ == "__main__":
    main()
