"""Losses of single entries: each score costs by its own label, 1 for positives and 0 for others.

A mean is one over all entries that count, so the share of the positives in it depends on the
number of negatives. In the formulas x is a score, y its label, y' = 2 y - 1, and sp is softplus.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.errors import ConfigError
from besskge_core.loss.base import LOSSES
from besskge_core.loss.entries import Labelled, Part, Samples, Smoothing, Term, product, wide
from besskge_core.loss.labelled import LabelledLoss


class PointwiseLoss(LabelledLoss):
    """Base of the losses of single entries.

    Args:
        reduction, loss_scale: see the base class.
    """

    def forward(
        self, predictions: Tensor, labels: Tensor, weight: Optional[Tensor] = None
    ) -> Tensor:
        """The loss of scores with labels, of any shapes that broadcast.

        Args:
            predictions: scores.
            labels: 0 to 1.
            weight: of the entries.

        Returns:
            (), float32 or float64.
        """
        score, label = torch.broadcast_tensors(predictions.to(wide(predictions)), labels)
        weight = None if weight is None else weight.to(score.dtype)
        entries = Labelled(score, label, (score == -math.inf) & ~label.bool(), weight)
        return self._reduce(self.of_labels(entries, Smoothing()), self.mean_over_number)


class ElementwiseLoss(PointwiseLoss):
    """Base of the pointwise losses that are one formula, reduced over all entries at once."""

    @abc.abstractmethod
    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        """What scores with these labels cost."""

    def of_samples(self, samples: Samples, smoothing: Smoothing) -> Sequence[Term]:
        p = self.cost(samples.positive, smoothing.smooth(1.0))
        n = self.cost(samples.filled(), smoothing.smooth(0.0))
        positives = Part(p, weight=product(samples.row_weight, samples.positive_weight))
        weight = product(samples.row_weight, samples.negative_weight)
        return [Term((positives, Part(n, samples.kept, weight)))]

    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        score = entries.filled()
        if entries.label is not None:
            cost = self.cost(score, smoothing.smooth(entries.label.to(score.dtype)))
            return [Term((Part(cost, entries.kept, entries.weights),))]
        # As if all labels were 0, and what those of 1 cost more: no label is made for each entry.
        one, zero = smoothing.smooth(1.0), smoothing.smooth(0.0)
        all_zero = Part(self.cost(score, zero), entries.kept, entries.weights)
        own = score[entries.places]
        more = Part(self.cost(own, one) - self.cost(own, zero), None, entries.at(entries.weights))
        return [Term((all_zero, more._replace(counts=False)))]

    def counts(self, n_positive: Tensor, n_kept: Tensor) -> Sequence[Tensor]:
        return [n_kept]


def mix(y: Tensor | float, of_one: Tensor, of_zero: Tensor) -> Tensor:
    """y of_one + (1 - y) of_zero"""
    return y * of_one + (1.0 - y) * of_zero


def binary_cross_entropy(x: Tensor, y: Tensor | float) -> Tensor:
    """y sp(-x) + (1 - y) sp(x)"""
    if isinstance(y, float) and y in (0.0, 1.0):
        return F.softplus(-x if y else x)
    return mix(y, F.softplus(-x), F.softplus(x))


@LOSSES.register("bcewithlogits")
class BCEWithLogitsLoss(ElementwiseLoss):
    """w y sp(-x) + (1 - y) sp(x): binary cross-entropy. A weighted mean is over the number.

    Args:
        pos_weight: w, the factor of the positives; None or 0: 1.
        reduction, loss_scale: see the base class.
    """

    mean_over_number: ClassVar[bool] = True

    def __init__(
        self,
        pos_weight: Optional[float] = None,
        reduction: str = "mean",
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_scale)
        self.pos_weight = pos_weight or None

    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        if self.pos_weight is None:
            return binary_cross_entropy(x, y)
        return mix(y, self.pos_weight * F.softplus(-x), F.softplus(x))


@LOSSES.register("bceaftersigmoid")
class BCEAfterSigmoidLoss(ElementwiseLoss):
    """-y log s(x) - (1 - y) log(1 - s(x)), with s the sigmoid; a weighted mean is over the number.

    Computed from x, without the sigmoid: neither cost nor gradient is lost where that is 0 or 1.
    """

    mean_over_number: ClassVar[bool] = True

    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        return binary_cross_entropy(x, y)


@LOSSES.register("mse")
class MSELoss(ElementwiseLoss):
    """(x - y)^2"""

    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        return (x - y).square()


class MarginLoss(ElementwiseLoss):
    """Base of the losses of m - y' x.

    Args:
        margin: m.
        reduction, loss_scale: see the base class.
    """

    def __init__(
        self, margin: float = 1.0, reduction: str = "mean", loss_scale: float = 1.0
    ) -> None:
        super().__init__(reduction, loss_scale)
        self.margin = margin

    def missing(self, x: Tensor, y: Tensor | float) -> Tensor:
        """m - y' x"""
        return self.margin - (2.0 * y - 1.0) * x


@LOSSES.register("softplus")
class SoftplusLoss(MarginLoss):
    """sp(m - y' x). Trouillon et al., ICML 2016, for m = 0.

    Args:
        margin: m.
        reduction, loss_scale: see the base class.
    """

    def __init__(
        self, margin: float = 0.0, reduction: str = "mean", loss_scale: float = 1.0
    ) -> None:
        super().__init__(margin, reduction, loss_scale)

    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        return F.softplus(self.missing(x, y))


@LOSSES.register("pointwisehinge")
class PointwiseHingeLoss(MarginLoss):
    """max(0, m - y' x)"""

    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        return F.relu(self.missing(x, y))


@LOSSES.register("softpointwisehinge")
class SoftPointwiseHingeLoss(MarginLoss):
    """sp(m - y' x)"""

    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        return F.softplus(self.missing(x, y))


@LOSSES.register("focal")
class FocalLoss(ElementwiseLoss):
    """a q^g BCE(x, y), with q = y (1 - s(x)) + (1 - y) s(x). Lin et al., ICCV 2017.

    Args:
        gamma: g, at least 0; how much less certain entries cost.
        alpha: a of positives, and 1 - a of negatives, in (0, 1); None: 1 of both.
        reduction, loss_scale: see the base class.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: Optional[float] = None,
        reduction: str = "mean",
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_scale)
        if not gamma >= 0.0:
            raise ConfigError(f"gamma must be at least 0, got {gamma}")
        if alpha is not None and not 0.0 < alpha < 1.0:
            raise ConfigError(f"alpha must be in (0, 1), or None, got {alpha}")
        self.gamma, self.alpha = gamma, alpha

    def cost(self, x: Tensor, y: Tensor | float) -> Tensor:
        # Of logs, as the power of a q that has become 0 has no gradient for some gamma.
        y = y if isinstance(y, Tensor) else x.new_full((), y)
        parts = y.log() + F.logsigmoid(-x), (1.0 - y).log() + F.logsigmoid(x)
        log_q = torch.stack(parts).logsumexp(0)  # logaddexp cannot be compiled for an IPU
        cost = (self.gamma * log_q).exp() * binary_cross_entropy(x, y)
        return cost if self.alpha is None else mix(y, cost * self.alpha, cost * (1.0 - self.alpha))
