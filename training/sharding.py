"""Weights that FSDP or DeepSpeed's ZeRO-3 share out among the processes: put together again, to be saved."""

from torch import Tensor, nn


def is_shared_out(trainer) -> bool:
    """Whether each process of a Trainer holds only a part of the weights."""
    deepspeed = trainer.accelerator.state.deepspeed_plugin
    return trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3)


def put_together(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole tensors where the model has its part of them.

    Args:
        state: The tensors by name, as `accelerator.get_state_dict` gives them to the main process; all others get none, and
            keep their parts.
    """
    for name, tensor in state.items():
        place, _, own = name.rpartition(".")
        module = model.get_submodule(place)
        if own in module._parameters:
            module._parameters[own] = nn.Parameter(tensor, module._parameters[own].requires_grad)
        else:
            module._buffers[own] = tensor
    if state:
        model.tie_weights()  # what was one tensor is one again
