"""Training against all entities: each shard scores everyone's queries with its own entities.

Entities do not move. What travels is the tails, for the positives; the queries; and one
log-sum-exp of each query from every shard, which together give that over all entities (and are
exact in their gradients, for the shares of the shards are a softmax too).

Axes as in the package's docstring; Q: width of a query.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from besskge_core.bess.layout import ask, weights_of
from besskge_core.bess.tiled import Left, tiled_logsumexp
from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange, LocalExchange
from besskge_core.ops import gather
from besskge_core.regularizer import Regularizer
from besskge_core.scoring import BaseScoreFunction, Query
from besskge_core.shapes import match_shapes

SIDES = ("head", "tail")


class OneVsAllBessKGE(nn.Module):
    """Cross-entropy of each triple's answers among all entities, for one side or both.

    With both sides this is the symmetric objective of Lacroix et al., ICML 2018; a model with
    inverse relations, trained on inverse triples too, asks for tails alone.

    Args:
        score_fn: score function, which owns the tables.
        sides: what is asked for: "head", "tail".
        margin: taken off the scores of the answers.
        temperature: scores are divided by it.
        loss_scale: factor of the loss, which is a sum over the triples of a shard and both sides.
        regularizer: penalty of the embeddings of the positives.
        return_scores: also return the scores of the answers.
        max_scores: scores held at a time.

    Attributes:
        exchange: the collectives; set by the runtime, one process by default.
        inputs: columns of a batch that :meth:`forward` takes.
        paired: batches are of triples partitioned by shard pairs.
    """

    paired = True

    inputs: Tuple[str, ...] = ("head", "relation", "tail", "triple_mask", "triple_weight")
    is_entity: Tensor

    def __init__(
        self,
        score_fn: BaseScoreFunction,
        sides: Sequence[str] = SIDES,
        margin: float = 0.0,
        temperature: float = 1.0,
        loss_scale: float = 1.0,
        regularizer: Optional[Regularizer] = None,
        return_scores: bool = False,
        max_scores: int = 2**22,
    ) -> None:
        super().__init__()
        if not sides or set(sides) - set(SIDES):
            raise ConfigError(f"sides are {tuple(sides)}, expected some of {SIDES}")
        if "head" in sides and not score_fn.scores_heads:
            raise ConfigError(
                f"{type(score_fn).__name__} has no query for heads; add inverse triples and ask"
                " for tails only"
            )
        if score_fn.sharding.hub_rows is not None:
            raise ConfigError(
                "no entity moves here, so hubs mean nothing: create the sharding without hubs"
            )
        if not temperature > 0.0 or max_scores < 1:
            raise ConfigError(
                f"temperature and max_scores must be above 0, got {temperature} and {max_scores}"
            )
        self.score_fn, self.sides = score_fn, tuple(sides)
        self.margin, self.temperature, self.loss_scale = margin, temperature, loss_scale
        self.regularizer, self.return_scores = regularizer, return_scores
        self.max_scores = max_scores
        self.exchange: Exchange = LocalExchange(score_fn.sharding.n_shard)
        sharding = score_fn.sharding
        ids = torch.from_numpy(sharding.shard_and_idx_to_entity)
        self.register_buffer("is_entity", ids < sharding.n_entity, persistent=False)

    @property
    def entity_embedding(self) -> nn.Parameter:
        """The entity table of the score function, (L, E, D)."""
        return self.score_fn.entity_embedding

    def forward(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        triple_mask: Optional[Tensor] = None,
        triple_weight: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        """Loss of a micro-batch.

        Args:
            head: (L, S, P), rows of the heads here; [l, s] has its tails on peer s.
            relation: (L, S, P), relation IDs of the same triples.
            tail: (L, S, P), rows of the tails here; [l, s] belongs to triples of peer s (to).
            triple_mask: bool (L, S, P), False leaves a triple out.
            triple_weight: (L, B) or (L,), weights of the triples.

        Returns:
            "loss" (): mean over the hosted shards. "positive_score" (L * B, side), if
            `return_scores`.

        Raises:
            ShapeError: on other shapes.
        """
        optional = {} if triple_mask is None else {"triple_mask": (triple_mask, "L S P")}
        match_shapes(
            head=(head, "L S P"), relation=(relation, "L S P"), tail=(tail, "L S P"), **optional
        )
        n_query = head[0].numel()
        rows = gather(self.entity_embedding, torch.cat([head.flatten(1), tail.flatten(1)], dim=1))
        sent = rows[:, n_query:].unflatten(1, tail.shape[1:])
        head_rows, tail_rows = rows[:, :n_query], self.exchange.all_to_all(sent).flatten(1, 2)
        relations = relation.flatten(1)
        weight = weights_of(head_rows, triple_weight, triple_mask)
        cost = torch.zeros((), device=head.device)
        positives = []
        for side in self.sides:
            positive, rest = self._against_all(side, head, tail, (head_rows, relations, tail_rows))
            own = (positive - self.margin) / self.temperature
            cost = cost + nn.functional.softplus(rest - own)
            positives.append(positive)
        if self.regularizer is not None:
            moduli = self.score_fn.squared_moduli(head_rows, relations, tail_rows)
            cost = cost + self.regularizer(moduli)
        out = {"loss": self.loss_scale * (weight * cost).sum(-1).mean()}
        if self.return_scores:
            out["positive_score"] = torch.stack(positives, dim=-1).flatten(end_dim=1)
        return out

    def _against_all(
        self, side: str, head: Tensor, tail: Tensor, triples: Tuple[Tensor, Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Scores of the answers, and log-sum-exp of those of all other entities; (L, B) each."""
        heads = side == "head"
        positive, queries = [], []
        for h, r, t in zip(*(x.unbind() for x in triples)):
            query, _, own_score = ask(self.score_fn, h, r, t, heads)
            positive.append(own_score)
            queries.append(query)
        gathered = [self.exchange.all_gather(torch.stack(x)).flatten(1, 2) for x in zip(*queries)]
        answers = self._answers(head if heads else tail, heads)
        sums = [
            self._sum_here(tuple(query), i, answers[i], heads)
            for i, query in enumerate(zip(*(x.unbind() for x in gathered)))
        ]
        by_peer = torch.stack(sums).unflatten(1, (self.exchange.n_shard, -1))  # (L, S, B), to
        rest = self.exchange.all_to_all(by_peer).logsumexp(1)
        return torch.stack(positive).to(rest.dtype), rest

    def _answers(self, row: Tensor, heads: bool) -> Tensor:
        """(L, 2, B): which of everyone's queries have their answers here, and in which row."""
        n_host, n_shard, n_positive = row.shape
        shard = torch.arange(n_shard, device=row.device)
        own = self.exchange.all_to_all(shard.expand(n_host, n_shard))[:, :1]  # sent by all
        # Queries are numbered by processing shard (of heads), shard of tails, place.
        pair = own * n_shard + shard if heads else shard * n_shard + own  # (L, S)
        query = pair[:, :, None] * n_positive + torch.arange(n_positive, device=row.device)
        return torch.stack([query.flatten(1), row.flatten(1).long()], dim=1)

    def _sum_here(self, query: Query, host: int, answers: Tensor, heads: bool) -> Tensor:
        """(S * B,): of everyone's queries with the entities of one hosted shard."""
        score_fn, (which, row) = self.score_fn, answers

        def score(of_query: Query, tile: Tensor) -> Tensor:
            scores = score_fn.score_candidates(of_query, tile.unsqueeze(0), heads)
            return scores / self.temperature if self.temperature != 1.0 else scores

        table = self.entity_embedding
        others: List[Tensor] = [x for x in score_fn.parameters() if x is not table]
        n_certain = int(score_fn.sharding.shard_counts.min())
        left = Left(which, row, self.is_entity[host], n_certain)
        return tiled_logsumexp(score, query, table[host], left, others, self.max_scores)
