"""Whisper-base by the programs that people run it with, all made from one folder of transformers.

Each function takes that folder and the number of threads and gives (waveforms, batch size, beams) -> texts.
"""

import tempfile
from pathlib import Path

import torch


def transformers_whisper(folder: str, threads: int):
    """transformers in float32, batches as asked for."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(threads)
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()

    def transcribe(waveforms, batch_size, num_beams):
        texts = []
        for start in range(0, len(waveforms), batch_size):
            batch = waveforms[start : start + batch_size]
            inputs = processor(batch, sampling_rate=16000, return_tensors="pt")
            ids = model.generate(inputs.input_features, language="zh", task="transcribe", num_beams=num_beams)
            texts += processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    return transcribe


def faster_whisper(folder: str, threads: int):
    """CTranslate2 in 8-bit integers, one clip at a time, as faster-whisper runs it on a CPU."""
    from ctranslate2.converters import TransformersConverter
    from faster_whisper import WhisperModel

    with tempfile.TemporaryDirectory() as converted:
        TransformersConverter(folder, copy_files=["tokenizer.json"]).convert(converted, quantization="int8", force=True)
        model = WhisperModel(converted, device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(waveforms, batch_size, num_beams):
        found = [model.transcribe(w, language="zh", beam_size=num_beams, without_timestamps=True) for w in waveforms]
        return ["".join(segment.text for segment in segments) for segments, _ in found]

    return transcribe


def whisper_cpp(folder: str, threads: int):
    """whisper.cpp in float16 by pywhispercpp, one clip at a time."""
    from pywhispercpp.model import Model
    from whisper_ggml import write_ggml

    with tempfile.TemporaryDirectory() as converted:
        file = Path(converted, "ggml-base.bin")
        write_ggml(folder, file)
        models = {
            strategy: Model(
                str(file), params_sampling_strategy=strategy, n_threads=threads, language="zh", no_context=True,
                redirect_whispercpp_logs_to=None, print_progress=False, print_realtime=False,
            )
            for strategy in (0, 1)  # greedy, beam search
        }  # fmt: skip

    def transcribe(waveforms, batch_size, num_beams):
        beam = {"beam_search": {"beam_size": num_beams, "patience": -1.0}} if num_beams > 1 else {}
        model = models[int(num_beams > 1)]
        return ["".join(s.text for s in model.transcribe(w, **beam)) for w in waveforms]

    return transcribe


PEERS = {
    "transformers": transformers_whisper,
    "faster-whisper": faster_whisper,
    "whisper.cpp": whisper_cpp,
}
