"""How positives, their sides and their blocks of negatives lie in a micro-batch.

Axes as in the package's docstring; G: groups of P positives, one of each shard pair.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.scoring import BaseScoreFunction, Heads, Query


class MicroBatch(NamedTuple):
    """What :meth:`BessKGE.forward` is given, but for weights and the negatives to filter."""

    head: Tensor
    relation: Tensor
    tail: Tensor
    negative: Tensor
    triple_mask: Optional[Tensor] = None
    heads_replaced: Optional[Tensor] = None
    hub: Optional[Tensor] = None
    negative_mask: Optional[Tensor] = None


class Scored(NamedTuple):
    """Scores of a micro-batch, and the entity rows that a regulariser wants.

    Attributes:
        positive: (L, B).
        negative: (L, B, C), -inf where excluded.
        head, tail: (L, B, D), or None if the scores came without them.
        mask: bool (L, B, C), False where excluded, or None.
        n_negative: (L, B), negatives that are not excluded, or None: C.
    """

    positive: Tensor
    negative: Tensor
    head: Optional[Tensor] = None
    tail: Optional[Tensor] = None
    mask: Optional[Tensor] = None
    n_negative: Optional[Tensor] = None


class Side(NamedTuple):
    """The positives `first` to `last` of each shard pair, whose heads or tails are replaced.

    Where each positive has its own side, `heads` says nothing.
    """

    heads: bool
    first: int
    last: int


def sides_of(scheme: str, n_positive: int) -> List[Side]:
    """The sides of a corruption scheme."""
    if scheme != "ht":
        return [Side(scheme == "h", 0, n_positive)]
    return [Side(True, 0, n_positive // 2), Side(False, n_positive // 2, n_positive)]


def of_side(x: Tensor, axis: int, side: Side, n_positive: int) -> Tensor:
    """Along `axis`, of size G * P, keep the positives of one side of each of the G groups."""
    if side.last - side.first == n_positive:
        return x
    grouped = x.unflatten(axis, (-1, n_positive))
    return grouped.narrow(axis + 1, side.first, side.last - side.first).flatten(axis, axis + 1)


def join_sides(scores: List[Tensor], sides: List[Side]) -> Tensor:
    """(G * P', ...) of each side -> (G * P, ...)."""
    if len(scores) == 1:
        return scores[0]
    grouped = [x.unflatten(0, (-1, side.last - side.first)) for x, side in zip(scores, sides)]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def weights_of(
    positive: Tensor, triple_weight: Optional[Tensor], triple_mask: Optional[Tensor]
) -> Tensor:
    """Weights (L, B) or (L, 1) of positives (L, B) from weights and a mask of any such layout."""
    n_host = positive.shape[0]
    weight = positive.new_ones(n_host, 1)
    if triple_weight is not None:
        weight = triple_weight.reshape(n_host, -1).to(weight.dtype)
    if triple_mask is not None:
        weight = weight * triple_mask.reshape(n_host, -1)
    return weight


def ask(
    score_fn: BaseScoreFunction, head: Tensor, relation: Tensor, tail: Tensor, heads: Heads
) -> Tuple[Query, Tensor, Tensor]:
    """Of triples, rows (B, D) and relation IDs (B,): queries, answers (B, D) and their scores (B,)."""
    query = score_fn.query(choose(heads, tail, head), relation, heads)
    answer = choose(heads, head, tail)
    return query, answer, score_fn.score_query(query, answer, heads)


def choose(heads: Heads, if_heads: Tensor, if_tails: Tensor) -> Tensor:
    """One of two tensors (B, D), of all queries or of each."""
    if isinstance(heads, Tensor):
        return torch.where(heads.unsqueeze(-1), if_heads, if_tails)
    return if_heads if heads else if_tails
