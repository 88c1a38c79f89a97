"""A saved folder is all that a stranger needs: transformers loads it where this package is not installed."""

import configparser
import re
from pathlib import Path

import pytest
import torch
from conftest import build_model, run_as_stranger

import pinyin_llm


STRANGER = """
import sys
sys.modules["pinyin_llm"] = None  # as if it were not installed

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor

folder, inputs, logits = sys.argv[1:]
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).pinyin_vocab_size == 1417
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
batch = processor(np.load(inputs), sampling_rate=16000)
for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
    model = auto.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(**batch).logits, torch.load(logits))
    written = model.generate(**batch, max_new_tokens=3)
print(processor.decode_answers(written, batch["input_ids"].shape[1])[0])
"""


@pytest.mark.parametrize("kind", ["attention", "pinyin_bridge"])
def test_saved_folder_loads_without_this_package(kind, processor, clips, tmp_path):
    import numpy as np

    model = build_model(kind)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "clip.npy", clips[0])
    batch = processor(clips[0], sampling_rate=16000)
    torch.save(model(**batch).logits.detach(), tmp_path / "logits.pt")
    inputs = (tmp_path / "clip.npy", tmp_path / "logits.pt")
    run_as_stranger(STRANGER, tmp_path / "model", *inputs, folder=tmp_path / "elsewhere")


def test_hub_asks_for_what_the_package_asks_for():
    root = Path(pinyin_llm.__file__).parent
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    asked = setup["options"]["install_requires"].split()
    for file in ("requirements.txt", "space/requirements.txt"):
        named = (root / "publishing" / "hub" / file).read_text(encoding="utf-8").split()
        assert set(named) - {"gradio>=6"} <= set(asked), file
    (named,) = re.findall(
        r'"(transformers.*?)"', (root / "publishing" / "hub" / "model_card.md").read_text(encoding="utf-8")
    )
    assert named in asked
