"""Losses of a row: a positive among all of its negatives.

:class:`CrossEntropyLoss` and :class:`InfoNCELoss` are one softmax over the positive (column 0, or
where the labels are) and the negatives; the adversarial ones weigh the negatives of a row by the
softmax of their scores, without gradient.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.errors import ConfigError, NoSampleWeightSupportError
from besskge_core.loss.base import LOSSES
from besskge_core.loss.entries import Labelled, Part, Samples, Smoothing, Term, product
from besskge_core.loss.labelled import LabelledLoss
from besskge_core.loss.pointwise import binary_cross_entropy


@LOSSES.register("crossentropy")
class CrossEntropyLoss(LabelledLoss):
    """-sum_k t_k log softmax(x)_k, with t the labels of a row, divided by their sum.

    Labels are smoothed as (1 - e) t_k + e / C, over the C columns of a row that count, whatever
    `num_entities` says. With labels, the weight of a row is the sum of those of its entries; with
    negatives it is that of the positive.

    Args:
        reduction, loss_scale: see the base class.
    """

    margin: float = 0.0
    temperature: float = 1.0

    def of_samples(self, samples: Samples, smoothing: Smoothing) -> Sequence[Term]:
        if samples.negative_weight is not None:
            raise NoSampleWeightSupportError(
                f"{type(self).__name__} has one cost for a positive and all of its negatives, so"
                " it does not support sample weights of negatives; give pos_weights alone"
            )
        negative = samples.negative.masked_fill(~samples.kept, -math.inf)
        score = torch.cat([samples.positive - self.margin, negative], dim=1)
        log_share = (score / self.temperature).log_softmax(1)
        kept = torch.cat([torch.ones_like(samples.kept[:, :1]), samples.kept], dim=1)
        weight = product(samples.row_weight, samples.positive_weight)
        return self._of_rows(-log_share[:, :1], log_share, kept, smoothing, weight)

    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        label, kept = entries.label, entries.kept
        # A row of nothing but -inf has a NaN for gradient.
        score = entries.score.masked_fill(~kept.any(1, keepdim=True), 0.0)
        if self.margin:
            score = torch.where(label > 0.5, score - self.margin, score)
        log_share = (score / self.temperature).log_softmax(1)
        if entries.target is not None:
            cost = -log_share.gather(1, entries.target.unsqueeze(1))
        else:
            target = F.normalize(label.to(score.dtype), p=1.0, dim=1)
            cost = -(target * log_share.masked_fill(~kept, 0.0)).sum(1, keepdim=True)
        weight = None if entries.weight is None else entries.weight.sum(1, keepdim=True)
        weight = product(entries.row_weight, weight)
        return self._of_rows(cost, log_share, kept, smoothing, weight)

    def _of_rows(
        self,
        cost: Tensor,
        log_share: Tensor,
        kept: Tensor,
        smoothing: Smoothing,
        weight: Tensor | None,
    ) -> Sequence[Term]:
        """cost (B, 1), smoothed by the mean over the columns that count."""
        if smoothing.epsilon:
            total = -log_share.masked_fill(~kept, 0.0).sum(1, keepdim=True)
            uniform = total / kept.sum(1, keepdim=True).clamp(min=1)
            cost = (1.0 - smoothing.epsilon) * cost + smoothing.epsilon * uniform
        return [Term((Part(cost, weight=weight),))]


@LOSSES.register("infonce")
class InfoNCELoss(CrossEntropyLoss):
    """Cross-entropy of (p - m) / tau and n / tau. Wang et al., ACL 2022 (SimKGC).

    Args:
        margin: m, at least 0, which positives (labels over 0.5) must exceed negatives by.
        log_adversarial_temperature: log tau. Scores are divided by tau, by default 0.05.
        reduction, loss_scale: see the base class.
    """

    #: The default strategy for searching the options.
    hpo_default: ClassVar[Mapping[str, Any]] = {
        "margin": {"type": float, "low": 0.01, "high": 0.10},
        "log_adversarial_temperature": {"type": float, "low": -3.0, "high": 3.0},
    }

    def __init__(
        self,
        margin: float = 0.02,
        log_adversarial_temperature: float = math.log(0.05),
        reduction: str = "mean",
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_scale)
        if not margin >= 0.0:
            raise ConfigError(f"margin must be at least 0, got {margin}")
        self.margin, self.temperature = margin, math.exp(log_adversarial_temperature)


class AdversarialLoss(LabelledLoss):
    """f (R(positive cost) + R_i(sum_k w_ik negative cost)), w = softmax(T n) of the negatives.

    f is 1/2 for reduction "mean", and 1 for "sum". A row without negatives counts as one of score
    0, without gradient. The weight of a negative multiplies w.

    Args:
        temperature: T, which multiplies.
        reduction, loss_scale: see the base class.
    """

    smooths_samples: ClassVar[bool] = False
    smooths_labels: ClassVar[bool] = False

    def __init__(self, temperature: float, reduction: str, loss_scale: float) -> None:
        super().__init__(reduction, loss_scale)
        self.inverse_softmax_temperature = temperature

    @abc.abstractmethod
    def cost(self, x: Tensor, is_positive: bool, smoothing: Smoothing) -> Tensor:
        """What scores of positives, or of negatives, cost."""

    def of_samples(self, samples: Samples, smoothing: Smoothing) -> Sequence[Term]:
        weight = product(samples.row_weight, samples.positive_weight)
        positives = Part(self.cost(samples.positive, True, smoothing), weight=weight)
        negatives = samples._replace(negative=samples.filled())
        return self._terms(positives, negatives, smoothing)

    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        positive, score = entries.label > 0.5, entries.filled()
        positives = Part(self.cost(score, True, smoothing), positive, entries.weights)
        kept = ~positive & entries.kept
        negative = score.masked_fill(~kept, 0.0)
        negatives = Samples(score, negative, kept, None, entries.weight, entries.row_weight)
        return self._terms(positives, negatives, smoothing)

    def _terms(self, positives: Part, samples: Samples, smoothing: Smoothing) -> Sequence[Term]:
        """The negatives of the samples are 0 where not kept; the positives are not looked at."""
        # Not the product with -inf: what is excluded stays so for a temperature of 0.
        scaled = self.inverse_softmax_temperature * samples.negative.detach()
        none_left = ~samples.kept.any(1, keepdim=True)
        share = scaled.masked_fill(~(samples.kept | none_left), -math.inf).softmax(1)
        weight = samples.negative_weight
        if weight is not None:
            weight = weight.masked_fill(none_left, 1.0)
        cost = self.cost(samples.negative, False, smoothing)
        negatives = Part(cost, weight=product(share, samples.row_weight, weight))
        factor = 0.5 if self.reduction == "mean" else 1.0
        return [Term((positives,), factor), Term((negatives,), factor)]


@LOSSES.register("nssa")
class NSSALoss(AdversarialLoss):
    """f (R(sp(-m - p)) + R_i(sum_k w_ik sp(m + n_ik))). Sun et al., ICLR 2019 (RotatE).

    Args:
        margin: m; scores are negated distances.
        adversarial_temperature: T, see the base class.
        reduction, loss_scale: see the base class.
    """

    def __init__(
        self,
        margin: float = 9.0,
        adversarial_temperature: float = 1.0,
        reduction: str = "mean",
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(adversarial_temperature, reduction, loss_scale)
        self.margin = margin

    def cost(self, x: Tensor, is_positive: bool, smoothing: Smoothing) -> Tensor:
        raised = self.margin + x
        return F.softplus(-raised if is_positive else raised)


@LOSSES.register("adversarialbce")
class AdversarialBCEWithLogitsLoss(AdversarialLoss):
    """f (R(BCE(p, 1)) + R_i(sum_k w_ik BCE(n_ik, 0))).

    Args:
        inverse_softmax_temperature: T, see the base class.
        reduction, loss_scale: see the base class.
    """

    smooths_labels: ClassVar[bool] = True

    def __init__(
        self,
        inverse_softmax_temperature: float = 1.0,
        reduction: str = "mean",
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(inverse_softmax_temperature, reduction, loss_scale)

    def cost(self, x: Tensor, is_positive: bool, smoothing: Smoothing) -> Tensor:
        return binary_cross_entropy(x, smoothing.smooth(1.0 if is_positive else 0.0))
