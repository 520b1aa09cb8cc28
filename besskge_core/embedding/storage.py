"""The rows of an embedding: one table by ID, or one laid out on shards.

The weight is real: a complex representation lies there as (real, imaginary) pairs, so optimisers
see real numbers.

Axes:
    N: IDs      S: shards      M: rows of a shard's table, padding included      W: width of a row
    K: rows looked up
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from besskge_core.embedding.tables import refactor_embedding_sharding, shard_rows
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

    Attributes:
        weight: (N, W), or (S, M, W) if sharded, with padding rows zero.
    """

    flat_row: Optional[Tensor]  # int64 (N,): place of each ID in (S * M)
    is_padding: Optional[Tensor]  # bool (S * M)

    def __init__(
        self,
        n_row: int,
        width: int,
        dtype: torch.dtype,
        trainable: bool,
        sharding: Optional[Sharding],
        sparse: bool,
    ) -> None:
        super().__init__()
        self.sparse = sparse
        shape: Tuple[int, ...] = (n_row, width)
        if sharding is not None:
            shape = (sharding.n_shard, sharding.max_entity_per_shard, width)
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=trainable)
        self._remember(sharding)

    def _remember(self, sharding: Optional[Sharding]) -> None:
        self.sharding = sharding
        flat_row = is_padding = None
        if sharding is not None:
            device = self.weight.device
            flat_row = torch.from_numpy(sharding.flat_row).to(device)
            is_padding = torch.ones(self.weight.shape[:2].numel(), dtype=torch.bool, device=device)
            is_padding[flat_row] = False
        self.register_buffer("flat_row", flat_row, persistent=False)
        self.register_buffer("is_padding", is_padding, persistent=False)

    def flat(self) -> Tensor:
        """(N, W) or (S * M, W), a view of the weight."""
        return self.weight.view(self.weight.shape[:-1].numel(), self.weight.shape[-1])

    def look_up(self, ids: Optional[Tensor]) -> Tensor:
        """IDs (K,), int32 or int64 -> (K, W); None: all, in order."""
        if ids is None and self.flat_row is None and not self.sparse:
            return self.weight
        if ids is None:
            rows = self.flat_row
            if rows is None:
                rows = torch.arange(len(self.weight), device=self.weight.device)
        else:
            rows = ids if self.flat_row is None else self.flat_row.index_select(0, ids)
        if self.sparse:
            out: Tensor = _SparseRows.apply(self.weight, rows)
            return out
        return F.embedding(rows, self.flat())

    @torch.no_grad()
    def fill(self, by_id: Tensor) -> None:
        """Copy rows (N, W) into the weight, in place and in its dtype."""
        table = by_id if self.sharding is None else shard_rows(by_id, self.sharding)
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
            rows = self.flat_row
        elif self.is_padding is not None:
            rows = rows[~self.is_padding.index_select(0, rows)]
        if rows is None:
            flat.copy_(function(flat))
        else:
            flat.index_copy_(0, rows.long(), function(flat.index_select(0, rows)))

    def update_sharding(self, new_sharding: Sharding) -> None:
        """Lay the rows out anew, in a new parameter."""
        assert self.sharding is not None
        self.weight = refactor_embedding_sharding(self.weight, self.sharding, new_sharding)
        self._remember(new_sharding)


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
        rows = ctx.saved_tensors[0].long()
        if len(ctx.table_shape) == 2:
            entry = rows.unsqueeze(0)
        else:
            n_row = ctx.table_shape[1]
            entry = torch.stack([rows.div(n_row, rounding_mode="floor"), rows % n_row])
        sparse = torch.sparse_coo_tensor(entry, grad, ctx.table_shape, check_invariants=False)
        return sparse, None
