"""The loss of positives against candidates that they share, with its gradients, in one walk.

Queries are made and their answers scored; candidates are scored in tiles; the loss makes slopes of
the scores; and these give the gradients. What is kept of a pair is one number, never a row, and
nothing where tensor cores compute the scores again.

Rows of bfloat16 are widened where they are read, and all else is float32, but for inner products,
and L2 distances by them: queries and slopes are rounded for them, so that tensor cores multiply,
and sum in float32.

Axes:
    R: rows of the tables      M: rows of the relation table      D: width of a row
    B: positives               N: candidates                      K: rows that are read, 2 B + N
"""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from besskge_core.ops.gpu.gather import gather
from besskge_core.ops.gpu.language import n_warps, power_of_two
from besskge_core.ops.gpu.losses import Formula, losses
from besskge_core.ops.gpu.pairwise import distance_gradient, negated_distances
from besskge_core.ops.gpu.queries import query_gradient_kernel, query_kernel
from besskge_core.ops.gpu.segments import sum_runs
from besskge_core.ops.gpu.tile_losses import Gradients, squares_of, tile_losses
from besskge_core.ops.gpu.tile_products import recomputes


def sampled_loss(
    table: Tensor,
    index: Tensor,
    relation: Tensor,
    relation_id: Tensor,
    weight: Optional[Tensor],
    n_candidate: int,
    per_triple: bool,
    heads: bool,
    move: str,
    comparison: str,
    loss: str,
    activation: str,
    adversarial: bool,
    numbers: Sequence[float],
    scale: float,
    wanted: bool,
    unique_rows: Optional[Tensor],
    run_offsets: Optional[Tensor],
    order: Optional[Tensor],
) -> Tuple[Tensor, Tensor, Tensor]:
    """The loss (), and the gradients of the rows read (K, D) and of relations (M, D), in float32.

    See the operation's Python face; of `numbers`, the rule's from margin to offset. Candidates of
    each positive are not for this device.
    """
    if per_triple:
        raise NotImplementedError("sampled_loss on a GPU has candidates that all positives share")
    _check_width(table.shape[1], move, comparison)
    n_positive, width = len(relation_id), table.shape[1]
    rows = gather(table.unsqueeze(0), index.unsqueeze(0))[0]
    head, tail, candidate = rows.split([n_positive, n_positive, n_candidate])
    known, answer = (tail, head) if heads else (head, tail)
    relation, relation_id = relation.contiguous(), relation_id.contiguous()
    in_products = takes_products(comparison, rows.dtype)
    query = torch.empty_like(known, dtype=rows.dtype if in_products else torch.float32)
    positive = rows.new_empty(n_positive, dtype=torch.float32)
    form = dict(
        MOVE=move, HEADS=heads, COMPARISON=comparison, TORUS=comparison.startswith("torus"),
        H=power_of_two((width + 1) // 2), num_warps=n_warps(width),
    )  # fmt: skip
    triples = known, answer, relation, relation_id, query, positive
    if n_positive:
        query_kernel[(n_positive,)](*triples, width, **form)
    formula = Formula(loss, activation, adversarial, numbers, scale, weight)
    score_all = _products if in_products else _distances
    found = score_all(query, candidate, positive, formula, comparison, wanted)
    if not wanted:
        return found.cost.sum(), positive.new_empty((0, width)), positive.new_empty((0, width))
    of_rows, of_relation = positive.new_empty(rows.shape), positive.new_empty(query.shape)
    of_head, of_tail, of_candidate = of_rows.split([n_positive, n_positive, n_candidate])
    of_candidate.copy_(found.of_candidate)
    of_known, of_answer = (of_tail, of_head) if heads else (of_head, of_tail)
    if n_positive:
        query_gradient_kernel[(n_positive,)](
            *triples, found.of_positive, found.of_query, of_known, of_answer, of_relation, width,
            **form,
        )  # fmt: skip
    return found.cost.sum(), of_rows, _sum_by(relation_id, of_relation, len(relation))


def takes_products(comparison: str, dtype: torch.dtype) -> bool:
    """Whether rows are compared by matrix products: L2 distances are where rows are halves anyway."""
    return comparison == "dot" or (comparison == "l2" and dtype != torch.float32)


def _check_width(width: int, move: str, comparison: str) -> None:
    if width % 2 and (move == "complex_scaling" or comparison == "modulus"):
        raise ValueError(
            f"sampled_loss expects rows of complex numbers, got a width of {width}, which is odd"
        )


def _products(
    query: Tensor,
    candidate: Tensor,
    positive: Tensor,
    formula: Formula,
    comparison: str,
    wanted: bool,
) -> Gradients:
    """Losses and gradients by inner products, whose scores are stored if rows are wide."""
    squares = (squares_of(query), squares_of(candidate)) if comparison == "l2" else None
    if len(query) and recomputes(query.shape[1], query.dtype):
        return tile_losses(query, candidate, positive, formula, squares, wanted)
    scores = _product(query, candidate.t())
    found = losses(scores, positive, formula, wanted, comparison == "l2", squares, query.dtype)
    if not wanted:
        return Gradients(*found[:2], None, None)
    of_query, of_candidate = (
        _product(slope, other) if squares is None else _from_products(slope, own, other)
        for slope, own, other in (
            (found.slope, query, candidate),
            (found.slope.t(), candidate, query),
        )
    )
    return Gradients(*found[:2], of_query, of_candidate)


def _from_products(slope: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """The gradient of L2 distances, from slopes (own, other) that are divided by the scores."""
    return slope.sum(1, keepdim=True, dtype=torch.float32) * own - _product(slope, other)


def _distances(
    query: Tensor,
    candidate: Tensor,
    positive: Tensor,
    formula: Formula,
    comparison: str,
    wanted: bool,
) -> Gradients:
    """Losses and gradients by sums over columns."""
    candidate = candidate.float()
    scores = negated_distances(query, candidate, comparison, None)
    found = losses(scores, positive, formula, wanted, comparison.endswith("l2"))
    if not wanted:
        return Gradients(*found[:2], None, None)
    of_query, of_candidate = (
        distance_gradient(found.slope, query, candidate, comparison, None, side)[0]
        for side in (True, False)
    )
    return Gradients(*found[:2], of_query.contiguous(), of_candidate)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, of float32 or bfloat16."""
    if a.dtype != torch.float32 and a.is_cuda and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # where torch cannot, with the same products


def _sum_by(group: Tensor, values: Tensor, n_group: int) -> Tensor:
    """(n_group, D): sums of the values (B, D) of each group (B,), in their order."""
    ordered, order = group.sort(stable=True)
    groups = torch.arange(n_group, device=group.device, dtype=group.dtype)
    return sum_runs(values, torch.searchsorted(ordered, groups), order)
