"""Queries from known entities and relations, scores of their answers, and the way back.

A program has a row. Rows come in two halves, of which moves over the complex numbers take the first
for real parts and the second for imaginary ones; for all others the halves are alike.

Axes:
    B: positives      D: width of a row      H: columns of a half, a power of two that holds them
"""

from __future__ import annotations

from besskge_core.ops.gpu.language import constexpr, jit, tl
from besskge_core.ops.gpu.pairwise import way


@jit
def halves(row, width, H: constexpr):
    """Columns of a row (H,) x 2, and which of them there are."""
    half = (width + 1) // 2
    d = tl.arange(0, H)
    in_first, in_second = d < half, d + half < width
    first = tl.load(row + d, mask=in_first, other=0.0).to(tl.float32)
    second = tl.load(row + half + d, mask=in_second, other=0.0).to(tl.float32)
    return first, second


@jit
def store_halves(row, first, second, width, H: constexpr):
    """Write what :func:`halves` reads."""
    half = (width + 1) // 2
    d = tl.arange(0, H)
    tl.store(row + d, first, mask=d < half)
    tl.store(row + half + d, second, mask=d + half < width)


@jit
def as_stored(x, at):
    """x as it comes back from where it is stored."""
    return x.to(at.dtype.element_ty).to(tl.float32)


@jit
def product(a, b, c, d):
    """(a + bi) (c + di)."""
    return a * c - b * d, a * d + b * c


@jit
def moved(x, y, r, s, MOVE: constexpr, HEADS: constexpr):
    """What a relation (r, s) makes of an entity (x, y)."""
    if MOVE == "translation":
        return (x - r, y - s) if HEADS else (x + r, y + s)
    if MOVE == "scaling":
        return x * r, y * s
    return product(x, y, r, -s if HEADS else s)


@jit
def answer_score(q, p, a, b, COMPARISON: constexpr, TORUS: constexpr, AXIS: constexpr):
    """The score of a query (q, p) with its answer (a, b), whose columns lie along an axis."""
    if COMPARISON == "dot":
        return tl.sum(q * a + p * b, AXIS)
    x, y = way(q, a, a, False, TORUS), way(p, b, b, False, TORUS)
    if COMPARISON == "modulus":
        size = tl.maximum(x * x + y * y, 1e-30, propagate_nan=tl.PropagateNan.ALL)
        # The columns behind the last have no part in it.
        return -tl.sum(tl.where((x == 0.0) & (y == 0.0), 0.0, tl.sqrt(size)), AXIS)
    if COMPARISON == "l2" or COMPARISON == "torus_l2":
        return -tl.sqrt_rn(tl.sum(x * x + y * y, AXIS))
    return -tl.sum(tl.abs(x) + tl.abs(y), AXIS)


@jit
def pair_gradient(slope, q, p, a, b, COMPARISON: constexpr, TORUS: constexpr):
    """The gradients of a query and of its answer, two halves each.

    slope: of the score; of an L2 distance divided by the score.
    """
    if COMPARISON == "dot":
        return slope * a, slope * b, slope * q, slope * p
    x, y = way(q, a, a, False, TORUS), way(p, b, b, False, TORUS)
    if COMPARISON == "modulus":
        size = tl.maximum(x * x + y * y, 1e-30, propagate_nan=tl.PropagateNan.ALL)
        factor = -slope * tl.rsqrt(size)
        x, y = factor * x, factor * y
    elif COMPARISON == "l2" or COMPARISON == "torus_l2":
        x, y = slope * x, slope * y
    else:
        x = tl.where(x == 0.0, 0.0, tl.where(x > 0.0, -slope, slope))
        y = tl.where(y == 0.0, 0.0, tl.where(y > 0.0, -slope, slope))
    return x, y, -x, -y


@jit
def answer_gradient(slope, score, q, p, a, b, COMPARISON: constexpr, TORUS: constexpr):
    """:func:`pair_gradient` by the slope of the score alone."""
    if COMPARISON == "l2" or COMPARISON == "torus_l2":
        slope = tl.where(score < 0.0, slope / score, 0.0)
    return pair_gradient(slope, q, p, a, b, COMPARISON, TORUS)


@jit
def query_kernel(
    known, answer, relation, relation_id, query, score, width, MOVE: constexpr, HEADS: constexpr,
    COMPARISON: constexpr, TORUS: constexpr, H: constexpr,
):  # fmt: skip
    """A query (D,) and the score of its answer. Grid: positives."""
    b = tl.program_id(0).to(tl.int64)
    of_relation = relation + tl.load(relation_id + b).to(tl.int64) * width
    x, y = halves(known + b * width, width, H)
    r, s = halves(of_relation, width, H)
    q, p = moved(x, y, r, s, MOVE, HEADS)
    # The answer is compared with what candidates are compared with.
    q, p = as_stored(q, query), as_stored(p, query)
    store_halves(query + b * width, q, p, width, H)
    of_answer, of_answer_too = halves(answer + b * width, width, H)
    tl.store(score + b, answer_score(q, p, of_answer, of_answer_too, COMPARISON, TORUS, 0))


@jit
def query_gradient_kernel(
    known, answer, relation, relation_id, query, score, slope, of_query, of_known, of_answer,
    of_relation, width, MOVE: constexpr, HEADS: constexpr, COMPARISON: constexpr,
    TORUS: constexpr, H: constexpr,
):  # fmt: skip
    """From the gradients of a score and of a query to those of entities and relation.

    slope (B,): of the scores of answers; of_query (B, D): of queries, by their candidates;
    of_known, of_answer and of_relation (B, D) are written. Grid: positives.
    """
    b = tl.program_id(0).to(tl.int64)
    at = b * width
    x, y = halves(known + at, width, H)
    r, s = halves(relation + tl.load(relation_id + b).to(tl.int64) * width, width, H)
    q, p = halves(query + at, width, H)
    a, c = halves(answer + at, width, H)
    more_q, more_p, da, dc = answer_gradient(
        tl.load(slope + b), tl.load(score + b), q, p, a, c, COMPARISON, TORUS
    )
    store_halves(of_answer + at, da, dc, width, H)
    dq, dp = halves(of_query + at, width, H)
    dq, dp = dq + more_q, dp + more_p
    if MOVE == "translation":
        dx, dy = dq, dp
        dr, ds = (-dq, -dp) if HEADS else (dq, dp)
    elif MOVE == "scaling":
        dx, dy, dr, ds = dq * r, dp * s, dq * x, dp * y
    else:
        dx, dy = product(dq, dp, r, s if HEADS else -s)
        dr, ds = product(dq, dp, x, -y)
        ds = -ds if HEADS else ds
    store_halves(of_known + at, dx, dy, width, H)
    store_halves(of_relation + at, dr, ds, width, H)
