"""Bases for score functions of one's own, which write the three scores out.

Axes as in :mod:`besskge_core.scoring.base`.
"""

from __future__ import annotations

import abc
from typing import Union

from torch import Tensor

from besskge_core.scoring.base import BaseScoreFunction
from besskge_core.scoring.comparators import Dot, distance_matrix, norm


class DistanceBasedScoreFunction(BaseScoreFunction, abc.ABC):
    """For score functions of one's own: a negated distance of rows.

    Args:
        negative_sample_sharing: see the base class.
        scoring_norm: p of the norm.
    """

    def __init__(self, negative_sample_sharing: bool, scoring_norm: Union[int, float]) -> None:
        super().__init__()
        self.negative_sample_sharing, self.scoring_norm = negative_sample_sharing, scoring_norm

    def reduce_embedding(self, v: Tensor) -> Tensor:
        """v (..., D) -> (...), its p-norm."""
        return norm(v, self.scoring_norm)

    def broadcasted_distance(self, v1: Tensor, v2: Tensor) -> Tensor:
        """v1 (B, D), v2 (A, N, D) -> p-norm of the differences; shapes as :meth:`score_tails`."""
        rows = self._shared(v2, v1.shape[0])
        if rows.dim() == 2:
            return distance_matrix(v1, rows, self.scoring_norm)
        return self.reduce_embedding(v1.unsqueeze(1) - rows)


class MatrixDecompositionScoreFunction(BaseScoreFunction, abc.ABC):
    """For score functions of one's own: an inner product of rows.

    Args:
        negative_sample_sharing: see the base class.
    """

    def __init__(self, negative_sample_sharing: bool) -> None:
        super().__init__()
        self.negative_sample_sharing = negative_sample_sharing

    def reduce_embedding(self, v: Tensor) -> Tensor:
        """v (..., D) -> (...), its sum."""
        return v.sum(-1)

    def broadcasted_dot_product(self, v1: Tensor, v2: Tensor) -> Tensor:
        """v1 (B, D), v2 (A, N, D) -> inner products; shapes as :meth:`score_tails`."""
        return Dot().pairwise(v1, self._shared(v2, v1.shape[0]))
