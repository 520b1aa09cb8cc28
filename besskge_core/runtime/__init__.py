"""How a step is driven: in one process (`local`), on the ranks of torchrun (`distributed`), or on IPUs."""

from __future__ import annotations

from besskge_core.runtime.base import Planned, Runtime
from besskge_core.runtime.distributed import DistributedRuntime, make_runtime
from besskge_core.runtime.ipu import IPURuntime, IPUSettings, make_ipu_runtime
from besskge_core.runtime.local import LocalRuntime
from besskge_core.runtime.ranks import Ranks, join, launched, leave, restarted, restarts_allowed
from besskge_core.runtime.resident import ResidentRuntime, runtime_alone

__all__ = [
    "DistributedRuntime",
    "IPURuntime",
    "IPUSettings",
    "LocalRuntime",
    "Planned",
    "Ranks",
    "ResidentRuntime",
    "Runtime",
    "join",
    "launched",
    "leave",
    "make_ipu_runtime",
    "make_runtime",
    "restarted",
    "restarts_allowed",
    "runtime_alone",
]
