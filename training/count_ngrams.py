"""Text -> the n-grams of a model folder (ngrams_pinyin_llm.py), in about a second per million characters.

pinyin-llm count_ngrams --texts data/text/clean/*.txt --model data/mini-bridge
"""

import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path


@dataclass
class CountArguments:
    """Which text, and which model."""

    texts: list[str] = field(metadata={"help": "Text files, a sentence per line (see corpora/plain_text.py)."})
    model: str = field(metadata={"help": "Folder of the model that gets the n-grams."})
    least: int = field(default=2, metadata={"help": "Bigrams and trigrams that occur less often are dropped."})


def main(argv: list[str] | None = None) -> int:
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(CountArguments).parse_args_into_dataclasses(argv)
    from ..ngrams_pinyin_llm import FILE_NAME, CharacterNgrams
    from ..scoring.cer import read_lines

    try:
        if not Path(arguments.model, "config.json").is_file():
            raise ValueError(f"{arguments.model}: expected the folder of a model, found no config.json in it.")
        lines = chain.from_iterable(map(read_lines, arguments.texts))
        ngrams = CharacterNgrams.from_lines(lines, arguments.least)
        ngrams.save(Path(arguments.model, FILE_NAME))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    sizes = (len(part) for part in (ngrams.characters, ngrams.bigrams, ngrams.trigrams))
    print("{:,} characters, {:,} bigrams, {:,} trigrams".format(*sizes), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
