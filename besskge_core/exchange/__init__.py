"""Moving tensors between shards.

Every sharded tensor has a leading axis L, the shards that this worker hosts. Axis S of a tensor
that is exchanged says which way it points: blocks *to* peer s before, blocks *from* peer s after.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from besskge_core.exchange.local import LocalExchange

__all__ = ["Exchange", "LocalExchange"]


class Exchange(Protocol):
    """The three collectives of BESS; each is differentiable."""

    n_shard: int

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """(L, S, ...) to peers -> (L, S, ...) from peers; moves all but the own block."""

    def all_gather(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, S, ...): every shard's block, on every shard."""

    def all_reduce(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, ...): the sum over shards, on every shard."""
