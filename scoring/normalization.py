"""How written Chinese is read aloud, for training text and for the character error rate alike.

The policy:

* Unicode NFKC, then traditional characters become simplified (OpenCC's t2s table);
* numbers are read as Chinese: quantities by value (`300` -> 三百); years digit by digit (`1998年` ->
  一九九八年, `80后` -> 八零后); dates, times, decimals, percentages, fractions and ranges by their usual
  reading; a single 2 before a measure word is 两; codes (a leading zero, or eight digits and more) digit
  by digit; 〇 is 零;
* `normalize_text` then keeps only Han characters and lower-cased ASCII letters.

No function here raises on any `str`, and `normalize_text` is idempotent.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from ..tokenization_pinyin_llm import HAN_BLOCKS


if TYPE_CHECKING:
    from opencc import OpenCC

HAN_CLASS = "〇" + "".join(f"{chr(first)}-{chr(last)}" for first, last in HAN_BLOCKS)  # as `is_han`
HAN = re.compile(f"[{HAN_CLASS}]")
NOT_HAN_OR_LATIN = re.compile(f"[^{HAN_CLASS}a-z]+")

DIGITS = "零一二三四五六七八九"
LONGEST_QUANTITY = 7
# first characters of the measure words that turn a 2 into 两
MEASURES = "个位名只条张本家件种次天倍岁年点米公里小时分钟周块元份支台辆座届层艘架起"
RANGE = r"\s?[-~–—]\s?"

# 12, 1,200, 3.14, and versions such as 3.5.2
PLAIN = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)*"
CURRENCIES = {"¥": "元", "$": "美元", "€": "欧元", "£": "英镑"}
UNITS = {"%": "百分之", "‰": "千分之"}


def normalize_text(text: str) -> str:
    """Han characters and lower-cased ASCII letters of `text` as it would be read aloud.

    >>> normalize_text("１９９８年，GDP增長了7.5%。")
    '一九九八年gdp增长了百分之七点五'
    """
    return _settle(NOT_HAN_OR_LATIN.sub("", read_aloud(text).lower()))


def read_aloud(text: str) -> str:
    """`text` in NFKC and simplified characters with its numbers read as Chinese; punctuation stays.

    >>> read_aloud("會議在3:05開始，共2個小時。")
    '会议在三点零五分开始,共两个小时。'
    """
    text = _settle(unicodedata.normalize("NFKC", text))
    return _settle(_read_numbers(text).replace("〇", "零"))


def han_only(text: str) -> str:
    """The Han characters of `text`, in order."""
    return "".join(HAN.findall(text))


def _settle(text: str) -> str:
    """Simplify until nothing changes: removing or converting a character can complete another phrase."""
    for _ in range(4):
        simplified = _simplify(text)
        if simplified == text:
            break
        text = simplified
    return text


def _simplify(text: str) -> str:
    converter, changed, runs_to_convert = _converter()
    if changed.isdisjoint(text):  # the pattern alone took two thirds of the time of cleaning text
        return text
    return runs_to_convert.sub(lambda run: converter.convert(run[0]), text)


@cache
def _converter() -> tuple["OpenCC", frozenset[str], re.Pattern]:
    """OpenCC's converter, the characters it changes, and the pattern of short Han runs that contain one.

    The converter is slow, recursive in the length of its input, and changes nothing outside these runs.
    """
    from opencc import OpenCC

    converter = OpenCC("t2s")
    entries = [entry for _, _, table in converter.dict_cache.values() for entry in table.items()]
    # phrases change characters that stay the same on their own: 瞭解 -> 了解
    pairs = [pair for source, target in entries for pair in zip(source, target, strict=False)]
    changed = frozenset(old for old, new in pairs if old != new)
    one_of = f"[{''.join(changed)}]"
    unchanged = f"(?:(?!{one_of})[{HAN_CLASS}])"
    return converter, changed, re.compile(f"{unchanged}{{0,20}}{one_of}[{HAN_CLASS}]{{0,40}}")


def _read_numbers(text: str) -> str:
    if not re.search("[0-9]", text):
        return text
    for pattern, reading in _number_forms():
        text = pattern.sub(reading, text)
    return text


@cache
def _number_forms() -> list[tuple[re.Pattern, Callable[[re.Match], str]]]:
    """(pattern, reading) pairs in the order in which they are applied."""
    year, hour, sixty = "[12][0-9]{3}", "[0-9]|[01][0-9]|2[0-4]", "[0-5][0-9]"
    spelled_year = f"{year}(?=\\s?年)|(?:0[0-9]|[7-9][0-9])(?=年(?!代)|后(?!卫))"
    return [
        (re.compile(rf"(?<![0-9])({year}){RANGE}({year})(?=\s?年)"), _years),
        (re.compile(rf"(?<![0-9])(?:{spelled_year})"), lambda m: _spell(m[0])),
        (re.compile(rf"(?<![0-9])({year})([-/.])([01]?[0-9])\2([0-3]?[0-9])(?![0-9])"), _date),
        (re.compile(rf"(?<![0-9:])({hour}):({sixty})(?::({sixty}))?(?![0-9:])"), _time),
        (re.compile(r"(?<![0-9.])([0-9]{1,4})\s?:\s?([0-9]{1,4})(?![0-9:.])"), _joined("比")),
        (re.compile(r"(?<![0-9/])([0-9]{1,4})[/⁄]([0-9]{1,4})(?![0-9/])"), _fraction),
        (re.compile(rf"([¥$€£])\s?({PLAIN})([万亿]*)"), _money),
        (re.compile(rf"((?<![0-9a-zA-Z%{HAN_CLASS}])-)?(?<![0-9.])({PLAIN})\s?([%‰])"), _per_cent),
        (re.compile(rf"(?<=[{DIGITS}十百千万亿点分秒日0-9]){RANGE}(?=[{DIGITS}十百千0-9])"), lambda m: "到"),
        (re.compile(r"(?<=[0-9])\s?°C"), lambda m: "摄氏度"),
        (re.compile(rf"(?<![0-9.第初])2(?=[{MEASURES}万亿])(?!年代|年级|分之|次方)"), lambda m: "两"),
        (re.compile(rf"(?:(?<![0-9a-zA-Z{HAN_CLASS}])(-))?({PLAIN})"), _signed),
    ]


def _years(match: re.Match) -> str:
    return f"{_spell(match[1])}到{_spell(match[2])}"


def _joined(word: str) -> Callable[[re.Match], str]:
    return lambda m: f"{_value(m[1])}{word}{_value(m[2])}"


def _date(match: re.Match) -> str:
    year, month, day = match[1], match[3], match[4]
    return f"{_spell(year)}年{_value(month.lstrip('0') or '0')}月{_value(day.lstrip('0') or '0')}日"


def _money(match: re.Match) -> str:
    return _value(match[2]) + match[3] + CURRENCIES[match[1]]


def _time(match: re.Match) -> str:
    hour, minute, second = match[1], match[2], match[3]
    reading = ("两" if hour == "2" else _two_digits(hour)) + "点"
    if minute != "00" or second:
        reading += ("零" if minute[0] == "0" and minute != "00" else "") + _two_digits(minute) + "分"
    return reading + (_two_digits(second) + "秒" if second else "")


def _two_digits(number: str) -> str:
    return _value(str(int(number)))


def _fraction(match: re.Match) -> str:
    return f"{_value(match[2])}分之{_value(match[1])}"


def _per_cent(match: re.Match) -> str:
    return ("负" if match[1] else "") + UNITS[match[3]] + _value(match[2])


def _signed(match: re.Match) -> str:
    return ("负" if match[1] else "") + _value(match[2])


def _value(number: str) -> str:
    """A plain number by value; a code, or a version such as 3.5.2, by its parts and digits."""
    import cn2an

    grouped = "," in number
    whole, *parts = number.replace(",", "").split(".")
    is_code = not grouped and (len(whole) > LONGEST_QUANTITY or (len(whole) > 1 and whole[0] == "0"))
    # cn2an refuses more than 16 digits
    spoken = _spell(whole) if is_code or len(whole) > 16 else cn2an.an2cn(whole, "low")
    return "点".join([spoken, *(_spell(part) for part in parts)])


def _spell(digits: str) -> str:
    return "".join(DIGITS[int(digit)] for digit in digits)
