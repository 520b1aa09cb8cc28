"""The rows of an embedding: one table by ID, or one laid out on shards.

The weight is real: a complex representation lies there as (real, imaginary) pairs, so optimisers
see real numbers.

Axes:
    N: IDs      L: hosted shards      M: rows of a shard's table, padding included
    W: width of a row      K: rows looked up
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from besskge_core.embedding.tables import (
    hosted_shards,
    kept_shards,
    refactor_embedding_sharding,
    shard_rows,
)
from besskge_core.errors import ConfigError
from besskge_core.ops.rows import sparse_gradient
from besskge_core.sharding import Sharding


class RowTable(nn.Module):
    """Rows by ID.

    Args:
        n_row: N.
        width: W.
        dtype: of the weight, a real one.
        trainable: whether the weight requires a gradient.
        sharding: of the IDs, or None.
        sparse: give the weight a sparse gradient.
        hosted: the shards whose rows are here; None: those of
            :func:`~besskge_core.embedding.tables.hosting`, or all.

    Attributes:
        weight: (N, W), or (L, M, W) if sharded, with padding rows zero.
        hosted: (L,), the shards whose rows are here; all of them without a sharding, too.

    Raises:
        ConfigError: no such shards, or hosted shards without a sharding.
    """

    flat_row: Optional[Tensor]  # int64 (N,): place of each ID in (L * M), -1 if it is not here
    is_padding: Optional[Tensor]  # bool (L * M)

    def __init__(
        self,
        n_row: int,
        width: int,
        dtype: torch.dtype,
        trainable: bool,
        sharding: Optional[Sharding],
        sparse: bool,
        hosted: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__()
        self.sparse, self.hosted = sparse, _checked_shards(hosted, sharding)
        shape: Tuple[int, ...] = (n_row, width)
        if sharding is not None:
            shape = (len(self.hosted), sharding.max_entity_per_shard, width)
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=trainable)
        self._remember(sharding)

    def _remember(self, sharding: Optional[Sharding]) -> None:
        self.sharding = sharding
        flat_row = is_padding = None
        if sharding is not None:
            device = self.weight.device
            place = torch.from_numpy(sharding.flat_row)
            n_row = sharding.max_entity_per_shard
            first = torch.full((sharding.n_shard,), -1)  # of each shard that is here
            first[list(self.hosted)] = n_row * torch.arange(len(self.hosted))
            first = first[place.div(n_row, rounding_mode="floor")]
            flat_row = torch.where(first < 0, first, first + place % n_row).to(device)
            is_padding = torch.ones(self.weight.shape[:2].numel(), dtype=torch.bool, device=device)
            is_padding[flat_row[flat_row >= 0]] = False
        self.register_buffer("flat_row", flat_row, persistent=False)
        self.register_buffer("is_padding", is_padding, persistent=False)

    def flat(self) -> Tensor:
        """(N, W) or (S * M, W), a view of the weight."""
        return self.weight.view(self.weight.shape[:-1].numel(), self.weight.shape[-1])

    def look_up(self, ids: Optional[Tensor]) -> Tensor:
        """IDs (K,), int32 or int64 -> (K, W); None: all, in order.

        Raises:
            IndexError: an ID whose row is not here; on the CPU, where looking is free.
        """
        if ids is None and self.flat_row is None and not self.sparse:
            return self.weight
        if ids is None:
            rows = self.flat_row
            if rows is None:
                rows = torch.arange(len(self.weight), device=self.weight.device)
        else:
            rows = ids if self.flat_row is None else self.flat_row.index_select(0, ids)
        if self.flat_row is not None and rows.device.type == "cpu" and bool((rows < 0).any()):
            raise IndexError(
                f"some of these IDs have their rows elsewhere; here are shards {self.hosted}, whose"
                " rows BESS gathers by shard and place"
            )
        if self.sparse:
            out: Tensor = _SparseRows.apply(self.weight, rows)
            return out
        return F.embedding(rows, self.flat())

    @torch.no_grad()
    def fill(self, by_id: Tensor) -> None:
        """Copy rows (N, W), or those of them that are here, into the weight, in its dtype."""
        table = by_id
        if self.sharding is not None:
            table = shard_rows(by_id, self.sharding, self.hosted)
        self.weight.copy_(table)

    @torch.no_grad()
    def change(self, function: Callable[[Tensor], Tensor], rows: Optional[Tensor] = None) -> None:
        """Replace rows (K, W) by function of them, in place; padding stays zero.

        Args:
            function: (K, W) -> (K, W).
            rows: integer (K,), places in :meth:`flat`, as often as may be; None: all, by ID.
        """
        flat = self.flat()
        if rows is None:
            rows = self.flat_row if self.flat_row is None else self.flat_row[self.flat_row >= 0]
        elif self.is_padding is not None:
            rows = rows[~self.is_padding.index_select(0, rows)]
        if rows is None:
            flat.copy_(function(flat))
        else:
            flat.index_copy_(0, rows.long(), function(flat.index_select(0, rows)))

    def keep_shards(self, shards: Sequence[int]) -> None:
        """Keep the rows of some shards, in a new parameter."""
        assert self.sharding is not None
        self.weight, self.hosted = kept_shards(self.weight, self.hosted, shards), tuple(shards)
        self._remember(self.sharding)

    def update_sharding(self, new_sharding: Sharding) -> None:
        """Lay the rows out anew, in a new parameter.

        Raises:
            ConfigError: some of the rows are elsewhere.
        """
        assert self.sharding is not None
        if len(self.hosted) != self.sharding.n_shard:
            raise ConfigError(
                f"only shards {self.hosted} are here; lay out anew where all are, or load a"
                " checkpoint into an embedding of the new sharding"
            )
        self.hosted = tuple(range(new_sharding.n_shard))
        self.weight = refactor_embedding_sharding(self.weight, self.sharding, new_sharding)
        self._remember(new_sharding)


def _checked_shards(
    hosted: Optional[Sequence[int]], sharding: Optional[Sharding]
) -> Tuple[int, ...]:
    if sharding is None:
        if hosted is not None:
            raise ConfigError(f"hosted={tuple(hosted)} needs a sharding, of which they are shards")
        return (0,)
    return hosted_shards(sharding, hosted)


class _SparseRows(torch.autograd.Function):
    """Rows of a table whose leading axes are laid end to end; see `besskge_core.ops.gather`.

    That operation takes the rows of each hosted shard apart; here one list goes across shards. The
    gradient has the same form: sparse along all axes but the last, one entry for each look-up.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.table_shape = table.shape
        return table.view(table.shape[:-1].numel(), table.shape[-1]).index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return sparse_gradient(rows, grad, ctx.table_shape), None
