"""How many candidates score better than the true one, and how many the same.

Axes:
    Q: queries      T: candidates of a tile
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from besskge_core.ops.native import NATIVE, register_fake
from besskge_core.shapes import match_shapes

_NATIVE_DTYPES = (torch.float32, torch.float64)


def count_better(scores: Tensor, true_score: Tensor) -> Tuple[Tensor, Tensor]:
    """Count, without a temporary of the size of the scores where it is native.

    Args:
        scores: (Q, T), floating.
        true_score: (Q,), of the same dtype.

    Returns:
        better int64 (Q,), scores above the true one; equal int64 (Q,). What is not a number is
        neither.

    Raises:
        ShapeError: on other shapes.
    """
    match_shapes(scores=(scores, "Q T"), true_score=(true_score, "Q"))
    if NATIVE and scores.device.type == "cpu" and scores.dtype in _NATIVE_DTYPES:
        counts: Tuple[Tensor, Tensor] = torch.ops.besskge.count_better(scores, true_score)
        return counts
    return reference(scores, true_score)


def reference(scores: Tensor, true_score: Tensor) -> Tuple[Tensor, Tensor]:
    """The meaning of :func:`count_better`, in plain torch."""
    truth = true_score.unsqueeze(-1)
    return (scores > truth).sum(-1), (scores == truth).sum(-1)


@register_fake("count_better")
def _(scores: Tensor, true_score: Tensor) -> Tuple[Tensor, Tensor]:
    shape = (scores.shape[0],)
    return scores.new_empty(shape, dtype=torch.int64), scores.new_empty(shape, dtype=torch.int64)
