"""The subcommands of `pinyin-llm`: each takes its parsed arguments and returns an exit code."""

import argparse
import gc
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import groupby

from .console import say, write


def transcribe_files(arguments: argparse.Namespace) -> int:
    """Sound files -> transcripts on stdout, or one file per sound."""
    from tqdm import tqdm

    from ..audio_pinyin_llm import seconds_of
    from ..transcript_pinyin_llm import FORMATS, as_dict
    from ..transcription_pinyin_llm import transcribe
    from .files import find_done, find_sounds, match_texts, note_source, plan_outputs, write_whole

    sounds = find_sounds(arguments.files)
    if arguments.format in ("srt", "vtt") and len(sounds) > 1 and not arguments.output:
        raise ValueError(f"{len(sounds)} sounds do not fit into one {arguments.format} file. Add -o DIR.")
    if arguments.alternatives > 1 and arguments.format != "json":
        raise ValueError(f"{arguments.format} has one text per sound. Add --format json for --alternatives.")
    targets = plan_outputs(sounds, arguments.output, arguments.format) if arguments.output else {}
    if done := find_done(targets, arguments.output) if targets else set():
        say(f"{len(done)} of {len(sounds)} are there already. Remove them from {arguments.output} to redo them.")
    missing = [sound for sound in sounds if sound not in done]
    if not missing:
        return 0
    opinions = match_texts(missing, arguments.second_opinion) if arguments.second_opinion else None
    model, processor = _load(arguments)
    if arguments.recognizers:
        model.config.check_recognizers(arguments.recognizers)
    rows: list[dict] = []  # json on stdout is one list

    def show(transcript) -> None:
        if arguments.output:
            if not transcript.error:
                target = targets[transcript.source]
                try:
                    write_whole(target, FORMATS[arguments.format](transcript))
                    note_source(transcript.source, target, arguments.output)
                except OSError as error:  # the other sounds are still transcribed
                    transcript.error = error
        elif arguments.format == "json":
            rows.append(as_dict(transcript))
        else:
            write(FORMATS[arguments.format](transcript).removesuffix("\n"))

    with tqdm(total=sum(map(seconds_of, missing)), unit="s", unit_scale=True, disable=None) as bar:
        options = {"num_beams": arguments.num_beams, "num_return_sequences": arguments.alternatives}
        options |= {"recognizers": arguments.recognizers, "second_opinions": opinions}
        results = transcribe(model, processor, missing, arguments.batch_size, on_progress=bar.update, **options)
        try:
            return _show_all(results, show)
        finally:  # keep earlier results if a later sound fails
            if rows:
                write(json.dumps(rows, ensure_ascii=False, indent=2))


def convert(arguments: argparse.Namespace) -> int:
    """Lines of pinyin -> lines of characters."""
    model, processor = _load(arguments)
    from .files import convert_lines

    lines, is_typed = _lines(arguments)
    batch_size = 1 if is_typed else 32  # someone who types wants each answer at once
    results = convert_lines(model, processor, lines, batch_size, num_beams=arguments.num_beams)
    return _show_all(results, lambda result: write(result.text))


def correct_files(arguments: argparse.Namespace) -> int:
    """Recognised text -> corrected text in the same form."""
    from ..correction.files import FORMS, LINES_AT_ONCE, correct_lines, correct_parts, cut, read_parts
    from .files import plan_corrections, write_whole

    if len(arguments.files) > 1 and not arguments.output:
        raise ValueError(f"{len(arguments.files)} files do not fit on stdout. Add -o DIR.")
    if arguments.output and not arguments.files:
        raise ValueError("-o needs files. Redirect stdout instead.")
    targets = plan_corrections(arguments.files, arguments.output) if arguments.output else {}
    form = next((name for name in ("json", "diff") if getattr(arguments, name)), "text")
    documents = {file: read_parts(file) for file in arguments.files}  # bad files are named before the model is loaded
    model, processor = _load(arguments)
    options = {name: getattr(arguments, name) for name in ("strength", "batch_size", "simplified")}
    if not documents and form == "text":
        lines, is_typed = _lines(arguments)
        for text in correct_lines(model, processor, lines, 1 if is_typed else LINES_AT_ONCE, **options):
            sys.stdout.write(text)
            sys.stdout.flush()
        return 0
    documents = documents or {"stdin.txt": list(cut(_lines(arguments)[0].read(), "txt"))}
    for file, parts in documents.items():
        text = FORMS[form](correct_parts(model, processor, parts, **options))
        if arguments.output:
            write_whole(targets[file], text)
        else:
            sys.stdout.write(text)
    return 0


def write_pinyin(arguments: argparse.Namespace) -> int:
    """Lines of text -> lines of pinyin."""
    from ..tokenization_pinyin_llm import PinyinTokenizer

    tokenizer = PinyinTokenizer.from_file()
    spell = {"toned": str, "toneless": lambda unit: unit[:-1], "accented": tokenizer.accented}[arguments.style]
    for line in _lines(arguments)[0]:
        characters, ids = tokenizer.encode_characters(line.strip(), errors="keep")
        words = []
        for is_other, run in groupby(zip(characters, ids, strict=True), lambda pair: pair[1] is None):
            if not is_other:
                words += [spell(tokenizer.units[unit]) for _, unit in run]
            elif not arguments.drop_other:
                words += "".join(character for character, _ in run).split()
        write(" ".join(words))
    return 0


def print_score(arguments: argparse.Namespace) -> int:
    """Texts against references -> their character error rate."""
    from ..scoring.cer import pair_texts, read_texts, score, score_each

    references = read_texts(arguments.references)
    spoken, texts = pair_texts(references, read_texts(arguments.hypotheses))
    total = score(spoken, texts)
    rows = list(zip(references, spoken, texts, score_each(spoken, texts), strict=True)) if arguments.each else []
    if arguments.json:
        each = [{"file": file, "reference": a, "text": b, "cer": _number(cer)} for file, a, b, cer in rows]
        write(json.dumps(total.to_dict() | ({"each": each} if each else {}), ensure_ascii=False))
        return 0
    for file, reference, text, cer in rows:
        write(f"{file}\t{reference}\t{text}\t{cer:.1%}")
    write(str(total))
    return 0


def print_info(arguments: argparse.Namespace) -> int:
    """Parameters and bytes of a model by part."""
    from .. import PinyinLlamaConfig
    from ..training.estimate import build_on_meta, count_parameters

    config = PinyinLlamaConfig.from_pretrained(arguments.model) if arguments.model else PinyinLlamaConfig()
    counts = {part: count for part, (count, _) in count_parameters(build_on_meta(config)).items()}
    write(f"{'part':<24}{'parameters':>16}{'GB in bfloat16':>16}")
    for part, count in (counts | {"all": sum(counts.values())}).items():
        write(f"{part:<24}{count:>16,}{2 * count / 1e9:>16.3f}")
    return 0


def launch_demo(arguments: argparse.Namespace) -> int:
    """The page in the browser, until it is stopped."""
    _require("gradio", "demo")
    model, processor = _load(arguments)
    from ..pipeline_pinyin_llm import PinyinLlamaPipeline
    from .demo import launch

    launch(PinyinLlamaPipeline(model, processor=processor), arguments.host, arguments.port)
    return 0


def run_server(arguments: argparse.Namespace) -> int:
    """The server, until it is stopped."""
    _require("fastapi", "serve")
    model, processor = _load(arguments)
    from .server import serve

    return serve(model, processor, arguments.host, arguments.port, arguments.batch_size, arguments.queue)


def publish_folder(arguments: argparse.Namespace) -> int:
    """A model folder -> the Hub."""
    from ..publishing.publish import publish

    options = {"merge": arguments.merge, "delta": arguments.delta, "private": not arguments.public}
    for line in publish(arguments.folder, arguments.repo_id, dry_run=arguments.dry_run, **options):
        write(line)
    return 0


def _lines(arguments: argparse.Namespace) -> tuple[Iterator[str] | list[str], bool]:
    """The lines given, or those of stdin; and whether someone types them."""
    if getattr(arguments, "lines", None):
        return arguments.lines, False
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    return sys.stdin, sys.stdin.isatty()


def _require(package: str, extra: str) -> None:
    """Refuse a command whose packages are not installed, before the model is loaded."""
    if find_spec(package) is None:
        raise ValueError(f"`pinyin-llm {extra}` needs {package}: pip install 'pinyin-llm[{extra}]'.")


def _number(rate: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(rate) else rate


def _load(arguments: argparse.Namespace) -> tuple:
    """The model and processor of `--model`, with the words of `--text`; transformers' own messages are turned down."""
    from transformers.utils import logging

    from .loading import MINI_MODEL, add_subject_text, load_model

    if arguments.text and getattr(arguments, "num_beams", None) == 1:
        raise ValueError("--text needs beam search. Leave --num_beams out, or give 2 or more.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = load_model(arguments.model or MINI_MODEL, arguments.device, arguments.dtype)
    if arguments.text:
        add_subject_text(processor, arguments.text)
    gc.freeze()
    gc.enable()
    return model, processor


def _show_all(results: Iterable, show: Callable) -> int:
    """Show each result as it comes, and its error; the exit code."""
    from torch import OutOfMemoryError

    done = failed = 0
    try:
        for result in results:
            show(result)
            if result.error:
                say(f"error: {result.error}")
            failed, done = failed + bool(result.error), done + (not result.error)
    except OutOfMemoryError:
        say("error: the GPU's memory is full. Use fewer --num_beams, or for sounds a smaller --batch_size.")
        failed += 1
    if not failed:
        return 0
    return 1 if done else 2
