"""The language model in 8 or 4 bits by bitsandbytes, on a CPU too: the same text of the samples from fewer bytes."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.inference.loading import MINI_MODEL
from pinyin_llm.transcription_pinyin_llm import transcribe_clips


SOUND, TEXT = MINI_MODEL / "samples" / "BAC009S0764W0121.wav", "甚至出现交易几乎停滞的情况"
SKIPPED = ["audio_tower", "multi_modal_projector", "pinyin_embeddings", "lm_head"]


def layer_bytes(model) -> int:
    return sum(parameter.nbytes for parameter in model.get_decoder().layers.parameters())


@pytest.mark.parametrize("bits", [8, 4])
def test_same_text_from_fewer_bytes(bits):
    how = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=SKIPPED)
    whole = PinyinLlamaForASR.from_pretrained(MINI_MODEL, dtype=torch.bfloat16)
    model = PinyinLlamaForASR.from_pretrained(MINI_MODEL, dtype=torch.bfloat16, quantization_config=how)
    assert layer_bytes(model) < layer_bytes(whole) * bits / 16 * 1.05
    processor = PinyinLlamaProcessor.from_pretrained(MINI_MODEL)
    assert transcribe_clips(model, processor, [load_waveform(SOUND)]) == [TEXT]
