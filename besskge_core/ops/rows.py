"""Which rows a step touches, and the sum of what falls on each of them.

The rows do not depend on the weights, so they are sorted and de-duplicated when the batch is
made; the update is then one pass over the touched rows, in a fixed order.

Axes:
    L: hosted shard      E: rows of a shard's table
    K: look-ups of a step      U: distinct rows among them      D: width of a row
"""

from __future__ import annotations

from typing import NamedTuple, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.counting import counting_argsort, run_starts
from besskge_core.ops.native import NATIVE, register_fake


class RowPlan(NamedTuple):
    """Look-ups grouped by row.

    A padded plan has the same U whatever is looked up (:func:`slots_of`): behind the distinct rows come
    slots whose row is the number of all rows, which is none of them, and which no look-up belongs to.

    Attributes:
        unique_rows: int64 (U,), rising but for padding.
        run_offsets: int64 (U,), where each row's look-ups begin in `order`; K for padding.
        order: int64 (K,), look-ups sorted by row, those of one row in their original order.
    """

    unique_rows: Tensor
    run_offsets: Tensor
    order: Tensor


def plan_rows(rows: Tensor, n_row: int) -> RowPlan:
    """Group look-ups by row, with a counting sort.

    Args:
        rows: int32 or int64 (K,), in [0, n_row); or (L, K), where those of shard l count from
            l * n_row.
        n_row: E, rows of a table.

    Returns:
        The plan, padded if the rows are not on a CPU: nobody waits there to count them.

    Raises:
        IndexError: a row out of range, on the CPU.
    """
    if NATIVE and rows.device.type == "cpu":
        return RowPlan(*torch.ops.besskge.plan_rows(rows, n_row))
    if rows.device.type != "cpu":
        tables = rows.long() if rows.dim() == 2 else rows.long().unsqueeze(0)
        first = n_row * torch.arange(len(tables), device=rows.device)
        return plan_rows_padded((tables + first[:, None]).flatten(), n_row * len(tables))
    return reference(rows, n_row)


def reference(rows: Tensor, n_row: int) -> RowPlan:
    """The meaning of :func:`plan_rows` on a CPU, in NumPy."""
    keys = rows.detach().numpy()
    outside = (keys < 0) | (keys >= n_row)
    if outside.any():
        raise IndexError(
            f"plan_rows: row {keys[outside][0]} is out of range for a table of {n_row} rows"
        )
    if keys.ndim == 2:
        n_host = len(keys)
        keys = (keys + n_row * np.arange(n_host)[:, None]).ravel()
        n_row *= n_host
    order = counting_argsort(keys, n_row)
    grouped = keys[order]
    starts = run_starts(grouped)
    plan = (grouped[starts].astype(np.int64), starts, order)
    return RowPlan(*(torch.from_numpy(part) for part in plan))


def plan_rows_padded(rows: Tensor, n_row: int) -> RowPlan:
    """Group look-ups by row, on the device and without waiting for it.

    Args:
        rows: int64 (..., K), in [0, n_row), which is not checked; each list has a plan of its own.
        n_row: rows of all tables, laid end to end.

    Returns:
        A padded plan, of (..., U), (..., U) and (..., K), with U of :func:`slots_of`.
    """
    narrow = rows.int() if n_row < 2**31 else rows  # half as much to sort
    grouped, order = torch.sort(narrow, stable=True)
    starts = torch.ones_like(order, dtype=torch.bool)
    torch.ne(grouped[..., 1:], grouped[..., :-1], out=starts[..., 1:])
    slot = torch.cumsum(starts, dim=-1)  # from 1
    wanted = torch.arange(1, slots_of(rows.shape[-1], n_row) + 1, device=rows.device)
    offsets = torch.searchsorted(slot, wanted.expand(*rows.shape[:-1], -1).contiguous())
    padded = F.pad(grouped.long(), (0, 1), value=n_row)
    return RowPlan(padded.gather(-1, offsets), offsets, order)


def slots_of(n_look_up: int, n_row: int) -> int:
    """U of a padded plan: more than there can be distinct rows.

    It is never the number of look-ups, by which sums of rows are told from what is to be summed.
    """
    n_slot = min(n_look_up, n_row) + 1
    return n_slot + (n_slot == n_look_up)


def rows_of_sums(plan: RowPlan, n_row: int) -> Tensor:
    """int64 (U,): rows of the sums by a plan, all of them rows of the tables.

    Padding names the first one again, whose sum is therefore to be 0; without look-ups it names the
    last row there is.
    """
    unique = plan.unique_rows
    if len(unique) <= min(len(plan.order), n_row):
        return unique
    return torch.where(unique < n_row, unique, unique[:1].clamp(max=n_row - 1))


@register_fake("plan_rows")
def _(rows: Tensor, n_row: int) -> Tuple[Tensor, Tensor, Tensor]:
    n_unique = torch.library.get_ctx().new_dynamic_size()
    unique = rows.new_empty((n_unique,), dtype=torch.int64)
    return unique, torch.empty_like(unique), rows.new_empty((rows.numel(),), dtype=torch.int64)


def sparse_rows(grad: Tensor) -> Tensor:
    """int64 (K,): rows of a sparse gradient, one for each entry, its leading axes laid end to end."""
    indices = grad._indices()
    rows = indices[0]
    for axis in range(1, len(indices)):
        rows = rows * grad.shape[axis] + indices[axis]
    return rows


def sparse_gradient(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a table that is 0 but for some rows; :func:`sparse_rows` finds these again.

    Args:
        rows: integer (K,), rows of the table, its leading axes laid end to end; one given twice
            counts twice.
        values: (K, D), of these rows.
        shape: of the table, (E, D) or (L, E, D).

    Returns:
        torch.sparse_coo of this shape, dense along D, with one entry for each row given, in order.
    """
    rows, n_table, n_row = rows.long(), shape[:-2].numel(), shape[-2]
    if len(shape) == 2:
        entries = rows.unsqueeze(0)
    elif n_table == 1:
        entries = torch.stack([torch.zeros_like(rows), rows])
    else:
        entries = torch.stack([rows.div(n_row, rounding_mode="floor"), rows % n_row])
    return torch.sparse_coo_tensor(entries, values, shape, check_invariants=False)


def sum_rows(values: Tensor, plan: RowPlan) -> Tensor:
    """Sum the values of each distinct row, in the order of the plan.

    Args:
        values: (K, D), floating.
        plan: of the K look-ups.

    Returns:
        (U, D), in the dtype of `values`.
    """
    return F.embedding_bag(plan.order, values, plan.run_offsets, mode="sum")
