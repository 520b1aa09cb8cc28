"""Sums over all entities of a shard, a tile of them at a time, with exact gradients.

The scores of B queries and all entities never exist at once: the forward pass keeps one number a
query, and the backward pass scores each tile again.
"""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from besskge_core.scoring import Query

#: (query, tile (T, D)) -> scores (B, T)
Score = Callable[[Query, Tensor], Tensor]


class Left(NamedTuple):
    """What is left out of the sums of a shard.

    Attributes:
        query, row: (K,) each, pairs that do not count.
        real: bool (M,), False for padding.
        n_certain: rows that are real on every shard; a number, so that it is known ahead.
    """

    query: Tensor
    row: Tensor
    real: Tensor
    n_certain: int


def tiled_logsumexp(
    score: Score,
    query: Query,
    rows: Tensor,
    left: Left,
    parameters: Sequence[Tensor],
    max_scores: int,
) -> Tensor:
    """log sum exp of the scores of each query with the rows, but for those that are left out.

    Args:
        score: scores of queries with rows, each column of which depends on its row alone.
        query: of B queries.
        rows: (M, D).
        left: who is left out.
        parameters: tensors besides query and rows that the scores depend on.
        max_scores: scores held at a time.

    Returns:
        (B,), float32 or float64; -inf where nothing is summed.
    """
    height = max(max_scores // max(len(query[0]), 1), 1)
    out: Tensor = _LogSumExp.apply(score, len(query), height, left, rows, *query, *parameters)
    return out


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, score: Score, n_part: int, height: int, left: Left, rows: Tensor, *inputs: Tensor
    ) -> Tensor:
        total: Optional[Tensor] = None
        for i, tile in enumerate(rows.split(height)):
            part = _scores(score, inputs[:n_part], tile, left, i * height).logsumexp(-1)
            total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        ctx.save_for_backward(total, rows, *inputs)
        ctx.score, ctx.n_part, ctx.height, ctx.left = score, n_part, height, left
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        total, rows, *inputs = ctx.saved_tensors
        # Where nothing is summed, nothing has a gradient; and exp(-inf - -inf) is not a number.
        total = total.masked_fill(total.isneginf(), 0.0)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[5:]) if needed]
        query = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs[: ctx.n_part])]
        leaves = [*query, *inputs[ctx.n_part :]]
        sums: List[Optional[Tensor]] = [None] * len(inputs)
        grad_rows = torch.empty_like(rows)
        for begin in range(0, len(rows), ctx.height):
            tile = rows[begin : begin + ctx.height].detach().requires_grad_()
            with torch.enable_grad():
                scores = _scores(ctx.score, query, tile, ctx.left, begin)
            share = (scores.detach() - total[:, None]).exp_().mul_(grad[:, None])
            found = torch.autograd.grad(
                scores, [tile, *(leaves[i] for i in wanted)], share, allow_unused=True
            )
            grad_rows[begin : begin + ctx.height] = found[0]
            for i, x in zip(wanted, found[1:]):
                before = sums[i]
                sums[i] = x if before is None or x is None else before.add_(x)
        return (None, None, None, None, grad_rows, *sums)


def _scores(score: Score, query: Sequence[Tensor], tile: Tensor, left: Left, begin: int) -> Tensor:
    """(B, T), -inf for what is left out."""
    scores = score(tuple(query), tile)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    end = begin + len(tile)
    here = (left.row >= begin) & (left.row < end)
    place = left.query[here], left.row[here] - begin
    scores = scores.index_put(place, scores.new_full((), -torch.inf))
    if end <= left.n_certain:
        return scores
    return scores.masked_fill(~left.real[begin:end], -torch.inf)
