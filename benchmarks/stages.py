"""Where the time of a transcription goes: features, encoder, projector, prompt, decoding, by length of clip and batch.

    python benchmarks/stages.py data/speech/aishell1_S0150/held_out.tsv

The speech of the manifest is joined and cut into clips of the lengths asked for; what is longer than 15 s is cut at its
pauses by the package itself. Figures are milliseconds per second of speech: where a row has equal ones, time grows with
the length alone.
"""

import argparse
import time
from collections import Counter

import numpy as np
import torch
from tabulate import tabulate

from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.inference.loading import MINI_MODEL, load_model
from pinyin_llm.transcription_pinyin_llm import transcribe_clips


STAGES = ["features", "encoder", "projector", "prompt", "decoding", "the rest"]


class Stopwatch:
    """Seconds in each stage of a model and its processor, from the time it is made."""

    def __init__(self, model, processor):
        self.seconds = Counter()
        extract = processor.extract_features
        processor.extract_features = lambda waveform: self.time("features", extract, waveform)
        for name, module in (("encoder", model.audio_tower), ("projector", model.multi_modal_projector)):
            self.watch(name, module)
        language_model = model.language_model.forward

        def forward(*args, cache, **kwargs):
            stage = "decoding" if cache.get_seq_length() else "prompt"
            return self.time(stage, language_model, *args, cache=cache, **kwargs)

        model.language_model.forward = forward

    def watch(self, name: str, module) -> None:
        forward = module.forward
        module.forward = lambda *args, **kwargs: self.time(name, forward, *args, **kwargs)

    def time(self, name: str, work, *args, **kwargs):
        start = time.perf_counter()
        result = work(*args, **kwargs)
        self.seconds[name] += time.perf_counter() - start
        return result


def cut(manifest: str, seconds: float, count: int) -> list[np.ndarray]:
    """`count` clips of that many seconds from the joined speech, which is begun again where it ends."""
    speech = np.concatenate([load_waveform(path) for path in read_manifest(manifest)["audio"]])
    size = round(16000 * seconds)
    speech = np.tile(speech, -(-count * size // len(speech)))
    return [speech[i * size : (i + 1) * size] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="tsv or jsonl: file, text")
    parser.add_argument("--model", default=MINI_MODEL)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2, 5, 15, 30])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, processor = load_model(arguments.model)
    watch, rows = Stopwatch(model, processor), []
    for seconds in arguments.seconds:
        clips = cut(arguments.manifest, seconds, arguments.clips)
        for size in arguments.batch_sizes:
            transcribe_clips(model, processor, clips[:size], size, num_beams=arguments.num_beams)  # warm up
            watch.seconds.clear()
            start = time.perf_counter()
            transcribe_clips(model, processor, clips, size, num_beams=arguments.num_beams)
            whole, speech = time.perf_counter() - start, seconds * len(clips)
            watch.seconds["the rest"] = whole - watch.seconds.total()
            cells = [f"{1000 * watch.seconds[stage] / speech:.1f}" for stage in STAGES]
            rows.append([f"{seconds:g}", size, *cells, f"{1000 * whole / speech:.1f}", f"{whole / speech:.4f}"])
    headers = ["clips, s", "batch", *STAGES, "together", "RTF"]
    print(f"Milliseconds per second of speech, beam {arguments.num_beams}, {arguments.threads} threads:\n")
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
