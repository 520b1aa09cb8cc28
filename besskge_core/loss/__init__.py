"""Losses: what the scores of a positive and of its negatives cost.

`sampled` has those of BESS-KGE, weighted sums over the positives of a micro-batch. `pointwise`,
`double_margin`, `pairwise` and `setwise` have those that PyKEEN users know, put together from what
is in `entries` by the base class in `labelled`; `base` is what all have in common.

Two losses are called margin ranking: :class:`MarginRankingLoss` is that of BESS-KGE;
:class:`PairwiseMarginLoss` is PyKEEN's, which :mod:`besskge_core.loss.pairwise` also knows as
`MarginRankingLoss`.
"""

from __future__ import annotations

from besskge_core.loss.base import LOSSES, BaseLossFunction, Loss
from besskge_core.loss.double_margin import MARGIN_ACTIVATIONS, DoubleMarginLoss
from besskge_core.loss.labelled import LabelledLoss, UnknownOptionError, labelled_losses
from besskge_core.loss.pairwise import (
    PairwiseLogisticLoss,
    PairwiseLoss,
    PairwiseMarginLoss,
    SoftMarginRankingLoss,
)
from besskge_core.loss.pointwise import (
    BCEAfterSigmoidLoss,
    BCEWithLogitsLoss,
    FocalLoss,
    MSELoss,
    PointwiseHingeLoss,
    PointwiseLoss,
    SoftplusLoss,
    SoftPointwiseHingeLoss,
)
from besskge_core.loss.sampled import (
    ACTIVATIONS,
    LogSigmoidLoss,
    MarginBasedLossFunction,
    MarginRankingLoss,
    SampledSoftmaxCrossEntropyLoss,
)
from besskge_core.loss.setwise import (
    AdversarialBCEWithLogitsLoss,
    AdversarialLoss,
    CrossEntropyLoss,
    InfoNCELoss,
    NSSALoss,
)

__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "MARGIN_ACTIVATIONS",
    "AdversarialBCEWithLogitsLoss",
    "AdversarialLoss",
    "BCEAfterSigmoidLoss",
    "BCEWithLogitsLoss",
    "BaseLossFunction",
    "CrossEntropyLoss",
    "DoubleMarginLoss",
    "FocalLoss",
    "InfoNCELoss",
    "LabelledLoss",
    "LogSigmoidLoss",
    "Loss",
    "MSELoss",
    "MarginBasedLossFunction",
    "MarginRankingLoss",
    "NSSALoss",
    "PairwiseLogisticLoss",
    "PairwiseLoss",
    "PairwiseMarginLoss",
    "PointwiseHingeLoss",
    "PointwiseLoss",
    "SampledSoftmaxCrossEntropyLoss",
    "SoftMarginRankingLoss",
    "SoftPointwiseHingeLoss",
    "SoftplusLoss",
    "UnknownOptionError",
    "labelled_losses",
]
