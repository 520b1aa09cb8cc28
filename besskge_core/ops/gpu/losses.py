"""The loss of a positive and its negatives: from their scores the slopes.

The formulas are those of :class:`besskge_core.ops.sampled_loss.LossRule`. A program has a positive
and goes through its negatives once, or twice where each counts by its share of all.

Axes:
    B: positives      N: negatives
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, power_of_two, tl

#: Negatives that a program reads at a time.
BLOCK_N = 1024


class Formula(NamedTuple):
    """A loss of positives, as kernels take it.

    Attributes:
        kind, activation, adversarial: of the rule.
        numbers: of the rule, from margin to offset.
        scale: of all losses.
        weight: (B,), of the positives; None: 1 each.
    """

    kind: str
    activation: str
    adversarial: bool
    numbers: Sequence[float]
    scale: float
    weight: Optional[Tensor]

    @property
    def options(self) -> Dict[str, Any]:
        return dict(
            KIND=self.kind, ACTIVATION="identity" if self.kind == "softmax" else self.activation,
            ADVERSARIAL=self.adversarial, WEIGHTED=self.weight is not None,
        )  # fmt: skip


class Found(NamedTuple):
    """Losses of positives and slopes of their scores (B,), slopes of negatives (B, N)."""

    cost: Tensor
    of_positive: Tensor
    slope: Tensor


@jit
def softplus(x):
    """log(1 + exp x), to the last bits also where it is tiny."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    log = tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0)))
    return tl.where(x < 0.0, 0.0, x) + log


@jit
def activated(x, ACTIVATION: constexpr):
    """The activation of a loss."""
    if ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, x)
    if ACTIVATION == "softplus":
        return softplus(x)
    return x


@jit
def slope_of(x, ACTIVATION: constexpr):
    """The derivative of the activation."""
    if ACTIVATION == "relu":
        return tl.where(x > 0.0, 1.0, 0.0)
    if ACTIVATION == "softplus":
        return tl.sigmoid(x)
    return tl.zeros_like(x) + 1.0


@jit
def counted(
    score, p, of_all, n_negative, margin, temperature, negative_factor, KIND: constexpr,
    ADVERSARIAL: constexpr,
):  # fmt: skip
    """By how much negatives count, and what the activation is of.

    of_all: the log-sum-exp of all negatives, where each counts by its share.
    """
    if KIND == "softmax":
        return tl.exp(score / temperature - of_all), score
    share = tl.zeros_like(score) + 1.0 / n_negative
    if ADVERSARIAL:
        share = tl.exp(temperature * score - of_all)
    if KIND == "ranking":
        return share, score + margin - p
    return share * negative_factor, score + margin


@jit
def of_positives(
    p, of_all, costs, slopes, factor, margin, positive_margin, temperature, positive_factor,
    offset, KIND: constexpr, ACTIVATION: constexpr,
):  # fmt: skip
    """The losses of positives, slopes of their scores, and the factor of their negatives' slopes.

    costs, slopes: sums over the negatives, not of a softmax.
    """
    if KIND == "softmax":
        z = of_all + offset - (p - margin) / temperature
        factor_n = factor * tl.sigmoid(z) / temperature
        return factor * softplus(z), -factor_n, factor_n
    if KIND == "ranking":
        return factor * costs, -factor * slopes, factor
    x = positive_margin - p
    slope = -factor * positive_factor * slope_of(x, ACTIVATION)
    return factor * (positive_factor * activated(x, ACTIVATION) + costs), slope, factor


@jit
def by_square(product, square, other_square):
    """Negated distances, of inner products and the squares of both sides."""
    rest = square + other_square - 2.0 * product
    return -tl.sqrt(tl.maximum(rest, 0.0, propagate_nan=tl.PropagateNan.ALL))


@jit
def read_scores(scores, square, candidate_square, n, is_one, L2: constexpr):
    """Scores of a block of negatives; of L2 these are of inner products."""
    found = tl.load(scores + n, mask=is_one, other=0.0)
    if L2:
        found = by_square(found, square, tl.load(candidate_square + n, mask=is_one, other=0.0))
    return found


@jit
def log_sum(
    scores, square, candidate_square, n_negative, factor, L2: constexpr, BLOCK_N: constexpr
):
    """The log-sum-exp of factor * scores of a row."""
    highest = tl.full([BLOCK_N], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, n_negative, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        is_one = n < n_negative
        x = factor * read_scores(scores, square, candidate_square, n, is_one, L2)
        x = tl.where(is_one, tl.maximum(x, -3.0e38, propagate_nan=tl.PropagateNan.ALL), -3.0e38)
        higher = tl.maximum(highest, x, propagate_nan=tl.PropagateNan.ALL)
        total = total * tl.exp(highest - higher) + tl.where(is_one, tl.exp(x - higher), 0.0)
        highest = higher
    top = tl.max(highest, 0)
    return top + tl.log(tl.sum(total * tl.exp(highest - top), 0))


@jit
def loss_kernel(
    scores, square, candidate_square, positive, weight, cost, of_positive, slopes, n_negative,
    score_stride, slope_stride, margin, positive_margin, temperature, positive_factor,
    negative_factor, offset, scale, KIND: constexpr, ACTIVATION: constexpr,
    ADVERSARIAL: constexpr, WEIGHTED: constexpr, WANTED: constexpr, L2: constexpr,
    PER_SCORE: constexpr, BLOCK_N: constexpr,
):  # fmt: skip
    """The loss of a positive, its slope, and the slopes of its negatives. Grid: positives.

    scores (B, N), of L2 inner products, with square (B,) and candidate_square (N,) of the rows. If
    WANTED, slopes (B, N) are written, which may take the place of the scores; PER_SCORE: divided by
    the scores, or 0 where these are. positive, weight, cost, of_positive (B,).
    """
    b = tl.program_id(0).to(tl.int64)
    scores += b * score_stride
    slopes += b * slope_stride
    p = tl.load(positive + b)
    factor = scale * tl.load(weight + b).to(tl.float32) if WEIGHTED else scale
    of_query = tl.load(square + b) if L2 else 0.0
    of_all, costs, of_costs = 0.0, 0.0, 0.0
    if KIND == "softmax" or ADVERSARIAL:
        power = 1.0 / temperature if KIND == "softmax" else temperature
        of_all = log_sum(scores, of_query, candidate_square, n_negative, power, L2, BLOCK_N)
    if KIND == "softmax":
        total, slope_p, factor = of_positives(
            p, of_all, 0.0, 0.0, factor, margin, positive_margin, temperature, positive_factor,
            offset, KIND, ACTIVATION,
        )  # fmt: skip
    if KIND != "softmax" or WANTED:
        block_costs, block_slopes = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        for start in range(0, n_negative, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            is_one = n < n_negative
            score = read_scores(scores, of_query, candidate_square, n, is_one, L2)
            share, x = counted(
                score, p, of_all, n_negative, margin, temperature, negative_factor, KIND,
                ADVERSARIAL,
            )  # fmt: skip
            slope = share * slope_of(x, ACTIVATION)
            block_costs += tl.where(is_one, share * activated(x, ACTIVATION), 0.0)
            block_slopes += tl.where(is_one, slope, 0.0)
            if WANTED:
                slope *= factor
                if PER_SCORE:
                    slope = tl.where(score < 0.0, slope / score, 0.0)
                tl.store(slopes + n, slope.to(slopes.dtype.element_ty), mask=is_one)
        costs, of_costs = tl.sum(block_costs, 0), tl.sum(block_slopes, 0)
    if KIND != "softmax":
        total, slope_p, factor = of_positives(
            p, of_all, costs, of_costs, factor, margin, positive_margin, temperature,
            positive_factor, offset, KIND, ACTIVATION,
        )  # fmt: skip
    tl.store(cost + b, total)
    if WANTED:
        tl.store(of_positive + b, slope_p)


def losses(
    scores: Tensor,
    positive: Tensor,
    formula: Formula,
    wanted: bool,
    per_score: bool,
    squares: Optional[Tuple[Tensor, Tensor]] = None,
    dtype: torch.dtype = torch.float32,
) -> Found:
    """Losses and slopes from scores.

    Args:
        scores: float32 (B, N), rows contiguous; slopes may take their place.
        positive: float32 (B,), scores of the positives.
        formula: the loss.
        wanted: whether slopes are; without them there are none.
        per_score: slopes of negatives are divided by the scores.
        squares: the scores are inner products, and distances to be made with the squares of
            queries (B,) and candidates (N,).
        dtype: of the slopes of negatives.
    """
    (n_positive, n_negative), weight = scores.shape, formula.weight
    cost, of_positive = positive.new_empty((2, n_positive))
    slope = scores if dtype == scores.dtype else scores.new_empty(scores.shape, dtype=dtype)
    if n_positive:
        loss_kernel[(n_positive,)](
            scores, *(squares or (scores, scores)), positive,
            positive if weight is None else weight.contiguous(), cost, of_positive, slope,
            n_negative, scores.stride(0), slope.stride(0), *formula.numbers, formula.scale,
            **formula.options, WANTED=wanted, L2=squares is not None, PER_SCORE=per_score,
            BLOCK_N=min(power_of_two(n_negative), BLOCK_N), num_warps=4,
        )  # fmt: skip
    return Found(cost, of_positive, slope)
