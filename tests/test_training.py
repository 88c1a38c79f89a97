"""Both stages by their command lines: what learns, what stays, what is written down, and that a run can be resumed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import SENTENCES, build_config, build_model, build_processor, save_folder, tone
from transformers import AutoConfig, TrainingArguments, WhisperModel

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor, train_asr, train_p2c
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.training import evaluation, features
from pinyin_llm.training.arguments import ModelArguments, SpeechArguments, TextArguments
from pinyin_llm.training.muon import BatchedMuon
from pinyin_llm.training.noise import NoiseArguments, PinyinNoise
from pinyin_llm.training.perturbation import changes_of
from pinyin_llm.training.records import find_checkpoint
from pinyin_llm.training.setup import load_config, model_to_train
from pinyin_llm.training.speech_data import read_features
from pinyin_llm.training.text_data import PairCollator, read_pairs
from pinyin_llm.training.trainer import PinyinTrainer


TRAINER = ["--use_cpu", "--learning_rate", "0.01", "--disable_tqdm", "true"]
LORA_LAYERS = r"language_model\.model\.layers\.{}\..*_proj\.weight"


@pytest.fixture
def new_model(parts) -> list[str]:
    return ["--audio_tower", str(parts / "whisper"), "--language_model", str(parts / "llama"), "--lora", "2"]


@pytest.fixture
def bridge_folder(parts, tmp_path) -> str:
    """A model with a bridge, as stage 1 leaves it."""
    return save_folder(build_model("pinyin_bridge", ctc_loss_weight=0.5), tmp_path / "bridge")


def p2c(parts: Path, output: Path, *arguments: str) -> None:
    texts = ["--texts", str(parts / "texts.txt"), "--num_proc", "1", "--output_dir", str(output)]
    assert train_p2c.main([*texts, *TRAINER, *arguments]) == 0


def asr(parts: Path, output: Path, *arguments: str) -> None:
    manifest = ["--manifests", str(parts / "speech" / "manifest.tsv"), "--cache_features", str(output.parent / "cache")]
    assert train_asr.main([*manifest, "--output_dir", str(output), *TRAINER, *arguments]) == 0


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return PinyinLlamaForASR.from_pretrained(folder).state_dict()


def changed(before: str | Path, after: str | Path) -> set[str]:
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}


def matching(folder: str | Path, pattern: str) -> set[str]:
    return {name for name in weights(folder) if re.match(pattern, name)}


def assert_learned(before: str | Path, after: str | Path, pattern: str) -> None:
    """Every tensor that `pattern` names has changed, and no other."""
    expected, found = matching(before, pattern), changed(before, after)
    assert found - expected == set(), "frozen, but changed"
    assert expected - found == set(), "trainable, but as before"


# What learns and what stays


@pytest.mark.parametrize(
    ("lora", "learned"),
    [("2", rf"pinyin_embeddings|{LORA_LAYERS.format('.')}"), ("0", "pinyin_embeddings|language_model")],
    ids=["lora", "full"],
)
def test_stage_one_learns_pinyin_table_and_language_model(parts, bridge_folder, tmp_path, lora, learned):
    p2c(parts, tmp_path / "out", "--model", bridge_folder, "--lora", lora, "--max_steps", "3")
    assert_learned(bridge_folder, tmp_path / "out", learned)


@pytest.mark.parametrize(
    ("arguments", "learned"),
    [
        (["--learn", "pinyin"], r"multi_modal_projector\.(?!composition|residual)"),
        (["--lora", "2", "--lowest_layers", "1"], rf"multi_modal_projector\.(?!composition)|{LORA_LAYERS.format(0)}"),
        (["--lowest_layers", "0"], r"multi_modal_projector\.(?!composition)"),
        (["--lora", "0"], r"multi_modal_projector\.(?!composition)|language_model"),
    ],
    ids=["bridge alone", "lora in the lowest layer", "projector alone", "full"],
)
def test_stage_two_learns_projector_and_lowest_layers(parts, bridge_folder, tmp_path, arguments, learned):
    asr(parts, tmp_path / "out", "--model", bridge_folder, "--max_steps", "3", *arguments)
    assert_learned(bridge_folder, tmp_path / "out", learned)


def test_stage_two_learns_the_papers_projector(parts, tmp_path):
    start = save_folder(build_model("mean"), tmp_path / "start")
    evaluation = ["--eval_manifests", str(parts / "speech" / "manifest.tsv"), "--eval_rows", "2"]
    asr(
        parts,
        tmp_path / "out",
        "--model",
        start,
        "--max_steps",
        "3",
        "--lora",
        "2",
        "--lowest_layers",
        "1",
        *evaluation,
    )
    assert_learned(start, tmp_path / "out", rf"multi_modal_projector|{LORA_LAYERS.format(0)}")


# Runs


def test_both_stages_from_the_parts_to_a_model_that_loads(parts, new_model, tmp_path):
    bridge = ["--projector_type", "pinyin_bridge", "--bridge_hidden_size", "24", "--bridge_num_layers", "1"]
    evaluation = ["--eval_texts", str(parts / "eval.tsv")]
    p2c(parts, tmp_path / "p2c", *new_model, *bridge, *evaluation, "--max_steps", "2", "--confuse", "0.1")
    record = json.loads((tmp_path / "p2c" / "run.json").read_text())
    assert record["arguments"]["confuse"] == 0.1
    assert record["arguments"]["max_steps"] == 2
    assert {"torch", "transformers", "peft", "python"} <= record["versions"].keys()
    assert record["data"] == {
        "sentences": 17,
        "characters": 2 * sum(map(len, SENTENCES)) + 2,
        "without_han": 0,
        "too_long": 0,
        "other_letters_left_out": 0,
    }
    assert {"eval_toned_cer", "eval_toneless_cer"} <= record["metrics"].keys()

    manifest = str(parts / "speech" / "manifest.tsv")
    asr(parts, tmp_path / "asr", "--model", str(tmp_path / "p2c"), "--eval_manifests", manifest, "--max_steps", "1")
    record = json.loads((tmp_path / "asr" / "run.json").read_text())
    assert record["data"]["sentences"]["clips"] == 4
    assert {"eval_speech_manifest_cer", "eval_speech_manifest_toned_syllable_errors"} <= record["metrics"].keys()
    processor = PinyinLlamaProcessor.from_pretrained(tmp_path / "asr")
    PinyinLlamaForASR.from_pretrained(tmp_path / "asr").generate(**processor(tone(0.5), sampling_rate=16000))


@pytest.mark.parametrize("arguments", [["--lora", "2"], ["--lora", "0", "--optimizer", "muon"]], ids=["lora", "muon"])
def test_resumed_run_is_the_uninterrupted_run(parts, new_model, tmp_path, arguments):
    noise = ["--confuse", "0.2", "--drop", "0.1", "--toneless_rows", "0.5"]
    grouped = ["--train_sampling_strategy", "group_by_length", "--length_column_name", "length"]
    steps = ["--max_steps", "8", "--save_steps", "6", "--per_device_train_batch_size", "4"]
    common = [*new_model, *arguments, *noise, *grouped, *steps]
    p2c(parts, tmp_path / "whole", *common)
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "resumed" / "checkpoint-6")  # in the second epoch
    torch.rand(5)  # a new process has another random state
    p2c(parts, tmp_path / "resumed", *common)
    assert changed(tmp_path / "whole", tmp_path / "resumed") == set()
    p2c(parts, tmp_path / "seeded", *common, "--seed", "1")
    assert len(changed(tmp_path / "whole", tmp_path / "seeded")) > 10


def test_dry_run_shows_two_rows_and_writes_nothing(parts, bridge_folder, tmp_path, capsys):
    start = ["--model", bridge_folder, "--dry_run"]
    p2c(parts, tmp_path / "out", *start, "--toneless_rows", "1.0")
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "<s> zhong guo ren min yin hang ： [中] [国] [人] [民] [银] [行] [</s>]"
    )
    asr(parts, tmp_path / "out", *start)
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert all(re.fullmatch(r"<s> <\|audio\|> x \d+ ： (\[\S+\] )+\[</s>\]", row) for row in rows), rows
    asr(parts, tmp_path / "out", *start, "--learn", "pinyin")
    assert capsys.readouterr().out.splitlines()[-2] == "[zhong1] [guo2] [ren2] [min2] [yin2] [hang2]"
    assert [*tmp_path.iterdir()] == [tmp_path / "bridge"]


def test_folder_goes_on_with_its_own_arguments_only(parts, new_model, tmp_path, capsys):
    p2c(parts, tmp_path / "out", *new_model, "--max_steps", "1")
    written = (tmp_path / "out" / "run.json").read_text()
    with pytest.raises(ValueError, match=r"other arguments \(confuse: 0.0, now 0.5\). Choose another --output_dir"):
        p2c(parts, tmp_path / "out", *new_model, "--max_steps", "1", "--confuse", "0.5")
    assert (tmp_path / "out" / "run.json").read_text() == written
    p2c(parts, tmp_path / "out", *new_model, "--max_steps", "2")
    assert "resuming from" in capsys.readouterr().err


def test_cached_features_follow_the_manifest(parts, bridge_folder, tmp_path):
    """Sound is encoded once; a text that is mended counts, and a file that is missing is counted."""
    speech = shutil.copytree(parts / "speech", tmp_path / "speech")
    config, processor = load_config(ModelArguments(model=bridge_folder))
    model = model_to_train(ModelArguments(model=bridge_folder), config)
    manifest = speech / "manifest.tsv"
    arguments = SpeechArguments(manifests=[str(manifest)], cache_features=str(tmp_path / "cache"))
    read_features(arguments, model, processor)
    cached = sorted((tmp_path / "cache").iterdir())
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("中国人民银行", "中国人"), encoding="utf-8")
    rows, _ = read_features(arguments, model, processor)
    assert "中国人" in rows["characters"][:]
    assert "中国人民银行" not in rows["characters"][:]
    assert sorted((tmp_path / "cache").iterdir()) == cached
    (speech / "1.wav").unlink()
    for _ in range(2):  # counted when it is encoded, and from the cache
        rows, counts = read_features(arguments, model, processor)
        assert (len(rows), counts["sentences"]["unreadable_at_1.0"]) == (3, 1)


def test_other_sound_of_one_length_is_encoded_again(parts, bridge_folder, tmp_path):
    speech = shutil.copytree(parts / "speech", tmp_path / "speech")
    config, processor = load_config(ModelArguments(model=bridge_folder))
    model = model_to_train(ModelArguments(model=bridge_folder), config)
    data = SpeechArguments([str(speech / "manifest.tsv")], cache_features=str(tmp_path / "cache"))
    before, _ = read_features(data, model, processor)
    soundfile.write(speech / "0.wav", tone(1.0, 700), 16000)
    after, _ = read_features(data, model, processor)
    same = [np.array_equal(old, new) for old, new in zip(before["hidden"], after["hidden"], strict=True)]
    assert same == [False, True, True, True]


def test_saved_model_finds_the_features_of_its_parts(parts, tmp_path):
    """Else the rows of the table with P2C would encode again what those without it have encoded."""
    new = ModelArguments(audio_tower=str(parts / "whisper"), language_model=str(parts / "llama"))
    manifest, cache = parts / "speech" / "manifest.tsv", tmp_path / "cache"
    data = SpeechArguments(manifests=[str(manifest)], cache_features=str(cache))
    found = []
    for arguments in (new, ModelArguments(model=str(tmp_path / "saved"))):
        config, processor = load_config(arguments)
        model = model_to_train(arguments, config)
        read_features(data, model, processor)
        found.append(sorted(cache.iterdir()))
        for part in (model, processor):
            part.save_pretrained(tmp_path / "saved")
    assert found[0] == found[1]


def test_features_go_to_disk_batch_by_batch(parts, tmp_path, monkeypatch):
    """The features of a thousand hours fit into no memory: a batch is encoded before the next clips are read."""
    events = []
    load, encode = features._load, features._encode_batch
    monkeypatch.setattr(features, "BATCH_SECONDS", 1)
    monkeypatch.setattr(features, "_load", lambda *given: events.append("read") or load(*given))
    monkeypatch.setattr(features, "_encode_batch", lambda *given: events.append("encoded") or encode(*given))
    rows = read_manifest(parts / "speech" / "manifest.tsv")
    kept, counts = features.cache_features(
        rows, build_model("mean"), build_processor(), str(tmp_path / "cache"), changes_of([1.0], 0)
    )
    assert events == ["read", "encoded"] * len(rows)
    assert len(kept) == len(rows)
    assert not any(counts.values())


def test_newest_whole_checkpoint_is_gone_on_from(tmp_path):
    """One that was being written when the run was killed has no state yet."""
    assert find_checkpoint(str(tmp_path)) is None
    for step in (8, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (8, 9):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-10" / "trainer_state.json").touch()
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")


def test_evaluation_that_fails_costs_no_weights(parts, new_model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "text_evaluation", lambda *_: lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        p2c(parts, tmp_path / "out", *new_model, "--max_steps", "1")
    assert weights(tmp_path / "out")


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [("--texts", "", "is empty. Expected sentences"), ("--eval_texts", "text\ttoned\n", "found no toneless")],
)
def test_text_that_cannot_be_used_is_said_before_training(parts, new_model, tmp_path, flag, content, message):
    (tmp_path / "file").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        p2c(parts, tmp_path / "out", *new_model, flag, str(tmp_path / "file"))


def test_file_read_twice_an_epoch_gets_other_noise_each_time(parts, processor):
    text = str(parts / "texts.txt")
    once, _ = read_pairs(TextArguments([text]), processor.pinyin_tokenizer)
    twice, counts = read_pairs(TextArguments([f"{text}@2"]), processor.pinyin_tokenizer)
    assert twice["characters"] == [*once["characters"]] * 2
    assert counts["sentences"] == 2 * len(once)
    noise = PinyinNoise(NoiseArguments(confuse=0.5), processor.pinyin_tokenizer)
    pinyin = PairCollator(processor, noise)([*twice])["pinyin_ids"]
    assert not torch.equal(pinyin[: len(once)], pinyin[len(once) :])


@pytest.mark.parametrize("script", [train_p2c, train_asr], ids=["p2c", "asr"])
def test_help_comes_without_torch(script):
    """`import torch` alone takes seconds."""
    command = [sys.executable, "-X", "importtime", script.__file__, "--help"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert all(flag in run.stdout for flag in ("--output_dir", "--lora", "--learning_rate"))
    assert not re.search(r"\| +torch$", run.stderr, re.MULTILINE)


def test_recipe_gives_arguments_and_flags_override_it(parts, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"p2c:\n  texts: [{parts / 'texts.txt'}]\n  lora: null\n  output_dir: here\n  max_steps: 7\n")
    from pinyin_llm.training.arguments import parse_arguments

    classes = [ModelArguments, TextArguments]
    model, data, settings = parse_arguments(classes, [str(recipe), "--max_steps", "8"], section="p2c")
    assert (model.lora, data.texts, settings.max_steps) == (None, [str(parts / "texts.txt")], 8)
    with pytest.raises(ValueError, match="no section 'asr'; it has p2c"):
        parse_arguments(classes, [str(recipe)], section="asr")
    recipe.write_text("p2c:\n  learning_rat: 1\n")
    with pytest.raises(ValueError, match="learning_rat, which p2c does not know"):
        parse_arguments(classes, [str(recipe)], section="p2c")


def test_recipes_that_the_documents_name_are_there():
    root = Path(train_p2c.__file__).parent
    texts = [
        path.read_text(encoding="utf-8") for path in (*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("*.py"))
    ]
    named = set(re.findall(r"(recipes/\w+\.yaml)(?::(\w+))?", "\n".join(texts)))
    assert ("recipes/mini.yaml", "bridge") in named
    for file, section in named:
        assert section in ("", *yaml.safe_load((root / file).read_text(encoding="utf-8"))), f"{file}:{section}"


# Batches and loss


def test_training_batch_has_the_loss_of_padded_rows(bridge_model, processor):
    """Stage 1 pads on the right and leaves the mask out: faster, and the same."""
    texts = SENTENCES[:3]
    units = [processor.pinyin_tokenizer.encode_characters(text)[1] for text in texts]
    collate = PairCollator(processor, PinyinNoise(NoiseArguments(), processor.pinyin_tokenizer))
    rows = [{"characters": c, "units": u, "copy": 0} for c, u in zip(texts, units, strict=True)]
    batch = collate(rows)
    with torch.no_grad():
        expected = bridge_model(**processor(pinyin=units, text=texts)).loss
        torch.testing.assert_close(bridge_model(**batch).loss, expected)


def test_matrices_at_once_step_as_one_by_one():
    def learn(kind, **how) -> list[torch.Tensor]:
        torch.manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (8, 8), (24, 8), (24, 8), (8, 24))]
        optimizer = kind(matrices, lr=0.01, weight_decay=0.05, **how)
        for _ in range(3):
            for matrix in matrices:
                matrix.grad = torch.randn_like(matrix)
            optimizer.step()
        return matrices

    expected = learn(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    for ours, theirs in zip(learn(BatchedMuon), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)  # steps are 0.01 x 0.2 x sqrt(24) at most


class Collator:
    """Numbers of `SENTENCES` -> their pinyin, or their speech with its pinyin, and the answers; with 你好 replayed."""

    def __init__(self, speech: bool):
        self.speech = speech

    def __call__(self, numbers: list[int]) -> dict:
        processor = build_processor()
        texts = [SENTENCES[number] for number in numbers]
        units = [processor.pinyin_tokenizer.encode_characters(text)[1] for text in texts]
        if not self.speech:
            return dict(processor(pinyin=units, text=texts))
        clips = [tone(1.0 + 0.2 * number, 200 + 100 * number) for number in numbers]
        labels = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, units)), batch_first=True, padding_value=-100)
        replay = dict(processor(pinyin=["ni3 hao3"] * len(texts), text=["你好"] * len(texts)))
        speech = processor(clips, text=texts, sampling_rate=16000)
        return {**speech, "pinyin_labels": labels, "replay": replay}


@pytest.mark.parametrize("speech", [False, True], ids=["pinyin", "speech with CTC and replay"])
def test_four_small_batches_are_one_large(tmp_path, speech):
    results = []
    for size, accumulation in ((4, 1), (1, 4)):
        model = build_model("pinyin_bridge", bridge_dropout=0.0)
        arguments = TrainingArguments(
            output_dir=tmp_path,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            learning_rate=1e-3,
            optim="sgd",
            use_cpu=True,
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        extra = {"model_arguments": ModelArguments(), "evaluation": None}
        trainer = PinyinTrainer(model, arguments, data_collator=Collator(speech), train_dataset=range(4), **extra)
        trainer.train()
        results.append((trainer.state.log_history[-1]["train_loss"], model.state_dict()))
    (loss, large), (loss_of_small, small) = results
    assert loss_of_small == pytest.approx(loss, rel=1e-6)  # 34.43: float32 is no finer than 4e-6
    for name, tensor in large.items():
        torch.testing.assert_close(
            small[name], tensor, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_new_model_on_parts_has_their_weights(parts):
    config = build_config("mean", text_config=AutoConfig.from_pretrained(parts / "llama"))
    model = PinyinLlamaForASR.from_base_models(config, str(parts / "whisper"), str(parts / "llama"))
    encoder = WhisperModel.from_pretrained(parts / "whisper").encoder.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.audio_tower.state_dict().items())
