"""The best k candidates of each query, but for filtered ones; equal scores by the lower column.

Axes:
    Q: queries      T: candidates of a tile      F: candidates that are filtered
"""

from __future__ import annotations

import math
from typing import Optional, Tuple

import torch
from torch import Tensor

from besskge_core.errors import ConfigError
from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.ops.rank_counts import Filter
from besskge_core.ops.tracing import is_traced
from besskge_core.shapes import match_shapes

#: The most candidates that a kernel for GPUs keeps; more are sorted there by torch.
MOST_ON_GPU = 128


def best_k(
    scores: Tensor, k: int, filtered: Optional[Filter] = None, first: int = 0
) -> Tuple[Tensor, Tensor]:
    """Choose, without a copy of the scores and without waiting for a GPU where it is native.

    Native for float32, float64 and bfloat16 on a CPU, and for float32 and bfloat16 on a GPU with
    k up to `MOST_ON_GPU`.

    Args:
        scores: (Q, T), floating; not changed.
        k: how many.
        filtered: what takes no part. None: all candidates do.
        first: the number of the candidate in column 0; filtered ones of other tiles are ignored.

    Returns:
        The scores (Q, min(k, T)), best first, without gradient, and their columns, int64. What is
        filtered or not a number comes as -inf, behind all that is more, and by its column among
        what is -inf.

    Raises:
        ShapeError: on other shapes.
        ConfigError: k is below 1.
    """
    match_shapes(scores=(scores, "Q T"))
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if not _is_native(scores, k):
        with torch.no_grad():
            return reference(scores, k, filtered, first)
    if filtered is None:
        filtered = Filter.none(scores)
    found: Tuple[Tensor, Tensor] = torch.ops.besskge.best_k(scores.detach(), *filtered, k, first)
    return found


def _is_native(scores: Tensor, k: int) -> bool:
    if scores.is_cuda:
        both = (torch.float32, torch.bfloat16)
        return k <= MOST_ON_GPU and native.serves("best_k", scores, *both)
    return native.serves("best_k", scores, torch.float32, torch.float64, torch.bfloat16)


def reference(
    scores: Tensor, k: int, filtered: Optional[Filter], first: int
) -> Tuple[Tensor, Tensor]:
    """The meaning of :func:`best_k`, in plain torch."""
    if is_traced():  # nan_to_num cannot be compiled for an IPU
        kept = scores.masked_fill(scores.isnan(), -math.inf)
    else:
        kept = scores.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    if filtered is not None:
        kept[filtered.places(first, scores.shape[1])] = -math.inf
    if is_traced() or k >= scores.shape[1]:
        return _sorted(kept, k)
    # Faster than sorting all, but leaves open which of equal scores are taken, and in which order.
    score, column = kept.topk(k + 1, dim=1)
    tied = score[:, k - 1] == score[:, k]
    column = column[:, :k].sort(dim=1)[0]
    score, order = _sorted(kept.gather(1, column), k)
    column = column.gather(1, order)
    score[tied], column[tied] = _sorted(kept[tied], k)
    return score, column


def _sorted(scores: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    score, column = scores.sort(dim=1, descending=True, stable=True)
    return score[:, :k], column[:, :k]


@register_fake("best_k")
def _(
    scores: Tensor, filter_start: Tensor, filter_column: Tensor, k: int, first: int
) -> Tuple[Tensor, Tensor]:
    shape = (scores.shape[0], min(k, scores.shape[1]))
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)
