"""Filtered ranking of test triples against all entities, streaming over the shards.

For each triple, the tail is ranked among all entities as an answer of (h, r, ?) and the head as
an answer of (?, r, t); other known answers are taken out ("filtered", Bordes et al., NeurIPS
2013). Only counts are kept: how many candidates score better than the true one, and how many
the same. Ranks are realistic unless another mode is asked for; a true score that is not a number
ranks last.

Axes:
    Q: queries      T: entities of a tile
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from besskge_core.all_entities import SIDES, AllEntityScorer, Tile, evaluating, make_query
from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange
from besskge_core.known import KnownTriples
from besskge_core.metric import count_ranks, make_metric
from besskge_core.ops import Filter, rank_counts
from besskge_core.scoring import BaseScoreFunction

#: Metrics reported unless others are asked for.
METRICS = ("mrr", "hits@1", "hits@3", "hits@10", "mean_rank", "amri")


@dataclass(frozen=True)
class Ranking:
    """How each triple's answers fared, by side.

    Attributes:
        relation: (n_triple,).
        better: side to int64 (n_triple,), candidates that score better than the true one.
        equal: side to int64 (n_triple,), other candidates that score the same.
        n_candidate: side to int64 (n_triple,), candidates, the true one among them.
    """

    relation: NDArray[np.integer]
    better: Dict[str, NDArray[np.int64]]
    equal: Dict[str, NDArray[np.int64]]
    n_candidate: Dict[str, NDArray[np.int64]]

    def ranks(self, mode: str = "realistic", side: str = "both") -> NDArray[np.float64]:
        """float64 (n_triple,), or (2 n_triple,) for both sides, heads first."""
        better, equal = self._joined(self.better, side), self._joined(self.equal, side)
        ranks: NDArray[np.float64] = count_ranks(
            torch.from_numpy(better), torch.from_numpy(equal), mode
        ).numpy()
        return ranks

    def metrics(
        self,
        mode: str = "realistic",
        side: str = "both",
        relation: Optional[int] = None,
        names: Sequence[str] = METRICS,
    ) -> Dict[str, float]:
        """Means over the queries.

        Args:
            mode: "realistic", "optimistic" or "pessimistic".
            side: "head", "tail" or "both".
            relation: only the triples of this relation.
            names: "mrr", "hits@k", "mean_rank", or "amri", the adjusted mean rank index
                1 - (MR - 1) / (E[MR] - 1) of Berrendorf et al., 2020: 1 is perfect, 0 is chance.

        Raises:
            ConfigError: no such mode, side or metric.
        """
        ranks, n_candidate = self.ranks(mode, side), self._joined(self.n_candidate, side)
        if relation is not None:
            chosen = np.tile(self.relation == relation, len(ranks) // max(len(self.relation), 1))
            ranks, n_candidate = ranks[chosen], n_candidate[chosen]
        return {name: _mean_metric(name, ranks, n_candidate) for name in names}

    def by_relation(
        self, mode: str = "realistic", side: str = "both", names: Sequence[str] = METRICS
    ) -> Dict[int, Dict[str, float]]:
        """Relation ID to its metrics, for each relation that occurs."""
        return {
            int(relation): self.metrics(mode, side, int(relation), names)
            for relation in np.unique(self.relation)
        }

    def _joined(self, of_side: Dict[str, NDArray[np.int64]], side: str) -> NDArray[np.int64]:
        wanted = [s for s in SIDES if s in of_side] if side == "both" else [side]
        missing = [s for s in wanted if s not in of_side]
        if missing or not wanted:
            raise ConfigError(f"side {side!r} was not ranked; expected 'both' or {list(of_side)}")
        return np.concatenate([of_side[s] for s in wanted])


def _mean_metric(name: str, ranks: NDArray[np.float64], n_candidate: NDArray[np.int64]) -> float:
    if len(ranks) == 0:
        return math.nan
    if name == "mean_rank":
        return float(ranks.mean())
    if name == "amri":
        expected = float(((n_candidate + 1) / 2).mean())
        return math.nan if expected == 1.0 else 1.0 - (float(ranks.mean()) - 1) / (expected - 1)
    return float(make_metric(name)(torch.from_numpy(ranks)).double().mean())


def rank_triples(
    score_fn: BaseScoreFunction,
    triples: NDArray[np.integer],
    known: Optional[KnownTriples] = None,
    sides: Sequence[str] = SIDES,
    max_scores: int = 2**25,
    progress: Callable[[int], object] = lambda n_query: None,
    exchange: Optional[Exchange] = None,
) -> Ranking:
    """Rank the entities of triples among all entities.

    Args:
        score_fn: the model; it is put in evaluation mode while this runs.
        triples: (n_triple, 3), entity and relation IDs.
        known: triples to filter with, normally those of train, valid and test; None: raw ranks.
        sides: which sides to rank.
        max_scores: scores held at a time; bounds the memory, never changes a rank.
        progress: called with the number of queries done since the last call.
        exchange: of the ranks that have the rows, each of which ranks among its own entities, and
            gets the result; None: all are here.

    Raises:
        ConfigError: triples of another graph, or an unknown side.
    """
    _check(score_fn, triples, sides)
    scorer, rows = AllEntityScorer(score_fn, max_scores, exchange), score_fn.sharding.flat_row
    ids, n_triple = np.asarray(triples, dtype=np.int64), len(triples)
    counts: Dict[str, NDArray[np.int64]] = {}
    with evaluating(score_fn):
        for side in sides:
            order = _same_queries_together(ids, side) if n_triple else np.empty(0, np.int64)
            counts[side] = np.empty((3, n_triple), dtype=np.int64)
            for first in range(0, n_triple, scorer.batch_size):
                batch = order[first : first + scorer.batch_size]
                counts[side][:, batch] = _rank_batch(scorer, ids[batch], known, side, rows)
                progress(len(batch))
    better, equal, n_candidate = ({s: c[i] for s, c in counts.items()} for i in range(3))
    return Ranking(np.asarray(triples)[:, 1], better, equal, n_candidate)


def _same_queries_together(triples: NDArray[np.int64], side: str) -> NDArray[np.intp]:
    """Places of the triples, those of one query after each other."""
    given = triples[:, 0 if side == "tail" else 2]
    return np.lexsort((given, triples[:, 1]))


def rank_candidates(
    score_fn: BaseScoreFunction,
    triples: NDArray[np.integer],
    candidates: Mapping[str, NDArray[np.integer]],
    max_scores: int = 2**25,
    exchange: Optional[Exchange] = None,
) -> Ranking:
    """Rank the entities of triples among given candidates, as OGB's evaluator does.

    The rank is realistic by default: the mean of the optimistic and the pessimistic one, which
    is also OGB's protocol for ogbl-biokg and ogbl-wikikg2. Candidates are taken as they are: the
    lists of a benchmark have been filtered by those who made them.

    Args:
        score_fn: the model; it is put in evaluation mode while this runs.
        triples: (n_triple, 3), entity and relation IDs.
        candidates: side ("head", "tail") to IDs (n_triple, K), or (1, K) for all triples, the true
            one not among them, such as `KGDataset.neg_heads` and `neg_tails` of a part.
        max_scores: numbers held at a time; bounds the memory.
        exchange: see :func:`rank_triples`.

    Raises:
        ConfigError: triples or candidates of another graph or shape, or an unknown side.
    """
    _check(score_fn, triples, list(candidates))
    scorer = AllEntityScorer(score_fn, max_scores, exchange)
    counts = {
        side: _among(scorer, np.asarray(triples, np.int64), side, np.ascontiguousarray(ids))
        for side, ids in candidates.items()
    }
    better, equal, n_candidate = ({s: c[i] for s, c in counts.items()} for i in range(3))
    return Ranking(np.asarray(triples)[:, 1], better, equal, n_candidate)


@torch.no_grad()
def _among(
    scorer: AllEntityScorer,
    triples: NDArray[np.int64],
    side: str,
    candidates: NDArray[np.integer],
) -> Tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """better, equal and n_candidate (n_triple,) of one side."""
    score_fn, exchange = scorer.score_fn, scorer.exchange
    n_triple, sharding = len(triples), score_fn.sharding
    if candidates.ndim != 2 or len(candidates) not in (1, n_triple):
        raise ConfigError(
            f"candidates of {side!r} have shape {candidates.shape}, expected ({n_triple}, K) or"
            " (1, K)"
        )
    if candidates.size and not 0 <= candidates.min() <= candidates.max() < sharding.n_entity:
        raise ConfigError(
            f"candidates of {side!r} run from {candidates.min()} to {candidates.max()}, expected"
            f" entity IDs of [0, {sharding.n_entity})"
        )
    table, n_list = score_fn.entity_embedding.flatten(end_dim=1), candidates.shape[1]
    flat_row = torch.from_numpy(sharding.flat_row).to(table.device)
    size = max(scorer.max_scores // ((n_list + 1) * table.shape[1]), 1)
    better, equal = np.zeros(n_triple, np.int64), np.zeros(n_triple, np.int64)
    with evaluating(score_fn), score_fn.pooling(False):
        for batch in (slice(i, i + size) for i in range(0, n_triple, size)):
            rows = torch.from_numpy(triples[batch]).to(table.device)
            lists = torch.from_numpy(candidates if len(candidates) == 1 else candidates[batch])
            known, answer = (rows[:, 0], rows[:, 2]) if side == "tail" else (rows[:, 2], rows[:, 0])
            known_rows = score_fn.entities(scorer.rows(flat_row[known]))
            query, heads = make_query(score_fn, side, known_rows, rows[:, 1])
            # Beside the candidates, so that equal embeddings have equal scores to the last bit.
            ids = torch.cat([answer[:, None], lists.to(table.device).expand(len(rows), -1)], 1)
            place, is_here = scorer.here(flat_row[ids])
            scores = score_fn.score_candidates(query, score_fn.entities(table[place]), heads)
            truth = exchange.sum_ranks(torch.where(is_here, scores, 0.0)[:, :1])
            rivals, others = scores[:, 1:], is_here[:, 1:]
            counts = [((rivals > truth) | truth.isnan()) & others, (rivals == truth) & others]
            found = exchange.sum_ranks(torch.stack([x.sum(1) for x in counts]))
            better[batch], equal[batch] = found.cpu().numpy()
    return better, equal, np.full(n_triple, n_list + 1)


def _rank_batch(
    scorer: AllEntityScorer,
    triples: NDArray[np.int64],
    known: Optional[KnownTriples],
    side: str,
    rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    """better, equal and n_candidate, (3, A), of triples whose queries are next to each other.

    Args:
        rows: flat row of each entity.
    """
    sharding, device = scorer.score_fn.sharding, scorer.score_fn.entity_embedding.device
    head, relation, tail = triples.T
    given, answer = (head, tail) if side == "tail" else (tail, head)
    is_new = np.ones(len(triples), dtype=bool)
    is_new[1:] = (given[1:] != given[:-1]) | (relation[1:] != relation[:-1])
    asked, given, relation = np.cumsum(is_new) - 1, given[is_new], relation[is_new]
    query, filtered = np.empty(0, np.int64), np.empty(0, np.int64)
    if known is not None:
        query, filtered = known.answers(side, given, relation)
    own = _is_among(asked, answer, query, filtered, sharding.n_entity)
    n_filtered = np.bincount(query, minlength=len(given))
    n_candidate = sharding.n_entity - n_filtered[asked] + own

    def on_device(x: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(x).to(device)

    tiles = scorer.tiles_twice(side, on_device(rows[given]), on_device(relation))
    found = compare_with_answers(
        tiles, on_device(rows[answer]), on_device(query), on_device(rows[filtered]),
        on_device(asked), on_device(own), scorer.exchange,
    )  # fmt: skip
    lost = found.answer_score.isnan()
    better = torch.where(lost, on_device(n_candidate) - 1, found.better)
    equal = found.equal.masked_fill(lost, 0)
    return np.stack([better.cpu().numpy(), equal.cpu().numpy(), n_candidate])


def _is_among(
    asked: NDArray[np.int64],
    answer: NDArray[np.int64],
    query: NDArray[np.int64],
    entity: NDArray[np.int64],
    n_entity: int,
) -> NDArray[np.bool_]:
    """bool (A,): which answers are among the pairs of a query and an entity (K,), in rising order."""
    pairs, wanted = query * n_entity + entity, asked * n_entity + answer
    place = np.searchsorted(pairs, wanted)
    among: NDArray[np.bool_] = np.append(pairs, -1)[place] == wanted
    return among


class Compared(NamedTuple):
    """How answers (A,) fare among the candidates.

    Attributes:
        better: int64 (A,), candidates that score better than the answer.
        equal: int64 (A,), other candidates that score the same.
        answer_score: (A,), the very numbers that the tiles hold.
    """

    better: Tensor
    equal: Tensor
    answer_score: Tensor


def compare_with_answers(
    tiles: Iterable[Tile],
    answer_row: Tensor,
    query: Tensor,
    filtered_row: Tensor,
    asked: Optional[Tensor] = None,
    own: Optional[Tensor] = None,
    exchange: Optional[Exchange] = None,
) -> Compared:
    """Count who beats the answers.

    Args:
        tiles: scores of all candidates for each query; walked through twice.
        answer_row: (A,), flat rows of the answers.
        query: (K,), rising, and
        filtered_row: (K,), flat rows of entities that do not take part in the query's ranking;
            each pair once.
        asked: (A,), the query of each answer. None: each query has one, in turn.
        own: bool (A,), whether an answer is among those filtered. None: none is.
        exchange: of the ranks that have the other tiles. None: all are here.
    """
    asked = torch.arange(len(answer_row), device=answer_row.device) if asked is None else asked
    answer_score = _pick_true(tiles, answer_row, asked)
    if exchange is not None:  # all but one have zero
        answer_score = exchange.sum_ranks(answer_score)
    better = torch.zeros_like(answer_row, dtype=torch.int64)
    equal = torch.zeros_like(better)
    filtered: Optional[Filter] = None
    for first, scores in tiles:
        if filtered is None:
            filtered = Filter.of(query, filtered_row, len(scores))
        better_here, equal_here = rank_counts(scores, answer_score, asked, filtered, first)
        better += better_here
        equal += equal_here
    if exchange is not None:
        better, equal = exchange.sum_ranks(torch.stack([better, equal]))
    equal -= 1  # the answer equals itself
    if own is not None:
        equal += own
    return Compared(better, equal, answer_score)


def _pick_true(tiles: Iterable[Tile], answer_row: Tensor, asked: Tensor) -> Tensor:
    """(A,): the scores of the answers, the very numbers of their tiles; 0 if there is no tile."""
    true_score: Optional[Tensor] = None
    for first, scores in tiles:
        if true_score is None:
            true_score = scores.new_zeros(len(answer_row))
        column = answer_row - first
        here = (column >= 0) & (column < scores.shape[1])
        found = scores[asked, column.clamp(0, scores.shape[1] - 1)]
        true_score = torch.where(here, found, true_score)
    assert true_score is not None
    return true_score


def _check(score_fn: BaseScoreFunction, triples: NDArray[np.integer], sides: Sequence[str]) -> None:
    unknown = sorted(set(sides) - set(SIDES))
    if unknown or not sides:
        raise ConfigError(f"unknown sides {unknown or sides}; expected some of {SIDES}")
    if len(triples) == 0:
        return
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise ConfigError(f"triples have shape {triples.shape}, expected (n_triple, 3)")
    n_entity, n_relation = score_fn.sharding.n_entity, score_fn.n_relation_type
    top = triples.max(axis=0)
    if triples.min() < 0 or max(top[0], top[2]) >= n_entity or top[1] >= n_relation:
        raise ConfigError(
            f"triples name entity {max(top[0], top[2])} and relation {top[1]}; the model has"
            f" {n_entity} entities and {n_relation} relations"
        )
