"""The character error rate of this package for Hugging Face evaluate: `evaluate.load("scoring/cer_metric.py")`."""

import datasets
import evaluate

from pinyin_llm.scoring.cer import score  # pyright: ignore[reportMissingImports]


DESCRIPTION = """
Character error rate of Mandarin text with its 95 % interval (bootstrap over utterances). Both sides are normalised
alike: NFKC, numbers read as Chinese, traditional characters made simplified, punctuation dropped.
"""
KWARGS_DESCRIPTION = """
Args:
    predictions: The hypotheses, one string per utterance.
    references: The texts spoken.
Returns:
    cer, low, high: The rate and its interval, as shares of the reference characters.
    substitutions, deletions, insertions: Numbers of errors.
    homophones: Share of the errors that are another character of the same syllable.
    wrong_syllables, wrong_tones, wrong_characters: The substitutions by kind.
    repetitions: Share of utterances that repeat a stretch three times in a row or more, and more often than the
    reference.
Examples:
    >>> evaluate.load("scoring/cer_metric.py").compute(predictions=["你号"], references=["你好"])["cer"]
    0.5
"""
RESULTS = (
    *("cer", "low", "high", "substitutions", "deletions", "insertions", "homophones"),
    *("wrong_syllables", "wrong_tones", "wrong_characters", "repetitions"),
)


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, KWARGS_DESCRIPTION)
class CharacterErrorRate(evaluate.Metric):
    """Wraps `pinyin_llm.scoring.cer.score`."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="arXiv:2409.16005",
            inputs_description=KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": texts, "references": texts}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scored = score(references, predictions).to_dict()
        return {name: scored[name] for name in RESULTS}
