"""What the training schemes of BESS share: from a micro-batch to loss, scores and metrics."""

from __future__ import annotations

import abc
import math
from typing import ClassVar, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from besskge_core.bess import fused
from besskge_core.bess.filtering import exclude_pairs, known_candidates, pad_pairs
from besskge_core.bess.layout import MicroBatch, Scored, Side, of_side, sides_of, weights_of
from besskge_core.bess.tables import OverTables
from besskge_core.embedding import Counted
from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange, LocalExchange
from besskge_core.known import KnownTriples
from besskge_core.loss import Loss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import ShardedNegativeSampler
from besskge_core.ops import RowPlan, gather
from besskge_core.ops.tracing import as_index
from besskge_core.regularizer import Regularizer
from besskge_core.scoring import BaseScoreFunction, Heads
from besskge_core.shapes import match_shapes


class BessKGE(OverTables, abc.ABC):
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
        inputs: columns of a batch that :meth:`forward` takes.
        paired: batches are of triples partitioned by shard pairs.
    """

    paired = True

    inputs: Tuple[str, ...] = (
        "head", "relation", "tail", "negative", "triple_mask", "triple_weight", "negative_mask",
        "negative_filter", "negative_kept", "heads_replaced", "hub",
    )  # fmt: skip

    #: Whether every positive meets the shared negatives of all shards, not those sent to its own;
    #: None: a class that is not known to compute what its base does.
    _pools_lists: ClassVar[Optional[bool]] = None

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
        super().__init__()
        if loss_fn is None and evaluation is None and not return_scores:
            raise ConfigError(
                "nothing to return: give loss_fn or evaluation, or return_scores=True"
            )
        check_sides(score_fn, negative_sampler)
        if augment_negative and negative_sampler.corruption_scheme == "either":
            raise ConfigError(
                "augment_negative needs a corruption scheme 'h', 't' or 'ht': where each triple has"
                " its own side, the other triples of the batch have no common one"
            )
        self.negative_sampler, self.score_fn = negative_sampler, score_fn
        self.loss_fn, self.evaluation, self.regularizer = loss_fn, evaluation, regularizer
        self.return_scores, self.augment_negative = return_scores, augment_negative
        self.exchange: Exchange = LocalExchange(score_fn.sharding.n_shard)

    def __init_subclass__(cls, **options: object) -> None:
        # Who overrides score_batch alone, of whichever class, is to be asked for the scores.
        super().__init_subclass__(**options)
        own = vars(cls)
        if "score_batch" in own and "_score" not in own:
            cls._score = BessKGE._score  # type: ignore[method-assign]
        if own.keys() & {"score_batch", "_score", "_loss", "lookups"} and "_pools_lists" not in own:
            cls._pools_lists = None

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
        negative_filter: Optional[Tensor] = None,
        heads_replaced: Optional[Tensor] = None,
        hub: Optional[Tensor] = None,
        rows: Optional[Tensor] = None,
        plan: Optional[RowPlan] = None,
        negative_kept: Optional[Tensor] = None,
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
            negative_filter: (L, K, 2), positives and their negatives of [0, C) to exclude, each
                pair once, such as :meth:`filter_negatives` gives; -1 is no entry.
            heads_replaced: bool (L, S, P), the side of each triple, for the scheme "either".
            hub: (L, H), rows of the hubs that live here; rows of `head` and `tail` from E on then
                count all hubs, those of the first shard first.
            rows: what :meth:`rows_read` gives for these columns, and
            plan: their grouping; both are made here where they are needed and missing.
            negative_kept: bool (L, B, C), instead of `negative_filter`: False excludes a negative.

        Returns:
            "loss" (): mean over the hosted shards of the loss of each shard's micro-batch.
            "positive_score" (L * B,) and "negative_score" (L * B, C), -inf where excluded, if
            `return_scores`. "ranks" and "metrics" as the evaluation says, over L * B.

        Raises:
            ShapeError: on other shapes.
        """
        optional = {
            "triple_mask": (triple_mask, "L S P"),
            "negative_mask": (negative_mask, "L A S N"),
            "negative_filter": (negative_filter, "L K 2"),
            "negative_kept": (negative_kept, "L B C"),
            "heads_replaced": (heads_replaced, "L S P"),
            "hub": (hub, "L H"),
        }
        match_shapes(
            head=(head, "L S P"),
            relation=(relation, "L S P"),
            tail=(tail, "L S P"),
            negative=(negative, "L S A N"),
            **{name: (x, axes) for name, (x, axes) in optional.items() if x is not None},
        )
        batch = MicroBatch(
            head, relation, tail, negative, triple_mask, heads_replaced, hub, negative_mask
        )
        filtered = negative_filter is not None or negative_kept is not None
        how = None if filtered else fused.fused(self, batch)
        if how is not None:
            weight = None
            if triple_weight is not None or triple_mask is not None:
                weight = weights_of(self.entity_embedding, triple_weight, triple_mask)
            return {"loss": fused.fused_loss(self, how, batch, weight, rows, plan)}
        with self.score_fn.pooling(self._shares_candidates):
            scored = self._score(batch)
        if negative_mask is not None:
            scored = self._keep(scored, self._in_columns(negative_mask, head.shape[-1]))
        if negative_kept is not None:
            scored = self._keep(scored, negative_kept)
        elif negative_filter is None and self.negative_sampler.known is not None:
            found = {"head": head, "relation": relation, "tail": tail, "negative": negative}
            if heads_replaced is not None:
                found["heads_replaced"] = heads_replaced
            negative_filter = self.filter_negatives(found)
        if negative_filter is not None:
            scored = exclude_pairs(scored, negative_filter)
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

    def lookups(
        self, head: Tensor, tail: Tensor, negative: Tensor, hub: Optional[Tensor] = None
    ) -> Optional[Tensor]:
        """(L, K): the rows that a step reads here, in the order in which it reads them.

        None, if that is not known; then the update groups the rows itself.
        """
        return None

    def rows_read(self, columns: Mapping[str, Tensor]) -> Optional[Tensor]:
        """Rows of the hosted tables, laid end to end, that a step reads, in the order of gradients.

        Args:
            columns: what :meth:`forward` takes.

        Returns:
            int64 (K,), or None if that is not known.
        """
        names = MicroBatch._fields
        batch = MicroBatch(**{name: columns[name] for name in names if name in columns})
        if "negative_filter" not in columns:
            how = fused.fused(self, batch)
            if how is not None:
                return fused.rows_read(self, how, batch).view(-1)
        index = self.lookups(batch.head, batch.tail, batch.negative, batch.hub)
        if index is None:
            return None
        n_row = self.entity_embedding.shape[1]
        shard = torch.arange(len(index), device=index.device)
        return (index + n_row * shard[:, None]).view(-1)

    def columns(self, x: Tensor, n_positive: int) -> Tensor:
        """What belongs to each negative, such as its ID, in the order of the scores.

        Args:
            x: (L, S, A, N), laid out as `negative`.
            n_positive: P.

        Returns:
            (L, 1 or B, C); 1 where all positives of a shard have the same negatives.
        """
        if not self.negative_sampler.local_sampling:
            x = self.exchange.all_to_all(x)
        return self._in_columns(x.transpose(1, 2), n_positive)

    def prepare(self, columns: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """What the host adds to a micro-batch of the hosted shards: the true triples to leave out."""
        prepared = dict(columns)
        if self.negative_sampler.known is not None and "negative_filter" not in prepared:
            prepared["negative_filter"] = self.filter_negatives(columns)
        return prepared

    def filter_negatives(
        self, batch: Mapping[str, Tensor], known: Optional[KnownTriples] = None
    ) -> Tensor:
        """The negatives of a batch that are true triples; runs on the host.

        Args:
            batch: what :meth:`forward` takes.
            known: the true triples; by default those of the negative sampler.

        Returns:
            int32 (L, K, 2), for `negative_filter`.
        """
        known = known or self.negative_sampler.known
        if known is None:
            raise ConfigError("no known triples to filter with: give `known`, here or to a sampler")
        sharding, n_positive = self.score_fn.sharding, batch["head"].shape[-1]
        shard = np.array(self.exchange.hosted)[:, None, None]
        head, sent = (sharding.entity_of(shard, batch[x].cpu().numpy()) for x in ("head", "tail"))
        tail = self.exchange.all_to_all(torch.from_numpy(sent)).numpy()
        columns = (head, batch["relation"].cpu().numpy(), tail)
        triples = np.stack(columns, axis=-1).reshape(len(shard), -1, 3)
        ids = sharding.entity_of(shard[..., None], batch["negative"].cpu().numpy())
        candidates = self.columns(torch.from_numpy(ids), n_positive).numpy()
        replaced = batch.get("heads_replaced")
        if replaced is None:
            of_triple = np.zeros(n_positive, dtype=bool)
            for side in self._sides(n_positive):
                of_triple[side.first : side.last] = side.heads
            heads = np.tile(of_triple, (len(shard), sharding.n_shard))
        else:
            heads = replaced.cpu().numpy().reshape(len(shard), -1)
        pairs = [known_candidates(known, *of_shard) for of_shard in zip(triples, heads, candidates)]
        return pad_pairs(pairs).to(batch["head"].device)

    def _score(self, batch: MicroBatch) -> Scored:
        positive, scores = self.score_batch(batch.head, batch.relation, batch.tail, batch.negative)
        n_host = batch.head.shape[0]
        negative_score = scores.view(n_host, -1, scores.shape[-1])
        mask = negative_score != -math.inf
        return Scored(positive.view(n_host, -1), negative_score, mask=mask)

    def _loss(
        self,
        scored: Scored,
        relation: Tensor,
        triple_mask: Optional[Tensor],
        triple_weight: Optional[Tensor],
    ) -> Tensor:
        assert self.loss_fn is not None
        n_host = scored.positive.shape[0]
        weight = weights_of(scored.positive, triple_weight, triple_mask)
        n_negative = scored.n_negative
        if n_negative is None and scored.mask is not None:
            n_negative = scored.mask.sum(-1)
        counts = [None] * n_host if n_negative is None else n_negative.unbind()
        # unbind, not indexing: the gradient of an index is a zero-filled copy of the whole.
        of_shards = zip(*(x.unbind() for x in (scored.positive, scored.negative, weight)), counts)
        losses = [
            # Any other module is called with upstream's three arguments.
            self.loss_fn.sampled(positive, negative, of_triple, count)
            if isinstance(self.loss_fn, Loss)
            else self.loss_fn(positive, negative, of_triple)
            for positive, negative, of_triple, count in of_shards
        ]
        loss = torch.stack(losses).mean()
        counted = True if triple_mask is None else triple_mask
        term = self.score_fn.pop_regularization_term(relation, counted)
        loss = loss + term.to(loss.dtype)
        if self.regularizer is None:
            return loss
        cost = (weight * self._penalty(scored, relation)).sum(-1)
        if getattr(self.loss_fn, "reduction", "sum") == "mean":
            weight = weight.expand(-1, scored.positive.shape[1])
            cost = cost / weight.sum(-1).clamp(min=torch.finfo(weight.dtype).tiny)
        return loss + self.loss_fn.loss_scale * cost.mean()

    def _penalty(self, scored: Scored, relation: Tensor) -> Tensor:
        """(L, B)"""
        assert self.regularizer is not None
        if scored.head is None or scored.tail is None:
            raise ConfigError(f"{type(self).__name__} gives a regularizer no embeddings")
        relations = relation.flatten(1)
        return self.regularizer.of_triples(self.score_fn, scored.head, relations, scored.tail)

    def _keep(self, scored: Scored, mask: Tensor) -> Scored:
        """Take negatives out where a mask (L, 1 or B, C) is False: their score becomes -inf."""
        n_column = scored.negative.shape[-1]
        if mask.shape[-1] < n_column:  # columns added by augmentation
            mask = nn.functional.pad(mask, (0, n_column - mask.shape[-1]), value=True)
        mask = mask.expand_as(scored.negative) if scored.mask is None else mask & scored.mask
        return scored._replace(negative=scored.negative.masked_fill(~mask, -math.inf), mask=mask)

    def _in_columns(self, x: Tensor, n_positive: int) -> Tensor:
        """(L, A, S, N), of what comes from the peers -> (L, 1 or B, C), ordered as the scores."""
        sides = self._sides(n_positive)
        of_sides = [
            self._order(self._blocks(x, 1, i, side, n_positive)) for i, side in enumerate(sides)
        ]
        if len(sides) == 1:
            return of_sides[0]
        n_group = self.score_fn.sharding.n_shard
        spread = [
            y.expand(-1, n_group * (side.last - side.first), -1).unflatten(1, (n_group, -1))
            for y, side in zip(of_sides, sides)
        ]
        return torch.cat(spread, dim=2).flatten(1, 2)

    def _order(self, x: Tensor) -> Tensor:
        """(L, A', S, N) of the blocks of a side -> (L, A' or 1, C), ordered as the scores."""
        if self._shares_candidates:
            return x.transpose(1, 2).flatten(1).unsqueeze(1)
        return x.flatten(2)

    # -- how negatives lie -------------------------------------------------------------------------

    @property
    def _shares_candidates(self) -> bool:
        """Whether all positives of a side have the same candidates; lists given for each triple
        are never shared, whatever the score function says."""
        sampler = self.negative_sampler
        shared = self.score_fn.negative_sample_sharing and not sampler.given
        return sampler.flat_negative_format or shared

    def _sides(self, n_positive: int) -> List[Side]:
        return sides_of(self.negative_sampler.corruption_scheme, n_positive)

    def _blocks(self, x: Tensor, axis: int, place: int, side: Side, n_positive: int) -> Tensor:
        """The blocks of one side, along the axis A of `x`."""
        if self.negative_sampler.flat_negative_format:
            return x.narrow(axis, place, 1)
        return of_side(x, axis, side, n_positive)

    def _rows(self, batch: MicroBatch) -> Tensor:
        """(L, K, D): the rows of :meth:`lookups`, as they are scored."""
        index = self.lookups(batch.head, batch.tail, batch.negative, batch.hub)
        assert index is not None
        return self.score_fn.entities(gather(self.entity_embedding, index), self._counted(batch))

    def _counted(self, batch: MicroBatch) -> Counted:
        """bool (L, K): the look-ups that the entities' regulariser sees.

        They are those of real triples and their negatives. A hub counts once a step, where it lives.
        """
        representation = self.score_fn.entity_representation
        if self.loss_fn is None or representation is None or representation.regularizer is None:
            return False  # and nobody would ask for the term
        mask, n_row = batch.triple_mask, self.entity_embedding.shape[1]
        real = torch.ones_like(batch.head, dtype=torch.bool) if mask is None else mask
        negative = torch.ones_like(batch.negative, dtype=torch.bool)
        if batch.negative_mask is not None:
            negative = batch.negative_mask.transpose(1, 2)
        if not self._shares_candidates:
            negative = negative & real.flatten(1)[:, None, :, None]
        if not self.negative_sampler.local_sampling:
            negative = self.exchange.all_to_all(negative)
        head = real & (batch.head < n_row)
        tail = self.exchange.all_to_all(real) & (batch.tail < n_row)
        hub = None if batch.hub is None else (batch.hub < n_row - 1).int()  # the last is padding
        # Laid out as the rows are, each in the place of its row.
        counted = self.lookups(head.int(), tail.int(), negative.int(), hub)
        assert counted is not None
        return counted.bool()

    def _hubs(self, rows: Tensor, hub: Optional[Tensor]) -> Optional[Tensor]:
        """The last H of rows (L, K, D), from all shards: (L, S * H, D)."""
        if hub is None:
            return None
        return self.exchange.all_gather(rows[:, rows.shape[1] - hub.shape[1] :]).flatten(1, 2)

    def _place_hubs(
        self, batch: MicroBatch, hubs: Optional[Tensor], head_rows: Tensor, tail_rows: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Rows (L, B, D) of heads and tails, those of hubs (L, S * H, D) put in their places."""
        if hubs is None:
            return head_rows, tail_rows
        n_row, tail = self.entity_embedding.shape[1], self.exchange.all_to_all(batch.tail)

        def placed(rows: Tensor, index: Tensor) -> Tensor:
            place = (as_index(index) - n_row).clamp(min=0).unsqueeze(-1).expand_as(rows)
            return torch.where((index >= n_row).unsqueeze(-1), hubs.gather(1, place), rows)

        return placed(head_rows, batch.head.flatten(1)), placed(tail_rows, tail.flatten(1))

    def _here(self, index: Tensor, hub: Optional[Tensor]) -> Tensor:
        """Rows of this table; the place of a hub is read in the last row, which is padding."""
        return index if hub is None else index.clamp(max=self.entity_embedding.shape[1] - 1)


def heads_of(side: Side, heads_replaced: Optional[Tensor]) -> Heads:
    """Whether heads are replaced, of all positives of a side, or bool (B,) of each."""
    return side.heads if heads_replaced is None else heads_replaced


def check_sides(score_fn: BaseScoreFunction, sampler: ShardedNegativeSampler) -> None:
    """Refuse to replace heads where the score function cannot score them."""
    if not score_fn.scores_heads and sampler.corruption_scheme != "t":
        raise ConfigError(
            f"{type(score_fn).__name__} has no query for heads, but the corruption scheme is"
            f" {sampler.corruption_scheme!r}; add inverse triples and corrupt tails only ('t')"
        )
