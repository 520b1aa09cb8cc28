"""All completions of a set of queries: filtered ranks, best answers, and scores if asked for.

The shards score a window of their tables at a time (:class:`~besskge_core.bess.AllScoresBESS`);
the host counts who beats the true answer and keeps the best. Scores of queries x entities are
held only if they are to be returned.

Axes:
    Q: queries, in the order of the batches, padding left out
    T: rows of a tile
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from besskge_core.all_entities import Tile, evaluating, marked_rows
from besskge_core.batch_sampler import Batch, ShardedBatchSampler
from besskge_core.bess import AllScoresBESS
from besskge_core.errors import ConfigError
from besskge_core.evaluation import compare_with_answers
from besskge_core.known import KnownTriples
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import PlaceholderNegativeSampler
from besskge_core.ops import Filter
from besskge_core.philox import Position
from besskge_core.scoring import BaseScoreFunction
from besskge_core.top_k import BestSoFar

#: Scores of a batch that are kept for a second look; more are computed again.
MAX_SCORES = 2**25


class AllScoresPipeline(nn.Module):
    """Answers all queries of a sampler, whose triples are partitioned by the known entity.

    Entities that make a filtered triple with the query, and those that are not candidates, take no
    part and score -inf. The true answer is never filtered; if it is not a candidate, it scores
    -inf too, and every candidate is before it.

    Args:
        batch_sampler: of queries, partitioned by "h_shard" for tails and by "t_shard" for heads.
        corruption_scheme: "t" to answer (h, r, ?), "h" to answer (?, r, t).
        score_fn: the model.
        evaluation: ranks and metrics of the true answers.
        filter_triples: arrays (n, 3) of triples, by ID, whose entities are taken out.
        candidate_ents: (n,), IDs of the entities that may be answers; by default all.
        return_scores: also return all scores.
        return_topk: also return the best answers.
        k: how many.
        window_size: rows of each shard that are scored at a time.
        use_ipu_model: not supported: this runs in the present process.
    """

    def __init__(
        self,
        batch_sampler: ShardedBatchSampler,
        corruption_scheme: str,
        score_fn: BaseScoreFunction,
        evaluation: Optional[Evaluation] = None,
        filter_triples: Optional[Sequence[Union[Tensor, NDArray[np.integer]]]] = None,
        candidate_ents: Optional[ArrayLike] = None,
        return_scores: bool = False,
        return_topk: bool = False,
        k: int = 10,
        window_size: int = 1000,
        use_ipu_model: bool = False,
    ) -> None:
        super().__init__()
        if evaluation is None and not (return_scores or return_topk):
            raise ConfigError(
                "nothing to return: give evaluation, or return_scores=True or return_topk=True"
            )
        if use_ipu_model:
            raise ConfigError("use_ipu_model is not supported: leave it out to run on the CPU")
        self.candidate_sampler = PlaceholderNegativeSampler(corruption_scheme)
        self.bess_module = AllScoresBESS(self.candidate_sampler, score_fn, window_size)
        self.corruption_scheme, self.window_size = corruption_scheme, window_size
        triple_set = batch_sampler.triple_set
        wanted = "t_shard" if corruption_scheme == "h" else "h_shard"
        if triple_set.partition_mode != wanted:
            raise ConfigError(
                f"corruption scheme {corruption_scheme!r} needs triples partitioned by {wanted!r},"
                f" not {triple_set.partition_mode!r}"
            )
        self.asked, self.given = ("head", "tail") if corruption_scheme == "h" else ("tail", "head")
        if evaluation is not None and triple_set.dummy == self.asked:
            raise ConfigError(
                "an evaluation needs the answers of the queries; partition them with"
                " create_from_queries(..., ground_truth=...)"
            )
        if return_topk and k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        self.batch_sampler, self.score_fn, self.evaluation = batch_sampler, score_fn, evaluation
        self.return_scores, self.return_topk, self.k = return_scores, return_topk, k
        self._known = _known(filter_triples, score_fn)
        self._allowed = _allowed(candidate_ents, score_fn)
        self._check_sharding()
        self._entity_of_row = torch.from_numpy(score_fn.sharding.shard_and_idx_to_entity.ravel())

    def forward(self) -> Dict[str, Any]:
        """Go through all queries.

        Returns:
            As asked for: "scores" (Q, n_entity), by entity ID. "topk_global_id" int64 (Q, k), best
            first, -1 where there are fewer, and "topk_scores" (Q, k). "triple_idx" (Q,), places in
            the partitioned triple set, if the sampler gives them. "metrics", name to (Q,) or its
            sum () as the evaluation says, "metrics_avg", name to mean, and "ranks" (Q,).
        """
        self._check_sharding()
        parts: Dict[str, List[Tensor]] = {}
        with evaluating(self.score_fn):
            for step in range(self.batch_sampler.n_step):
                batch = self.batch_sampler.batch(Position(0, step), shuffle=False)
                for i in range(self.batch_sampler.batches_per_step):
                    micro = {name: x[i] for name, x in batch.items()}
                    for name, x in self._answer(micro).items():
                        parts.setdefault(name, []).append(x)
        out: Dict[str, Any] = {name: torch.cat(x) for name, x in parts.items()}
        if self.evaluation is not None:
            ranks = out["ranks"] if self.evaluation.return_ranks else out.pop("ranks")
            out["metrics"] = self.evaluation.dict_metrics_from_ranks(ranks)
            out["metrics_avg"] = {name: x.sum() / len(ranks) for name, x in out["metrics"].items()}
        return out

    def _check_sharding(self) -> None:
        """Rows of the queries must be those of the model."""
        if not self.score_fn.sharding.same_rows(self.batch_sampler.triple_set.sharding):
            raise ConfigError(
                "the queries were partitioned for another sharding than the model has; partition"
                " them again, with score_fn.sharding, and make the pipeline anew"
            )

    def _answer(self, batch: Batch) -> Dict[str, Tensor]:
        """What is asked for, of one micro-batch (S, P): Q <= S * P."""
        sharding = self.score_fn.sharding
        every = torch.ones_like(batch["relation"], dtype=torch.bool)
        kept = batch.get("triple_mask", every).flatten()
        shard = np.arange(sharding.n_shard)[:, None]
        given = sharding.entity_of(shard, batch[self.given].numpy()).ravel()[kept.numpy()]
        relation = batch["relation"].flatten()[kept].long().numpy()
        answer = batch[self.asked].flatten()[kept].long() if self.asked in batch else None
        query, filtered = self._filtered(given, relation, answer)
        tiles = _Windows(self, batch, kept)
        found: Dict[str, Tensor] = {}
        if self.evaluation is not None:
            assert answer is not None
            found["ranks"] = self._ranks(tiles, answer, query, filtered)
        known = Filter.of(query, filtered, len(relation))
        if self.return_topk:
            best = BestSoFar(len(relation), self.score_fn.entity_embedding)
            for first, scores in tiles:
                ids = self._entity_of_row[first : first + scores.shape[1]]
                best.add(scores, ids, self.k, known, first)
            top = best.result()
            found["topk_global_id"] = _wide(torch.from_numpy(top.id), self.k, -1)
            found["topk_scores"] = _wide(torch.from_numpy(top.score), self.k, -math.inf)
        if self.return_scores:
            found["scores"] = self._matrix(tiles, known)
        if "triple_idx" in batch:
            found["triple_idx"] = batch["triple_idx"].flatten()[kept]
        return found

    def _filtered(
        self, given: NDArray[np.integer], relation: NDArray[np.int64], answer: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Queries, and flat rows of the candidates that are taken out; never the true answer."""
        if self._known is None:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        query, entity = self._known.answers(self.asked, given, relation)
        if answer is not None:
            others = entity != answer.numpy()[query]
            query, entity = query[others], entity[others]
        row = torch.from_numpy(self.score_fn.sharding.flat_row[entity])
        kept = slice(None) if self._allowed is None else self._allowed[row]
        return torch.from_numpy(query)[kept], row[kept]

    def _ranks(self, tiles: _Windows, answer: Tensor, query: Tensor, filtered: Tensor) -> Tensor:
        assert self.evaluation is not None
        row = torch.from_numpy(self.score_fn.sharding.flat_row)[answer]
        found = compare_with_answers(tiles, row, query, filtered)
        n_rival = torch.full_like(answer, self.score_fn.sharding.n_entity)
        own = torch.ones_like(answer)
        if self._allowed is not None:
            n_rival.fill_(int(self._allowed.sum()))
            own = self._allowed[row].long()
        n_rival.index_add_(0, query, torch.full_like(query, -1))
        n_rival -= own
        # Who is no candidate, or has no number for a score, is behind all that take part.
        lost = found.answer_score.isnan() | (own == 0)
        better = torch.where(lost, n_rival, found.better)
        return self.evaluation.ranks_from_counts(better, found.equal.masked_fill(lost, 0), n_rival)

    def _matrix(self, tiles: _Windows, known: Filter) -> Tensor:
        """(Q, n_entity) by entity ID."""
        n_entity = self.score_fn.sharding.n_entity
        whole: Optional[Tensor] = None
        for first, scores in tiles:
            if whole is None:
                whole = scores.new_empty((len(scores), n_entity))
            n_column = scores.shape[1]
            ids, scores = self._entity_of_row[first : first + n_column], scores.clone()
            scores[known.places(first, n_column)] = -math.inf
            whole[:, ids.long()] = scores
        assert whole is not None
        return whole


class _Windows:
    """Tiles of the scores of one micro-batch, again and again; kept if they fit."""

    def __init__(self, pipeline: AllScoresPipeline, batch: Batch, kept: Tensor) -> None:
        self._pipeline, self._kept = pipeline, kept
        self._columns = {name: batch[name] for name in ("relation", pipeline.given)}
        n_score = int(kept.sum()) * pipeline.score_fn.sharding.n_entity
        self._tiles: List[Tile] = list(self._scored()) if n_score <= MAX_SCORES else []

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._tiles) if self._tiles else self._scored()

    def _scored(self) -> Iterator[Tile]:
        module, allowed = self._pipeline.bess_module, self._pipeline._allowed
        device = module.entity_embedding.device
        columns = {name: x.to(device) for name, x in self._columns.items()}
        n_row, counts = module.sharding.max_entity_per_shard, module.sharding.shard_counts
        for step in range(module.n_step):
            window = module(torch.tensor([[step]]), **columns).cpu()[self._kept]
            by_shard = window.unflatten(1, (module.sharding.n_shard, -1))
            begin = step * module.window_size
            for shard, count in enumerate(counts.tolist()):
                scores = by_shard[:, shard, : max(min(count - begin, module.window_size), 0)]
                if scores.shape[1] == 0:
                    continue
                first = shard * n_row + begin
                if allowed is not None:
                    here = allowed[first : first + scores.shape[1]]
                    scores = scores.masked_fill(~here, -math.inf)
                yield Tile(first, scores)


def _wide(x: Tensor, k: int, value: float) -> Tensor:
    return nn.functional.pad(x, (0, k - x.shape[1]), value=value)


def _known(
    filter_triples: Optional[Sequence[Union[Tensor, NDArray[np.integer]]]],
    score_fn: BaseScoreFunction,
) -> Optional[KnownTriples]:
    if not filter_triples:
        return None
    arrays = [x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in filter_triples]
    for array in arrays:
        if array.ndim != 2 or array.shape[1] != 3:
            raise ConfigError(f"filter_triples has an array {array.shape}, expected (n, 3)")
    return KnownTriples(arrays, score_fn.sharding.n_entity, score_fn.relation_embedding.shape[0])


def _allowed(candidate_ents: Optional[ArrayLike], score_fn: BaseScoreFunction) -> Optional[Tensor]:
    """bool, by flat row: whether the entity may be an answer."""
    if candidate_ents is None:
        return None
    sharding, ids = score_fn.sharding, np.asarray(candidate_ents).ravel()
    if len(ids) == 0 or not 0 <= ids.min() <= ids.max() < sharding.n_entity:
        raise ConfigError(
            f"candidate_ents has {len(ids)} IDs{f' up to {ids.max()}' if len(ids) else ''},"
            f" expected some of [0, {sharding.n_entity})"
        )
    return marked_rows(sharding, ids)
