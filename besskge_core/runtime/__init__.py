"""How a step is driven: in one process (`local`), or on the ranks of torchrun (`distributed`)."""

from __future__ import annotations

from besskge_core.runtime.base import Planned, Runtime
from besskge_core.runtime.distributed import DistributedRuntime, make_runtime
from besskge_core.runtime.local import LocalRuntime
from besskge_core.runtime.ranks import Ranks, join, launched, leave, restarted, restarts_allowed

__all__ = [
    "DistributedRuntime",
    "LocalRuntime",
    "Planned",
    "Ranks",
    "Runtime",
    "join",
    "launched",
    "leave",
    "make_runtime",
    "restarted",
    "restarts_allowed",
]
