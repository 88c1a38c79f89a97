"""Decoding beside what memory allows: a token needs every weight of the language model once.

    python benchmarks/decoding.py
    python benchmarks/decoding.py data/full_size/runs/p2c --syllables 6 --turns 2

The limit is the bytes of the weights that a token needs (all but the input embeddings) divided by the bandwidth of a
large sum, measured in the same run. "A token at a time" is transformers' `generate`; "in passes" is the package's own
greedy decoding, which gives the same characters.
"""

import argparse
import time

import torch
from tabulate import tabulate

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.inference.loading import MINI_MODEL


ROW = "jin1 tian1 tian1 qi4 hen3 hao3 wo3 men5 yi4 qi3 qu4 gong1 yuan2 san4 bu4 zen3 me5 yang4"
STEPS = {"min_new_tokens": 0}  # not plain greedy decoding, but the same tokens: transformers goes step by step


def bandwidth(size: int = 2 * 2**30) -> float:
    """Bytes per second read by all threads."""
    memory = torch.ones(size // 8, dtype=torch.int64)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        memory.sum()
        times.append(time.perf_counter() - start)
    return size / min(times)


def bytes_a_token(model: PinyinLlamaForASR) -> int:
    """Of the weights that every token needs."""
    head = model.get_output_embeddings().weight
    layers = [p for p in model.get_decoder().parameters() if p is not model.get_input_embeddings().weight]
    return sum(p.nbytes for p in layers) + head.nbytes


@torch.no_grad()
def measure(model, processor, syllables: str, turns: int, **how) -> float:
    """Seconds per token after the prompt, the best of several turns."""
    inputs = processor(pinyin=[syllables])
    constraint = processor.pinyin_constraint()
    prompts, answers = [], []
    for _ in range(turns + 1):  # the first learns the guesses
        start = time.perf_counter()
        model(**inputs, logits_to_keep=1)
        middle = time.perf_counter()
        ids = model.generate(**inputs, pinyin_constraint=constraint, **how)
        prompts.append(middle - start)
        answers.append(time.perf_counter() - middle)
    tokens = int((ids[0, inputs["input_ids"].shape[1] :] != processor.tokenizer.eos_token_id).sum())
    return (min(answers[1:]) - min(prompts[1:])) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(MINI_MODEL))
    parser.add_argument("--syllables", type=int, default=18)
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    rate, rows = bandwidth(), []
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if arguments.model != str(MINI_MODEL):
        del dtypes["float32"]  # a large model is kept as it is
    processor = PinyinLlamaProcessor.from_pretrained(arguments.model)
    syllables = " ".join(ROW.split()[: arguments.syllables])
    for name, dtype in dtypes.items():
        model = PinyinLlamaForASR.from_pretrained(arguments.model, dtype=dtype).eval()
        size = bytes_a_token(model)
        for way, how in (("one token at a time", STEPS), ("in passes", {})):
            seconds = measure(model, processor, syllables, arguments.turns, **how)
            cells = [f"{1000 * size / rate:.2f}", f"{1000 * seconds:.2f}", f"{100 * size / rate / seconds:.0f} %"]
            rows.append([name, way, f"{size / 1e6:.0f}", *cells])
        del model
    print(f"Memory: {rate / 1e9:.1f} GB/s\n")
    headers = ["weights", "decoding", "MB per token", "limit, ms", "measured, ms", "share of the limit"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
