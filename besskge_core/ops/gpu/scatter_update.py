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

from typing import List, Optional

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


@jit_for_any("seed", "step", "stream")
def update_kernel(
    table, first, second, values, rows,
    run_offsets, order, partial,
    n_row, n_unique, n_value, width, stride,
    lr, keep, beta1, rest1, beta2, rest2,
    correction, eps, seed, step, stream,
    MOMENTUM: constexpr, DIVISOR: constexpr, PER_ROW: constexpr, HAS_ROWS: constexpr,
    HAS_RUNS: constexpr, SEGMENT: constexpr, STOCHASTIC: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """One row, or BLOCK_D columns of it. Grid: rows that change, blocks of columns.

    MOMENTUM: the first state: 0 none, 1 that of momentum, 2 a mean. DIVISOR: the second one:
    0 none, 1 a sum of squares, 2 a mean of them.
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
    weight = weight * keep
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
        root = tl.sqrt_rn(total if DIVISOR == 1 else total * correction) + eps
        direction = tl.div_rn(direction, tl.zeros([BLOCK_D], tl.float32) + root)
    weight = weight - direction * lr
    if table.dtype.element_ty == tl.bfloat16:
        if STOCHASTIC:
            groups = tl.program_id(1) * (BLOCK_D // 128)
            more = random_halves(row, groups, seed, step, stream, BLOCK_D)
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
    """Changes rows of a table and of its state; see the operation's Python face.

    A row outside of the table changes nothing, so that a plan of fixed length can be filled up.
    """
    momentum, divisor, per_row = FORMS[rule]
    width = table.shape[-1]
    n_row = table.shape[:-1].numel()
    n_unique = n_row if unique_rows is None else len(unique_rows)
    if not (n_unique and width):
        return
    values = as_rows(values, width)
    planned = run_offsets is not None and order is not None
    partial = partial_sums(values, run_offsets, order) if planned else None  # type: ignore[arg-type]
    stochastic = seed is not None and table.dtype == torch.bfloat16
    block = power_of_two(width) if per_row else column_block(width)
    block = max(block, GROUP) if stochastic else block
    is_mean = momentum == 2
    update_kernel[(n_unique, triton.cdiv(width, block))](
        table, state[0] if momentum else table, state[-1] if divisor else table, values,
        values if unique_rows is None else unique_rows, run_offsets if planned else values,
        order if planned else values, values if partial is None else partial,
        n_row, n_unique, len(order) if planned else 0, width, values.stride(0),  # type: ignore[arg-type]
        lr / (1.0 - beta1**step) if is_mean else lr, 1.0 - lr * weight_decay,
        beta1, 1.0 - beta1, beta2, 1.0 - beta2,
        1.0 / (1.0 - beta2**step) if divisor == 2 else 1.0, eps, seed or 0, step, stream,
        MOMENTUM=momentum, DIVISOR=divisor, PER_ROW=per_row, HAS_ROWS=unique_rows is not None,
        HAS_RUNS=planned, SEGMENT=0 if partial is None else SEGMENT, STOCHASTIC=stochastic,
        BLOCK_D=block, num_warps=n_warps(block), enable_fp_fusion=False,
    )  # fmt: skip
