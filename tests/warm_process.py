"""Processes that start warm: torch and transformers are imported once, and every script runs in a fork of that process.

To import them takes some five seconds of a core, and the tests start dozens of processes. Forks share nothing else:
each has its own `__main__`, arguments, folder, environment and output. pinyin_llm is not imported before the fork, so a
script may hide it. What libraries read from the environment when they are imported (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE) is the same for all forks of one [`WarmProcess`].
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


PRELOADED = """
import torch
import soundfile
import peft
import datasets
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers import HfArgumentParser, Seq2SeqTrainer, Trainer, pipeline
from transformers import LlamaForCausalLM, WhisperFeatureExtractor, WhisperModel
"""


@dataclass
class Fork:
    """A script under way."""

    server: "WarmProcess"
    pid: int
    output: Path
    ended: subprocess.CompletedProcess | None = None

    def wait(self) -> subprocess.CompletedProcess:
        """Its exit code (of a signal: negative), stdout and stderr, once it has ended."""
        if self.ended is None:
            code = self.server.ask(wait=self.pid)
            texts = [self.output.with_suffix(suffix).read_text("utf-8") for suffix in (".out", ".err")]
            self.ended = subprocess.CompletedProcess(self.pid, code, *texts)
        return self.ended

    def kill(self, signal: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.ended is None:
            os.kill(self.pid, signal)


class WarmProcess:
    """A process that forks at once.

    Args:
        folder: For the outputs of the forks and for their HF_HOME.
        environment: Variables of all forks.
    """

    def __init__(self, folder: Path, **environment: str):
        self.folder, self.home, self.number = folder, folder / "home", 0
        own = {"HF_HOME": str(self.home), "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=os.environ | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request) -> int:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError("The warm process has ended.")
        return int(answer)

    def clear_home(self) -> None:
        """Empty the caches, as on a machine that meets the Hub for the first time."""
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self, code: str | Path, *arguments, folder: Path | str = ".", **environment: str) -> Fork:
        """Run a script, as text or from a file, with its arguments."""
        self.number += 1
        output = self.folder / str(self.number)
        path = code if isinstance(code, Path) else output.with_suffix(".py")
        if path is not code:
            path.write_text(code, encoding="utf-8")
        for suffix in (".out", ".err"):
            Path(f"{output}{suffix}").touch()
        words = list(map(str, (path, *arguments)))
        request = {"argv": words, "folder": str(Path(folder).resolve()), "output": str(output)}
        # As for `python -c` and `python FILE`: modules come from the current folder or from that of the file.
        request["imports"] = str(path.parent) if path is code else ""
        return Fork(self, self.ask(**request, environment=environment), output)

    def run(self, code: str | Path, *arguments, **options) -> subprocess.CompletedProcess:
        """Run a script to its end."""
        return self.start(code, *arguments, **options).wait()

    def close(self) -> None:
        """End the process; forks go on."""
        self.process.stdin.close()
        self.process.wait(60)


def serve() -> dict | None:
    """Answer requests until there are no more; returns in a fork, with the request of the script that it is to run."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            answers.close()
            return request
        print(answer, file=answers, flush=True)
    return None


def become(request: dict) -> dict:
    """Give the fork its arguments, folder, environment and output; returns the namespace of its `__main__`."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        with open(request["output"] + suffix, "w") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    sys.path[0] = request["imports"]
    module = type(sys)("__main__")
    module.__file__ = sys.argv[0]
    sys.modules["__main__"] = module
    return vars(module)


if __name__ == "__main__":
    exec(PRELOADED)
    if script := serve():
        exec(compile(Path(script["argv"][0]).read_text("utf-8"), script["argv"][0], "exec"), become(script))
