"""One shard a replica, on IPUs: the step as a program that PopTorch compiles.

The module that is compiled is the one that other runtimes call. Each replica holds the rows of its
own shard, as a variable that differs between replicas; relations, and whatever else all have, are
one variable, whose gradients PopTorch adds up and divides by the replicas. A call runs all the
micro-batches of a batch on the device.

What differs from the other runtimes, because the device decides on it alone:

- an optimiser updates all rows of a table in every step, with gradients as large as the table;
- a loss that is not finite is found after the call, when its weights have been updated;
- weights are on the device until :meth:`IPURuntime.to_host` brings them back.

Axes:
    M: micro-batches of a step, device iterations times accumulated ones      S: shards, replicas
    L: shards of a replica, 1
"""

from __future__ import annotations

from besskge_core.runtime.ipu.optimizers import make_optimizer
from besskge_core.runtime.ipu.runtime import IPURuntime
from besskge_core.runtime.ipu.settings import IPUSettings, make_options

__all__ = ["IPURuntime", "IPUSettings", "make_optimizer", "make_options"]
