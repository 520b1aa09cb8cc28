"""The loss of positives against candidates, shared or of their own, with its gradients, in one walk.

Queries are made and their answers scored; candidates are scored, shared ones in tiles, others where
they lie in the table; the loss puts slopes in the place of the scores; and these give the gradients.
What is kept of a pair is one number, never a row.

Rows of bfloat16 are widened where they are read, and all else is float32, but for inner products:
queries are rounded for them, and slopes of shared candidates, so that tensor cores multiply, and
sum in float32.

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
from besskge_core.ops.gpu.indexed import Plan, lists_of
from besskge_core.ops.gpu.language import n_warps, power_of_two
from besskge_core.ops.gpu.losses import BLOCK_N, loss_kernel
from besskge_core.ops.gpu.pairwise import distance_gradient, negated_distances
from besskge_core.ops.gpu.queries import query_gradient_kernel, query_kernel
from besskge_core.ops.gpu.segments import sum_runs


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
    query = torch.empty_like(known, dtype=rows.dtype if comparison == "dot" else torch.float32)
    positive, cost, slope = rows.new_empty((3, n_positive), dtype=torch.float32)
    if comparison != "dot":
        candidate = candidate.float()
    form = dict(
        MOVE=move, HEADS=heads, COMPARISON=comparison, TORUS=comparison.startswith("torus"),
        H=power_of_two((width + 1) // 2), num_warps=n_warps(width),
    )  # fmt: skip
    triples = known, answer, relation, relation_id, query, positive
    if n_positive:
        query_kernel[(n_positive,)](*triples, width, **form)
    lists = None
    if per_triple:
        own = index[2 * n_positive :].reshape(n_positive, n_candidate)
        lists = lists_of(query, table, own, comparison)
    scores = _scores(query, candidate, comparison) if lists is None else lists.scores()
    if n_positive:
        loss_kernel[(n_positive,)](
            scores, positive, positive if weight is None else weight.contiguous(), cost, slope,
            n_candidate, scores.stride(0), *numbers, scale, KIND=loss, ACTIVATION=activation,
            ADVERSARIAL=adversarial, WEIGHTED=weight is not None, WANTED=wanted,
            PER_SCORE=comparison.endswith("l2"), BLOCK_N=min(power_of_two(n_candidate), BLOCK_N),
            num_warps=4,
        )  # fmt: skip
    if not wanted:
        return cost.sum(), cost.new_empty((0, width)), cost.new_empty((0, width))
    if lists is None:
        of_query, of_candidate = _gradients(scores, query, candidate, comparison)
    else:
        of_query, of_candidate = lists.of_queries(scores), candidate
    of_rows, of_relation = cost.new_empty(rows.shape), cost.new_empty(query.shape)
    of_head, of_tail, rest = of_rows.split([n_positive, n_positive, n_shared])
    rest.copy_(of_candidate)
    of_known, of_answer = (of_tail, of_head) if heads else (of_head, of_tail)
    if n_positive:
        query_gradient_kernel[(n_positive,)](
            *triples, slope, of_query, of_known, of_answer, of_relation, width, **form
        )
    if lists is not None:
        of_rows = lists.of_rows(scores, _grouped(unique_rows, run_offsets, order), of_rows)
    return cost.sum(), of_rows, _sum_by(relation_id, of_relation, len(relation))


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


def _scores(query: Tensor, candidate: Tensor, comparison: str) -> Tensor:
    """float32 (B, N), rows of it contiguous."""
    if comparison == "dot":
        return _product(query, candidate.t())
    return negated_distances(query, candidate, comparison, None)


def _gradients(
    slope: Tensor, query: Tensor, candidate: Tensor, comparison: str
) -> Tuple[Tensor, Tensor]:
    """Of queries (B, D), contiguous, and candidates (N, D)."""
    if comparison == "dot":
        slope = slope.to(query.dtype)
        return _product(slope, candidate), _product(slope.t(), query)
    of_query, of_candidate = (
        distance_gradient(slope, query, candidate, comparison, None, side)[0]
        for side in (True, False)
    )
    return of_query.contiguous(), of_candidate


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
