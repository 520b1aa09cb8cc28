"""The rule of a loss gives what the loss gives; a loss that no rule expresses has none."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from besskge_core.loss import LOSSES, DoubleMarginLoss, LogSigmoidLoss, MarginRankingLoss
from besskge_core.loss.rules import rule_of

cost_of = sys.modules["besskge_core.ops.sampled_loss"]._cost

#: Registered losses whose formula is not one of those of the native operation.
NO_RULE = {"mse", "focal", "adversarialbce"}

B, N = 6, 5
ADVERSARIAL = [dict(), dict(negative_adversarial_sampling=True, negative_adversarial_scale=0.6)]
OPTIONS = {
    "logsigmoid": [dict(margin=1.3, negative_adversarial_sampling=False), dict(margin=-0.4, **ADVERSARIAL[1])],
    "marginranking": [
        dict(margin=0.7, activation_function=f, **{"negative_adversarial_sampling": False, **a})
        for f in ("relu", "softplus", "identity") for a in ADVERSARIAL
    ],
    "sampledsoftmax": [dict(n_entity=2), dict(n_entity=77)],
    "bcewithlogits": [dict(), dict(pos_weight=3.0), dict(pos_weight=0.0)],
    "softplus": [dict(), dict(margin=0.8)],
    "pointwisehinge": [dict(), dict(margin=0.3)],
    "softpointwisehinge": [dict(), dict(margin=0.3)],
    "doublemargin": [
        dict(), dict(positive_margin=0.5, offset=0.8, margin_activation="soft"),
        dict(positive_margin=0.5, negative_margin=-0.4, positive_negative_balance=0.2),
        dict(margin_activation=nn.ReLU()), dict(margin_activation=nn.Softplus),
        dict(positive_negative_balance=0.0), dict(positive_negative_balance=1.0),
    ],
    "pairwisemargin": [
        dict(), dict(margin=0.3, margin_activation="softplus"), dict(margin_activation=nn.ReLU),
        dict(margin_activation=nn.Softplus()),
    ],
    "softmarginranking": [dict(), dict(margin=-0.3)],
    "infonce": [dict(), dict(margin=0.3, log_adversarial_temperature=0.4)],
    "nssa": [dict(), dict(margin=2.0, adversarial_temperature=0.3), dict(adversarial_temperature=0.0)],
}  # fmt: skip


NAMES = sorted(set(LOSSES) - NO_RULE)


def losses(name):
    reduced = "reduction" in LOSSES[name].__init__.__code__.co_varnames
    for options in OPTIONS.get(name, [dict()]):
        for reduction in [dict(reduction=x) for x in ("mean", "sum")] if reduced else [dict()]:
            yield LOSSES[name](**options, **reduction, loss_scale=1.7)


def by_rule(rule, positive, negative, weight):
    cost = cost_of(positive, negative, rule.loss)
    if rule.is_mean:
        weight = weight / weight.sum()
    return rule.loss.scale * (weight * cost).sum()


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_gives_what_the_loss_gives(name, generator):
    for n_negative in (1, N):
        check(name, n_negative, generator)


def check(name, n_negative, generator):
    positive, negative = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B,), (B, n_negative))
    )
    weight = torch.rand(B, generator=generator, dtype=torch.float64)
    weight[2] = 0.0
    for loss_fn in losses(name):
        rule, both = rule_of(loss_fn, n_negative), []
        assert rule is not None
        for value in (loss_fn.sampled, lambda *x, rule=rule: by_rule(rule, *x)):
            leaves = [x.clone().requires_grad_() for x in (positive, negative)]
            loss = value(*leaves, weight)
            both.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        assert_close(*both)


def test_every_registered_loss_has_a_rule_or_is_known_to_have_none():
    arguments = {"sampledsoftmax": dict(n_entity=9)}
    margins = {"logsigmoid", "marginranking"}
    for name in LOSSES:
        options = dict(margin=1.0, negative_adversarial_sampling=True) if name in margins else {}
        loss_fn = LOSSES[name](**arguments.get(name, options))
        assert (rule_of(loss_fn, N) is None) == (name in NO_RULE), name


@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_has_no_rule_nor_has_a_loss_without_negatives(name):
    loss_fn = next(losses(name))
    assert rule_of(loss_fn, N) is not None and rule_of(loss_fn, 0) is None
    loss_fn.__class__ = type("Other", (type(loss_fn),), {})
    assert rule_of(loss_fn, N) is None


class OtherReLU(nn.ReLU):
    """Might do anything."""


@pytest.mark.parametrize("activation", [nn.LeakyReLU(), nn.Softplus(beta=2.0),
                                        nn.Softplus(threshold=1.0), OtherReLU(), nn.Identity()],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["doublemargin", "pairwisemargin"])
def test_other_activations_have_no_rule(name, activation):
    assert rule_of(LOSSES[name](margin_activation=activation), N) is None


def test_an_activation_of_ones_own_has_no_rule():
    loss_fn = MarginRankingLoss(1.0, False)
    loss_fn.activation = torch.tanh
    assert rule_of(loss_fn, N) is None


def test_what_is_no_loss_of_this_package_has_no_rule():
    for other in (nn.MSELoss(), None, lambda p, n, w: p.sum()):
        assert rule_of(other, N) is None


def test_the_rule_is_that_of_the_options_of_now():
    loss_fn, other = LogSigmoidLoss(1.0, False), DoubleMarginLoss()
    loss_fn.margin, other.negative_weight = 3.0, 0.25
    assert rule_of(loss_fn, N).loss.margin == 3.0
    assert rule_of(other, N).loss.negative_factor == N * 0.25
