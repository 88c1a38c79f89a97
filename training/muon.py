"""Muon for the matrices and AdamW for everything else, as one optimizer."""

from collections import defaultdict

import torch


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, updating all matrices of one shape at once: the same steps in a third of the time.

    The matrices of a layer are small (384 x 384 to 1024 in the mini model), and many have the same shape.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                updates = orthogonalize(torch.stack([self._momentum(m, group["momentum"]) for m in matrices]), group)
                lr = (
                    group["lr"] * 0.2 * max(shape) ** 0.5
                )  # scales steps to the size of AdamW's: torch's "match_rms_adamw"
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-lr)

    def _momentum(self, matrix: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient with Nesterov momentum."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return matrix.grad.lerp(state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum), momentum)


def orthogonalize(gradients: torch.Tensor, group: dict) -> torch.Tensor:
    """(N, A, B) -> bfloat16 with singular values near 1, by Newton-Schulz (torch.optim.Muon; Jordan 2024)."""
    a, b, c = group["ns_coefficients"]
    tall = gradients.shape[-2] > gradients.shape[-1]
    wide = gradients.bfloat16().mT.contiguous() if tall else gradients.bfloat16()
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if tall else wide


class MuonAdamW(torch.optim.Optimizer):
    """Muon on 2-D hidden weights and AdamW on embeddings, norms and heads, behind one schedule.

    Muon's steps are scaled to AdamW's size, so one learning rate serves both. P2C from scratch takes fewer steps than
    with AdamW (docs/log.md).
    """

    def __init__(self, matrices: list, others: list, lr: float, weight_decay: float):
        decay = {"lr": lr, "weight_decay": weight_decay}
        self.parts = [BatchedMuon(matrices, **decay)] if matrices else []
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
    """The trainable parameters: hidden matrices for Muon; embeddings, heads, norms and biases for AdamW."""
    tables = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings()
    tables |= {id(p) for p in head.parameters()} if head is not None else set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim == 2 and id(p) not in tables]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in trainable if id(p) not in chosen]


def build_optimizer(model: torch.nn.Module, lr: float, weight_decay: float) -> MuonAdamW:
    """Muon and AdamW on the trainable parameters of `model`."""
    return MuonAdamW(*split_parameters(model), lr, weight_decay)
