"""pinyin-llm transcribe | convert | score: flags and exit codes; the work is elsewhere.

Results go to stdout, talk to stderr. Exit codes: 0 all done, 1 some inputs failed, 2 bad usage or nothing done.
"""

import argparse
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # file names may be any bytes
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        try:
            return arguments.command(arguments)
        except BrokenPipeError:  # whoever read our output has enough, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            return 130
        except (OSError, ValueError) as error:
            _say(f"error: {error}")
            return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pinyin-llm", description="Mandarin speech and pinyin to characters.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    transcribe = commands.add_parser("transcribe", help="sound files to text")
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="wav, flac, mp3 or ogg of any rate and length")
    transcribe.add_argument("--format", choices=("txt", "tsv", "json"), default="txt", help="default: %(default)s")
    transcribe.add_argument("--batch_size", type=_positive, default=8, metavar="N", help="default: %(default)s")
    transcribe.set_defaults(command=_transcribe)

    convert = commands.add_parser("convert", help="pinyin to text")
    convert.add_argument("lines", nargs="*", metavar="PINYIN", help='"ni3 hao3", "ni hao", "nǐ hǎo"; default: stdin')
    convert.set_defaults(command=_convert)

    for command in (transcribe, convert):
        command.add_argument("--model", metavar="DIR|ID", help="folder or Hub id; default: the mini model")
        command.add_argument("--num_beams", type=_positive, default=3, metavar="N", help="default: %(default)s")

    score = commands.add_parser("score", help="character error rate of texts against references")
    score.add_argument("references", metavar="REF.tsv", help="file TAB text, with or without a header")
    score.add_argument("hypotheses", metavar="HYP.tsv", help="the same, as `transcribe --format tsv` writes it")
    score.add_argument("--each", action="store_true", help="every file with its reference, text and error rate as well")
    score.add_argument("--json", action="store_true", help="the numbers as JSON")
    score.set_defaults(command=_score)
    return parser


def _positive(number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {number!r}")
    return int(number)


def _transcribe(arguments: argparse.Namespace) -> int:
    model, processor = _load(arguments.model)
    from tqdm import tqdm

    from pinyin_llm.audio_pinyin_llm import seconds_of
    from pinyin_llm.transcription import transcribe_files

    rows = []
    show = {
        "txt": lambda result: _write(result.text),
        "tsv": lambda result: _write(f"{_cell(result.source)}\t{result.text}"),
        "json": lambda result: rows.append({"file": result.source, "text": result.text}),
    }[arguments.format]
    with tqdm(total=sum(map(seconds_of, arguments.files)), unit="s", unit_scale=True, disable=None) as bar:
        options = {"num_beams": arguments.num_beams, "on_progress": bar.update}
        results = transcribe_files(model, processor, arguments.files, arguments.batch_size, **options)
        exit_code = _show_all(results, show)
    if arguments.format == "json":
        _write(json.dumps(rows, ensure_ascii=False, indent=2))
    return exit_code


def _convert(arguments: argparse.Namespace) -> int:
    model, processor = _load(arguments.model)
    from pinyin_llm.transcription import convert_lines

    lines, batch_size = arguments.lines, 32
    if not lines:
        lines = sys.stdin
        lines.reconfigure(encoding="utf-8-sig", errors="replace")
        batch_size = 1 if lines.isatty() else batch_size  # who types wants each answer at once
    results = convert_lines(model, processor, lines, batch_size, num_beams=arguments.num_beams)
    return _show_all(results, lambda result: _write(result.text))


def _score(arguments: argparse.Namespace) -> int:
    from pinyin_llm.scoring import pair_texts, read_texts, score, score_each

    references, hypotheses = read_texts(arguments.references), read_texts(arguments.hypotheses)
    said, wrote = pair_texts(references, hypotheses)
    total = score(said, wrote)
    rows = list(zip(references, said, wrote, score_each(said, wrote), strict=True)) if arguments.each else []
    if arguments.json:
        each = [{"file": file, "reference": a, "text": b, "cer": _number(cer)} for file, a, b, cer in rows]
        _write(json.dumps(total.to_dict() | ({"each": each} if each else {}), ensure_ascii=False))
        return 0
    for file, reference, text, cer in rows:
        _write(f"{file}\t{reference}\t{text}\t{cer:.1%}")
    _write(str(total))
    return 0


def _number(rate: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(rate) else rate


def _load(name: str | None) -> tuple:
    """The model and processor of `--model`, with transformers' own talk turned down."""
    from transformers.utils import logging

    from pinyin_llm.transcription import MINI_MODEL, load_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_model(name or MINI_MODEL)


def _show_all(results: Iterable, show: Callable) -> int:
    """Show each result as it comes, and its error; the exit code."""
    done = failed = 0
    for result in results:
        show(result)
        if result.error:
            _say(f"error: {result.error}")
        failed, done = failed + bool(result.error), done + (not result.error)
    return 0 if not failed else 1 if done else 2


def _cell(name: str) -> str:
    """A file name that does not break the table: tabs and line breaks become blanks."""
    cell = re.sub(r"[\t\n\r]", " ", name)
    if cell != name:
        _say(f"warning: {name!r} is written as {cell!r}. Rename the file, or take --format json.")
    return cell


def _write(line: str) -> None:
    print(line, flush=True)


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"pinyin-llm: {message}", file=sys.stderr)  # above the progress bar, if there is one


if __name__ == "__main__":
    sys.exit(main())
