"""Scores of queries with shared candidates and their gradients; a row of a pair never exists.

Distances are sums over columns. A program scores a tile of pairs: its sums stay in registers while
it goes through the columns, of which it reads one of the queries and one of the candidates at a
time, from matrices that are transposed for it. For gradients a program has a tile of rows and
columns, and goes through the rows of the other side. An inner product is a matrix product, which
torch has.

Tiles are whole: the last one of a side begins early enough, and does some rows again. So nothing is
masked in the loops, where the arithmetic is, and addresses differ by constants. A program is one
warp, of whose threads each has every 32nd column of the tile.

Axes:
    B: queries      N: candidates      D: width of a row, or of its real parts
    O: rows of the side whose gradient is made      K: rows of the other side
    S: parts of the other side, summed at the end
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, tl, triton

#: Queries and candidates of a tile of scores.
TILE_B, TILE_N = 16, 128

#: Numbers of a tile of gradients, and the columns that it may have.
TILE, TILE_COLUMNS = 1024, (128, 64, 32)

#: Warps that keep a large GPU busy: 8 for each of its 132 multiprocessors.
N_PROGRAM = 1056

#: The fewest rows that a part of the other side is worth.
LEAST_PART = 64


@jit
def way(q, e, w, WEIGHTED: constexpr, TORUS: constexpr):
    """From candidates to queries; on a torus the shortest one."""
    x = q - (w * e if WEIGHTED else e)
    if TORUS:
        size = tl.abs(x)
        nearest = (size + 8388608.0) - 8388608.0  # 2**23: sums have no bits behind the point
        size = tl.where(size >= 8388608.0, 0.0, size - nearest)
        x = tl.where(x < 0.0, -size, size)
    return x


@jit
def distances(
    q, e, w, width, q_stride, e_stride, COMPARISON: constexpr, WEIGHTED: constexpr,
    TORUS: constexpr, BLOCK_B: constexpr, BLOCK_N: constexpr,
):  # fmt: skip
    """Negated distances of a tile of pairs (BLOCK_B, BLOCK_N).

    q, w: where BLOCK_B columns of (D, B) begin, w unused or weights; e: BLOCK_N of (D, N).
    """
    b, n = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    to_y_q, to_y_e = tl.cast(width, tl.int64) * q_stride, tl.cast(width, tl.int64) * e_stride
    for _ in range(width):
        q_d, e_d = tl.load(q + b)[:, None], tl.load(e + n)[None, :]
        w_d = tl.load(w + b)[:, None] if WEIGHTED else q_d
        x = way(q_d, e_d, w_d, WEIGHTED, TORUS)
        if COMPARISON == "modulus":
            y = tl.load(q + to_y_q + b)[:, None] - tl.load(e + to_y_e + n)[None, :]
            total += tl.sqrt(tl.maximum(x * x + y * y, 1e-30, propagate_nan=tl.PropagateNan.ALL))
        elif COMPARISON == "l2" or COMPARISON == "torus_l2":
            total += x * x
        else:
            total += tl.abs(x)
        q, e = q + q_stride, e + e_stride
        if WEIGHTED:
            w += q_stride
    if COMPARISON == "l2" or COMPARISON == "torus_l2":
        total = tl.sqrt_rn(total)
    return -total


@jit
def distance_kernel(
    q, e, w, out, n_query, n_candidate, width, COMPARISON: constexpr, WEIGHTED: constexpr,
    TORUS: constexpr, BLOCK_B: constexpr, BLOCK_N: constexpr,
):  # fmt: skip
    """A tile of :func:`distances` (B, N). Grid: blocks of queries, blocks of candidates."""
    first_b = tl.minimum(tl.program_id(0) * BLOCK_B, n_query - BLOCK_B)
    first_n = tl.minimum(tl.program_id(1) * BLOCK_N, n_candidate - BLOCK_N)
    of_w = w + first_b if WEIGHTED else w
    found = distances(
        q + first_b, e + first_n, of_w, width, n_query, n_candidate, COMPARISON, WEIGHTED, TORUS,
        BLOCK_B, BLOCK_N,
    )  # fmt: skip
    b, n = first_b + tl.arange(0, BLOCK_B), first_n + tl.arange(0, BLOCK_N)
    tl.store(out + b.to(tl.int64)[:, None] * n_candidate + n[None, :], found)


@jit
def is_positive(x):
    """1 where x is above 0, 0 where below, a half at 0: one instruction of a GPU."""
    return tl.clamp(x * 8.507059173023462e37 + 0.5, 0.0, 1.0)  # 2**126 times what is not 0


@jit
def distance_gradient_kernel(
    slope, own, other, w, out, out_w, n_own, n_other, width, n_part_row,
    COMPARISON: constexpr, WEIGHTED: constexpr, TORUS: constexpr, OF_QUERIES: constexpr,
    BLOCK_O: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """The gradient of a tile of rows, from a part of the rows of the other side.

    slope (K, O): of the scores; of an L2 distance, divided by the score. own (O, D), other (K, D),
    w (B, D) or unused; out and out_w (S, O, D), of rows and of weights. Rows of complex numbers are
    2 D wide. Grid: blocks of rows, blocks of columns, parts.
    """
    o = tl.minimum(tl.program_id(0) * BLOCK_O, n_own - BLOCK_O) + tl.arange(0, BLOCK_O)
    d = tl.minimum(tl.program_id(1) * BLOCK_D, width - BLOCK_D) + tl.arange(0, BLOCK_D)
    part = tl.program_id(2)
    row = width * 2 if COMPARISON == "modulus" else width
    at = o.to(tl.int64)[:, None] * row + d[None, :]
    own_x = tl.load(own + at)
    own_w = tl.load(w + at) if WEIGHTED and OF_QUERIES else own_x
    own_y = tl.load(own + at + width) if COMPARISON == "modulus" else own_x
    total_x = tl.zeros([BLOCK_O, BLOCK_D], tl.float32)
    total_y = tl.zeros([BLOCK_O, BLOCK_D], tl.float32)
    total_c = tl.zeros([BLOCK_O, 1], tl.float32)
    is_l2 = COMPARISON == "l2" or COMPARISON == "torus_l2"
    begin = part * n_part_row
    slope += tl.cast(begin, tl.int64) * n_own
    first = tl.cast(begin, tl.int64) * row
    other += first
    if WEIGHTED and not OF_QUERIES:
        w += first
    for _ in range(begin, tl.minimum(begin + n_part_row, n_other)):
        c = tl.load(slope + o)[:, None]
        other_x = tl.load(other + d)[None, :]
        if OF_QUERIES:
            x = way(own_x, other_x, own_w, WEIGHTED, TORUS)
        else:
            other_w = tl.load(w + d)[None, :] if WEIGHTED else other_x
            x = way(other_x, own_x, other_w, WEIGHTED, TORUS)
        if COMPARISON == "modulus":
            other_y = tl.load(other + width + d)[None, :]
            y = own_y - other_y if OF_QUERIES else other_y - own_y
            c = c * tl.rsqrt(tl.maximum(x * x + y * y, 1e-30, propagate_nan=tl.PropagateNan.ALL))
            total_x += c * x
            total_y += c * y
        elif WEIGHTED:
            of_way = c * (x if is_l2 else 2.0 * is_positive(x) - 1.0)
            if OF_QUERIES:
                total_y += of_way * other_x
            else:
                of_way *= other_w
                w += row
            total_x += of_way
        elif is_l2:
            total_x += c * x
        else:  # c times the sign is 2 c is_positive - c
            total_x += c * is_positive(x)
            total_c += c
        slope += n_own
        other += row
    if not (WEIGHTED or is_l2 or COMPARISON == "modulus"):
        total_x = 2.0 * total_x - total_c
    # A score falls with the distance, and the way goes from candidates to queries.
    if is_l2 != OF_QUERIES:
        total_x, total_y = -total_x, -total_y
    at += part.to(tl.int64) * n_own * row
    tl.store(out + at, total_x)
    if COMPARISON == "modulus":
        tl.store(out + at + width, total_y)
    if WEIGHTED and OF_QUERIES:
        tl.store(out_w + at, -total_y)


def entries_of(width: int, comparison: str) -> int:
    """Entries of a row, of which complex ones have two parts."""
    return width // 2 if comparison == "modulus" else width


def _at_least(x: Tensor, n_row: int, n_entry: int, least: int) -> Tensor:
    """Rows (O, D) contiguous, made up with zeros to `n_row` rows of parts of `least` entries."""
    more = max(n_row - len(x), 0)
    if n_entry < least:
        x = x.unflatten(1, (-1, n_entry))
        return F.pad(x, (0, least - n_entry, 0, 0, 0, more)).flatten(1)
    return F.pad(x, (0, 0, 0, more)) if more else x.contiguous()


def negated_distances(q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor]) -> Tensor:
    """(B, D), (N, D) -> float32 (B, N), of all comparisons but "dot"."""
    (n_query, width), n_candidate = q.shape, len(e)
    n_entry = entries_of(width, comparison)
    if not (n_query and n_candidate and n_entry):
        return q.new_zeros((n_query, n_candidate))
    of_q, of_e = (
        _at_least(x, n, n_entry, 0).t().contiguous() for x, n in ((q, TILE_B), (e, TILE_N))
    )
    of_w = of_q if weight is None else _at_least(weight, TILE_B, n_entry, 0).t().contiguous()
    size = of_q.shape[1], of_e.shape[1]
    out = q.new_empty(size)
    distance_kernel[(triton.cdiv(size[0], TILE_B), triton.cdiv(size[1], TILE_N))](
        of_q, of_e, of_w, out, *size, n_entry, COMPARISON=comparison, WEIGHTED=weight is not None,
        TORUS=comparison.startswith("torus"), BLOCK_B=TILE_B, BLOCK_N=TILE_N, num_warps=1,
    )  # fmt: skip
    return out[:n_query, :n_candidate]


def n_parts(n_program: int, n_row: int) -> int:
    """Parts that the rows of a loop are split in, so that so many times as many programs suffice."""
    return max(1, min(triton.cdiv(N_PROGRAM, max(n_program, 1)), n_row // LEAST_PART))


def column_tile(n_entry: int) -> int:
    """Columns of a tile of gradients: those that waste the least of the last tile."""
    return min(TILE_COLUMNS, key=lambda n: triton.cdiv(n_entry, n) * n)


def distance_gradient(
    slope: Tensor, q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor], of_queries: bool
) -> Tuple[Tensor, Tensor]:
    """The gradient of queries and of their weights, or that of candidates and nothing.

    Args:
        slope: (B, N), the gradient of the scores; of an L2 distance divided by the score.
        q, e, comparison, weight: of :func:`negated_distances`.
        of_queries: of which side.
    """
    own, other = (q, e) if of_queries else (e, q)
    n_own, n_other, n_entry = len(own), len(other), entries_of(q.shape[1], comparison)
    if not (n_own and n_other and n_entry):
        return torch.zeros_like(own), torch.zeros_like(own)
    block_d = column_tile(n_entry)
    block_o = TILE // block_d // (2 if comparison == "modulus" else 1)
    slope = F.pad(slope.t() if of_queries else slope, (0, max(block_o - n_own, 0))).contiguous()
    own = _at_least(own, block_o, n_entry, block_d)
    other = _at_least(other, 0, n_entry, block_d)
    of_w = own
    if weight is not None:
        of_w = _at_least(weight, block_o if of_queries else 0, n_entry, block_d)
    wide = max(n_entry, block_d)
    grid = triton.cdiv(len(own), block_o), triton.cdiv(wide, block_d)
    n_part = n_parts(grid[0] * grid[1], n_other)
    n_part_row = triton.cdiv(n_other, n_part)
    out = own.new_empty((triton.cdiv(n_other, n_part_row), *own.shape))
    out_w = torch.empty_like(out) if weight is not None and of_queries else out
    distance_gradient_kernel[(*grid, len(out))](
        slope, own, other, of_w, out, out_w, len(own), n_other, wide, n_part_row,
        COMPARISON=comparison, WEIGHTED=weight is not None, TORUS=comparison.startswith("torus"),
        OF_QUERIES=of_queries, BLOCK_O=block_o, BLOCK_D=block_d, num_warps=1,
    )  # fmt: skip
    rows, weights = (
        (x[0] if len(x) == 1 else x.sum(0))[:n_own].unflatten(1, (-1, wide))[..., :n_entry].flatten(1)
        for x in (out, out_w)
    )  # fmt: skip
    return rows, weights


def l2_slope(slope: Tensor, scores: Tensor) -> Tensor:
    """A slope divided by the L2 scores; at 0, which has no direction, it is 0."""
    return torch.where(scores < 0.0, slope / scores, 0.0)


def pairwise(q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor]) -> Tensor:
    """(B, D), (N, D) -> (B, N), in float32; see the operation's Python face."""
    if comparison == "dot":
        return q @ e.t()
    return negated_distances(q, e, comparison, weight).contiguous()


def pairwise_backward(
    grad: Tensor, scores: Tensor, q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor]
) -> Tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries (B, D), candidates (N, D), and weights (B, D) or nothing."""
    if comparison == "dot":
        return grad @ e, grad.t() @ q, q.new_empty((0, q.shape[1]))
    if comparison.endswith("l2"):
        grad = l2_slope(grad, scores)
    dq, dw = distance_gradient(grad, q, e, comparison, weight, True)
    de, _ = distance_gradient(grad, q, e, comparison, weight, False)
    dw = q.new_empty((0, q.shape[1])) if weight is None else dw.contiguous()
    return dq.contiguous(), de.contiguous(), dw
