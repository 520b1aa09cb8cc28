"""Whether an operation is native, and where: the one place that decides.

On a CPU it is C++, if the library is there and of these sources; on an NVIDIA GPU it is a Triton
kernel, if :mod:`besskge_core.ops.gpu` has one. Either way it is called as `torch.ops.besskge`.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List

import torch
from torch import Tensor

from besskge_core.ops import gpu
from besskge_core.ops.sources import sources_digest
from besskge_core.ops.tracing import is_traced

_BUILD = "build them with `pip install --no-build-isolation .`"


def _missing() -> str:
    """Why operations cannot be native, said once; empty if they are."""
    try:
        importlib.import_module("besskge_core._native")
    except ModuleNotFoundError:
        logging.getLogger("besskge_core").warning(
            "native operations are not built, plain torch serves and is slower; %s", _BUILD
        )
        return "not built"
    except ImportError as error:
        found = f"built for another torch or Python ({error})"
    else:
        sources = sources_digest(Path(__file__).parents[2] / "custom_ops")
        built_from = getattr(torch.ops.besskge, "built_from", None)  # since there are digests
        if built_from is not None and built_from() == (sources or built_from()):
            return ""
        found = "built from other sources"
    warnings.warn(
        f"besskge_core's native operations were {found}; plain torch serves instead, {_BUILD}",
        RuntimeWarning,
        stacklevel=3,
    )
    return found


#: Why operations run on their references on a CPU; empty if they are native.
MISSING = _missing()

NATIVE = not MISSING

#: Why operations run on their references on a GPU; empty if some are native.
MISSING_ON_GPU = gpu.missing() or (MISSING if "other sources" in MISSING else "")

#: Operations that are native on a GPU.
ON_GPU: FrozenSet[str] = frozenset() if MISSING_ON_GPU else gpu.register()


def serves(operation: str, x: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether an operation computes natively with `x`: it is built for the device, x is of these
    dtypes, and no graph is being traced for another device."""
    if is_traced() or torch._C._get_tracing_state() or x.dtype not in dtypes:
        return False
    return (NATIVE and x.is_cpu) or (x.is_cuda and operation in ON_GPU)


def operations() -> List[str]:
    """Names of the native operations, of those that the library has."""
    if not NATIVE:
        return []
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    about = ("built_from", "instruction_set")
    return sorted(name for space, _, name in names if space == "besskge" and name not in about)


#: Operation -> what tells torch its shapes.
FAKES: Dict[str, Callable[..., Any]] = {}


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Tell torch the shapes of `besskge::name`, where there is one and torch is new enough."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        FAKES[name] = function
        if (NATIVE or name in ON_GPU) and hasattr(torch.library, "register_fake"):
            torch.library.register_fake(f"besskge::{name}")(function)
        return function

    return register
