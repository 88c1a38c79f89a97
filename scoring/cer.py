"""Character error rate with one normaliser, an interval, kinds of error, and the share of homophones."""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import jiwer
import numpy as np

from ..tokenization_pinyin_llm import PinyinTokenizer, is_han
from .normalization import HAN_CLASS, normalize_text


BOOTSTRAP_SAMPLES = 1000
# The names that columns of a table may have; of several columns of files, the first counts.
FILE_COLUMNS = {"file", "path", "audio", "wav", "utt", "utt_id", "id"}
TEXT_COLUMNS = {"text", "sentence", "transcript", "transcription"}
MOST_NAMED = 3  # files in a message; the others are counted
OTHER_SCRIPT = re.compile(rf"([^\W_a-zA-Z0-9{HAN_CLASS}]+)")
# A speech LLM that loses its place repeats a word or phrase over and over. Mandarin itself repeats a character (看看)
# or a pair (好的好的) once, so three times in a row is the first number that is suspicious.
LONGEST_STRETCH, FEWEST_TIMES = 4, 3


@dataclass
class Score:
    """Errors of a test set; rates are shares (0.1 is 10 %).

    Args:
        cer: Substitutions, deletions and insertions over reference characters.
        low, high: 95 % interval of the CER, by bootstrap over utterances.
        homophones: Share of all errors that are substitutions by a character of the same syllable (ignoring the tone):
            right sound, wrong character, which is what P2C pre-training addresses.
        wrong_syllables, wrong_tones, wrong_characters: The substitutions by kind: another syllable; the right syllable
            with another tone; a homophone.
        repetitions: Share of utterances that repeat a stretch of 1 to 4 characters three times in a row or more, and
            more often than the reference does.
    """

    cer: float
    low: float
    high: float
    substitutions: int
    deletions: int
    insertions: int
    homophones: float
    wrong_syllables: int
    wrong_tones: int
    wrong_characters: int
    repetitions: float
    characters: int
    utterances: int

    def __getitem__(self, name: str) -> float:
        return getattr(self, name)

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        rows = {
            "CER": f"{self.cer:.2%} (95 % interval {self.low:.2%} to {self.high:.2%})",
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "homophones": f"{self.homophones:.1%} of the errors",
            "repetitions": f"{self.repetitions:.1%} of the utterances",
            "characters": self.characters,
            "utterances": self.utterances,
        }
        return "\n".join(f"{name:<14}{value}" for name, value in rows.items())


def score(references: list[str], hypotheses: list[str], times: int = 1) -> Score:
    """CER of parallel lists, both normalised alike.

    Args:
        times: How often the lists contain the same utterances, one round after the other (several seeds of a system).
            The interval draws an utterance with all its rounds, since another seed is not another utterance.

    Raises:
        ValueError: Lists of different length, or no reference character.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"Expected one hypothesis per reference, found {len(references)} and {len(hypotheses)}.")
    references, hypotheses = (list(map(comparable, texts)) for texts in (references, hypotheses))
    if not any(references):
        raise ValueError("The references contain no Chinese or Latin character to score.")
    alignments = jiwer.process_characters(references, hypotheses).alignments
    errors = np.array([_count(alignment) for alignment in alignments])
    substitutions, deletions, insertions = errors.sum(0).tolist()
    lengths = np.array([len(text) for text in references])
    low, high = _interval(*(counts.reshape(times, -1).sum(0) for counts in (errors.sum(1), lengths)))
    total = substitutions + deletions + insertions
    syllables, tones, characters = np.sum(
        list(map(_substitutions, alignments, references, hypotheses)), axis=0
    ).tolist()
    return Score(
        cer=float(total / lengths.sum()),
        low=low,
        high=high,
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        homophones=(tones + characters) / max(total, 1),
        wrong_syllables=syllables,
        wrong_tones=tones,
        wrong_characters=characters,
        repetitions=float(np.mean(list(map(_repeats, references, hypotheses)))),
        characters=int(lengths.sum()),
        utterances=len(references),
    )


def score_each(references: list[str], hypotheses: list[str]) -> list[float]:
    """CER of each utterance; NaN where a reference has no character."""
    pairs = zip(references, hypotheses, strict=True)
    return [score([reference], [text]).cer if comparable(reference) else math.nan for reference, text in pairs]


def comparable(text: str) -> str:
    """`text` as it is scored: normalised, with the letters of other scripts, which `normalize_text` drops.

    >>> comparable("2個 Привет。")
    '两个привет'
    """
    parts = OTHER_SCRIPT.split(unicodedata.normalize("NFKC", text))
    parts[::2] = map(normalize_text, parts[::2])
    return "".join(parts).lower()


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a text file, without line ends or a byte order mark.

    Raises:
        ValueError: The file is not in UTF-8.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as lines:
            yield from (line.rstrip("\n") for line in lines)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found something else ({error}). Convert it with iconv.") from error


def read_texts(path: str | Path) -> dict[str, str]:
    """A table of files and texts -> {file as it is written there: text}.

    Its first line may name the columns (`FILE_COLUMNS`, `TEXT_COLUMNS`, and any others). Without such a header each
    line is `file TAB text`, or in the whole table `utterance text`, separated by a space, as Kaldi writes it.

    Raises:
        ValueError: A table that is not UTF-8, without a column of files or of texts, a line with more or fewer cells,
            or a file that occurs twice.
    """
    rows = _read_rows(path)
    columns, expected = (0, 1), "file TAB text, or a first line that names the columns"
    width = 2
    if rows and (found := _header_columns(path, rows)):
        columns, width = found, len(rows[0][1])
        expected = f"{width} cells, as the first line has"
        rows = rows[1:]
    texts: dict[str, str] = {}
    for number, cells in rows:
        if len(cells) != width:
            found = "\t".join(cells)
            raise ValueError(f"{path}, line {number}: expected {expected}, found {len(cells)} cells: {found!r}.")
        file, text = (cells[column] for column in columns)
        if file in texts:
            raise ValueError(f"{path}, line {number}: {file} occurs twice. Keep one text per file.")
        texts[file] = text
    return texts


def _read_rows(path: str | Path) -> list[tuple[int, list[str]]]:
    """The number and the cells of each line that is not blank."""
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    if any("\t" in line for _, line in lines):
        return [(number, line.split("\t")) for number, line in lines]
    rows = [(number, [*line.split(maxsplit=1), ""][:2]) for number, line in lines]
    for number, (utterance, _) in rows:
        if all(map(is_han, utterance)):
            raise ValueError(f"{path}, line {number}: expected file TAB text, found text alone: {utterance!r}.")
    if rows and not any(text for _, (_, text) in rows):
        raise ValueError(f"{path}: expected file TAB text, found no line with a text.")
    return rows


def _header_columns(path: str | Path, rows: list[tuple[int, list[str]]]) -> tuple[int, int] | None:
    """Where files and texts are, if the first row names its columns.

    Raises:
        ValueError: It names only one of the two, or several texts, or names that are not known.
    """
    (number, first), *others = rows
    names = [name.strip().lower() for name in first]
    files = [name for name in names if name in FILE_COLUMNS]
    texts = [name for name in names if name in TEXT_COLUMNS]
    looks_like_files = (re.search(r"[\d./]", cells[0]) for _, cells in others)
    is_header = files or texts or (others and first[0].isalpha() and all(looks_like_files))
    if not is_header:
        return None
    if not files or len(texts) != 1:
        raise ValueError(
            f"{path}, line {number}: expected one column of files ({', '.join(sorted(FILE_COLUMNS))}) and one of texts "
            f"({', '.join(sorted(TEXT_COLUMNS))}), found {', '.join(names)}. Rename them; if this line is no header, "
            "put one above it."
        )
    return names.index(files[0]), names.index(texts[0])


def pair_texts(references: dict[str, str], hypotheses: dict[str, str]) -> tuple[list[str], list[str]]:
    """Texts by file -> parallel lists, in the order of the references.

    If the paths differ, only file names are compared: references and transcripts may be in different folders.

    Raises:
        ValueError: Files with a text on one side only, or of one name in different folders.
    """
    if references.keys() != hypotheses.keys():
        references, hypotheses = _by_name(references), _by_name(hypotheses)
    missing, extra = references.keys() - hypotheses.keys(), hypotheses.keys() - references.keys()
    if missing or extra:
        kinds = {"missing": missing, "extra": extra}
        found = "; ".join(f"{kind}: {name_some(files)}" for kind, files in kinds.items() if files)
        hint = suffix_hint(missing, extra)
        raise ValueError(f"Expected one text for each of the {len(references)} references, found {found}.{hint}")
    return list(references.values()), [hypotheses[name] for name in references]


def name_some(files: Iterable[str]) -> str:
    """The first few of `files`, and the number of the others."""
    files = sorted(files)
    named = ", ".join(files[:MOST_NAMED])
    return named if len(files) <= MOST_NAMED else f"{named} and {len(files) - MOST_NAMED:,} more"


def suffix_hint(files: Iterable[str], others: Iterable[str]) -> str:
    """A sentence for a message, if names that do not match differ in nothing but their suffix; else empty."""
    stems, other_stems = ({Path(file).stem for file in names} for names in (files, others))
    if not stems or stems != other_stems:
        return ""
    suffixes = sorted({Path(file).suffix for file in (*files, *others)} - {""})
    return f" They differ only in the suffix {' or '.join(suffixes)}. Write it in both tables, or in neither."


def _by_name(texts: dict[str, str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for file, text in texts.items():
        name = Path(file).name
        if name in named:
            raise ValueError(f"{name} occurs twice, in different folders. Use the same paths in both tables.")
        named[name] = text
    return named


def _count(alignment: list) -> tuple[int, int, int]:
    """Substitutions, deletions and insertions of one utterance."""
    sizes = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in alignment:
        sizes[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return sizes["substitute"], sizes["delete"], sizes["insert"]


def _substitutions(alignment: list, reference: str, hypothesis: str) -> tuple[int, int, int]:
    """Substituted characters by kind: another syllable, another tone, or a homophone."""
    pairs = []
    for chunk in alignment:
        if chunk.type == "substitute":
            spoken = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            pairs += zip(spoken, hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx], strict=True)
    homophones = sum(bool(_readings(a) & _readings(b)) for a, b in pairs)
    same_syllable = sum(bool(_sounds(a) & _sounds(b)) for a, b in pairs)
    return len(pairs) - same_syllable, same_syllable - homophones, homophones


def _repeats(reference: str, hypothesis: str) -> bool:
    """Whether a stretch occurs at least `FEWEST_TIMES` in a row, and more often than in the reference."""
    spoken = _most_in_a_row(reference)
    return any(
        times >= FEWEST_TIMES and times > spoken.get(stretch, 0)
        for stretch, times in _most_in_a_row(hypothesis).items()
    )


def _most_in_a_row(text: str) -> dict[str, int]:
    """Each stretch of up to `LONGEST_STRETCH` characters -> the most times that it occurs in a row."""
    most: dict[str, int] = {}
    for size in range(1, LONGEST_STRETCH + 1):
        for start in range(len(text) - size + 1):
            stretch, times = text[start : start + size], 1
            while text.startswith(stretch, start + times * size):
                times += 1
            most[stretch] = max(times, most.get(stretch, 0))
    return most


@cache
def _readings(character: str) -> frozenset[str]:
    """The syllables with tone that a character can be read as."""
    units = _units()
    return frozenset(units.units[i] for i in units.readings.get(character, ()))


def _sounds(character: str) -> frozenset[str]:
    """The same without tone."""
    return frozenset(unit[:-1] for unit in _readings(character))


@cache
def _units() -> PinyinTokenizer:
    return PinyinTokenizer.from_file()


def _interval(errors: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """95 % interval of errors over characters, by drawing utterances with replacement."""
    draws = np.random.default_rng(0).integers(len(errors), size=(BOOTSTRAP_SAMPLES, len(errors)))
    rates = errors[draws].sum(1) / np.maximum(lengths[draws].sum(1), 1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def score_syllables(references: list[str], recognized: list[list[int]]) -> dict[str, float]:
    """Syllable error rates, toned and toneless, of unit ids recognised against those of the reference characters."""
    units = _units()
    spoken = [units.encode_characters(text)[1] for text in references]
    rates = {}
    for name, spell in (("toned", lambda i: units.units[i]), ("toneless", lambda i: units.units[i][:-1])):
        lines = [[" ".join(map(spell, row)) for row in rows] for rows in (spoken, recognized)]
        rates[f"{name}_syllable_errors"] = jiwer.process_words(*lines).wer
    return rates
