"""From log-mel to the prompt's slots: Whisper's encoder for speech of any length, and the projector behind it.

The projector is the paper's pooling with a linear layer, or our pinyin bridge.

Shape letters: B batch, M mel bins, F mel frames, T encoder frames (50 per second), S bridge frames (25 per second),
D encoder width, N slots, H width of the language model, U pinyin units.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration_pinyin_llm import PinyinLlamaConfig, num_encoder_frames


IN_WHISPER = {r"^(?:model\.)?encoder\.": ""}  # the encoder's weights in a Whisper checkpoint of any class
BRIDGE_STRIDE = 2
SECONDS_PER_BRIDGE_FRAME = 0.02 * BRIDGE_STRIDE
# Music is recognised as "yi1 yi1 yi1 yi1 yi1"; people say 哈哈哈, and seldom a fourth (docs/log.md).
MOST_REPEATS = 3
INITIALS = ("zh", "ch", "sh", *"bpmfdtnlgkhjqxrzcsyw")


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(B,) lengths -> (B, size) bool, true on the first `lengths[b]` positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class PinyinLlamaAudioTower(WhisperEncoder):
    """Whisper's encoder, same weights, for speech of any length up to 30 s in batches of mixed lengths.

    The stock encoder demands 30 s windows, so short clips pay for silence. Here a clip's frames never depend on its
    neighbours in the batch: everything beyond its end is zeroed before each convolution and masked in attention.
    """

    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"proj_out\."]

    def forward(self, input_features: torch.Tensor, input_features_mask: torch.Tensor) -> torch.Tensor:
        """(B, M, F) log-mel and (B, F) mask -> (B, T, D).

        Raises:
            ValueError: More frames than Whisper has positions for (30 s).
        """
        frames = num_encoder_frames(input_features_mask.sum(-1))
        limit = self.embed_positions.num_embeddings
        if num_encoder_frames(input_features.shape[-1]) > limit:
            raise ValueError(
                f"Expected at most {2 * limit} mel frames ({limit / 50:.0f} s), found {input_features.shape[-1]}. "
                "Cut longer audio at its pauses, with split_at_pauses of audio_pinyin_llm or transcribe_clips of "
                "transcription_pinyin_llm."
            )
        mel_mask = input_features_mask[:, None].to(self.conv1.weight.dtype)
        hidden = nn.functional.gelu(self.conv1(input_features.to(self.conv1.weight.dtype) * mel_mask))
        hidden = nn.functional.gelu(self.conv2(hidden * mel_mask)).transpose(1, 2)  # B, M, F -> B, T, D
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        mask = create_bidirectional_mask(self.config, hidden, length_mask(frames, hidden.shape[1]).long())
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.layer_norm(hidden)

    @classmethod
    def from_whisper(cls, name: str, **kwargs) -> "PinyinLlamaAudioTower":
        """The encoder of a Whisper checkpoint; the decoder's weights are not read.

        Args:
            name: Folder or Hub id.
            **kwargs: For `from_pretrained`: revision, dtype, ...

        Raises:
            ValueError: A checkpoint without such an encoder.
        """
        tower, info = cls.from_pretrained(name, key_mapping=IN_WHISPER, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:4])
            raise ValueError(
                f"{name} has no Whisper encoder of the expected shape: missing {missing}. Name a Whisper checkpoint."
            )
        return tower


@dataclass
class Slots:
    """What fills the placeholders of a batch: speech, or typed pinyin.

    Args:
        vectors: (B, N, H).
        filled: (B, N) bool; an empty slot is masked out of attention.
        counts: (B,) placeholders of each row.
        log_probs: (B, S, 1 + U) output of the bridge's CTC head, blank first.
        frames: (B,) valid bridge frames.
        unit_probs: (B, N, U) probability of each unit in each slot.
        recognized: The units recognised with times and confidence, named as in [`PinyinLlamaOutput`].
    """

    vectors: torch.Tensor
    filled: torch.Tensor
    counts: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    frames: torch.Tensor | None = None
    unit_probs: torch.Tensor | None = None
    recognized: dict = field(default_factory=dict)

    def cut(self, spans: list[tuple[int, int, int]]) -> "Slots":
        """For each (row, start, end) a row of its own, with the slots from start to end."""

        def cut_out(values: torch.Tensor) -> torch.Tensor:
            return pad_sequence([values[row, start:end] for row, start, end in spans], batch_first=True)

        counts = torch.tensor([end - start for _, start, end in spans], device=self.vectors.device)
        return Slots(cut_out(self.vectors), cut_out(self.filled), counts, unit_probs=cut_out(self.unit_probs))


class PoolingProjector(nn.Module):
    """The paper's projector: a window of `stride` frames becomes one vector, then one linear layer.

    The paper gives neither the pooling nor the stride, so five kinds are implemented for comparison.
    """

    def __init__(self, config: PinyinLlamaConfig):
        super().__init__()
        width = config.audio_config.d_model
        self.stride, self.kind = config.projector_stride, config.projector_pooling
        if self.kind == "attention":
            self.score = nn.Linear(width, 1)
        if self.kind == "conv":
            self.conv = nn.Conv1d(width, width, kernel_size=self.stride, stride=self.stride)
        self.linear = nn.Linear(width * self.stride if self.kind == "stack" else width, config.hidden_size)

    def forward(self, hidden: torch.Tensor, frames: torch.Tensor, pinyin_table: torch.Tensor) -> Slots:
        """(B, T, D) and (B,) valid frames -> slots (B, N, H), N = ceil(T / stride)."""
        valid = length_mask(frames, hidden.shape[1])
        missing = -hidden.shape[1] % self.stride
        hidden = nn.functional.pad(hidden * valid.unsqueeze(-1), (0, 0, 0, missing))
        valid = nn.functional.pad(valid, (0, missing))
        windows = hidden.unflatten(1, (-1, self.stride))  # B, T, D -> B, N, stride, D
        inside = valid.unflatten(1, (-1, self.stride))  # B, N, stride
        pool = getattr(self, f"_{self.kind}")
        vectors = self.linear(pool(windows, inside.unsqueeze(-1)))
        return Slots(vectors=vectors, filled=inside.any(-1))

    def _mean(self, windows, inside):
        return windows.sum(2) / inside.sum(2).clamp(min=1)

    def _max(self, windows, inside):
        return windows.masked_fill(~inside, -1e4).amax(2)

    def _attention(self, windows, inside):
        weights = self.score(windows).masked_fill(~inside, -1e4).softmax(2)
        return (weights * windows).sum(2)

    def _stack(self, windows, inside):
        return windows.flatten(2)

    def _conv(self, windows, inside):
        return self.conv(windows.flatten(1, 2).transpose(1, 2)).transpose(1, 2)


class PinyinBridge(nn.Module):
    """Speech -> pinyin by CTC -> the vectors that stage 1 has taught the language model to read.

    A unit's logit is the sum of the logits of its initial, final and tone, plus a bias, so that rare units learn from
    common ones. Each run of frames whose best class is the same unit fills one slot with the expected row of the pinyin
    table, plus a linear residual for what pinyin does not say.
    """

    def __init__(self, config: PinyinLlamaConfig):
        super().__init__()
        width = config.bridge_hidden_size
        composition = self.compose_units(config.pinyin_units)
        self.norm = nn.LayerNorm(config.audio_config.d_model)
        self.conv = nn.Conv1d(config.audio_config.d_model, width, kernel_size=5, stride=BRIDGE_STRIDE, padding=2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.bridge_num_attention_heads,
                dim_feedforward=4 * width,
                dropout=config.bridge_dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.bridge_num_layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self.parts = nn.Linear(width, 1 + composition.shape[0])  # blank, initials, finals, tones
        self.unit_bias = nn.Parameter(torch.zeros(config.pinyin_vocab_size))
        self.register_buffer("composition", composition)
        self.residual = nn.Linear(width, config.hidden_size)
        self.stride = config.projector_stride

    @staticmethod
    def compose_units(units: str) -> torch.Tensor:
        """(parts, U) of 0 and 1: the initial, final and tone that each unit consists of."""
        split = []
        for unit in units.split():
            initial = next((i for i in INITIALS if unit.startswith(i)), "")
            split.append((f"{initial}-", f"-{unit[len(initial) : -1]}", unit[-1]))
        names = {part: row for row, part in enumerate(sorted({part for parts in split for part in parts}))}
        composition = torch.zeros(len(names), len(split))
        for column, parts in enumerate(split):
            composition[[names[part] for part in parts], column] = 1
        return composition

    def forward(self, hidden: torch.Tensor, frames: torch.Tensor, pinyin_table: torch.Tensor) -> Slots:
        """(B, T, D), (B,) valid frames and the (U, H) pinyin table -> slots (B, N, H), N = ceil(T / stride)."""
        slots = -(-hidden.shape[1] // self.stride)
        own = length_mask(-(-frames // self.stride), slots)  # a short clip has fewer slots than its neighbours
        states, frames = self.encode(hidden, frames)
        log_probs = self.classify(states)
        members, best = segment(log_probs, frames, slots)
        members = members & own.unsqueeze(-1)
        weights = members / members.sum(-1, keepdim=True).clamp(min=1)  # B, N, S: mean over the frames of a run
        unit_probs = weights.to(log_probs.dtype) @ log_probs[..., 1:].exp()  # B, N, S @ B, S, U -> B, N, U
        unit_probs = unit_probs / unit_probs.sum(-1, keepdim=True).clamp(min=1e-6)
        filled = members.any(-1)
        vectors = unit_probs.to(pinyin_table.dtype) @ pinyin_table  # B, N, U @ U, H -> B, N, H
        vectors = vectors + self.residual(weights.to(states.dtype) @ states) * filled.unsqueeze(-1)
        recognized = describe_segments(members, best, unit_probs, frames)
        return Slots(vectors, filled, log_probs=log_probs, frames=frames, unit_probs=unit_probs, recognized=recognized)

    def encode(self, hidden: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, D) -> (B, S, width) and the valid frames of each row."""
        hidden = self.norm(hidden) * length_mask(frames, hidden.shape[1]).unsqueeze(-1)
        states = nn.functional.gelu(self.conv(hidden.transpose(1, 2))).transpose(1, 2)
        frames = (frames - 1) // BRIDGE_STRIDE + 1
        padding = ~length_mask(frames, states.shape[1])
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return self.final_norm(states), frames

    def classify(self, states: torch.Tensor) -> torch.Tensor:
        """(B, S, width) -> (B, S, 1 + U) float32 log-probabilities, blank first."""
        blank, parts = self.parts(states).split([1, self.composition.shape[0]], dim=-1)
        units = parts @ self.composition.to(parts.dtype) + self.unit_bias
        return torch.cat([blank, units], dim=-1).float().log_softmax(-1)

    @staticmethod
    def ctc_loss(
        log_probs: torch.Tensor,
        frames: torch.Tensor,
        pinyin_labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean CTC loss per spoken unit.

        Args:
            log_probs: (B, S, 1 + U), blank first.
            frames: (B,) valid bridge frames.
            pinyin_labels: (B, N) unit ids, -100 where there is none.
            num_items_in_batch: What the sum is divided by if the Trainer passes it: a batch may come in several parts.
        """
        spoken = pinyin_labels >= 0
        loss = nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            pinyin_labels.clamp(min=0) + 1,
            frames,
            spoken.sum(-1),
            reduction="sum",
            zero_infinity=True,
        )
        return loss / (spoken.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def segment(log_probs: torch.Tensor, frames: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of frames whose best class is the same unit; of equal runs in succession only the first `MOST_REPEATS`.

    Returns:
        (B, slots, S) bool, the frames of each run in order of time, and (B, S) the best class, 0 for blank.
    """
    best = log_probs.argmax(-1) * length_mask(frames, log_probs.shape[1])
    best = best * ~is_repeated(best)
    return number_runs(best)[:, None] == torch.arange(1, slots + 1, device=best.device)[:, None], best


def number_runs(best: torch.Tensor) -> torch.Tensor:
    """(B, S) best classes -> the number of each frame's run, 1, 2, ... along time; 0 in blanks."""
    previous = nn.functional.pad(best[:, :-1], (1, 0))
    return ((best > 0) & (best != previous)).cumsum(-1) * (best > 0)


def is_repeated(best: torch.Tensor) -> torch.Tensor:
    """(B, S) best classes -> (B, S) bool, true in runs of a unit that also fills the `MOST_REPEATS` runs before."""
    run = number_runs(best)
    # (B, MOST_REPEATS + runs): the unit of each run, shifted so that the first ones have predecessors; 0 for blanks
    units = torch.zeros(len(run), MOST_REPEATS + run.shape[1] + 1, dtype=best.dtype, device=best.device)
    units = units.scatter(1, run + MOST_REPEATS, best)
    same = [units.gather(1, run + MOST_REPEATS - back) == best for back in range(1, MOST_REPEATS + 1)]
    return torch.stack(same).all(0) & (best > 0)


def describe_segments(
    members: torch.Tensor, best: torch.Tensor, unit_probs: torch.Tensor, frames: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The unit recognised in each slot (-1 where empty), its times in seconds and its probability.

    CTC recognises a unit in one or two frames, so a unit is taken to last until the next one, and the last to the end.
    """
    units = (members * best[:, None]).amax(-1) - 1  # B, N
    start = members.int().argmax(-1).where(units >= 0, frames[:, None])
    end = torch.cat([start[:, 1:], frames[:, None]], dim=-1)
    confidence = unit_probs.gather(-1, units.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (units >= 0)
    times = torch.stack([start, end], dim=-1) * SECONDS_PER_BRIDGE_FRAME
    return {"pinyin": units, "pinyin_times": times, "pinyin_confidence": confidence.detach()}


__all__ = ["PinyinBridge", "PinyinLlamaAudioTower", "PoolingProjector", "Slots", "length_mask"]
