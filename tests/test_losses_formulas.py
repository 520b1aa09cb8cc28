"""PyKEEN's losses: each is its formula, in plain Python for one entry, pair or row."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from besskge_core.loss import (
    AdversarialBCEWithLogitsLoss,
    BCEAfterSigmoidLoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    DoubleMarginLoss,
    FocalLoss,
    InfoNCELoss,
    MSELoss,
    NSSALoss,
    PairwiseLogisticLoss,
    PairwiseMarginLoss,
    PointwiseHingeLoss,
    SoftMarginRankingLoss,
    SoftplusLoss,
    SoftPointwiseHingeLoss,
)


def s(x):
    return 1 / (1 + math.exp(-x))


def sp(x):
    return math.log(1 + math.exp(x))


def bce(x, y):
    return -y * math.log(s(x)) - (1 - y) * math.log(1 - s(x))


def focal(x, y):
    right = s(x) * y + (1 - s(x)) * (1 - y)
    return (0.3 * y + 0.7 * (1 - y)) * (1 - right) ** 1.5 * bce(x, y)


POINTWISE = [
    (BCEWithLogitsLoss(), bce),
    (BCEWithLogitsLoss(pos_weight=0.0), bce),
    (BCEWithLogitsLoss(pos_weight=3.0), lambda x, y: 3 * y * sp(-x) + (1 - y) * sp(x)),
    (BCEAfterSigmoidLoss(), bce),
    (MSELoss(), lambda x, y: (x - y) ** 2),
    (SoftplusLoss(), lambda x, y: sp(-(2 * y - 1) * x)),
    (SoftplusLoss(0.4), lambda x, y: sp(0.4 - (2 * y - 1) * x)),
    (PointwiseHingeLoss(), lambda x, y: max(0, 1 - (2 * y - 1) * x)),
    (SoftPointwiseHingeLoss(0.3), lambda x, y: sp(0.3 - (2 * y - 1) * x)),
    (FocalLoss(gamma=1.5, alpha=0.3), focal),
    (FocalLoss(gamma=0.0), bce),
    (DoubleMarginLoss(positive_margin=0.5, negative_margin=0.25, positive_negative_balance=0.3),
     lambda x, y: 0.3 * y * max(0, 0.5 - x) + 0.7 * (1 - y) * max(0, 0.25 + x)),
]  # fmt: skip


@pytest.mark.parametrize("loss, cost", POINTWISE)
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_a_pointwise_loss_is_its_formula(loss, cost, epsilon):
    scores, labels = (1.3, -0.2, 0.1, -2.0), (1.0, 0.0, 0.4, 1.0)
    n_entity = 5
    smooth = [(1 - epsilon) * y + epsilon / (n_entity - 1) * (1 - y) for y in labels]
    expected = sum(map(cost, scores, smooth)) / 4
    score, label = (torch.tensor([x], dtype=torch.float64) for x in (scores, labels))
    found = loss.process_lcwa_scores(score, label, epsilon, n_entity)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    if loss.smooths_samples:
        y_1, y_0 = 1 - epsilon, epsilon / (n_entity - 1)
        found = loss.process_slcwa_scores(score[:, 0], score[:, 1:], epsilon, None, n_entity)
        expected = cost(scores[0], y_1) + sum(cost(x, y_0) for x in scores[1:])
        assert found.item() == pytest.approx(expected / 4, rel=1e-9)


PAIRWISE = [
    (PairwiseMarginLoss(), lambda n, p: max(0, n - p + 1)),
    (PairwiseMarginLoss(0.2, "soft"), lambda n, p: sp(n - p + 0.2)),
    (SoftMarginRankingLoss(0.2), lambda n, p: sp(n - p + 0.2)),
    (PairwiseLogisticLoss(), lambda n, p: sp(n - p)),
]


@pytest.mark.parametrize("loss, cost", PAIRWISE)
def test_a_pairwise_loss_is_its_formula(loss, cost):
    score = torch.tensor([[1.3, -0.2, 0.1], [0.4, -2.0, 1.0]], dtype=torch.float64)
    label = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.5]])  # 0.5 is neither
    pairs = [(0.1, 1.3), (0.1, -0.2), (0.4, -2.0)]
    costs = [cost(n, p) for n, p in pairs]
    found = loss.process_lcwa_scores(score, label)
    assert found.item() == pytest.approx(sum(costs) / 3, rel=1e-9)
    entry = torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.5, 9.0]])
    weights = [2.0 * 3.0, 1.0 * 3.0, 1.0 * 0.5]
    found = loss.process_lcwa_scores(score, label, weights=entry)
    expected = sum(w * x for w, x in zip(weights, costs)) / sum(weights)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def row_cost(scores, shares, epsilon):
    log_sum = math.log(sum(map(math.exp, scores)))
    smooth = [(1 - epsilon) * share + epsilon / len(scores) for share in shares]
    return sum(share * (log_sum - x) for x, share in zip(scores, smooth))


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_cross_entropy_is_its_formula(epsilon):
    score, label = torch.tensor([[1.3, -0.2, 0.1]]).double(), torch.tensor([[1.0, 0.0, 0.6]])
    expected = row_cost((1.3, -0.2, 0.1), (1 / 1.6, 0.0, 0.6 / 1.6), epsilon)
    found = CrossEntropyLoss().process_lcwa_scores(score, label, epsilon)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_infonce_takes_its_margin_from_labels_over_a_half(epsilon):
    score, label = torch.tensor([[1.3, -0.2, 0.1]]).double(), torch.tensor([[1.0, 0.0, 0.5]])
    loss = InfoNCELoss(margin=0.2, log_adversarial_temperature=math.log(0.5))
    expected = row_cost((2.2, -0.4, 0.2), (2 / 3, 0.0, 1 / 3), epsilon)
    found = loss.process_lcwa_scores(score, label, epsilon)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    expected = row_cost((2.2, -0.4, 0.2), (1.0, 0.0, 0.0), epsilon)
    found = loss.process_slcwa_scores(score[:, 0], score[:, 1:], epsilon)
    assert found.item() == pytest.approx(expected, rel=1e-6)


ADVERSARIAL = [
    (NSSALoss(0.7, 0.5), lambda p: sp(-0.7 - p), lambda n: sp(0.7 + n), lambda n: s(0.7 + n)),
    (AdversarialBCEWithLogitsLoss(0.5), lambda p: sp(-p), sp, s),
]


@pytest.mark.parametrize("loss, of_positive, of_negative, slope", ADVERSARIAL)
def test_adversarial_weights_have_no_gradient(loss, of_positive, of_negative, slope):
    positive, negatives = 0.3, (1.0, -2.0, 0.4)
    powers = [math.exp(0.5 * n) for n in negatives]
    shares = [x / sum(powers) for x in powers]
    expected = of_positive(positive) + sum(w * of_negative(n) for w, n in zip(shares, negatives))
    negative = torch.tensor([negatives], dtype=torch.float64, requires_grad=True)
    value = loss.process_slcwa_scores(torch.tensor([positive]), negative)
    assert value.item() == pytest.approx(0.5 * expected, rel=1e-7)
    (grad,) = torch.autograd.grad(value, negative)
    expected_grad = [[0.5 * w * slope(n) for w, n in zip(shares, negatives)]]
    assert_close(grad, torch.tensor(expected_grad, dtype=torch.float64))


@pytest.mark.parametrize("loss", [BCEWithLogitsLoss(), CrossEntropyLoss(), NSSALoss()])
def test_a_positive_of_minus_infinity_is_not_left_out(loss):
    score = torch.tensor([[-math.inf, 0.0]])
    for labels in (torch.tensor([0]), torch.tensor([[1.0, 0.0]])):
        assert loss.process_lcwa_scores(score, labels) == math.inf
    assert loss.process_slcwa_scores(score[:, :1], score[:, 1:]) == math.inf


@pytest.mark.parametrize("loss", [BCEAfterSigmoidLoss(), MSELoss(), NSSALoss(1.0)])
def test_a_weight_of_a_positive_is_not_that_of_its_negatives(loss):
    loss.reduction = "sum"
    positive, negative = torch.tensor([0.5]), torch.tensor([[0.2, 1.0]])
    once = loss.process_slcwa_scores(positive, negative)
    alone = loss.process_slcwa_scores(positive, negative, neg_weights=torch.zeros(1, 2))
    found = loss.process_slcwa_scores(positive, negative, pos_weights=torch.tensor([3.0]))
    assert_close(found, once + 2.0 * alone)
    loss.reduction = "mean"


def test_the_margin_of_negatives_is_added_to_them():
    loss = DoubleMarginLoss(positive_margin=0.5, negative_margin=0.25)
    positive, negative = torch.tensor([0.3]), torch.tensor([[-0.2, -0.3]])
    value = loss.process_slcwa_scores(positive, negative)
    assert value.item() == pytest.approx(0.5 * 0.2 + 0.5 * (0.05 + 0.0) / 2, rel=1e-6)


def test_margins_may_be_equal():
    loss = DoubleMarginLoss(positive_margin=0.5, negative_margin=0.5)
    assert (loss.positive_margin, loss.negative_margin) == (0.5, 0.5)
    assert DoubleMarginLoss.resolve_margin(0.2, None, 0.0) == (0.2, 0.2)
