"""The softmax of rows of scores, a tile of their columns at a time: log-sum-exp and gradient.

Axes:
    Q: queries, rows of scores      T: columns of a tile      K: places of labels
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.shapes import match_shapes

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


class Logits(NamedTuple):
    """How scores become logits: (score - margin, at labels) / temperature, -inf if excluded.

    Args:
        row, column: int64 (K,) each, where labels are; a place given twice counts twice.
        excluded: bool (T,), columns that take no part. None: all do.
        margin, temperature: of the loss.
    """

    row: Tensor
    column: Tensor
    excluded: Optional[Tensor] = None
    margin: float = 0.0
    temperature: float = 1.0

    def of(self, scores: Tensor) -> Tensor:
        """(Q, T) in float32, or in float64 if the scores are; a copy."""
        dtype = torch.promote_types(scores.dtype, torch.float32)
        logit = scores.detach().to(dtype, copy=True)
        if self.excluded is not None:
            logit.masked_fill_(self.excluded, -torch.inf)
        if self.margin:
            less = logit.new_full((), -self.margin)
            logit.index_put_((self.row, self.column), less, accumulate=True)
        return logit.div_(self.temperature) if self.temperature != 1.0 else logit


class Slope(NamedTuple):
    """What the gradient of a row is: weight * softmax, less `of_label` at the labels.

    Args:
        log_total: (Q,), log-sum-exp of the logits of whole rows.
        weight: (Q,).
        of_label: (K,).
    """

    log_total: Tensor
    weight: Tensor
    of_label: Tensor


def softmax_log_sum(scores: Tensor, logits: Logits) -> Tuple[Tensor, Tensor]:
    """The part of a tile in the log-sum-exp of its rows; natively in one pass, without a copy.

    Args:
        scores: (Q, T), floating; not changed.
        logits: what they stand for.

    Returns:
        log_sum (Q,) and the logits at the labels (K,), float32, or float64 if the scores are.
        -inf for a row that is all excluded, NaN for a row with NaN.

    Raises:
        ShapeError: on other shapes.
    """
    _check(scores, logits)
    if _native("softmax_log_sum", scores):
        found: Tuple[Tensor, Tensor] = torch.ops.besskge.softmax_log_sum(
            scores.detach(), logits.excluded, logits.row, logits.column, logits.margin,
            logits.temperature,
        )  # fmt: skip
        return found
    return log_sum_reference(scores, logits)


def log_sum_reference(scores: Tensor, logits: Logits) -> Tuple[Tensor, Tensor]:
    """The meaning of :func:`softmax_log_sum`, in plain torch."""
    logit = logits.of(scores)
    own = logit[logits.row, logits.column]
    if logit.shape[1] == 0:
        return logit.new_full((len(logit),), -torch.inf), own
    highest = logit.amax(1, keepdim=True)
    highest = highest.masked_fill(highest.isneginf(), 0.0)
    total = logit.sub_(highest).exp_().sum(1)
    return highest.squeeze(1) + total.log(), own


def softmax_gradient(scores: Tensor, logits: Logits, slope: Slope) -> Tensor:
    """The gradient of the scores of a tile; natively in one pass.

    Args:
        scores: (Q, T), floating; not changed.
        logits, slope: see there; of the slope's tensors, those of the dtype that
            :func:`softmax_log_sum` returns.

    Returns:
        (Q, T) in the dtype of the scores: weight * exp(logit - log_total), with `of_label`
        subtracted at the labels; 0 where excluded.

    Raises:
        ShapeError: on other shapes.
    """
    _check(scores, logits)
    match_shapes(scores=(scores, "Q T"), log_total=(slope.log_total, "Q"), weight=(slope.weight, "Q"))  # fmt: skip
    match_shapes(row=(logits.row, "K"), of_label=(slope.of_label, "K"))
    if _native("softmax_gradient", scores):
        found: Tensor = torch.ops.besskge.softmax_gradient(
            scores.detach(), logits.excluded, logits.row, logits.column, *slope, logits.margin,
            logits.temperature,
        )  # fmt: skip
        return found
    return gradient_reference(scores, logits, slope)


def gradient_reference(scores: Tensor, logits: Logits, slope: Slope) -> Tensor:
    """The meaning of :func:`softmax_gradient`, in plain torch."""
    log_total = slope.log_total.masked_fill(slope.log_total.isneginf(), 0.0)
    # Whatever the rounding, no logit is above the log-sum-exp of all.
    share = logits.of(scores).sub_(log_total[:, None]).clamp_(max=0.0).exp_()
    grad = share.mul_(slope.weight[:, None])
    if logits.excluded is not None:
        grad.masked_fill_(logits.excluded, 0.0)
    grad.index_put_((logits.row, logits.column), -slope.of_label, accumulate=True)
    return grad.to(scores.dtype)


def _native(operation: str, scores: Tensor) -> bool:
    return native.serves(operation, scores, *_NATIVE_DTYPES)


def _check(scores: Tensor, logits: Logits) -> None:
    match_shapes(scores=(scores, "Q T"), row=(logits.row, "K"), column=(logits.column, "K"))
    if logits.excluded is not None:
        match_shapes(scores=(scores, "Q T"), excluded=(logits.excluded, "T"))


@register_fake("softmax_log_sum")
def _(
    scores: Tensor,
    excluded: Optional[Tensor],
    label_row: Tensor,
    label_column: Tensor,
    margin: float,
    temperature: float,
) -> Tuple[Tensor, Tensor]:
    wide = torch.float32
    return (
        scores.new_empty((scores.shape[0],), dtype=wide),
        scores.new_empty((label_row.shape[0],), dtype=wide),
    )


@register_fake("softmax_gradient")
def _(scores: Tensor, *arguments: object) -> Tensor:
    return scores.new_empty(scores.shape)
