"""Which device steps run on, and whether there is such a one."""

from __future__ import annotations

from typing import Union

import torch

from besskge_core.errors import ConfigError


def checked_device(device: Union[str, torch.device]) -> torch.device:
    """The device of a name; of "cuda" that which is current, by its number.

    Raises:
        ConfigError: this torch or this machine does not have it.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}, expected 'cpu', 'cuda' or 'cuda:0'") from error
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        build = torch.version.cuda
        reason = (
            "it was built without; install one that was built with it"
            if build is None
            else f"it was built with CUDA {build}, but no GPU or no driver for that is visible"
        )
        raise ConfigError(
            f"device is {str(device)!r}, but this torch ({torch.__version__}) has no CUDA: {reason},"
            " or give device 'cpu'"
        )
    n_device = torch.cuda.device_count()
    if found.index is not None and found.index >= n_device:
        raise ConfigError(
            f"device is {str(device)!r}, but there are {n_device} GPUs, from cuda:0 on"
        )
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
