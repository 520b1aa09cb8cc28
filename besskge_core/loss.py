"""Losses: what the scores of a positive and of its negatives cost.

A loss of this module is a weighted *sum* over the positives of a micro-batch, times `loss_scale`,
in float32 (or float64 if the scores are), and changes none of its arguments. A negative that is
excluded (padding, a true triple) scores -inf: it costs nothing and has no gradient; with
`n_negative` it does not count among the negatives of its row either.

Axes:
    B: positives      N: negatives of each
"""

from __future__ import annotations

import abc
import math
from typing import Callable, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.registry import Registry
from besskge_core.shapes import match_shapes

LOSSES: Registry[type] = Registry("loss")


class BaseLossFunction(nn.Module, abc.ABC):
    """Base of the losses of sampled negatives.

    Args:
        negative_adversarial_sampling: weigh the negatives of a row by the softmax of their
            scores, without gradient (self-adversarial weights, Sun et al., ICLR 2019, eq. 5);
            otherwise uniformly.
        negative_adversarial_scale: factor of the scores in that softmax.
        loss_scale: factor of the loss.
    """

    def __init__(
        self,
        negative_adversarial_sampling: bool = False,
        negative_adversarial_scale: float = 1.0,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.negative_adversarial_sampling = negative_adversarial_sampling
        self.negative_adversarial_scale = negative_adversarial_scale
        self.loss_scale = loss_scale

    def forward(
        self,
        positive_score: Tensor,
        negative_score: Tensor,
        triple_weight: Tensor,
        n_negative: Optional[Tensor] = None,
    ) -> Tensor:
        """The loss of a micro-batch.

        Args:
            positive_score: (B,).
            negative_score: (B, N), -inf where a negative is excluded.
            triple_weight: (B,) or (1,) or (), weights of the positives.
            n_negative: (B,), negatives of each row that are not excluded; None: N.

        Returns:
            (), float32 or float64.
        """
        match_shapes(positive_score=(positive_score, "B"), negative_score=(negative_score, "B N"))
        wide = torch.promote_types(positive_score.dtype, torch.float32)
        negative = negative_score.to(wide)
        count: Tensor | float = float(negative.shape[1])
        if n_negative is not None:
            count = n_negative.to(wide)
        loss = self.per_positive(positive_score.to(wide), negative, count)
        return self.loss_scale * (triple_weight.to(wide) * loss).sum()

    @abc.abstractmethod
    def per_positive(
        self, positive: Tensor, negative: Tensor, n_negative: Tensor | float
    ) -> Tensor:
        """positive (B,), negative (B, N) with -inf where excluded, how many are not -> (B,)."""

    def get_negative_weights(self, negative: Tensor, n_negative: Tensor | float = 0.0) -> Tensor:
        """Weights (B, N), or (B, 1) if uniform, of the negatives of each row; they sum to one."""
        if self.negative_adversarial_sampling:
            scaled = self.negative_adversarial_scale * negative.detach()
            if not isinstance(n_negative, Tensor):
                return scaled.softmax(-1)
            # Not the product: what is excluded stays so for a scale of 0, or below.
            weight = scaled.masked_fill(negative.isneginf(), -math.inf).softmax(-1)
            return weight.nan_to_num(0.0)
        if isinstance(n_negative, Tensor):
            return 1.0 / n_negative.clamp(min=1.0).unsqueeze(-1)
        return negative.new_full((1, 1), 1.0 / negative.shape[1])


@LOSSES.register("logsigmoid")
class LogSigmoidLoss(BaseLossFunction):
    """-1/2 (log s(p + margin) + sum_n w_n log s(-n - margin)). Sun et al., ICLR 2019, eq. 6.

    Scores are negated distances, so a margin that scores must stay above is added to both.

    Args:
        margin: see the formula.
        negative_adversarial_sampling, negative_adversarial_scale, loss_scale: see the base class.
    """

    def __init__(
        self,
        margin: float,
        negative_adversarial_sampling: bool,
        negative_adversarial_scale: float = 1.0,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(negative_adversarial_sampling, negative_adversarial_scale, loss_scale)
        self.margin = margin

    def per_positive(
        self, positive: Tensor, negative: Tensor, n_negative: Tensor | float
    ) -> Tensor:
        weight = self.get_negative_weights(negative, n_negative)
        per_negative = (weight * F.logsigmoid(-negative - self.margin)).sum(-1)
        return -0.5 * (F.logsigmoid(positive + self.margin) + per_negative)


#: Activations of the margin ranking loss.
ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "softplus": F.softplus,
    "identity": lambda x: x,
}


@LOSSES.register("marginranking")
class MarginRankingLoss(BaseLossFunction):
    """sum_n w_n activation(n - p + margin). Bordes et al., NeurIPS 2013, eq. 1.

    Args:
        margin: see the formula.
        negative_adversarial_sampling, negative_adversarial_scale, loss_scale: see the base class.
        activation_function: one of :data:`ACTIVATIONS`.
    """

    def __init__(
        self,
        margin: float,
        negative_adversarial_sampling: bool,
        negative_adversarial_scale: float = 1.0,
        loss_scale: float = 1.0,
        activation_function: str = "relu",
    ) -> None:
        super().__init__(negative_adversarial_sampling, negative_adversarial_scale, loss_scale)
        if activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"unknown activation function {activation_function!r};"
                f" expected one of {sorted(ACTIVATIONS)}"
            )
        self.margin, self.activation = margin, ACTIVATIONS[activation_function]

    def per_positive(
        self, positive: Tensor, negative: Tensor, n_negative: Tensor | float
    ) -> Tensor:
        weight = self.get_negative_weights(negative, n_negative)
        cost = self.activation(negative - positive.unsqueeze(-1) + self.margin)
        if isinstance(n_negative, Tensor):
            cost = cost.masked_fill(negative.isneginf(), 0.0)
        return (weight * cost).sum(-1)


@LOSSES.register("sampledsoftmax")
class SampledSoftmaxCrossEntropyLoss(BaseLossFunction):
    """Cross-entropy of the positive among itself and its negatives.

    Each negative stands for (n_entity - 1) / N entities, so log of that is added to its score
    (the sampled softmax of Jean et al., ACL 2015, for uniform samples).

    Args:
        n_entity: entities of the graph.
        loss_scale: see the base class.
    """

    def __init__(self, n_entity: int, loss_scale: float = 1.0) -> None:
        super().__init__(loss_scale=loss_scale)
        if n_entity < 2:
            raise ConfigError(f"n_entity must be at least 2, got {n_entity}")
        self.n_entity = n_entity

    def per_positive(
        self, positive: Tensor, negative: Tensor, n_negative: Tensor | float
    ) -> Tensor:
        log_count = (
            n_negative.clamp(min=1.0).log()
            if isinstance(n_negative, Tensor)
            else math.log(n_negative)
        )
        stands_for = math.log(self.n_entity - 1) - log_count
        # -log of the positive's share, e^p / (e^p + e^l), is the softplus of l - p.
        return F.softplus(negative.logsumexp(-1) + stands_for - positive)
