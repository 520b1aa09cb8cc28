"""The softmax of rows of scores: log-sum-exp, and the gradient, each in one pass.

A program has a row, or a part of one. The labels of a row are few, and are looked for in each block
of its columns.

Axes:
    Q: queries, rows of scores      T: columns      K: places of labels      S: parts of a row
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, power_of_two, tl, triton
from besskge_core.ops.gpu.pairwise import n_parts

#: Columns that a program reads at a time.
BLOCK_T = 1024


@jit
def logits_of(
    scores, excluded, label_column, first_label, last_label, column, inside, column_stride, margin,
    temperature, EXCLUDES: constexpr, MARGIN: constexpr,
):  # fmt: skip
    """The logits of a block of columns of a row; -inf where excluded and behind the last."""
    x = tl.load(scores + column.to(tl.int64) * column_stride, mask=inside, other=0.0).to(tl.float32)
    if EXCLUDES:
        out = tl.load(excluded + column, mask=inside, other=1)
        x = tl.where(out != 0, float("-inf"), x)
    if MARGIN:
        for label in range(first_label, last_label):
            x -= tl.where(column == tl.load(label_column + label), margin, 0.0)
    return tl.where(inside, tl.div_rn(x, tl.zeros_like(x) + temperature), float("-inf"))


@jit
def log_sum_kernel(
    scores, excluded, label_start, label_column, log_sum, n_query, n_column, n_part, row_stride,
    column_stride, margin, temperature, EXCLUDES: constexpr, MARGIN: constexpr,
    BLOCK_T: constexpr,
):  # fmt: skip
    """The log-sum-exp of a part of a row, into (S, Q). Grid: queries, parts."""
    q, part = tl.program_id(0), tl.program_id(1)
    first_label = tl.load(label_start + q) if MARGIN else 0
    last_label = tl.load(label_start + q + 1) if MARGIN else 0
    highest = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    end = tl.minimum((part + 1) * n_part, n_column)
    for start in range(part * n_part, end, BLOCK_T):
        column = start + tl.arange(0, BLOCK_T)
        x = logits_of(
            scores + q.to(tl.int64) * row_stride, excluded, label_column, first_label, last_label,
            column, column < end, column_stride, margin, temperature, EXCLUDES, MARGIN,
        )  # fmt: skip
        higher = tl.maximum(highest, x, propagate_nan=tl.PropagateNan.ALL)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - base) + tl.exp(x - base)
        highest = higher
    top = tl.max(highest, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    # What is no number is in the total, whatever the highest is.
    base = tl.where(highest == float("-inf"), 0.0, highest)
    found = tl.sum(total * tl.exp(base - top), 0)
    tl.store(log_sum + part.to(tl.int64) * n_query + q, top + tl.log(found))


@jit
def own_kernel(
    scores, excluded, label_start, label_row, label_column, own, row_stride, column_stride, margin,
    temperature, EXCLUDES: constexpr, MARGIN: constexpr,
):  # fmt: skip
    """The logit at a label. Grid: labels."""
    k = tl.program_id(0)
    q = tl.load(label_row + k).to(tl.int64)
    column = tl.load(label_column + k) + tl.arange(0, 1)
    first_label = tl.load(label_start + q) if MARGIN else 0
    last_label = tl.load(label_start + q + 1) if MARGIN else 0
    x = logits_of(
        scores + q * row_stride, excluded, label_column, first_label, last_label, column,
        column >= 0, column_stride, margin, temperature, EXCLUDES, MARGIN,
    )  # fmt: skip
    tl.store(own + k + tl.arange(0, 1), x)


@jit
def share_of(logit, log_total, weight):
    """weight * exp(logit - log_total), whatever the rounding not above the weight."""
    total = tl.where(log_total == float("-inf"), 0.0, log_total)
    return weight * tl.exp(tl.minimum(logit - total, 0.0, propagate_nan=tl.PropagateNan.ALL))


@jit
def softmax_gradient_kernel(
    scores, excluded, label_start, label_column, log_total, weight, of_label, out, n_column,
    row_stride, column_stride, margin, temperature, EXCLUDES: constexpr, MARGIN: constexpr,
    BLOCK_T: constexpr,
):  # fmt: skip
    """The gradient of a block of a row of scores, into (Q, T). Grid: queries, blocks."""
    q = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = column < n_column
    first_label, last_label = tl.load(label_start + q), tl.load(label_start + q + 1)
    logit = logits_of(
        scores + q.to(tl.int64) * row_stride, excluded, label_column, first_label, last_label,
        column, inside, column_stride, margin, temperature, EXCLUDES, MARGIN,
    )  # fmt: skip
    grad = share_of(logit, tl.load(log_total + q), tl.load(weight + q))
    for label in range(first_label, last_label):
        here = column == tl.load(label_column + label)
        grad -= tl.where(here, tl.load(of_label + label), 0.0)
    tl.store(out + q.to(tl.int64) * n_column + column, grad, mask=inside)


def by_row(row: Tensor, n_row: int) -> Tuple[Tensor, Tensor]:
    """Labels sorted by row: where those of each row begin (Q + 1,), and the order (K,)."""
    ordered, order = row.sort(stable=True)
    rows = torch.arange(n_row + 1, device=row.device, dtype=row.dtype)
    return torch.searchsorted(ordered, rows), order


def _excluded(mask: Optional[Tensor], otherwise: Tensor) -> Tensor:
    return otherwise if mask is None else mask.contiguous().view(torch.uint8)


def softmax_log_sum(
    scores: Tensor,
    excluded: Optional[Tensor],
    label_row: Tensor,
    label_column: Tensor,
    margin: float,
    temperature: float,
) -> Tuple[Tensor, Tensor]:
    """log_sum (Q,) and own (K,), float32; see the operation's Python face."""
    n_query, n_column = scores.shape
    n_part = n_parts(n_query, n_column // BLOCK_T)
    shape = (n_part, n_query)
    log_sum = torch.full(shape, -torch.inf, dtype=torch.float32, device=scores.device)
    own = torch.empty(len(label_row), dtype=torch.float32, device=scores.device)
    start, order = by_row(label_row, n_query)
    column, mask = label_column[order], _excluded(excluded, scores)
    options = dict(EXCLUDES=excluded is not None, MARGIN=margin != 0.0)
    if n_query and n_column:
        log_sum_kernel[(n_query, n_part)](
            scores, mask, start, column, log_sum, n_query, n_column, triton.cdiv(n_column, n_part),
            *scores.stride(), margin, temperature, **options,
            BLOCK_T=min(power_of_two(n_column), BLOCK_T), num_warps=4,
        )  # fmt: skip
    if len(own):
        of_own = torch.empty_like(own)
        own_kernel[(len(own),)](
            scores, mask, start, label_row[order], column, of_own, *scores.stride(), margin,
            temperature, **options, num_warps=1,
        )  # fmt: skip
        own[order] = of_own
    return log_sum[0] if n_part == 1 else log_sum.logsumexp(0), own


def softmax_gradient(
    scores: Tensor,
    excluded: Optional[Tensor],
    label_row: Tensor,
    label_column: Tensor,
    log_total: Tensor,
    weight: Tensor,
    of_label: Tensor,
    margin: float,
    temperature: float,
) -> Tensor:
    """(Q, T), in the dtype of the scores; see the operation's Python face."""
    n_query, n_column = scores.shape
    out = torch.empty((n_query, n_column), dtype=scores.dtype, device=scores.device)
    if not out.numel():
        return out
    start, order = by_row(label_row, n_query)
    block = min(power_of_two(n_column), BLOCK_T)
    softmax_gradient_kernel[(n_query, triton.cdiv(n_column, block))](
        scores, _excluded(excluded, scores), start, label_column[order], log_total.contiguous(),
        weight.contiguous(), of_label[order], out, n_column, *scores.stride(), margin, temperature,
        EXCLUDES=excluded is not None, MARGIN=margin != 0.0, BLOCK_T=block, num_warps=4,
    )  # fmt: skip
    return out
