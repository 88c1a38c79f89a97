"""Muon for the matrices, AdamW for the rest, as one optimizer."""

import torch


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon on 2-D hidden weights and AdamW on embeddings, norms and heads, behind one schedule.

    Muon's steps are scaled to AdamW's size (`match_rms_adamw`), so one learning rate serves both. It learns P2C from
    scratch in fewer steps than AdamW (docs/log.md).
    """

    def __init__(self, matrices: list, others: list, lr: float, weight_decay: float):
        decay = {"lr": lr, "weight_decay": weight_decay}
        self.parts = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **decay)] if matrices else []
        self.parts.append(torch.optim.AdamW(others, betas=(0.9, 0.98), fused=True, **decay))
        super().__init__([{"params": [*matrices, *others]}], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict):
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def split_parameters(model: torch.nn.Module) -> tuple[list, list]:
    """What learns: hidden matrices, for Muon; embeddings, heads, norms and biases, for AdamW."""
    tables = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings()
    tables |= {id(p) for p in head.parameters()} if head is not None else set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim == 2 and id(p) not in tables]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in trainable if id(p) not in chosen]


def build_optimizer(model: torch.nn.Module, lr: float, weight_decay: float) -> MuonAdamW:
    """Muon and AdamW on what learns of `model`."""
    return MuonAdamW(*split_parameters(model), lr, weight_decay)
