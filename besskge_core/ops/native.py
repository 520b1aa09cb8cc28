"""Whether the native library is there and of these sources; the one place that decides."""

from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, List

import torch
from torch import Tensor

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


#: Why operations run on their references; empty if they are native.
MISSING = _missing()

NATIVE = not MISSING


def serves(x: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether native operations compute with `x`: on a CPU, of these dtypes, and not while a graph
    is traced for another device."""
    if is_traced() or torch._C._get_tracing_state():
        return False
    return NATIVE and x.is_cpu and x.dtype in dtypes


def operations() -> List[str]:
    """Names of the native operations, of those that the library has."""
    if not NATIVE:
        return []
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    about = ("built_from", "instruction_set")
    return sorted(name for space, _, name in names if space == "besskge" and name not in about)


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Tell torch the shapes of `besskge::name`, where it is built and torch is new enough."""
    if NATIVE and hasattr(torch.library, "register_fake"):
        return torch.library.register_fake(f"besskge::{name}")
    return lambda function: function
