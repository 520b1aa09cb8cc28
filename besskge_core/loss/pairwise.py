"""Losses of pairs: by how much does the score of a positive exceed that of a negative?

With labels, each entry of label 1 makes a pair with each entry of label 0 of its row; a row with
many positives makes many pairs, and each is held in memory. A mean is one over all pairs.

:data:`MarginRankingLoss` of this module is PyKEEN's, elsewhere :class:`PairwiseMarginLoss`;
:class:`besskge_core.loss.MarginRankingLoss` is that of BESS-KGE.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.loss.base import LOSSES
from besskge_core.loss.double_margin import MarginActivation, margin_activation_of
from besskge_core.loss.entries import Labelled, Part, Samples, Smoothing, Term, product, wide
from besskge_core.loss.labelled import LabelledLoss


class PairwiseLoss(LabelledLoss):
    """Base of the losses of pairs. The weight of a pair is that of its positive and negative.

    Args:
        reduction, loss_scale: see the base class.
    """

    smooths_samples: ClassVar[bool] = False
    smooths_labels: ClassVar[bool] = False
    pairs: ClassVar[bool] = True

    @abc.abstractmethod
    def cost(self, excess: Tensor) -> Tensor:
        """What pairs cost whose negative exceeds the positive by so much."""

    def forward(
        self, positive_scores: Tensor, negative_scores: Tensor, weight: Optional[Tensor] = None
    ) -> Tensor:
        """The loss of pairs, of any shapes that broadcast.

        Args:
            positive_scores, negative_scores: the scores of each pair.
            weight: of the pairs.

        Returns:
            (), float32 or float64.
        """
        dtype = wide(positive_scores, negative_scores)
        p, n = torch.broadcast_tensors(positive_scores.to(dtype), negative_scores.to(dtype))
        kept = n != -math.inf
        cost = self.cost(n.masked_fill(~kept, 0.0) - p)
        weight = None if weight is None else weight.to(dtype)
        return self._reduce([Term((Part(cost, kept, weight),))], self.mean_over_number)

    def of_samples(self, samples: Samples, smoothing: Smoothing) -> Sequence[Term]:
        weights = samples.row_weight, samples.positive_weight, samples.negative_weight
        cost = self.cost(samples.filled() - samples.positive)
        return [Term((Part(cost, samples.kept, product(*weights)),))]

    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        label = entries.labels
        if entries.rows is not None:
            assert entries.rows.pairs is not None
            row, positive = entries.rows.pairs
        else:
            row, column = (label == 1).nonzero(as_tuple=True)
            positive = entries.score[row, column]
        paired = label == 0
        if entries.kept is not None:
            paired = paired & entries.kept
        pairs = Samples(positive.unsqueeze(1), entries.score[row], paired[row])
        if entries.weight is not None:
            weight = entries.weight[row, column].unsqueeze(1)
            pairs = pairs._replace(positive_weight=weight, negative_weight=entries.weight[row])
        if entries.row_weight is not None:
            pairs = pairs._replace(row_weight=entries.row_weight[row])
        return self.of_samples(pairs, smoothing)

    def counts(self, n_positive: Tensor, n_kept: Tensor) -> Sequence[Tensor]:
        return [n_positive * (n_kept - n_positive)]


@LOSSES.register("pairwisemargin")
class PairwiseMarginLoss(PairwiseLoss):
    """g(n - p + m): PyKEEN's MarginRankingLoss. Bordes et al., NeurIPS 2013.

    Args:
        margin: m.
        margin_activation: g; "relu" or "hard", "softplus" or "soft", or a module or its class.
        reduction, loss_scale: see the base class.
    """

    def __init__(
        self,
        margin: float = 1.0,
        margin_activation: MarginActivation = "relu",
        reduction: str = "mean",
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_scale)
        self.margin, self.margin_activation = margin, margin_activation_of(margin_activation)

    def cost(self, excess: Tensor) -> Tensor:
        cost: Tensor = self.margin_activation(excess + self.margin)
        return cost


#: The name in PyKEEN.
MarginRankingLoss = PairwiseMarginLoss


@LOSSES.register("softmarginranking")
class SoftMarginRankingLoss(PairwiseLoss):
    """softplus(n - p + m)

    Args:
        margin: m.
        reduction, loss_scale: see the base class.
    """

    def __init__(
        self, margin: float = 1.0, reduction: str = "mean", loss_scale: float = 1.0
    ) -> None:
        super().__init__(reduction, loss_scale)
        self.margin = margin

    def cost(self, excess: Tensor) -> Tensor:
        return F.softplus(excess + self.margin)


@LOSSES.register("pairwiselogistic")
class PairwiseLogisticLoss(PairwiseLoss):
    """softplus(n - p)"""

    def cost(self, excess: Tensor) -> Tensor:
        return F.softplus(excess)
