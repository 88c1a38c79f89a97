"""Where the command line prints: results to stdout, messages to stderr."""

import sys


def write(line: str) -> None:
    """Print a result."""
    print(line, flush=True)


def say(message: str) -> None:
    """Print a message, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"pinyin-llm: {message}", file=sys.stderr)
