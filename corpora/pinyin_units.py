"""Rebuilds pinyin_units.txt, the rows of the pinyin table, from Unihan's readings.

    python -m pinyin_llm.corpora.pinyin_units --output pinyin_units.txt

The units are the readings that Unihan's kTGHZ2013 and kHanyuPinlu (as pypinyin-dict 0.9.0 packs them) give for the 8105
characters of the 通用规范汉字表, less the interjections that are no syllables.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..inference.console import report_errors


NO_SYLLABLES = {"hng5", "m2", "m4", "n2", "n3", "n4", "ng2", "ng3", "ng4", "ê1", "ê2", "ê3", "ê4"}


@dataclass
class PinyinUnitsArguments:
    """Where the list is written."""

    output: str = field(metadata={"help": "File to write, one syllable per line."})


def build_units() -> list[str]:
    """The 1417 syllables in the order of the table's rows: TONE3 spelling, neutral tone 5, ü."""
    from pypinyin import Style
    from pypinyin.style import convert

    spelled = (convert(reading, Style.TONE3, False, None) for reading in _readings())
    toned = {syllable if syllable[-1].isdigit() else f"{syllable}5" for syllable in spelled}
    return sorted({syllable.replace("v", "ü") for syllable in toned} - NO_SYLLABLES)


def _readings() -> Iterator[str]:
    """Accented readings ("zhòu") of the 8105 characters, in both of Unihan's fields."""
    from pypinyin_dict.pinyin_data import khanyupinlu, kmandarin_8105, ktghz2013

    for character in kmandarin_8105.pinyin_dict:
        for source in (ktghz2013, khanyupinlu):
            yield from filter(None, source.pinyin_dict.get(character, "").split(","))


def main(argv: list[str] | None = None) -> int:
    """Writes the units."""
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(PinyinUnitsArguments).parse_args_into_dataclasses(argv)
    Path(arguments.output).write_text("\n".join(build_units()) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
