"""A stand-in for PopTorch, for tests on machines that have none.

It has that part of PopTorch's interface which its documentation and sources describe and which
besskge_core uses, and refuses what PopTorch refuses. Replicas are threads on the CPU, in lockstep;
gradients are torch's, in float32. What it cannot show: anything of compilation past the names of
operations, memory, time, rounding of half precision, and the device's random numbers. It is no part
of the package.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Iterator

import torch

from . import optim
from .data import DataLoader
from .enums import (
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    Error,
    MeanReductionStrategy,
    OutputMode,
    ReductionType,
    SharingStrategy,
    VariableRetrievalMode,
)
from .executor import MACHINE, TRAINED_BY, inferenceModel, trainingModel
from .options import Options
from .replicas import (
    OPERATIONS,
    all_to_all,
    custom_op,
    identity_loss,
    isRunningOnIpu,
)

__all__ = [
    "CommGroupType", "ConnectionType", "DataLoader", "DataLoaderMode", "Error",
    "MeanReductionStrategy", "Options", "OutputMode", "ReductionType", "SharingStrategy",
    "VariableRetrievalMode", "custom_op", "identity_loss", "inferenceModel", "installed",
    "ipuHardwareIsAvailable", "isRunningOnIpu", "optim", "trainingModel",
]  # fmt: skip


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    return num_ipus <= MACHINE["ipus"]


@contextmanager
def installed(n_ipu: int = 64) -> Iterator[object]:
    """While this lasts, `import poptorch` gives this, on a machine with so many IPUs.

    So does `poptorch_experimental_addons`, of which there is the all-to-all; an operation of our own
    library is not registered, as before a library is loaded.
    """
    here, addons = sys.modules[__name__], type(sys)("poptorch_experimental_addons")
    addons.collectives = type(sys)("collectives")
    addons.collectives.all_to_all_single_cross_replica = _of_addons
    addons.distance_matrix = _distances
    modules = {"poptorch": here, "poptorch.optim": optim, addons.__name__: addons}
    MACHINE.update(ipus=n_ipu, held=0)
    TRAINED_BY.clear()
    OPERATIONS.clear()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(
        modules
    )  # not mock's patch, which would forget all that is imported meanwhile
    try:
        yield here
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _of_addons(x, replication_factor):
    if not isRunningOnIpu():
        raise Error("collectives have no meaning on the CPU")
    if x.shape[0] != replication_factor:
        raise Error(f"the first axis of {tuple(x.shape)} must be {replication_factor}")
    return all_to_all(x)


def library_is_loaded() -> None:
    """What loading our library of PopART operations does."""
    OPERATIONS["besskge_core", "AllToAll"] = lambda x: [all_to_all(x)]
    OPERATIONS["besskge_core", "Gather"] = lambda table, index: [table.index_select(0, index)]
    OPERATIONS["besskge_core", "Pairwise"] = lambda q, e, comparison: [_scores(q, e, comparison)]


def _scores(q, e, comparison):
    way = q[:, None] - e
    if comparison == "modulus":
        re, im = way.chunk(2, -1)
        return -(re * re + im * im).clamp(min=1e-30).sqrt().sum(-1)
    return -torch.norm(way, p={"l1": 1, "l2": 2}[comparison], dim=-1)


def _distances(a, b, p):
    return torch.norm(a[:, None] - b, p=p, dim=-1)
