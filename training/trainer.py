"""The Trainer of both stages, and the course of a run: train or resume, evaluate, save, record."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from .. import PinyinLlamaForASR, PinyinLlamaProcessor
from .arguments import ModelArguments
from .muon import build_optimizer
from .records import find_checkpoint, keep_arguments, save_model, write_record


SHOWN_SAMPLES = 3
# model -> metrics, and (reference, hypothesis) of the rows that were decoded
Evaluation = Callable[[PinyinLlamaForASR], tuple[dict[str, float], list[tuple[str, str]]]]


class ShuffledLengthSampler(LengthGroupedSampler):
    """Batches of similar length, in random order.

    transformers' sampler orders its batches from long to short every 50 batches, and the loss swings with them (1.7 to
    4.9 in P2C).
    """

    def __init__(self, *args, seed: int, **kwargs):
        super().__init__(*args, **kwargs, generator=torch.Generator())
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        """The order depends on seed and epoch alone, so that a resumed run continues in it."""
        self.generator.manual_seed(10_000 * self.seed + epoch)

    def __iter__(self):
        indices = list(super().__iter__())
        starts = torch.randperm(-(-len(indices) // self.batch_size), generator=self.generator) * self.batch_size
        return (i for start in starts.tolist() for i in indices[start : start + self.batch_size])


class CollatorEpoch(TrainerCallback):
    """Tells the collator the epoch, which its noise depends on."""

    def __init__(self, collator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch = int(state.epoch or 0)


class PinyinTrainer(Trainer):
    """HF Trainer that can use Muon, compile the language model's step, and evaluates by decoding rows.

    Args:
        model_arguments: For the optimizer and the compilation.
        evaluation: Decodes the evaluation rows with the model as it is.
    """

    def __init__(self, *args, model_arguments: ModelArguments, evaluation: Evaluation, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_arguments, self.evaluation = model_arguments, evaluation
        self.add_callback(CollatorEpoch(self.data_collator))
        language_model = self.bare_model().language_model
        language_model.set_attn_implementation(model_arguments.attention)
        if model_arguments.compile_language_model:
            language_model.compile(dynamic=True)

    def bare_model(self) -> PinyinLlamaForASR:
        """The model without the wrappers of accelerate and PEFT; its LoRA layers stay active."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = list(self.train_dataset[self.args.length_column_name])  # a lazy column would be read per comparison
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return ShuffledLengthSampler(size, lengths=lengths, seed=self.args.seed)

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.model_arguments.optimizer == "muon":
            self.optimizer = build_optimizer(self.model, self.args.learning_rate, self.args.weight_decay)
        return super().create_optimizer(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the batch, plus that of the rows of stage 1 it may contain, each a mean over its own tokens."""
        replay = inputs.pop("replay", None)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if replay is None:
            return loss
        # The Trainer divides by the accumulation steps only what was not counted over the whole step.
        parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        return loss + super().compute_loss(model, replay) / parts

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        if is_sharded(self):  # no process could decode a character alone
            return {}
        self.model.eval()
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            metrics, samples = self.evaluation(self.bare_model())
        for reference, hypothesis in samples[:SHOWN_SAMPLES]:
            print(f"  reference   {reference}\n  hypothesis  {hypothesis}", file=sys.stderr)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def run_training(
    model,
    processor: PinyinLlamaProcessor,
    model_arguments: ModelArguments,
    data_arguments: list,
    settings,
    rows,
    collator,
    evaluation: Evaluation,
    counts: dict,
) -> None:
    """Train, or resume an interrupted run; then evaluate, and save the model and its record.

    With several processes only the main one writes files. Where they share the weights, nothing is evaluated.

    Args:
        data_arguments: The other dataclasses of the stage.
        settings: TrainingArguments.
        rows: The dataset; `collator` makes its batches.
        evaluation: See [`PinyinTrainer`].
        counts: What the data held and what was dropped, for the record.
    """
    output_dir, is_main, own = settings.output_dir, settings.process_index == 0, [model_arguments, *data_arguments]
    checkpoint = settings.resume_from_checkpoint or find_checkpoint(output_dir)
    if is_main:
        keep_arguments(output_dir, own, settings)
    if checkpoint:
        print(f"resuming from {checkpoint}", file=sys.stderr)
    trainer = PinyinTrainer(
        model,
        settings,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=rows.select(()),  # the Trainer requires one; `evaluation` has its own rows
        model_arguments=model_arguments,
        evaluation=evaluation,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    try:
        metrics = trainer.evaluate()
    finally:  # hours of training are not lost to a clip that cannot be decoded
        if is_sharded(trainer):
            restore_whole_weights(model, trainer.accelerator.get_state_dict(trainer.model_wrapped))
        if is_main:
            save_model(model, processor, output_dir, model_arguments.save)
    if is_main:
        write_record(output_dir, model_arguments.model, own, settings, counts, metrics)
    trainer.accelerator.wait_for_everyone()  # gloo aborts a process that ends while another is writing
    # DistributedDataParallel must not be the last to hold the process group: it would wait for gloo's threads without
    # releasing the GIL, for which they may wait (pytorch/pytorch#56297; seen once in our tests).
    trainer.model_wrapped = None
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


def is_sharded(trainer: Trainer) -> bool:
    """Whether each process holds only a part of the weights (FSDP, or DeepSpeed's ZeRO-3)."""
    deepspeed = trainer.accelerator.state.deepspeed_plugin
    return trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3)


def restore_whole_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole tensors where the model holds its shard of them.

    Args:
        state: The tensors by name, as `accelerator.get_state_dict` gives them to the main process. All other processes
            get none, and keep their shards.
    """
    for path, tensor in state.items():
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(tensor, module._parameters[name].requires_grad)
        else:
            module._buffers[name] = tensor
    if state:
        model.tie_weights()  # tensors that were shared are shared again
