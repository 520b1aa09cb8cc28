"""The loss of narrow rows on tensor cores: scores are computed in each pass, and none is stored.

A first pass has the statistics of each query over its candidates, two more the gradients of queries
and of candidates, from slopes that are rounded as the rows are. L2 distances are computed from inner
products and squares of rows.

Axes:
    B: queries      N: candidates      D: width of a row      S: parts of a side, summed at the end
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple

from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, tl, triton
from besskge_core.ops.gpu.losses import (
    Formula,
    activated,
    by_square,
    counted,
    of_positives,
    slope_of,
)
from besskge_core.ops.gpu.tile_products import (
    TILE_OTHER,
    TILE_OWN,
    WARPS,
    padded,
    parts_of,
    rows_of,
)

#: Columns from which on distances have tiles of half the size.
WIDE = 256

#: Statistics of a query: highest, total, costs, slopes.
N_STATISTIC = 4


class Gradients(NamedTuple):
    """Losses (B,), slopes of positives (B,), gradients of queries (B, D) and candidates (N, D)."""

    cost: Tensor
    of_positive: Tensor
    of_query: Optional[Tensor]
    of_candidate: Optional[Tensor]


@jit
def tile_scores(own, other, square, other_square, L2: constexpr):
    """Scores of a tile of rows with those of the other side."""
    found = tl.dot(own, tl.trans(other), input_precision="tf32")
    if L2:
        found = by_square(found, square[:, None], other_square[None, :])
    return found


@jit
def numbers_of(x, row, n_row, IS_THERE: constexpr):
    """Numbers (len(row),) of a vector (n_row,), 0 where there are none."""
    if IS_THERE:
        return tl.load(x + row, mask=row < n_row, other=0.0)
    return tl.zeros([row.shape[0]], tl.float32)


@jit
def statistics_kernel(
    query, candidate, square, candidate_square, positive, statistic, n_query, n_candidate, n_part,
    margin, temperature, negative_factor, KIND: constexpr, ACTIVATION: constexpr,
    ADVERSARIAL: constexpr, L2: constexpr, BLOCK_OWN: constexpr, BLOCK_OTHER: constexpr,
    D: constexpr,
):  # fmt: skip
    """Statistics of queries over a part of the candidates, into (4, S, B). Grid: queries, parts.

    The highest of what shares are powers of, and the sums of these powers, of losses and of slopes,
    all of them divided by the highest power.
    """
    i, part = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN), tl.program_id(1)
    SHARES: constexpr = KIND == "softmax" or ADVERSARIAL
    power = 1.0 / temperature if KIND == "softmax" else temperature
    q, of_square = rows_of(query, i, n_query, D), numbers_of(square, i, n_query, L2)
    p = tl.load(positive + i, mask=i < n_query, other=0.0)[:, None]
    highest = tl.full([BLOCK_OWN], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK_OWN], tl.float32)
    costs, slopes = tl.zeros([BLOCK_OWN], tl.float32), tl.zeros([BLOCK_OWN], tl.float32)
    for first in range(part * n_part, tl.minimum((part + 1) * n_part, n_candidate), BLOCK_OTHER):
        n = first + tl.arange(0, BLOCK_OTHER)
        e = rows_of(candidate, n, n_candidate, D)
        is_one = (n < n_candidate)[None, :]
        score = tile_scores(q, e, of_square, numbers_of(candidate_square, n, n_candidate, L2), L2)
        top = highest
        if SHARES:
            z = tl.maximum(power * score, -3.0e38, propagate_nan=tl.PropagateNan.ALL)
            z = tl.where(is_one, z, -3.0e38)
            top = tl.maximum(highest, tl.max(z, 1), propagate_nan=tl.PropagateNan.ALL)
            shrunk = tl.exp(highest - top)
            total = total * shrunk + tl.sum(tl.where(is_one, tl.exp(z - top[:, None]), 0.0), 1)
            costs, slopes, highest = costs * shrunk, slopes * shrunk, top
        if KIND != "softmax":
            share, x = counted(
                score, p, top[:, None], n_candidate, margin, temperature, negative_factor, KIND,
                ADVERSARIAL,
            )  # fmt: skip
            share = tl.where(is_one, share, 0.0)
            costs += tl.sum(share * activated(x, ACTIVATION), 1)
            slopes += tl.sum(share * slope_of(x, ACTIVATION), 1)
    n_part_query = tl.num_programs(1).to(tl.int64) * n_query
    at, is_query = statistic + part.to(tl.int64) * n_query + i, i < n_query
    tl.store(at, highest, mask=is_query)
    tl.store(at + n_part_query, total, mask=is_query)
    tl.store(at + 2 * n_part_query, costs, mask=is_query)
    tl.store(at + 3 * n_part_query, slopes, mask=is_query)


@jit
def positives_kernel(
    statistic, positive, weight, found, n_query, n_part, margin, positive_margin, temperature,
    positive_factor, offset, scale, KIND: constexpr, ACTIVATION: constexpr,
    ADVERSARIAL: constexpr, WEIGHTED: constexpr, BLOCK_B: constexpr,
):  # fmt: skip
    """Statistics of parts -> (4, B): losses, slopes of positives, log-sum-exp, factors of slopes.

    Grid: queries.
    """
    i = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_query = i < n_query
    SHARES: constexpr = KIND == "softmax" or ADVERSARIAL
    highest = tl.full([BLOCK_B], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK_B], tl.float32)
    costs, slopes = tl.zeros([BLOCK_B], tl.float32), tl.zeros([BLOCK_B], tl.float32)
    n_part_query = tl.cast(n_part, tl.int64) * n_query
    for part in range(n_part):
        at = statistic + tl.cast(part, tl.int64) * n_query + i
        of_part = tl.load(at, mask=is_query, other=-3.0e38)
        top = tl.maximum(highest, of_part, propagate_nan=tl.PropagateNan.ALL)
        before, now = tl.exp(highest - top), tl.exp(of_part - top)
        total = total * before + now * tl.load(at + n_part_query, mask=is_query, other=0.0)
        costs = costs * before + now * tl.load(at + 2 * n_part_query, mask=is_query, other=0.0)
        slopes = slopes * before + now * tl.load(at + 3 * n_part_query, mask=is_query, other=0.0)
        highest = top
    of_all = highest
    if SHARES:
        of_all = highest + tl.log(total)
        costs, slopes = costs / total, slopes / total
    factor = tl.zeros([BLOCK_B], tl.float32) + scale
    if WEIGHTED:
        factor *= tl.load(weight + i, mask=is_query, other=0.0).to(tl.float32)
    p = tl.load(positive + i, mask=is_query, other=0.0)
    cost, slope, factor = of_positives(
        p, of_all, costs, slopes, factor, margin, positive_margin, temperature, positive_factor,
        offset, KIND, ACTIVATION,
    )  # fmt: skip
    tl.store(found + i, cost, mask=is_query)
    tl.store(found + n_query + i, slope, mask=is_query)
    tl.store(found + 2 * n_query + i, of_all, mask=is_query)
    tl.store(found + 3 * n_query + i, factor, mask=is_query)


@jit
def tile_gradient_kernel(
    own, other, square, other_square, positive, of_query, out, n_own, n_other, width, n_part,
    n_negative, margin, temperature, negative_factor, KIND: constexpr, ACTIVATION: constexpr,
    ADVERSARIAL: constexpr, L2: constexpr, OF_QUERIES: constexpr, BLOCK_OWN: constexpr,
    BLOCK_OTHER: constexpr, D: constexpr,
):  # fmt: skip
    """Gradients of rows of a side from a part of the other, into (S, own, D). Grid: rows, parts.

    of_query (2, B): log-sum-exp and factors, of :func:`positives_kernel`.
    """
    i, part = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN), tl.program_id(1)
    d = tl.arange(0, D)
    x, of_square = rows_of(own, i, n_own, D), numbers_of(square, i, n_own, L2)
    grad, sums = tl.zeros([BLOCK_OWN, D], tl.float32), tl.zeros([BLOCK_OWN], tl.float32)
    for first in range(part * n_part, tl.minimum((part + 1) * n_part, n_other), BLOCK_OTHER):
        k = first + tl.arange(0, BLOCK_OTHER)
        y = rows_of(other, k, n_other, D)
        score = tile_scores(x, y, of_square, numbers_of(other_square, k, n_other, L2), L2)
        b = i if OF_QUERIES else k
        n_query = n_own if OF_QUERIES else n_other
        p, of_all = numbers_of(positive, b, n_query, True), numbers_of(of_query, b, n_query, True)
        factor = numbers_of(of_query + n_query, b, n_query, True)
        if OF_QUERIES:
            p, of_all, factor = p[:, None], of_all[:, None], factor[:, None]
        else:
            p, of_all, factor = p[None, :], of_all[None, :], factor[None, :]
        share, z = counted(
            score, p, of_all, n_negative, margin, temperature, negative_factor, KIND, ADVERSARIAL
        )
        slope = factor * share * slope_of(z, ACTIVATION)
        if L2:
            slope = tl.where(score < 0.0, slope / score, 0.0)
        slope = tl.where((i < n_own)[:, None] & (k < n_other)[None, :], slope, 0.0).to(y.dtype)
        if L2:
            sums += tl.sum(slope.to(tl.float32), 1)
        grad = tl.dot(slope, y, grad, input_precision="tf32")
    inside = (i < n_own)[:, None] & (d < width)[None, :]
    if L2:  # the rows are read again: registers for them would be missing in the loop
        row = own + i.to(tl.int64)[:, None] * D + d[None, :]
        x = tl.load(row, mask=inside, other=0.0, eviction_policy="evict_first")
        grad = sums[:, None] * x.to(tl.float32) - grad
    tl.store(out + (part.to(tl.int64) * n_own + i)[:, None] * width + d[None, :], grad, mask=inside)


def tile_losses(
    query: Tensor,
    candidate: Tensor,
    positive: Tensor,
    formula: Formula,
    squares: Optional[Tuple[Tensor, Tensor]],
    wanted: bool,
) -> Gradients:
    """Losses and gradients of queries against candidates that they share.

    Args:
        query, candidate: (B, D) and (N, D), at least a row of each; D such that
            :func:`besskge_core.ops.gpu.tile_products.recomputes`.
        positive: float32 (B,), scores of the positives.
        formula: the loss.
        squares: sums of the squares of the rows (B,) and (N,), which make inner products
            distances.
        wanted: whether gradients are.
    """
    n_query, n_candidate, weight = len(query), len(candidate), formula.weight
    q, e = padded(query, query.dtype), padded(candidate, query.dtype)
    of_q, of_e = squares or (q, e)
    margin, positive_margin, temperature, positive_factor, negative_factor, offset = formula.numbers
    options = formula.options
    is_weighted = options.pop("WEIGHTED")
    form: Dict[str, Any] = dict(
        **options, L2=squares is not None, BLOCK_OWN=TILE_OWN,
        # Of wide rows the gradient leaves registers for half a tile of distances.
        BLOCK_OTHER=TILE_OTHER if squares is None or q.shape[1] < WIDE else TILE_OTHER // 2,
        D=q.shape[1], num_warps=WARPS,
    )  # fmt: skip
    n_part, n_part_row = parts_of(n_query, n_candidate)
    statistic = positive.new_empty((N_STATISTIC, n_part, n_query))
    statistics_kernel[(triton.cdiv(n_query, TILE_OWN), n_part)](
        q, e, of_q, of_e, positive, statistic, n_query, n_candidate, n_part_row, margin,
        temperature, negative_factor, **form,
    )  # fmt: skip
    found = positive.new_empty((4, n_query))
    positives_kernel[(triton.cdiv(n_query, TILE_OWN),)](
        statistic, positive, positive if weight is None else weight.contiguous(), found, n_query,
        n_part, margin, positive_margin, temperature, positive_factor, offset, formula.scale,
        **options, WEIGHTED=is_weighted, BLOCK_B=TILE_OWN, num_warps=4,
    )  # fmt: skip
    if not wanted:
        return Gradients(found[0], found[1], None, None)

    def gradient(own: Tensor, other: Tensor, of_queries: bool, *of_sides: Tensor) -> Tensor:
        n_part, n_part_row = parts_of(len(own), len(other))
        out = positive.new_empty((n_part, len(own), query.shape[1]))
        tile_gradient_kernel[(triton.cdiv(len(own), TILE_OWN), n_part)](
            own, other, *of_sides, positive, found[2:], out, len(own), len(other),
            query.shape[1], n_part_row, n_candidate, margin, temperature, negative_factor,
            OF_QUERIES=of_queries, **form,
        )  # fmt: skip
        return out[0] if n_part == 1 else out.sum(0)

    return Gradients(
        found[0], found[1], gradient(q, e, True, of_q, of_e), gradient(e, q, False, of_e, of_q)
    )


def squares_of(x: Tensor) -> Tensor:
    """Sums of the squares of rows (B, D), float32 (B,)."""
    return x.float().square().sum(1)
