"""Which losses are computed together with the scores, and by which rule.

A subclass has no rule unless it is listed here: it may compute something else.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, NamedTuple, Optional, Type

from torch import nn

from besskge_core.loss.base import Loss
from besskge_core.loss.double_margin import DoubleMarginLoss
from besskge_core.loss.pairwise import (
    PairwiseLogisticLoss,
    PairwiseMarginLoss,
    SoftMarginRankingLoss,
)
from besskge_core.loss.pointwise import (
    BCEAfterSigmoidLoss,
    BCEWithLogitsLoss,
    PointwiseHingeLoss,
    SoftplusLoss,
    SoftPointwiseHingeLoss,
)
from besskge_core.loss.sampled import (
    ACTIVATIONS,
    LogSigmoidLoss,
    MarginRankingLoss,
    SampledSoftmaxCrossEntropyLoss,
)
from besskge_core.loss.setwise import CrossEntropyLoss, InfoNCELoss, NSSALoss
from besskge_core.ops.sampled_loss import LossRule


class Rule(NamedTuple):
    """How a loss of sampled negatives is computed.

    Attributes:
        loss: the rule of one positive.
        is_mean: the weights of the positives are divided by their sum.
    """

    loss: LossRule
    is_mean: bool = False


def rule_of(loss_fn: object, n_negative: int) -> Optional[Rule]:
    """The rule of a loss with so many negatives of each positive, none of them excluded; or None."""
    make = _RULES.get(type(loss_fn))  # type: ignore[arg-type]
    return None if make is None or n_negative < 1 else make(loss_fn, n_negative)


def _adversarial(loss_fn: Any) -> Dict[str, Any]:
    return dict(
        adversarial=loss_fn.negative_adversarial_sampling,
        temperature=float(loss_fn.negative_adversarial_scale),
        scale=float(loss_fn.loss_scale),
    )


def _log_sigmoid(loss_fn: Any, n: int) -> Optional[Rule]:
    margin = float(loss_fn.margin)
    rule = LossRule("pointwise", margin=margin, positive_margin=-margin, **_adversarial(loss_fn))
    return Rule(rule._replace(positive_factor=0.5, negative_factor=0.5))


def _margin_ranking(loss_fn: Any, n: int) -> Optional[Rule]:
    names = {function: name for name, function in ACTIVATIONS.items()}
    name = names.get(loss_fn.activation)
    if name is None:
        return None
    return Rule(LossRule("ranking", name, margin=float(loss_fn.margin), **_adversarial(loss_fn)))


def _sampled_softmax(loss_fn: Any, n: int) -> Optional[Rule]:
    offset = math.log(loss_fn.n_entity - 1) - math.log(n)
    return Rule(LossRule("softmax", offset=offset, scale=float(loss_fn.loss_scale)))


# Losses with a reduction. Their mean is one over entries that all have the weight of their positive.


def _reduced(loss_fn: Any, rule: LossRule, n_entry: int = 1) -> Rule:
    """A sum over the positives; its mean is one over so many entries of each."""
    is_mean = loss_fn.reduction == "mean"
    scale = loss_fn.loss_scale / (n_entry if is_mean else 1)
    return Rule(rule._replace(scale=float(scale)), is_mean)


def _softmax(loss_fn: Any, n: int) -> Optional[Rule]:
    margin, temperature = float(loss_fn.margin), float(loss_fn.temperature)
    return _reduced(loss_fn, LossRule("softmax", margin=margin, temperature=temperature))


def _self_adversarial(loss_fn: Any, n: int) -> Optional[Rule]:
    factor = 0.5 if loss_fn.reduction == "mean" else 1.0
    rule = LossRule(
        "pointwise", "softplus", True, float(loss_fn.margin), -float(loss_fn.margin),
        float(loss_fn.inverse_softmax_temperature), factor, factor,
    )  # fmt: skip
    return _reduced(loss_fn, rule)


def _elementwise(loss_fn: Any, n: int) -> Optional[Rule]:
    """Of positives and negatives alike, 1 + n entries of each."""
    margin = float(getattr(loss_fn, "margin", 0.0))
    activation = "relu" if isinstance(loss_fn, PointwiseHingeLoss) else "softplus"
    rule = LossRule(
        "pointwise", activation, margin=margin, positive_margin=margin,
        positive_factor=float(getattr(loss_fn, "pos_weight", None) or 1.0),
        negative_factor=float(n),
    )  # fmt: skip
    return _reduced(loss_fn, rule, n + 1)


def _double_margin(loss_fn: Any, n: int) -> Optional[Rule]:
    activation = _activation_of(loss_fn.margin_activation)
    if activation is None:
        return None
    # A positive counts once for each of its negatives, so that means are over n entries of each.
    rule = LossRule(
        "pointwise", activation, margin=float(loss_fn.negative_margin),
        positive_margin=float(loss_fn.positive_margin),
        positive_factor=float(n * loss_fn.positive_weight),
        negative_factor=float(n * loss_fn.negative_weight),
    )  # fmt: skip
    return _reduced(loss_fn, rule, n)


def _pairs(loss_fn: Any, n: int) -> Optional[Rule]:
    activation: Optional[str] = "softplus"
    if isinstance(loss_fn, PairwiseMarginLoss):
        activation = _activation_of(loss_fn.margin_activation)
    if activation is None:
        return None
    rule = _reduced(
        loss_fn, LossRule("ranking", activation, margin=getattr(loss_fn, "margin", 0.0))
    )
    if rule.is_mean:
        return rule
    return rule._replace(loss=rule.loss._replace(scale=rule.loss.scale * n))


def _activation_of(module: nn.Module) -> Optional[str]:
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.Softplus and (module.beta, module.threshold) == (1.0, 20.0):
        return "softplus"
    return None


_RULES: Dict[Type[Loss], Callable[[Any, int], Optional[Rule]]] = {
    LogSigmoidLoss: _log_sigmoid,
    MarginRankingLoss: _margin_ranking,
    SampledSoftmaxCrossEntropyLoss: _sampled_softmax,
    CrossEntropyLoss: _softmax,
    InfoNCELoss: _softmax,
    NSSALoss: _self_adversarial,
    BCEWithLogitsLoss: _elementwise,
    BCEAfterSigmoidLoss: _elementwise,
    SoftplusLoss: _elementwise,
    PointwiseHingeLoss: _elementwise,
    SoftPointwiseHingeLoss: _elementwise,
    DoubleMarginLoss: _double_margin,
    PairwiseMarginLoss: _pairs,
    SoftMarginRankingLoss: _pairs,
    PairwiseLogisticLoss: _pairs,
}
