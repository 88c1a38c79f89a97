"""Learn what a recogniser confuses and when an edit of its text is right -> confusions.json, settings.json.

python -m pinyin_llm.experiments.learn_correction --references manifest.tsv --hypotheses whisper.tsv ... \
  --faultless text.txt ... --output FOLDER

Confusions are counted on the hypotheses. The weights are those of a logistic regression on the edits that
`TextCorrector` proposes for the hypotheses (right where they make fewer errors) and for faultless text (all wrong).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ..correction.confusions import PinyinConfusions, align_units
from ..correction.corrector import CONFUSIONS_FILE, SETTINGS_FILE, TextCorrector
from ..correction.rows import Row, rows_of
from ..inference.loading import MINI_MODEL, load_model
from ..scoring.cer import pair_texts, read_lines, read_texts
from ..scoring.normalization import han_only, normalize_text


INITIAL_SETTINGS = {"weights": [0.4, -0.45, 0.25, 0.03], "bias": -5.0, "line": [1.0, 0.0, 0.0], "threshold": -1.75}
LEAST_SCORE = -6.0  # edits that no weights would make are left out
ITERATIONS, PENALTY = 60, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MINI_MODEL)
    parser.add_argument("--references", required=True)
    parser.add_argument("--hypotheses", nargs="+", required=True, help="tsv of file and text, each by a recogniser")
    parser.add_argument("--faultless", nargs="+", required=True, help="lines of text that no training has seen")
    parser.add_argument("--threshold", type=float, default=INITIAL_SETTINGS["threshold"], help="log-odds at strength 1")
    parser.add_argument("--output", default=".", help="folder of both files")
    arguments = parser.parse_args()
    references = read_texts(arguments.references)
    pairs = []
    for file in arguments.hypotheses:
        texts = read_texts(file)
        pairs += zip(*pair_texts({name: references[name] for name in texts}, texts), strict=True)
    faultless = [line for file in arguments.faultless for line in read_lines(file)]
    model, processor = load_model(arguments.model)
    confusions = learn_confusions(pairs, processor.pinyin_tokenizer)
    settings = learn(model, processor, confusions, pairs, faultless, len(arguments.hypotheses))
    settings["threshold"] = arguments.threshold
    folder = Path(arguments.output)
    confusions.save(folder / CONFUSIONS_FILE.name)
    (folder / SETTINGS_FILE.name).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def learn(model, processor, confusions, pairs: list[tuple[str, str]], faultless: list[str], recognizers: int) -> dict:
    """(reference, hypothesis) pairs and faultless lines -> the settings of a `TextCorrector`.

    Args:
        recognizers: Pairs per utterance; each counts for so much less.
    """
    names = TextCorrector.FEATURES
    start = INITIAL_SETTINGS | {
        "weights": dict(zip(names, INITIAL_SETTINGS["weights"], strict=True)),
        "calibration": [1.0, 0.0],
    }
    corrector = TextCorrector(model, processor, confusions, start)
    hypothesis_edits = [label_edits(corrector, text, reference) for reference, text in pairs]
    faultless_edits = [label_edits(corrector, text, None) for text in faultless]
    lines = [*hypothesis_edits, *faultless_edits]
    features = np.concatenate([line[0] for line in lines])
    gains, lengths = (np.concatenate([line[i] for line in lines]) for i in (2, 3))
    is_spoken = np.arange(len(gains)) < sum(len(line[2]) for line in hypothesis_edits)
    importance = np.where(is_spoken, np.maximum(np.abs(gains), 0.3) / recognizers, 1.0) * lengths
    *weights, bias = fit(features, gains > 0, importance)
    corrector.weights, corrector.settings["bias"] = weights, bias
    # The doubt about the rest of a line depends on the weights, so all lines are scored again.
    judged = [_judge(corrector, line[4]) for line in lines]
    sums, doubts = (np.concatenate([line[i] for line in judged]) for i in (0, 1))
    line = fit(np.stack([sums, doubts], -1), gains > 0, importance)
    scores = (np.stack([sums, doubts], -1) @ line[:2] + line[2])[is_spoken]
    calibration = fit(scores[:, None], gains[is_spoken] > 0, np.ones(len(scores)))
    return {
        "weights": {name: round(float(weight), 4) for name, weight in zip(names, weights, strict=True)},
        "bias": round(float(bias), 4),
        "line": [round(float(value), 4) for value in line],
        "threshold": INITIAL_SETTINGS["threshold"],
        "calibration": [round(float(value), 4) for value in calibration],
    }


def learn_confusions(pairs: list[tuple[str, str]], pinyin_tokenizer) -> PinyinConfusions:
    """Count the syllables recognised for each syllable spoken."""
    aligned = []
    for texts in pairs:
        spoken, recognized = (pinyin_tokenizer.encode_characters(han_only(normalize_text(text)))[1] for text in texts)
        aligned += align_units(spoken, recognized, pinyin_tokenizer)
    return PinyinConfusions.learn(aligned, pinyin_tokenizer)


def label_edits(corrector: TextCorrector, text: str, reference: str | None):
    """A line -> for each of its edits the features, score, errors fixed and length; and the rows with their edits."""
    rows = list(rows_of(text, corrector.tokenizer))
    found = corrector.propose(rows, 32)
    spoken = None if reference is None else han_only(normalize_text(reference))
    whole = "".join(row.text for row in rows)
    edits, gains, kept, before = [], [], [], 0
    errors = 0 if spoken is None else count_errors(spoken, whole)
    for row in rows:
        own = [edit for edit in found[id(row)] if edit.score > LEAST_SCORE]
        for edit in own:
            start, end = before + edit.start, before + edit.end
            edited = whole[:start] + edit.after + whole[end:]
            gains.append(0 if spoken is None else errors - count_errors(spoken, edited))
        edits += own
        kept.append((row, found[id(row)]))
        before += len(row.text)
    features = np.array([edit.features for edit in edits]).reshape(-1, len(corrector.FEATURES))
    lengths = np.array([edit.end - edit.start for edit in edits], int)
    return features, np.array([edit.score for edit in edits]), np.array(gains, int), lengths, kept


def count_errors(reference: str, text: str) -> int:
    """Edit distance."""
    import jiwer

    result = jiwer.process_characters(reference, text)
    return result.substitutions + result.deletions + result.insertions


def _judge(corrector: TextCorrector, kept: list[tuple[Row, list]]) -> tuple[np.ndarray, np.ndarray]:
    """For each edit of `label_edits`: the sum of its weighted features, and the doubt about the rest of its line."""
    chosen = {id(row): [edit for edit in edits if edit.score > LEAST_SCORE] for row, edits in kept}
    for row, edits in kept:
        for edit in edits:
            edit.score = corrector._sum(edit.features)
        row.doubts = None
        corrector.note_doubts(row, edits)
    rows = [row for row, _ in kept]
    sums = [edit.score for row in rows for edit in chosen[id(row)]]
    corrector.settings["line"] = [0.0, 1.0, 0.0]
    corrector.weigh(rows, chosen)
    return np.array(sums), np.array([edit.score for row in rows for edit in chosen[id(row)]])


def fit(features: np.ndarray, is_right: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Logistic regression by Newton's method: (E, F), (E,), (E,) -> F weights and the bias."""
    mean, scale = features.mean(0), features.std(0) + 1e-6
    scaled = np.c_[(features - mean) / scale, np.ones(len(features))]
    weights = np.zeros(scaled.shape[1])
    penalty = np.r_[np.full(features.shape[1], PENALTY), 1e-6]
    for _ in range(ITERATIONS):
        probs = 1 / (1 + np.exp(-np.clip(scaled @ weights, -30, 30)))
        gradient = scaled.T @ (importance * (probs - is_right)) + penalty * weights
        curvature = (scaled * (importance * probs * (1 - probs))[:, None]).T @ scaled + np.diag(penalty)
        weights -= np.linalg.solve(curvature, gradient)
    slopes = weights[:-1] / scale
    return np.r_[slopes, weights[-1] - slopes @ mean]


if __name__ == "__main__":
    main()
