"""Text for stage 1: sentences -> pairs of characters and pinyin units -> batches with noise in the pinyin."""

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..corpora.encoding import describe_encoding
from ..processing_pinyin_llm import IGNORED
from .arguments import TextArguments
from .noise import row_generator


# How rows are counted whose letters have no unit, by what --other_letters does with them.
LETTERS_COUNT = {"leave_out": "other_letters_left_out", "drop": "other_letters_dropped"}
CHARACTERS_AT_ONCE = 1_000_000  # of a text file; the ten million that `datasets` reads by default take 430 MB


def read_pairs(arguments: TextArguments, pinyin_tokenizer) -> tuple[Dataset, dict[str, int]]:
    """Sentences -> a dataset of `characters`, `units`, `length` and `copy`, and the counts for the record.

    The corpus stays on disk, and is counted there (benchmarks/pairs.py).

    Raises:
        ValueError: A file that is empty or not in UTF-8, or no sentence to learn from.
    """
    parts, counts = [], Counter()
    for text in arguments.texts:
        path, times = re.fullmatch(r"(.+?)(?:@(\d+))?", text).groups()
        rows, times = _read_file(path, pinyin_tokenizer, arguments), int(times or 1)
        for batch in rows.data.table.to_batches():  # one by one: whole columns of a large corpus would fill memory
            length, fits, foreign = (batch[n].to_numpy(zero_copy_only=False) for n in ("length", "fits", "foreign"))
            counts["sentences"] += times * int(fits.sum())
            counts["characters"] += times * int(length[fits].sum())
            counts["without_han"] += int((length == 0).sum())
            counts["too_long"] += int((length > arguments.most_characters).sum())
            counts[LETTERS_COUNT[arguments.other_letters]] += int(foreign.sum())
        parts += [_fitting_rows(rows, copy) for copy in range(times)]
    if counts["other_letters_left_out"]:
        print(
            f"warning: {counts['other_letters_left_out']:,} lines lost digits or Latin letters: corpora/plain_text.py "
            "reads them aloud or cuts them, and --other_letters drop leaves the lines out.",
            file=sys.stderr,
        )
    if not counts["sentences"]:
        found = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
        raise ValueError(f"{', '.join(arguments.texts)}: expected sentences to learn from, found none ({found}).")
    return concatenate_datasets(parts).remove_columns(["fits", "foreign"]), dict(counts)


def _read_file(path: str, pinyin_tokenizer, arguments: TextArguments) -> Dataset:
    def read(texts: list[str]) -> dict:
        pairs = [pinyin_tokenizer.encode_characters(text) for text in texts]
        lengths = [len(ids) for _, ids in pairs]
        foreign = [sum(map(str.isalnum, t)) > length for t, length in zip(texts, lengths, strict=True)]
        unwanted = [arguments.other_letters == "drop" and other for other in foreign]
        return {
            "characters": [characters for characters, _ in pairs],
            "units": [ids for _, ids in pairs],
            "length": lengths,
            "fits": [
                1 <= n <= arguments.most_characters and not drop for n, drop in zip(lengths, unwanted, strict=True)
            ],
            "foreign": foreign,
        }

    types = {"characters": "string", "length": "int32", "fits": "bool", "foreign": "bool"}
    features = Features({name: Value(kind) for name, kind in types.items()} | {"units": List(Value("int16"))})
    if Path(path).is_file() and not Path(path).stat().st_size:
        raise ValueError(f"{path}: is empty. Expected sentences, one per line.")
    try:
        lines = load_dataset("text", data_files=path, split="train", chunksize=CHARACTERS_AT_ONCE)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise ValueError(describe_encoding(path)) from error
        raise
    options = {"num_proc": arguments.num_proc, "desc": f"reading {path} as pinyin"}
    return lines.map(read, batched=True, input_columns="text", remove_columns="text", features=features, **options)


def _fitting_rows(rows: Dataset, copy: int) -> Dataset:
    """The sentences of fitting length; a file that is read twice gets different noise each time, by `copy`."""
    numbered = rows.add_column("copy", np.full(len(rows), copy, np.int8))
    return numbered.filter(lambda fits: fits, batched=True, input_columns="fits")


def answer_reach(labels: torch.Tensor) -> int:
    """(B, L) labels -> how many positions from the end need logits, for `logits_to_keep`: prompts have no loss."""
    return labels.shape[1] - int((labels != IGNORED).int().argmax(-1).min()) + 1


class PairCollator:
    """Rows of characters and units -> prompts whose pinyin has new noise in each epoch, which the Trainer sets."""

    def __init__(self, processor, noise):
        self.processor, self.noise, self.epoch = processor, noise, 0

    def __call__(self, rows: list[dict]) -> dict:
        generators = (row_generator(self.epoch, f"{row['copy']} {row['characters']}") for row in rows)
        pinyin = [self.noise(row["units"], random) for row, random in zip(rows, generators, strict=True)]
        texts = [row["characters"] for row in rows]
        batch = self.processor(pinyin=pinyin, text=texts, padding_side="right")
        del batch["attention_mask"]  # causal attention never sees the padding, which is on the right
        return {**batch, "logits_to_keep": answer_reach(batch["labels"])}
