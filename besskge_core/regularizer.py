"""Regularisers: what the size of the embeddings of a batch costs.

They act on the rows of the batch's triples only, never on a table; sizes are squared moduli, so
that a complex entry counts as one number.

Axes:
    B: triples      D: entries of a row
"""

from __future__ import annotations

import abc
from typing import Sequence

import torch
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.registry import Registry
from besskge_core.scoring import BaseScoreFunction

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
    def of_triples(
        self, score_fn: BaseScoreFunction, head: Tensor, relation_id: Tensor, tail: Tensor
    ) -> Tensor:
        """Rows of heads and tails (..., D) and relation IDs (...) -> penalty of each triple (...)."""


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
        """Squared moduli (..., D) of heads, relations, tails -> penalty of each triple (...)."""
        # A power of the square, not of its root, has a gradient at 0.
        norms = [square.pow(self.p / 2).sum(-1) for square in squared_moduli]
        return self.weight * sum(norms[1:], norms[0])

    def of_triples(
        self, score_fn: BaseScoreFunction, head: Tensor, relation_id: Tensor, tail: Tensor
    ) -> Tensor:
        penalty: Tensor = self(score_fn.squared_moduli(head, relation_id, tail))
        return penalty


@REGULARIZERS.register("dura")
class DuraRegularizer(Regularizer):
    """weight * (|h R|^2 + |t|^2 + |t R^T|^2 + |h|^2) of a score <h R, t>.

    The duality-induced regulariser of Zhang et al., NeurIPS 2020, eq. 7: what an inner product
    compares should be near each other, not only at a small angle. For score functions that are the
    inner product of a query with an entity, such as DistMult, ComplEx and RESCAL.

    Args:
        weight: see the formula.
    """

    def of_triples(
        self, score_fn: BaseScoreFunction, head: Tensor, relation_id: Tensor, tail: Tensor
    ) -> Tensor:
        if not score_fn.is_inner_product:
            raise ConfigError(
                f"dura is for inner products of queries with entities, {type(score_fn).__name__} is"
                " something else; use lp"
            )
        h, r, t = head.flatten(end_dim=-2), relation_id.flatten(), tail.flatten(end_dim=-2)
        moved = score_fn.query(h, r, False)[0], score_fn.query(t, r, True)[0]
        norms = torch.stack([x.square().sum(-1) for x in (h, t, *moved)])
        return self.weight * norms.sum(0).view(relation_id.shape)
