"""The best k candidates of each query: one read of the scores.

The columns of a part are dealt out to lanes. A lane keeps the best of its columns; the k best
columns are all in the k lanes with the best, so only the columns of these are looked at again. A
score and its column make one number, by which no two columns are equal: whatever the parts, the
same columns are chosen, in the same order.

Axes:
    Q: queries      T: candidates of a tile      F: candidates that are filtered
    S: parts of the candidates      K: candidates of a part that are kept, a power of two
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, power_of_two, tl, triton
from besskge_core.ops.gpu.pairwise import n_parts

#: Lanes of a part, and columns at most that are looked at again.
BLOCK_T, AGAIN = 1024, 2048

#: Warps of a program.
N_WARP = 2


@jit
def key_of(score, column, inside):
    """int64, larger for a better score, of equal ones for the lower column; the least if outside."""
    x = tl.where(score == score, score, float("-inf"))
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0 is 0
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (order.to(tl.int64) << 32) | (0x7FFFFFFF - column).to(tl.int64)
    return tl.where(inside, key, -(2**63))


@jit
def column_of(key):
    """What :func:`key_of` was given."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@jit
def score_of(key):
    """What :func:`key_of` was given; -inf if it was not a number."""
    order = (key >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def better_rows(key, N: constexpr, K: constexpr):
    """Of N rows of K numbers the K largest of each two."""
    # Of a falling row and a rising one, the larger at each place are the largest of both. Rows far
    # apart are often of one thread, which then has half as many.
    turned = -(tl.arange(0, N) // (N // 2)).to(tl.int64)[:, None]
    key = tl.sort(key ^ turned, descending=True) ^ turned
    return tl.max(tl.reshape(key, [2, N // 2, K]), 0)


@jit
def best_of(key, LEVEL: constexpr, K: constexpr):
    """The K largest of K 2^LEVEL numbers, best first."""
    key = tl.reshape(key, [1 << LEVEL, K])
    for level in tl.static_range(LEVEL):
        key = better_rows(key, 1 << (LEVEL - level), K)
    return tl.reshape(tl.sort(key, descending=True), [K])


@jit
def score_at(scores, marks, column, inside, column_stride, FILTERED: constexpr):
    """Scores of a row at some columns, -inf where they are filtered."""
    at = scores + column.to(tl.int64) * column_stride
    x = tl.load(at, mask=inside, other=float("-inf")).to(tl.float32)
    if FILTERED:
        word = tl.load(marks + (column >> 5), mask=inside, other=0)
        x = tl.where((word >> (column & 31)) & 1 != 0, float("-inf"), x)
    return x


@jit
def store_best(key, out_score, out_column, q, k, K: constexpr):
    """The first k of K numbers, as scores and columns (Q, k)."""
    at = tl.arange(0, K)
    out = q.to(tl.int64) * k + at
    tl.store(out_score + out, score_of(key), mask=at < k)
    tl.store(out_column + out, column_of(key).to(tl.int64), mask=at < k)


@jit
def mark_kernel(
    filter_start, filter_column, marks, n_column, n_word, first, BLOCK_F: constexpr
):  # fmt: skip
    """Sets a bit of int32 (Q, n_word) for each filtered column. Grid: queries."""
    q = tl.program_id(0)
    last = tl.load(filter_start + q + 1)
    for start in range(tl.load(filter_start + q), last, BLOCK_F):
        at = start + tl.arange(0, BLOCK_F)
        column = tl.load(filter_column + at, mask=at < last, other=0) - first
        inside = (at < last) & (column >= 0) & (column < n_column)
        bit = tl.full([BLOCK_F], 1, tl.int32) << (column & 31).to(tl.int32)
        word = marks + q.to(tl.int64) * n_word + (column >> 5)
        tl.atomic_or(word, bit, mask=inside, sem="relaxed")


@jit
def best_kernel(
    scores, marks, keys, out_score, out_column, n_column, n_part, n_word, row_stride, column_stride,
    k, FILTERED: constexpr, WHOLE: constexpr, LANE_LEVEL: constexpr, DEPTH_LEVEL: constexpr,
    K: constexpr,
):  # fmt: skip
    """The best of a part, into int64 (Q, S, K), or, of a whole row, (Q, k). Grid: queries, parts."""
    q, part = tl.program_id(0), tl.program_id(1)
    scores += q.to(tl.int64) * row_stride
    marks += q.to(tl.int64) * n_word
    BLOCK_T: constexpr = K << LANE_LEVEL
    first = part * n_part
    end = tl.minimum(first + n_part, n_column)
    lane = first + tl.arange(0, BLOCK_T)
    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    place = lane
    for start in range(0, end - first, BLOCK_T):
        column = start + lane
        x = score_at(scores, marks, column, column < end, column_stride, FILTERED)
        higher = x > best
        best, place = tl.where(higher, x, best), tl.where(higher, column, place)
    key = best_of(key_of(best, place, lane < end), LANE_LEVEL, K)
    if DEPTH_LEVEL > 0:
        top = first + (column_of(key) - first) % BLOCK_T
        column = top[:, None] + BLOCK_T * tl.arange(0, 1 << DEPTH_LEVEL)[None, :]
        # A lane without columns looks like the last lane, which then has none either.
        inside = column < end
        x = score_at(scores, marks, column, inside, column_stride, FILTERED)
        key = best_of(key_of(x, column, inside), DEPTH_LEVEL, K)
    if WHOLE:
        store_best(key, out_score, out_column, q, k, K)
    else:
        out = keys + (q.to(tl.int64) * tl.num_programs(1) + part) * K
        tl.store(out + tl.arange(0, K), key)


@jit
def merge_kernel(keys, out_score, out_column, n_key, k, LEVEL: constexpr, K: constexpr):
    """The best of int64 (Q, n_key), as scores and columns (Q, k). Grid: queries."""
    q = tl.program_id(0)
    rising = tl.full([K], -(2**63), tl.int64)
    for start in range(0, n_key, K << LEVEL):
        at = start + tl.arange(0, K << LEVEL)
        key = tl.load(keys + q.to(tl.int64) * n_key + at, mask=at < n_key, other=-(2**63))
        rising = tl.sort(tl.maximum(rising, best_of(key, LEVEL, K)))
    store_best(tl.sort(rising, descending=True), out_score, out_column, q, k, K)


def best_k(
    scores: Tensor, filter_start: Tensor, filter_column: Tensor, k: int, first: int
) -> Tuple[Tensor, Tensor]:
    """score and column (Q, min(k, T)); see the operation's Python face."""
    n_query, n_column = scores.shape
    shape = n_query, min(k, n_column)
    out = scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)
    if not out[0].numel():
        return out
    n_kept, n_lane = power_of_two(shape[1]), min(power_of_two(n_column), BLOCK_T)
    n_block = triton.cdiv(n_column, n_lane)
    n_deep = triton.cdiv(n_block, min(n_parts(N_WARP * n_query, n_column), n_block))
    n_deep = min(n_deep, max(AGAIN // n_kept, 1))
    n_part = triton.cdiv(n_block, n_deep)
    keys = scores.new_empty((n_query, n_part, n_kept), dtype=torch.int64)
    n_word = triton.cdiv(n_column, 32)
    marks = scores.new_zeros((n_query, n_word) if len(filter_column) else (0,), dtype=torch.int32)
    if len(filter_column):
        mark_kernel[(n_query,)](
            filter_start.contiguous(), filter_column.contiguous(), marks, n_column, n_word, first,
            BLOCK_F=128, num_warps=1,
        )  # fmt: skip
    lane_level = (n_lane // n_kept).bit_length() - 1
    best_kernel[(n_query, n_part)](
        scores, marks, keys, *out, n_column, n_deep * n_lane, n_word, *scores.stride(), shape[1],
        FILTERED=len(filter_column) > 0, WHOLE=n_part == 1, LANE_LEVEL=lane_level,
        DEPTH_LEVEL=power_of_two(n_deep).bit_length() - 1, K=n_kept, num_warps=N_WARP,
    )  # fmt: skip
    if n_part > 1:
        n_together = min(power_of_two(n_part), max(BLOCK_T // n_kept, 1))
        merge_kernel[(n_query,)](
            keys, *out, n_part * n_kept, shape[1], LEVEL=n_together.bit_length() - 1, K=n_kept,
            num_warps=N_WARP,
        )  # fmt: skip
    return out
