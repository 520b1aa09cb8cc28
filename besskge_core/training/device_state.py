"""The state of PopTorch's optimisers, which is on IPUs, in checkpoints.

PopTorch hands it out as tensors by names of its own, those of sharded weights with an axis of
replicas, and takes it back before a program first runs. It fits no other optimiser, and no other
number of shards.
"""

from __future__ import annotations

from typing import Dict, Mapping, Optional

import torch
from torch import Tensor

from besskge_core.errors import CheckpointError

#: The file of a checkpoint.
FILE = "ipu-optimizer.safetensors"

#: What PopTorch's state dictionaries have besides torch's.
PARTS = ("ipu_state", "ipu_param")


def is_on_device(optimizer: Optional[torch.optim.Optimizer]) -> bool:
    """Whether it is one of PopTorch's, whose state is on IPUs."""
    return hasattr(optimizer, "ipu_state_is_dirty")


def device_state(optimizer: torch.optim.Optimizer) -> Dict[str, Tensor]:
    """Tensors by part and name; none before the first step."""
    stored = optimizer.state_dict()
    return {
        f"{part}/{name}": torch.as_tensor(x)
        for part in PARTS
        for name, x in (stored.get(part) or {}).items()
    }


def load_device_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser of PopTorch's what :func:`device_state` gave."""
    parts: Dict[str, Dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, x in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = x
    if any(parts.values()):  # else no step had been taken
        own = torch.optim.Optimizer.state_dict(optimizer)
        optimizer.load_state_dict({**own, **parts})


def check_device_state(
    path: object, optimizer: Optional[torch.optim.Optimizer], is_stored: bool, same_shards: bool
) -> None:
    """Refuse to go on with the state of another kind of optimiser.

    Args:
        path: of the checkpoint.
        optimizer: that is to go on; None: only weights are wanted.
        is_stored: the checkpoint has the state of an optimiser on IPUs.
        same_shards: it is of as many shards as there are now.

    Raises:
        CheckpointError: the state fits no such optimiser.
    """
    if optimizer is None:
        return
    if is_stored and not is_on_device(optimizer):
        raise CheckpointError(
            f"{path}: its optimiser state is that of IPUs; go on there, or load the weights alone"
        )
    if is_on_device(optimizer) and not is_stored:
        raise CheckpointError(
            f"{path}: holds no optimiser state of IPUs; go on where it was written, or load the"
            " weights alone"
        )
    if is_stored and not same_shards:
        raise CheckpointError(
            f"{path}: optimiser state on IPUs is of another number of shards; go on with as many, or"
            " load the weights alone"
        )
