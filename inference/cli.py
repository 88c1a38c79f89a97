"""pinyin-llm transcribe | convert | score | publish | demo | serve | info: flags and exit codes; the work is elsewhere.

Results go to stdout, talk to stderr. Exit codes: 0 all done, 1 some inputs failed, 2 bad usage or nothing done.
"""

import argparse
import gc
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec


TRANSCRIBE_EXAMPLES = """examples:
  pinyin-llm transcribe talk.wav
  pinyin-llm transcribe talk.mp3 --format srt > talk.srt
  pinyin-llm transcribe rounds.wav --text hospital.txt  # words of the subject, names
  pinyin-llm transcribe recordings/ -o texts/           # given again, it goes on where it stopped
  pinyin-llm transcribe 'day*/*.flac' --format tsv | pinyin-llm score references.tsv /dev/stdin"""
CONVERT_EXAMPLES = """examples:
  pinyin-llm convert "jin1 tian1 tian1 qi4 hen3 hao3"
  pinyin-llm convert < lines_of_pinyin.txt"""
PUBLISH_EXAMPLES = """examples:
  pinyin-llm publish my-model me/my-model --dry_run
  pinyin-llm publish my-model me/my-model --public"""
SERVE_EXAMPLES = """example:
  pinyin-llm serve &
  curl -F file=@talk.wav -F model=mini http://127.0.0.1:8000/v1/audio/transcriptions"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    gc.disable()  # torch and transformers are a million objects that stay; to walk them took 0.6 s of the import's 2.8
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
        except (ImportError, OSError, ValueError) as error:
            _say(f"error: {error}")
            return 2
        finally:
            gc.enable()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pinyin-llm", description="Mandarin speech and pinyin to characters.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # the examples keep their lines
    add_parser = partial(commands.add_parser, formatter_class=argparse.RawDescriptionHelpFormatter)
    for add in (_add_transcribe, _add_convert, _add_score, _add_publish, _add_demo, _add_serve, _add_info):
        add(add_parser)
    return parser


def _add_transcribe(add: Callable) -> None:
    parser = add("transcribe", help="sound files to text", epilog=TRANSCRIBE_EXAMPLES)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="wav, flac, mp3, ogg; folders; patterns like 'a/*.wav'"
    )
    parser.add_argument("--format", choices=("txt", "srt", "vtt", "tsv", "json"), default="txt", help="default: txt")
    parser.add_argument("-o", "--output", metavar="DIR", help="a file each in DIR; those that are there are not redone")
    parser.add_argument("--batch_size", type=_positive, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--alternatives", type=_positive, default=1, metavar="N", help="the N best texts, in json")
    _add_model(parser)
    parser.set_defaults(command=_transcribe)


def _add_convert(add: Callable) -> None:
    parser = add("convert", help="pinyin to text", epilog=CONVERT_EXAMPLES)
    parser.add_argument("lines", nargs="*", metavar="PINYIN", help='"ni3 hao3", "ni hao", "nǐ hǎo"; default: stdin')
    _add_model(parser)
    parser.set_defaults(command=_convert)


def _add_model(parser: argparse.ArgumentParser, beams: bool = True) -> None:
    parser.add_argument("--model", metavar="DIR|ID", help="folder or Hub id; default: the mini model")
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="text of the subject, or a list of names: written rather than others that sound so",
    )
    if beams:
        parser.add_argument("--num_beams", type=_positive, default=5, metavar="N", help="default: %(default)s")


def _add_score(add: Callable) -> None:
    parser = add("score", help="character error rate of texts against references")
    parser.add_argument("references", metavar="REF.tsv", help="file TAB text, with or without a header")
    parser.add_argument("hypotheses", metavar="HYP.tsv", help="the same, as `transcribe --format tsv` writes it")
    parser.add_argument(
        "--each", action="store_true", help="every file with its reference, text and error rate as well"
    )
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")
    parser.set_defaults(command=_score)


def _add_publish(add: Callable) -> None:
    parser = add("publish", help="a model folder to the Hugging Face Hub", epilog=PUBLISH_EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", help="as the training scripts or save_pretrained leave it")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    parser.add_argument("--merge", action="store_true", help="of a delta: publish the whole model")
    parser.add_argument("--delta", action="store_true", help="only what was learned; the bases stay where they are")
    parser.add_argument("--public", action="store_true", help="for everybody to see; private otherwise")
    parser.add_argument("--dry_run", action="store_true", help="assemble and check, list what would go, upload nothing")
    parser.set_defaults(command=_publish)


def _add_demo(add: Callable) -> None:
    parser = add("demo", help="a page in the browser: speech and pinyin to text")
    _add_model(parser, beams=False)
    _add_address(parser, 7860)
    parser.set_defaults(command=_demo)


def _add_serve(add: Callable) -> None:
    parser = add("serve", help="a server with OpenAI's /v1/audio/transcriptions", epilog=SERVE_EXAMPLES)
    _add_model(parser, beams=False)
    _add_address(parser, 8000)
    parser.add_argument("--batch_size", type=_positive, default=32, metavar="N", help="requests at once; %(default)s")
    parser.add_argument("--queue", type=_positive, default=64, metavar="N", help="waiting before 503; %(default)s")
    parser.set_defaults(command=_serve)


def _add_info(add: Callable) -> None:
    parser = add("info", help="parameters and bytes of a model by part; no weight is read")
    parser.add_argument("--model", metavar="DIR|ID", help="default: full size, Whisper-large-v3 and LLaMA2-7b")
    parser.set_defaults(command=_info)


def _add_address(parser: argparse.ArgumentParser, port: int) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines; default: %(default)s")
    parser.add_argument("--port", type=_positive, default=port, help="default: %(default)s")


def _positive(number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {number!r}")
    return int(number)


def _transcribe(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..audio_pinyin_llm import seconds_of
    from ..pipeline_pinyin_llm import transcribe
    from ..transcript_pinyin_llm import FORMATS, as_dict
    from .files import find_done, find_sounds, note_source, plan_outputs, write_whole

    sounds = find_sounds(arguments.files)
    if arguments.format in ("srt", "vtt") and len(sounds) > 1 and not arguments.output:
        raise ValueError(f"{len(sounds)} sounds do not fit into one {arguments.format} file. Add -o DIR.")
    if arguments.alternatives > 1 and arguments.format != "json":
        raise ValueError(f"{arguments.format} has one text a sound. Add --format json for --alternatives.")
    targets = plan_outputs(sounds, arguments.output, arguments.format) if arguments.output else {}
    if done := find_done(targets, arguments.output) if targets else set():
        _say(f"{len(done)} of {len(sounds)} are there already. Remove them from {arguments.output} to redo them.")
    missing = [sound for sound in sounds if sound not in done]
    if not missing:
        return 0
    model, processor = _load(arguments)
    rows: list[dict] = []  # json on stdout is one list

    def show(transcript) -> None:
        if arguments.output:
            if not transcript.error:
                target = targets[transcript.source]
                try:
                    write_whole(target, FORMATS[arguments.format](transcript))
                    note_source(transcript.source, target, arguments.output)
                except OSError as error:  # the others go on
                    transcript.error = error
        elif arguments.format == "json":
            rows.append(as_dict(transcript))
        else:
            _write(FORMATS[arguments.format](transcript).removesuffix("\n"))

    with tqdm(total=sum(map(seconds_of, missing)), unit="s", unit_scale=True, disable=None) as bar:
        options = {"num_beams": arguments.num_beams, "num_return_sequences": arguments.alternatives}
        results = transcribe(model, processor, missing, arguments.batch_size, on_progress=bar.update, **options)
        try:
            return _show_all(results, show)
        finally:  # what is written down is not lost to what comes after it
            if rows:
                _write(json.dumps(rows, ensure_ascii=False, indent=2))


def _convert(arguments: argparse.Namespace) -> int:
    model, processor = _load(arguments)
    from .files import convert_lines

    lines, batch_size = arguments.lines, 32
    if not lines:
        lines = sys.stdin
        lines.reconfigure(encoding="utf-8-sig", errors="replace")
        batch_size = 1 if lines.isatty() else batch_size  # who types wants each answer at once
    results = convert_lines(model, processor, lines, batch_size, num_beams=arguments.num_beams)
    return _show_all(results, lambda result: _write(result.text))


def _score(arguments: argparse.Namespace) -> int:
    from ..scoring.cer import pair_texts, read_texts, score, score_each

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


def _publish(arguments: argparse.Namespace) -> int:
    from ..publishing.publish import publish

    options = {"merge": arguments.merge, "delta": arguments.delta, "private": not arguments.public}
    for line in publish(arguments.folder, arguments.repo_id, dry_run=arguments.dry_run, **options):
        _write(line)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    _need("gradio", "demo")
    model, processor = _load(arguments)
    from ..pipeline_pinyin_llm import PinyinLlamaPipeline
    from .demo import launch

    launch(PinyinLlamaPipeline(model, processor=processor), arguments.host, arguments.port)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    _need("fastapi", "serve")
    model, processor = _load(arguments)
    from .server import serve

    return serve(model, processor, arguments.host, arguments.port, arguments.batch_size, arguments.queue)


def _info(arguments: argparse.Namespace) -> int:
    from .. import PinyinLlamaConfig
    from ..training.estimate import build_on_meta, count_parameters

    config = PinyinLlamaConfig.from_pretrained(arguments.model) if arguments.model else PinyinLlamaConfig()
    counts = {part: count for part, (count, _) in count_parameters(build_on_meta(config)).items()}
    _write(f"{'part':<24}{'parameters':>16}{'GB in bfloat16':>16}")
    for part, count in (counts | {"all": sum(counts.values())}).items():
        _write(f"{part:<24}{count:>16,}{2 * count / 1e9:>16.3f}")
    return 0


def _need(package: str, extra: str) -> None:
    """Refuse a command whose packages are not installed, before the model is loaded."""
    if find_spec(package) is None:
        raise ValueError(f"`pinyin-llm {extra}` needs {package}: pip install 'pinyin-llm[{extra}]'.")


def _number(rate: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(rate) else rate


def _load(arguments: argparse.Namespace) -> tuple:
    """The model and processor of `--model` with the words of `--text`; transformers' own talk is turned down."""
    from transformers.utils import logging

    from .files import MINI_MODEL, load_model, read_words

    if arguments.text and getattr(arguments, "num_beams", None) == 1:
        raise ValueError("--text is heard where beams are searched. Leave --num_beams out, or give 2 or more.")

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = load_model(arguments.model or MINI_MODEL)
    if arguments.text:
        read_words(processor, arguments.text)
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
                _say(f"error: {result.error}")
            failed, done = failed + bool(result.error), done + (not result.error)
    except OutOfMemoryError:
        _say("error: the GPU's memory is full. Give fewer --num_beams, or of sounds a smaller --batch_size.")
        failed += 1
    return 0 if not failed else 1 if done else 2


def _write(line: str) -> None:
    print(line, flush=True)


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"pinyin-llm: {message}", file=sys.stderr)  # above the progress bar, if there is one


if __name__ == "__main__":
    sys.exit(main())
