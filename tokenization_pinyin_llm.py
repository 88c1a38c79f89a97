"""Pinyin units: characters and written syllables -> ids of the 1417-row pinyin table.

The paper (arXiv 2409.16005) gives the number 1417 but not the list. Ours has every reading of the 8105 characters of
the 通用规范汉字表 in Unihan's kTGHZ2013 and kHanyuPinlu, except 13 interjections that are not syllables (hm, m, n,
ng, ê); `corpora/pinyin_units.py` rebuilds it.
"""

import hashlib
import re
import unicodedata
from functools import cache, cached_property
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import groupby
from pathlib import Path


NUM_PINYIN_UNITS = 1417
PINYIN_UNITS_FILE = "pinyin_units.txt"
PINYIN_UNITS_SHA256 = "c0d60a46e85c8fe61674e6333c7451a1310700f1137dfa1d1ca02b56a93c3dbd"

# Syllables that pypinyin can emit but that have no row of their own, and the unit that they sound most like.
ALIASES = {
    **{f"{odd}{tone}": f"{usual}{tone}" for tone in "12345"
       for odd, usual in {"ei": "e", "ê": "e", "m": "mu", "n": "en", "ng": "en", "chua": "hua", "nun": "nen",
                          "biang": "bang"}.items()},
    "eng1": "en1", "hm5": "heng1", "hng5": "heng1", "zhei4": "zhe4", "cei4": "cui4", "tei1": "tui1", "rua2": "ruo4",
    "fiao4": "fu4", "len4": "leng4", "nia1": "niang2", "din4": "ding4", "bong4": "beng4", "wong4": "weng4",
    "er5": "er2",
}  # fmt: skip
TONES_BY_NUMBER_OF_UNITS = "41325"
TONE_MARKS = {"\u0304": "1", "\u0301": "2", "\u030c": "3", "\u0300": "4", "\u0306": "3"}  # a breve is taken for a caron
VOWEL_MARKS = {"a": "āáǎà", "e": "ēéěè", "i": "īíǐì", "o": "ōóǒò", "u": "ūúǔù", "ü": "ǖǘǚǜ"}
WORD = re.compile("(?:[^0-9]+[0-5]?)+")
CHUNK = re.compile("([^0-9]+)([0-5]?)")  # of a word: syllables without digits, and the digit that ends the last of them
LONGEST_SYLLABLE = 6  # letters, as in zhuang
# How letters are typed: u: and v for ü, and the letters of phonetic fonts.
TYPED = ((re.compile("(?<=[ln])u:|v"), "ü"), (re.compile("ɑ"), "a"),
         (re.compile("ɡ"), "g"))  # fmt: skip
TYPED_SYLLABLES = {"lue": "lüe", "nue": "nüe"}
HAN_BLOCKS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


class PinyinError(ValueError):
    """A character or syllable without a pinyin unit, or a unit list that is not the frozen one."""


@cache
def is_han(character: str) -> bool:
    """Whether `character` is a Chinese character: a CJK ideograph of any plane, or 〇."""
    return character == "〇" or any(first <= ord(character) <= last for first, last in HAN_BLOCKS)


class PinyinTokenizer:
    """The 1417 toned syllables (TONE3 spelling, neutral tone 5, ü) in the order of the table's rows.

    Args:
        units: The syllables; row `i` of the model's pinyin table is `units[i]`.

    Raises:
        PinyinError: The list is not the frozen one (its hash differs).
    """

    def __init__(self, units: list[str]):
        check_units(units)
        self.units = units
        self.ids = {unit: i for i, unit in enumerate(units)}
        self.bases: dict[str, tuple[int, ...]] = {}
        for unit, i in self.ids.items():
            self.bases[unit[:-1]] = (*self.bases.get(unit[:-1], ()), i)

    @classmethod
    def from_file(cls, path: str | Path | None = None) -> "PinyinTokenizer":
        """Read one unit per line (UTF-8); by default the list of this release."""
        path = Path(path or Path(__file__).with_name(PINYIN_UNITS_FILE))
        return cls(path.read_text(encoding="utf-8").split())

    def __len__(self) -> int:
        return len(self.units)

    @staticmethod
    def accented(unit: str) -> str:
        """hao3 -> hǎo: the mark goes on a or e, on the o of ou, else on the last vowel."""
        base, tone = unit[:-1], unit[-1:]
        if tone not in ("1", "2", "3", "4"):
            return base
        marked = next((base.index(v) for v in ("a", "e", "ou") if v in base), max(base.rfind(v) for v in VOWEL_MARKS))
        if marked < 0:
            return base
        return base[:marked] + VOWEL_MARKS[base[marked]][int(tone) - 1] + base[marked + 1 :]

    def syllable_to_id(self, syllable: str) -> int:
        """A toned TONE3 syllable -> its id; without a row of its own, that of an alias or of another tone of its base.

        Raises:
            PinyinError: Not a Mandarin syllable.
        """
        syllable = ALIASES.get(syllable, syllable)
        tones = (syllable[-1:], *TONES_BY_NUMBER_OF_UNITS)
        for candidate in (syllable[:-1] + tone for tone in tones):
            if candidate in self.ids:
                return self.ids[candidate]
        raise PinyinError(f"{syllable!r} is not a Mandarin syllable. Write it like 'ni3', 'lü4' or 'zhong1'.")

    def encode_syllables(self, text: str, errors: str = "raise") -> list[tuple[int, ...]]:
        """Written pinyin ("ni3 hao3", "ni hao", "nǐ hǎo", "ni3hao3", "nihao") -> the ids each syllable may stand for.

        Args:
            text: Words of one syllable or several, separated by spaces, apostrophes or other punctuation. Without
                digits or marks a word is cut into the fewest syllables, and a consonant belongs to the following
                vowel: xian is one, xi'an two, fangan is fan gan. An r after a syllable (huar1, hua1r) is one of its
                own, 儿. v and u: are read as ü, lue and nue as lüe and nüe, tone 0 as neutral.
            errors: "raise", or "ignore" to leave out words that are not pinyin.

        Returns:
            For each syllable one id, or all tones of its base where no tone is written, or a neutral one that has no
            row.

        Raises:
            PinyinError: A word is not pinyin and `errors="raise"`.
        """
        _check_policy(errors, ("raise", "ignore"))
        slots = []
        for written in _words(text):
            try:
                slots += [self._slot(base, tone) for base, tone in self._parse_word(written)]
            except PinyinError as error:
                if errors == "raise":
                    raise PinyinError(_describe_unread(written)) from error
        return slots

    def _slot(self, base: str, tone: str) -> tuple[int, ...]:
        if not tone or (tone == "5" and base + tone not in self.ids):
            return self.bases[base]
        return (self.syllable_to_id(base + tone),)

    def _parse_word(self, written: str) -> list[tuple[str, str]]:
        """The base and the tone, "1" to "5" or empty, of each syllable of a word."""
        if not WORD.fullmatch(written):
            raise PinyinError(written)
        chunks = [(*_split_marks(letters), digit.replace("0", "5")) for letters, digit in CHUNK.findall(written)]
        letters, marks, digit = chunks[0]
        if len(chunks) == 1 and letters not in self.bases:  # perhaps an interjection, which is a word of its own
            tone = "".join(marks) + digit
            if alias := ALIASES.get(letters + (tone or "5")):
                return [(alias[:-1], alias[-1:])]
        syllables: list[tuple[str, str]] = []
        for letters, marks, digit in chunks:
            found = self._cut(letters, marks)
            if digit:  # in huar1 it belongs to hua
                last = -2 if len(found) > 1 and found[-1][0] == "r" else -1
                base, tone = found[last]
                found[last] = (base, tone + digit)
            syllables += found
        if any(len(tone) > 1 for _, tone in syllables):
            raise PinyinError(written)
        return syllables

    def _cut(self, letters: str, marks: list[str]) -> list[tuple[str, str]]:
        """Letters and the tone mark of each -> the fewest syllables; a consonant between two belongs to the second.

        An r is a syllable only after another one, or alone, and er goes before it.
        """
        cuts: list[list[tuple[str, str]] | None] = [[]]  # the best cut of the first n letters
        for end in range(1, len(letters) + 1):
            options = []
            for start in range(max(0, end - LONGEST_SYLLABLE), end):
                base, tone = letters[start:end], "".join(marks[start:end])
                base = TYPED_SYLLABLES.get(base, base)
                is_possible = base in self.bases and (base != "r" or start or letters == "r")
                if cuts[start] is not None and is_possible and len(tone) <= 1:
                    options.append([*cuts[start], (base, tone)])
            cuts.append(min(options, key=len, default=None))  # of several the first, whose last syllable is the longest
        if cuts[-1] is None:
            raise PinyinError(letters)
        return cuts[-1]

    def encode_characters(self, text: str, errors: str = "ignore") -> tuple[str, list[int | None]]:
        """Characters -> one unit each; polyphones are read by the phrase they are in (pypinyin).

        Args:
            text: Any text.
            errors: For a character without a reading: "ignore" leaves it out of both results, "raise" raises, "keep"
                keeps it with the id `None`.

        Returns:
            The characters that were kept and their unit ids; the two always have the same length.

        Raises:
            PinyinError: A character has no reading and `errors="raise"`.
        """
        _check_policy(errors, ("ignore", "raise", "keep"))
        readings = [(c, i) for run in _han_runs(text) for c, i in zip(run, self._read_run(run), strict=True)]
        unread = next((c for c, i in readings if i is None), None)
        if errors == "raise" and unread is not None:
            raise PinyinError(f"{unread!r} (U+{ord(unread):04X}) has no pinyin reading. Drop it with errors='ignore'.")
        kept = [(c, i) for c, i in readings if i is not None or errors == "keep"]
        return "".join(c for c, _ in kept), [i for _, i in kept]

    def _read_run(self, run: str) -> list[int | None]:
        """The units of a run of Han or of non-Han; only in runs of Han does pypinyin give one reading per character."""
        if not is_han(run[0]):
            return [None] * len(run)
        from pypinyin.core import Pinyin

        run = unicodedata.normalize("NFC", run)  # compatibility ideographs have no readings of their own
        return [self._id_or_none(reading) for word in Pinyin().seg(run) for reading in _read_word(word)]

    def _id_or_none(self, reading: str) -> int | None:
        try:
            return self.syllable_to_id(reading)
        except PinyinError:  # a character without a reading comes back as itself
            return None

    @cached_property
    def readings(self) -> dict[str, tuple[int, ...]]:
        """Every reading of each character that pypinyin knows: {character: unit ids}, for constrained decoding."""

        @cache
        def read_as(written: str) -> int | None:
            bare, tone = _split_tone(written)
            return self._id_or_none(bare + (tone or "5"))

        table = {}
        for number, written in _read_pinyin_dict().items():
            if read := {read_as(option) for option in written.split(",")} - {None}:
                table[chr(number)] = tuple(sorted(read))
        table["儿"] += (self.ids["r5"],)  # 花儿 is hua1 r5
        return table


def check_units(units: list[str]) -> None:
    """Refuse units that are not those of this release in their order, by which rows of the pinyin table are found.

    Raises:
        PinyinError: Names both hashes and both numbers.
    """
    digest = hashlib.sha256(("\n".join(units) + "\n").encode()).hexdigest()
    if digest != PINYIN_UNITS_SHA256:
        raise PinyinError(
            f"The pinyin units are not the frozen list: expected {NUM_PINYIN_UNITS} units with sha256 "
            f"{PINYIN_UNITS_SHA256}, found {len(units)} with {digest}. Restore {PINYIN_UNITS_FILE}."
        )


def _words(text: str) -> list[str]:
    """Written pinyin -> its words in lower case; punctuation and invisible characters separate them."""
    text = unicodedata.normalize("NFKC", text).lower()
    for pattern, letter in TYPED:
        text = pattern.sub(letter, text)
    kinds = ((c, unicodedata.category(c)) for c in text)
    return "".join(" " if kind[0] in "PZ" or kind == "Cf" else c for c, kind in kinds).split()


def _describe_unread(word: str) -> str:
    """Why a word is not pinyin: its first character that pinyin does not have, with its code point, if there is one."""
    known = re.compile("[a-z0-9üê]")
    strange = next((c for c in unicodedata.normalize("NFC", _split_tone(word)[0]) if not known.match(c)), None)
    found = f": found {strange!r} (U+{ord(strange):04X})" if strange else ""
    return f"{word!r} is not pinyin{found}. Expected syllables like 'ni3', 'ni' or 'nǐ', apart or together ('ni3hao3')."


def _split_tone(written: str) -> tuple[str, str]:
    """hǎo -> hao, 3; without a tone mark the number is empty."""
    letters, marks = _split_marks(written)
    return letters, "".join(marks)


def _split_marks(written: str) -> tuple[str, list[str]]:
    """hǎo -> hao and the tone of each letter: "", "3", "". A mark without a letter stays."""
    letters: list[str] = []
    marks: list[str] = []
    for character in unicodedata.normalize("NFD", written):
        if character in TONE_MARKS and letters:
            marks[-1] += TONE_MARKS[character]
        elif unicodedata.combining(character) and letters:  # the dots of ü, the roof of ê
            letters[-1] = unicodedata.normalize("NFC", letters[-1] + character)
        else:
            letters.append(character)
            marks.append("")
    return "".join(letters), marks


def _read_pinyin_dict() -> dict[int, str]:
    """pypinyin's readings of each code point, "hǎo,hào", without its phrases, whose import takes half a second."""
    file = Path(find_spec("pypinyin").origin).with_name("pinyin_dict.py")
    spec = spec_from_file_location("pinyin_dict", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pinyin_dict


@cache  # words repeat, and spelling them is three quarters of the time of encoding text
def _read_word(word: str) -> tuple[str, ...]:
    """A word of pypinyin's segmenter -> TONE3 syllables; a character without a reading comes back as itself."""
    from pypinyin import Style, lazy_pinyin

    return tuple(lazy_pinyin(word, style=Style.TONE3, neutral_tone_with_five=True, v_to_u=True, errors=list))


def _check_policy(errors: str, known: tuple[str, ...]) -> None:
    if errors not in known:
        raise ValueError(f"errors must be one of {known}, found {errors!r}.")


def _han_runs(text: str) -> list[str]:
    """Cut where Han and non-Han meet: "AI很好" -> ["AI", "很好"]."""
    return ["".join(run) for _, run in groupby(text, is_han)]


__all__ = ["PinyinError", "PinyinTokenizer", "is_han"]
