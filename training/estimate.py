"""What a run will need, from its configuration alone: parameters, memory of one device, hours. `--dry_run` prints it.

The model is built on the meta device, where tensors have shapes but no memory, so a laptop can estimate 7 B parameters.
Language models are assumed to be like LLaMA: attention with key-value heads, a gated MLP, RMSNorm.

Letters: L tokens per row, H width, I width of the MLP, V vocabulary, T encoder frames (50 per second), D encoder width.
"""

from dataclasses import dataclass

import torch

from .. import PinyinLlamaConfig, PinyinLlamaForASR
from .muon import split_parameters


PARTS = ("audio_tower", "text_decoder", "multi_modal_projector", "pinyin_embeddings", "language_model")
FEATURE_BYTES = 2  # the cache keeps float16


@dataclass(frozen=True)
class RowSize:
    """The size of one row of a batch.

    Args:
        tokens: Positions in the language model; 0 if it takes no part.
        answers: Positions whose logits are computed.
        frames: Encoder frames of its speech; 0 for pinyin.
    """

    tokens: int
    answers: int
    frames: int = 0

    @classmethod
    def of(cls, batch: dict, config: PinyinLlamaConfig) -> "RowSize":
        """The size of every row in a collator's batch, padding included.

        A good bridge fills as many slots as there are syllables; training leaves the empty ones out.
        """
        tokens = batch["input_ids"].shape[1] if "input_ids" in batch else 0
        if tokens and "pinyin_labels" in batch:
            slots = (batch["input_ids"] == config.audio_token_id).sum(-1)
            syllables = (batch["pinyin_labels"] >= 0).sum(-1)
            tokens = int((batch["attention_mask"].sum(-1) - slots + syllables).max())
        frames = batch["audio_hidden_states"].shape[1] if "audio_hidden_states" in batch else 0
        return cls(tokens, batch.get("logits_to_keep", tokens), frames)


def build_on_meta(config: PinyinLlamaConfig) -> PinyinLlamaForASR:
    """The model without its weights; nothing is allocated."""
    with torch.device("meta"):
        return PinyinLlamaForASR(config)


def count_parameters(model) -> dict[str, tuple[int, int]]:
    """(all, trainable) parameters of each part.

    PEFT's LoRA counts for the language model; the copy that it keeps of a part trained in full counts for that part.
    """
    counts = {}
    for part in (name for name in PARTS if getattr(model, name) is not None):
        own = [p for name, p in model.named_parameters() if part in name.split(".")]
        counts[part] = (sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
    return counts


def held_bytes(model, optimizer: str, processes: int = 1) -> dict[str, int]:
    """Bytes that a device holds from step to step.

    A gradient is as large as its weight; DistributedDataParallel keeps a second copy in its buckets. AdamW has two
    states per weight (Kingma and Ba 2015), Muon one.
    """
    matrices, others = split_parameters(model)
    muon, adamw = (sum(p.nbytes for p in parameters) for parameters in (matrices, others))
    gradients = muon + adamw
    return {
        "weights": sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
        "gradients": gradients * (2 if processes > 1 else 1),
        "optimizer states": (1 if optimizer == "muon" else 2) * muon + 2 * adamw,
    }


def layer_bytes(config: PinyinLlamaConfig, tokens: int, arguments, bf16: bool) -> int:
    """Bytes per token that one decoder layer keeps for its backward pass.

    Counted for LLaMA's layer as Korthikanti et al. 2022 (arXiv 2205.05198) count GPT's: the inputs of the seven
    projections, of which autocast makes a copy each (bfloat16: 6 H; else 2 H, shared); queries and attention's output
    (2 H), keys and values; four of the MLP's (4 I): gate, its SiLU, up, their product. The two norms compute in float32
    and keep their input (2 H), and their output where they learn. Fused attention keeps no weights; eager keeps heads *
    L, in float32 and under autocast once more.
    """
    text, width = config.text_config, 2 if bf16 else 4
    heads = text.num_attention_heads
    keys = text.hidden_size * (getattr(text, "num_key_value_heads", None) or heads) // heads
    numbers = (8 if bf16 else 4) * text.hidden_size + 2 * keys + 4 * text.intermediate_size
    norms = (2 if arguments.lora else 4) * 4 * text.hidden_size
    weights = heads * tokens * (6 if bf16 else 4) if arguments.attention == "eager" else 0
    return numbers * width + norms + weights


def activation_bytes(config: PinyinLlamaConfig, row: RowSize, rows: int, arguments, settings) -> dict[str, int]:
    """Bytes that a step of `rows` rows holds between forward and backward, as if all kinds peaked at the same time.

    With activation checkpointing (Chen et al. 2016, arXiv 1604.06174) a layer keeps its input (H), and one layer at a
    time is computed again. A logit is there in the step's type, in float32, as log-probability and as gradient of it.
    """
    text, width = config.text_config, 2 if settings.bf16 else 4
    layer = layer_bytes(config, row.tokens, arguments, settings.bf16)
    entry = text.hidden_size * (2 if arguments.frozen_bf16 and arguments.lora else 4)  # in the type of the embeddings
    checkpointed = text.num_hidden_layers * entry + layer
    layers = checkpointed if settings.activation_checkpointing else text.num_hidden_layers * layer
    return {
        "activations of the language model": rows * row.tokens * layers,
        "activations of the projector": rows * _projector_bytes(config, row.frames),
        "logits": rows * row.answers * text.vocab_size * (width + 3 * 4),
    }


def _projector_bytes(config: PinyinLlamaConfig, frames: int) -> int:
    """Float32: the speech as it came, masked and padded; the bridge's layers (17 numbers per unit of width), logits."""
    speech = 3 * 4 * frames * config.audio_config.d_model
    if config.projector_type != "pinyin_bridge":
        return speech
    numbers = 17 * config.bridge_num_layers * config.bridge_hidden_size + 4 * config.pinyin_vocab_size
    return speech + 4 * numbers * frames // 2


def autocast_bytes(model, bf16: bool) -> int:
    """Under autocast each float32 matrix of the language model is also there in bfloat16 until its backward pass."""
    layers = [p for p in _layer_matrices(model) if p.dtype == torch.float32]
    return 2 * sum(p.numel() for p in layers) if bf16 else 0


def _layer_matrices(model) -> list[torch.nn.Parameter]:
    named = ((name.split("."), p) for name, p in model.named_parameters())
    return [p for path, p in named if "language_model" in path and "layers" in path and p.ndim == 2]


def row_flops(model, config: PinyinLlamaConfig, row: RowSize, checkpointing: bool) -> float:
    """Floating-point operations of one row, forward and backward.

    A matrix costs 2 operations per weight and token, attention 4 L H per token (Kaplan et al. 2020, arXiv 2001.08361,
    table 1, without its halving for the causal mask). The backward pass costs as much for the gradients of the inputs,
    which every layer passes down to the pinyin table or the projector, and as much again for those of the weights that
    are trained. Checkpointing computes the layers once more. The encoder's output comes from the cache.
    """
    text, matrices = config.text_config, _layer_matrices(model)
    passes = 3 if checkpointing else 2
    forward = 2 * sum(p.numel() for p in matrices) * row.tokens
    learned = 2 * sum(p.numel() for p in matrices if p.requires_grad) * row.tokens
    attention = 4 * text.num_hidden_layers * text.hidden_size * row.tokens**2
    head = 2 * text.hidden_size * text.vocab_size * row.answers
    head_learns = any(p.requires_grad for p in model.get_output_embeddings().parameters())
    projector = 6 * count_parameters(model)["multi_modal_projector"][1] * row.frames  # at most: pooling comes first
    return forward * passes + learned + attention * (passes + 1) + head * (2 + head_learns) + projector


def encoder_flops(model, config: PinyinLlamaConfig, seconds: float, clips: int) -> float:
    """Operations of the encoder's one pass over the corpus, in clips of similar length; counted as in `row_flops`."""
    frames, audio = 50 * seconds, config.audio_config
    attention = 4 * audio.encoder_layers * audio.d_model * frames**2 / clips
    return 2 * count_parameters(model)["audio_tower"][0] * frames + attention


def steps_of(settings, examples: int, processes: int) -> int:
    """Optimizer steps of the run, as transformers' Trainer counts them."""
    if settings.max_steps > 0:
        return settings.max_steps
    batches = -(-examples // (settings.per_device_train_batch_size * processes))
    return int(-(-settings.num_train_epochs * -(-batches // settings.gradient_accumulation_steps) // 1))


def estimate(
    model,
    config: PinyinLlamaConfig,
    arguments,
    settings,
    rows: tuple[RowSize, RowSize],
    examples: int,
    seconds: float = 0.0,
    rows_per_example: int = 1,
) -> str:
    """The table that a dry run prints: memory of one device by kind, work, hours.

    Args:
        model: From `build_on_meta`, with what is trainable chosen.
        arguments: ModelArguments.
        settings: TrainingArguments.
        rows: A row of median length, which time is estimated from, and the longest, which memory is.
        examples: Rows of an epoch.
        seconds: Speech that is encoded once.
        rows_per_example: Rows computed for each row of the batch: 2 where text is replayed.
    """
    typical, longest = rows
    size = settings.per_device_train_batch_size * rows_per_example
    memory = held_bytes(model, arguments.optimizer, arguments.devices)
    memory |= activation_bytes(config, longest, size, arguments, settings)
    if longest.tokens:
        memory["bfloat16 copies of float32 weights"] = autocast_bytes(model, settings.bf16)
    passes = size * settings.gradient_accumulation_steps
    flops = passes * row_flops(model, config, typical, settings.activation_checkpointing)
    steps, rate = steps_of(settings, examples, arguments.devices), arguments.device_tflops * 1e12
    lines = [f"{'':36}{'all':>16}{'trainable':>16}"]
    lines += [f"{part:36}{n:16,}{learned:16,}" for part, (n, learned) in count_parameters(model).items()]
    lines += [f"{kind:36}{n / 1e9:13.3f} GB" for kind, n in memory.items()]
    lines += [f"{'memory of each device':36}{sum(memory.values()) / 1e9:13.3f} GB"]
    lines.append(
        f"{passes} rows per step and device, of {typical.tokens} tokens (longest: {longest.tokens}); "
        f"devices: {arguments.devices}; {flops / 1e12:.3g} TFLOP"
    )
    lines.append(
        f"{steps} steps: {steps * flops / rate / 3600:.3g} h at {arguments.device_tflops:g} TFLOP/s, which is "
        "what --device_tflops says, not a measurement; evaluation and reading of data are not included"
    )
    if seconds:
        lines.append(_describe_encoder(model, config, rate, examples, seconds))
    return "\n".join(lines)


def _describe_encoder(model, config: PinyinLlamaConfig, rate: float, clips: int, seconds: float) -> str:
    hours = encoder_flops(model, config, seconds, clips) / rate / 3600
    size = 50 * seconds * config.audio_config.d_model * FEATURE_BYTES
    return (
        f"encoder, once, in one process: {hours:.3g} h at the same rate; its outputs take {size / 1e9:.1f} GB of disk"
    )
