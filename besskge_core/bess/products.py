"""Cross-entropy of inner products with all entities: no graph, products and their gradients by hand.

Axes as in :mod:`besskge_core.bess.tiled`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from besskge_core.exchange import Exchange
from besskge_core.loss.entries import Rows
from besskge_core.loss.tiles import Softmax, softmax_share
from besskge_core.ops import Logits, buffer, softmax_gradients, softmax_scores
from besskge_core.scoring import BaseScoreFunction, FormulaScoreFunction
from besskge_core.scoring.formula import QueryScore

if TYPE_CHECKING:
    from besskge_core.bess.tiled import Here, Task


def scores_products(score_fn: BaseScoreFunction) -> bool:
    """Whether scores of candidates are the inner products of queries and rows, as they are."""
    if not (isinstance(score_fn, FormulaScoreFunction) and score_fn.is_inner_product):
        return False
    written_anew = "score_candidates" in vars(score_fn)
    plain = type(score_fn).score_candidates is FormulaScoreFunction.score_candidates
    compared = type(score_fn.formula).pairwise is QueryScore.pairwise
    return plain and compared and not written_anew


def softmax_block(
    task: Task,
    here: Sequence[Here],
    softmax: Softmax,
    block: slice,
    sizes: Sequence[Tensor],
    wanted: bool,
    sums: Sequence[Sums],
) -> Tensor:
    """The loss of some of the queries, whose gradients are added to the sums.

    Args:
        task: of inner products in `task.product_dtype`.
        here: the hosted shards.
        softmax: what the loss makes of scores.
        block: the queries.
        sizes: see :meth:`LossTile.share`.
        wanted: whether gradients are.
        sums: of each hosted shard, of its table and its queries (first and second).

    Returns:
        (), the hosted shards' part of the loss.
    """
    dtype, height = task.product_dtype, task.shape.n_row
    assert dtype is not None
    keep = wanted and height >= len(here[0].table)
    queries = [shard.query[0][block] for shard in here]
    logits = [_logits(shard, softmax, block) for shard in here]
    scored = [
        softmax_scores(query, shard.table, own, dtype, keep, height)
        for query, shard, own in zip(queries, here, logits)
    ]
    totals = log_totals([x.log_sum for x in scored], task.exchange)
    loss = torch.zeros((), dtype=totals.dtype, device=totals.device)
    for i, shard in enumerate(here):
        rows = Rows(task.n_positive[block], task.n_kept[block], totals[i])
        value, slope = softmax_share(
            softmax, logits[i].row, scored[i].own, rows, sizes, task.weight[block],
            task.loss_fn.loss_scale,
        )  # fmt: skip
        loss = loss + value
        if wanted:
            of_query, _ = sums[i].room(1)
            of_rows, add = sums[i].room(0)
            softmax_gradients(
                scored[i], queries[i], shard.table, logits[i], slope, dtype, of_query[block],
                of_rows, add, height,
            )  # fmt: skip
    return loss


def log_totals(of_shards: Sequence[Tensor], exchange: Exchange) -> Tensor:
    """Log-sum-exp (b,) of each hosted shard -> (L, b, 1): that over all entities of all shards."""
    gathered = exchange.all_gather(torch.stack(list(of_shards)))  # (L, S, b)
    return gathered.logsumexp(1).unsqueeze(-1)


def _logits(here: Here, softmax: Softmax, block: slice) -> Logits:
    """Of a hosted shard's entities with some queries."""
    which, row = here.which, here.row
    if block.stop - block.start < len(here.query[0]):  # else all are, and nobody need count them
        inside = (which >= block.start) & (which < block.stop)
        which, row = which[inside] - block.start, row[inside]
    return Logits(which.long(), row.long(), here.padding, *softmax)


class Sums:
    """Sums of gradients, each like a tensor; None while nothing was added."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.like = like
        self.sums: List[Optional[Tensor]] = [None] * len(like)

    def room(self, i: int) -> Tuple[Tensor, bool]:
        """The sum of tensor i, and whether there is one yet: if not, its contents mean nothing."""
        before = self.sums[i]
        if before is not None:
            return before, True
        made = self.sums[i] = buffer(self.like[i].shape, self.like[i])
        return made, False

    def add(self, i: int, grad: Optional[Tensor], part: Union[slice, Tensor, None] = None) -> None:
        """Add the gradient of all of tensor i, or of a part of its rows."""
        if grad is None:
            return
        before = self.sums[i]
        if before is None and grad.shape == self.like[i].shape:
            self.sums[i] = grad.to(self.like[i].dtype)
            return
        if before is None:
            before = self.sums[i] = torch.zeros_like(self.like[i])
        if part is None or isinstance(part, slice):
            (before if part is None else before[part]).add_(grad)
        else:
            before.index_add_(0, part, grad.to(before.dtype))
