"""The estimate of a dry run: counted as the run itself would count, and without any weights."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import build_config, build_model, build_processor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaConfig, TrainingArguments, WhisperConfig

from pinyin_llm import PinyinLlamaConfig, train_asr, train_p2c
from pinyin_llm.modeling_pinyin_llm import drop_masked
from pinyin_llm.training import setup
from pinyin_llm.training.arguments import ModelArguments, SpeechArguments, TextArguments, parse_arguments
from pinyin_llm.training.estimate import (
    RowSize,
    activation_bytes,
    build_on_meta,
    count_parameters,
    held_bytes,
    row_flops,
    steps_of,
)
from pinyin_llm.training.muon import build_optimizer
from pinyin_llm.training.noise import NoiseArguments
from pinyin_llm.training.setup import train_stage_1
from pinyin_llm.training.speech_data import SpeechCollator, blank_features


RECIPES = Path(train_p2c.__file__).parent / "recipes"
STAGES = {
    "p2c": (train_p2c, [ModelArguments, TextArguments, NoiseArguments]),
    "projector": (train_asr, [ModelArguments, SpeechArguments]),
    "asr": (train_asr, [ModelArguments, SpeechArguments]),
}
PLAIN = ModelArguments(lora=2)


def held_after_a_step(model, optimizer: str) -> int:
    """Bytes of weights, gradients and states, as they are."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    made = build_optimizer(model, 1e-3, 0.0) if optimizer == "muon" else torch.optim.AdamW(trainable)
    for parameter in trainable:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    states = [state for part in getattr(made, "parts", [made]) for state in part.state.values()]
    moments = [t for state in states for name, t in state.items() if name != "step"]
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in trainable), *moments]
    return sum(t.nbytes for t in tensors)


def test_defaults_have_the_published_numbers_of_parameters():
    counts = count_parameters(build_on_meta(PinyinLlamaConfig()))
    assert counts["language_model"][0] == 6_738_415_616  # Llama-2-7b
    assert counts["audio_tower"][0] == 636_968_960  # of whisper-large-v3's 1,543,490,560, without the decoder
    assert counts["multi_modal_projector"][0] == 1280 * 4096 + 4096


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("changes", [{}, {"frozen_bf16": True}, {"lora": None}], ids=["lora", "bf16", "full"])
def test_meta_model_holds_what_the_model_holds_after_a_step(changes, optimizer):
    arguments = ModelArguments(**(asdict(PLAIN) | changes))
    meta = train_stage_1(build_on_meta(build_config("pinyin_bridge")), arguments)
    real = train_stage_1(build_model("pinyin_bridge"), arguments)
    assert count_parameters(meta) == count_parameters(real)
    assert sum(learned for _, learned in count_parameters(meta).values()) == sum(
        p.numel() for p in real.parameters() if p.requires_grad
    )
    assert sum(held_bytes(meta, optimizer).values()) == held_after_a_step(real, optimizer)


def kept_by_autograd(layers: int, arguments: ModelArguments, bf16: bool) -> int:
    """Bytes that a model of so many layers keeps of 2 rows of 24 tokens, without those of its matrices."""
    text = build_config("mean").text_config
    text.num_hidden_layers = layers
    model = train_stage_1(build_model("mean", text_config=text), arguments).train()
    model.language_model.set_attn_implementation(arguments.attention)
    matrices = {shape for p in model.parameters() for shape in (p.shape, p.shape[::-1])}
    found = {}

    def keep(tensor):
        if tensor.shape not in matrices:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    vectors = model.get_input_embeddings()(torch.zeros(2, 24, dtype=torch.long)).requires_grad_()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model.language_model(inputs_embeds=vectors)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes", [{"lora": 1}, {"lora": None, "attention": "eager"}], ids=["lora, sdpa", "full, eager"]
)
def test_activations_are_what_autograd_keeps(changes, bf16):
    """Of two layers: those of four less those of two, so that embeddings and logits fall out."""
    arguments = ModelArguments(**changes, frozen_bf16=bf16)
    kept = kept_by_autograd(4, arguments, bf16) - kept_by_autograd(2, arguments, bf16)
    settings = SimpleNamespace(bf16=bf16, activation_checkpointing=False)
    counted = activation_bytes(build_config("mean"), RowSize(24, 24), 2, arguments, settings)
    assert counted["activations of the language model"] == pytest.approx(kept, rel=0.06)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("lora", [None, 2], ids=["full", "lora"])
def test_work_of_a_step_is_what_torch_counts(lora, checkpointing):
    model = train_stage_1(build_model("mean"), ModelArguments(lora=lora)).train()
    model.language_model.set_attn_implementation("eager")  # the counter does not know the fused kernel of CPUs
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    vectors = torch.zeros(3, 10, model.config.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model.language_model(inputs_embeds=vectors, labels=torch.zeros(3, 10, dtype=torch.long)).loss.backward()
    exactness = 0.04 if checkpointing else 0  # the last projection of a layer need not be computed again
    counted = 3 * row_flops(model, model.config, RowSize(10, 10), checkpointing)
    assert counted == pytest.approx(counter.get_total_flops(), rel=exactness)


def test_row_of_a_bridge_is_as_long_as_training_makes_it():
    """A slot for each syllable is filled, in rows of 8 syllables in 25 slots and 2 in 50."""
    processor, config = build_processor(), build_config("pinyin_bridge")
    clips = [{"id": "a", "characters": "中国人民银行快乐", "units": [3] * 8, "seconds": 1.0}]
    clips.append({"id": "b", "characters": "你好", "units": [3, 4], "seconds": 2.0})
    collator = SpeechCollator(processor, config, learn="text")
    batch = collator([blank_features(clip, config.audio_config.d_model) for clip in clips])
    mask, slots = batch["attention_mask"].clone(), batch["input_ids"] == processor.audio_token_id
    for row, clip in enumerate(clips):
        mask[row, slots[row].nonzero()[len(clip["units"]) :]] = 0
    embeds, *_ = drop_masked(mask, torch.zeros(*mask.shape, 4), batch["labels"])
    assert RowSize.of(batch, config).tokens == embeds.shape[1] < batch["input_ids"].shape[1]


def test_steps_are_the_trainers():
    settings = TrainingArguments(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1.5, use_cpu=True
    )
    assert steps_of(settings, examples=100, processes=2) == 11  # 13 batches, 7 steps an epoch, 10.5 of them
    settings.max_steps = 9
    assert steps_of(settings, examples=100, processes=2) == 9


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("recipe", ["aishell1.yaml", "paper_table_aishell1.yaml"])
def test_recipe_has_no_unknown_argument(recipe, stage, tmp_path):
    sections = yaml.safe_load((RECIPES / recipe).read_text(encoding="utf-8"))
    section = sections[stage] if stage in sections else sections["base"][stage]
    section = {"texts": ["t"], "manifests": ["m"]} | section | {"output_dir": "out"}
    section.pop("manifests" if stage == "p2c" else "texts")
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({stage: section}))
    model, *_, settings = parse_arguments(STAGES[stage][1], [str(tmp_path / "one.yaml"), "--use_cpu"], stage)
    assert model.frozen_bf16
    assert settings.bf16
    assert settings.activation_checkpointing


def test_accelerate_reads_its_file():
    config = load_config_from_file(str(RECIPES / "accelerate_8_gpus.yaml"))
    assert (config.num_processes, config.distributed_type, config.mixed_precision) == (8, "MULTI_GPU", "bf16")


@pytest.mark.parametrize("stage", ["p2c", "asr"])
def test_dry_run_at_full_size_needs_no_weights(stage, parts, tmp_path, monkeypatch, capsys):
    whisper = WhisperConfig(**PinyinLlamaConfig.sub_configs_defaults["audio_config"].init_kwargs)
    full = {"openai": whisper, "meta": LlamaConfig()}
    load = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, *a, **k: full.get(name) or load(name, *a, **k))
    recipe = yaml.safe_load((RECIPES / "aishell1.yaml").read_text(encoding="utf-8"))[stage]
    recipe |= {"audio_tower": "openai", "language_model": "meta", "model": None, "output_dir": str(tmp_path / "out")}
    data = {"texts": [str(parts / "texts.txt")], "num_proc": 1}
    recipe |= data if stage == "p2c" else {"manifests": [str(parts / "speech" / "manifest.tsv")]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({stage: recipe}))
    for kind, folder in (("AutoTokenizer", "llama"), ("AutoFeatureExtractor", "whisper")):
        door = getattr(setup, kind)
        local = door.from_pretrained(parts / folder)
        monkeypatch.setattr(door, "from_pretrained", lambda *_, local=local, **__: local)
    module = STAGES[stage][0]
    assert module.main([f"{tmp_path / 'recipe.yaml'}:{stage}", "--dry_run", "--devices", "8", "--use_cpu"]) == 0
    shown = capsys.readouterr().out
    assert "6,7" in shown
    assert "devices: 8" in shown
    assert "[中]" in shown
    assert not (tmp_path / "out").exists()
