"""The step as one operation: where all shards are here, rows need not travel to be scored.

Instead of rows, their numbers are exchanged; the loss is then computed straight from the tables.
Whether it is so depends on the module and on which columns a batch has, not on what is in them.

Axes as in the package's docstring; G: groups of positives that have candidates of their own, one
for each shard, or one in all; K: rows that a group reads, heads, tails, candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

import torch
from torch import Tensor

from besskge_core.bess.layout import MicroBatch
from besskge_core.exchange import LocalExchange
from besskge_core.loss.rules import Rule, rule_of
from besskge_core.ops.rows import RowPlan
from besskge_core.ops.sampled_loss import Pairing, sampled_loss, serves
from besskge_core.scoring.comparators import widened
from besskge_core.scoring.native_form import NativeForm, native_form, relation_moves

if TYPE_CHECKING:
    from besskge_core.bess.base import BessKGE


class Fused(NamedTuple):
    """What one operation computes.

    Attributes:
        form: how is scored.
        rule: the loss.
        n_group: G.
        n_candidate: candidates of all positives of a group, or of each.
        per_triple: candidates are those of each positive.
    """

    form: NativeForm
    rule: Rule
    n_group: int
    n_candidate: int
    per_triple: bool


def fused(module: BessKGE, batch: MicroBatch) -> Optional[Fused]:
    """How a micro-batch is computed in one operation, or None: it cannot be."""
    sampler = module.negative_sampler
    if not (
        module._pools_lists is not None
        and module.loss_fn is not None
        and not module.return_scores
        and module.evaluation is None
        and module.regularizer is None
        and not module.augment_negative
        and sampler.known is None
        and not sampler.given
        and sampler.corruption_scheme in ("h", "t")
        and type(module.exchange) is LocalExchange
        and batch.negative_mask is None
        and batch.hub is None
        and serves(module.entity_embedding)
    ):
        return None
    form = native_form(module.score_fn)
    if form is None:
        return None
    n_shard, (n_block, n_negative) = len(batch.head), batch.negative.shape[2:]
    per_triple = not module._shares_candidates
    n_group = 1 if per_triple or module._pools_lists else n_shard
    n_candidate = n_shard * n_negative
    if not per_triple:
        n_candidate *= n_block * (n_shard // n_group)
    rule = rule_of(module.loss_fn, n_candidate)
    return None if rule is None else Fused(form, rule, n_group, n_candidate, per_triple)


def rows_read(module: BessKGE, how: Fused, batch: MicroBatch) -> Tensor:
    """int64 (G, K): the rows of all tables, laid end to end, that each group reads, in order."""
    n_shard, n_row = module.entity_embedding.shape[:2]
    exchange, parts = module.exchange, (batch.head, batch.tail, batch.negative)
    if n_shard == 1:  # nobody to exchange with; (1, 1, 1 or B, N) is in order
        return torch.cat([x.reshape(1, -1) for x in parts], dim=1).long()
    first = n_row * torch.arange(n_shard, device=batch.head.device).view(-1, 1, 1)
    tail = exchange.all_to_all(batch.tail + first)
    negative = batch.negative + first.unsqueeze(-1)
    if not module.negative_sampler.local_sampling:
        negative = exchange.all_to_all(negative)
    if how.per_triple:  # (L, B, S, N), of all peers for each positive
        negative = negative.transpose(1, 2)
    parts = (batch.head + first, tail, negative)
    return torch.cat([x.reshape(how.n_group, -1) for x in parts], dim=1).long()


def fused_loss(
    module: BessKGE,
    how: Fused,
    batch: MicroBatch,
    weight: Optional[Tensor] = None,
    rows: Optional[Tensor] = None,
    plan: Optional[RowPlan] = None,
) -> Tensor:
    """The mean over hosted shards of their losses, ().

    Args:
        module: whose loss it is.
        how: see :func:`fused`.
        batch: of all shards.
        weight: (L, B) or (L, 1), of the positives; None: 1 each.
        rows: :func:`rows_read`, laid end to end, if it is known.
        plan: of these rows, if it is known.
    """
    n_shard, n_positive = len(batch.head), batch.relation[0].numel()
    scale = how.rule.loss.scale / n_shard
    if weight is None:
        scale = scale / n_positive if how.rule.is_mean else scale
    else:
        weight = widened(weight).expand(n_shard, n_positive)
        if how.rule.is_mean:
            size = weight.sum(-1, keepdim=True)
            weight = weight / torch.where(size > 0.0, size, torch.ones_like(size))
        weight = weight.reshape(how.n_group, -1)
    index = rows_read(module, how, batch) if rows is None else rows.view(how.n_group, -1)
    heads = module.negative_sampler.corruption_scheme == "h"
    return sampled_loss(
        module.entity_embedding,
        index,
        relation_moves(module.score_fn),
        batch.relation.view(how.n_group, -1),
        Pairing(how.n_candidate, how.per_triple, heads, *how.form),
        how.rule.loss._replace(scale=scale),
        weight,
        plan,
    )
