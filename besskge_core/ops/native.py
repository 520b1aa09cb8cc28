"""Whether the native library is there; the one place that decides."""

from __future__ import annotations

import importlib
import warnings
from typing import Any, Callable

import torch
from torch import Tensor

#: Why operations run on their references; empty if they are native.
MISSING = ""

try:
    importlib.import_module("besskge_core._native")
except ModuleNotFoundError:
    MISSING = "not built"
except ImportError as error:  # built for another torch or Python
    MISSING = f"built for another torch or Python ({error})"
    warnings.warn(
        f"besskge_core's native operations cannot be loaded, plain torch serves instead:"
        f" {error}; build them again with `pip install --no-build-isolation .`",
        RuntimeWarning,
        stacklevel=2,
    )

NATIVE = not MISSING


def serves(x: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether native operations compute with `x`: on a CPU, of these dtypes, and not while a graph
    is traced for another device."""
    return NATIVE and x.device.type == "cpu" and x.dtype in dtypes and not torch.jit.is_tracing()


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Tell torch the shapes of `besskge::name`, where it is built and torch is new enough."""
    if NATIVE and hasattr(torch.library, "register_fake"):
        return torch.library.register_fake(f"besskge::{name}")
    return lambda function: function
