"""PyKEEN's losses: what a weight does, and that no argument changes."""

from __future__ import annotations

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

from besskge_core.errors import NoSampleWeightSupportError
from besskge_core.loss import (
    LOSSES,
    AdversarialLoss,
    CrossEntropyLoss,
    MSELoss,
)
from besskge_core.loss.entries import Smoothing


def test_no_loss_changes_its_arguments(loss, scores, labelled):
    positive, negative, mask = scores
    arguments = (
        positive, negative, mask, without(negative, mask), *labelled, torch.rand(B).double()
    )  # fmt: skip
    copies = [x.clone() for x in arguments]
    _, _, _, cut, score, label, weight = arguments
    loss.process_slcwa_scores(positive, negative, batch_filter=mask, pos_weights=weight)
    sampled(loss, positive, cut, weight)
    for options in smoothings(loss, loss.smooths_labels):
        loss.process_lcwa_scores(score, label, weights=weight, **options)
    assert all(torch.equal(x, copy) for x, copy in zip(arguments, copies))


def test_weights_leave_positives_out_or_double_them(loss, scores):
    positive, negative, mask = scores
    weight, times = torch.tensor([1.0, 1.0, 0.0, 2.0, 2.0]), [0, 1, 3, 3, 4, 4]
    cut = without(negative, mask)
    found = sampled(loss, positive, cut, weight)
    assert_close(found, sampled(loss, positive[times], cut[times]))


def test_weights_leave_rows_of_labels_out_or_double_them(loss, labelled):
    score, label = labelled
    weight, times = torch.tensor([1.0, 1.0, 0.0, 2.0, 2.0]), [0, 1, 3, 3, 4, 4]
    if loss.mean_over_number:
        loss.reduction = "sum"
    found = loss.process_lcwa_scores(score, label, weights=weight)
    assert_close(found, loss.process_lcwa_scores(score[times], label[times]))
    assert_close(found, loss.process_lcwa_scores(score, label, weights=weight[:, None]))


def test_weights_of_entries_leave_negatives_out_or_double_them(loss, scores):
    positive, negative, _ = scores
    weight, times = torch.tensor([1.0, 0.0, 2.0, 1.0]).expand(B, N), [0, 2, 2, 3]
    loss.reduction = "sum"
    if isinstance(loss, CrossEntropyLoss):
        with pytest.raises(NoSampleWeightSupportError, match="give pos_weights alone"):
            loss.process_slcwa_scores(positive, negative, neg_weights=weight)
    elif isinstance(loss, AdversarialLoss):
        share = (loss.inverse_softmax_temperature * negative).softmax(1)
        p, n = loss.cost(positive, True, Smoothing()), loss.cost(negative, False, Smoothing())
        found = loss.process_slcwa_scores(positive, negative, neg_weights=weight)
        assert_close(found, p.sum() + (share * weight * n).sum())
    else:
        found = loss.process_slcwa_scores(positive, negative, neg_weights=weight)
        assert_close(found, loss.process_slcwa_scores(positive, negative[:, times]))


def test_filtered_weights_come_as_the_scores_do(scores):
    positive, negative, mask = scores
    weight = torch.arange(1.0, B * N + 1).view(B, N).double()
    for name in NAMES:
        loss = LOSSES[name]()
        if isinstance(loss, CrossEntropyLoss):
            continue
        sparse = loss.process_slcwa_scores(
            positive, negative[mask], batch_filter=mask, neg_weights=weight[mask]
        )
        dense = loss.process_slcwa_scores(positive, negative, batch_filter=mask, neg_weights=weight)
        assert_close(sparse, dense)


@pytest.mark.parametrize("name", ["bcewithlogits", "mse"])
def test_the_weighted_mean_of_a_batch_is_over_the_weights_but_for_bce_as_in_torch(labelled, name):
    score, label = labelled
    weight = torch.arange(1.0, B * E + 1).view(B, E).double()
    loss = LOSSES[name]()
    cost = loss.cost(score, label) * weight
    size = B * E if name == "bcewithlogits" else weight.sum()
    assert_close(loss.process_lcwa_scores(score, label, weights=weight), cost.sum() / size)
    rows = torch.arange(1.0, B + 1)
    entries = torch.cat([loss.cost(score[:, :1], 1.0), loss.cost(score[:, 1:], 0.0)], 1)
    found = loss.sampled(score[:, 0], score[:, 1:], rows)
    assert_close(found, (entries.mean(1) * rows).sum() / rows.sum(), check_dtype=False)


def test_weights_of_zero_make_zero_at_any_scale(loss, scores):
    positive, negative, _ = scores
    leaves = positive.float().requires_grad_(), negative.float().requires_grad_()
    value = 1e10 * sampled(loss, *leaves, torch.zeros(B))
    assert value == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("shape", [(), (1,), (B,)])
def test_a_weight_is_one_a_positive_or_one_for_all(loss, scores, shape):
    positive, negative, _ = scores
    factor = 1.0 if loss.reduction == "mean" else 2.5
    found = sampled(loss, positive, negative, torch.full(shape, 2.5))
    assert_close(found, factor * sampled(loss, positive, negative))


def test_better_positives_and_worse_negatives_cost_less(loss, scores):
    if isinstance(loss, MSELoss):
        pytest.skip("a score beyond its label costs, too")
    positive, negative, _ = scores
    loss.inverse_softmax_temperature = 0.0  # else worse negatives weigh less
    cost = sampled(loss, positive, negative)
    assert sampled(loss, positive + 0.2, negative) < cost
    assert cost < sampled(loss, positive, negative + 0.2)
