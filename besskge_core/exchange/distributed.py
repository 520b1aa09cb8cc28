"""Shards on the ranks of torch.distributed: over gloo on CPUs, over NCCL on GPUs.

A rank hosts n_shard / n_rank shards that follow each other, usually one. Three collectives of torch
do all of it; each is called in one place, below, so that what torch renames is renamed here alone.

What only moves travels as bytes, so that every dtype can. Sums are added up in float32 or wider.

Axes:
    W: ranks      L: shards of a rank      S = W * L
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from besskge_core.errors import ConfigError, ShapeError

#: Called around a collective of torch, so that its failure can be explained: see `runtime.watch`.
Guard = Callable[[Callable[[], None]], None]


def unguarded(collective: Callable[[], None]) -> None:
    """Call it, and let its errors pass."""
    collective()


def dealt(n_shard: int, rank: int, n_rank: int) -> range:
    """The shards of a rank.

    Raises:
        ConfigError: they cannot be dealt evenly.
    """
    if n_shard % n_rank:
        raise ConfigError(
            f"{n_shard} shards cannot be dealt evenly to {n_rank} ranks; give n_shard ="
            f" {-(-n_shard // n_rank) * n_rank}, or another multiple"
        )
    n_host = n_shard // n_rank
    return range(rank * n_host, (rank + 1) * n_host)


class DistributedExchange:
    """The collectives where each rank of a process group hosts some of the shards.

    Args:
        n_shard: S, a multiple of the number of ranks.
        group: the process group; None: that of all ranks.
        guard: calls the collectives of torch.

    Attributes:
        sent: bytes that this rank has sent to others, by collective.

    Raises:
        ConfigError: the shards cannot be dealt evenly.
    """

    def __init__(
        self,
        n_shard: int,
        group: Optional[dist.ProcessGroup] = None,
        guard: Guard = unguarded,
    ) -> None:
        self.rank, self.n_rank = dist.get_rank(group), dist.get_world_size(group)
        self.n_shard, self.hosted = n_shard, dealt(n_shard, self.rank, self.n_rank)
        self.sent: Dict[str, int] = {"all_to_all": 0, "all_gather": 0, "all_reduce": 0}
        self._group, self._guard = group, guard

    # -- differentiable ----------------------------------------------------------------------------

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """(L, S, ...) to -> (L, S, ...) from; its gradient goes the same way back."""
        self._check(blocks, "all_to_all", (len(self.hosted), self.n_shard))
        out: Tensor = _AllToAll.apply(blocks, self)
        return out

    def all_gather(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, S, ...); the gradient is the sum over ranks, in their order."""
        self._check(block, "all_gather", (len(self.hosted),))
        out: Tensor = _AllGather.apply(block, self)
        return out.unsqueeze(0).expand(len(self.hosted), *out.shape)

    def all_reduce(self, block: Tensor) -> Tensor:
        """(L, ...) -> (L, ...); the gradient is summed likewise."""
        self._check(block, "all_reduce", (len(self.hosted),))
        out: Tensor = _AllReduce.apply(block.sum(0, keepdim=True), self)
        return out.expand_as(block)

    # -- not ---------------------------------------------------------------------------------------

    def sum_ranks(self, x: Tensor) -> Tensor:
        """(...) -> (...), the same bits on all ranks."""
        wide = x.dtype in (torch.float16, torch.bfloat16)
        total = x.detach().to(torch.float32 if wide else x.dtype, copy=True).contiguous()
        # Of a ring: each part is added up once around it, and passed on once more.
        self.sent["all_reduce"] += 2 * _nbytes(total) * (self.n_rank - 1) // self.n_rank
        self._guard(lambda: dist.all_reduce(total, group=self._group))
        return total.to(x.dtype)

    def gather_ranks(self, x: Tensor) -> Tensor:
        """(...) -> (W, ...)"""
        x = x.detach().contiguous()
        gathered = x.new_empty((self.n_rank, *x.shape))
        parts, own = list(_bytes(gathered).view(self.n_rank, -1).unbind()), _bytes(x)
        self.sent["all_gather"] += _nbytes(x) * (self.n_rank - 1)
        self._guard(lambda: dist.all_gather(parts, own, group=self._group))
        return gathered

    def swap(self, blocks: Tensor) -> Tensor:
        """:meth:`all_to_all` without a gradient."""
        n_host, rest = len(self.hosted), blocks.shape[2:]
        # (L, W, L', ...) -> (W, L, L', ...): what goes to a rank lies together.
        sent = blocks.detach().unflatten(1, (self.n_rank, n_host)).transpose(0, 1)
        received = self.swap_ranks(sent)  # (W, L', L, ...), from
        return received.movedim(2, 0).reshape(n_host, self.n_shard, *rest)

    def swap_ranks(self, blocks: Tensor) -> Tensor:
        """(W, ...) to -> (W, ...) from."""
        sent = blocks.contiguous()
        received = torch.empty_like(sent)
        self.sent["all_to_all"] += _nbytes(sent) * (self.n_rank - 1) // self.n_rank
        into, out = _bytes(received), _bytes(sent)
        self._guard(lambda: dist.all_to_all_single(into, out, group=self._group))
        return received

    def _check(self, x: Tensor, name: str, leading: Tuple[int, ...]) -> None:
        if x.shape[: len(leading)] != leading:
            axes = ", ".join(f"{axis}={n}" for axis, n in zip("LS", leading))
            raise ShapeError(
                f"{name} expects leading axes {axes} on rank {self.rank} of {self.n_rank},"
                f" got {tuple(x.shape)}"
            )


class _AllToAll(torch.autograd.Function):
    """An exchange is its own inverse, and its own transpose."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, exchange: DistributedExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.swap(blocks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        return ctx.exchange.swap(grad), None


class _AllGather(torch.autograd.Function):
    """(L, ...) -> (S, ...)"""

    @staticmethod
    def forward(ctx: Any, block: Tensor, exchange: DistributedExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.gather_ranks(block).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        # An exchange and a sum in the order of the ranks: half of what an all-reduce would send.
        by_owner = grad.unflatten(0, (ctx.exchange.n_rank, -1))
        return ctx.exchange.swap_ranks(by_owner).sum(0), None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: DistributedExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.sum_ranks(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        return ctx.exchange.sum_ranks(grad), None


def _bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor, uint8 (n,)."""
    return x.view(-1).view(torch.uint8)


def _nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
