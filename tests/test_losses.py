"""PyKEEN's losses: one definition for three ways to call it, and no NaN where PyKEEN has one."""

from __future__ import annotations

import math

import pytest
import torch
from loss_support import (
    NAMES,
    B,
    E,
    N,
    sampled,
    smoothings,
    without,
)
from torch.testing import assert_close

from besskge_core.loss import (
    LOSSES,
    AdversarialLoss,
    CrossEntropyLoss,
    DoubleMarginLoss,
    NSSALoss,
    PairwiseLoss,
    PointwiseLoss,
)

# -- three ways --------------------------------------------------------------------------------


def test_a_filter_is_told_by_a_mask_by_what_it_keeps_or_by_minus_infinity(loss, scores):
    positive, negative, mask = scores
    expected = sampled(loss, positive, without(negative, mask))
    dense = loss.process_slcwa_scores(positive, negative, batch_filter=mask)
    sparse = loss.process_slcwa_scores(positive[:, 0], negative[mask], batch_filter=mask)
    infinite = loss.process_slcwa_scores(positive, without(negative, mask))
    counted = loss.sampled(positive[:, 0], without(negative, mask), torch.ones(B), mask.sum(1))
    for found in (dense, sparse, infinite, counted):
        assert_close(found, expected, rtol=1e-12, atol=0)


def test_without_a_filter_the_ways_agree_too(loss, scores):
    positive, negative, _ = scores
    found = loss.process_slcwa_scores(positive, negative)
    assert_close(found, sampled(loss, positive, negative), rtol=1e-12, atol=0)


def test_negatives_are_columns_of_label_0(loss, scores):
    if isinstance(loss, DoubleMarginLoss):
        pytest.skip("PyKEEN's reductions differ there; see test_double_margin_...")
    positive, negative, mask = scores
    score, kept = torch.cat([positive, negative], 1), without(negative, mask)
    first = torch.zeros(B, dtype=torch.int32)
    assert_close(
        loss.process_lcwa_scores(score, first), loss.process_slcwa_scores(positive, negative)
    )
    assert_close(
        loss.process_lcwa_scores(torch.cat([positive, kept], 1), first),
        loss.process_slcwa_scores(positive, kept),
    )


def test_a_filter_removes_columns(loss, scores):
    positive, negative, _ = scores
    column = torch.tensor([True, False, True, True])
    for options in smoothings(loss, loss.smooths_samples):
        found = loss.process_slcwa_scores(
            positive, negative, batch_filter=column.expand(B, N), **options
        )
        expected = loss.process_slcwa_scores(positive, negative[:, column], **options)
        assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_sum_is_over_rows_with_the_columns_each_has_left(loss, scores):
    positive, negative, mask = scores
    mask[1, 2], loss.reduction = True, "sum"
    for options in smoothings(loss, loss.smooths_samples):
        rows = [
            loss.process_slcwa_scores(positive[i : i + 1], negative[i : i + 1, mask[i]], **options)
            for i in range(B)
        ]
        found = loss.process_slcwa_scores(positive, negative[mask], batch_filter=mask, **options)
        assert_close(found, torch.stack(rows).sum(), rtol=1e-12, atol=0)


def test_an_entity_that_scores_minus_infinity_is_no_column(loss, labelled):
    score, label = labelled
    label[:, 3], score[:, 3] = 0.0, -math.inf
    left = torch.arange(E) != 3
    for options in smoothings(loss, loss.smooths_labels):
        score.requires_grad_()
        found = loss.process_lcwa_scores(score, label, **options)
        assert_close(found, loss.process_lcwa_scores(score[:, left], label[:, left], **options))
        (grad,) = torch.autograd.grad(found, score)
        assert (grad[:, 3] == 0).all() and torch.isfinite(grad).all()


def test_labels_are_numbers_booleans_or_the_index_of_the_true_one(loss, labelled):
    score, index = labelled[0], torch.tensor([3, 0, 6, 6, 2])
    one_hot = torch.nn.functional.one_hot(index, E)
    for options in smoothings(loss, loss.smooths_labels):
        expected = loss.process_lcwa_scores(score, one_hot.double(), **options)
        for labels in (one_hot, one_hot.bool(), one_hot.half(), index, index.int()):
            assert_close(loss.process_lcwa_scores(score, labels, **options), expected)


def test_double_margin_with_labels_is_over_all_entries(scores):
    positive, negative, _ = scores
    score = torch.cat([positive, negative], 1)
    costs = (1.0 - positive).relu().sum(), negative.relu().sum()
    found = DoubleMarginLoss(positive_negative_balance=0.3)(
        score, torch.eye(1, N + 1, dtype=torch.bool)
    )
    assert_close(found, (0.3 * costs[0] + 0.7 * costs[1]) / (B * (N + 1)))
    found = DoubleMarginLoss(positive_negative_balance=0.3).process_slcwa_scores(positive, negative)
    assert_close(found, 0.3 * costs[0] / B + 0.7 * costs[1] / (B * N))


def test_a_pointwise_loss_broadcasts(labelled):
    score, label = labelled
    weight = torch.arange(1.0, B + 1)[:, None].double()
    for name in NAMES:
        if issubclass(LOSSES[name], PointwiseLoss):
            loss = LOSSES[name]()
            found = loss(score, label[2], weight)
            entries = label[2].expand(B, E), weight.expand(B, E)
            assert_close(found, loss.process_lcwa_scores(score, entries[0], weights=entries[1]))


def test_a_pairwise_loss_is_called_with_pairs(scores):
    positive, negative, mask = scores
    for name in NAMES:
        if issubclass(LOSSES[name], PairwiseLoss):
            loss = LOSSES[name]()
            found = loss(positive, without(negative, mask), mask.float() + 1.0)
            assert_close(found, sampled(loss, positive, without(negative, mask)))


# -- gradients ---------------------------------------------------------------------------------


def test_gradients_are_those_of_the_value(loss, scores, labelled):
    if isinstance(loss, AdversarialLoss):
        loss.inverse_softmax_temperature = 0.0  # else the weights depend on scores, unseen
    positive, negative, mask = scores
    leaves = positive.requires_grad_(), negative.requires_grad_()
    weight = torch.arange(1.0, B + 1).double()

    def sparse(p, n):
        return loss.process_slcwa_scores(p, n[mask], batch_filter=mask)

    assert torch.autograd.gradcheck(sparse, leaves)
    assert torch.autograd.gradcheck(lambda p, n: sampled(loss, p, n, weight), leaves)
    score, label = labelled
    for options in smoothings(loss, loss.smooths_labels):
        assert torch.autograd.gradcheck(
            lambda x, options=options: loss.process_lcwa_scores(x, label, **options),
            score.requires_grad_(),
        )


def test_what_is_excluded_has_no_gradient(loss, scores):
    positive, negative, mask = scores
    cut = without(negative, mask).requires_grad_()
    (grad,) = torch.autograd.grad(sampled(loss, positive, cut), cut)
    assert (grad[~mask] == 0).all() and torch.isfinite(grad).all()
    negative.requires_grad_()
    for options in smoothings(loss, loss.smooths_samples):
        value = loss.process_slcwa_scores(positive, negative, batch_filter=mask, **options)
        (grad,) = torch.autograd.grad(value, negative)
        assert (grad[~mask] == 0).all() and torch.isfinite(grad).all()


def test_where_all_is_filtered_only_positives_cost(loss, scores):
    positive, negative, mask = scores
    leaves = positive.requires_grad_(), negative.requires_grad_()
    for options in smoothings(loss, loss.smooths_samples):
        nothing = torch.zeros_like(mask)
        found = loss.process_slcwa_scores(
            positive, negative[nothing], batch_filter=nothing, **options
        )
        grads = torch.autograd.grad(found, leaves, allow_unused=True)
        assert torch.isfinite(found) and torch.isfinite(grads[0]).all()
        assert grads[1] is None or (grads[1] == 0).all()
        if isinstance(loss, (CrossEntropyLoss, DoubleMarginLoss, PairwiseLoss)):
            assert found == 0 and (grads[0] == 0).all()


@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["no positive", "no negative"])
@pytest.mark.parametrize("size", [(B, E), (B, 1), (0, E)], ids=["rows", "one column", "no rows"])
def test_labels_that_are_all_the_same_make_no_nan(loss, fill, size):
    score = torch.ones(size, requires_grad=True)
    value = loss.process_lcwa_scores(score, torch.full(size, fill))
    (grad,) = torch.autograd.grad(value, score)
    assert torch.isfinite(value) and torch.isfinite(grad).all()


def test_scores_that_are_all_excluded_cost_nothing_with_labels(loss):
    if isinstance(loss, AdversarialLoss):
        pytest.skip("a row without negatives counts as one of score 0")
    score = torch.full((B, E), -math.inf, requires_grad=True)
    value = loss.process_lcwa_scores(score, torch.zeros(B, E))
    assert value == 0 and (torch.autograd.grad(value, score)[0] == 0).all()


def test_a_temperature_of_zero_weighs_what_is_left_equally(scores):
    positive, negative, mask = scores
    loss = NSSALoss(margin=2.0, adversarial_temperature=0.0)
    cost = torch.nn.functional.softplus(2.0 + negative)
    rows = [cost[i, mask[i]].mean() if mask[i].any() else math.log1p(math.exp(2)) for i in range(B)]
    expected = torch.nn.functional.softplus(-2.0 - positive).mean() + sum(rows) / B
    assert_close(sampled(loss, positive, without(negative, mask)), 0.5 * expected)


# -- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_scores_is_that_of_their_values(loss, scores, labelled, dtype):
    positive, negative, mask = scores
    low = [x.to(dtype) for x in (positive, without(negative, mask), labelled[0])]
    found, expected = (
        (
            sampled(loss, p, n),
            loss.process_slcwa_scores(p, n[mask], batch_filter=mask),
            loss.process_lcwa_scores(x, labelled[1].to(x.dtype)),
        )
        for p, n, x in (low, [x.float() for x in low])
    )
    for one, other in zip(found, expected):
        assert one.dtype == torch.float32 and one == other


def test_half_scores_have_half_gradients(loss, scores):
    positive, negative, mask = scores
    cut = without(negative, mask).half().requires_grad_()
    (grad,) = torch.autograd.grad(sampled(loss, positive.half(), cut), cut)
    assert grad.dtype == torch.float16 and torch.isfinite(grad).all()


def test_huge_scores_have_a_finite_loss_and_gradient(loss):
    positive = torch.tensor([[1e4], [-1e4], [0.0]]).half().requires_grad_()
    negative = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [-1e4, -math.inf]]).half().requires_grad_()
    value = loss.process_slcwa_scores(positive, negative)
    assert torch.isfinite(value)
    for grad in torch.autograd.grad(value, (positive, negative)):
        assert torch.isfinite(grad).all()
    label = torch.tensor([[1, 0], [1, 0], [0, 1]])
    for options in smoothings(loss, loss.smooths_labels):
        score = negative.detach().float().clamp(min=-1e4).half().requires_grad_()
        value = loss.process_lcwa_scores(score, label, **options)
        (grad,) = torch.autograd.grad(value, score)
        assert torch.isfinite(value) and torch.isfinite(grad).all()


def test_a_probability_that_rounds_to_0_still_has_its_cost():
    for name in ("bceaftersigmoid", "bcewithlogits"):
        x = torch.tensor([[-200.0]], requires_grad=True)
        value = LOSSES[name]()(x, torch.ones(1, 1))
        assert value == 200.0 and torch.autograd.grad(value, x)[0] == -1.0
