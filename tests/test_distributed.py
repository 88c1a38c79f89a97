"""Two processes learn what one learns: equal losses with an equal global batch; each resumes the other's run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES, build_model, free_port, save_folder, warm_process
from safetensors.torch import load_file


ROOT = Path(__file__).parents[1]
STEPS, HALF = 6, 3
SETTINGS = ["--use_cpu", "true", "--learning_rate", "0.01", "--disable_tqdm", "true", "--lora", "2",
            "--max_steps", str(STEPS), "--logging_steps", "1", "--save_steps", str(HALF),
            "--eval_strategy", "no"]  # fmt: skip


def train(processes: int, script: str, *words) -> None:
    """Run a training script with a global batch of four rows."""
    words = [ROOT / script, *words, *SETTINGS, "--per_device_train_batch_size", 4 // processes]
    if processes == 1:
        run = warm_process().run(*words)
        assert run.returncode == 0, run.stderr[-3000:]
    else:
        launch(processes, *words)


def launch(processes: int, script: Path, *words) -> None:
    """Run a script in so many processes, with the variables that torchrun gives each."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    runs = [warm_process().start(script, *words, **rank) for rank in ranks]
    for run in [run.wait() for run in runs]:
        assert run.returncode == 0, run.stderr[-3000:]


def launch_by_torchrun(script: Path, *words) -> None:
    """Run a script in two processes, as users do."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


@pytest.fixture(scope="module", params=["train_p2c.py", "train_asr.py"])
def runs(request, parts, tmp_path_factory):
    """Folders of the same run by one process, and by two; and the words that start it."""
    folder = tmp_path_factory.mktemp("distributed")
    texts = folder / "texts.txt"
    texts.write_text("\n".join(SENTENCES * 4), encoding="utf-8")
    save_folder(build_model("mean"), folder / "model")
    data = {
        "train_p2c.py": ["--texts", texts, "--num_proc", "1"],
        "train_asr.py": ["--manifests", parts / "speech" / "manifest.tsv", "--cache_features", folder / "features"],
    }[request.param]
    words = [request.param, "--model", folder / "model", *data]
    for processes in (1, 2):
        train(processes, *words, "--output_dir", folder / str(processes))
    return folder, words


def test_same_losses(runs):
    folder, _ = runs
    one, two = losses(folder / "1"), losses(folder / "2")
    assert len(one) == len(two) == STEPS
    assert one == pytest.approx(two, abs=1e-3)
    assert one[-1] != pytest.approx(one[0], abs=1e-2)  # something was learned


@pytest.mark.parametrize(("begun", "ended"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(runs, begun, ended):
    folder, words = runs
    place = folder / f"{begun} then {ended}"
    shutil.copytree(
        folder / str(begun), place, ignore=shutil.ignore_patterns(f"checkpoint-{STEPS}", "*.safetensors", "run.json")
    )
    shutil.copytree(folder / str(begun) / f"checkpoint-{HALF}", place / f"checkpoint-{HALF}", dirs_exist_ok=True)
    train(ended, *words, "--output_dir", place)
    straight, mixed = (load_file(path / "model.safetensors") for path in (folder / "1", place))
    assert straight.keys() == mixed.keys()
    for name, tensor in straight.items():
        torch.testing.assert_close(mixed[name], tensor, atol=1e-3, rtol=0, msg=name)


SHARE_OUT = """
import sys
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.training.arguments import ModelArguments
from pinyin_llm.training.trainer import restore_whole_weights
from pinyin_llm.training.setup import train_stage_1
from pinyin_llm.training.records import save_model

source, target = sys.argv[1:]
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
model = train_stage_1(PinyinLlamaForASR.from_pretrained(source), ModelArguments(lora=2, frozen_bf16=True))
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.1)
processor = PinyinLlamaProcessor.from_pretrained(source)
if torch.distributed.get_world_size() > 1:
    for layer in model.get_base_model().language_model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    restore_whole_weights(model, get_model_state_dict(model, options=whole))
if torch.distributed.get_rank() == 0:
    save_model(model, processor, target)
"""


def test_weights_that_were_shared_out_are_saved_whole(tmp_path):
    save_folder(build_model("mean"), tmp_path / "model")
    script = tmp_path / "share_out.py"
    script.write_text(SHARE_OUT, encoding="utf-8")
    for processes in (1, 2):
        words = [script, tmp_path / "model", tmp_path / str(processes)]
        launch(1, *words) if processes == 1 else launch_by_torchrun(*words)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
