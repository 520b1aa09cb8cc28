"""One answer of each triple against all entities: 1vsAll, also called symmetric LCWA.

Axes as in the package's docstring.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from besskge_core.bess.against_all import AllEntitiesBessKGE, Answers
from besskge_core.bess.layout import weights_of
from besskge_core.bess.tiled import rows_and_table
from besskge_core.embedding import Counted
from besskge_core.errors import ConfigError
from besskge_core.loss import LabelledLoss
from besskge_core.loss.entries import wide
from besskge_core.regularizer import Regularizer
from besskge_core.scoring import BaseScoreFunction
from besskge_core.shapes import match_shapes

SIDES = ("head", "tail")


class OneVsAllBessKGE(AllEntitiesBessKGE):
    """The answer of each triple against all entities, for one side or both.

    With both sides, cross-entropy and inverse relations, which ask for heads as (t, r^-1, ?), this
    is the objective of Lacroix et al., ICML 2018; so it is for tails alone of triples to which
    their inverse ones were added. Without inverse relations heads are asked for by the same
    relation. Each triple has one answer; other true ones of its query count as false.

    Args:
        score_fn: score function, which owns the tables.
        loss_fn: loss of scores with labels; None: cross-entropy. Losses of the sides are added.
        sides: what is asked for: "head", "tail".
        label_smoothing, regularizer, max_scores, score_dtype: see the base class.
        relation_weight: factor of the cross-entropy of each relation among all relations, as it
            is predicted from head and tail (Chen et al., AKBC 2021); 0: none.

    Raises:
        ConfigError: sides that there are not, or that the score function cannot be asked for.
    """

    inputs = ("head", "relation", "tail", "triple_mask", "triple_weight")
    paired = True

    def __init__(
        self,
        score_fn: BaseScoreFunction,
        loss_fn: Optional[LabelledLoss] = None,
        sides: Sequence[str] = SIDES,
        label_smoothing: float = 0.0,
        regularizer: Optional[Regularizer] = None,
        max_scores: int = 2**25,
        score_dtype: Optional[torch.dtype] = None,
        relation_weight: float = 0.0,
    ) -> None:
        super().__init__(score_fn, loss_fn, label_smoothing, regularizer, max_scores, score_dtype)
        if not sides or set(sides) - set(SIDES):
            raise ConfigError(f"sides are {tuple(sides)}, expected some of {SIDES}")
        if "head" in sides and not (score_fn.scores_heads or score_fn.inverse_relations):
            raise ConfigError(
                f"{type(score_fn).__name__} has no query for heads; make it with inverse relations,"
                " which ask for heads as tails, or ask for tails only"
            )
        if not relation_weight >= 0.0:
            raise ConfigError(f"relation_weight must be at least 0, got {relation_weight}")
        self.sides, self.relation_weight = tuple(sides), relation_weight

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
            "loss" (): that of the triples of all shards, of which a worker with some of the shards
            has its part times S / L, so that the mean over workers is the loss.

        Raises:
            ShapeError: on other shapes.
        """
        optional = {} if triple_mask is None else {"triple_mask": (triple_mask, "L S P")}
        match_shapes(
            head=(head, "L S P"), relation=(relation, "L S P"), tail=(tail, "L S P"), **optional
        )
        n_query = head[0].numel()
        index = torch.cat([head.flatten(1), tail.flatten(1)], dim=1)
        rows, table = rows_and_table(self.entity_embedding, index)
        head_rows, tail_rows = self._triple_rows(rows, n_query, tail, triple_mask)
        relations = relation.flatten(1)
        weight = weights_of(head_rows, triple_weight, triple_mask).expand_as(relations)
        weight = weight.to(wide(head_rows))
        own = self._own_shard()
        loss = torch.zeros((), dtype=weight.dtype, device=head.device)
        asked_for = []
        for side in self.sides:
            asked = side == "head"
            known, answer = (tail_rows, head) if asked else (head_rows, tail)
            heads, of_side = self.score_fn.directed(asked, relations)
            asked_for.append(of_side)
            query = self._queries(known, of_side, heads)
            answers = self._answers(answer, own, asked)
            loss = loss + self._against_all(query, heads, answers, weight, table)
        for directed in self._directions(head_rows, relations, tail_rows):
            if self.relation_weight:
                loss = loss + self._relation_loss(*directed, weight)
            if self.regularizer is not None:
                loss = loss + self._penalty(*directed, weight)
        return self._outputs(loss, asked_for, triple_mask)

    def _triple_rows(
        self, rows: Tensor, n_head: int, tail: Tensor, triple_mask: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Rows gathered here, of heads and of tails (to) -> of heads and tails (L, B, D)."""
        counted: Tuple[Counted, Counted] = (True, True)
        if triple_mask is not None:
            counted = triple_mask.flatten(1), self.exchange.all_to_all(triple_mask).flatten(1)
        here = self.score_fn.entities(rows[:, :n_head], counted[0])
        sent = self.score_fn.entities(rows[:, n_head:], counted[1])
        received = self.exchange.all_to_all(sent.unflatten(1, tail.shape[1:]))
        return here, received.flatten(1, 2)

    def _directions(
        self, head: Tensor, relation: Tensor, tail: Tensor
    ) -> List[Tuple[Tensor, Tensor, Tensor]]:
        """The triples as they are asked: those of tails, and those of heads if they are others."""
        found = [(head, relation, tail)]
        if "head" in self.sides and self.score_fn.inverse_relations:
            found.append((tail, self.score_fn.directed(True, relation)[1], head))
            return found if "tail" in self.sides else found[1:]
        return found

    def _relation_loss(
        self, head: Tensor, relation: Tensor, tail: Tensor, weight: Tensor
    ) -> Tensor:
        """Cross-entropy of the relations among all; as that of the loss, the hosted shards' part."""
        of_shards = [
            nn.functional.cross_entropy(
                self.score_fn.score_relations(h, t).to(weight.dtype), r.long(), reduction="none"
            )
            for h, r, t in zip(head.unbind(), relation.unbind(), tail.unbind())
        ]
        return self.relation_weight * self._reduced(torch.stack(of_shards), weight)

    def _answers(self, row: Tensor, own: Tensor, heads: bool) -> List[Answers]:
        """Rows of answers here (L, S, P), to -> those answers."""
        n_host, n_shard, n_positive = row.shape
        shard = torch.arange(n_shard, device=row.device)
        # Queries are numbered by processing shard (of heads), shard of tails, place.
        pair = own * n_shard + shard if heads else shard * n_shard + own  # (L, S)
        query = pair[:, :, None] * n_positive + torch.arange(n_positive, device=row.device)
        return list(zip(query.flatten(1).unbind(), row.flatten(1).long().unbind()))
