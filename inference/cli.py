"""The command line `pinyin-llm`: subcommands, flags and exit codes. The work is in commands.py.

Results go to stdout, messages to stderr. Exit codes: 0 all done, 1 some inputs failed, 2 bad usage or nothing done,
130 interrupted.
"""

import argparse
import gc
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version

from .console import report_errors


TRANSCRIBE_EXAMPLES = """examples:
  pinyin-llm transcribe talk.wav
  pinyin-llm transcribe talk.mp3 --format srt > talk.srt
  pinyin-llm transcribe rounds.wav --text hospital.txt  # words of the subject, names
  pinyin-llm transcribe clips/ --second_opinion other.tsv  # with the transcripts of another recogniser
  pinyin-llm transcribe recordings/ -o texts/           # run it again to resume after an interruption
  pinyin-llm transcribe 'day*/*.flac' --format tsv | pinyin-llm score references.tsv /dev/stdin"""
CONVERT_EXAMPLES = """examples:
  pinyin-llm convert "jin1 tian1 tian1 qi4 hen3 hao3"
  pinyin-llm convert < lines_of_pinyin.txt"""
PINYIN_EXAMPLES = """examples:
  pinyin-llm pinyin 银行行长                 # yin2 hang2 hang2 zhang3
  pinyin-llm pinyin --style accented < lines.txt
  pinyin-llm pinyin --style toneless --drop_other 你好，世界 | pinyin-llm convert"""
CORRECT_EXAMPLES = """examples:
  pinyin-llm correct whisper.tsv --diff        # what would change
  pinyin-llm correct talk.srt > corrected.srt  # times and everything but Han characters stay
  some-recogniser talk.wav | pinyin-llm correct"""
PUBLISH_EXAMPLES = """examples:
  pinyin-llm publish my-model me/my-model --dry_run
  pinyin-llm publish my-model me/my-model --public"""
SERVE_EXAMPLES = """example:
  pinyin-llm serve &
  curl -F file=@talk.wav -F model=mini http://127.0.0.1:8000/v1/audio/transcriptions"""

DTYPES = ("float32", "bfloat16", "float16", "auto")
BASES = ("whisper_base", "han_llama", "text_decoder", "pretrained_llm", "random_bases")
# Subcommands that are modules with a parser of their own: module, and what it does.
MODULES = {
    "bulk": ("bulk", "transcribe whole corpora on one machine or a Ray cluster"),
    "count_ngrams": ("training.count_ngrams", "count the n-grams of a text for a model"),
    "recognized_pinyin": ("training.recognized_pinyin", "record how a bridge recognises clips, as noise for stage 1"),
    "base": ("bases", f"make a base model: {', '.join(BASES)}"),
    "release": ("publishing.release", "prepare a trained model for release"),
    "paper_table": ("experiments.paper_table", "train and test every row of the paper's table"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in MODULES:
        return report_errors(lambda: _run_module(*words))
    arguments = _parser().parse_args(words)
    # torch and transformers are a million objects that stay; to walk them took 0.6 s of the import's 2.8.
    gc.disable()
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # file names may be any bytes
    try:
        from . import commands  # late, so that --help answers at once

        return report_errors(lambda: getattr(commands, arguments.command)(arguments))
    finally:
        gc.enable()


def _run_module(name: str, *words: str) -> int:
    """Hand the remaining words to the module of a subcommand."""
    module, words = MODULES[name][0], list(words)
    if name == "base":
        if words and words[0] in ("-h", "--help"):
            print(f"usage: pinyin-llm base NAME [flags of NAME]\n\nNAME is one of {', '.join(BASES)}.")
            return 0
        if not words or words[0] not in BASES:
            found = words[0] if words else "nothing"
            raise ValueError(f"base: expected one of {', '.join(BASES)}, found {found}.")
        module += f".{words[0]}"
        name += f" {words.pop(0)}"
    sys.argv[0] = f"pinyin-llm {name}"  # the name in its usage message
    package = __package__.rpartition(".")[0]
    return import_module(f"{package}.{module}").main(words)


def _parser() -> argparse.ArgumentParser:
    others = "\n".join(f"  {name:<19} {about}" for name, (_, about) in MODULES.items())
    raw = argparse.RawDescriptionHelpFormatter  # examples keep their lines
    parser = argparse.ArgumentParser(
        prog="pinyin-llm",
        description="Mandarin speech and pinyin to characters.",
        epilog=f"for training and research (each with --help of its own):\n{others}",
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"pinyin-llm {version('pinyin-llm')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_parser = partial(commands.add_parser, formatter_class=raw)
    for add in (_add_transcribe, _add_convert, _add_correct, _add_pinyin, _add_score, _add_info):
        add(add_parser)
    for add in (_add_demo, _add_serve, _add_publish):
        add(add_parser)
    return parser


def _add_transcribe(add: Callable) -> None:
    parser = add("transcribe", help="sound files to text", epilog=TRANSCRIBE_EXAMPLES)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="wav, flac, mp3, ogg; folders; patterns like 'a/*.wav'"
    )
    parser.add_argument("--format", choices=("txt", "srt", "vtt", "tsv", "json"), default="txt", help="default: txt")
    parser.add_argument("-o", "--output", metavar="DIR", help="one file per sound in DIR; existing ones are kept")
    parser.add_argument("--batch_size", type=_positive, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--alternatives", type=_positive, default=1, metavar="N", help="the N best texts, in json")
    parser.add_argument(
        "--recognizers", metavar="NAMES", type=lambda names: names.split(","), help="bridge, or bridge,whisper combined"
    )
    parser.add_argument(
        "--second_opinion", metavar="FILE.tsv", help="transcripts by another recogniser (file TAB text), to be combined"
    )
    _add_model(parser)
    parser.set_defaults(command="transcribe_files")


def _add_convert(add: Callable) -> None:
    parser = add("convert", help="pinyin to text", epilog=CONVERT_EXAMPLES)
    parser.add_argument("lines", nargs="*", metavar="PINYIN", help='"ni3 hao3", "ni hao", "nǐ hǎo"; default: stdin')
    _add_model(parser)
    parser.set_defaults(command="convert")


def _add_correct(add: Callable) -> None:
    parser = add("correct", help="correct recognised text, using its pinyin", epilog=CORRECT_EXAMPLES)
    parser.add_argument("files", nargs="*", metavar="FILE", help="txt, tsv, srt or vtt in UTF-8; default: stdin")
    parser.add_argument("-o", "--output", metavar="DIR", help="write a corrected file of the same name to DIR for each")
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="X",
        help="preference for the given text: 0 weak, 2 strong; default: 1",
    )
    parser.add_argument("--simplified", action="store_true", help="write traditional text in simplified characters")
    parser.add_argument("--batch_size", type=_positive, default=32, metavar="N", help="default: %(default)s")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one object per line of text, with each change")
    form.add_argument("--diff", action="store_true", help="print only changed lines, with the changes marked")
    _add_model(parser, with_beams=False)
    parser.set_defaults(command="correct_files")


def _add_pinyin(add: Callable) -> None:
    parser = add("pinyin", help="text to pinyin, one line per line", epilog=PINYIN_EXAMPLES)
    parser.add_argument("lines", nargs="*", metavar="TEXT", help="default: stdin")
    parser.add_argument(
        "--style", choices=("toned", "toneless", "accented"), default="toned", help="hao3, hao or hǎo; default: toned"
    )
    parser.add_argument("--drop_other", action="store_true", help="leave out everything but Han characters")
    parser.set_defaults(command="write_pinyin")


def _add_model(parser: argparse.ArgumentParser, with_beams: bool = True) -> None:
    parser.add_argument("--model", metavar="DIR|ID", help="folder or Hub id; default: the mini model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: what is fast on this machine")
    parser.add_argument(
        "--text", metavar="FILE", help="text of the subject, or a list of names, to be preferred among homophones"
    )
    if with_beams:
        parser.add_argument("--num_beams", type=_positive, default=5, metavar="N", help="default: %(default)s")


def _add_score(add: Callable) -> None:
    parser = add("score", help="character error rate of texts against references")
    parser.add_argument("references", metavar="REF.tsv", help="file TAB text, with or without a header")
    parser.add_argument("hypotheses", metavar="HYP.tsv", help="the same, as `transcribe --format tsv` writes it")
    parser.add_argument("--each", action="store_true", help="also every file with its reference, text and error rate")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")
    parser.set_defaults(command="print_score")


def _add_info(add: Callable) -> None:
    parser = add("info", help="parameters and bytes of a model by part; no weights are read")
    parser.add_argument("--model", metavar="DIR|ID", help="default: full size, Whisper-large-v3 and LLaMA2-7b")
    parser.set_defaults(command="print_info")


def _add_demo(add: Callable) -> None:
    parser = add("demo", help="a page in the browser: speech and pinyin to text")
    _add_model(parser, with_beams=False)
    _add_address(parser, 7860)
    parser.set_defaults(command="launch_demo")


def _add_serve(add: Callable) -> None:
    parser = add("serve", help="a server with OpenAI's /v1/audio/transcriptions", epilog=SERVE_EXAMPLES)
    _add_model(parser, with_beams=False)
    _add_address(parser, 8000)
    parser.add_argument(
        "--batch_size", type=_positive, default=32, metavar="N", help="requests at once; default: %(default)s"
    )
    parser.add_argument(
        "--queue", type=_positive, default=64, metavar="N", help="waiting before 503; default: %(default)s"
    )
    parser.set_defaults(command="run_server")


def _add_publish(add: Callable) -> None:
    parser = add("publish", help="a model folder to the Hugging Face Hub", epilog=PUBLISH_EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", help="as the training scripts or save_pretrained write it")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    parser.add_argument("--merge", action="store_true", help="of a delta: publish the whole model")
    parser.add_argument("--delta", action="store_true", help="only the trained weights; the bases stay where they are")
    parser.add_argument("--public", action="store_true", help="visible to everybody; private otherwise")
    parser.add_argument("--dry_run", action="store_true", help="assemble and check, list the files, upload nothing")
    parser.set_defaults(command="publish_folder")


def _add_address(parser: argparse.ArgumentParser, port: int) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines; default: %(default)s")
    parser.add_argument("--port", type=_positive, default=port, help="default: %(default)s")


def _positive(number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {number!r}")
    return int(number)


if __name__ == "__main__":
    sys.exit(main())
