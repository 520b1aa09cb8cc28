"""PyKEEN's losses: the stored values and gradients, and constructors."""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter

import pytest
import torch
from golden_losses import DEVIATIONS, GOLDEN, deviation, loss_class, read, replay, stored_grads
from torch import nn
from torch.testing import assert_close

import besskge_core.loss
from besskge_core.loss import (
    LOSSES,
    BaseLossFunction,
    CrossEntropyLoss,
    DoubleMarginLoss,
    InfoNCELoss,
    LabelledLoss,
    MarginRankingLoss,
    PairwiseMarginLoss,
    PointwiseLoss,
    pairwise,
)

CASES, STORED = read()
needs_golden = pytest.mark.skipif(not GOLDEN, reason="BESSKGE_GOLDEN is not set")
NAMES = [name for name in LOSSES if issubclass(LOSSES[name], LabelledLoss)]


# -- golden values -----------------------------------------------------------------------------


def groups():
    """(loss, path) of all records, as test parameters."""
    found = sorted({(case["loss"], case["path"]) for case in CASES})
    return found or [pytest.param("", "", marks=needs_golden)]


def records(loss, path):
    return [case for case in CASES if (case["loss"], case["path"]) == (loss, path)]


def check_scores(case):
    found = replay(case, STORED)
    if deviation(case) is not None:
        assert found.error is None and math.isfinite(found.value), case
        assert all(torch.isfinite(grad).all() for grad in found.grads), case
        return
    assert found.error == case.get("error"), case
    if found.error is None:
        assert found.value == pytest.approx(case["value"], rel=1e-6), case
        for grad, expected in zip(found.grads, stored_grads(case, STORED)):
            assert_close(grad, expected, rtol=1e-6, atol=1e-9, msg=lambda m, c=case: f"{c}\n{m}")


def check_constructor(case):
    with pytest.raises({"ValueError": ValueError, "KeyError": KeyError}[case["error"]]):
        loss_class(case["loss"])(**case["kwargs"])


def check_margins(case):
    for resolve in (DoubleMarginLoss.resolve_margin, DoubleMarginLoss.resolve_margins):
        assert resolve(*case["args"]) == pytest.approx(tuple(case["value"]), rel=1e-12)


CHECKS = {
    "slcwa": check_scores, "lcwa": check_scores, "ctor": check_constructor,
    "resolve_margin": check_margins,
}  # fmt: skip


@pytest.mark.parametrize("loss, path", groups())
def test_a_loss_does_as_the_records_of_pykeen_say(loss, path):
    for case in records(loss, path):
        CHECKS[path](case)


@needs_golden
def test_every_record_is_looked_at():
    assert sum(len(records(*group)) for group in groups()) == len(CASES) == 3560
    assert len({json.dumps(case) for case in CASES}) == 3560
    assert {case["path"] for case in CASES} == set(CHECKS)
    assert {loss_class(case["loss"]) for case in CASES} == {LOSSES[name] for name in NAMES}


@needs_golden
def test_the_deviations_are_those_of_the_list():
    assert Counter(filter(None, map(deviation, CASES))) == Counter(DEVIATIONS)


@needs_golden
def test_smoothing_with_a_filter_is_that_of_the_columns_left():
    for case in CASES:
        if case.get("value") != "inf" or case["kwargs"] not in (
            {"reduction": "sum"}, {"reduction": "sum", "margin": 0.5},
        ):  # fmt: skip
            continue
        pos, neg, mask = (STORED[f"in/{case['seed']}/{name}"] for name in ("pos", "neg", "mask"))
        margin, tau = (0.5, 0.05) if case["loss"] == "InfoNCELoss" else (0.0, 1.0)
        rows = [
            nn.functional.cross_entropy(
                torch.cat([p - margin, n[kept]])[None] / tau, torch.zeros(1, dtype=torch.long),
                label_smoothing=case["label_smoothing"],
            )
            for p, n, kept in zip(pos, neg, mask)
        ]  # fmt: skip
        assert replay(case, STORED).value == pytest.approx(float(sum(rows)), rel=1e-9)


def test_infonce_has_the_value_of_pykeen_for_seed_0():
    torch_scores = torch.Generator().manual_seed(0)
    positive = torch.randn(4, 1, generator=torch_scores)
    negative = torch.randn(4, 3, generator=torch_scores)
    value = InfoNCELoss().process_slcwa_scores(positive, negative)
    assert value.item() == pytest.approx(20.42227, abs=1e-4)


# -- constructors ------------------------------------------------------------------------------


def test_the_seed_losses_take_what_those_of_pykeen_take():
    assert list(inspect.signature(InfoNCELoss).parameters.items())[:3] == [
        (name, inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD,
                                 default=default, annotation=kind))
        for name, default, kind in [
            ("margin", 0.02, "float"), ("log_adversarial_temperature", math.log(0.05), "float"),
            ("reduction", "mean", "str"),
        ]
    ]  # fmt: skip
    parameters = inspect.signature(DoubleMarginLoss).parameters
    assert {x.kind for x in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {name: x.default for name, x in parameters.items()} == dict(
        positive_margin=None, negative_margin=None, offset=None, positive_negative_balance=0.5,
        margin_activation="relu", reduction="mean", loss_scale=1.0,
    )  # fmt: skip


def test_the_seed_losses_are_searched_as_in_pykeen():
    assert InfoNCELoss.hpo_default == {
        "log_adversarial_temperature": {"high": 3.0, "low": -3.0, "type": float},
        "margin": {"high": 0.1, "low": 0.01, "type": float},
    }
    assert DoubleMarginLoss.hpo_default == {
        "margin_activation": {
            "choices": {"hard", "relu", "soft", "softplus"}, "type": "categorical",
        },
        "offset": {"high": 1, "low": 0, "type": float},
        "positive_margin": {"high": 1, "low": -1, "type": float},
        "positive_negative_balance": {"high": 0.999, "low": 0.001, "type": float},
    }  # fmt: skip


def test_the_seed_losses_have_the_bases_of_pykeen():
    assert issubclass(InfoNCELoss, CrossEntropyLoss)
    assert issubclass(DoubleMarginLoss, PointwiseLoss)


def test_both_margin_ranking_losses_have_an_address():
    assert pairwise.MarginRankingLoss is PairwiseMarginLoss is LOSSES["pairwisemargin"]
    assert besskge_core.loss.MarginRankingLoss is MarginRankingLoss is LOSSES["marginranking"]


def test_all_that_is_exported_is_there_in_order():
    exported = besskge_core.loss.__all__
    assert all(hasattr(besskge_core.loss, name) for name in exported)
    assert set(exported) >= {LOSSES[name].__name__ for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_by_name_takes_what_training_gives_it(name):
    given = dict(margin=0.5, negative_adversarial_sampling=True, negative_adversarial_scale=1.0,
                 n_entity=9, loss_scale=3.0)  # fmt: skip
    takes = inspect.signature(LOSSES[name]).parameters
    one, three = LOSSES[name](), LOSSES[name](loss_scale=3.0)
    scores = torch.zeros(2), torch.ones(2, 3), torch.ones(())
    assert one.loss_scale == 1.0
    assert_close(three.sampled(*scores), 3.0 * one.sampled(*scores))
    loss = LOSSES[name](**{x: given[x] for x in takes if x in given})
    assert loss.loss_scale == 3.0 and torch.isfinite(loss.sampled(*scores))


@pytest.mark.parametrize(
    "given, kind",
    [(None, nn.ReLU), ("ReLU", nn.ReLU), ("hard", nn.ReLU), ("SOFT", nn.Softplus),
     ("softplus", nn.Softplus), (nn.GELU, nn.GELU), (nn.GELU(), nn.GELU)],
)  # fmt: skip
def test_a_margin_activation_is_a_name_a_class_or_a_module(given, kind):
    assert type(DoubleMarginLoss(margin_activation=given).margin_activation) is kind
    assert type(PairwiseMarginLoss(margin_activation=given).margin_activation) is kind


@pytest.mark.parametrize("balance, term", [(0.0, 1), (1.0, 0)])
def test_the_balance_may_leave_a_side_out(balance, term):
    loss = DoubleMarginLoss(positive_negative_balance=balance)
    value = loss.process_slcwa_scores(torch.tensor([[0.5]]), torch.tensor([[2.0]]))
    assert value == (0.5, 2.0)[term]


# -- losses of BESS-KGE ------------------------------------------------------------------------


def test_a_sum_over_positives_is_sampled_by_calling_it():
    positive, negative, weight = torch.zeros(2), torch.tensor([[1.0, -math.inf]] * 2), torch.ones(2)
    loss = MarginRankingLoss(1.0, False)
    for counts in ([], [torch.ones(2)]):
        arguments = (positive, negative, weight, *counts)
        assert loss.sampled(*arguments) == loss(*arguments)


def test_a_loss_with_three_arguments_is_sampled_without_the_counts():
    class Upstream(BaseLossFunction):
        def forward(self, positive_score, negative_score, triple_weight):
            return (triple_weight * (negative_score.sum(-1) - positive_score)).sum()

        def per_positive(self, positive, negative, n_negative):
            raise AssertionError

    assert Upstream().sampled(torch.zeros(2), torch.ones(2, 3), torch.ones(2), torch.ones(2)) == 6.0
