"""Regularisers: what the size of the embeddings of a batch costs.

They act on the rows of the batch's triples only, never on a table, and on squared moduli, so
that a complex entry counts as one number.

Axes:
    B: triples      D: entries of a row
"""

from __future__ import annotations

import abc
from typing import Sequence

from torch import Tensor, nn

from besskge_core.registry import Registry

REGULARIZERS: Registry[type] = Registry("regularizer")


class Regularizer(nn.Module, abc.ABC):
    """Base of the regularisers.

    Args:
        weight: factor of the penalty.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @abc.abstractmethod
    def forward(self, squared_moduli: Sequence[Tensor]) -> Tensor:
        """Squared moduli (B, D) of heads, relations, tails -> penalty of each triple (B,)."""


@REGULARIZERS.register("lp")
class LpRegularizer(Regularizer):
    """weight * sum over head, relation and tail of ||x||_p^p.

    p = 3 with moduli is the weighted nuclear 3-norm N3 of Lacroix et al., ICML 2018, eq. 4:
    weighted, because an entity is penalised once for each of its triples.

    Args:
        weight: see the formula.
        p: the exponent.
    """

    def __init__(self, weight: float, p: float = 3.0) -> None:
        super().__init__(weight)
        self.p = p

    def forward(self, squared_moduli: Sequence[Tensor]) -> Tensor:
        # A power of the square, not of its root, has a gradient at 0.
        norms = [square.pow(self.p / 2).sum(-1) for square in squared_moduli]
        return self.weight * sum(norms[1:], norms[0])
