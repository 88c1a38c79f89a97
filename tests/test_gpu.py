"""What runs on a CPU runs on a GPU and writes the same; skipped where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pinyin_llm import PinyinLlamaForASR
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.inference.loading import MINI_MODEL, load_model
from pinyin_llm.transcription_pinyin_llm import convert_pinyin, recognize_pinyin, transcribe_clips


SAMPLES = Path(__file__).parents[1] / "samples"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def models():
    """(model on the GPU, the same on the CPU, their processor)"""
    on_gpu, processor = load_model()
    return on_gpu, PinyinLlamaForASR.from_pretrained(MINI_MODEL, dtype=torch.float32).eval(), processor


@pytest.fixture(scope="module")
def clips():
    return [load_waveform(path) for path in sorted(SAMPLES.glob("*.*")) if path.suffix != ".tsv"]


def test_speech_is_heard_the_same(models, clips):
    on_gpu, on_cpu, processor = models
    assert recognize_pinyin(on_gpu, processor, clips) == recognize_pinyin(on_cpu, processor, clips)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"constrained": False}], ids=["greedy", "beams", "free"])
def test_speech_is_written_the_same(models, clips, how):
    on_gpu, on_cpu, processor = models
    assert transcribe_clips(on_gpu, processor, clips, **how) == transcribe_clips(on_cpu, processor, clips, **how)


def test_pinyin_is_written_the_same(models):
    on_gpu, on_cpu, processor = models
    rows = ["jin1 tian1 tian1 qi4 hen3 hao3", "wo men qu shang hai", "ni3 hao3"]
    assert convert_pinyin(on_gpu, processor, rows) == convert_pinyin(on_cpu, processor, rows)


def test_silence_is_nothing(models):
    on_gpu, _, processor = models
    assert transcribe_clips(on_gpu, processor, [np.zeros(16000, np.float32)]) == [""]
