"""Stage 1: the language model learns to write characters from pinyin, from text alone.

python train_p2c.py recipes/mini.yaml
python train_p2c.py --texts corpus.txt --output_dir p2c      # Whisper-large-v3 + LLaMA2-7b, LoRA
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice


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
    """Sentences -> a dataset of `characters`, their `units`, `length` and `row`, and the counts for the record."""
    import numpy as np
    from datasets import concatenate_datasets

    parts, dropped = [], Counter()
    for text in arguments.texts:
        path, times = re.fullmatch(r"(.+?)(?:@(\d+))?", text).groups()
        read = _read_file(path, units, arguments.num_proc)
        columns = read.with_format("numpy", columns=["length", "foreign"])[
            :
        ]  # arrays: a corpus may have millions of lines
        dropped["without_han"] += int((columns["length"] == 0).sum())
        dropped["too_long"] += int((columns["length"] > arguments.most_characters).sum())
        dropped["other_letters_left_out"] += int(columns["foreign"].sum())
        parts += [read.filter(lambda n: 1 <= n <= arguments.most_characters, input_columns="length")] * int(times or 1)
    if dropped["other_letters_left_out"]:
        print(f"{dropped['other_letters_left_out']} lines lost digits or Latin letters: corpora/plain_text.py reads or cuts them.",
              file=sys.stderr)  # fmt: skip
    pairs = concatenate_datasets(parts).remove_columns("foreign")
    pairs = pairs.add_column("row", np.arange(len(pairs)))  # a sentence read twice gets noise of its own each time
    characters = int(pairs.with_format("numpy")["length"][:].sum())
    return pairs, {"sentences": len(pairs), "characters": characters, **dropped}


def _read_file(path: str, units, num_proc: int):
    from datasets import load_dataset

    def read(text: str) -> dict:
        characters, ids = units.encode_characters(text)
        foreign = sum(map(str.isalnum, text)) > len(ids)
        return {"characters": characters, "units": ids, "length": len(ids), "foreign": foreign}

    lines = load_dataset("text", data_files=path, split="train")
    return lines.map(
        read, input_columns="text", remove_columns="text", num_proc=num_proc, desc=f"reading {path} as pinyin"
    )


class PairCollator:
    """Rows of characters and units -> prompts whose pinyin is corrupted afresh each epoch (the Trainer sets it)."""

    def __init__(self, processor, noise):
        self.processor, self.noise, self.epoch = processor, noise, 0

    def __call__(self, rows: list[dict]):
        from pinyin_llm.noise import generator_of
        from pinyin_llm.training import reach_of_answers

        pinyin = [self.noise(row["units"], generator_of(self.epoch, str(row["row"]))) for row in rows]
        texts = [row["characters"] for row in rows]
        batch = self.processor(pinyin=pinyin, text=texts, padding_side="right")
        del batch["attention_mask"]  # what stands right of a row is behind it: causal attention never looks there
        return {**batch, "logits_to_keep": reach_of_answers(batch["labels"])}


def write_evaluation(model, processor, files: list[str], rows: int):
    """A function that converts the evaluation rows, toned and toneless, and scores them."""
    import csv
    from pathlib import Path

    from pinyin_llm.generation_pinyin_llm import convert_pinyin
    from pinyin_llm.scoring import score

    tables = [csv.DictReader(Path(file).read_text(encoding="utf-8").splitlines(), delimiter="\t") for file in files]
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
    from pinyin_llm.training import set_trainable

    layers = list(range(model.config.text_config.num_hidden_layers))
    return set_trainable(model, arguments, ["pinyin_embeddings"], layers)


def show(config, processor, pairs, collator, model_arguments, settings) -> None:
    """Print two rows, and the estimate by rows of median and of greatest length."""
    from pinyin_llm.estimate import Row, build_on_meta, estimate
    from pinyin_llm.training import show_rows

    model = choose_trainable(build_on_meta(config), model_arguments)
    lengths = pairs["length"][:]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    typical, longest = (Row.of(collator([pairs[number]])) for number in (order[len(order) // 2], order[-1]))
    print(estimate(model, config, model_arguments, settings, (typical, longest), len(pairs)))
    print(show_rows(collator(list(islice(pairs, 2))), processor))


def main(argv: list[str] | None = None) -> int:
    from pinyin_llm.arguments import ModelArguments, parse_arguments
    from pinyin_llm.noise import NoiseArguments, PinyinNoise

    classes = [ModelArguments, DataArguments, NoiseArguments]
    arguments = parse_arguments(classes, sys.argv[1:] if argv is None else argv, section="p2c")
    model_arguments, data_arguments, noise_arguments, training_arguments = arguments

    from transformers import set_seed

    from pinyin_llm import training

    set_seed(training_arguments.seed)  # before new tables and LoRA are drawn

    config, processor = training.load_config(model_arguments)
    pairs, counts = read_pairs(data_arguments, processor.pinyin_tokenizer)
    collator = PairCollator(processor, PinyinNoise(noise_arguments, processor.pinyin_tokenizer))
    if model_arguments.dry_run:
        print(counts)
        show(config, processor, pairs, collator, model_arguments, training_arguments)
        return 0

    model = training.load_model(model_arguments, config)
    write = write_evaluation(model, processor, data_arguments.eval_texts, model_arguments.eval_rows)
    model = choose_trainable(model, model_arguments)
    training.learn(model, processor, arguments, pairs, collator, write, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
