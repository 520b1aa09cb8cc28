"""All shards in one process, on the CPU or on one GPU."""

from __future__ import annotations

from besskge_core.exchange import LocalExchange
from besskge_core.runtime.base import Model, Runtime


class LocalRuntime(Runtime):
    """Runs steps in this process, which hosts all shards.

    Args:
        model: the module of `besskge_core.bess`; it is moved to the device, and its exchange is
            set.
        device: where tables live and steps run.
        n_worker: threads that make batches ahead; 0: batches are made when they are asked for.
    """

    def __init__(self, model: Model, device: str = "cpu", n_worker: int = 1) -> None:
        super().__init__(model, LocalExchange(model.score_fn.sharding.n_shard), device, n_worker)
