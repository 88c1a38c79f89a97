"""Folders that earlier versions saved still load, and give what they gave then.

fixtures/saved_by_0.1.0 was written by the code of that version, which also recorded what it expects: a random bridge
model in float16, and its answers in float32.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import tone
from safetensors.torch import load_file

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.transcript_pinyin_llm import as_dict
from pinyin_llm.transcription_pinyin_llm import convert_pinyin, transcribe


FOLDER = Path(__file__).parent / "fixtures" / "saved_by_0.1.0"
CLIP = tone(1.3, 450)


@pytest.fixture(scope="module")
def loaded() -> tuple[PinyinLlamaForASR, PinyinLlamaProcessor]:
    model = PinyinLlamaForASR.from_pretrained(FOLDER, dtype=torch.float32)
    return model.eval(), PinyinLlamaProcessor.from_pretrained(FOLDER)


def test_logits(loaded):
    model, processor = loaded
    expected = load_file(FOLDER / "expected_logits.safetensors")["logits"].float()
    found = model(**processor(CLIP, sampling_rate=16000)).logits
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # they were recorded in float16


def test_texts(loaded):
    expected = json.loads((FOLDER / "expected.json").read_text("utf-8"))
    (transcript,) = transcribe(*loaded, [CLIP], num_beams=1)
    assert transcript.text == expected["transcribed"]
    assert [syllable["pinyin"] for syllable in as_dict(transcript)["heard"]] == expected["pinyin"]
    rows = ["zhong1 guo2 ren2 min2 yin2 hang2", "wo men qu shang hai"]
    assert convert_pinyin(*loaded, rows, num_beams=1) == expected["converted"]
