"""The two training schemes: embeddings move, or scores do."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.bess.base import BessKGE, heads_of
from besskge_core.bess.layout import MicroBatch, Scored, ask, join_sides, of_side
from besskge_core.errors import ConfigError
from besskge_core.loss import Loss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import ShardedNegativeSampler
from besskge_core.regularizer import Regularizer
from besskge_core.scoring import BaseScoreFunction, Heads


class EmbeddingMovingBessKGE(BessKGE):
    """Tails and negatives travel to the shard of the head, in one all-to-all.

    Moves S * (P + A * N) * D numbers from each shard: cheaper than moving scores when negatives
    are shared and rows are narrow against the number of scores.
    """

    _pools_lists = False

    def lookups(
        self, head: Tensor, tail: Tensor, negative: Tensor, hub: Optional[Tensor] = None
    ) -> Tensor:
        """(L, S P + S (P + A N) + H): heads, for each peer its tails and negatives (to), hubs."""
        sent = torch.cat([self._here(tail, hub), negative.flatten(2)], dim=2)
        index = [self._here(head, hub).flatten(1), sent.flatten(1)]
        return torch.cat(index if hub is None else [*index, hub], dim=1)

    def score_batch(
        self, head: Tensor, relation: Tensor, tail: Tensor, negative: Tensor
    ) -> Tuple[Tensor, Tensor]:
        scored = EmbeddingMovingBessKGE._score(self, MicroBatch(head, relation, tail, negative))
        return scored.positive.flatten(), scored.negative.flatten(end_dim=1)

    def _score(self, batch: MicroBatch) -> Scored:
        n_peer, n_positive = batch.head.shape[1:]
        head_rows, tail_rows, negative_rows = self._exchanged(batch)
        sides = self._sides(n_positive)
        of_shards = [head_rows, batch.relation.flatten(1), tail_rows, negative_rows]
        if batch.heads_replaced is not None:
            of_shards.append(batch.heads_replaced.flatten(1))
        positive, negative = [], []
        for h, r, t, lists, *replaced in zip(*(x.unbind() for x in of_shards)):
            positives, scores = [], []
            for i, side in enumerate(sides):
                heads = heads_of(side, *(replaced or [None]))
                h_s, r_s, t_s = (of_side(x, 0, side, n_positive) for x in (h, r, t))
                query, own, own_score = ask(self.score_fn, h_s, r_s, t_s, heads)
                positives.append(own_score)
                candidates = self._candidates(self._blocks(lists, 1, i, side, n_positive))
                of_side_scores = [self.score_fn.score_candidates(query, candidates, heads)]
                if self.augment_negative:
                    of_side_scores.append(self.score_fn.score_candidates(query, own[None], heads))
                scores.append(torch.cat(of_side_scores, dim=-1))
            positive.append(join_sides(positives, sides))
            negative.append(join_sides(scores, sides))
        scored = Scored(torch.stack(positive), torch.stack(negative), head_rows, tail_rows)
        return self._mask_augmented(scored, batch) if self.augment_negative else scored

    def _exchanged(self, batch: MicroBatch) -> Tuple[Tensor, Tensor, Tensor]:
        """Rows of heads and tails (L, B, D) and of negatives (L, S, A, N, D), from the peers."""
        n_peer, n_positive = batch.head.shape[1:]
        rows = self._rows(batch)
        hubs = self._hubs(rows, batch.hub)
        n_query, n_sent = n_peer * n_positive, batch.tail[0].numel() + batch.negative[0].numel()
        sent = rows[:, n_query : n_query + n_sent].unflatten(1, (n_peer, -1))
        if self.negative_sampler.local_sampling:
            tail_rows = self.exchange.all_to_all(sent[:, :, :n_positive])
            negative_rows = sent[:, :, n_positive:]
        else:
            received = self.exchange.all_to_all(sent)
            tail_rows, negative_rows = received[:, :, :n_positive], received[:, :, n_positive:]
        head_rows, tail_rows = self._place_hubs(
            batch, hubs, rows[:, :n_query], tail_rows.flatten(1, 2)
        )
        return head_rows, tail_rows, negative_rows.unflatten(2, batch.negative.shape[2:])

    def _candidates(self, rows: Tensor) -> Tensor:
        """Rows (S, A', N, D) from the peers -> (1, C, D) if shared, else (A', C, D)."""
        if self._shares_candidates:
            return rows.reshape(1, -1, rows.shape[-1])
        return rows.transpose(0, 1).flatten(1, 2)

    def _mask_augmented(self, scored: Scored, batch: MicroBatch) -> Scored:
        """Exclude from the columns that augmentation added whoever is not a negative."""
        n_positive, sides = batch.head.shape[-1], self._sides(batch.head.shape[-1])
        mask = batch.triple_mask
        counted = torch.ones_like(batch.head, dtype=torch.bool) if mask is None else mask
        ids = (batch.head.flatten(1), self._entity_of_tail(batch.tail), counted.flatten(1))
        kept = []
        for head_id, tail_id, real in zip(*(x.unbind() for x in ids)):
            of_sides = []
            for side in sides:
                own = of_side(head_id if side.heads else tail_id, 0, side, n_positive)
                of_sides.append((own[:, None] != own) & of_side(real, 0, side, n_positive))
            kept.append(join_sides(of_sides, sides))
        added = torch.stack(kept)
        before = torch.ones_like(scored.negative[..., : -added.shape[-1]], dtype=torch.bool)
        both = torch.cat([before, added], dim=-1)
        return scored._replace(negative=scored.negative.masked_fill(~both, -math.inf), mask=both)

    def _entity_of_tail(self, tail: Tensor) -> Tensor:
        """tail (L, S, P), to -> (L, B), from: a number of each entity, for hubs the same everywhere."""
        n_row, n_peer = self.entity_embedding.shape[1], tail.shape[1]
        peer = torch.arange(n_peer, device=tail.device)[:, None]
        row = self.exchange.all_to_all(tail)
        return torch.where(row < n_row, row + peer * n_row, row - n_row + n_peer * n_row).flatten(1)


class ScoreMovingBessKGE(BessKGE):
    """Queries are gathered on every shard, scored against its own negatives, and scores return.

    Negatives do not travel. With negatives in flat format, drawn at random, every query is scored
    against the lists of all shards: S * S * N candidates.
    """

    _pools_lists = True

    def __init__(
        self,
        negative_sampler: ShardedNegativeSampler,
        score_fn: BaseScoreFunction,
        loss_fn: Optional[Loss] = None,
        evaluation: Optional[Evaluation] = None,
        return_scores: bool = False,
        augment_negative: bool = False,
        regularizer: Optional[Regularizer] = None,
    ) -> None:
        if augment_negative or negative_sampler.local_sampling:
            raise ConfigError(
                "ScoreMovingBessKGE moves no negatives: augment_negative and local_sampling"
                " need EmbeddingMovingBessKGE"
            )
        super().__init__(
            negative_sampler, score_fn, loss_fn, evaluation, return_scores, False, regularizer
        )

    def lookups(
        self, head: Tensor, tail: Tensor, negative: Tensor, hub: Optional[Tensor] = None
    ) -> Tensor:
        """(L, S P + S P + S A N + H): heads, tails (to), negatives (to), hubs."""
        index = [*(self._here(x, hub).flatten(1) for x in (head, tail)), negative.flatten(1)]
        return torch.cat(index if hub is None else [*index, hub], dim=1)

    def score_batch(
        self, head: Tensor, relation: Tensor, tail: Tensor, negative: Tensor
    ) -> Tuple[Tensor, Tensor]:
        scored = ScoreMovingBessKGE._score(self, MicroBatch(head, relation, tail, negative))
        return scored.positive.flatten(), scored.negative.flatten(end_dim=1)

    def _score(self, batch: MicroBatch) -> Scored:
        n_peer, n_positive = batch.head.shape[1:]
        n_query, shape = n_peer * n_positive, batch.negative.shape
        rows = self._rows(batch)
        hubs = self._hubs(rows, batch.hub)
        negative_rows = rows[:, 2 * n_query : 2 * n_query + batch.negative[0].numel()]
        sent = rows[:, n_query : 2 * n_query].unflatten(1, (n_peer, n_positive))
        head_rows, tail_rows = self._place_hubs(
            batch, hubs, rows[:, :n_query], self.exchange.all_to_all(sent).flatten(1, 2)
        )
        relation, sides = batch.relation.flatten(1), self._sides(n_positive)
        replaced = None if batch.heads_replaced is None else batch.heads_replaced.flatten(1)
        lists = negative_rows.unflatten(1, shape[1:])  # (L, S, A, N, D), to
        positives, scores = [], []
        for i, side in enumerate(sides):
            h, r, t = (of_side(x, 1, side, n_positive) for x in (head_rows, relation, tail_rows))
            of_side_scores, queries = self._queries(heads_of(side, replaced), h, r, t)
            positives.append(of_side_scores)
            blocks = self._blocks(lists, 2, i, side, n_positive)
            scores.append(
                [
                    self._score_here(query, of_shard, side.heads)
                    for *query, of_shard in zip(*(x.unbind() for x in (*queries, blocks)))
                ]
            )
        # Stacked so that what follows is a view where all shards are here.
        joined = [
            join_sides([x.flatten(0, 1) for x in of_shard], sides) for of_shard in zip(*scores)
        ]
        by_peer = [x.unflatten(0, (n_peer, n_query)) for x in joined]  # (S, B, C / S), to
        stacked = torch.stack(by_peer, dim=2).permute(2, 0, 1, 3)
        returned = self.exchange.all_to_all(stacked)  # (L, S, B, C / S), from
        positive = torch.stack([join_sides(list(x), sides) for x in zip(*positives)])
        return Scored(positive, returned.transpose(1, 2).flatten(2), head_rows, tail_rows)

    def _queries(
        self, heads: Heads, head_rows: Tensor, relation: Tensor, tail_rows: Tensor
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """Scores (B') of the positives of each hosted shard, and everyone's queries (L, S, B', ...).

        Where each triple has its own side, the sides travel as the last part of the queries.
        """
        of_shards = [head_rows, relation, tail_rows]
        if isinstance(heads, Tensor):
            of_shards.append(heads)
        positives, queries = [], []
        for h, r, t, *own_heads in zip(*(x.unbind() for x in of_shards)):
            asked = own_heads[0] if own_heads else heads
            query, _, own_score = ask(self.score_fn, h, r, t, asked)
            positives.append(own_score)
            queries.append([*query, *own_heads])
        return positives, [self.exchange.all_gather(torch.stack(x)) for x in zip(*queries)]

    def _score_here(self, query: List[Tensor], negative: Tensor, heads: bool) -> Tensor:
        """Queries (S, B', ...) of all shards, negatives (S, A', N, D) here -> (S, B', C / S)."""
        if self._shares_candidates and self.negative_sampler.given:
            # The list given to a shard is for its own queries: do not pool the lists.
            peers = zip(*query, negative)
            return torch.stack([self._scores(x, lists[None], heads) for *x, lists in peers])
        merged = [x.flatten(0, 1) for x in query]
        return self._scores(merged, negative, heads).unflatten(0, query[0].shape[:2])

    def _scores(self, query: List[Tensor], negative: Tensor, heads: Heads) -> Tensor:
        """Queries (Q, ...), negatives (T, A', N, D) -> (Q, C)."""
        if self.negative_sampler.corruption_scheme == "either":
            *query, heads = query
        width = negative.shape[-1]
        shape = (1, -1, width) if self._shares_candidates else (-1, negative.shape[2], width)
        return self.score_fn.score_candidates(tuple(query), negative.reshape(shape), heads)

    def _order(self, x: Tensor) -> Tensor:
        if not self._shares_candidates or self.negative_sampler.given:
            return super()._order(x)
        pooled = self.exchange.all_gather(x)  # (L, T, A', S, N)
        return pooled.permute(0, 3, 1, 2, 4).flatten(1).unsqueeze(1)
