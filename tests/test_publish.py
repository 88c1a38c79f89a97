"""Published to a Hub (a stand-in on loopback), a model serves strangers by its name as native models do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SENTENCES, build_model, build_processor
from hub_stand_in import TOKEN, Repository, stand_in
from huggingface_hub import ModelCard, metadata_load


ROOT = Path(__file__).parents[1]
MINI = ROOT / "checkpoints" / "mini"
SAMPLE = ROOT / "samples" / "BAC009S0764W0121.wav"
USE = """
import sys
sys.modules["pinyin_llm"] = None  # as if it were not installed
from transformers import AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

repo, revision, sound = sys.argv[1:]
where = {"trust_remote_code": True, "revision": revision}
processor = AutoProcessor.from_pretrained(repo, **where)
batch = processor(sound)
for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
    auto.from_pretrained(repo, **where).generate(**batch, max_new_tokens=3)
print(pipeline("automatic-speech-recognition", model=repo, **where)(sound)["text"])
"""
PUSH = """
import sys
from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from transformers import Trainer, TrainingArguments

model, processor = PinyinLlamaForASR.from_pretrained(sys.argv[1]), PinyinLlamaProcessor.from_pretrained(sys.argv[1])
model.push_to_hub("user/pushed")
processor.push_to_hub("user/pushed")
settings = TrainingArguments("run", push_to_hub=True, hub_model_id="user/trained", use_cpu=True)
trainer = Trainer(model, settings, processing_class=processor)
trainer.push_to_hub(blocking=True)
"""


@pytest.fixture(scope="module")
def hub():
    with stand_in() as hub:
        yield hub


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_model("pinyin_bridge").save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def run(hub, tmp_path):
    """run(words, ...) -> a finished process that has the stand-in for its Hub, and an empty cache at first."""

    def run(*words, code: int = 0, token: str = TOKEN, **more) -> subprocess.CompletedProcess:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": token,
               "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", **more}  # fmt: skip
        words = [sys.executable, *map(str, words)]
        process = subprocess.run(words, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False)
        assert process.returncode == code, process.stderr
        return process

    return run


def publish(run, *words, **options) -> str:
    process = run("-m", "pinyin_llm.cli", "publish", *words, **options)
    return process.stdout + process.stderr


def test_published_mini_model(hub, run, tmp_path):
    report = publish(run, MINI, "user/mini", "--public")
    text = "甚至出现交易几乎停滞的情况"
    assert f"-> {text}" in report
    assert "are the same" in report
    revision = hub.repositories["user/mini"].commits[-1][0]
    for wanted, offline in (("main", "0"), ("main", "1"), (revision, "1")):
        assert run("-c", USE, "user/mini", wanted, SAMPLE, token="", HF_HUB_OFFLINE=offline).stdout.strip() == text
    without = USE.replace('"trust_remote_code": True', '"trust_remote_code": False')
    assert "trust_remote_code=True" in run("-c", without, "user/mini", "main", SAMPLE, code=1).stderr

    card = tmp_path / "README.md"
    card.write_bytes(hub.files("user/mini")["README.md"])
    shutil.copyfile(SAMPLE, tmp_path / "talk.wav")
    blocks = re.findall(r"^```python\n(.*?)^```", card.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert run("-c", block, token="").stdout.strip()
    front = metadata_load(card)
    assert front["pipeline_tag"] == "automatic-speech-recognition"
    results = front["model-index"][0]["results"]
    assert len(results) >= 3
    assert all(0 <= result["metrics"][0]["value"] < 30 for result in results)
    sounds = [sample["src"].rpartition("/resolve/main/")[2] for sample in front["widget"]]
    assert set(sounds) <= hub.files("user/mini").keys()
    assert "nan" not in str(ModelCard.load(card)).lower()


def test_private_unless_asked_and_dry_run_uploads_nothing(hub, run, model_folder):
    report = publish(run, model_folder, "user/tiny", "--dry_run")
    assert "model.safetensors" in report
    assert "user/tiny" not in hub.repositories
    publish(run, model_folder, "user/tiny")
    assert hub.repositories["user/tiny"].private
    assert "user/tiny" in run("-c", USE, "user/tiny", "main", SAMPLE, token="", code=1).stderr
    hub.repositories["user/tiny"].private = False
    assert "is public. Add --public" in publish(run, model_folder, "user/tiny", code=2)


@pytest.mark.parametrize("fault", ["preupload", "/commit/", "moved"])
def test_broken_upload_leaves_the_hub_as_it_was(hub, run, model_folder, fault):
    repository = hub.repositories["user/broken"] = Repository(private=True)
    somebody = {"key": "file", "value": {"path": "theirs.txt", "content": ""}}
    hub.broken, hub.meanwhile = (
        (None, lambda: repository.commit([somebody])) if fault == "moved" else (fault, lambda: None)
    )
    before = dict(hub.files("user/broken"))
    try:
        report = publish(run, model_folder, "user/broken", code=2)
    finally:
        hub.broken, hub.meanwhile = None, lambda: None
        hub.files("user/broken").pop("theirs.txt", None)
    assert "not uploaded" in report
    assert hub.files("user/broken") == before
    assert (model_folder / "model.safetensors").exists()


def test_delta_on_bases_of_the_hub(hub, run, parts, tmp_path):
    revisions = [hub.add(f"user/{part}", parts / part) for part in ("whisper", "llama")]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES), encoding="utf-8")
    names = ["--audio_tower", "user/whisper", "--language_model", "user/llama", "--projector_stride", "4"]
    settings = ["--lora", "2", "--save", "delta", "--max_steps", "2", "--save_strategy", "no", "--use_cpu", "true"]
    stage_1 = ["--texts", texts, "--output_dir", "p2c", "--eval_strategy", "no"]
    run(ROOT / "train_p2c.py", *stage_1, *names, *settings)
    publish(run, tmp_path / "p2c", "user/delta", "--delta", "--public")
    publish(run, tmp_path / "p2c", "user/merged", "--merge", "--public")
    files = hub.files("user/delta")
    assert {"adapter_1/adapter_model.safetensors", "adapter_1/adapter_config.json"} <= files.keys()
    assert all(revision in files["config.json"].decode() for revision in revisions)
    assert not any(name.startswith("adapter_") for name in hub.files("user/merged"))
    written = [run("-c", USE, repo, "main", SAMPLE, token="").stdout for repo in ("user/delta", "user/merged")]
    assert written[0] == written[1]
    assert "whole model" in publish(run, MINI, "user/mini", "--delta", code=2)


def test_transformers_own_pushes(hub, run, model_folder):
    run("-c", PUSH, model_folder)
    run("-c", USE, "user/pushed", "main", SAMPLE)
    run("-c", USE, "user/trained", "main", SAMPLE)
