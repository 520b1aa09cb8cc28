"""The loss of a positive and its negatives: scores are read, and their slopes take their place.

The formulas are those of :class:`besskge_core.ops.sampled_loss.LossRule`. A program has a positive
and goes through its negatives once, or twice where each counts by its share of all.

Axes:
    B: positives      N: negatives
"""

from __future__ import annotations

from besskge_core.ops.gpu.language import constexpr, jit, tl

#: Negatives that a program reads at a time.
BLOCK_N = 1024


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
def log_sum(scores, n_negative, factor, BLOCK_N: constexpr):
    """The log-sum-exp of factor * scores of a row."""
    highest = tl.full([BLOCK_N], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, n_negative, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        is_one = n < n_negative
        x = factor * tl.load(scores + n, mask=is_one, other=0.0)
        x = tl.where(is_one, tl.maximum(x, -3.0e38, propagate_nan=tl.PropagateNan.ALL), -3.0e38)
        higher = tl.maximum(highest, x, propagate_nan=tl.PropagateNan.ALL)
        total = total * tl.exp(highest - higher) + tl.where(is_one, tl.exp(x - higher), 0.0)
        highest = higher
    top = tl.max(highest, 0)
    return top + tl.log(tl.sum(total * tl.exp(highest - top), 0))


@jit
def loss_kernel(
    scores, positive, weight, cost, of_positive, n_negative, stride, margin, positive_margin,
    temperature, positive_factor, negative_factor, offset, scale, KIND: constexpr,
    ACTIVATION: constexpr, ADVERSARIAL: constexpr, WEIGHTED: constexpr, WANTED: constexpr,
    PER_SCORE: constexpr, BLOCK_N: constexpr,
):  # fmt: skip
    """The loss of a positive, its slope, and the slopes of its negatives. Grid: positives.

    scores (B, N), rows `stride` apart: read, and if WANTED replaced by the slopes; PER_SCORE: by
    these divided by the scores, or 0 where these are. positive, weight, cost, of_positive (B,).
    """
    b = tl.program_id(0).to(tl.int64)
    scores += b * stride
    p = tl.load(positive + b)
    factor = scale * tl.load(weight + b).to(tl.float32) if WEIGHTED else scale
    of_all = 0.0
    if KIND == "softmax":
        of_all = log_sum(scores, n_negative, 1.0 / temperature, BLOCK_N)
        z = of_all + offset - (p - margin) / temperature
        total_cost = softplus(z)
        factor_n = factor * tl.sigmoid(z) / temperature
        slope_p = -factor_n
    elif ADVERSARIAL:
        of_all = log_sum(scores, n_negative, temperature, BLOCK_N)
    if KIND != "softmax" or WANTED:
        costs, slopes = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        for start in range(0, n_negative, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            is_one = n < n_negative
            score = tl.load(scores + n, mask=is_one, other=0.0)
            if KIND == "softmax":
                slope = factor_n * tl.exp(score / temperature - of_all)
            else:
                share = tl.exp(temperature * score - of_all) if ADVERSARIAL else 1.0 / n_negative
                x = score + margin
                if KIND == "ranking":
                    x -= p
                else:
                    share *= negative_factor
                costs += tl.where(is_one, share * activated(x, ACTIVATION), 0.0)
                slope = factor * share * slope_of(x, ACTIVATION)
                slopes += tl.where(is_one, slope, 0.0)
            if WANTED:
                if PER_SCORE:
                    slope = tl.where(score < 0.0, slope / score, 0.0)
                tl.store(scores + n, slope, mask=is_one)
        if KIND == "ranking":
            total_cost, slope_p = tl.sum(costs, 0), -tl.sum(slopes, 0)
        elif KIND == "pointwise":
            x = positive_margin - p
            total_cost = positive_factor * activated(x, ACTIVATION) + tl.sum(costs, 0)
            slope_p = -factor * positive_factor * slope_of(x, ACTIVATION)
    tl.store(cost + b, factor * total_cost)
    if WANTED:
        tl.store(of_positive + b, slope_p)
