"""One process a rank, under torchrun: the same program, with its shards on many workers.

Each rank holds the rows and the optimiser state of its own shards, and draws its own part of each
batch. Relations, and whatever else every rank has, get the sum of all ranks' gradients, in one
all-reduce with the loss. What batches need to be told of other ranks, row numbers, travels over a
process group of its own while the step before is computed.
"""

from __future__ import annotations

import copy
from typing import Optional, Sequence

import torch
from torch import Tensor, nn

from besskge_core.batch_sampler import Batch, ShardedBatchSampler
from besskge_core.embedding import EmbeddingRegularizer, FunctionRegularizer
from besskge_core.errors import ConfigError
from besskge_core.philox import Position
from besskge_core.runtime.base import Model, Runtime, make_dense
from besskge_core.runtime.ipu import IPUSettings, make_ipu_runtime
from besskge_core.runtime.ranks import Ranks, join
from besskge_core.runtime.resident import runtime_alone


def make_runtime(
    model: Model, ranks: Ranks, n_worker: int = 1, ipu: Optional[IPUSettings] = None
) -> Runtime:
    """The runtime of this process, alone or among others, on the device that it has joined with.

    Args:
        model: the module of `besskge_core.bess`.
        ranks: see :func:`join`.
        n_worker: threads, or on IPUs processes, that make batches ahead.
        ipu: how a program for IPUs is compiled.

    Raises:
        ConfigError: several processes with IPUs.
    """
    if ranks.device.type == "ipu":
        if ranks.n_rank > 1:
            raise ConfigError(
                f"{ranks.n_rank} processes with device 'ipu', but the replicas of a program are"
                " those of one process; start it without torchrun"
            )
        return make_ipu_runtime(model, ipu, n_worker)
    if ranks.n_rank == 1:
        return runtime_alone(model, ranks.device, n_worker)
    return DistributedRuntime(model, ranks, n_worker)


class DistributedRuntime(Runtime):
    """Runs the steps of a rank; all ranks make the same calls in the same order.

    Args:
        model: the module of `besskge_core.bess`. Of its entity table the rows of other ranks' shards
            are dropped, unless they have not been made (:func:`besskge_core.embedding.hosting`);
            so make the optimiser afterwards.
        ranks: see :func:`join`; None: joins.
        n_worker: 0: batches are made when they are asked for, else by a thread.

    Raises:
        ConfigError: shards that cannot be dealt evenly, or a regulariser that is a function of all
            rows, which no rank has.
    """

    def __init__(self, model: Model, ranks: Optional[Ranks] = None, n_worker: int = 1) -> None:
        ranks = join() if ranks is None else ranks
        self.ranks, n_shard = ranks, model.score_fn.sharding.n_shard
        model.score_fn.keep_shards(ranks.hosted(n_shard))
        exchange = ranks.exchange(n_shard)
        # More threads would disagree on the order of what they exchange.
        super().__init__(model, exchange, ranks.device, min(n_worker, 1))
        self._planner = copy.copy(self.model)
        self._planner.exchange = ranks.exchange(n_shard, beside=True)
        for module in self.model.modules():
            if isinstance(module, FunctionRegularizer):
                raise ConfigError(
                    "a function as a regularizer of an embedding is of the rows of one process; for"
                    " several write a subclass of EmbeddingRegularizer with its `mean` or `total`"
                )
            if isinstance(module, EmbeddingRegularizer):
                module.n_rank, module.sum_ranks = ranks.n_rank, exchange.sum_ranks
        self._norms = [
            x
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for x in (module.running_mean, module.running_var)
            if x is not None
        ]

    def any_rank(self, *flags: bool) -> Sequence[bool]:
        return self.ranks.any(*flags)

    def _draw(self, sampler: ShardedBatchSampler, position: Position, shuffle: bool) -> Batch:
        return sampler.hosted_batch(position, self._planner.exchange, shuffle)

    def _reduce(self, loss: Tensor) -> Tensor:
        shared = [x for x in self.model.parameters() if x is not self.model.entity_embedding]
        make_dense(shared)
        grads = [x.grad for x in shared if x.grad is not None]
        means = [loss, *self._norms]
        parts = [x / self.ranks.n_rank for x in means] + grads
        total = self.exchange.sum_ranks(_flattened(parts))
        sums = total.split([x.numel() for x in parts])
        for x, found in zip((*self._norms, *grads), sums[1:]):
            x.copy_(found.view_as(x))
        return sums[0].view_as(loss).to(loss.dtype)


def _flattened(parts: Sequence[Tensor]) -> Tensor:
    """(n,), in float32 or the widest dtype of the parts."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in parts) else torch.float32
    return torch.cat([x.reshape(-1).to(dtype) for x in parts])
