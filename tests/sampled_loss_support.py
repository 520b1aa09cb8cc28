"""Losses, and cases of what they read: shared by the tests of the native operation."""

from __future__ import annotations

import torch
from pairs_support import rows

from besskge_core.ops import LossRule
from besskge_core.ops.sampled_loss import ACTIVATIONS

ODD = dict(margin=0.75, positive_margin=-1.5, positive_factor=0.7, negative_factor=1.9, scale=0.3)
RULES = [
    LossRule(kind, activation, adversarial, temperature=0.4, **ODD)
    for kind in ("pointwise", "ranking")
    for activation in ACTIVATIONS
    for adversarial in (False, True)
] + [LossRule("softmax", offset=0.6, temperature=2.5, **ODD), LossRule("softmax")]


def case(n_positive=7, n_candidate=11, layout=(False, 1), width=10, n_host=2, n_row=30, seed=0):
    """table, index, relation, relation_id, and weights."""
    per_triple, n_group = layout
    generator = torch.Generator().manual_seed(seed)
    n_read = 2 * n_positive + n_candidate * (n_positive if per_triple else 1)
    table, relation = rows(n_host * n_row, width, seed), rows(5, width, seed + 1)
    index = torch.randint(n_host * n_row, (n_group, n_read), generator=generator)
    relation_id = torch.randint(5, (n_group, n_positive), generator=generator)
    weight = torch.rand(n_group, n_positive, generator=generator)
    # Small enough that losses are not all in their flat or straight parts.
    return table.view(n_host, n_row, width) / 4, index, relation / 4, relation_id, weight
