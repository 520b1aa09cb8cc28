"""The loss of positives against candidates that they share, with its gradients, in one walk.

Queries are made and their answers scored; candidates are scored in tiles; the loss puts slopes in
the place of the scores; and these give the gradients. What is kept of a pair is one number, never
a row.

Rows of bfloat16 are widened where they are read, and all else is float32, but for inner products:
queries and slopes are rounded for them, so that tensor cores multiply, and sum in float32.

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
    scores = _scores(query, candidate, comparison)
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
    of_query, of_candidate = _gradients(scores, query, candidate, comparison)
    of_rows, of_relation = cost.new_empty(rows.shape), cost.new_empty(query.shape)
    of_head, of_tail, rest = of_rows.split([n_positive, n_positive, n_candidate])
    rest.copy_(of_candidate)
    of_known, of_answer = (of_tail, of_head) if heads else (of_head, of_tail)
    if n_positive:
        query_gradient_kernel[(n_positive,)](
            *triples, slope, of_query, of_known, of_answer, of_relation, width, **form
        )
    return cost.sum(), of_rows, _sum_by(relation_id, of_relation, len(relation))


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
