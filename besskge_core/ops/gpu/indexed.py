"""Scores of queries with rows of their own, and their gradients; no row is copied.

A program has a query and goes through tiles of its rows, for scores and for the query's gradient. For
the gradients of rows a program has a distinct row, or a segment of its look-ups
(:mod:`besskge_core.ops.gpu.segments`), and goes through the look-ups: what each adds is computed from
its query, not read. Queries are few and stay in the second-level cache; what all look-ups add would be
written to memory and read again.

Rows come in two halves, as in :mod:`besskge_core.ops.gpu.queries`.

Axes:
    B: queries      N: rows of each      D: width of a row      R: rows of the table
    K: look-ups, F of other kinds and then B N      U: distinct rows, padding included
    H: columns of a half, a power of two that holds them      S: parts of the rows of each
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, n_warps, power_of_two, tl, triton
from besskge_core.ops.gpu.pairwise import l2_slope, n_parts
from besskge_core.ops.gpu.queries import answer_score, halves, pair_gradient, store_halves
from besskge_core.ops.gpu.segments import SEGMENT, as_rows, run_at, whole_segments

#: Numbers of a tile of rows.
TILE = 2048

#: The most look-ups of a row that are read together, so that it waits for memory less often, and
#: the numbers of their queries.
MOST_LOOK_UPS, BLOCK = 4, 4096

#: unique_rows, run_offsets and order of a plan.
Plan = Tuple[Tensor, Tensor, Tensor]


@jit
def tile_halves(at, is_row, half, width, H: constexpr):
    """Columns of rows (BLOCK, H) x 2; 0 where there are none. at (BLOCK,): where rows begin."""
    d = tl.arange(0, H)[None, :]
    at, is_row = at[:, None] + d, is_row[:, None]
    first = tl.load(at, mask=is_row & (d < half), other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=is_row & (d < width - half), other=0.0).to(tl.float32)
    return first, second


@jit
def listed(table, index, is_one, n_row, half, width, stride, H: constexpr):
    """:func:`tile_halves` of the rows of look-ups, and which of these there are in the table."""
    row = tl.load(index, mask=is_one, other=-1).to(tl.int64)
    is_row = (row >= 0) & (row < n_row)
    first, second = tile_halves(table + row * stride, is_row, half, width, H)
    return first, second, is_row


@jit
def list_score_kernel(
    query, table, index, out, n_row, n_each, n_part, half, width, stride, COMPARISON: constexpr,
    TORUS: constexpr, BLOCK_N: constexpr, H: constexpr,
):  # fmt: skip
    """Scores of a query with a part of its rows, NaN of a row that is not there. Grid: queries, parts."""
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q, p = halves(query + b * width, width, H)
    end = tl.minimum((part + 1) * n_part, n_each)
    for start in range(part * n_part, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        at = b * n_each + n
        x, y, is_row = listed(table, index + at, n < end, n_row, half, width, stride, H)
        score = answer_score(q[None, :], p[None, :], x, y, COMPARISON, TORUS, 1)
        tl.store(out + at, tl.where(is_row, score, float("nan")), mask=n < end)


@jit
def list_query_kernel(
    slope, query, table, index, out, n_query, n_row, n_each, n_part, half, width, stride,
    COMPARISON: constexpr, TORUS: constexpr, BLOCK_N: constexpr, H: constexpr,
):  # fmt: skip
    """The gradient of a query from a part of its rows, into (S, B, D). Grid: queries, parts."""
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q, p = halves(query + b * width, width, H)
    dq, dp = tl.zeros([BLOCK_N, H], tl.float32), tl.zeros([BLOCK_N, H], tl.float32)
    end = tl.minimum((part + 1) * n_part, n_each)
    for start in range(part * n_part, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        at = b * n_each + n
        c = tl.load(slope + at, mask=n < end, other=0.0)[:, None]
        x, y, _ = listed(table, index + at, n < end, n_row, half, width, stride, H)
        more_q, more_p, _, _ = pair_gradient(c, q[None, :], p[None, :], x, y, COMPARISON, TORUS)
        dq, dp = dq + more_q, dp + more_p
    at = out + (part.to(tl.int64) * n_query + b) * width
    store_halves(at, tl.sum(dq, 0), tl.sum(dp, 0), width, H)


@jit
def of_look_ups(
    x, y, da, db, slope, query, first, order, begin, end, n_first, n_each, half, width,
    COMPARISON: constexpr, TORUS: constexpr, HAS_FIRST: constexpr, BLOCK_K: constexpr,
    H: constexpr,
):  # fmt: skip
    """(da, db) and what look-ups `begin` to `end`, whole blocks, add to the gradient of a row (x, y)."""
    for start in range(begin, end, BLOCK_K):
        look_up = tl.load(order + start + tl.arange(0, BLOCK_K)).to(tl.int32)
        is_pair, pair = look_up >= n_first, look_up - n_first
        b = (pair // n_each).to(tl.int64)
        c = tl.load(slope + pair, mask=is_pair, other=0.0)[:, None]
        q, p = tile_halves(query + b * width, is_pair, half, width, H)
        _, _, dx, dy = pair_gradient(c, q, p, x[None, :], y[None, :], COMPARISON, TORUS)
        if HAS_FIRST:
            at = first + look_up.to(tl.int64) * width
            own_x, own_y = tile_halves(at, look_up < n_first, half, width, H)
            dx, dy = dx + own_x, dy + own_y
        da, db = da + tl.sum(dx, 0), db + tl.sum(dy, 0)
    return da, db


@jit
def of_run(
    x, y, da, db, slope, query, first, order, begin, end, n_first, n_each, half, width,
    COMPARISON: constexpr, TORUS: constexpr, HAS_FIRST: constexpr, BLOCK_K: constexpr,
    H: constexpr,
):  # fmt: skip
    """:func:`of_look_ups`, by blocks, and one by one what is left."""
    rest = begin + (end - begin) // BLOCK_K * BLOCK_K
    da, db = of_look_ups(
        x, y, da, db, slope, query, first, order, begin, rest, n_first, n_each, half, width,
        COMPARISON, TORUS, HAS_FIRST, BLOCK_K, H,
    )  # fmt: skip
    return of_look_ups(
        x, y, da, db, slope, query, first, order, rest, end, n_first, n_each, half, width,
        COMPARISON, TORUS, HAS_FIRST, 1, H,
    )  # fmt: skip


@jit
def row_or_first(table, rows, run, n_row, width, stride, H: constexpr):
    """:func:`halves` of the row of a run; if there is no such row, of the first one."""
    row = tl.load(rows + run)
    row = tl.where((row >= 0) & (row < n_row), row, 0)
    return halves(table + row * stride, width, H)


@jit
def list_segment_kernel(
    slope, query, first, table, rows, run_offsets, order, partial, n_row, n_run, n_value, n_first,
    n_each, half, width, stride, COMPARISON: constexpr, TORUS: constexpr, HAS_FIRST: constexpr,
    SEGMENT: constexpr, BLOCK_K: constexpr, H: constexpr,
):  # fmt: skip
    """The gradient of a row from a segment of its look-ups, if all are its. Grid: whole segments."""
    segment = tl.program_id(0)
    begin = segment * SEGMENT
    run, end = run_at(run_offsets, begin, n_run, n_value)
    if begin + SEGMENT <= end:
        x, y = row_or_first(table, rows, run, n_row, width, stride, H)
        zero = tl.zeros([H], tl.float32)
        da, db = of_look_ups(
            x, y, zero, zero, slope, query, first, order, begin, begin + SEGMENT, n_first, n_each,
            half, width, COMPARISON, TORUS, HAS_FIRST, BLOCK_K, H,
        )  # fmt: skip
        store_halves(partial + segment.to(tl.int64) * width, da, db, width, H)


@jit
def list_row_kernel(
    slope, query, first, table, rows, run_offsets, order, partial, out, n_row, n_run, n_value,
    n_first, n_each, half, width, stride, COMPARISON: constexpr, TORUS: constexpr,
    HAS_FIRST: constexpr, SEGMENT: constexpr, BLOCK_K: constexpr, H: constexpr,
):  # fmt: skip
    """The gradient of a distinct row, 0 for padding. Grid: distinct rows.

    slope (B, N): of an L2 distance, divided by the score; first (F, D): of the first look-ups.
    SEGMENT is 0 where `list_segment_kernel` has not run.
    """
    run = tl.program_id(0)
    begin = tl.load(run_offsets + run)
    end = tl.load(run_offsets + run + 1, mask=run + 1 < n_run, other=n_value)
    at = out + run.to(tl.int64) * width
    da, db = tl.zeros([H], tl.float32), tl.zeros([H], tl.float32)
    if begin == end:
        store_halves(at, da, db, width, H)
        return
    x, y = row_or_first(table, rows, run, n_row, width, stride, H)
    rest = end
    if SEGMENT != 0:
        first_whole, last_whole = whole_segments(begin, end, SEGMENT)
        rest = tl.where(last_whole > first_whole, first_whole * SEGMENT, end)
    da, db = of_run(
        x, y, da, db, slope, query, first, order, begin, rest, n_first, n_each, half, width,
        COMPARISON, TORUS, HAS_FIRST, BLOCK_K, H,
    )  # fmt: skip
    if SEGMENT != 0:
        for segment in range(first_whole, last_whole):
            own_x, own_y = halves(partial + tl.cast(segment, tl.int64) * width, width, H)
            da, db = da + own_x, db + own_y
        rest = tl.where(last_whole > first_whole, last_whole * SEGMENT, end)
        da, db = of_run(
            x, y, da, db, slope, query, first, order, rest, end, n_first, n_each, half, width,
            COMPARISON, TORUS, HAS_FIRST, BLOCK_K, H,
        )  # fmt: skip
    store_halves(at, da, db, width, H)


class Lists(NamedTuple):
    """Queries, and the rows that each is compared with.

    Attributes:
        query: (B, D), contiguous, float32 or bfloat16.
        table: (R, D), entries of a row together, float32 or bfloat16.
        rows: integer (B, N), contiguous.
        comparison: one of :data:`besskge_core.ops.pairwise.COMPARISONS`.
    """

    query: Tensor
    table: Tensor
    rows: Tensor
    comparison: str

    def scores(self) -> Tensor:
        """float32 (B, N); NaN of a row out of range: to raise would wait for the device."""
        out = self.query.new_empty(self.rows.shape, dtype=torch.float32)
        if not (out.numel() and self.query.numel()):
            return out.zero_()
        n_part, grid = self._parts()
        list_score_kernel[grid](
            self.query, self.table, self.rows, out, len(self.table), self.rows.shape[1], n_part,
            *self._sizes(), **self._tile(),
        )  # fmt: skip
        return out

    def of_queries(self, slope: Tensor) -> Tensor:
        """float32 (B, D), the gradients of queries.

        Args:
            slope: float32 (B, N), contiguous: the gradient of the scores; of an L2 distance divided by
                the score.
        """
        n_part, grid = self._parts()
        out = slope.new_empty((grid[1], *self.query.shape))
        if not (slope.numel() and out.numel()):
            return slope.new_zeros(self.query.shape)
        list_query_kernel[grid](
            slope, self.query, self.table, self.rows, out, grid[0], len(self.table),
            self.rows.shape[1], n_part, *self._sizes(), **self._tile(),
        )  # fmt: skip
        return out[0] if len(out) == 1 else out.sum(0)

    def of_rows(self, slope: Tensor, plan: Plan, first: Optional[Tensor] = None) -> Tensor:
        """float32 (U, D), the gradients of distinct rows, each the sum of its look-ups' in their order.

        Args:
            slope: see :meth:`of_queries`.
            plan: int64 (U,), (U,), (K,), contiguous, of the look-ups, less than 2**31; may be padded.
            first: float32 (F, D), contiguous: gradients of look-ups before those of `rows`.
        """
        n_run, n_value, width = len(plan[0]), len(plan[2]), self.query.shape[1]
        out = slope.new_empty((n_run, width))
        if not (out.numel() and n_value):
            return out.zero_()
        read = slope, self.query, slope if first is None else first, self.table, *plan
        n_first, n_segment = 0 if first is None else len(first), n_value // SEGMENT
        sizes = len(self.table), n_run, n_value, n_first, self.rows.shape[1], *self._sizes()
        form = dict(
            self._form(), HAS_FIRST=first is not None, SEGMENT=SEGMENT if n_segment else 0,
            BLOCK_K=max(min(MOST_LOOK_UPS, BLOCK // power_of_two(width)), 1), num_warps=n_warps(width),
        )  # fmt: skip
        partial = slope.new_empty((n_segment, width))
        if n_segment:
            list_segment_kernel[(n_segment,)](*read, partial, *sizes, **form)
        list_row_kernel[(n_run,)](*read, partial, out, *sizes, **form)
        return out

    def _parts(self) -> Tuple[int, Tuple[int, int]]:
        """Rows of a part of each query's, and queries and parts."""
        n_query, n_each = self.rows.shape
        n_part = max(triton.cdiv(n_each, n_parts(n_query, n_each)), 1)
        return n_part, (n_query, max(triton.cdiv(n_each, n_part), 1))

    def _tile(self) -> Dict[str, Any]:
        """The form of a tile, and 16 of its numbers for a thread."""
        width = power_of_two(self.query.shape[1])
        n_row = max(min(TILE // width, power_of_two(self.rows.shape[1])), 1)
        return dict(self._form(), BLOCK_N=n_row, num_warps=n_warps(max(TILE, width) // 2))

    def _sizes(self) -> Tuple[int, int, int]:
        """Columns of a half and of a row, and from one row of the table to the next."""
        width = self.query.shape[1]
        return (width + 1) // 2, width, self.table.stride(0)

    def _form(self) -> Dict[str, Any]:
        return dict(
            COMPARISON=self.comparison, TORUS=self.comparison.startswith("torus"),
            H=power_of_two((self.query.shape[1] + 1) // 2),
        )  # fmt: skip


def lists_of(query: Tensor, table: Tensor, index: Tensor, comparison: str) -> Lists:
    """The lists, whose tensors may lie apart.

    Raises:
        ValueError: complex numbers have an odd width.
    """
    width = table.shape[1]
    if comparison == "modulus" and width % 2:
        raise ValueError(f"indexed expects rows of complex numbers, got a width of {width}")
    return Lists(query.contiguous(), as_rows(table, width), index.contiguous(), comparison)


def indexed(q: Tensor, table: Tensor, index: Tensor, comparison: str) -> Tensor:
    """(B, D), (R, D), (B, N) -> (B, N), in float32; see the operation's Python face."""
    return lists_of(q, table, index, comparison).scores()


def indexed_backward(
    grad: Tensor,
    scores: Tensor,
    q: Tensor,
    table: Tensor,
    index: Tensor,
    comparison: str,
    unique_rows: Tensor,
    run_offsets: Tensor,
    order: Tensor,
) -> Tuple[Tensor, Tensor]:
    """The gradients of queries (B, D) and of distinct rows (U, D)."""
    lists = lists_of(q, table, index, comparison)
    slope = (l2_slope(grad, scores) if comparison.endswith("l2") else grad).contiguous()
    plan = unique_rows.contiguous(), run_offsets.contiguous(), order.contiguous()
    return lists.of_queries(slope), lists.of_rows(slope, plan)
