"""Both stages of training beside the plain way to do the same: answer tokens and rows per second, peak memory.

    python benchmarks/training.py data/text/clean/people_daily.txt data/speech/aishell1_S0150/train.tsv

Each line is a process of its own; all train on the same file, and the first steps are left out. "Plain" is what one
would write first: a Trainer on a language model of the same shape in float32 with eager attention, shuffled rows padded
to the longest, logits of every position. In stage 2 the encoder runs in every step; in one line it is transformers'
own, which takes windows of 30 s. The share of the peak counts 6 operations per weight and token (4 in stage 2, whose
weights are frozen under LoRA) against a bfloat16 matrix product measured in the same run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter

import torch
from memory import memory_of
from tabulate import tabulate
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from pinyin_llm import PinyinLlamaForASR, PinyinLlamaProcessor, train_asr, train_p2c
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.configuration_pinyin_llm import num_encoder_frames
from pinyin_llm.inference.loading import MINI_MODEL
from pinyin_llm.training import trainer
from pinyin_llm.training.arguments import ModelArguments, SpeechArguments, TextArguments
from pinyin_llm.training.setup import train_stage_2
from pinyin_llm.training.speech_data import read_speech
from pinyin_llm.training.text_data import read_pairs


WARM_UP = 8  # steps: compilation, first shapes
STEPS = {"stage 1": 24, "stage 2": 30}
ROWS = {"stage 1": 256, "stage 2": 32}  # a step, as in recipes/mini.yaml


class Clock(TrainerCallback):
    """What was learned in how many seconds behind the warm-up; printed as JSON at the end."""

    def __init__(self):
        self.counts, self.steps = Counter(), []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(self.counts | {"seconds": time.perf_counter()})

    def on_train_end(self, args, state, control, **kwargs):
        start, end = self.steps[WARM_UP - 1], self.steps[-1]
        print(json.dumps({name: end[name] - start[name] for name in end} | {"GiB": memory_of()["VmHWM"] / 2**30}))


class CountingTrainer(Trainer):
    """Counts rows, answers and all positions that are no padding."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.clock = Clock()
        self.add_callback(self.clock)

    def training_step(self, model, inputs, *args, **kwargs):
        answers = inputs["labels"] != -100
        last = answers.shape[1] - answers.flip(1).int().argmax(1)  # ours pads on the right without a mask
        positions = inputs["attention_mask"].sum() if "attention_mask" in inputs else last.sum()
        self.clock.counts.update(rows=len(answers), answers=int(answers.sum()), positions=int(positions))
        return super().training_step(model, inputs, *args, **kwargs)


class OurTrainer(CountingTrainer, trainer.PinyinTrainer):
    """The package's own, which writes nothing out at the end here."""

    def evaluate(self, *args, **kwargs):
        return {}


def settings(output: str, stage: str, **more) -> dict:
    """What all lines of a stage share."""
    shared = {
        "max_steps": STEPS[stage],
        "per_device_train_batch_size": ROWS[stage],
        "use_cpu": True,
        "learning_rate": 3e-4,
    }
    quiet = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "remove_unused_columns": False}
    return {"output_dir": output} | shared | quiet | more


def train_ours(main, stage: str, output: str, data: dict) -> None:
    """`main` of a training script with the recipe of the mini model."""
    trainer.PinyinTrainer = OurTrainer
    fast = {"bf16": True, "train_sampling_strategy": "group_by_length"}
    given = settings(output, stage, model=str(MINI_MODEL), eval_rows=0, **fast) | data
    flags = [[f"--{name}", *map(str, value if isinstance(value, list) else [value])] for name, value in given.items()]
    main([word for flag in flags for word in flag])


def stage_1_ours(output: str, data: str, **more) -> None:
    given = {"texts": [data], "length_column_name": "length", "lora": 0, "optimizer": "muon", "attention": "eager"}
    given |= {"per_device_train_batch_size": ROWS["stage 1"] // 4, "gradient_accumulation_steps": 4}
    train_ours(train_p2c.main, "stage 1", output, given | more)


def stage_1_compiled(output: str, data: str) -> None:
    stage_1_ours(output, data, compile_language_model=True)


def stage_1_plain(output: str, data: str) -> None:
    """Pinyin as ordinary tokens behind those of the vocabulary."""
    processor = PinyinLlamaProcessor.from_pretrained(MINI_MODEL)
    config = PinyinLlamaForASR.config_class.from_pretrained(MINI_MODEL).text_config
    first, config.vocab_size = config.vocab_size, config.vocab_size + len(processor.pinyin_tokenizer)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    rows, _ = read_pairs(TextArguments([data]), processor.pinyin_tokenizer)

    def collate(batch):
        asked = [torch.tensor(row["units"]) + first for row in batch]
        said = [torch.tensor(processor._answer_ids(row["characters"]) + [config.eos_token_id]) for row in batch]
        ids = [torch.cat(pair) for pair in zip(asked, said, strict=True)]
        labels = [torch.cat([torch.full_like(a, -100), s]) for a, s in zip(asked, said, strict=True)]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        padded = {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": mask}
        return padded | {"labels": pad_sequence(labels, batch_first=True, padding_value=-100)}

    arguments = TrainingArguments(**settings(output, "stage 1"))
    CountingTrainer(model, arguments, data_collator=collate, train_dataset=rows).train()


def stage_2_ours(output: str, data: str, **more) -> None:
    given = {
        "manifests": [data],
        "length_column_name": "mel_frames",
        "attention": "eager",
        "cache_features": "data/features_of_benchmark",
    }
    train_ours(train_asr.main, "stage 2", output, given | more)


def stage_2_compiled(output: str, data: str) -> None:
    stage_2_ours(output, data, compile_language_model=True)


class WhisperWindows(WhisperEncoder):
    """transformers' own encoder, which takes windows of 30 s."""

    def forward(self, input_features, input_features_mask):
        missing = 2 * self.embed_positions.num_embeddings - input_features.shape[-1]
        hidden = super().forward(functional.pad(input_features, (0, missing))).last_hidden_state
        return hidden[:, : num_encoder_frames(input_features.shape[-1])]


def stage_2_encoding(output: str, data: str, attention: str = "sdpa", windows: bool = False, **how) -> None:
    """Sound files in, the encoder in every step."""
    processor = PinyinLlamaProcessor.from_pretrained(MINI_MODEL)
    model = PinyinLlamaForASR.from_pretrained(MINI_MODEL, dtype=torch.float32, attn_implementation=attention)
    if windows:
        model.audio_tower.__class__ = WhisperWindows  # the same weights
    model = train_stage_2(model, ModelArguments(), SpeechArguments([data]))
    rows, _ = read_speech([data], processor.pinyin_tokenizer)

    def collate(batch):
        clips = [load_waveform(row["audio"]) for row in batch]
        units = pad_sequence([torch.tensor(row["units"]) for row in batch], batch_first=True, padding_value=-100)
        texts = [row["characters"] for row in batch]
        return {**processor(clips, text=texts, sampling_rate=16000), "pinyin_labels": units}

    arguments = TrainingArguments(**settings(output, "stage 2", **how))
    CountingTrainer(model, arguments, data_collator=collate, train_dataset=rows).train()


def stage_2_bf16(output: str, data: str) -> None:
    stage_2_encoding(output, data, bf16=True)


def stage_2_plain(output: str, data: str) -> None:
    stage_2_encoding(output, data, attention="eager")


def stage_2_windows(output: str, data: str) -> None:
    stage_2_encoding(output, data, attention="eager", windows=True, max_steps=WARM_UP + 4)  # each takes half a minute


LINES = {  # the last of each stage is what the others are compared with
    "stage 1": {"ours": stage_1_ours, "ours, compiled": stage_1_compiled, "plain": stage_1_plain},
    "stage 2": {
        "ours, cached features": stage_2_ours,
        "ours, cached, compiled": stage_2_compiled,
        "bfloat16, encoder in every step": stage_2_bf16,
        "plain, windows of 30 s": stage_2_windows,
        "plain, encoder in every step": stage_2_plain,
    },
}


def matrix_peak(size: int = 2048) -> float:
    """FLOP/s of a product of bfloat16 matrices."""
    a = torch.randn(size, size, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def operations(stage: str, counts: dict) -> float:
    """FLOPs of the language model."""
    config = PinyinLlamaForASR.config_class.from_pretrained(MINI_MODEL).text_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = sum(p.numel() for p in model.get_decoder().layers.parameters())
    head = config.vocab_size * config.hidden_size
    return (6 if stage == "stage 1" else 4) * (layers * counts["positions"] + head * counts["answers"])


def measure(stage: str, name: str, data: str) -> dict:
    """The counts of one line, from a process of its own."""
    with tempfile.TemporaryDirectory() as output:
        words = [sys.executable, __file__, "--line", stage, name, output, data]
        run = subprocess.run(words, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{stage}, {name}: {run.stderr[-2000:]}")
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith('{"')))


def main() -> None:
    if sys.argv[1:2] == ["--line"]:
        stage, name, output, data = sys.argv[2:]
        LINES[stage][name](output, data)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="one sentence per line, for stage 1")
    parser.add_argument("manifest", help="speech, for stage 2")
    parser.add_argument("--stages", nargs="+", default=list(LINES))
    arguments = parser.parse_args()
    peak, table = matrix_peak(), []
    for stage in arguments.stages:
        rates = {}
        for name in LINES[stage]:
            counts = measure(stage, name, arguments.text if stage == "stage 1" else arguments.manifest)
            rates[name] = counts["answers"] / counts["seconds"]
            share = operations(stage, counts) / counts["seconds"] / peak
            cells = [f"{rates[name]:,.0f}", f"{counts['rows'] / counts['seconds']:.1f}", f"{100 * share:.0f} %"]
            table.append([stage, name, *cells, f"{counts['GiB']:.1f}"])
            print(table[-1], file=sys.stderr)
        for line in table:
            if line[0] == stage:
                line.append(f"{rates[line[1]] / rates[list(LINES[stage])[-1]]:.1f}")
    print(f"bfloat16 matrix product: {peak / 1e9:.0f} GFLOP/s\n")
    headers = ["", "", "answer tokens/s", "rows/s", "share of peak", "peak GiB", "times plain"]
    print(tabulate(table, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
