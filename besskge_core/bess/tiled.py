"""The loss of the scores of all entities, a tile of them at a time, with exact gradients.

The scores of B queries and all entities never exist at once. A first walk over the tiles finds,
for the losses that need it, the log-sum-exp of each query, to which every shard adds its own; a
second one scores each tile again for its share of loss and gradient. If a tile holds all entities
of a shard, its scores are kept for the second walk. Any loss and any score function is served so;
cross-entropy of inner products is walked through by operations of its own, see `products`.

Axes:
    Q: queries of all shards      b: queries of a tile      M: entities of a shard
    T: entities of a tile         D: width of a row         K: answers
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from besskge_core.bess.products import Sums, log_totals, softmax_block
from besskge_core.exchange import Exchange
from besskge_core.loss import LabelledLoss
from besskge_core.loss.entries import Labelled, Rows, Smoothing, wide
from besskge_core.loss.tiles import LossTile, Share
from besskge_core.ops import gather
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
            n_block = -(-n_query // fit)
            return cls(-(-n_query // n_block), n_row)
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
        product_dtype: scores are inner products of queries and rows, made in this type. None: they
            are what `score` says.
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
    product_dtype: Optional[torch.dtype] = None


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
        ctx.found = walk.gradients() if wanted else None
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        # Handed on, not copied, for one of them is as large as a table: they are here but once.
        found, ctx.found = ctx.found, None
        if found is None:
            raise RuntimeError("the loss of all entities has one backward pass, this is another")
        if not (grad.device.type == "cpu" and float(grad) == 1.0):
            found = [None if x is None else x.mul_(grad.to(x.dtype)) for x in found]
        return (None, None, None, *found)


def rows_and_table(table: Tensor, index: Tensor) -> Tuple[Tensor, Tensor]:
    """Rows of a table (L, M, D) by index (L, K), and the table, with one dense gradient of both."""
    rows, whole = _RowsAndTable.apply(table, index)
    return rows, whole


class _RowsAndTable(torch.autograd.Function):
    """Adding the gradient of the rows to that of the table in place saves a copy of the latter."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(index)
        return gather(table, index), table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor, grad_table: Tensor) -> Tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        n_host, n_row, width = grad_table.shape
        first = n_row * torch.arange(n_host, device=index.device)[:, None]
        grad_table.view(-1, width).index_add_(
            0, (index + first).flatten(), grad_rows.reshape(-1, width)
        )
        return grad_table, None


class _Tile(NamedTuple):
    """Scores of some queries and rows, the leaves that they come from, and their loss."""

    begin: int
    score: Tensor
    leaves: List[Tensor]
    loss: LossTile


class _Walk:
    """The loss of all queries of a step, and the sums of its gradients."""

    def __init__(
        self, task: Task, here: Sequence[Here], parameters: Sequence[Tensor], wanted: bool
    ) -> None:
        self.task, self.here, self.wanted = task, here, wanted
        self.parameters = list(parameters)
        self.dtype = wide(here[0].table, here[0].query[0])
        self.sums = [Sums(_tensors(shard)) for shard in here]
        self.parameter_sums = Sums(self.parameters)
        products = task.product_dtype is not None
        self.softmax = task.loss_fn.softmax(task.smoothing) if products else None

    def run(self) -> Tensor:
        task, n_query = self.task, len(self.here[0].query[0])
        sizes = task.loss_fn.sizes(task.n_positive, task.n_kept, task.weight)
        sizes = [torch.where(x > 0.0, x, torch.ones_like(x)) for x in sizes]
        total = torch.zeros((), dtype=self.dtype, device=task.weight.device)
        for first in range(0, n_query, task.shape.n_query):
            block = slice(first, min(first + task.shape.n_query, n_query))
            total = total + self._block(block, sizes)
        return total

    def gradients(self) -> List[Optional[Tensor]]:
        """Of all tensors, in the order in which they were given; None of those without."""
        return [x for sums in (*self.sums, self.parameter_sums) for x in sums.sums]

    def _block(self, block: slice, sizes: Sequence[Tensor]) -> Tensor:
        """The loss of some of the queries."""
        if self.softmax is not None:
            return softmax_block(self.task, self.here, self.softmax, block, sizes, self.wanted, self.sums)  # fmt: skip
        keep = self.task.shape.n_row >= len(self.here[0].table)
        shards = range(len(self.here))
        kept = [list(self._tiles(i, block, self.wanted)) if keep else [] for i in shards]
        totals = self._log_totals(kept, block, keep)
        loss = torch.zeros((), dtype=self.dtype, device=self.task.weight.device)
        for i in shards:
            log_total = None if totals is None else totals[i]
            for tile in kept[i] if keep else self._tiles(i, block, self.wanted):
                rows, pairs = self._rows(i, block, log_total)
                share = tile.loss.share(rows, sizes, self.wanted)
                loss = loss + share.value
                if self.wanted:
                    self._add(i, block, tile, share, pairs)
            kept[i] = []
        return loss

    def _tiles(self, i: int, block: slice, wanted: bool) -> Iterator[_Tile]:
        """The tiles of a hosted shard and some queries."""
        here, task = self.here[i], self.task
        needed = [wanted and x.requires_grad for x in (here.table, *here.query)]
        for begin in range(0, len(here.table), task.shape.n_row):
            rows = here.table[begin : begin + task.shape.n_row]
            parts = (rows, *(x[block] for x in here.query))
            leaves = [x.detach().requires_grad_(need) for x, need in zip(parts, needed)]
            with torch.set_grad_enabled(wanted), task.cast():
                score = task.score(tuple(leaves[1:]), leaves[0])
            entries = self._entries(here, block, begin, score)
            yield _Tile(begin, score, leaves, task.loss_fn.tile(entries, task.smoothing))

    def _entries(self, here: Here, block: slice, begin: int, score: Tensor) -> Labelled:
        end = begin + score.shape[1]
        places = here.which, here.row
        if len(score) < len(here.query[0]) or score.shape[1] < len(here.table):
            # Else all are inside, and nobody need count them.
            inside = (here.row >= begin) & (here.row < end)
            inside &= (here.which >= block.start) & (here.which < block.stop)
            places = here.which[inside] - block.start, here.row[inside] - begin
        padding = None if here.padding is None else here.padding[None, begin:end]
        weight = self.task.weight[block].to(self.dtype)
        return Labelled(score.detach(), excluded=padding, row_weight=weight, places=places)

    def _log_totals(
        self, kept: Sequence[Sequence[_Tile]], block: slice, keep: bool
    ) -> Optional[Tensor]:
        """(L, b, 1): log-sum-exp of the logits over all entities of all shards."""
        if not self.task.loss_fn.has_logits:
            return None
        of_shards: List[Tensor] = []
        for i in range(len(self.here)):
            total: Optional[Tensor] = None
            for tile in kept[i] if keep else self._tiles(i, block, wanted=False):
                part = tile.loss.log_sum()
                total = part if total is None else torch.logaddexp(total, part)
            assert total is not None
            of_shards.append(total)
        return log_totals(of_shards, self.task.exchange)

    def _rows(
        self, i: int, block: slice, log_total: Optional[Tensor]
    ) -> Tuple[Rows, Optional[Tensor]]:
        """What is known of the rows of a block, and which of the pairs are of it."""
        task, score, inside = self.task, self.here[i].pair_score, None
        rows = Rows(task.n_positive[block], task.n_kept[block], log_total)
        if task.pair_query is not None and score is not None:
            which = task.pair_query
            inside = ((which >= block.start) & (which < block.stop)).nonzero().squeeze(1)
            rows = rows._replace(pairs=(which[inside] - block.start, score[inside].to(self.dtype)))
        return rows, inside

    def _add(
        self, i: int, block: slice, tile: _Tile, share: Share, pairs: Optional[Tensor]
    ) -> None:
        """Add the gradients of a tile to the sums."""
        assert share.score is not None
        inputs = [*tile.leaves, *self.parameters]
        needed = [j for j, x in enumerate(inputs) if x.requires_grad]
        grads = torch.autograd.grad(
            tile.score,
            [inputs[j] for j in needed],
            share.score.to(tile.score.dtype),
            allow_unused=True,
        )
        n_leaf, sums = len(tile.leaves), self.sums[i]
        for j, grad in zip(needed, grads):
            if j >= n_leaf:
                self.parameter_sums.add(j - n_leaf, grad)
            elif j == 0:
                sums.add(0, grad, slice(tile.begin, tile.begin + len(tile.leaves[0])))
            else:
                sums.add(j, grad, block)
        if share.pairs is not None:
            assert pairs is not None
            sums.add(n_leaf, share.pairs, pairs)
