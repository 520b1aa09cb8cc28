"""All shards in one process: an exchange is a change of view, not a movement."""

from __future__ import annotations

from torch import Tensor

from besskge_core.errors import ShapeError


class LocalExchange:
    """The collectives where this process hosts every shard, L = S = n_shard."""

    rank, n_rank = 0, 1

    def __init__(self, n_shard: int) -> None:
        self.n_shard, self.hosted = n_shard, range(n_shard)

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """(L, S, ...) to -> (L, S, ...) from: a transpose."""
        if blocks.shape[:2] != (self.n_shard, self.n_shard):
            raise ShapeError(
                f"all_to_all expects (L, S, ...) with L=S={self.n_shard} in one process,"
                f" got {tuple(blocks.shape)}"
            )
        return blocks.transpose(0, 1)

    def all_gather(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, S, ...): one copy, seen by all."""
        return self._all(block).unsqueeze(0).expand(self.n_shard, *block.shape)

    def all_reduce(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, ...): the sum over L, seen by all."""
        return self._all(block).sum(0, keepdim=True).expand_as(block)

    def sum_ranks(self, x: Tensor) -> Tensor:
        """There is but one."""
        return x

    def gather_ranks(self, x: Tensor) -> Tensor:
        """(...) -> (1, ...)"""
        return x.unsqueeze(0)

    def _all(self, block: Tensor) -> Tensor:
        if block.shape[0] != self.n_shard:
            raise ShapeError(
                f"expected a leading axis L={self.n_shard} in one process, got {tuple(block.shape)}"
            )
        return block
