"""The language model in 8 and 4 bits (bitsandbytes, also on a CPU) beside bfloat16: CER on the same clips, bytes, time.

python benchmarks/quantized.py samples/references.tsv data/speech/aishell1_S0150/held_out.tsv
"""

import argparse
import time

import torch
from tabulate import tabulate
from transformers import BitsAndBytesConfig

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.inference.loading import MINI_MODEL
from pinyin_llm.scoring.cer import score
from pinyin_llm.transcription_pinyin_llm import NUM_BEAMS, transcribe_clips


NOT_THE_LAYERS = ["audio_tower", "multi_modal_projector", "pinyin_embeddings", "lm_head"]
BITS = {
    16: None,
    8: {"load_in_8bit": True},
    4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
}


def load(model: str, bits: int) -> PinyinLlamaForASR:
    """The model in bfloat16, the layers of its language model in `bits`."""
    given = BITS[bits]
    how = {"quantization_config": BitsAndBytesConfig(**given, llm_int8_skip_modules=NOT_THE_LAYERS)} if given else {}
    return PinyinLlamaForASR.from_pretrained(model, dtype=torch.bfloat16, **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", help="tsv or jsonl: file, text")
    parser.add_argument("--model", default=str(MINI_MODEL))
    parser.add_argument("--num_beams", type=int, default=NUM_BEAMS)
    arguments = parser.parse_args()
    processor = PinyinLlamaProcessor.from_pretrained(arguments.model)
    sets = {path: read_manifest(path) for path in arguments.manifests}
    clips = {path: [load_waveform(file) for file in rows["audio"]] for path, rows in sets.items()}
    lines, first = [], {}
    for bits in BITS:
        model = load(arguments.model, bits)
        layers = sum(p.nbytes for p in model.get_decoder().layers.parameters())
        for path, rows in sets.items():
            start = time.perf_counter()
            texts = transcribe_clips(model, processor, clips[path], num_beams=arguments.num_beams)
            seconds = time.perf_counter() - start
            s = score(rows["text"], texts)
            cer = f"{100 * s.cer:.1f} ({100 * s.low:.1f} - {100 * s.high:.1f})"
            ratio = seconds / first.setdefault(path, seconds)
            lines.append([bits, path, cer, f"{layers / 1e6:.1f}", f"{ratio:.2f}"])
    headers = ["bits", "set", "CER % (95 %)", "LLM layers, MB", "time / bfloat16"]
    print(tabulate(lines, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
