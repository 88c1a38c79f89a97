"""Stage 1: the language model learns to write characters from pinyin, from text alone.

python train_p2c.py recipes/mini.yaml
python train_p2c.py --texts corpus.txt --output_dir p2c      # Whisper-large-v3 + LLaMA2-7b, LoRA
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path


@dataclass
class DataArguments:
    """The text and how it is read."""

    texts: list[str] = field(
        metadata={
            "help": "Text files, a sentence a line (see corpora/plain_text.py); FILE@3 is read three times an epoch."
        }
    )
    eval_texts: list[str] = field(default_factory=list, metadata={"help": "tsv files: text, toned, toneless."})
    most_characters: int = field(default=60, metadata={"help": "Longer sentences are dropped, and counted."})
    num_proc: int = field(default=2, metadata={"help": "Processes that read the text."})


def read_pairs(arguments: DataArguments, units):
    """Sentences -> a dataset of `characters`, their `units`, `length` and `copy`, and the counts for the record.

    A corpus stays on disk, and what is counted is counted there (benchmarks/pairs.py).
    """
    from datasets import concatenate_datasets

    parts, counts = [], Counter()
    for text in arguments.texts:
        path, times = re.fullmatch(r"(.+?)(?:@(\d+))?", text).groups()
        read, times = _read_file(path, units, arguments), int(times or 1)
        for batch in read.data.table.to_batches():  # one by one: whole columns of a large corpus would fill memory
            length, fits, foreign = (batch[n].to_numpy(zero_copy_only=False) for n in ("length", "fits", "foreign"))
            counts["sentences"] += times * int(fits.sum())
            counts["characters"] += times * int(length[fits].sum())
            counts["without_han"] += int((length == 0).sum())
            counts["too_long"] += int((length > arguments.most_characters).sum())
            counts["other_letters_left_out"] += int(foreign.sum())
        parts += [_choose_fitting(read, copy) for copy in range(times)]
    if counts["other_letters_left_out"]:
        print(f"{counts['other_letters_left_out']} lines lost digits or Latin letters: corpora/plain_text.py reads or cuts them.",
              file=sys.stderr)  # fmt: skip
    return concatenate_datasets(parts).remove_columns(["fits", "foreign"]), dict(counts)


def _read_file(path: str, units, arguments: DataArguments):
    from datasets import Features, List, Value, load_dataset

    def read(texts: list[str]) -> dict:
        pairs = [units.encode_characters(text) for text in texts]
        lengths = [len(ids) for _, ids in pairs]
        return {
            "characters": [characters for characters, _ in pairs],
            "units": [ids for _, ids in pairs],
            "length": lengths,
            "fits": [1 <= length <= arguments.most_characters for length in lengths],
            "foreign": [sum(map(str.isalnum, t)) > length for t, length in zip(texts, lengths, strict=True)],
        }

    kinds = {"characters": "string", "length": "int32", "fits": "bool", "foreign": "bool"}
    features = Features({name: Value(kind) for name, kind in kinds.items()} | {"units": List(Value("int16"))})
    if Path(path).is_file() and not Path(path).stat().st_size:
        raise ValueError(f"{path}: is empty. Expected sentences, one a line.")
    # characters at a time; datasets' ten million of them take 430 MB
    lines = load_dataset("text", data_files=path, split="train", chunksize=1_000_000)
    how = {"num_proc": arguments.num_proc, "desc": f"reading {path} as pinyin"}
    return lines.map(read, batched=True, input_columns="text", remove_columns="text", features=features, **how)


def _choose_fitting(read, copy: int):
    """The sentences of fitting length; a file that is read twice gets noise of its own each time, by `copy`."""
    import numpy as np

    numbered = read.add_column("copy", np.full(len(read), copy, np.int8))
    return numbered.filter(lambda fits: fits, batched=True, input_columns="fits")


class PairCollator:
    """Rows of characters and units -> prompts whose pinyin is corrupted afresh each epoch (the Trainer sets it)."""

    def __init__(self, processor, noise):
        self.processor, self.noise, self.epoch = processor, noise, 0

    def __call__(self, rows: list[dict]):
        from pinyin_llm.training.noise import generator_of
        from pinyin_llm.training.trainer import reach_of_answers

        draws = (generator_of(self.epoch, f"{row['copy']} {row['characters']}") for row in rows)
        pinyin = [self.noise(row["units"], random) for row, random in zip(rows, draws, strict=True)]
        texts = [row["characters"] for row in rows]
        batch = self.processor(pinyin=pinyin, text=texts, padding_side="right")
        del batch["attention_mask"]  # what stands right of a row is behind it: causal attention never looks there
        return {**batch, "logits_to_keep": reach_of_answers(batch["labels"])}


def write_evaluation(model, processor, files: list[str], rows: int):
    """A function that converts the evaluation rows, toned and toneless, and scores them."""
    import csv

    from pinyin_llm.generation_pinyin_llm import convert_pinyin
    from pinyin_llm.scoring.cer import score

    tables = [csv.DictReader(Path(file).read_text("utf-8-sig").splitlines(), delimiter="\t") for file in files]
    for file, table in zip(files, tables, strict=True):
        if missing := {"text", "toned", "toneless"} - set(table.fieldnames or ()):
            raise ValueError(f"{file}: expected the columns text, toned and toneless, found no {', '.join(missing)}.")
    lines = [row for table in tables for row in islice(table, rows)]

    def write():
        if not lines:
            return {}, []
        references = [line["text"] for line in lines]
        metrics = {}
        for kind in ("toneless", "toned"):
            hypotheses = convert_pinyin(model, processor, [line[kind] for line in lines])
            metrics[f"{kind}_cer"] = score(references, hypotheses)["cer"]
        return metrics, list(zip(references, hypotheses, strict=True))

    return write


def choose_trainable(model, arguments):
    """The pinyin table and every layer of the language model."""
    from pinyin_llm.training.trainer import set_trainable

    layers = list(range(model.config.text_config.num_hidden_layers))
    return set_trainable(model, arguments, ["pinyin_embeddings"], layers)


def show(config, processor, pairs, collator, model_arguments, settings) -> None:
    """Print two rows, and the estimate by rows of median and of greatest length."""
    from pinyin_llm.training.estimate import Row, build_on_meta, estimate
    from pinyin_llm.training.trainer import show_rows

    model = choose_trainable(build_on_meta(config), model_arguments)
    lengths = pairs["length"][:]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    typical, longest = (Row.of(collator([pairs[number]]), config) for number in (order[len(order) // 2], order[-1]))
    print(estimate(model, config, model_arguments, settings, (typical, longest), len(pairs)))
    print(show_rows(collator(list(islice(pairs, 2))), processor))


def main(argv: list[str] | None = None) -> int:
    from pinyin_llm.training.arguments import ModelArguments, parse_arguments
    from pinyin_llm.training.noise import NoiseArguments, PinyinNoise

    classes = [ModelArguments, DataArguments, NoiseArguments]
    arguments = parse_arguments(classes, sys.argv[1:] if argv is None else argv, section="p2c")
    model_arguments, data_arguments, noise_arguments, training_arguments = arguments

    from transformers import set_seed

    from pinyin_llm.training import trainer as training

    set_seed(training_arguments.seed)  # before new tables and LoRA are drawn

    config, processor = training.load_config(model_arguments)
    pairs, counts = read_pairs(data_arguments, processor.pinyin_tokenizer)
    collator = PairCollator(processor, PinyinNoise(noise_arguments, processor.pinyin_tokenizer))
    if model_arguments.dry_run:
        print(counts)
        show(config, processor, pairs, collator, model_arguments, training_arguments)
        return 0

    print(f"text: {counts}", file=sys.stderr)  # before hours go by: what was left out
    model = training.load_model(model_arguments, config)
    write = write_evaluation(model, processor, data_arguments.eval_texts, model_arguments.eval_rows)
    model = choose_trainable(model, model_arguments)
    training.learn(model, processor, arguments, pairs, collator, write, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
