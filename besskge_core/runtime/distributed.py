"""One process a rank, under torchrun: the same program, with its shards on many workers.

Each rank holds the rows and the optimiser state of its own shards, and draws its own part of each
batch. Relations, and whatever else every rank has, get the sum of all ranks' gradients, in one
all-reduce with the loss. What batches need to be told of other ranks, row numbers, travels over a
process group of its own while the step before is computed.
"""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from typing import List, NamedTuple, Optional, Sequence, Union

import torch
import torch.distributed as dist
from torch import Tensor, nn

from besskge_core.batch_sampler import Batch, ShardedBatchSampler
from besskge_core.embedding import EmbeddingRegularizer, FunctionRegularizer
from besskge_core.errors import ConfigError
from besskge_core.exchange import DistributedExchange
from besskge_core.philox import Position
from besskge_core.runtime.base import Model, Runtime
from besskge_core.runtime.local import LocalRuntime
from besskge_core.runtime.watch import Watch

#: Seconds that a rank waits for another, unless told.
TIMEOUT = 300.0


class Ranks(NamedTuple):
    """The processes of a run.

    Attributes:
        rank, n_rank: which this is, of how many.
        device: where it computes.
        timeout: seconds that it waits for others.
        watch: finds out who failed; None in a run of one process.
    """

    rank: int
    n_rank: int
    device: torch.device
    timeout: float = TIMEOUT
    watch: Optional[Watch] = None

    def hosted(self, n_shard: int) -> range:
        """The shards of this rank.

        Raises:
            ConfigError: they cannot be dealt evenly.
        """
        if n_shard % self.n_rank:
            raise ConfigError(
                f"{n_shard} shards cannot be dealt evenly to {self.n_rank} ranks; give --n-shard"
                f" {-(-n_shard // self.n_rank) * self.n_rank}, or another multiple"
            )
        n_host = n_shard // self.n_rank
        return range(self.rank * n_host, (self.rank + 1) * n_host)


def launched() -> bool:
    """Whether torchrun, or another launcher that sets what it sets, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join(device: str = "cpu", timeout: float = TIMEOUT) -> Ranks:
    """Join the other processes, if there are any: over gloo on CPUs, NCCL on GPUs.

    Args:
        device: "cuda" is the GPU of this process's place on its host.
        timeout: seconds to wait for another rank until it is taken for lost.
    """
    if not launched():
        return Ranks(0, 1, torch.device(device), timeout)
    chosen = torch.device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    rank, n_rank = dist.get_rank(), dist.get_world_size()
    return Ranks(rank, n_rank, chosen, timeout, Watch(rank, n_rank))


def leave(ranks: Ranks) -> None:
    """End what :func:`join` began."""
    if ranks.watch is not None:
        ranks.watch.close()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def make_runtime(model: Model, ranks: Ranks, n_worker: int = 1) -> Runtime:
    """The runtime of this process, alone or among others."""
    if ranks.n_rank == 1:
        return LocalRuntime(model, str(ranks.device), n_worker)
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
        exchange = self._exchange(n_shard, None)
        # More threads would disagree on the order of what they exchange.
        super().__init__(model, exchange, ranks.device, min(n_worker, 1))
        self._control = self._exchange(n_shard, self._host_group())
        self._planner = copy.copy(self.model)
        self._planner.exchange = self._exchange(n_shard, self._host_group())
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
        raised = self._control.sum_ranks(torch.tensor(flags, dtype=torch.int32))
        return (raised > 0).tolist()

    def _exchange(self, n_shard: int, group: Optional[dist.ProcessGroup]) -> DistributedExchange:
        watch = self.ranks.watch
        if watch is None:
            return DistributedExchange(n_shard, group)
        return DistributedExchange(n_shard, group, watch.guard)

    def _host_group(self) -> dist.ProcessGroup:
        """A group for tensors of the host, whose collectives may run beside those of others."""
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=self.ranks.timeout))

    def _draw(self, sampler: ShardedBatchSampler, position: Position, shuffle: bool) -> Batch:
        return sampler.hosted_batch(position, self._planner.exchange, shuffle)

    def _reduce(self, loss: Tensor) -> Tensor:
        grads: List[Tensor] = []
        for parameter in self.model.parameters():
            if parameter is self.model.entity_embedding or parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
            grads.append(parameter.grad)
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
