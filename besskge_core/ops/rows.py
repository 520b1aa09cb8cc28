"""Which rows a step touches, and the sum of what falls on each of them.

The rows do not depend on the weights, so they are sorted and de-duplicated when the batch is
made; the update is then one pass over the touched rows, in a fixed order.

Axes:
    K: look-ups of a step      U: distinct rows among them      D: width of a row
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.counting import counting_argsort, run_starts


class RowPlan(NamedTuple):
    """Look-ups grouped by row.

    Attributes:
        unique_rows: int64 (U,), rising.
        run_offsets: int64 (U,), where each row's look-ups begin in `order`.
        order: int64 (K,), look-ups sorted by row, those of one row in their original order.
    """

    unique_rows: Tensor
    run_offsets: Tensor
    order: Tensor


def plan_rows(rows: Tensor, n_row: int) -> RowPlan:
    """Group look-ups by row, with a counting sort.

    Args:
        rows: integer (K,), in [0, n_row).
        n_row: number of rows that there are.
    """
    keys = rows.detach().cpu().numpy()
    order = counting_argsort(keys, n_row)
    grouped = keys[order]
    starts = run_starts(grouped)
    plan = (grouped[starts].astype(np.int64), starts, order)
    return RowPlan(*(torch.from_numpy(part).to(rows.device) for part in plan))


def sparse_rows(grad: Tensor) -> Tensor:
    """int64 (K,): rows of a sparse gradient, one for each entry, its leading axes laid end to end."""
    indices = grad._indices()
    rows = indices[0]
    for axis in range(1, len(indices)):
        rows = rows * grad.shape[axis] + indices[axis]
    return rows


def coordinates(row: Tensor, n_row: int) -> Tensor:
    """int64 (2, K): table and row of rows (K,) of tables laid end to end, each n_row long."""
    table = torch.div(row, n_row, rounding_mode="floor")
    return torch.stack([table, row - n_row * table])


def sum_rows(values: Tensor, plan: RowPlan) -> Tensor:
    """Sum the values of each distinct row, in the order of the plan.

    Args:
        values: (K, D), floating.
        plan: of the K look-ups.

    Returns:
        (U, D), in the dtype of `values`.
    """
    return F.embedding_bag(plan.order, values, plan.run_offsets, mode="sum")
