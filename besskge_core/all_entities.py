"""Scores of queries against all entities, a tile of the sharded table at a time.

Axes:
    Q: queries      T: entities of a tile, rows of one shard that follow each other
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from besskge_core.bess.products import scores_products
from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange, LocalExchange
from besskge_core.ops import inner_products
from besskge_core.scoring import BaseScoreFunction, Query
from besskge_core.sharding import Sharding

SIDES = ("head", "tail")

#: Scores that a cache about holds: 32 MiB in float32.
IN_CACHE = 2**23


class Tile(NamedTuple):
    """Scores (Q, T) of the entities whose flat rows are `first` to `first + T`."""

    first: int
    scores: Tensor


def marked_rows(sharding: Sharding, entity: NDArray[np.integer]) -> Tensor:
    """bool, by flat row: whether an entity is one of these IDs."""
    marked = torch.zeros(sharding.shard_and_idx_to_entity.size, dtype=torch.bool)
    marked[torch.from_numpy(sharding.flat_row[entity])] = True
    return marked


def make_query(
    score_fn: BaseScoreFunction, side: str, known: Tensor, relation: Tensor
) -> Tuple[Query, bool]:
    """Queries for one side, of rows (Q, D) and relation IDs (Q,) without inverses.

    Returns:
        The queries, and whether heads are candidates: not where inverse relations ask for them.

    Raises:
        ConfigError: heads are asked for, which the model has no way to score.
    """
    heads, relation = score_fn.directed(side == "head", relation)
    if heads and not score_fn.scores_heads:
        raise ConfigError(
            f"{type(score_fn).__name__} cannot score heads, so (?, r, t) needs a model with"
            " inverse relations"
        )
    return score_fn.query(known, relation, heads), heads


class AllEntityScorer:
    """Scores queries (h, r, ?) and (?, r, t) against every entity.

    A model with inverse relations answers (?, r, t) as (t, inverse of r, ?), the direction in
    which reciprocal models are trained (Lacroix et al., ICML 2018); others score heads directly.

    Of several ranks each has the tiles of its own shards; all of them make the same calls.

    Args:
        score_fn: the model.
        max_scores: scores held at a time; bounds the memory.
        exchange: of the ranks that have the rows; None: all are here.
    """

    def __init__(
        self,
        score_fn: BaseScoreFunction,
        max_scores: int = 2**25,
        exchange: Optional[Exchange] = None,
    ) -> None:
        if max_scores < 1:
            raise ConfigError(f"max_scores must be at least 1, got {max_scores}")
        self.score_fn, self.max_scores = score_fn, max_scores
        n_shard = score_fn.sharding.n_shard
        self.exchange: Exchange = LocalExchange(n_shard) if exchange is None else exchange
        if tuple(self.exchange.hosted) != score_fn.hosted:
            raise ConfigError(
                f"the model has the rows of shards {score_fn.hosted}, this rank is to have those of"
                f" {tuple(self.exchange.hosted)}; pass the exchange of the ranks, such as"
                " `runtime.exchange`"
            )

    @property
    def batch_size(self) -> int:
        """Queries whose scores of all entities can be held, in a cache, between 64 and 1024."""
        most = min(self.max_scores, IN_CACHE)
        return min(max(most // self.score_fn.sharding.n_entity, 64), 1024)

    def rows(self, entity_row: Tensor) -> Tensor:
        """Flat rows (K,), see `Sharding.flat_row` -> (K, D), as stored; from whoever has them."""
        table = self.score_fn.entity_embedding.detach()
        flat = table.flatten(end_dim=1)
        if self.exchange.n_rank == 1:
            return flat.index_select(0, entity_row)
        place, is_here = self.here(entity_row)
        rows = flat.index_select(0, place).masked_fill(~is_here.unsqueeze(1), 0.0)
        return self.exchange.sum_ranks(rows)

    def here(self, entity_row: Tensor) -> Tuple[Tensor, Tensor]:
        """Flat rows (...) -> their places in the hosted tables, 0 where not here; bool, whether."""
        n_host, n_row = self.score_fn.entity_embedding.shape[:2]
        place = entity_row - self.exchange.hosted.start * n_row
        is_here = (place >= 0) & (place < n_host * n_row)
        return torch.where(is_here, place, 0), is_here

    @torch.no_grad()
    def tiles(self, side: str, entity_row: Tensor, relation: Tensor) -> Iterator[Tile]:
        """Tiles of the scores of a batch of queries, over the hosted shards, without padding.

        Args:
            side: the side asked for, "head" or "tail".
            entity_row: (Q,), flat rows of the known entities, see `Sharding.flat_row`.
            relation: (Q,), relation IDs, without inverses.
        """
        score_fn, sharding = self.score_fn, self.score_fn.sharding
        table = score_fn.entity_embedding
        known = score_fn.entities(self.rows(entity_row))
        query, heads = make_query(score_fn, side, known, relation)
        products = scores_products(score_fn)
        height = max(self.max_scores // max(len(relation), 1), 1)
        for i, shard in enumerate(self.exchange.hosted):
            count = int(sharding.shard_counts[shard])
            for first in range(0, count, height):
                rows = table[i, first : min(first + height, count)]
                candidates = score_fn.entities(rows)
                if products:
                    scores = inner_products(query[0], candidates)
                else:
                    scores = score_fn.score_candidates(query, candidates.unsqueeze(0), heads)
                yield Tile(shard * table.shape[1] + first, scores)

    def tiles_twice(self, side: str, entity_row: Tensor, relation: Tensor) -> TilesTwice:
        """The same tiles, to be walked through more than once; kept if they fit."""
        return TilesTwice(self, side, entity_row, relation)


class TilesTwice:
    """Tiles that can be walked through again, with the same bits each time."""

    def __init__(
        self, scorer: AllEntityScorer, side: str, entity_row: Tensor, relation: Tensor
    ) -> None:
        self._scorer, self._query = scorer, (side, entity_row, relation)
        fits = len(relation) * scorer.score_fn.sharding.n_entity <= scorer.max_scores
        self._kept: List[Tile] = list(scorer.tiles(*self._query)) if fits else []

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._kept) if self._kept else self._scorer.tiles(*self._query)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; afterwards as it was."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
