"""Queries (h, r, ?) and (?, r, t) answered by all shards, each with its own entities.

Queries are partitioned by the shard of the entity that is known ("h_shard" for tails, "t_shard"
for heads). Every shard gathers the queries of all, scores them against candidates of its own, a
window at a time, and returns what came out.
"""

from __future__ import annotations

import math
from itertools import repeat
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from besskge_core.bess.base import check_sides
from besskge_core.bess.tables import OverTables
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.exchange import Exchange, LocalExchange
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    ShardedNegativeSampler,
)
from besskge_core.ops import best_k, gather
from besskge_core.ops.tracing import as_index
from besskge_core.scoring import BaseScoreFunction
from besskge_core.shapes import match_shapes
from besskge_core.sharding import Sharding


class QueryBESS(OverTables):
    """What the modules for queries share.

    Attributes:
        exchange: the collectives; set by the runtime, one process by default.
        inputs: columns of a batch that forward takes.
        paired: batches are of triples partitioned by shard pairs; here by one shard.
    """

    paired = False
    inputs: Tuple[str, ...]

    def __init__(
        self,
        candidate_sampler: ShardedNegativeSampler,
        score_fn: BaseScoreFunction,
        window_size: int,
    ) -> None:
        super().__init__()
        scheme = candidate_sampler.corruption_scheme
        if scheme not in ("h", "t"):
            raise ConfigError(
                f"{type(self).__name__} answers one side at a time: expected the corruption scheme"
                f" 'h' or 't', got {scheme!r}"
            )
        if window_size < 1:
            raise ConfigError(f"window_size must be at least 1, got {window_size}")
        check_sides(score_fn, candidate_sampler)
        self.negative_sampler, self.score_fn = candidate_sampler, score_fn
        self.window_size, self.heads = window_size, scheme == "h"
        self.exchange: Exchange = LocalExchange(score_fn.sharding.n_shard)

    def _queries(
        self, relation: Tensor, head: Optional[Tensor], tail: Optional[Tensor]
    ) -> Tuple[List[Tensor], Optional[Tensor]]:
        """Everyone's queries (L, S * P, ...), and the IDs (L, P) of the answers, if known."""
        n_shard = self.sharding.n_shard
        if isinstance(self.exchange, LocalExchange) and self.exchange.n_shard != n_shard:
            self.exchange = LocalExchange(n_shard)  # the model has been laid out anew
        known, answer = (tail, head) if self.heads else (head, tail)
        if known is None:
            raise ShapeError(
                f"the entity that is known, {'tail' if self.heads else 'head'} (L, P), is missing;"
                f" partition the queries by {'t_shard' if self.heads else 'h_shard'}"
            )
        match_shapes(relation=(relation, "L P"), known=(known, "L P"))
        rows = self.score_fn.entities(gather(self.entity_embedding, known))
        queries = [
            self.score_fn.query(of_shard, r, self.heads)
            for of_shard, r in zip(rows.unbind(), relation.unbind())
        ]
        gathered = [self.exchange.all_gather(torch.stack(x)).flatten(1, 2) for x in zip(*queries)]
        return gathered, answer


class TopKQueryBessKGE(QueryBESS):
    """The k best answers of queries, among all entities or given candidates. For inference.

    Equal scores are ordered by entity ID. A score that is not a number, or -inf, is no answer:
    where there are fewer than k answers, IDs are -1 and scores -inf.

    Args:
        k: answers to each query.
        candidate_sampler: the candidates; :class:`PlaceholderNegativeSampler` stands for all
            entities.
        score_fn: score function, which owns the tables.
        evaluation: metrics of the place of the true answers among the k.
        return_scores: also return the scores.
        window_size: candidates that a shard scores at a time.
    """

    inputs: Tuple[str, ...] = (
        "relation",
        "head",
        "tail",
        "negative",
        "triple_mask",
        "negative_mask",
    )
    shard_counts: Tensor
    entity_ids: Tensor

    def __init__(
        self,
        k: int,
        candidate_sampler: ShardedNegativeSampler,
        score_fn: BaseScoreFunction,
        evaluation: Optional[Evaluation] = None,
        return_scores: bool = False,
        window_size: int = 100,
    ) -> None:
        super().__init__(candidate_sampler, score_fn, window_size)
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        if not getattr(candidate_sampler, "mask_on_gather", True):
            raise ConfigError(
                "TopKQueryBessKGE needs its candidates masked where they are gathered;"
                " make the candidate sampler with mask_on_gather=True"
            )
        self.k, self.evaluation, self.return_scores = k, evaluation, return_scores
        self._adopt(self.sharding)

    def _adopt(self, sharding: Sharding) -> None:
        """Know the IDs of the rows of all shards."""
        self._adopted, device = sharding, self.entity_embedding.device
        counts = torch.from_numpy(sharding.shard_counts).to(device)
        ids = torch.from_numpy(sharding.shard_and_idx_to_entity).to(device)
        self.register_buffer("shard_counts", counts, persistent=False)
        self.register_buffer("entity_ids", ids, persistent=False)

    def forward(
        self,
        relation: Tensor,
        head: Optional[Tensor] = None,
        tail: Optional[Tensor] = None,
        negative: Optional[Tensor] = None,
        triple_mask: Optional[Tensor] = None,
        negative_mask: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        """Score and choose.

        Args:
            relation: (L, P), relation IDs.
            head: (L, P), rows here of the known heads; or IDs of the answers, if known.
            tail: likewise.
            negative: (L, S, A, N), rows of candidates here for peer s (to); None: all entities.
            triple_mask: bool (L, P), False leaves a query out of the metrics.
            negative_mask: bool (L, S, A, N), False excludes a candidate.

        Returns:
            "topk_global_id" int32 (L * P, k), best first. "topk_scores" (L * P, k), if
            `return_scores`. "ranks" and "metrics" as the evaluation says, over L * P; an answer
            that is not among the k has rank k + 1, or infinity.

        Raises:
            ShapeError: on other shapes.
        """
        if self._adopted is not self.sharding:
            self._adopt(self.sharding)
        queries, answer = self._queries(relation, head, tail)
        if negative is not None:
            match_shapes(relation=(relation, "L P"), negative=(negative, "L S A N"))
        n_answer = self.k + self._n_padding
        with self.score_fn.pooling(False):
            best = [
                self._best_here(
                    [query[i] for query in queries],
                    self._windows(i, negative, negative_mask),
                    n_answer,
                )
                for i in range(len(relation))
            ]
        score, ids = _best(*self._returned(best), self.k, rising=False)
        score = _padded(score, self.k, -math.inf)
        ids = _padded(ids, self.k, -1).masked_fill(score == -math.inf, -1)
        out = {"topk_global_id": ids.int()}
        if self.return_scores:
            out["topk_scores"] = score
        if self.evaluation is not None:
            if answer is None:
                raise ConfigError(
                    "an evaluation needs the answers of the queries; partition them with"
                    " create_from_queries(..., ground_truth=...)"
                )
            ranks = self.evaluation.ranks_from_indices(answer.flatten(), ids)
            out["metrics"] = self.evaluation.stacked_metrics_from_ranks(ranks, triple_mask)
            if self.evaluation.return_ranks:
                out["ranks"] = ranks
        return out

    @property
    def _n_padding(self) -> int:
        """Rows of padding that a shard may have to score before it is known that they are."""
        return int(self.sharding.max_entity_per_shard - self.sharding.shard_counts.min())

    def _windows(
        self, shard: int, negative: Optional[Tensor], negative_mask: Optional[Tensor]
    ) -> Iterator[Window]:
        table, entities = self.entity_embedding[shard], self.score_fn.entities
        if negative is None:
            every = torch.arange(len(table), device=table.device)
            for own, rows in zip(every.split(self.window_size), table.split(self.window_size)):
                yield Window(own[None, None], entities(rows)[None, None], None, rising=True)
            return
        masks: Iterable[Optional[Tensor]] = repeat(None)
        if negative_mask is not None:
            masks = negative_mask[shard].split(self.window_size, dim=-1)
        for given, mask in zip(as_index(negative[shard]).split(self.window_size, dim=-1), masks):
            yield Window(given, entities(table[given]), mask, rising=False)

    def _best_here(
        self, query: List[Tensor], windows: Iterable[Window], k: int
    ) -> Tuple[Tensor, Tensor]:
        """Everyone's queries (S * P, ...), one shard's candidates -> scores, rows (S * P, k)."""
        best: Optional[Tuple[Tensor, Tensor]] = None
        for window in windows:
            scores = self._window_scores(query, window.embedding)
            rows = _per_query(window.rows, len(scores))
            if window.mask is not None:
                scores = scores.masked_fill(~_per_query(window.mask, len(scores)), -math.inf)
            if best is not None:
                scores, rows = torch.cat([best[0], scores], 1), torch.cat([best[1], rows], 1)
            best = _best(scores, rows, k, window.rising)
        assert best is not None
        return best

    def _window_scores(self, query: List[Tensor], candidates: Tensor) -> Tensor:
        """Queries (S * P, ...), candidates (S or 1, A, w, D) -> (S * P, w)."""
        score = self.score_fn.score_candidates
        if candidates.shape[1] > 1 or len(candidates) == 1:
            return score(tuple(query), candidates.flatten(end_dim=1), self.heads)
        by_peer = zip(*(x.unflatten(0, (len(candidates), -1)).unbind() for x in query), candidates)
        return torch.cat([score(tuple(q), rows, self.heads) for *q, rows in by_peer])

    def _returned(self, best: List[Tuple[Tensor, Tensor]]) -> Tuple[Tensor, Tensor]:
        """Scores and rows (S * P, k) of each hosted shard -> scores and IDs (L * P, S * k)."""
        n_shard = self.sharding.n_shard
        score, row = (
            self.exchange.all_to_all(torch.stack(x).unflatten(1, (n_shard, -1))) for x in zip(*best)
        )  # (L, S, P, k), from
        source = torch.arange(n_shard, device=row.device)[:, None, None]
        real = row < self.shard_counts[source]
        score = score.masked_fill(~real, -math.inf)
        ids = self.entity_ids[source, row]
        return tuple(x.transpose(1, 2).flatten(2).flatten(end_dim=1) for x in (score, ids))  # type: ignore[return-value]


class Window(NamedTuple):
    """Candidates of one shard.

    Attributes:
        rows: (S or 1, A, w).
        embedding: (S or 1, A, w, D).
        mask: bool (S, A, w), False where excluded, or None.
        rising: rows rise, within windows and from one to the next.
    """

    rows: Tensor
    embedding: Tensor
    mask: Optional[Tensor]
    rising: bool


def _per_query(x: Tensor, n_query: int) -> Tensor:
    """(S or 1, A, w), A = 1 or P -> (S * P, w)."""
    if x.shape[1] == 1:
        x = x.expand(-1, n_query // len(x), -1)
    return x.flatten(end_dim=1)


def _best(score: Tensor, key: Tensor, k: int, rising: bool) -> Tuple[Tensor, Tensor]:
    """The k best of (Q, C) by score, equal ones by key; `rising`: keys of equal scores rise."""
    if not rising:
        order = key.argsort(dim=-1)
        score, key = score.gather(-1, order), key.gather(-1, order)
    score, column = best_k(score, k)
    return score, key.gather(-1, column)


def _padded(x: Tensor, k: int, value: float) -> Tensor:
    """(Q, C) -> (Q, k)."""
    return nn.functional.pad(x, (0, max(k - x.shape[-1], 0)), value=value)


class AllScoresBESS(QueryBESS):
    """Scores of queries against all entities, a window of each shard's table at a time.

    A whole score matrix is what a host puts together from the windows, or rather does not:
    :class:`~besskge_core.pipeline.AllScoresPipeline` keeps what is asked for.

    Args:
        candidate_sampler: says which side is asked for.
        score_fn: score function, which owns the tables.
        window_size: rows of each shard that are scored in a step.
    """

    inputs: Tuple[str, ...] = ("step", "relation", "head", "tail")

    def __init__(
        self,
        candidate_sampler: PlaceholderNegativeSampler,
        score_fn: BaseScoreFunction,
        window_size: int = 1000,
    ) -> None:
        super().__init__(candidate_sampler, score_fn, window_size)
        if not isinstance(candidate_sampler, PlaceholderNegativeSampler):
            raise ConfigError(
                "AllScoresBESS scores all entities; give it a PlaceholderNegativeSampler,"
                f" not a {type(candidate_sampler).__name__}"
            )

    @property
    def n_step(self) -> int:
        """Windows of a shard's table."""
        return -(-self.sharding.max_entity_per_shard // self.window_size)

    def forward(
        self,
        step: Tensor,
        relation: Tensor,
        head: Optional[Tensor] = None,
        tail: Optional[Tensor] = None,
    ) -> Tensor:
        """Scores of one window.

        Args:
            step: (L, 1) or (), which window; all shards work on the same.
            relation: (L, P), relation IDs.
            head: (L, P), rows here of the known heads, if tails are asked for.
            tail: (L, P), rows here of the known tails, if heads are.

        Returns:
            (L * P, S * window_size), of the rows from step * window_size on of each shard; beyond
            the table its last row is repeated.
        """
        queries, _ = self._queries(relation, head, tail)
        table = self.entity_embedding
        first = step.flatten()[0].long() * self.window_size
        row = first + torch.arange(self.window_size, device=table.device)
        rows = table.index_select(1, row.clamp(max=table.shape[1] - 1))
        window = self.score_fn.entities(rows)
        scores = [
            self.score_fn.score_candidates(tuple(q), own[None], self.heads)
            for *q, own in zip(*(x.unbind() for x in (*queries, window)))
        ]
        n_shard = self.sharding.n_shard
        returned = self.exchange.all_to_all(torch.stack(scores).unflatten(1, (n_shard, -1)))
        return returned.transpose(1, 2).flatten(2).flatten(end_dim=1)
