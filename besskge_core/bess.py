"""BESS: distributed scoring of triples and of their negatives, as one SPMD program.

A triple is scored on the shard of its head. What travels is the tails and either the negatives
(:class:`EmbeddingMovingBessKGE`) or the queries and the scores (:class:`ScoreMovingBessKGE`).
Every shard sends and receives equally much, because each step takes equally many triples of each
shard pair.

Axes, of what the shards hosted by one worker hold:
    L: hosted shard         S: peer shard, *to* or *from* which a block goes
    P: positives of a shard pair             B = S * P: positives that one shard scores
    A: blocks of negatives: 1 for all positives (2 for the scheme "ht"), or B, one a positive
    N: negatives of a block from one peer    C: all negatives of a positive
    E: rows of a shard's table               D: width of an entity row

One replica or rank hosts one shard, L = 1; one process may host them all, L = S.
"""

from __future__ import annotations

import abc
import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange, LocalExchange
from besskge_core.loss import BaseLossFunction
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import ShardedNegativeSampler
from besskge_core.ops import gather
from besskge_core.regularizer import Regularizer
from besskge_core.scoring import BaseScoreFunction
from besskge_core.shapes import match_shapes


class Side(NamedTuple):
    """The positives `first` to `last` of each shard pair, whose heads or tails are replaced."""

    heads: bool
    first: int
    last: int


class Scored(NamedTuple):
    """Scores of a micro-batch, and the entity rows that a regulariser wants.

    Attributes:
        positive: (L, B).
        negative: (L, B, C), -inf where excluded by augmentation.
        head, tail: (L, B, D), or None if the scores came without them.
        mask: bool (L, B, C), False where excluded, or None.
    """

    positive: Tensor
    negative: Tensor
    head: Optional[Tensor] = None
    tail: Optional[Tensor] = None
    mask: Optional[Tensor] = None


class BessKGE(nn.Module, abc.ABC):
    """Base of distributed training and inference, for triples partitioned by shard pairs.

    Args:
        negative_sampler: sampler of the negatives.
        score_fn: score function, which owns the tables.
        loss_fn: loss; needed for training.
        evaluation: metrics of the negatives' ranking, computed with the scores.
        return_scores: also return the scores.
        augment_negative: also corrupt with the heads or tails of the other positives of the
            micro-batch; the same entity is never its own negative.
        regularizer: penalty of the embeddings of the positives.

    Attributes:
        exchange: the collectives; set by the runtime, one process by default.
    """

    def __init__(
        self,
        negative_sampler: ShardedNegativeSampler,
        score_fn: BaseScoreFunction,
        loss_fn: Optional[BaseLossFunction] = None,
        evaluation: Optional[Evaluation] = None,
        return_scores: bool = False,
        augment_negative: bool = False,
        regularizer: Optional[Regularizer] = None,
    ) -> None:
        super().__init__()
        if loss_fn is None and evaluation is None and not return_scores:
            raise ConfigError(
                "nothing to return: give loss_fn or evaluation, or return_scores=True"
            )
        self.negative_sampler, self.score_fn = negative_sampler, score_fn
        self.loss_fn, self.evaluation, self.regularizer = loss_fn, evaluation, regularizer
        self.return_scores, self.augment_negative = return_scores, augment_negative
        self.exchange: Exchange = LocalExchange(score_fn.sharding.n_shard)

    def __init_subclass__(cls, **options: object) -> None:
        # Who overrides score_batch alone, of whichever class, is to be asked for the scores.
        super().__init_subclass__(**options)
        if "score_batch" in vars(cls) and "_score" not in vars(cls):
            cls._score = BessKGE._score  # type: ignore[method-assign]

    @property
    def entity_embedding(self) -> nn.Parameter:
        """The entity table of the score function, (L, E, D)."""
        return self.score_fn.entity_embedding

    @property
    def n_embedding_parameters(self) -> int:
        """Trainable numbers in the embedding tables, without padding rows."""
        table, n_entity = self.entity_embedding, self.score_fn.sharding.n_entity
        return n_entity * table.shape[-1] + self.score_fn.relation_embedding.numel()

    def forward(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        negative: Tensor,
        triple_mask: Optional[Tensor] = None,
        triple_weight: Optional[Tensor] = None,
        negative_mask: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        """Gather rows, exchange them, score, and compute loss and metrics.

        Args:
            head: (L, S, P), rows of the heads here; [l, s] has its tails on peer s.
            relation: (L, S, P), relation IDs of the same triples.
            tail: (L, S, P), rows of the tails here; [l, s] belongs to triples of peer s (to).
            negative: (L, S, A, N), rows of negatives here for peer s (to).
            triple_mask: bool (L, S, P), False leaves a triple out of loss, metrics and
                augmentation.
            triple_weight: (L, B) or (L,), weights of the positives in the loss.
            negative_mask: bool (L, A, S, N), False excludes a negative (from peer s).

        Returns:
            "loss" (): mean over the hosted shards of the loss of each shard's micro-batch.
            "positive_score" (L * B,) and "negative_score" (L * B, C), -inf where excluded, if
            `return_scores`. "ranks" and "metrics" as the evaluation says, over L * B.

        Raises:
            ShapeError: on other shapes.
        """
        match_shapes(
            head=(head, "L S P"),
            relation=(relation, "L S P"),
            tail=(tail, "L S P"),
            negative=(negative, "L S A N"),
            **({} if triple_mask is None else {"triple_mask": (triple_mask, "L S P")}),
            **({} if negative_mask is None else {"negative_mask": (negative_mask, "L A S N")}),
        )
        scored = self._score(head, relation, tail, negative, triple_mask)
        if negative_mask is not None:
            scored = self._exclude(scored, negative_mask, head.shape[-1])
        out: Dict[str, Tensor] = {}
        if self.loss_fn is not None:
            out["loss"] = self._loss(scored, relation, triple_mask, triple_weight)
        positive, all_negative = scored.positive.flatten(), scored.negative.flatten(end_dim=1)
        if self.return_scores:
            out.update(positive_score=positive, negative_score=all_negative)
        if self.evaluation is not None:
            out.update(self.evaluation.report(positive, all_negative, triple_mask))
        return out

    @abc.abstractmethod
    def score_batch(
        self, head: Tensor, relation: Tensor, tail: Tensor, negative: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Scores of the micro-batch; arguments as in :meth:`forward`.

        Returns:
            positive (L * B,) and negative (L * B, C), -inf where excluded.
        """

    def lookups(self, head: Tensor, tail: Tensor, negative: Tensor) -> Optional[Tensor]:
        """(L, K): the rows that a step reads here, in the order in which it reads them.

        None, if that is not known; then the update groups the rows itself.
        """
        return None

    def _score(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        negative: Tensor,
        triple_mask: Optional[Tensor] = None,
    ) -> Scored:
        positive, scores = self.score_batch(head, relation, tail, negative)
        n_host = head.shape[0]
        negative_score = scores.view(n_host, -1, scores.shape[-1])
        return Scored(positive.view(n_host, -1), negative_score, mask=~negative_score.isneginf())

    def _loss(
        self,
        scored: Scored,
        relation: Tensor,
        triple_mask: Optional[Tensor],
        triple_weight: Optional[Tensor],
    ) -> Tensor:
        assert self.loss_fn is not None
        n_host = scored.positive.shape[0]
        weight = scored.positive.new_ones(n_host, 1)
        if triple_weight is not None:
            weight = triple_weight.reshape(n_host, -1).to(weight.dtype)
        if triple_mask is not None:
            weight = weight * triple_mask.reshape(n_host, -1)
        # unbind, not indexing: the gradient of an index is a zero-filled copy of the whole.
        arguments = [scored.positive, scored.negative, weight]
        arguments += [] if scored.mask is None else [scored.mask]
        losses = [self.loss_fn(*of_shard) for of_shard in zip(*(x.unbind() for x in arguments))]
        loss = torch.stack(losses).mean()
        if self.regularizer is None:
            return loss
        cost = (weight * self._penalty(scored, relation)).sum(-1).mean()
        return loss + self.loss_fn.loss_scale * cost

    def _penalty(self, scored: Scored, relation: Tensor) -> Tensor:
        """(L, B)"""
        assert self.regularizer is not None
        if scored.head is None or scored.tail is None:
            raise ConfigError(f"{type(self).__name__} gives a regularizer no embeddings")
        moduli = self.score_fn.squared_moduli(scored.head, relation.flatten(1), scored.tail)
        penalty: Tensor = self.regularizer(moduli)
        return penalty

    def _exclude(self, scored: Scored, negative_mask: Tensor, n_positive: int) -> Scored:
        """Take negatives out: their score becomes -inf."""
        sides = [
            self._mask_columns(self._blocks(negative_mask, 1, i, side, n_positive))
            for i, side in enumerate(self._sides(n_positive))
        ]
        # (L, A or 1, C) of each side -> (L, B, C), as the scores are
        n_host, n_query, n_column = scored.negative.shape
        per_pair = [
            mask.expand(n_host, n_query // n_positive * (side.last - side.first), -1).reshape(
                n_host, -1, side.last - side.first, mask.shape[-1]
            )
            for mask, side in zip(sides, self._sides(n_positive))
        ]
        mask = torch.cat(per_pair, dim=2).flatten(1, 2)
        if mask.shape[-1] < n_column:  # columns added by augmentation
            mask = nn.functional.pad(mask, (0, n_column - mask.shape[-1]), value=True)
        if scored.mask is not None:
            mask = mask & scored.mask
        return scored._replace(negative=scored.negative.masked_fill(~mask, -math.inf), mask=mask)

    def _mask_columns(self, mask: Tensor) -> Tensor:
        """bool (L, A', S, N) of the blocks of a side -> (L, A' or 1, C), ordered as the scores."""
        if self._shares_candidates:
            return mask.transpose(1, 2).flatten(1).unsqueeze(1)
        return mask.flatten(2)

    @property
    def _shares_candidates(self) -> bool:
        """Whether all positives of a side have the same candidates."""
        return self.negative_sampler.flat_negative_format or self.score_fn.negative_sample_sharing

    def _sides(self, n_positive: int) -> List[Side]:
        scheme = self.negative_sampler.corruption_scheme
        if scheme != "ht":
            return [Side(scheme == "h", 0, n_positive)]
        return [Side(True, 0, n_positive // 2), Side(False, n_positive // 2, n_positive)]

    def _blocks(self, x: Tensor, axis: int, place: int, side: Side, n_positive: int) -> Tensor:
        """The blocks of one side, along the axis A of `x`."""
        if self.negative_sampler.flat_negative_format:
            return x.narrow(axis, place, 1)
        return _of_side(x, axis, side, n_positive)

    def _score_side(
        self, side: Side, n_positive: int, triples: Sequence[Tensor], candidates: Tensor
    ) -> Tensor:
        """Triples (G * P, ...), of which one side is scored: Q; candidates (Q or 1, C, D).

        Returns:
            (Q, C'), C' = Q * C if negatives are shared.
        """
        head, relation, tail = (_of_side(x, 0, side, n_positive) for x in triples)
        if side.heads:
            return self.score_fn.score_heads(candidates, relation, tail)
        return self.score_fn.score_tails(head, relation, candidates)


def _of_side(x: Tensor, axis: int, side: Side, n_positive: int) -> Tensor:
    """Along `axis`, of size G * P, keep the positives of one side of each of the G groups."""
    if side.last - side.first == n_positive:
        return x
    grouped = x.unflatten(axis, (-1, n_positive))
    return grouped.narrow(axis + 1, side.first, side.last - side.first).flatten(axis, axis + 1)


def _join_sides(scores: List[Tensor], sides: List[Side]) -> Tensor:
    """(G * P', C) of each side -> (G * P, C)."""
    if len(scores) == 1:
        return scores[0]
    grouped = [x.unflatten(0, (-1, side.last - side.first)) for x, side in zip(scores, sides)]
    return torch.cat(grouped, dim=1).flatten(0, 1)


class EmbeddingMovingBessKGE(BessKGE):
    """Tails and negatives travel to the shard of the head, in one all-to-all.

    Moves S * (P + A * N) * D numbers from each shard: cheaper than moving scores when negatives
    are shared and rows are narrow against the number of scores.
    """

    def lookups(self, head: Tensor, tail: Tensor, negative: Tensor) -> Tensor:
        """(L, S P + S (P + A N)): heads, then for each peer its tails and negatives (to)."""
        sent = torch.cat([tail, negative.flatten(2)], dim=2)
        return torch.cat([head.flatten(1), sent.flatten(1)], dim=1)

    def score_batch(
        self, head: Tensor, relation: Tensor, tail: Tensor, negative: Tensor
    ) -> Tuple[Tensor, Tensor]:
        scored = EmbeddingMovingBessKGE._score(self, head, relation, tail, negative)
        return scored.positive.flatten(), scored.negative.flatten(end_dim=1)

    def _score(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        negative: Tensor,
        triple_mask: Optional[Tensor] = None,
    ) -> Scored:
        n_peer, n_positive = head.shape[1:]
        rows = gather(self.entity_embedding, self.lookups(head, tail, negative))
        head_rows = rows[:, : n_peer * n_positive]
        sent = rows[:, n_peer * n_positive :].unflatten(1, (n_peer, -1))
        if self.negative_sampler.local_sampling:
            tail_rows = self.exchange.all_to_all(sent[:, :, :n_positive])
            negative_rows = sent[:, :, n_positive:]
        else:
            received = self.exchange.all_to_all(sent)
            tail_rows, negative_rows = received[:, :, :n_positive], received[:, :, n_positive:]
        tail_rows = tail_rows.flatten(1, 2)
        negative_rows = negative_rows.unflatten(2, negative.shape[2:])  # (L, S, A, N, D), from
        sides = self._sides(n_positive)
        positive, scores = [], []
        triples = zip(head_rows.unbind(), relation.flatten(1).unbind(), tail_rows.unbind())
        for triple, negatives in zip(triples, negative_rows.unbind()):
            positive.append(self.score_fn.score_triple(*triple))
            of_sides = [
                self._score_side(
                    side,
                    n_positive,
                    triple,
                    self._candidates(self._blocks(negatives, 1, i, side, n_positive)),
                )
                for i, side in enumerate(sides)
            ]
            scores.append(_join_sides(of_sides, sides))
        scored = Scored(torch.stack(positive), torch.stack(scores), head_rows, tail_rows)
        if not self.augment_negative:
            return scored
        counted = torch.ones_like(head, dtype=torch.bool) if triple_mask is None else triple_mask
        return self._augment(scored, head, relation, tail, counted)

    def _candidates(self, rows: Tensor) -> Tensor:
        """Rows (S, A', N, D) from the peers -> (1, C, D) if shared, else (A', C, D)."""
        if self._shares_candidates:
            return rows.reshape(1, -1, rows.shape[-1])
        return rows.transpose(0, 1).flatten(1, 2)

    def _augment(
        self, scored: Scored, head: Tensor, relation: Tensor, tail: Tensor, counted: Tensor
    ) -> Scored:
        """Add the corrupted sides of the other positives that count as shared candidates."""
        assert scored.head is not None and scored.tail is not None
        n_peer, n_positive = head.shape[1:]
        n_row = self.entity_embedding.shape[1]
        peer = torch.arange(n_peer, device=head.device)[:, None]
        tail_id = self.exchange.all_to_all(tail) + peer * n_row  # (L, S, P), from
        sides = self._sides(n_positive)
        scores, kept = [], []
        flat = (x.flatten(1) for x in (head, tail_id, counted))
        rows = (scored.head, relation.flatten(1), scored.tail, *flat)
        for *triple, head_row, tail_row, real in zip(*(x.unbind() for x in rows)):
            side_scores, side_kept = [], []
            for side in sides:
                own = _of_side(head_row if side.heads else tail_row, 0, side, n_positive)
                side_kept.append((own[:, None] != own) & _of_side(real, 0, side, n_positive))
                candidates = _of_side(triple[0 if side.heads else 2], 0, side, n_positive)
                side_scores.append(
                    self._score_side(side, n_positive, triple, candidates.unsqueeze(0))
                )
            scores.append(_join_sides(side_scores, sides))
            kept.append(_join_sides(side_kept, sides))
        mask = torch.stack(kept)
        added = torch.stack(scores).masked_fill(~mask, -math.inf)
        before = torch.ones_like(scored.negative, dtype=torch.bool)
        return scored._replace(
            negative=torch.cat([scored.negative, added], dim=-1),
            mask=torch.cat([before, mask], dim=-1),
        )


class ScoreMovingBessKGE(BessKGE):
    """Queries are gathered on every shard, scored against its own negatives, and scores return.

    Negatives do not travel. With negatives in flat format, drawn at random, every query is scored
    against the lists of all shards: S * S * N candidates.
    """

    def __init__(
        self,
        negative_sampler: ShardedNegativeSampler,
        score_fn: BaseScoreFunction,
        loss_fn: Optional[BaseLossFunction] = None,
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

    def lookups(self, head: Tensor, tail: Tensor, negative: Tensor) -> Tensor:
        """(L, S P + S P + S A N): heads, tails (to), negatives (to)."""
        return torch.cat([head.flatten(1), tail.flatten(1), negative.flatten(1)], dim=1)

    def score_batch(
        self, head: Tensor, relation: Tensor, tail: Tensor, negative: Tensor
    ) -> Tuple[Tensor, Tensor]:
        scored = ScoreMovingBessKGE._score(self, head, relation, tail, negative)
        return scored.positive.flatten(), scored.negative.flatten(end_dim=1)

    def _score(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        negative: Tensor,
        triple_mask: Optional[Tensor] = None,
    ) -> Scored:
        n_peer, n_positive = head.shape[1:]
        n_query = n_peer * n_positive
        rows = gather(self.entity_embedding, self.lookups(head, tail, negative))
        head_rows, sent, negative_rows = rows.split([n_query, n_query, negative[0].numel()], dim=1)
        tail_rows = self.exchange.all_to_all(sent.unflatten(1, (n_peer, -1))).flatten(1, 2)
        relations = relation.flatten(1)
        positive = [
            self.score_fn.score_triple(*triple)
            for triple in zip(head_rows.unbind(), relations.unbind(), tail_rows.unbind())
        ]
        queries = [
            self._gathered(head_rows, False),
            self.exchange.all_gather(relations),
            self._gathered(tail_rows, True),
        ]
        shape = (n_peer, *negative.shape[2:])  # (S, A, N), to
        scores = [
            self._score_here(of_shard, lists.unflatten(0, shape), n_positive)
            for *of_shard, lists in zip(*(x.unbind() for x in queries), negative_rows.unbind())
        ]
        # Stacked so that what follows is a view where all shards are here.
        stacked = torch.stack(scores, dim=2).permute(2, 0, 1, 3)  # (L, S, B, C / S), to
        returned = self.exchange.all_to_all(stacked)  # (L, S, B, C / S), from
        return Scored(
            torch.stack(positive), returned.transpose(1, 2).flatten(2), head_rows, tail_rows
        )

    def _gathered(self, rows: Tensor, tails: bool) -> Tensor:
        """(L, B, D) -> (L, S, B, D), if the scheme's queries have these rows in them."""
        if self.negative_sampler.corruption_scheme == ("t" if tails else "h"):
            # Never read: only its leading axes matter.
            return rows.new_empty(()).expand(len(rows), self.exchange.n_shard, rows.shape[1], 1)
        return self.exchange.all_gather(rows)

    def _score_here(self, queries: List[Tensor], negative: Tensor, n_positive: int) -> Tensor:
        """Queries (S, B, ...) of all shards, negatives (S, A, N, D) here -> (S, B, C / S)."""
        if self._shares_candidates and self.negative_sampler.given:
            # The list given to a shard is for its own queries: do not pool the lists.
            peers = zip(*queries, negative)
            scores = [
                self._score_queries([h, r, t], lists[None], n_positive) for h, r, t, lists in peers
            ]
            return torch.stack(scores)
        merged = [x.flatten(0, 1) for x in queries]
        scores_QC = self._score_queries(merged, negative, n_positive)
        return scores_QC.unflatten(0, queries[1].shape)

    def _score_queries(self, queries: List[Tensor], negative: Tensor, n_positive: int) -> Tensor:
        """Queries (Q, ...), negatives (T, A, N, D) -> (Q, C)."""
        sides = self._sides(n_positive)
        scores = []
        for i, side in enumerate(sides):
            blocks = self._blocks(negative, 1, i, side, n_positive)
            width = blocks.shape[-1]
            shape = (1, -1, width) if self._shares_candidates else (-1, blocks.shape[2], width)
            scores.append(self._score_side(side, n_positive, queries, blocks.reshape(shape)))
        return _join_sides(scores, sides)

    def _mask_columns(self, mask: Tensor) -> Tensor:
        if not self._shares_candidates or self.negative_sampler.given:
            return super()._mask_columns(mask)
        pooled = self.exchange.all_gather(mask)  # (L, T, A', S, N)
        return pooled.permute(0, 3, 1, 2, 4).flatten(1).unsqueeze(1)
