"""From the start of the process to the text, beside importing and loading the same parts by transformers alone.

    python benchmarks/cold_start.py

The peer imports torch and transformers' Whisper and Llama and loads each from its own folder; it reads no sound and
decodes no text. The two take turns; the ratio is that of their medians.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tabulate import tabulate

from pinyin_llm.inference.loading import MINI_MODEL


SAMPLE = Path(__file__).parents[1] / "samples" / "BAC009S0764W0121.wav"
COMMAND = [sys.executable, "-m", "pinyin_llm.inference.cli"]
PEER = """
import sys, torch
from transformers import LlamaForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder
WhisperEncoder.from_pretrained(sys.argv[1]), LlamaForCausalLM.from_pretrained(sys.argv[2])
"""


def save_parts(folder: str) -> list[str]:
    """The encoder and the language model of the mini model as transformers keeps them; their folders."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from pinyin_llm import PinyinLlamaForASR

    model = PinyinLlamaForASR.from_pretrained(MINI_MODEL)
    encoder = WhisperEncoder(model.config.audio_config)
    encoder.load_state_dict(model.audio_tower.state_dict())
    folders = [f"{folder}/encoder", f"{folder}/language_model"]
    for part, path in zip((encoder, model.language_model), folders, strict=True):
        part.save_pretrained(path)
    return folders


def seconds(words: list) -> float:
    """How long a process takes; it must succeed."""
    start = time.perf_counter()
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        lines = {
            "transformers: import, load": [sys.executable, "-c", PEER, *save_parts(folder)],
            "pinyin-llm transcribe": [*COMMAND, "transcribe", SAMPLE],
            "pinyin-llm transcribe --num_beams 1": [*COMMAND, "transcribe", "--num_beams", "1", SAMPLE],
            "pinyin-llm --help": [*COMMAND, "--help"],
        }
        times = {name: [] for name in lines}
        for _ in range(turns + 1):
            for name, words in lines.items():
                times[name].append(seconds(words))
    middle = {name: median(each[1:]) for name, each in times.items()}  # the first turn fills the file cache
    peer = next(iter(middle.values()))
    rows = [[name, f"{value:.2f}", f"{value / peer:.2f}"] for name, value in middle.items()]
    print(tabulate(rows, headers=["", "seconds", "ratio"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
