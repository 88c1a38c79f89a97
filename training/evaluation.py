"""How a model is evaluated while it trains: rows of text are converted, clips are transcribed, both are scored."""

import csv
from itertools import islice
from pathlib import Path

from ..audio_pinyin_llm import load_waveform
from ..corpora.manifest import ManifestError, read_manifest
from ..scoring.cer import read_lines, score, score_syllables
from ..tokenization_pinyin_llm import PinyinError
from ..transcription_pinyin_llm import convert_pinyin, recognize_pinyin, transcribe_clips
from .arguments import SpeechArguments
from .trainer import Evaluation


PAIR_COLUMNS = ("text", "toned", "toneless")
SHOWN_PER_SET = 2


def text_evaluation(processor, files: list[str], rows: int) -> Evaluation:
    """An evaluation that converts the first `rows` lines of each file, toned and toneless.

    Raises:
        ValueError: A file without the columns text, toned and toneless, or a line without them in pinyin.
    """
    lines = []
    for file in files:
        table = csv.DictReader(read_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
        if missing := set(PAIR_COLUMNS) - set(table.fieldnames or ()):
            raise ValueError(f"{file}: expected the columns text, toned and toneless, found no {', '.join(missing)}.")
        for line in islice(table, rows):
            _check_line(file, table.line_num, line, processor.pinyin_tokenizer)
            lines.append(line)

    def evaluate(model):
        if not lines:
            return {}, []
        references = [line["text"] for line in lines]
        metrics = {}
        for kind in ("toneless", "toned"):
            hypotheses = convert_pinyin(model, processor, [line[kind] for line in lines])
            metrics[f"{kind}_cer"] = score(references, hypotheses)["cer"]
        return metrics, list(zip(references, hypotheses, strict=True))

    return evaluate


def _check_line(file: str, number: int, line: dict, pinyin_tokenizer) -> None:
    """Refuse now what would fail when the first evaluation comes, perhaps hours from now."""
    if not all(line[name] for name in PAIR_COLUMNS):
        raise ValueError(f"{file}, line {number}: expected text, toned and toneless pinyin, found an empty cell.")
    try:
        for name in PAIR_COLUMNS[1:]:
            pinyin_tokenizer.encode_syllables(line[name])
    except PinyinError as error:
        raise ValueError(f"{file}, line {number}: {error}") from error


def speech_evaluation(processor, arguments: SpeechArguments, rows: int) -> Evaluation:
    """An evaluation that transcribes the first `rows` clips of each manifest, and scores characters and syllables."""
    sets = {}
    for path in arguments.eval_manifests:
        table = read_manifest(path)[:rows]
        if not any(table["text"]):
            raise ManifestError(f"{path}: expected clips with texts, found {len(table['text'])} rows without.")
        name = f"{Path(path).parent.name}_{Path(path).stem}"
        sets[name] = (table["text"], [load_waveform(file) for file in table["audio"]])

    def evaluate(model):
        metrics, samples = {}, []
        for name, (references, clips) in sets.items():
            if model.config.projector_type == "pinyin_bridge":
                recognized = recognize_pinyin(model, processor, clips)
                rates = score_syllables(references, recognized)
                metrics |= {f"{name}_{kind}": rate for kind, rate in rates.items()}
            if arguments.learn == "text":
                hypotheses = transcribe_clips(model, processor, clips)
                metrics[f"{name}_cer"] = score(references, hypotheses)["cer"]
                samples += list(zip(references, hypotheses, strict=True))[:SHOWN_PER_SET]
        return metrics, samples

    return evaluate
