"""A LLaMA from scratch for Chinese text: a byte-fallback tokenizer over the characters of a corpus, random weights.

pinyin-llm base han_llama --texts data/text/clean/*.txt --output data/mini-llama

`--language_model` takes the folder it writes, as it takes the id of a pretrained model.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..inference.console import report_errors


@dataclass
class HanLlamaArguments:
    """The size of the language model, and its text."""

    texts: list[str] = field(metadata={"help": "Text files whose characters get a token each."})
    output: str = field(metadata={"help": "Folder to write."})
    fewest: int = field(default=2, metadata={"help": "Characters seen less often are spelled in bytes."})
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    learn_steps: int = field(default=0, metadata={"help": "Then train on the texts as plain text for this many steps."})
    compile_language_model: bool = field(default=False, metadata={"help": "1.5 times the speed; needs a C++ compiler."})
    seed: int = 0


def count_characters(files: list[str]) -> Counter:
    """How often each character occurs in the files."""
    counts = Counter()
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            for line in lines:
                counts.update(line.strip())
    return counts


def build_tokenizer(characters: list[str]):
    """One token per character, three special tokens, and 256 bytes for everything else, as LLaMA-2 has them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    vocabulary = {name: i for i, name in enumerate(names)}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def write_language_model(arguments: HanLlamaArguments) -> None:
    """Tokenizer and randomly initialised LlamaForCausalLM in one folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(arguments.seed)
    counts = count_characters(arguments.texts)
    characters = sorted(c for c, n in counts.items() if n >= arguments.fewest)
    tokenizer = build_tokenizer(["：", *(c for c in characters if c != "：")])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"{arguments.output}: {len(tokenizer)} tokens, {model.num_parameters() / 1e6:.1f} M parameters")


def learn_text(arguments: HanLlamaArguments, rows_a_step: int = 64, row_tokens: int = 128) -> None:
    """Train the language model in `arguments.output` on plain text, so that it starts like a pretrained one."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

    from ..training.muon import build_optimizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.output)
    model = AutoModelForCausalLM.from_pretrained(arguments.output)
    if arguments.compile_language_model:
        model.set_attn_implementation(
            "eager"
        )  # compiled, the backward pass of "sdpa" takes over half of a step (docs/log.md)
        model.compile()

    def pack(lines: dict) -> dict:
        ends = ([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in tokenizer(lines["text"]).input_ids)
        tokens = [token for line in ends for token in line]
        rows = [tokens[i : i + row_tokens] for i in range(0, len(tokens) - row_tokens + 1, row_tokens)]
        return {"input_ids": rows, "labels": rows}

    lines = load_dataset("text", data_files=arguments.texts, split="train").shuffle(seed=arguments.seed)
    rows = lines.map(pack, batched=True, remove_columns="text", desc="packing the text")
    settings = TrainingArguments(
        output_dir=f"{arguments.output}/run",
        per_device_train_batch_size=rows_a_step,
        max_steps=arguments.learn_steps,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=arguments.learn_steps // 20,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),  # otherwise bf16 is refused on a CPU
        save_strategy="no",
        logging_steps=20,
        seed=arguments.seed,
    )
    optimizer = build_optimizer(model, settings.learning_rate, weight_decay=0.05)
    Trainer(model, settings, default_data_collator, rows, optimizers=(optimizer, None)).train()
    model.save_pretrained(arguments.output)


def main(argv: list[str] | None = None) -> int:
    """Write the model, trained if asked for; the exit code."""
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(HanLlamaArguments).parse_args_into_dataclasses(argv)
    write_language_model(arguments)
    if arguments.learn_steps:
        learn_text(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
