"""What is tested of each of PyKEEN's losses: which options, with what scores and labels."""

from __future__ import annotations

import math

import pytest
import torch

from besskge_core.loss import labelled_losses

B, N, E = 5, 4, 7
NAMES = labelled_losses()
VARIANTS = {
    "adversarialbce": [dict(inverse_softmax_temperature=0.7)],
    "bcewithlogits": [{}, dict(pos_weight=3.0)],
    "doublemargin": [{}, dict(positive_margin=0.5, offset=0.8, margin_activation="soft")],
    "focal": [{}, dict(gamma=0.5, alpha=0.25)],
    "infonce": [{}, dict(margin=0.3, log_adversarial_temperature=0.0)],
    "nssa": [dict(margin=2.0), dict(margin=2.0, adversarial_temperature=0.0)],
}


def options_of(name):
    for options in VARIANTS.get(name, [{}]):
        for reduction in ("mean", "sum"):
            yield dict(options, reduction=reduction)


def all_losses():
    for name in NAMES:
        for options in options_of(name):
            label = "-".join([name, *map(str, options.values())])
            yield pytest.param((name, options), id=label)


def random_scores(generator):
    """Positive (B, 1), negative (B, N), and a mask with a full and an empty row."""
    positive = torch.randn(B, 1, generator=generator, dtype=torch.float64)
    negative = torch.randn(B, N, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, N, generator=generator) < 0.6
    mask[0], mask[1] = True, False
    return positive, negative, mask


def random_labelled(generator):
    """Scores (B, E) and labels, of which row 0 has none and row 1 nothing else."""
    score = torch.randn(B, E, generator=generator, dtype=torch.float64)
    label = (torch.rand(B, E, generator=generator) < 0.4).double()
    label[0], label[1] = 0.0, 1.0
    return score, label


def without(negative, mask):
    return negative.masked_fill(~mask, -math.inf)


def sampled(loss, positive, negative, weight=None):
    weight = torch.ones((), dtype=positive.dtype) if weight is None else weight
    return loss.sampled(positive[:, 0], negative, weight)


def smoothings(loss, supported):
    """No smoothing, and some where it is supported."""
    yield {}
    if supported:
        yield dict(label_smoothing=0.1, num_entities=E)
