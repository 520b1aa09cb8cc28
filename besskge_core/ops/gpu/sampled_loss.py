"""The loss of positives against candidates, shared or of their own, with its gradients, in one walk.

Queries are made and their answers scored; candidates are scored, shared ones in tiles, others where
they lie in the table; the loss makes slopes of the scores; and these give the gradients. What is kept
of a pair is one number, never a row, and nothing where tensor cores compute the scores again.

Rows of bfloat16 are widened where they are read, and all else is float32, but for inner products, and
L2 distances by them: queries are rounded for them, and slopes of shared candidates, so that tensor
cores multiply, and sum in float32.

Axes:
    R: rows of the tables      M: rows of the relation table      D: width of a row
    B: positives               N: candidates, of all or of each
    K: rows that are read, 2 B + N or 2 B + B N                   U: distinct ones, padding included
"""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from besskge_core.ops.gpu.gather import gather
from besskge_core.ops.gpu.indexed import Lists, Plan, lists_of
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
    """The loss (), and the gradients of rows and of relations (M, D), in float32.

    See the operation's Python face; of `numbers`, the rule's from margin to offset. Gradients of rows
    are of those read (K, D), or with candidates of each positive of the distinct ones (U, D).
    """
    _check_width(table.shape[1], move, comparison)
    n_positive, width = len(relation_id), table.shape[1]
    n_shared = 0 if per_triple else n_candidate
    rows = gather(table.unsqueeze(0), index[: 2 * n_positive + n_shared].unsqueeze(0))[0]
    head, tail, candidate = rows.split([n_positive, n_positive, n_shared])
    known, answer = (tail, head) if heads else (head, tail)
    relation, relation_id = relation.contiguous(), relation_id.contiguous()
    in_products = multiplies(comparison, rows.dtype, per_triple)
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
    lists = None
    if per_triple:
        own = index[2 * n_positive :].reshape(n_positive, n_candidate)
        lists = lists_of(query, table, own, comparison)
        found, slopes = _listed(lists, positive, formula, wanted)
    else:
        score_all = _products if in_products else _distances
        found = score_all(query, candidate, positive, formula, comparison, wanted)
    if not wanted:
        return found.cost.sum(), positive.new_empty((0, width)), positive.new_empty((0, width))
    of_rows, of_relation = positive.new_empty(rows.shape), positive.new_empty(query.shape)
    of_head, of_tail, of_candidate = of_rows.split([n_positive, n_positive, n_shared])
    if found.of_candidate is not None:
        of_candidate.copy_(found.of_candidate)
    of_known, of_answer = (of_tail, of_head) if heads else (of_head, of_tail)
    if n_positive:
        query_gradient_kernel[(n_positive,)](
            *triples, found.of_positive, found.of_query, of_known, of_answer, of_relation, width,
            **form,
        )  # fmt: skip
    if lists is not None:
        of_rows = lists.of_rows(slopes, _grouped(unique_rows, run_offsets, order), of_rows)
    return found.cost.sum(), of_rows, _sum_by(relation_id, of_relation, len(relation))


def multiplies(comparison: str, dtype: torch.dtype, per_triple: bool) -> bool:
    """Whether rows are compared by their products: so are L2 distances of halves with shared rows."""
    return comparison == "dot" or (comparison == "l2" and dtype != torch.float32 and not per_triple)


def _listed(
    lists: Lists, positive: Tensor, formula: Formula, wanted: bool
) -> Tuple[Gradients, Tensor]:
    """Losses and gradients of queries with rows of their own, and the slopes of their scores."""
    found = losses(lists.scores(), positive, formula, wanted, lists.comparison.endswith("l2"))
    of_query = lists.of_queries(found.slope) if wanted else None
    return Gradients(*found[:2], of_query, None), found.slope


def _grouped(*plan: Optional[Tensor]) -> Plan:
    unique_rows, run_offsets, order = plan
    if unique_rows is None or run_offsets is None or order is None:
        raise ValueError("sampled_loss of candidates of each triple expects its rows grouped")
    return unique_rows.contiguous(), run_offsets.contiguous(), order.contiguous()


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
