"""A LLaMA from scratch for Chinese text: a byte-fallback tokenizer over the characters of a corpus, random weights.

The folder it writes is what `--language_model` takes, as it takes the id of a pretrained one.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class HanLlamaArguments:
    """What the language model is made of."""

    texts: list[str] = field(metadata={"help": "Text files whose characters get a token each."})
    output: str = field(metadata={"help": "Folder to write."})
    fewest: int = field(default=2, metadata={"help": "Characters seen less often are written in bytes."})
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    seed: int = 0


def count_characters(files: list[str]) -> Counter:
    """How often each character stands in the files."""
    counts = Counter()
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            for line in lines:
                counts.update(line.strip())
    return counts


def build_tokenizer(characters: list[str]):
    """One token a character, three special tokens, and 256 bytes for all else (as LLaMA-2 falls back)."""
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


def main() -> None:
    from transformers import HfArgumentParser

    write_language_model(*HfArgumentParser(HanLlamaArguments).parse_args_into_dataclasses())


if __name__ == "__main__":
    main()
