"""Scores of queries with rows of their own, read from the table by index.

Axes:
    B: queries      N: rows of each      D: width of a row      L: hosted shard
    E: rows of a shard's table           U: distinct rows
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from besskge_core.errors import ConfigError
from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.ops.pairwise import COMPARISONS, compared
from besskge_core.ops.rows import RowPlan, plan_rows, rows_of_sums, sparse_gradient
from besskge_core.ops.tracing import as_index
from besskge_core.shapes import match_shapes


def indexed(
    q: Tensor, table: Tensor, index: Tensor, comparison: str, plan: Optional[RowPlan] = None
) -> Tensor:
    """Compare every query with its rows, none of which is copied.

    Args:
        q: (B, D), floating.
        table: (L, E, D), of the same dtype; rows are numbered from the first table's first to the
            last's last.
        index: integer (B, N), the rows of each query.
        comparison: one of :data:`besskge_core.ops.pairwise.COMPARISONS`.
        plan: of `index`, laid end to end; made here where it is needed and missing.

    Returns:
        (B, N). Native in float32. The gradient of `table` is then sparse, one entry for each row of
        the plan.

    Raises:
        ShapeError: on other shapes.
        ConfigError: there is no such comparison.
        IndexError: there is no such row.
    """
    match_shapes(q=(q, "B D"), table=(table, "L E D"), index=(index, "B N"))
    if comparison not in COMPARISONS:
        raise ConfigError(f"unknown comparison {comparison!r}; expected one of {COMPARISONS}")
    if not (native.serves("indexed", q, torch.float32) and table.dtype == q.dtype):
        return reference(q, table, index, comparison)
    wanted = torch.is_grad_enabled() and (q.requires_grad or table.requires_grad)
    if plan is None and wanted:
        plan = plan_rows(index.reshape(-1), table.shape[:2].numel())
    scores: Tensor = _Indexed.apply(q, table, index, comparison, plan)
    return scores


class _Indexed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, table: Tensor, index: Tensor, comparison: str, plan: Optional[RowPlan]
    ) -> Tensor:
        flat = table.flatten(end_dim=1)
        scores: Tensor = torch.ops.besskge.indexed(q, flat, index, comparison)
        ctx.save_for_backward(q, table, index, scores)
        ctx.comparison, ctx.plan = comparison, plan
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        q, table, index, scores = ctx.saved_tensors
        dq, rows = torch.ops.besskge.indexed_backward(
            grad, scores, q, table.flatten(end_dim=1), index, ctx.comparison, *ctx.plan
        )
        entries = rows_of_sums(ctx.plan, table.shape[:2].numel())
        of_table = sparse_gradient(entries, rows, table.shape)
        return dq, of_table, None, None, None


def reference(q: Tensor, table: Tensor, index: Tensor, comparison: str) -> Tensor:
    """The meaning of :func:`indexed`, in plain torch; copies every row, and gives a dense gradient."""
    rows = table.flatten(end_dim=1)[as_index(index)]
    return compared(q.unsqueeze(1), rows, comparison)


@register_fake("indexed")
def _(q: Tensor, table: Tensor, index: Tensor, comparison: str) -> Tensor:
    return q.new_empty(index.shape)


@register_fake("indexed_backward")
def _(
    grad: Tensor, scores: Tensor, q: Tensor, table: Tensor, index: Tensor, comparison: str,
    unique_rows: Tensor, run_offsets: Tensor, order: Tensor,
) -> Tuple[Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(len(unique_rows), q.shape[1])
