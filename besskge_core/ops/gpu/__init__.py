"""Native operations on NVIDIA GPUs: kernels in Triton, a file for each operation.

A launcher has the arguments of its operation. It is registered for the dispatch key CUDA, so that
`torch.ops.besskge.gather` runs compiled C++ on a CPU and a kernel on a GPU, and nothing above asks
which. Where the C++ library is not built, the operations are defined here, by the launchers'
annotations.
"""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, FrozenSet, List

import torch

#: Operation -> its module here; the launcher has the operation's name.
MODULES: Dict[str, str] = {
    "best_k": "best_k",
    "gather": "gather",
    "indexed": "indexed",
    "indexed_backward": "indexed",
    "pairwise": "pairwise",
    "pairwise_backward": "pairwise",
    "rank_counts": "rank_counts",
    "sampled_loss": "sampled_loss",
    "scatter_update": "scatter_update",
    "softmax_gradient": "softmax_tiles",
    "softmax_gradients": "tile_products",
    "softmax_log_sum": "softmax_tiles",
    "softmax_scores": "tile_products",
}

#: Arguments that an operation changes; of all others none.
CHANGED: Dict[str, FrozenSet[str]] = {
    "scatter_update": frozenset({"table", "state"}),
    "softmax_gradients": frozenset({"scores", "grad_query", "grad_rows"}),
}

#: Keeps torch's registrations alive.
_LIBRARIES: List[Any] = []


def launcher(operation: str) -> Callable[..., Any]:
    """What starts the kernels of an operation."""
    module = importlib.import_module(f"{__name__}.{MODULES[operation]}")
    found: Callable[..., Any] = getattr(module, operation)
    return found


def schema(operation: str) -> str:
    """Arguments and results of an operation, as torch writes them, without names of results."""
    inferred: str = torch.library.infer_schema(
        launcher(operation), mutates_args=CHANGED.get(operation, frozenset())
    )
    return inferred


def missing() -> str:
    """Why operations have no kernels for GPUs; empty if they have."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if not hasattr(torch.library, "infer_schema"):
        return f"torch {torch.__version__} is too old"
    language = importlib.import_module(f"{__name__}.language")
    if not language.HAS_TRITON:
        return f"Triton {'.'.join(map(str, language.OLDEST))} or newer is not installed"
    return ""


def register(space: str = "besskge", key: str = "CUDA") -> FrozenSet[str]:
    """Make the launchers what operations `space`::... run for a dispatch key; their names.

    Operations that do not exist yet are defined.
    """
    library = torch.library.Library(space, "FRAGMENT")
    _LIBRARIES.append(library)
    known = set(torch._C._dispatch_get_all_op_names())
    for name in MODULES:
        if f"{space}::{name}" not in known:
            library.define(name + schema(name))
        library.impl(name, launcher(name), key)
    return frozenset(MODULES)
