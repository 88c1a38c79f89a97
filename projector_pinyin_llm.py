"""From the encoder's frames to the prompt's slots: the paper's pooling, and our pinyin bridge.

Shape letters: B batch, T encoder frames (50 a second), S bridge frames (25 a second), D encoder width, N slots, H width
of the language model, U pinyin units.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .configuration_pinyin_llm import PinyinLlamaConfig


BRIDGE_STRIDE = 2
SECONDS_PER_BRIDGE_FRAME = 0.02 * BRIDGE_STRIDE
MOST_IN_A_ROW = 3  # of one unit: music is heard as "yi1 yi1 yi1 yi1 yi1"; people say 哈哈哈, and seldom a fourth
INITIALS = ("zh", "ch", "sh", *"bpmfdtnlgkhjqxrzcsyw")


@dataclass
class AudioSlots:
    """What fills the placeholders of a batch.

    Args:
        vectors: (B, N, H).
        filled: (B, N) bool; an empty slot is masked out of attention.
        bound: (B,) placeholders that each row has.
        log_probs: (B, S, 1 + U) of the bridge's CTC head, blank first.
        frames: (B,) valid bridge frames.
        units: (B, N, U) probability of each unit in each slot.
        pinyin: Heard units, times and confidence, named as in [`PinyinLlamaOutput`].
    """

    vectors: torch.Tensor
    filled: torch.Tensor
    bound: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    frames: torch.Tensor | None = None
    units: torch.Tensor | None = None
    pinyin: dict = field(default_factory=dict)

    def cut(self, spans: list[tuple[int, int, int]]) -> "AudioSlots":
        """For each (row, start, end) a row of its own, of the slots from start to end."""

        def cut(values: torch.Tensor) -> torch.Tensor:
            return pad_sequence([values[row, start:end] for row, start, end in spans], batch_first=True)

        bound = torch.tensor([end - start for _, start, end in spans], device=self.vectors.device)
        return AudioSlots(cut(self.vectors), cut(self.filled), bound, units=cut(self.units))


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(B,) lengths -> (B, size) bool, true on the first `lengths[b]` places."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class PoolingProjector(nn.Module):
    """The paper's projector: a window of `stride` frames becomes one vector, then one linear layer.

    The paper names neither the pooling nor the stride; all five kinds are here to be compared.
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

    def forward(self, hidden: torch.Tensor, frames: torch.Tensor, pinyin_table: torch.Tensor) -> AudioSlots:
        """(B, T, D) and (B,) valid frames -> slots (B, N, H), N = ceil(T / stride)."""
        valid = length_mask(frames, hidden.shape[1])
        missing = -hidden.shape[1] % self.stride
        hidden = nn.functional.pad(hidden * valid.unsqueeze(-1), (0, 0, 0, missing))
        valid = nn.functional.pad(valid, (0, missing))
        windows = hidden.unflatten(1, (-1, self.stride))  # B, T, D -> B, N, stride, D
        inside = valid.unflatten(1, (-1, self.stride))  # B, N, stride
        vectors = self.linear(getattr(self, f"_{self.kind}")(windows, inside.unsqueeze(-1)))
        return AudioSlots(vectors=vectors, filled=inside.any(-1))

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

    A unit's logit is the sum of its initial's, its final's and its tone's, plus a bias: rare units learn from common
    ones. Each run of frames that hear one unit fills one slot with the expected row of the pinyin table, plus a linear
    residual for what pinyin does not say.
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
        """(parts, U) of 0 and 1: which initial, final and tone each unit is made of."""
        split = []
        for unit in units.split():
            initial = next((i for i in INITIALS if unit.startswith(i)), "")
            split.append((f"{initial}-", f"-{unit[len(initial) : -1]}", unit[-1]))
        names = {part: row for row, part in enumerate(sorted({part for parts in split for part in parts}))}
        composition = torch.zeros(len(names), len(split))
        for column, parts in enumerate(split):
            composition[[names[part] for part in parts], column] = 1
        return composition

    def forward(self, hidden: torch.Tensor, frames: torch.Tensor, pinyin_table: torch.Tensor) -> AudioSlots:
        """(B, T, D), (B,) valid frames and the (U, H) pinyin table -> slots (B, N, H), N = ceil(T / stride)."""
        slots = -(-hidden.shape[1] // self.stride)
        own = length_mask(-(-frames // self.stride), slots)  # a short clip has fewer slots than its neighbours
        states, frames = self.encode(hidden, frames)
        log_probs = self.classify(states)
        members, best = segment(log_probs, frames, slots)
        members = members & own.unsqueeze(-1)
        weights = members / members.sum(-1, keepdim=True).clamp(min=1)  # B, N, S
        units = weights.to(log_probs.dtype) @ log_probs[..., 1:].exp()
        units = units / units.sum(-1, keepdim=True).clamp(min=1e-6)
        filled = members.any(-1)
        vectors = units.to(pinyin_table.dtype) @ pinyin_table
        vectors = vectors + self.residual(weights.to(states.dtype) @ states) * filled.unsqueeze(-1)
        pinyin = describe_segments(members, best, units, frames)
        return AudioSlots(vectors, filled, log_probs=log_probs, frames=frames, units=units, pinyin=pinyin)

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
        """Mean CTC loss a spoken unit. `pinyin_labels` (B, N) holds unit ids, -100 where there is none.

        The sum is divided by `num_items_in_batch` where the Trainer gives it: a batch may come in several parts.
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
    """Runs of frames whose best class is the same unit; of equal runs in a row the first `MOST_IN_A_ROW`.

    Returns:
        (B, slots, S) bool, the frames of each run in order of time, and (B, S) the best class, 0 for blank.
    """
    best = log_probs.argmax(-1) * length_mask(frames, log_probs.shape[1])
    best = best * ~in_long_row(best)
    return number_runs(best)[:, None] == torch.arange(1, slots + 1, device=best.device)[:, None], best


def number_runs(best: torch.Tensor) -> torch.Tensor:
    """(B, S) best classes -> the number of each frame's run, 1, 2, ... along time; 0 in blanks."""
    previous = nn.functional.pad(best[:, :-1], (1, 0))
    return ((best > 0) & (best != previous)).cumsum(-1) * (best > 0)


def in_long_row(best: torch.Tensor) -> torch.Tensor:
    """(B, S) bool, true in the runs of a unit that `MOST_IN_A_ROW` runs before have, too."""
    run = number_runs(best)
    units = torch.zeros(len(run), MOST_IN_A_ROW + run.shape[1] + 1, dtype=best.dtype, device=best.device)
    units = units.scatter(1, run + MOST_IN_A_ROW, best)  # by number of the run; blanks all write 0
    same = [units.gather(1, run + MOST_IN_A_ROW - back) == best for back in range(1, MOST_IN_A_ROW + 1)]
    return torch.stack(same).all(0) & (best > 0)


def describe_segments(
    members: torch.Tensor, best: torch.Tensor, units: torch.Tensor, frames: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The unit heard in each slot (-1 where empty), when (seconds) and how surely.

    CTC hears a unit in a frame or two, so it lasts until the next one is heard, and the last one to the end.
    """
    heard = (members * best[:, None]).amax(-1) - 1  # B, N
    start = members.int().argmax(-1).where(heard >= 0, frames[:, None])
    end = torch.cat([start[:, 1:], frames[:, None]], dim=-1)
    confidence = units.gather(-1, heard.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (heard >= 0)
    times = torch.stack([start, end], dim=-1) * SECONDS_PER_BRIDGE_FRAME
    return {"pinyin": heard, "pinyin_times": times, "pinyin_confidence": confidence.detach()}


__all__ = ["AudioSlots", "PinyinBridge", "PoolingProjector", "length_mask"]
