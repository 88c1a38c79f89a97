"""Published to a Hub (a stand-in on loopback), a model serves strangers by its name as native models do."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SENTENCES, build_model, save_folder
from hub_stand_in import TOKEN, Repository, stand_in
from huggingface_hub import ModelCard, metadata_load
from warm_process import WarmProcess

from pinyin_llm.publishing.model_card import write_card
from pinyin_llm.training.records import copy_origin, describe_command


ROOT = Path(__file__).parents[1]
MINI = ROOT
SAMPLE = ROOT / "samples" / "BAC009S0764W0121.wav"
USE = """
import sys
sys.modules["pinyin_llm"] = None  # as if it were not installed
from transformers import AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

repo, sound, *revisions = sys.argv[1:]
for revision in revisions:
    where = {"trust_remote_code": True, "revision": revision}
    processor = AutoProcessor.from_pretrained(repo, **where)
    batch = processor(sound)
    for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
        auto.from_pretrained(repo, **where).generate(**batch, max_new_tokens=3)
    print(pipeline("automatic-speech-recognition", model=repo, **where)(sound)["text"])
"""
# The check loads the folder in a process of its own; what a test has checked before, it need not check again.
PUBLISH = """
import sys
import time
from pinyin_llm.inference.cli import main
from pinyin_llm.publishing import publish

if sys.argv.pop(1) == "unchecked":
    assert callable(publish.check_folder)
    publish.check_folder = lambda place: "not checked"
time.sleep = lambda seconds: None  # of the Hub's client, before it tries again
sys.exit(main(["publish", *sys.argv[1:]]))
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
    save_folder(build_model("pinyin_bridge"), folder)
    return folder


@pytest.fixture(scope="module")
def warm(hub, tmp_path_factory):
    process = WarmProcess(
        tmp_path_factory.mktemp("warm"), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1"
    )
    yield process
    process.close()


@pytest.fixture
def run(hub, warm, tmp_path):
    """run(script, ...) -> a finished script that has the stand-in for its Hub, and an empty cache at first.

    Those with variables of their own are processes of their own: the cache is the same.
    """
    warm.clear_home()

    def run(*words, code: int = 0, token: str = TOKEN, **more) -> subprocess.CompletedProcess:
        if more:
            env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(warm.home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": token,
                   "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", **more}  # fmt: skip
            words = [sys.executable, "-c", *map(str, words)]
            env = os.environ | env
            process = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        else:
            process = warm.run(*words, folder=tmp_path, HF_TOKEN=token)
        assert process.returncode == code, process.stderr
        return process

    return run


def publish(run, *words, checked: bool = False, **options) -> str:
    process = run(PUBLISH, "checked" if checked else "unchecked", *words, **options)
    return process.stdout + process.stderr


def test_published_mini_model(hub, run, tmp_path):
    report = publish(run, MINI, "user/mini", "--public", checked=True, OMP_NUM_THREADS="1")
    text = "甚至出现交易几乎停滞的情况"
    assert f"-> {text}" in report
    assert "are identical" in report
    revision = hub.repositories["user/mini"].commits[-1][0]
    for offline, wanted in (("0", ["main"]), ("1", ["main", revision])):
        found = run(USE, "user/mini", SAMPLE, *wanted, token="", HF_HUB_OFFLINE=offline).stdout.split()
        assert found == [text] * len(wanted)
    without = USE.replace('"trust_remote_code": True', '"trust_remote_code": False')
    assert "trust_remote_code=True" in run(without, "user/mini", SAMPLE, "main", code=1).stderr

    card = tmp_path / "README.md"
    card.write_bytes(hub.files("user/mini")["README.md"])
    shutil.copyfile(SAMPLE, tmp_path / "talk.wav")
    blocks = re.findall(r"^```python\n(.*?)^```", card.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert run(block, token="").stdout.strip()
    front = metadata_load(card)
    assert front["pipeline_tag"] == "automatic-speech-recognition"
    results = front["model-index"][0]["results"]
    assert len(results) >= 3
    assert all(0 <= result["metrics"][0]["value"] < 30 for result in results)
    sounds = [sample["src"].rpartition("/resolve/main/")[2] for sample in front["widget"]]
    assert set(sounds) <= hub.files("user/mini").keys()
    assert "nan" not in str(ModelCard.load(card)).lower()


def test_private_unless_asked_and_dry_run_uploads_nothing(hub, run, model_folder):
    report = publish(run, model_folder, "user/tiny", "--dry_run", checked=True)
    assert "model.safetensors" in report
    assert "user/tiny" not in hub.repositories
    publish(run, model_folder, "user/tiny")
    assert hub.repositories["user/tiny"].private
    assert "user/tiny" in run(USE, "user/tiny", SAMPLE, "main", token="", code=1).stderr
    hub.repositories["user/tiny"].private = False
    assert "is public. Add --public" in publish(run, model_folder, "user/tiny", code=2)


@pytest.mark.parametrize("fault", ["preupload", "/lfs/", "/commit/", "moved"])
def test_broken_upload_leaves_the_hub_as_it_was(hub, run, model_folder, fault):
    repository = hub.repositories["user/broken"] = Repository(private=True)
    repository.commit([{"key": "file", "value": {"path": "notes.md", "content": ""}}])
    somebody = {"key": "file", "value": {"path": "theirs.txt", "content": ""}}
    moved = lambda: repository.commit([somebody])  # noqa: E731
    hub.broken, hub.meanwhile = (None, moved) if fault == "moved" else (fault, lambda: None)
    try:
        report = publish(run, model_folder, "user/broken", code=2)
        if fault == "/commit/":
            publish(run, model_folder, "user/new", code=2)
    finally:
        hub.broken, hub.meanwhile = None, lambda: None
    assert "not uploaded" in report
    assert hub.files("user/broken").keys() - {"theirs.txt"} == {"notes.md"}
    assert "user/new" not in hub.repositories
    assert (model_folder / "model.safetensors").exists()


def test_what_it_leaves_alone_and_what_it_replaces(hub, run, model_folder, tmp_path):
    theirs = ("notes.md", "eval/results.json", "their.json")
    ours = ("adapter_1/adapter_model.safetensors", "modeling_pinyin_llm.py")
    others = ("config.json", "pytorch_model.bin")
    for name, files in {"user/old": (*theirs, *ours), "user/other": others}.items():
        hub.repositories[name] = Repository(private=True)
        hub.repositories[name].commit([{"key": "file", "value": {"path": path, "content": ""}} for path in files])
    assert "removed from an earlier publication: adapter_1/" in publish(run, model_folder, "user/old")
    assert {"notes.md", "eval/results.json", "their.json"} <= hub.files("user/old").keys()
    assert "adapter_1/adapter_model.safetensors" not in hub.files("user/old")
    assert "of another kind" in publish(run, model_folder, "user/other", code=2)
    assert "no config.json" in publish(run, tmp_path / "nothing", "user/x", code=2)
    assert "expected user/name" in publish(run, model_folder, "noslash", code=2)
    assert "not uploaded" in publish(run, model_folder, "user/x", code=2, HF_ENDPOINT="http://127.0.0.1:9")


def test_card_tells_where_a_model_comes_from(tmp_path):
    """Stage 2 of a model of LLaMA2 is under LLaMA2's terms; a secret of the command line goes nowhere."""
    first = {"command": "train_p2c.py", "metrics": {}, "arguments": {"learning_rate": 1.0, "model": None,
             "audio_tower": "openai/whisper-large-v3", "language_model": "meta-llama/Llama-2-7b-hf"}}  # fmt: skip
    stage_1, stage_2 = tmp_path / "p2c", tmp_path / "asr"
    for folder in (stage_1, stage_2):
        build_model("mean").save_pretrained(folder)
    (stage_1 / "run.json").write_text(json.dumps(first))
    (stage_1 / "NOTICE").write_text("whose texts these are")
    (stage_1 / "card.yaml").write_text("training_data: old newspapers")
    copy_origin(str(stage_1), stage_2)
    command = describe_command(["/home/me/train_asr.py", "--hub_token", "hf_secret", "--push_to_hub_token=hf_secret"])
    (stage_2 / "run.json").write_text(json.dumps(first | {"command": command}))
    write_card(stage_2, "user/asr")
    card = (stage_2 / "README.md").read_text("utf-8")
    assert metadata_load(stage_2 / "README.md")["license"] == "llama2"
    assert "LLAMA 2 Community License" in card
    assert card.index("train_p2c.py") < card.index("train_asr.py")
    assert (stage_2 / "NOTICE").exists()
    assert "secret" not in card
    assert "/home/me" not in card
    assert "It started from a model trained on: old newspapers" in card


@pytest.mark.parametrize(
    ("language_model", "given", "license"),
    [
        ("meta-llama/Llama-2-7b-hf", "", "llama2"),
        ("meta-llama/Llama-3.2-1B", "", "other"),
        ("/models/Llama-2-7b-hf", "", "other"),
        ("me/mine", "license: mit", "mit"),
    ],
)
def test_licence_is_not_guessed(tmp_path, language_model, given, license):
    build_model("mean").save_pretrained(tmp_path)
    arguments = {"learning_rate": 1.0, "audio_tower": "openai/whisper-base", "language_model": language_model}
    record = {"command": "train_p2c.py", "metrics": {}, "arguments": arguments}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "card.yaml").write_text(given)
    write_card(tmp_path, "user/asr")
    assert metadata_load(tmp_path / "README.md")["license"] == license
    assert ("terms of its own, which apply" in (tmp_path / "README.md").read_text("utf-8")) == (license == "other")


def test_delta_on_bases_of_the_hub(hub, run, parts, tmp_path):
    revisions = [hub.add(f"user/{part}", parts / part) for part in ("whisper", "llama")]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES), encoding="utf-8")
    names = ["--audio_tower", "user/whisper", "--language_model", "user/llama", "--projector_stride", "4"]
    settings = ["--lora", "2", "--save", "delta", "--max_steps", "2", "--save_strategy", "no", "--use_cpu", "true"]
    stage_1 = ["--texts", texts, "--output_dir", "p2c", "--eval_strategy", "no"]
    run(ROOT / "train_p2c.py", *stage_1, *names, *settings)
    publish(run, tmp_path / "p2c", "user/delta", "--delta", "--public", checked=True)
    publish(run, tmp_path / "p2c", "user/merged", "--merge", "--public", checked=True)
    files = hub.files("user/delta")
    assert {"adapter_1/adapter_model.safetensors", "adapter_1/adapter_config.json"} <= files.keys()
    assert all(revision in files["config.json"].decode() for revision in revisions)
    assert not any(name.startswith("adapter_") for name in hub.files("user/merged"))
    written = [run(USE, repo, SAMPLE, "main", token="").stdout for repo in ("user/delta", "user/merged")]
    assert written[0] == written[1]
    assert "whole model" in publish(run, MINI, "user/mini", "--delta", code=2)


def test_transformers_own_pushes(hub, run, model_folder):
    run(PUSH, model_folder)
    run(USE, "user/pushed", SAMPLE, "main")
    run(USE, "user/trained", SAMPLE, "main")
