"""A delta holds what was learned and no more, and gives back the model as it was trained."""

import json
import os
import shutil

import pytest
import torch
from conftest import SENTENCES, run_as_stranger, tone
from peft import PeftModel
from safetensors import safe_open
from test_training import asr, p2c
from transformers import AutoModelForCausalLM

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.training import trainer


LORA = ["--lora", "2", "--save", "delta", "--max_steps", "3", "--save_strategy", "no"]
STRANGER = """
import sys
sys.modules["pinyin_llm"] = None  # as if it were not installed

import torch
from transformers import AutoModel

folder, batch, logits = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
torch.testing.assert_close(model(**torch.load(batch)).logits, torch.load(logits), atol=1e-5, rtol=0)
"""


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """Folders of stage 1, its projector and stage 2, each on the one before; and the logits as they were trained."""
    folder = tmp_path_factory.mktemp("delta")
    names = ["--audio_tower", str(parts / "whisper"), "--language_model", str(parts / "llama")]
    logits, save_model = {}, trainer.save_model

    def save_and_remember(model, processor, output_dir, kind):
        logits[os.path.basename(output_dir)] = [model(**batch).logits.detach() for batch in make_batches(processor)]
        save_model(model, processor, output_dir, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_model", save_and_remember)
        p2c(parts, folder / "p2c", *LORA, *names)
        asr(parts, folder / "projector", *LORA, "--model", str(folder / "p2c"), "--lowest_layers", "0")
        asr(parts, folder / "asr", *LORA, "--model", str(folder / "projector"), "--lowest_layers", "1")
    return folder, logits


def make_batches(processor):
    return processor(pinyin="ni3 hao3", text="你好"), processor(tone(0.6), text="快乐", sampling_rate=16000)


@pytest.mark.parametrize("stage", ["p2c", "projector", "asr"])
def test_delta_is_the_model_as_trained(trained, stage):
    folder, logits = trained
    model = PinyinLlamaForASR.from_pretrained(folder / stage)
    processor = PinyinLlamaProcessor.from_pretrained(folder / stage)
    for batch, expected in zip(make_batches(processor), logits[stage], strict=True):
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=0)
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    model.save_pretrained(folder / "whole")
    whole = PinyinLlamaForASR.from_pretrained(folder / "whole")
    assert whole.delta is None
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_delta_holds_what_was_learned_alone(trained, parts):
    folder, _ = trained
    files = sorted(str(path.relative_to(folder / "asr")) for path in (folder / "asr").rglob("*.safetensors"))
    assert files == ["adapter_1/adapter_model.safetensors", "adapter_2/adapter_model.safetensors", "model.safetensors"]
    with safe_open(folder / "asr" / "model.safetensors", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"multi_modal_projector", "pinyin_embeddings"}  # noqa: SIM118
    for number, layers in ((1, {"0", "1"}), (2, {"0"})):
        with safe_open(folder / "asr" / f"adapter_{number}" / "adapter_model.safetensors", "pt") as file:
            keys = list(file.keys())
        assert {key.split(".")[4] for key in keys} == layers
        assert all(".lora_" in key for key in keys)
    config = json.loads((folder / "asr" / "config.json").read_text())
    bases = {name: {"name": str(parts / file), "revision": None} for name, file in
             (("audio_tower", "whisper"), ("language_model", "llama"))}  # fmt: skip
    assert config["delta"] == {**bases, "adapters": 2}


def test_options_of_from_pretrained_reach_the_parts(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "asr", tmp_path / "inner" / "asr")
    options = {"subfolder": "inner/asr", "torch_dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = PinyinLlamaForASR.from_pretrained(tmp_path, **options)
    assert model.language_model.config._attn_implementation == "eager"
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}


def test_adapter_is_one_of_peft(trained, parts):
    """Anyone may lay it on the language model alone."""
    folder, _ = trained
    language_model = AutoModelForCausalLM.from_pretrained(parts / "llama")
    adapted = PeftModel.from_pretrained(language_model, folder / "p2c", subfolder="adapter_1").merge_and_unload()
    ours = PinyinLlamaForASR.from_pretrained(folder / "p2c").language_model.state_dict()
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, ours[name])


def test_delta_loads_in_another_process_without_this_package(trained, tmp_path):
    folder, logits = trained
    batch = dict(make_batches(PinyinLlamaProcessor.from_pretrained(folder / "asr"))[0])
    torch.save(batch, tmp_path / "batch.pt")
    torch.save(logits["asr"][0], tmp_path / "logits.pt")
    inputs = (tmp_path / "batch.pt", tmp_path / "logits.pt")
    run_as_stranger(STRANGER, folder / "asr", *inputs, folder=tmp_path / "elsewhere")


def test_what_cannot_be_a_delta_is_refused(trained, parts, tmp_path):
    with pytest.raises(ValueError, match="lora 0 trains the whole language model. Choose --save whole"):
        p2c(parts, tmp_path / "out", *LORA, "--lora", "0")
    folder, _ = trained
    PinyinLlamaForASR.from_pretrained(folder / "p2c").save_pretrained(tmp_path / "whole")
    PinyinLlamaProcessor.from_pretrained(folder / "p2c").save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="whole is a whole model; a delta needs its two bases"):
        asr(parts, tmp_path / "out", *LORA, "--model", str(tmp_path / "whole"))


def test_missing_base_is_named(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "p2c", tmp_path / "delta")
    config = json.loads((tmp_path / "delta" / "config.json").read_text())
    config["delta"]["language_model"]["name"] = str(tmp_path / "gone")
    (tmp_path / "delta" / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="is a delta of .*gone, which could not be loaded"):
        PinyinLlamaForASR.from_pretrained(tmp_path / "delta")


# Tokenizers of pretrained language models


def build_merging_processor(prefix: bool) -> PinyinLlamaProcessor:
    """A byte-level BPE that has words as tokens; with `prefix` it begins every text with a piece, as LLaMA2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet, vocab_size=400)
    tokenizer.train_from_iterator(["：", *SENTENCES * 4], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    return PinyinLlamaProcessor(WhisperFeatureExtractor(feature_size=80), fast, prompt="{slot}：", projector_stride=4)


@pytest.mark.parametrize("prefix", [False, True], ids=["words as tokens", "and a piece before"])
def test_answers_are_learned_as_decoding_writes_them(prefix):
    """What the loss sees is what the constraint allows, token by token, whatever the tokenizer merges."""
    processor = build_merging_processor(prefix)
    text, pinyin = "中国人民银行扽", "zhong1 guo2 ren2 min2 yin2 hang2 den4"
    assert len(processor.tokenizer(text, add_special_tokens=False).input_ids) < len(text)
    batch = processor(pinyin=pinyin, text=text)
    answer = batch["labels"][0][batch["labels"][0] != -100]
    assert len(answer) > len(text)  # 扽 in bytes, and the end
    bound = processor.pinyin_constraint().for_batch(batch["pinyin_ids"], prompt_length=0)
    for written in range(len(answer)):
        allowed = bound(answer[None, :written], torch.zeros(1, len(processor.tokenizer)))[0]
        assert allowed[answer[written]] == 0, processor.tokenizer.convert_ids_to_tokens(answer.tolist())
    assert processor.decode_answers(answer[None], 0) == [text]
