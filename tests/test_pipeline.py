"""pipeline("automatic-speech-recognition") takes what native ones take, and writes what the command line writes."""

import base64
import io
import json
import sys
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset
from transformers import GenerationConfig, pipeline

from pinyin_llm.audio_pinyin_llm import AudioError, load_waveform
from pinyin_llm.inference.cli import main
from pinyin_llm.inference.loading import MINI_MODEL
from pinyin_llm.publishing.publish import assemble


ROOT = Path(__file__).parents[1]
SOUNDS = sorted(str(path) for path in (ROOT / "samples").iterdir() if path.suffix != ".tsv")
SOUND, TEXT = str(ROOT / "samples" / "BAC009S0764W0121.wav"), "甚至出现交易几乎停滞的情况"

pytestmark = [
    # their class lives in code loaded from the folder, which pytest-xdist cannot send from process to process
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def asr():
    return pipeline("automatic-speech-recognition", model=str(MINI_MODEL), trust_remote_code=True)


@pytest.fixture(scope="module")
def address():
    """A web server with the samples."""
    handler = partial(SimpleHTTPRequestHandler, directory=ROOT / "samples")
    handler.func.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_every_sample_as_the_command_line_writes_it(asr, capsys):
    assert main(["transcribe", "--format", "tsv", *SOUNDS]) == 0
    written = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    results = asr(SOUNDS, batch_size=3)
    assert [result["text"] for result in results] == [written[sound] for sound in SOUNDS]


def test_forms_of_sound(asr, address):
    samples, rate = soundfile.read(SOUND)
    stereo = np.stack([samples, samples])
    forms = [
        SOUND,
        io.BytesIO(Path(SOUND).read_bytes()),
        memoryview(Path(SOUND).read_bytes()),
        Path(SOUND),
        Path(SOUND).read_bytes(),
        f"{address}/{Path(SOUND).name}",
        load_waveform(SOUND),
        {"raw": samples, "sampling_rate": rate},
        {"array": stereo, "sampling_rate": rate},
        {"path": SOUND, "bytes": None},
    ]
    for form in forms:
        assert asr(form) == {"text": TEXT}


def test_dataset_and_generator_come_one_by_one(asr):
    rows = Dataset.from_dict({"audio": [SOUND, SOUND]}).cast_column("audio", Audio(decode=False))
    assert [result["text"] for result in asr(rows, batch_size=2)] == [TEXT, TEXT]
    endless = (SOUND for _ in iter(int, 1))
    assert next(asr(endless, batch_size=1)) == {"text": TEXT}


def test_long_sound_in_chunks(asr):
    pause = np.zeros(8000, np.float32)
    parts = [np.concatenate([load_waveform(sound), pause]) for sound in SOUNDS[:5]]
    said = np.concatenate(parts)
    result = asr(said, return_timestamps="chunk", chunk_length_s=8)
    times = [time for chunk in result["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(len(said) / 16000, abs=0.01)
    assert all(end - start <= 8 for start, end in zip(times[::2], times[1::2], strict=True))
    assert "".join(chunk["text"] for chunk in result["chunks"]) == result["text"]
    assert TEXT in result["text"]


def test_characters_with_their_pinyin(asr):
    chunks = asr(SOUND, return_timestamps="char")["chunks"]
    assert "".join(chunk["text"] for chunk in chunks) == TEXT
    assert [chunk["pinyin"] for chunk in chunks[:2]] == ["shen4", "zhi4"]
    assert all(0 < chunk["confidence"] <= 1 for chunk in chunks)


def test_best_texts_and_their_scores(asr):
    found = asr([SOUND, np.concatenate([load_waveform(SOUND)] * 4)], num_return_sequences=3)
    for result in found:
        best = result["alternatives"]
        assert len({row["text"] for row in best}) == 3
        assert [row["score"] for row in best] == sorted((row["score"] for row in best), reverse=True)
        assert best[0]["text"] == result["text"]
    assert found[1]["alternatives"][0]["score"] < found[0]["alternatives"][0]["score"] < 0
    assert asr(SOUND, generate_kwargs={"num_beams": 1})["text"] == TEXT
    again = asr(SOUND, num_return_sequences=3, generate_kwargs={"length_penalty": 0.0})
    assert [row["text"] for row in again["alternatives"]] == [row["text"] for row in found[0]["alternatives"]]
    assert asr(SOUND, generate_kwargs={"return_dict_in_generate": True})["text"] == TEXT


def test_given_generation_config_says_how_many_beams(asr, monkeypatch):
    beams = []
    generate = asr.model.generate
    monkeypatch.setattr(
        asr.model, "generate", lambda **given: beams.append(given.get("num_beams")) or generate(**given)
    )
    asr(SOUND, generate_kwargs={"generation_config": GenerationConfig(num_beams=2, max_new_tokens=4)})
    asr(SOUND)
    assert beams == [None, 5]


def test_few_alternatives_where_little_was_heard(asr):
    noise = np.random.default_rng(0).normal(scale=0.1, size=16000).astype(np.float32)
    few = asr([noise, np.zeros(16000, np.float32)], num_return_sequences=5)
    assert all(row["score"] > -1e6 for result in few for row in result["alternatives"])
    assert few[1]["alternatives"] == []
    assert len(asr(Path(SOUND).read_bytes(), formats=["json", "tsv"])["tsv"]) < 100


def test_what_cannot_be_read(asr, address, tmp_path):
    (tmp_path / "page.wav").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="HTML page"):
        asr(str(tmp_path / "page.wav"))
    with pytest.raises(ValueError, match="cannot be fetched"):
        asr(f"{address}/nothing.wav")
    with pytest.raises(ValueError, match="return_timestamps"):
        asr(SOUND, return_timestamps="phone")
    with pytest.raises(ValueError, match="Unknown: beams"):
        asr(SOUND, beams=3)
    odd = [None, {"array": [0.0]}, "http://127.0.0.1:9/a b.wav", "x" * 5000, f"{address}/汉字.wav"]
    with warnings.catch_warnings(record=True) as talk:
        warnings.simplefilter("always")
        *failed, good = asr([str(tmp_path / "page.wav"), *odd, SOUND])
    assert all(result["text"] == "" and result["error"] for result in failed)
    assert good == {"text": TEXT}
    assert any("HTML page" in str(warning.message) for warning in talk)
    assert issubclass(AudioError, ValueError)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """handler.py as an inference endpoint finds it: in the folder of the model, as it is on the Hub."""
    folder = tmp_path_factory.mktemp("endpoint") / "model"
    assemble(str(MINI_MODEL), folder, "user/mini")
    sys.path.insert(0, str(folder))
    try:
        from handler import EndpointHandler

        yield EndpointHandler(str(folder))
    finally:
        sys.path.remove(str(folder))


def test_endpoint(endpoint):
    sound = Path(SOUND).read_bytes()
    assert endpoint({"inputs": sound}) == {"text": TEXT}
    request = {
        "inputs": base64.b64encode(sound).decode(),
        "parameters": {"num_return_sequences": 2, "formats": ["srt"]},
    }
    answer = json.loads(json.dumps(endpoint(json.loads(json.dumps(request)))))
    assert len(answer["alternatives"]) == 2
    assert " --> " in answer["srt"]
    wrapped = base64.encodebytes(sound).decode()
    assert (
        endpoint({"inputs": wrapped})["text"]
        == endpoint({"inputs": f"data:audio/wav;base64,{wrapped}"})["text"]
        == TEXT
    )
    for wrong in ({"inputs": "/etc/passwd"}, {"inputs": b"no sound"}, {}, [], {"inputs": sound, "parameters": "abc"}):
        assert endpoint(wrong)["error"]


def test_endpoint_hands_nothing_to_generate_that_could_run_code(endpoint, tmp_path):
    (tmp_path / "custom_generate").mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\ndef generate(*a, **k): pass"
    (tmp_path / "custom_generate" / "generate.py").write_text(code)
    evil = {"generate_kwargs": {"custom_generate": str(tmp_path), "trust_remote_code": True}}
    sound = Path(SOUND).read_bytes()
    for parameters in (evil, evil["generate_kwargs"], {"num_beams": 0}, {"num_return_sequences": 10**6}):
        assert "expected" in endpoint({"inputs": sound, "parameters": parameters})["error"]
    assert not (tmp_path / "ran").exists()
