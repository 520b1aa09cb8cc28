"""Update rows: gradients summed, a rule applied, rows stored; a row is read once and written once.

Sums and rules are those of :mod:`besskge_core.ops.rules` in float32, with products and sums rounded
apart, and what rounds bfloat16 is the same random number. A table has therefore the bits that it
has on a CPU, but where a run holds a whole segment (:mod:`besskge_core.ops.gpu.segments`), and by
rules that keep one number a row: its sum of squares has another order.

Axes:
    R: rows of the table, its leading axes laid end to end      D: width of a row
    K: gradients      U: rows that change
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from besskge_core.ops.gpu.language import (
    constexpr,
    jit,
    jit_for_any,
    n_warps,
    power_of_two,
    tl,
    triton,
)
from besskge_core.ops.gpu.segments import (
    SEGMENT,
    as_rows,
    column_block,
    partial_sums,
    sum_of_run,
)
from besskge_core.ops.rules import Rule

#: unique_rows, run_offsets and order of an update.
Plan = Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]

#: Columns whose random numbers come together.
GROUP = 128


@jit
def random_halves(row, first, seed, step, stream, BLOCK_D: constexpr):
    """The numbers of :func:`besskge_core.ops.rounding.random_halves` for BLOCK_D columns of a row,
    whole groups of them, from group `first` on: uint32 (BLOCK_D,)."""
    counter = (first * 16 + tl.arange(0, BLOCK_D // 8)).to(tl.uint32)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(
        seed,
        counter,
        zero + row.to(tl.uint32),
        zero + step.to(tl.uint32),
        zero + stream.to(tl.uint32),
    )
    words = tl.join(tl.join(w0, w1), tl.join(w2, w3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    # (group, lane, word % 2, word // 2, half) -> (group, half, word // 2, word % 2, lane)
    halves = tl.reshape(halves, [BLOCK_D // 128, 16, 2, 2, 2])
    return tl.reshape(tl.permute(halves, [0, 4, 3, 2, 1]), [BLOCK_D])


@jit
def narrowed(weight, more):
    """float32 -> bfloat16, the bits of the weight with `more` added cut off."""
    bits = weight.to(tl.uint32, bitcast=True)
    rounded = tl.where(weight == weight, (bits + more) >> 16, 0x7FC0)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@jit
def number(x, THERE: constexpr):
    """A number, or in float32 the one that lies at an address."""
    return tl.load(x).to(tl.float32) if THERE else x


@jit_for_any("seed", "step", "stream")
def update_kernel(
    table, first, second, values, rows, run_offsets, order, partial, n_row, n_unique, n_value,
    width, stride, lr, keep, beta1, rest1, beta2, rest2, correction, eps, seed, step, stream,
    MOMENTUM: constexpr, DIVISOR: constexpr, PER_ROW: constexpr, HAS_ROWS: constexpr,
    HAS_RUNS: constexpr, SEGMENT: constexpr, STOCHASTIC: constexpr, BLOCK_D: constexpr,
    LR_THERE: constexpr, KEEP_THERE: constexpr, STEP_THERE: constexpr,
):  # fmt: skip
    """One row, or BLOCK_D columns of it. Grid: rows that change, blocks of columns.

    lr, keep, correction, step: numbers, or as X_THERE says addresses of such, the last two alike;
    float64 and int64. MOMENTUM: the first state: 0 none,
    1 that of momentum, 2 a mean. DIVISOR: the second one: 0 none, 1 a sum of squares, 2 a mean of
    them.
    """
    unique = tl.program_id(0)
    row = tl.load(rows + unique) if HAS_ROWS else unique.to(tl.int64)
    if (row < 0) | (row >= n_row):  # fills up a plan whose length must not change
        return
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < width
    at = row * width + d
    weight = tl.load(table + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RUNS:
        begin = tl.load(run_offsets + unique)
        end = tl.load(run_offsets + unique + 1, mask=unique + 1 < n_unique, other=n_value)
        grad = sum_of_run(
            values, order, partial, begin, end, width, stride, d, inside,
            tl.zeros([BLOCK_D], tl.float32), True, SEGMENT,
        )  # fmt: skip
    else:
        source = values + unique.to(tl.int64) * stride + d
        grad = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    weight = weight * number(keep, KEEP_THERE)
    direction = grad
    if MOMENTUM != 0:
        moment = tl.load(first + at, mask=inside, other=0.0) * beta1
        direction = moment + (grad if MOMENTUM == 1 else grad * rest1)
        tl.store(first + at, direction, mask=inside)
    if DIVISOR != 0:
        square = grad * grad
        at_second = second + (row if PER_ROW else at)
        if PER_ROW:
            square = tl.div_rn(tl.sum(square, 0), width.to(tl.float32))
            total = tl.load(at_second)
        else:
            total = tl.load(at_second, mask=inside, other=0.0)
        total = total + square if DIVISOR == 1 else total * beta2 + square * rest2
        if PER_ROW:
            tl.store(at_second, total)
        else:
            tl.store(at_second, total, mask=inside)
        root = tl.sqrt_rn(total if DIVISOR == 1 else total * number(correction, STEP_THERE)) + eps
        direction = tl.div_rn(direction, tl.zeros([BLOCK_D], tl.float32) + root)
    weight = weight - direction * number(lr, LR_THERE)
    if table.dtype.element_ty == tl.bfloat16:
        if STOCHASTIC:
            groups = tl.program_id(1) * (BLOCK_D // 128)
            at_step = tl.load(step) if STEP_THERE else step
            more = random_halves(row, groups, seed, at_step, stream, BLOCK_D)
        else:
            more = ((weight.to(tl.uint32, bitcast=True) >> 16) & 1) + 0x7FFF
        tl.store(table + at, narrowed(weight, more), mask=inside)
    else:
        tl.store(table + at, weight, mask=inside)


#: Rule -> MOMENTUM, DIVISOR, PER_ROW of the kernel.
FORMS = {
    "sgd": (0, 0, False),
    "momentum": (1, 0, False),
    "adagrad": (0, 1, False),
    "rowwise_adagrad": (0, 1, True),
    "adam": (2, 2, False),
    "rowwise_adam": (2, 2, True),
}


def update_rows(
    table: Tensor,
    state: Sequence[Tensor],
    values: Tensor,
    plan: Plan,
    rule: Rule,
    step: Union[int, Tensor],
    seed: Optional[int],
    stream: int,
) -> None:
    """Changes rows of a table and of its state, without waiting for the device.

    Args:
        table, state, values: of the operation.
        plan: unique_rows, run_offsets and order, None as there. A row outside of the table changes
            nothing, so that a plan of fixed length can be filled up.
        rule: its learning rate may be a float64 tensor (), and
        step: an int64 tensor (), on the device: a captured step reads them when it is replayed.
        seed, stream: of the rounding, or None.
    """
    rows, run_offsets, order = plan
    momentum, divisor, per_row = FORMS[rule.name]
    n_row, width = table.shape[:-1].numel(), table.shape[-1]
    n_unique = n_row if rows is None else len(rows)
    if not (n_unique and width):
        return
    values, partial, n_value = as_rows(values, width), None, len(values)
    if run_offsets is not None and order is not None:
        partial, n_value = partial_sums(values, run_offsets, order), len(order)
    stochastic = seed is not None and table.dtype == torch.bfloat16
    block = power_of_two(width) if per_row else column_block(width)
    block = max(block, GROUP) if stochastic else block
    count = step.double() if isinstance(step, Tensor) else step
    lr, keep = rule.lr, 1.0 - rule.lr * rule.weight_decay if rule.weight_decay else 1.0
    lr = lr / (1.0 - rule.beta1**count) if momentum == 2 else lr
    correction = 1.0 / (1.0 - rule.beta2**count) if divisor == 2 else 1.0
    update_kernel[(n_unique, triton.cdiv(width, block))](
        table, state[0] if momentum else table, state[-1] if divisor else table, values,
        *(values if x is None else x for x in (rows, run_offsets, order, partial)),
        n_row, n_unique, n_value, width, values.stride(0), lr, keep, rule.beta1, 1.0 - rule.beta1,
        rule.beta2, 1.0 - rule.beta2, correction, rule.eps, seed or 0, step, stream,
        MOMENTUM=momentum, DIVISOR=divisor, PER_ROW=per_row, HAS_ROWS=rows is not None,
        HAS_RUNS=order is not None, SEGMENT=0 if partial is None else SEGMENT,
        STOCHASTIC=stochastic, BLOCK_D=block, num_warps=n_warps(block), enable_fp_fusion=False,
        LR_THERE=isinstance(lr, Tensor), KEEP_THERE=isinstance(keep, Tensor),
        STEP_THERE=isinstance(step, Tensor),
    )  # fmt: skip


def scatter_update(
    table: Tensor,
    state: List[Tensor],
    values: Tensor,
    unique_rows: Optional[Tensor],
    run_offsets: Optional[Tensor],
    order: Optional[Tensor],
    rule: str,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    seed: Optional[int],
    stream: int,
) -> None:
    """The operation: :func:`update_rows` with numbers of the host."""
    plan, numbers = (unique_rows, run_offsets, order), (weight_decay, beta1, beta2, eps)
    update_rows(table, state, values, plan, Rule(rule, lr, *numbers), step, seed, stream)
