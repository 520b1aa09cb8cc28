"""The loss of the scores of all entities, a tile of them at a time, with exact gradients.

The scores of B queries and all entities never exist at once. A first walk over the tiles finds,
for the losses that need it, the log-sum-exp of each query, to which every shard adds its own; a
second one scores each tile again for its share of loss and gradient. If a tile holds all entities
of a shard, its scores are kept for the second walk.

Axes:
    Q: queries of all shards      b: queries of a tile      M: entities of a shard
    T: entities of a tile         D: width of a row         K: answers
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from besskge_core.exchange import Exchange
from besskge_core.loss import LabelledLoss
from besskge_core.loss.entries import Labelled, Rows, Smoothing, wide
from besskge_core.scoring import Query

#: (query, rows (T, D)) -> scores (b, T)
Score = Callable[[Query, Tensor], Tensor]

#: Queries of a tile, below which products with them waste the machine.
FEW_QUERIES = 128


class TileShape(NamedTuple):
    """How many queries and entities are scored at once."""

    n_query: int
    n_row: int

    @classmethod
    def of(cls, n_query: int, n_row: int, n_host: int, max_scores: int) -> TileShape:
        """Whole rows, whose scores can be kept, unless that leaves but few queries.

        Args:
            n_query, n_row: of a step, and of a shard.
            n_host: shards whose scores are held together.
            max_scores: scores held at a time.
        """
        fit = max_scores // (n_row * n_host)
        if fit >= min(n_query, FEW_QUERIES):
            return cls(min(n_query, fit), n_row)
        few = max(min(n_query, max_scores), 1)
        return cls(few, min(max(max_scores // few, 1), n_row))


class Here(NamedTuple):
    """What one hosted shard scores, and which of the entries are answers.

    Args:
        query: of all shards, (Q, ...) each.
        table: (M, D).
        which, row: (K,) each, queries with the rows of their answers here.
        padding: bool (M,), or None: all rows are of entities.
        pair_score: (K',), scores of all answers of all shards, for losses of pairs.
    """

    query: Query
    table: Tensor
    which: Tensor
    row: Tensor
    padding: Optional[Tensor] = None
    pair_score: Optional[Tensor] = None


class Task(NamedTuple):
    """What the loss of a step is made of, besides what has a gradient.

    Args:
        loss_fn, smoothing: the loss.
        score: how queries and rows are scored.
        weight: (Q, 1), of the queries.
        n_positive: (Q, 1), answers of each query on all shards.
        n_kept: (Q, 1), entities that count.
        pair_query: (K',), the queries of `pair_score`.
        exchange: the collectives.
        shape: of the tiles.
        cast: entered while scores are computed.
    """

    loss_fn: LabelledLoss
    smoothing: Smoothing
    score: Score
    weight: Tensor
    n_positive: Tensor
    n_kept: Tensor
    pair_query: Optional[Tensor]
    exchange: Exchange
    shape: TileShape
    cast: Callable[[], AbstractContextManager[Any]]


def all_entity_loss(task: Task, here: Sequence[Here], parameters: Sequence[Tensor]) -> Tensor:
    """The loss of all queries with all entities; of it, the part of the hosted shards.

    Args:
        task: what to compute.
        here: of each hosted shard, all with as many queries and rows.
        parameters: what else the scores depend on.

    Returns:
        (), float32 or float64; added up over all workers it is the loss.
    """
    tensors = [x for shard in here for x in _tensors(shard)]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *parameters))
    out: Tensor = _AllEntityLoss.apply(task, here, wanted, *tensors, *parameters)
    return out


def _tensors(here: Here) -> List[Tensor]:
    """What has a gradient."""
    pairs = [] if here.pair_score is None else [here.pair_score]
    return [here.table, *here.query, *pairs]


class _AllEntityLoss(torch.autograd.Function):
    """Gradients are found with the loss, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, task: Task, here: Sequence[Here], wanted: bool, *tensors: Tensor
    ) -> Tensor:
        n_own = sum(len(_tensors(shard)) for shard in here)
        walk = _Walk(task, here, tensors[n_own:], wanted)
        loss = walk.run()
        if wanted:
            ctx.save_for_backward(*walk.gradients())
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        found: Sequence[Tensor] = ctx.saved_tensors
        if not (grad.device.type == "cpu" and float(grad) == 1.0):  # a copy of a table is dear
            found = [x.mul(grad.to(x.dtype)) for x in found]
        return (None, None, None, *found)


class _Tile(NamedTuple):
    """Scores of some queries and rows, with the leaves that they were computed from."""

    begin: int
    score: Tensor
    leaves: List[Tensor]


class _Walk:
    """One pass over all tiles of all hosted shards."""

    def __init__(
        self, task: Task, here: Sequence[Here], parameters: Sequence[Tensor], wanted: bool
    ) -> None:
        self.task, self.here, self.wanted = task, here, wanted
        self.parameters = list(parameters)
        self.dtype = wide(here[0].table, here[0].query[0])
        self.sums: List[List[Optional[Tensor]]] = [[None] * len(_tensors(x)) for x in here]
        self.parameter_sums: List[Optional[Tensor]] = [None] * len(self.parameters)

    def run(self) -> Tensor:
        task, n_query = self.task, len(self.here[0].query[0])
        sizes = task.loss_fn.sizes(task.n_positive, task.n_kept, task.weight)
        sizes = [torch.where(x > 0.0, x, torch.ones_like(x)) for x in sizes]
        total = torch.zeros((), dtype=self.dtype, device=task.weight.device)
        for first in range(0, n_query, task.shape.n_query):
            block = slice(first, min(first + task.shape.n_query, n_query))
            total = total + self._block(block, sizes)
        return total

    def gradients(self) -> List[Tensor]:
        """Of all tensors, in the order in which they were given."""
        given = [x for shard in self.here for x in _tensors(shard)] + self.parameters
        found = [x for sums in self.sums for x in sums] + self.parameter_sums
        return [torch.zeros_like(x) if y is None else y.to(x.dtype) for x, y in zip(given, found)]

    def _block(self, block: slice, sizes: Sequence[Tensor]) -> Tensor:
        """The loss of some of the queries."""
        keep = self.task.shape.n_row >= len(self.here[0].table)
        tiles = [list(self._tiles(i, block)) if keep else [] for i in range(len(self.here))]
        log_totals = self._log_totals(tiles, block, keep)
        loss = torch.zeros((), dtype=self.dtype, device=self.task.weight.device)
        for i in range(len(self.here)):
            for tile in tiles[i] if keep else self._tiles(i, block):
                rows = self._rows(i, block, tile, log_totals)
                with torch.set_grad_enabled(self.wanted):
                    entries = self._entries(i, block, tile, tile.score.to(self.dtype), rows)
                    value = self.task.loss_fn.of_tile(entries, self.task.smoothing, sizes)
                loss = loss + value.detach()
                if self.wanted:
                    self._add(i, block, tile, value)
            tiles[i] = []
        return loss

    def _tiles(self, i: int, block: slice) -> Iterator[_Tile]:
        """The tiles of a hosted shard and some queries."""
        here, wanted = self.here[i], self.wanted
        pairs = [] if here.pair_score is None else [here.pair_score]
        fixed = [x.detach()[block] for x in here.query] + [x.detach() for x in pairs]
        for begin in range(0, len(here.table), self.task.shape.n_row):
            rows = here.table.detach()[begin : begin + self.task.shape.n_row]
            leaves = [x.detach() for x in (rows, *fixed)]
            for leaf, x in zip(leaves, _tensors(here)):
                leaf.requires_grad_(wanted and x.requires_grad)
            with torch.set_grad_enabled(wanted), self.task.cast():
                score = self.task.score(tuple(leaves[1 : 1 + len(here.query)]), leaves[0])
            yield _Tile(begin, score, leaves)

    def _log_totals(
        self, tiles: Sequence[Sequence[_Tile]], block: slice, keep: bool
    ) -> Optional[Tensor]:
        """(L, b, 1): log-sum-exp of the logits over all entities of all shards."""
        of_shards: List[Tensor] = []
        for i in range(len(self.here)):
            total: Optional[Tensor] = None
            for tile in tiles[i] if keep else self._tiles(i, block):
                entries = self._entries(i, block, tile, tile.score.detach().to(self.dtype))
                logits = self.task.loss_fn.logits(entries)
                if logits is None:
                    return None
                part = logits.logsumexp(1)
                total = part if total is None else torch.logaddexp(total, part)
            assert total is not None
            of_shards.append(total)
        gathered = self.task.exchange.all_gather(torch.stack(of_shards))  # (L, S, b)
        return gathered.logsumexp(1).unsqueeze(-1)

    def _entries(
        self, i: int, block: slice, tile: _Tile, score: Tensor, rows: Optional[Rows] = None
    ) -> Labelled:
        here, begin, end = self.here[i], tile.begin, tile.begin + score.shape[1]
        inside = (here.row >= begin) & (here.row < end)
        inside &= (here.which >= block.start) & (here.which < block.stop)
        places = here.which[inside] - block.start, here.row[inside] - begin
        padding = None if here.padding is None else here.padding[None, begin:end]
        weight = self.task.weight[block].to(score.dtype)
        return Labelled(score, None, padding, None, weight, places, rows)

    def _rows(self, i: int, block: slice, tile: _Tile, log_totals: Optional[Tensor]) -> Rows:
        task, pairs = self.task, None
        if task.pair_query is not None:
            inside = (task.pair_query >= block.start) & (task.pair_query < block.stop)
            score = tile.leaves[-1].to(self.dtype)
            with torch.set_grad_enabled(self.wanted):
                pairs = task.pair_query[inside] - block.start, score[inside]
        log_total = None if log_totals is None else log_totals[i]
        return Rows(task.n_positive[block], task.n_kept[block], log_total, pairs)

    def _add(self, i: int, block: slice, tile: _Tile, value: Tensor) -> None:
        """Add the gradients of a tile to the sums."""
        leaves = [x for x in tile.leaves if x.requires_grad]
        parameters = [x for x in self.parameters if x.requires_grad]
        found = iter(torch.autograd.grad(value, [*leaves, *parameters], allow_unused=True))
        sums, given, n_query = self.sums[i], _tensors(self.here[i]), len(self.here[i].query)
        for j, leaf in enumerate(tile.leaves):
            grad = next(found) if leaf.requires_grad else None
            if grad is None:
                continue
            whole = grad.shape == given[j].shape
            if sums[j] is None:
                if whole:
                    sums[j] = grad
                    continue
                sums[j] = torch.zeros_like(given[j])
            target = sums[j]
            assert target is not None
            if not whole:
                part = slice(tile.begin, tile.begin + len(leaf)) if j == 0 else block
                target = target[part] if j <= n_query else target
            target.add_(grad)
        for j, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                grad, before = next(found), self.parameter_sums[j]
                if grad is not None:
                    self.parameter_sums[j] = grad if before is None else before.add_(grad)
