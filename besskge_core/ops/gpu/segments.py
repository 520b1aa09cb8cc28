"""Sums of runs of values, in one order whatever the schedule, and without atomics.

Look-ups are sorted by row, so that a row's values are a run of them. The order of a sum is that of
the run, one value after the other. Where the whole of a segment, :data:`SEGMENT` look-ups from a
multiple of it on, is of one run, a kernel of its own sums it first: then a row that is hit
thousands of times is the work of many programs, and of one only for what is left over.

Axes:
    K: look-ups, sorted      U: runs      D: width of a row      S: segments
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from besskge_core.ops.gpu.language import (
    constexpr,
    jit,
    n_warps,
    power_of_two,
    tl,
    triton,
)

#: Look-ups of a segment.
SEGMENT = 64

#: The most columns that a program sums, where it need not have the whole row.
MAX_COLUMNS = 1024


@jit
def sum_of(values, order, begin, end, stride, d, inside, total, ORDERED: constexpr):
    """total + values of the look-ups from `begin` to `end`, one after the other."""
    for k in range(begin, end):
        at = tl.cast(tl.load(order + k) if ORDERED else k, tl.int64)
        total += tl.load(values + at * stride + d, mask=inside, other=0.0).to(tl.float32)
    return total


@jit
def whole_segments(begin, end, SEGMENT: constexpr):
    """The first segment that lies in a run, and the one behind the last."""
    first = (begin + SEGMENT - 1) // SEGMENT
    return first, tl.maximum(end // SEGMENT, first)


@jit
def run_at(run_offsets, place, n_run, n_value):
    """The run that a look-up lies in, and its end."""
    low, high = place * 0, place * 0 + n_run
    while high - low > 1:  # the last run that does not begin behind it
        middle = (low + high) // 2
        is_before = tl.load(run_offsets + middle) <= place
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    return low, tl.load(run_offsets + low + 1, mask=low + 1 < n_run, other=n_value)


@jit
def sum_of_run(
    values, order, partial, begin, end, width, stride, d, inside, total, ORDERED: constexpr,
    SEGMENT: constexpr,
):  # fmt: skip
    """:func:`sum_of` a run; what `segment_kernel` has summed is taken from `partial`.

    SEGMENT is 0 where it has not run.
    """
    if SEGMENT == 0:
        return sum_of(values, order, begin, end, stride, d, inside, total, ORDERED)
    first, last = whole_segments(begin, end, SEGMENT)
    is_split = last > first
    rest = tl.where(is_split, first * SEGMENT, end)
    total = sum_of(values, order, begin, rest, stride, d, inside, total, ORDERED)
    for segment in range(first, last):
        at = partial + tl.cast(segment, tl.int64) * width
        total += tl.load(at + d, mask=inside, other=0.0)
    rest = tl.where(is_split, last * SEGMENT, end)
    return sum_of(values, order, rest, end, stride, d, inside, total, ORDERED)


@jit
def segment_kernel(
    values,
    order,
    run_offsets,
    partial,
    n_run,
    n_value,
    width,
    stride,
    ORDERED: constexpr,
    SEGMENT: constexpr,
    BLOCK_D: constexpr,
):
    """The sum of a segment, if it is all of one run. Grid: whole segments, blocks of columns."""
    segment = tl.program_id(0)
    begin = segment * SEGMENT
    _, end = run_at(run_offsets, begin, n_run, n_value)
    if begin + SEGMENT <= end:
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = d < width
        total = tl.zeros([BLOCK_D], tl.float32)
        total = sum_of(values, order, begin, begin + SEGMENT, stride, d, inside, total, ORDERED)
        tl.store(partial + segment.to(tl.int64) * width + d, total, mask=inside)


@jit
def run_kernel(
    values,
    order,
    run_offsets,
    partial,
    out,
    n_run,
    n_value,
    width,
    stride,
    ORDERED: constexpr,
    SEGMENT: constexpr,
    BLOCK_D: constexpr,
):
    """The sum of a run. Grid: runs, blocks of columns."""
    run = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < width
    begin = tl.load(run_offsets + run)
    end = tl.load(run_offsets + run + 1, mask=run + 1 < n_run, other=n_value)
    total = sum_of_run(
        values, order, partial, begin, end, width, stride, d, inside,
        tl.zeros([BLOCK_D], tl.float32), ORDERED, SEGMENT,
    )  # fmt: skip
    tl.store(out + run.to(tl.int64) * width + d, total, mask=inside)


def as_rows(values: Tensor, width: int) -> Tensor:
    """Values as rows (K, D) whose entries lie together."""
    if values.dim() == 2 and (values.stride(1) == 1 or width == 1):
        return values
    return values.reshape(-1, width).contiguous()


def column_block(width: int) -> int:
    """Columns that a program takes."""
    return min(power_of_two(width), MAX_COLUMNS)


def partial_sums(values: Tensor, run_offsets: Tensor, order: Optional[Tensor]) -> Optional[Tensor]:
    """float32 (S, D), with what is of one run alone filled in; None: no segment can be.

    Args:
        values: rows (K, D), entries of a row together.
        run_offsets: int64 (U,), where each run begins.
        order: int64 (K,), where the values of the look-ups are; None: in turn.
    """
    n_value, width = len(values) if order is None else len(order), values.shape[1]
    n_segment, n_run = n_value // SEGMENT, len(run_offsets)
    if not (n_segment and n_run and width):
        return None
    partial = torch.empty((n_segment, width), dtype=torch.float32, device=values.device)
    block = column_block(width)
    segment_kernel[(n_segment, triton.cdiv(width, block))](
        values, values if order is None else order, run_offsets, partial, n_run, n_value, width,
        values.stride(0), ORDERED=order is not None, SEGMENT=SEGMENT, BLOCK_D=block,
        num_warps=n_warps(block),
    )  # fmt: skip
    return partial


def sum_runs(values: Tensor, run_offsets: Tensor, order: Optional[Tensor] = None) -> Tensor:
    """float32 (U, D), the sum of each run; arguments as of :func:`partial_sums`."""
    n_value, width = len(values) if order is None else len(order), values.shape[1]
    out = torch.empty((len(run_offsets), width), dtype=torch.float32, device=values.device)
    if not out.numel():
        return out
    values = as_rows(values, width)
    partial, block = partial_sums(values, run_offsets, order), column_block(width)
    run_kernel[(len(run_offsets), triton.cdiv(width, block))](
        values, values if order is None else order, run_offsets,
        out if partial is None else partial, out, len(run_offsets), n_value, width,
        values.stride(0), ORDERED=order is not None, SEGMENT=0 if partial is None else SEGMENT,
        BLOCK_D=block, num_warps=n_warps(block),
    )  # fmt: skip
    return out
