"""Where the command line prints: results to stdout, messages to stderr."""

import os
import sys
import warnings
from collections.abc import Callable


def write(line: str) -> None:
    """Print a result."""
    print(line, flush=True)


def say(message: str) -> None:
    """Print a message, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"pinyin-llm: {message}", file=sys.stderr)


def report_errors(command: Callable[[], int]) -> int:
    """Run a command; warnings, and errors that a file or an argument causes, become one line each; the exit code.

    Errors of the program itself keep their traceback.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)  # a training step may repeat one for hours
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            return command()
        except BrokenPipeError:  # the reader of our output closed it, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            if not _is_of_input(error):
                raise
            say(f"error: {' '.join(str(error).split())}")
            return 2


def _is_of_input(error: Exception) -> bool:
    """Whether a file or an argument is at fault; the libraries that read them have exceptions of their own."""
    if isinstance(error, (ImportError, OSError, ValueError)):
        return True
    from datasets.exceptions import DatasetsError
    from safetensors import SafetensorError
    from yaml import YAMLError

    return isinstance(error, (DatasetsError, SafetensorError, YAMLError))
