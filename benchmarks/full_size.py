"""Whisper-large-v3 + LLaMA2-7b on this machine: load, transcribe, a step of each stage, save as delta, reload.

    python -m pinyin_llm.bases.random_bases --parts data/parts --output data/full_size
    python benchmarks/full_size.py data/full_size

Each line is a process of its own. Its peak of anonymous memory (not backed by a file) is sampled twenty times per
second; its resident peak, mapped weights included, comes from the kernel. The weights are random, so the texts mean
nothing.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from memory import memory_of
from safetensors.torch import load_file
from tabulate import tabulate


ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "samples" / "BAC009S0764W0121.wav"
GB = 10**9
TRANSCRIBE = """
import sys, time, torch
start = time.perf_counter()
from pinyin_llm import PinyinLlamaProcessor
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.transcription_pinyin_llm import transcribe_clips
from quantized import load
model = load(sys.argv[1], int(sys.argv[2]))
processor = PinyinLlamaProcessor.from_pretrained(sys.argv[1])
print("weights", sum(p.nbytes for p in model.parameters()))
print("loaded", time.perf_counter() - start)
for sound in sys.argv[3:]:
    print("text", transcribe_clips(model, processor, [load_waveform(sound)], max_new_tokens=8))
"""
RESAVE = """
import sys, torch
from pinyin_llm import PinyinLlamaForASR
from pinyin_llm.delta_pinyin_llm import save_delta
save_delta(PinyinLlamaForASR.from_pretrained(sys.argv[1], dtype=torch.bfloat16), sys.argv[2])
"""


def run(words: list) -> tuple[float, float, float, str]:
    """(seconds, peak of anonymous GB, peak of resident GB, stdout) of a process."""
    start, anonymous, resident = time.perf_counter(), 0, 0
    beside = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True, env=beside)
    while process.poll() is None:
        try:
            memory = memory_of(process.pid)
        except OSError:
            break
        anonymous = max(anonymous, memory.get("RssAnon", 0))  # a process that has just ended has none
        resident = max(resident, memory.get("VmHWM", 0))
        time.sleep(0.05)
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, words[:3]))} ...: exit code {process.returncode}")
    return time.perf_counter() - start, anonymous / GB, resident / GB, output


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def same_tensors(one: Path, other: Path) -> bool:
    """Whether all safetensors of two folders hold the same bits."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    pairs = [(load_file(one / name), load_file(other / name)) for name in files]
    return bool(files) and all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", type=Path, help="folder of llama2-7b and whisper-large-v3")
    parser.add_argument("--work", type=Path, default=Path("data/full_size/runs"))
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    (work / "texts.txt").write_text("今天天气很好\n我们去上海\n", "utf-8")
    (work / "clips.tsv").write_text(f"file\ttext\n{SAMPLE}\t甚至出现交易几乎停滞的情况\n", "utf-8")
    step = ["--save", "delta", "--frozen_bf16", "true", "--bf16", "true", "--use_cpu", "true", "--max_steps", "1",
            "--per_device_train_batch_size", "1", "--activation_checkpointing", "true", "--save_strategy", "no",
            "--activation_checkpointing_kwargs", '{"use_reentrant": false}', "--eval_strategy", "no"]  # fmt: skip
    bases = ["--audio_tower", arguments.bases / "whisper-large-v3", "--language_model", arguments.bases / "llama2-7b"]
    stage_1 = ["--texts", work / "texts.txt", "--output_dir", work / "p2c", *bases]
    speech = ["--manifests", work / "clips.tsv", "--cache_features", work / "features"]
    stage_2 = ["--model", work / "p2c", "--output_dir", work / "asr", *speech]
    jobs = {
        "stage 1, one step": [ROOT / "train_p2c.py", *stage_1, *step],
        "load by reference": ["-c", TRANSCRIBE, work / "p2c", 16],
        "load, transcribe 4.2 s": ["-c", TRANSCRIBE, work / "p2c", 16, SAMPLE],
        "the same in 8 bits": ["-c", TRANSCRIBE, work / "p2c", 8, SAMPLE],
        "the same in 4 bits": ["-c", TRANSCRIBE, work / "p2c", 4, SAMPLE],
        "stage 2, one step": [ROOT / "train_asr.py", *stage_2, *step],
        "reload, save again": ["-c", RESAVE, work / "asr", work / "again"],
    }  # fmt: skip
    rows = []
    for name, words in jobs.items():
        seconds, anonymous, resident, output = run(words)
        rows.append([name, f"{seconds:.0f}", f"{anonymous:.1f}", f"{resident:.1f}", " ".join(output.split())[:100]])
        print(rows[-1], file=sys.stderr)
    print(tabulate(rows, headers=["process", "seconds", "anonymous GB", "resident GB", ""], tablefmt="github"))
    for stage in ("p2c", "asr"):
        print(f"delta of {stage}: {folder_bytes(work / stage) / 10**6:.0f} MB")
    print(f"saved again bit by bit: {same_tensors(work / 'asr', work / 'again')}")


if __name__ == "__main__":
    main()
