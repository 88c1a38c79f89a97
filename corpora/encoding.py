"""Text that is not UTF-8: told apart and named, so that it can be converted."""

from pathlib import Path


SAMPLE_BYTES = 2**16


def is_utf8(sample: bytes) -> bool:
    """Whether the beginning of a file is UTF-8, apart from a few damaged bytes."""
    text = sample.decode("utf-8", errors="replace")
    damaged, foreign = text.count("\ufffd"), sum(not character.isascii() for character in text)
    return "\0" not in text and (not damaged or 2 * damaged < foreign)


def describe_encoding(path: str | Path, sample: bytes | None = None) -> str:
    """A message that refuses `path`, with the encoding that it probably has and the command that converts it.

    Args:
        sample: Its first bytes, if they have been read already.
    """
    from charset_normalizer import from_bytes

    if sample is None:
        with Path(path).open("rb") as stream:
            sample = stream.read(SAMPLE_BYTES)
    best = from_bytes(sample).best()
    if best is None or best.encoding in ("ascii", "utf_8"):
        return f"{path}: expected text in UTF-8, found other bytes. Convert it with iconv."
    name = best.encoding.replace("_", "-").upper()
    return f"{path}: expected text in UTF-8, found {name} or the like. Convert it: iconv -f {name} -t UTF-8"
