"""Moving tensors between shards.

Every sharded tensor has a leading axis L, the shards that this worker hosts. Axis S of a tensor
that is exchanged says which way it points: blocks *to* peer s before, blocks *from* peer s after.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from besskge_core.exchange.distributed import DistributedExchange
from besskge_core.exchange.local import LocalExchange
from besskge_core.exchange.poptorch import PopTorchExchange

__all__ = ["DistributedExchange", "Exchange", "LocalExchange", "PopTorchExchange"]


class Exchange(Protocol):
    """The collectives of BESS; the first three are differentiable.

    Attributes:
        n_shard: S.
        hosted: the shards that this worker hosts, L of them, in the order of the axis.
        rank, n_rank: which worker (process) this is, of how many.
    """

    n_shard: int
    hosted: range
    rank: int
    n_rank: int

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """(L, S, ...) to peers -> (L, S, ...) from peers; moves all but the own block."""

    def all_gather(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, S, ...): every shard's block, on every shard."""

    def all_reduce(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, ...): the sum over shards, on every shard."""

    def sum_ranks(self, x: Tensor) -> Tensor:
        """(...) -> (...): the sum over ranks, the same bits on all; without a gradient."""

    def gather_ranks(self, x: Tensor) -> Tensor:
        """(...) -> (n_rank, ...): of every rank, all of the same shape; without a gradient."""
