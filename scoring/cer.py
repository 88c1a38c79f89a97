"""Character error rate with one normaliser, an interval, kinds of error, and the share of homophones."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import jiwer
import numpy as np

from ..tokenization_pinyin_llm import PinyinTokenizer
from .normalization import normalize_text


BOOTSTRAP_SAMPLES = 1000
FILE_COLUMNS = {"file", "id", "path", "utt", "audio"}
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
    references, hypotheses = ([normalize_text(text) for text in texts] for texts in (references, hypotheses))
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
    return [score([reference], [text]).cer if normalize_text(reference) else math.nan for reference, text in pairs]


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
    """A tsv of file and text -> {file as it is written there: text}.

    A header line may name the columns (`file`, `id`, `path`, `utt` or `audio`; `text`); without one they are the first
    two.

    Raises:
        ValueError: A table that is not UTF-8, a line without a text column, or a file that occurs twice.
    """
    lines = list(read_lines(path))
    file_column, text_column, first = 0, 1, 0
    header = lines[0].lower().split("\t") if lines else []
    if "text" in header and FILE_COLUMNS & set(header):
        file_column = next(i for i, name in enumerate(header) if name in FILE_COLUMNS)
        text_column, first = header.index("text"), 1
    texts = {}
    for number, line in enumerate(lines[first:], start=first + 1):
        cells = line.split("\t")
        if len(cells) <= max(file_column, text_column):
            raise ValueError(f"{path}, line {number}: expected file TAB text, found {line!r}.")
        file = cells[file_column]
        if file in texts:
            raise ValueError(f"{path}, line {number}: {file} occurs twice. Keep one text per file.")
        texts[file] = cells[text_column]
    return texts


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
        found = "; ".join(f"{kind}: {', '.join(sorted(files))}" for kind, files in kinds.items() if files)
        raise ValueError(f"Expected one text for each of the {len(references)} references, found {found}.")
    return list(references.values()), [hypotheses[name] for name in references]


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
