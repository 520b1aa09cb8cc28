"""Update the rows that a step touches: their gradients summed, a rule applied, the rows stored.

Natively it is one pass over these rows. A row's gradients are summed in the order of the plan, in
float32 and by one thread, so that the bits do not depend on the number of threads; nor on the
instruction set.

Axes:
    R: rows of the table, its leading axes laid end to end      D: width of a row
    K: gradients      U: rows that change
"""

from __future__ import annotations

from typing import Callable, List, Optional, Sequence

import torch
from torch import Tensor

from besskge_core.errors import ShapeError
from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.ops.rounding import Rounding, narrow
from besskge_core.ops.rows import RowPlan, sum_rows
from besskge_core.ops.rules import PER_ROW, STATES, Rule, Step, apply_rule

#: Changes weights (..., D) by gradients (..., D) and their state, in place.
Change = Callable[[Tensor, Tensor, List[Tensor]], None]

#: Numbers of a table that are updated at once where all of it is: a block, its gradient and its
#: state fit in a core's cache.
BLOCK = 2**16
#: The same elsewhere, where few large operations are best.
DEVICE_BLOCK = 2**27

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def scatter_update(
    table: Tensor,
    state: Sequence[Tensor],
    values: Tensor,
    rule: Rule,
    step: Step,
    unique_rows: Optional[Tensor] = None,
    run_offsets: Optional[Tensor] = None,
    order: Optional[Tensor] = None,
    rounding: Optional[Rounding] = None,
) -> None:
    """Change rows of a table and of its state, in place.

    Args:
        table: (..., D), floating.
        state: of the rule, as :data:`~besskge_core.ops.rules.STATES` names it: each (..., D), or
            (..., 1) if kept a row; float32, or float64 if the table is.
        values: gradients (K, D); without a plan one of each row that changes, (U, D).
        rule: see there.
        step: of this table, from 1; below 2**32. A tensor, as is then the rule's learning rate, where
            the update is captured to be run again.
        unique_rows: int64 (U,), rising, the rows that change; behind them may come padding, R. None:
            all, and `values` may have the shape of the table.
        run_offsets: int64 (U,); with `order` int64 (K,) the plan of :func:`plan_rows`.
        order: see there.
        rounding: random numbers to round a bfloat16 table with. None: to the nearest.

    Raises:
        ValueError: other shapes, or a plan that does not fit them.
    """
    if _is_native(table, state, values):
        if table.is_cuda:  # past the dispatcher, whose numbers are those of the host
            from besskge_core.ops.gpu.scatter_update import update_rows  # needs Triton

            seed, stream = (None, 0) if rounding is None else rounding
            plan = unique_rows, run_offsets, order
            update_rows(table, state, values, plan, rule, step, seed, stream)
            return
        rule = rule._replace(lr=float(rule.lr))
        torch.ops.besskge.scatter_update(
            table, state, values, unique_rows, run_offsets, order, *rule, int(step),
            *((None, 0) if rounding is None else rounding),
        )  # fmt: skip
    else:
        reference(table, state, values, rule, step, unique_rows, run_offsets, order, rounding)


def _is_native(table: Tensor, state: Sequence[Tensor], values: Tensor) -> bool:
    return (
        native.serves("scatter_update", table, *_NATIVE_DTYPES)
        and values.dtype in _NATIVE_DTYPES
        and table.dim() > 0
        and table.is_contiguous()
        and all(x.is_contiguous() for x in state)
    )


def reference(
    table: Tensor,
    state: Sequence[Tensor],
    values: Tensor,
    rule: Rule,
    step: Step,
    unique_rows: Optional[Tensor] = None,
    run_offsets: Optional[Tensor] = None,
    order: Optional[Tensor] = None,
    rounding: Optional[Rounding] = None,
) -> None:
    """The meaning of :func:`scatter_update`, in plain torch."""
    _check(table, state, rule)

    def change(weight: Tensor, grad: Tensor, rows_of_state: List[Tensor]) -> None:
        if rule.weight_decay:
            weight.mul_(1.0 - rule.lr * rule.weight_decay)
        apply_rule(rule, weight, grad, rows_of_state, step)

    change_rows(table, state, values, change, step, unique_rows, run_offsets, order, rounding)


def _check(table: Tensor, state: Sequence[Tensor], rule: Rule) -> None:
    if rule.name not in STATES:
        raise ValueError(f"scatter_update knows no rule '{rule.name}'")
    if len(state) != len(STATES[rule.name]):
        raise ValueError(
            f"scatter_update by {rule.name} expects {len(STATES[rule.name])} tensors of state,"
            f" got {len(state)}"
        )
    for i, x in enumerate(state):
        one = rule.name in PER_ROW and i + 1 == len(state) and table.dim() > 0
        shape = (*table.shape[:-1], 1) if one else table.shape
        if x.shape != shape:
            raise ShapeError(
                f"scatter_update by {rule.name} expects state {list(shape)} of a table"
                f" {list(table.shape)}, got {list(x.shape)}"
            )


def change_rows(
    table: Tensor,
    state: Sequence[Tensor],
    values: Tensor,
    change: Change,
    step: Step,
    unique_rows: Optional[Tensor] = None,
    run_offsets: Optional[Tensor] = None,
    order: Optional[Tensor] = None,
    rounding: Optional[Rounding] = None,
) -> None:
    """:func:`scatter_update` by any rule, a function of blocks of rows in float32 or wider."""
    if unique_rows is None:
        _change_all(table, state, values, change, step, rounding)
        return
    wide = torch.promote_types(table.dtype, torch.float32)
    grad = values.to(wide)
    if run_offsets is not None and order is not None:
        grad = sum_rows(grad, RowPlan(unique_rows, run_offsets, order))
    if grad.shape != (len(unique_rows), table.shape[-1]):
        raise ShapeError(
            f"scatter_update expects values ({len(unique_rows)}, {table.shape[-1]}), one for each"
            f" row, got {list(grad.shape)}"
        )
    flat = table.view(-1, table.shape[-1])
    if not len(flat):
        return
    rows = _Rows(unique_rows, len(flat))
    flat_state = [x.view(-1, x.shape[-1]) for x in state]
    weight = rows.read(flat).to(wide)
    rows_of_state = [rows.read(x) for x in flat_state]
    change(weight, grad, rows_of_state)
    rows.write(flat, narrow(weight, table.dtype, rows.index, step, rounding))
    for x, changed in zip(flat_state, rows_of_state):
        rows.write(x, changed)


class _Rows:
    """Rows of tables, of which those behind the last are padding.

    Padding is written as the first row once more, with what that gets, so that nobody needs to know
    how much there is.

    Args:
        unique_rows: int64 (U,).
        n_row: R.
    """

    def __init__(self, unique_rows: Tensor, n_row: int) -> None:
        here = unique_rows < n_row
        #: (U,), rows of the tables; (U, 1), which are real
        self.index = torch.where(here, unique_rows, unique_rows[:1].clamp(max=n_row - 1))
        self.here = here.unsqueeze(-1)

    def read(self, table: Tensor) -> Tensor:
        return table.index_select(0, self.index)

    def write(self, table: Tensor, changed: Tensor) -> None:
        before = table.index_select(0, self.index[:1])
        first = torch.where(self.here[:1], changed[:1], before)
        table.index_copy_(0, self.index, torch.where(self.here, changed, first))


def _change_all(
    table: Tensor,
    state: Sequence[Tensor],
    values: Tensor,
    change: Change,
    step: Step,
    rounding: Optional[Rounding],
) -> None:
    """All rows, some at a time: what is computed on the way stays in the cache."""
    wide = torch.promote_types(table.dtype, torch.float32)
    n_row = table.shape[:-1].numel()
    tensors, n_at_once = [table, values.view(table.shape), *state], 0
    if table.dim() and table.is_contiguous():
        tensors = [x.reshape(n_row, x.shape[-1]) for x in tensors]
        block = BLOCK if table.device.type == "cpu" else DEVICE_BLOCK
        n_at_once = max(block // max(table.shape[-1], 1), 1)
    first = 0
    for own, grad, *rows_of_state in zip(
        *(x.split(n_at_once) if n_at_once else (x,) for x in tensors)
    ):
        weight = own.to(wide)  # the rows themselves, unless they are of half precision
        change(weight, grad.to(wide), rows_of_state)
        rows = torch.arange(first, first + own.shape[:-1].numel(), device=table.device)
        first += len(rows)
        if weight is not own:
            own.copy_(narrow(weight, own.dtype, rows, step, rounding))


@register_fake("scatter_update")
def _(table: Tensor, state: List[Tensor], values: Tensor, *plan_and_rule: object) -> None:
    return None
