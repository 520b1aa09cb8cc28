"""One shard a replica, on IPUs: the step as a program that PopTorch compiles.

The module that is compiled is the one that other runtimes call. Each replica holds the rows of its
own shard, as a variable that differs between replicas; relations, and whatever else all have, are
one variable, whose gradients PopTorch adds up and divides by the replicas. A call runs all the
micro-batches of a batch on the device.

What differs from the other runtimes, because the device decides on it alone:

- an optimiser updates all rows of a table in every step, with gradients as large as the table;
- a loss that is not finite is found after the call, when its weights have been updated;
- weights are on the device until :meth:`IPURuntime.to_host` brings them back.

Without Poplar's SDK the same steps run here under the rules of IPUs; see `emulated`.

Axes:
    M: micro-batches of a step, device iterations times accumulated ones      S: shards, replicas
    L: shards of a replica, 1
"""

from __future__ import annotations

from typing import Optional

from besskge_core.runtime.base import Model
from besskge_core.runtime.ipu.emulated import EmulatedIPURuntime
from besskge_core.runtime.ipu.optimizers import make_optimizer
from besskge_core.runtime.ipu.program import Program, compile_program
from besskge_core.runtime.ipu.runtime import IPURuntime
from besskge_core.runtime.ipu.settings import IPUSettings, chosen_target, make_options

__all__ = [
    "EmulatedIPURuntime",
    "IPURuntime",
    "IPUSettings",
    "Program",
    "chosen_target",
    "compile_program",
    "make_ipu_runtime",
    "make_optimizer",
    "make_options",
]


def make_ipu_runtime(
    model: Model, settings: Optional[IPUSettings] = None, n_worker: int = 1
) -> IPURuntime:
    """The runtime of IPUs, of the SDK's model of them, or their emulation, as the settings say.

    Arguments and errors are those of :class:`IPURuntime`.
    """
    settings = settings or IPUSettings()
    make = EmulatedIPURuntime if settings.where == "emulate" else IPURuntime
    return make(model, settings, n_worker)
