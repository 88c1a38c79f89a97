"""What works with other speech models of transformers works here: from a folder, without this package."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import free_port, run_as_stranger
from openai import OpenAI
from transformers.dynamic_module_utils import get_imports

from pinyin_llm.inference.loading import MINI_MODEL
from pinyin_llm.transcript_pinyin_llm import Chunk, Syllable, Transcript, split_into_words, words_of


ROOT = Path(__file__).parents[1]
SOUND, TEXT = ROOT / "samples" / "BAC009S0764W0121.wav", "甚至出现交易几乎停滞的情况"
START_SECONDS = 120  # of a server, on a busy machine
STRANGER = """
import sys
sys.modules["pinyin_llm"] = None  # as if it were not installed

import soundfile
import torch
from transformers import pipeline

folder, path, url, text = sys.argv[1:]
asr = pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)
model, processor = asr.model, asr.processor
assert open(f"{folder}/chat_template.jinja", encoding="utf-8").read() == processor.chat_template
array, rate = soundfile.read(path)


def chat(**clip):
    conversation = [{"role": "user", "content": [{"type": "audio", **clip}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template(conversation, **options)


inputs = processor.apply_transcription_request(audio=path)
prompts = processor.apply_transcription_request(audio=path, tokenize=False)
others = {
    "URL": processor.apply_transcription_request(audio=url, language="Chinese"),
    "array": processor.apply_transcription_request(audio=array, sampling_rate=rate),
    "list": processor.apply_transcription_request(audio=[array]),
    "chat, path": chat(path=path),
    "chat, URL": chat(url=url),
    "chat, array": chat(audio=array),
    "prompts": processor(text=prompts, audio=path),
    "call": processor(audio=array, sampling_rate=rate, return_tensors="pt"),
}
for name, other in others.items():
    assert other.keys() == inputs.keys(), name
    for key, tensor in inputs.items():
        torch.testing.assert_close(other[key], tensor, msg=name)

outputs = model.generate(**inputs.to(model.device, dtype=model.dtype))
answers = outputs[:, inputs.input_ids.shape[1] :]
assert processor.batch_decode(answers, skip_special_tokens=True) == [text]
assert processor.batch_decode(outputs, skip_special_tokens=True) == [text]
assert processor.decode(outputs[0], skip_special_tokens=True) == text
assert processor.decode(outputs[0]).startswith(prompts[0][:3])

words, characters = (asr(path, return_timestamps=unit)["chunks"] for unit in ("word", "char"))
assert [word["text"] for word in words[:4]] == ["甚至", "出现", "交易", "几乎"]
assert "".join(word["text"] for word in words) == text
assert words[0]["pinyin"] == "shen4 zhi4"
for word in words:
    own, characters = characters[: len(word["text"])], characters[len(word["text"]) :]
    assert word["timestamp"] == (own[0]["timestamp"][0], own[-1]["timestamp"][1])
    assert word["confidence"] == min(character["confidence"] for character in own)
"""


@pytest.fixture
def address():
    """A web server with the samples."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=SOUND.parent))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_speech_as_for_other_models(address, tmp_path):
    arguments = (MINI_MODEL, SOUND, f"{address}/{SOUND.name}", TEXT)
    run_as_stranger(STRANGER, *map(str, arguments), folder=tmp_path / "elsewhere")


def test_words_of_chunks_with_and_without_syllables():
    syllables = [Syllable("ni3", 1.0, 1.2, 0.9), Syllable("hao3", 1.2, 1.5, 0.8), Syllable("ma5", 1.5, 2.0, 0.7)]
    transcript = Transcript("", [Chunk(0.0, 1.0, "你好吗"), Chunk(1.0, 2.0, "你好吗", syllables)])
    assert words_of(transcript) == [
        {"text": "你好吗", "timestamp": (0.0, 1.0), "pinyin": "", "confidence": 1.0},
        {"text": "你好", "timestamp": (1.0, 1.5), "pinyin": "ni3 hao3", "confidence": 0.8},
        {"text": "吗", "timestamp": (1.5, 2.0), "pinyin": "ma5", "confidence": 0.7},
    ]


def test_only_words_need_their_segmenter(monkeypatch):
    assert "rjieba" not in get_imports(MINI_MODEL / "transcript_pinyin_llm.py")  # else a folder would not load without
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ImportError, match="pip install rjieba"):
        split_into_words("你好")


def test_transformers_serve(tmp_path):
    port = free_port()
    words = [Path(sys.executable).with_name("transformers"), "serve", MINI_MODEL, "--trust-remote-code"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*map(str, words), "--port", str(port), "--device", "cpu"], cwd=tmp_path, env=environment, stderr=log
        )
    try:
        wait_for_health(f"http://localhost:{port}/health", process, tmp_path / "log")
        client = OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0)
        with SOUND.open("rb") as sound:
            answer = client.audio.transcriptions.create(file=sound, model=str(MINI_MODEL))
        assert answer.text == TEXT
    finally:
        process.terminate()
        process.wait(60)


def wait_for_health(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url) as response:
                assert json.load(response) == {"status": "ok"}
                return
        except OSError:  # not up yet
            time.sleep(0.25)
    raise TimeoutError(f"`transformers serve` did not start:\n{log.read_text()}")
