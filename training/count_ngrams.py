"""Text -> the n-grams that a model's folder writes with from then on (ngrams_pinyin_llm.py); takes a second a million characters.

python -m pinyin_llm.training.count_ngrams --texts data/text/clean/*.txt --model data/mini-bridge
"""

import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path


@dataclass
class CountArguments:
    """Which text, and whose n-grams."""

    texts: list[str] = field(metadata={"help": "Text files, a sentence a line (see corpora/plain_text.py)."})
    model: str = field(metadata={"help": "Folder of the model whose n-grams these shall be."})
    least: int = field(default=2, metadata={"help": "Three characters that came together less often are forgotten."})


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
