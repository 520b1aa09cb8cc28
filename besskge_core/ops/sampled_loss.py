"""The loss of positives against sampled candidates, computed together with the scores.

Rows are read where they lie, in the table; a query with a candidate is one number on the way to the
loss and one on the way back. Gradients are found with the loss, so that a step has one walk over
the rows.

Axes:
    L: hosted shard      E: rows of a shard's table      D: width of a row
    G: groups of positives that have candidates of their own
    B: positives         N: candidates                   M: rows of the relation table
    K: rows that a group reads: heads (B), tails (B), and candidates, N in all or of each positive
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.ops.pairwise import compared
from besskge_core.ops.rows import RowPlan, plan_rows, rows_of_sums, sparse_gradient
from besskge_core.shapes import match_shapes

#: What a relation r makes of the known entity x: x + r; x r; x r over the complex numbers, real
#: parts first. Where heads are asked for, what undoes it: x - r, x r, x conj(r).
MOVES = ("translation", "scaling", "complex_scaling")

ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "softplus": F.softplus,
    "identity": lambda x: x,
}


class LossRule(NamedTuple):
    """A loss of one positive score p and its N negative scores n, times `scale`.

    With w = 1 / N, or if `adversarial` softmax(temperature n) without gradient, g the activation (one
    of :data:`ACTIVATIONS`), and sp the softplus:

        "pointwise" positive_factor g(positive_margin - p) + negative_factor sum w g(n + margin)
        "ranking"   sum w g(n - p + margin)
        "softmax"   sp(log sum e^(n / temperature) + offset - (p - margin) / temperature)
    """

    kind: str
    activation: str = "softplus"
    adversarial: bool = False
    margin: float = 0.0
    positive_margin: float = 0.0
    temperature: float = 1.0
    positive_factor: float = 1.0
    negative_factor: float = 1.0
    offset: float = 0.0
    scale: float = 1.0


class Pairing(NamedTuple):
    """What is scored.

    Attributes:
        n_candidate: N.
        per_triple: candidates are N of each positive, not N of all.
        heads: heads are asked for, not tails.
        move: one of :data:`MOVES`.
        comparison: see :mod:`besskge_core.ops.pairwise`.
    """

    n_candidate: int
    per_triple: bool
    heads: bool
    move: str
    comparison: str


def serves(table: Tensor) -> bool:
    """Whether the loss is native for this table; on a GPU it may be in bfloat16."""
    dtypes = (torch.float32, torch.bfloat16) if table.is_cuda else (torch.float32,)
    return native.serves("sampled_loss", table, *dtypes)


def rounds_queries(comparison: str, per_triple: bool) -> bool:
    """Whether queries are rounded as the table is, for matrix products, or as these would be."""
    return comparison == "dot" or (comparison == "l2" and not per_triple)


def sampled_loss(
    table: Tensor,
    index: Tensor,
    relation: Tensor,
    relation_id: Tensor,
    pairing: Pairing,
    rule: LossRule,
    weight: Optional[Tensor] = None,
    plan: Optional[RowPlan] = None,
) -> Tensor:
    """The sum of the losses of all positives.

    Args:
        table: (L, E, D), floating; rows are numbered from the first table's first to the last's
            last. Half precision is computed in float32; but its inner products, and L2 distances
            of shared candidates, which may be made of them, are of queries, and gradients through
            them may be of slopes, that are rounded as the table is.
        index: integer (G, K), the rows that each group reads.
        relation: (M, D).
        relation_id: integer (G, B).
        pairing: what is scored.
        rule: the loss.
        weight: (G, B), of the positives.
        plan: of all rows that are read; made here where it is needed and missing.

    Returns:
        (), float32 or float64. The gradient of `table` is sparse: one entry for each row that is
        read, in order; or with candidates of each triple, one for each row of the plan, where these
        are not as many. Gradients have the dtype of what they are of.

    Raises:
        ShapeError: rows, relations or weights that do not fit together.
        ConfigError: candidates of each triple in more than one group.
    """
    match_shapes(
        table=(table, "L E D"), index=(index, "G K"), relation=(relation, "M D"),
        relation_id=(relation_id, "G B"),
        **({} if weight is None else {"weight": (weight, "G B")}),
    )  # fmt: skip
    n_group, n_positive = relation_id.shape
    n_read = 2 * n_positive + pairing.n_candidate * (n_positive if pairing.per_triple else 1)
    if index.shape[1] != n_read or pairing.n_candidate < 1:
        raise ShapeError(
            f"index has shape {tuple(index.shape)}, expected (G, {n_read}): heads and tails of"
            f" {n_positive} triples and {pairing.n_candidate} candidates"
            f"{' of each' if pairing.per_triple else ''}"
        )
    if pairing.per_triple and n_group != 1:
        raise ConfigError(f"candidates of each triple are one group, got {n_group}")
    if not serves(table):
        return reference(table, index, relation, relation_id, pairing, rule, weight)
    wanted = torch.is_grad_enabled() and (table.requires_grad or relation.requires_grad)
    if not (wanted and pairing.per_triple):
        plan = None
    elif plan is None:
        plan = plan_rows(index[0], table.shape[:2].numel())
    out: Tensor = _SampledLoss.apply(
        table, relation, index, relation_id, pairing, rule, weight, plan, wanted
    )
    return out


class _SampledLoss(torch.autograd.Function):
    """Gradients are found with the loss, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, relation: Tensor, index: Tensor, relation_id: Tensor,
        pairing: Pairing, rule: LossRule, weight: Optional[Tensor], plan: Optional[RowPlan],
        wanted: bool,
    ) -> Tensor:  # fmt: skip
        flat = table.flatten(end_dim=1)
        weights = [None] * len(index) if weight is None else weight
        found = [
            torch.ops.besskge.sampled_loss(
                flat, rows, relation, ids, of_group, *pairing, *rule[:3], rule[3:9], rule.scale,
                wanted, *(plan or (None, None, None)),
            )
            for rows, ids, of_group in zip(index, relation_id, weights)
        ]  # fmt: skip
        if len(found) == 1:
            ((loss, of_rows, of_relations),) = found
        else:
            losses, parts, relations = zip(*found)
            loss, of_relations = torch.stack(losses).sum(), torch.stack(relations).sum(0)
            of_rows = torch.cat(parts)
        entries = index.reshape(-1)
        if plan is not None and len(plan.unique_rows) != len(plan.order):
            entries = rows_of_sums(plan, len(flat))
        elif plan is not None and wanted:
            # As many distinct rows as look-ups: who updates would take them for look-ups.
            of_rows = torch.empty_like(of_rows).index_copy_(0, plan.order, of_rows)
        ctx.found = of_rows, of_relations, entries
        ctx.shape, ctx.dtypes = table.shape, (table.dtype, relation.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        found, ctx.found = ctx.found, None
        if found is None:
            raise RuntimeError("the sampled loss has one backward pass, this is another")
        rows, relations, entry = found
        rows, relations = (_times(x, grad, to) for x, to in zip((rows, relations), ctx.dtypes))
        return (sparse_gradient(entry, rows, ctx.shape), relations, *[None] * 7)


def _times(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The product in a dtype, by one pass; in the place of x, if it has the dtype."""
    if factor.is_cpu and float(factor) == 1.0:  # to look at it on a GPU would wait for that
        return x.to(dtype)
    return torch.mul(x, factor, out=x if x.dtype == dtype else torch.empty_like(x, dtype=dtype))


def reference(
    table: Tensor,
    index: Tensor,
    relation: Tensor,
    relation_id: Tensor,
    pairing: Pairing,
    rule: LossRule,
    weight: Optional[Tensor] = None,
) -> Tensor:
    """The meaning of :func:`sampled_loss`, in plain torch; the gradient of `table` is dense."""
    n, flat = relation_id.shape[1], table.flatten(end_dim=1)
    wide = torch.promote_types(table.dtype, torch.float32)
    relation = relation.to(wide)
    total = flat.new_zeros((), dtype=wide)
    for i, (rows_of_group, ids) in enumerate(zip(index, relation_id)):
        rows = flat[rows_of_group.long()].to(wide)
        head, tail, candidate = rows[:n], rows[n : 2 * n], rows[2 * n :]
        known, answer = (tail, head) if pairing.heads else (head, tail)
        query = _moved(known, relation[ids.long()], pairing.move, pairing.heads)
        if rounds_queries(pairing.comparison, pairing.per_triple) and table.dtype != wide:
            query = query + (query.to(table.dtype).to(wide) - query).detach()
        lists = (
            candidate.view(n, pairing.n_candidate, rows.shape[-1])
            if pairing.per_triple
            else candidate
        )
        positive = compared(query, answer, pairing.comparison)
        negative = compared(query.unsqueeze(1), lists, pairing.comparison)
        cost = _cost(positive, negative, rule)
        total = total + (cost if weight is None else cost * weight[i].to(cost.dtype)).sum()
    return rule.scale * total


def _moved(x: Tensor, r: Tensor, move: str, heads: bool) -> Tensor:
    """x (B, D), r (B, D) -> (B, D)."""
    if move == "translation":
        return x - r if heads else x + r
    if move == "scaling":
        return x * r
    (a, b), (c, d) = x.chunk(2, -1), r.chunk(2, -1)
    if heads:
        d = -d
    return torch.cat([a * c - b * d, a * d + b * c], -1)


def _cost(p: Tensor, n: Tensor, rule: LossRule) -> Tensor:
    """p (B,), n (B, N) -> (B,)."""
    if rule.kind == "softmax":
        total = (n / rule.temperature).logsumexp(-1) + rule.offset
        return F.softplus(total - (p - rule.margin) / rule.temperature)
    w = torch.full_like(n, 1.0 / n.shape[-1])
    if rule.adversarial:
        w = (rule.temperature * n.detach()).softmax(-1)
    activation = ACTIVATIONS[rule.activation]
    if rule.kind == "ranking":
        return (w * activation(n - p.unsqueeze(-1) + rule.margin)).sum(-1)
    negative = (w * activation(n + rule.margin)).sum(-1)
    positive = activation(rule.positive_margin - p)
    return rule.positive_factor * positive + rule.negative_factor * negative


@register_fake("sampled_loss")
def _(
    table: Tensor, index: Tensor, relation: Tensor, relation_id: Tensor, weight: Optional[Tensor],
    n_candidate: int, per_triple: bool, heads: bool, move: str, comparison: str, loss: str,
    activation: str, adversarial: bool, numbers: Any, scale: float, wanted: bool,
    unique_rows: Optional[Tensor], run_offsets: Optional[Tensor], order: Optional[Tensor],
) -> Tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    entries = index if unique_rows is None else unique_rows
    n_row, n_relation = (len(entries), len(relation)) if wanted else (0, 0)
    sizes = (), (n_row, table.shape[1]), (n_relation, table.shape[1])
    loss_of, rows, relations = (table.new_empty(size, dtype=torch.float32) for size in sizes)
    return loss_of, rows, relations
