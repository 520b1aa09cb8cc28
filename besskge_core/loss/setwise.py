"""Losses of a row: a positive among all of its negatives.

:class:`CrossEntropyLoss` and :class:`InfoNCELoss` are one softmax over the positive (column 0, or
where the labels are) and the negatives; the adversarial ones weigh the negatives of a row by the
softmax of their scores, without gradient.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, Mapping, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.errors import ConfigError, NoSampleWeightSupportError
from besskge_core.loss.base import LOSSES
from besskge_core.loss.entries import Labelled, Part, Rows, Samples, Smoothing, Term, product
from besskge_core.loss.labelled import LabelledLoss
from besskge_core.loss.pointwise import binary_cross_entropy
from besskge_core.loss.tiles import Softmax


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
    has_logits: ClassVar[bool] = True

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
        cost = -log_share[:, :1]
        if smoothing.epsilon:
            total = -log_share.masked_fill(~kept, 0.0).sum(1, keepdim=True)
            uniform = total / kept.sum(1, keepdim=True)
            cost = (1.0 - smoothing.epsilon) * cost + smoothing.epsilon * uniform
        return [Term((Part(cost, weight=weight),))]

    def logits(self, entries: Labelled) -> Tensor:
        score = entries.filled(-math.inf)
        if self.margin:
            if entries.label is not None:
                score = torch.where(entries.label > 0.5, score - self.margin, score)
            else:
                assert entries.places is not None
                less = score.new_full(entries.places[0].shape, -self.margin)
                score = score.index_put(entries.places, less, accumulate=True)
        return score / self.temperature if self.temperature != 1.0 else score

    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        logit, rows = self.logits(entries), entries.rows
        log_total = logit.detach().logsumexp(1, keepdim=True) if rows is None else rows.log_total
        assert log_total is not None
        log_total = log_total.masked_fill(log_total == -math.inf, 0.0)
        # The shares of all tiles add up to 1; here for their gradient, that of the log-sum-exp.
        share = (logit - log_total).exp().sum(1, keepdim=True)
        slope = share - share.detach()
        cost = self._label_sum(entries) * slope + self._missed(entries, log_total, logit)
        if smoothing.epsilon:
            missed, kept = log_total - logit, entries.kept
            if kept is not None:
                missed = missed.masked_fill(~kept, 0.0)
            n_kept = self._n_kept(entries)
            uniform = slope * (n_kept > 0) + missed.sum(1, keepdim=True) / n_kept.clamp(min=1)
            cost = (1.0 - smoothing.epsilon) * cost + smoothing.epsilon * uniform
        weight = None if entries.weight is None else entries.weight.sum(1, keepdim=True)
        weight = product(entries.row_weight, weight)
        return [Term((Part(cost, weight=weight),))]

    def counts(self, n_positive: Tensor, n_kept: Tensor) -> Sequence[Tensor]:
        return [torch.ones_like(n_positive)]

    def softmax(self, smoothing: Smoothing) -> Optional[Softmax]:
        return None if smoothing.epsilon else Softmax(self.margin, self.temperature)

    def _label_sum(self, entries: Labelled) -> Tensor:
        """(B, 1), the sum of the normalised labels of whole rows: 1, or 0 where all are 0."""
        if entries.rows is not None:
            return (entries.rows.n_positive > 0).to(entries.score.dtype)
        if entries.label is None:
            return torch.ones_like(entries.score[:, :1])
        return F.normalize(entries.label.to(entries.score.dtype), p=1.0, dim=1).sum(1, keepdim=True)

    def _missed(self, entries: Labelled, log_total: Tensor, logit: Tensor) -> Tensor:
        """(B, 1): by how much logits miss the log-sum-exp, weighted by the normalised labels."""
        if entries.label is not None:
            target = F.normalize(entries.label.to(logit.dtype), p=1.0, dim=1)
            missed = log_total - logit
            if entries.kept is not None:
                missed = missed.masked_fill(~entries.kept, 0.0)
            return (target * missed).sum(1, keepdim=True)
        assert entries.places is not None
        row = entries.places[0]
        missed = log_total[row, 0] - logit[entries.places]
        if entries.rows is not None:
            missed = missed / entries.rows.n_positive[row, 0]
        return logit.new_zeros(len(logit)).index_add(0, row, missed).unsqueeze(1)

    @staticmethod
    def _n_kept(entries: Labelled) -> Tensor:
        """(B, 1): entries of whole rows that count."""
        if entries.rows is not None:
            return entries.rows.n_kept
        if entries.kept is not None:
            return entries.kept.sum(1, keepdim=True)
        return torch.full_like(entries.score[:, :1], entries.score.shape[1])


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
    has_logits: ClassVar[bool] = True

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

    def logits(self, entries: Labelled) -> Tensor:
        left_out = entries.labels > 0.5
        if entries.excluded is not None:
            left_out = left_out | entries.excluded
        # Not the product with -inf: what is left out stays so for a temperature of 0.
        scaled = self.inverse_softmax_temperature * entries.filled().detach()
        return scaled.masked_fill(left_out, -math.inf)

    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        positive, score = entries.labels > 0.5, entries.filled()
        positives = Part(self.cost(score, True, smoothing), positive, entries.weights)
        kept = ~positive if entries.kept is None else ~positive & entries.kept
        negative = score.masked_fill(~kept, 0.0)
        negatives = Samples(score, negative, kept, None, entries.weight, entries.row_weight)
        return self._terms(positives, negatives, smoothing, entries.rows)

    def counts(self, n_positive: Tensor, n_kept: Tensor) -> Sequence[Tensor]:
        return [n_positive, torch.ones_like(n_positive)]

    def _terms(
        self,
        positives: Part,
        samples: Samples,
        smoothing: Smoothing,
        rows: Optional[Rows] = None,
    ) -> Sequence[Term]:
        """The negatives of the samples are 0 where not kept; the positives are not looked at."""
        scaled = self.inverse_softmax_temperature * samples.negative.detach()
        if rows is None:
            none_left = ~samples.kept.any(1, keepdim=True)
            share = scaled.masked_fill(~(samples.kept | none_left), -math.inf).softmax(1)
        else:
            assert rows.log_total is not None
            none_left = rows.log_total == -math.inf
            share = (scaled - rows.log_total).exp().masked_fill(~samples.kept, 0.0)
            # Such a row has but positives, which are as many as entries count.
            assert positives.kept is not None
            equal = positives.kept / rows.n_kept.clamp(min=1)
            share = torch.where(none_left, equal, share)
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
