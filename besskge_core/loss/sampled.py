"""The losses of BESS-KGE: weighted sums over positives, each against its sampled negatives."""

from __future__ import annotations

import math
from typing import Callable, Dict

import torch.nn.functional as F
from torch import Tensor

from besskge_core.errors import ConfigError
from besskge_core.loss.base import LOSSES, BaseLossFunction


class MarginBasedLossFunction(BaseLossFunction):
    """Base of the losses with a margin.

    Args:
        margin: see the subclass.
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


@LOSSES.register("logsigmoid")
class LogSigmoidLoss(MarginBasedLossFunction):
    """-1/2 (log s(p + margin) + sum_n w_n log s(-n - margin)). Sun et al., ICLR 2019, eq. 6.

    Scores are negated distances, so a margin that scores must stay above is added to both.

    Args:
        margin: see the formula.
        negative_adversarial_sampling, negative_adversarial_scale, loss_scale: see the base class.
    """

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
class MarginRankingLoss(MarginBasedLossFunction):
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
        super().__init__(
            margin, negative_adversarial_sampling, negative_adversarial_scale, loss_scale
        )
        if activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"unknown activation function {activation_function!r};"
                f" expected one of {sorted(ACTIVATIONS)}"
            )
        self.activation = ACTIVATIONS[activation_function]

    def per_positive(
        self, positive: Tensor, negative: Tensor, n_negative: Tensor | float
    ) -> Tensor:
        weight = self.get_negative_weights(negative, n_negative)
        cost = self.activation(negative - positive.unsqueeze(-1) + self.margin)
        if isinstance(n_negative, Tensor):
            cost = cost.masked_fill(negative == -math.inf, 0.0)
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
