"""PyKEEN's losses: what they refuse, and what they say then."""

from __future__ import annotations

import math

import pytest
import torch
from loss_support import NAMES
from torch.testing import assert_close

from besskge_core.errors import (
    BessError,
    ConfigError,
    NoSampleWeightSupportError,
    ShapeError,
    UnsupportedLabelSmoothingError,
)
from besskge_core.loss import (
    LOSSES,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    DoubleMarginLoss,
    FocalLoss,
    InfoNCELoss,
    MSELoss,
    PairwiseLogisticLoss,
)

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: MSELoss("none"), KeyError, r"^unknown reduction 'none'; expected .'mean', 'sum'"),
        (lambda: MSELoss("none"), ConfigError, "unknown reduction 'none'"),
        (lambda: InfoNCELoss(-1e-9), ConfigError, "margin must be at least 0, got -1e-09"),
        (lambda: InfoNCELoss(math.nan), ConfigError, "margin must be at least 0, got nan"),
        (lambda: FocalLoss(gamma=-1.0), ConfigError, "gamma must be at least 0, got -1.0"),
        (lambda: FocalLoss(alpha=1.0), ConfigError, r"alpha must be in \(0, 1\), or None, got 1"),
        (lambda: DoubleMarginLoss(positive_negative_balance=math.nan), ConfigError,
         "positive_negative_balance must be 0 to 1, got nan"),
        (lambda: DoubleMarginLoss(margin_activation="tanh"), KeyError,
         r"unknown margin activation 'tanh'; expected a module or one of \['hard'"),
        (lambda: DoubleMarginLoss(offset=1.0), ConfigError,
         "give two of .* or none, but got None, None and 1.0"),
        (lambda: DoubleMarginLoss(positive_margin=1.0, offset=-0.5), ConfigError,
         "offset must be at least 0, got -0.5"),
        (lambda: DoubleMarginLoss(positive_margin=0.0, negative_margin=1.0), ConfigError,
         "positive_margin must be at least negative_margin, got 0.0 and 1.0"),
    ],
)  # fmt: skip
def test_a_constructor_refuses_what_cannot_work(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_smoothing_is_refused_where_there_are_no_labels(name):
    loss, both = LOSSES[name](), dict(label_smoothing=0.1, num_entities=9)
    ways = [
        (loss.smooths_samples, lambda **x: loss.process_slcwa_scores(ONES[:, :1], ONES, **x)),
        (loss.smooths_labels, lambda **x: loss.process_lcwa_scores(ONES, ONES, **x)),
    ]
    for supported, process in ways:
        assert process(label_smoothing=0.0) == process(label_smoothing=None) == process()
        if supported:
            assert torch.isfinite(process(**both))
            continue
        message = f"^{type(loss).__name__} does not support label smoothing"
        with pytest.raises(UnsupportedLabelSmoothingError, match=message) as refused:
            process(**both)
        assert isinstance(refused.value, (BessError, RuntimeError))


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_smoothing_is_a_share(epsilon):
    for loss in (MSELoss(), CrossEntropyLoss()):
        with pytest.raises(ConfigError, match=f"between 0 and 1, got {epsilon}"):
            loss.process_lcwa_scores(ONES, ONES, epsilon, 9)


@pytest.mark.parametrize("n_entity", [None, 1])
def test_smoothing_of_entries_needs_another_class(n_entity):
    with pytest.raises(ConfigError, match=f"needs num_entities, at least 2, but got {n_entity}"):
        BCEWithLogitsLoss().process_slcwa_scores(ONES[:, 0], ONES, 0.1, num_entities=n_entity)


def test_weights_of_negatives_are_refused_where_they_have_no_place():
    with pytest.raises(NoSampleWeightSupportError, match="InfoNCELoss has one cost") as refused:
        InfoNCELoss().process_slcwa_scores(ONES[:, 0], ONES, neg_weights=ONES)
    assert isinstance(refused.value, RuntimeError) and isinstance(refused.value, BessError)


def test_weights_of_positives_are_those_of_rows():
    positive, negative = torch.tensor([1.0, -1.0]), torch.zeros(2, 3)
    loss, weight = CrossEntropyLoss(), torch.tensor([3.0, 1.0])
    rows = [loss.process_slcwa_scores(positive[i : i + 1], negative[:1]) for i in range(2)]
    found = loss.process_slcwa_scores(positive, negative, pos_weights=weight)
    assert_close(found, (3.0 * rows[0] + rows[1]) / 4.0)


KEEPS_4 = torch.tensor([[True, True, False], [True, True, False]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(negative_scores=torch.ones(6)),
         r"negative_scores has shape \(6,\), which needs a batch_filter .* there is none"),
        (dict(negative_scores=torch.ones(5), batch_filter=KEEPS_4), "it keeps 4"),
        (dict(negative_scores=ONES, batch_filter=KEEPS_4[:, :2]),
         r"batch_filter has shape \(2, 2\), expected \(B, N\) with B=2, N=3"),
        (dict(negative_scores=torch.ones(3, 3)), r"negative_scores has shape \(3, 3\)"),
        (dict(negative_scores=ONES, positive_scores=ONES),
         r"positive_scores has shape \(2, 3\), expected \(B, 1\)"),
        (dict(negative_scores=ONES, pos_weights=torch.ones(3)),
         r"pos_weights has shape \(3, 1\), expected \(B, 1\) with B=2"),
        (dict(negative_scores=ONES, neg_weights=torch.ones(2, 1)),
         r"neg_weights has shape \(2, 1\), expected \(B, N\)"),
    ],
)  # fmt: skip
def test_samples_of_other_shapes_are_refused(arguments, message):
    with pytest.raises(ShapeError, match=message):
        PairwiseLogisticLoss().process_slcwa_scores(
            **dict(dict(positive_scores=ONES[:, :1]), **arguments)
        )


def test_labels_and_weights_of_other_shapes_are_refused():
    loss = MSELoss()
    with pytest.raises(ShapeError, match=r"labels has shape \(2, 2\), expected \(B, E\)"):
        loss.process_lcwa_scores(ONES, ONES[:, :2])
    with pytest.raises(ShapeError, match=r"labels has shape \(2,\), expected \(B, E\)"):
        loss.process_lcwa_scores(ONES, torch.ones(2))
    with pytest.raises(ShapeError, match=r"weights has shape \(3, 1\), expected \(B, 1\) with B=2"):
        loss.process_lcwa_scores(ONES, ONES, weights=torch.ones(3))
    with pytest.raises(ShapeError, match=r"triple_weight has shape \(3, 1\)"):
        loss.sampled(torch.ones(2), ONES, torch.ones(3))
    with pytest.raises(ShapeError, match=r"negative_score has shape \(3,\), expected \(B, N\)"):
        loss.sampled(torch.ones(2), torch.ones(3), torch.ones(()))
