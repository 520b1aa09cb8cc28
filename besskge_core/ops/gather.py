"""Look up rows of the sharded table; the gradient is the rows touched, never a table.

Axes:
    L: hosted shard      E: rows of a shard's table      K: rows looked up      D: width of a row
"""

from __future__ import annotations

from typing import Any, Tuple

import torch
from torch import Tensor

from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.ops.rows import sparse_gradient
from besskge_core.ops.tracing import device_library, is_traced
from besskge_core.shapes import match_shapes

_NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def gather(table: Tensor, index: Tensor) -> Tensor:
    """Rows of each hosted shard's table, in one pass.

    Args:
        table: (L, E, D), floating.
        index: (L, K), int32 or int64, rows in [0, E).

    Returns:
        (L, K, D): `[l, k] = table[l, index[l, k]]`. The gradient of `table` is sparse
        (torch.sparse_coo, sparse axes L and E), one entry for each look-up, duplicates apart; while a
        step is traced it is what the device's compiler makes of it.

    Raises:
        ShapeError: on other shapes.
        IndexError: an index out of range, on the CPU.
    """
    match_shapes(table=(table, "L E D"), index=(index, "L K"))
    if native.serves("gather", table, *_NATIVE_DTYPES):
        # On a CPU the operation has its gradient in C++.
        rows: Tensor = (torch.ops.besskge.gather if table.is_cpu else _Gather.apply)(table, index)
        return rows
    return _traced(table, index) if is_traced() else reference(table, index)


def reference(table: Tensor, index: Tensor) -> Tensor:
    """The meaning of :func:`gather`, in plain torch."""
    if index.device.type == "cpu" and index.numel():  # elsewhere, looking would wait for the device
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= table.shape[1]:
            raise IndexError(
                f"gather: index {low if low < 0 else high} is out of range for a table of"
                f" {table.shape[1]} rows"
            )
    out: Tensor = _Gather.apply(table, index)
    return out


def _traced(table: Tensor, index: Tensor) -> Tensor:
    """:func:`reference` of operations that a compiler can differentiate."""
    if table.shape[0] == 1:  # a view of the variable itself, which is read in one gather
        own, places = table.squeeze(0), index.squeeze(0)
        rows = device_library().gather(own, places)
        return (own.index_select(0, places) if rows is None else rows).unsqueeze(0)
    shard = torch.arange(table.shape[0], device=index.device)[:, None]
    flat = (index + shard * table.shape[1]).flatten()
    return table.flatten(end_dim=1).index_select(0, flat).unflatten(0, tuple(index.shape))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.table_shape = table.shape
        if native.serves("gather", table, *_NATIVE_DTYPES) and not table.is_cpu:
            found: Tensor = torch.ops.besskge.gather(table, index)
            return found
        rows = table.flatten(end_dim=1).index_select(0, _end_to_end(index, table.shape[1]))
        return rows.view(*index.shape, table.shape[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        rows = _end_to_end(index, ctx.table_shape[1])
        return sparse_gradient(rows, grad.flatten(end_dim=1), ctx.table_shape), None


def _end_to_end(index: Tensor, n_row: int) -> Tensor:
    """(L K,): rows (L, K) of the tables, laid end to end."""
    shard = torch.arange(len(index), device=index.device)[:, None]
    return (index + shard * n_row).flatten()


@register_fake("gather")
def _(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty((index.shape[0], index.shape[1], table.shape[2]))


@register_fake("lookup_entries")
def _(index: Tensor) -> Tensor:
    return index.new_empty((2, index.numel()), dtype=torch.int64)
