"""A score function is a formula with the tables of one graph.

Axes:
    B: triples that one shard scores       N: negatives of a block
    D, R: widths of entity and relation rows
"""

from __future__ import annotations

from typing import Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from besskge_core.embedding import (
    Initializers,
    initialize_entity_embedding,
    initialize_relation_embedding,
    refactor_embedding_sharding,
)
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.registry import Registry
from besskge_core.scoring.formula import ScoreFormula
from besskge_core.sharding import Sharding


class BaseScoreFunction(nn.Module):
    """Scores triples whose entity rows are given; relation rows are looked up.

    Args:
        formula: the formula.
        negative_sample_sharing: score every query against the candidates of all of them.
        sharding: of the entities.
        n_relation_type: relations of the graph.
        entity_initializer: a table, or a function for each part of a row; see
            :func:`~besskge_core.embedding.initialize_entity_embedding`.
        relation_initializer: likewise.
        inverse_relations: also make embeddings of the inverse relations.

    Attributes:
        entity_embedding: (n_shard, max_entity_per_shard, D).
        relation_embedding: (n_relation_type or twice as many, R).
    """

    def __init__(
        self,
        formula: ScoreFormula,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        entity_initializer: Initializers,
        relation_initializer: Initializers,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__()
        self.negative_sample_sharing, self.sharding = negative_sample_sharing, sharding
        self.n_relation_type, self.inverse_relations = n_relation_type, inverse_relations
        self.formula = formula
        self.entity_embedding = initialize_entity_embedding(
            sharding, entity_initializer, formula.widths(formula.entity_parts)
        )
        self.relation_embedding = initialize_relation_embedding(
            n_relation_type,
            inverse_relations,
            relation_initializer,
            formula.widths(formula.relation_parts),
        )

    def forward(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """See :meth:`score_triple`."""
        return self.score_triple(head_emb, relation_id, tail_emb)

    def score_triple(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """head_emb (B, D), relation_id (B), tail_emb (B, D) -> (B)."""
        return self.formula.triples(head_emb, self.relation(relation_id), tail_emb)

    def score_heads(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """Candidates head_emb (B or 1, N, D), relation_id (B), tail_emb (B, D).

        Returns:
            (B, N); with `negative_sample_sharing` (B, B * N), every query against every block.
        """
        candidates = self._candidates(head_emb, relation_id)
        return self.formula.heads(candidates, self.relation(relation_id), tail_emb)

    def score_tails(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """head_emb (B, D), relation_id (B), candidates tail_emb (B or 1, N, D).

        Returns:
            (B, N); with `negative_sample_sharing` (B, B * N), every query against every block.
        """
        candidates = self._candidates(tail_emb, relation_id)
        return self.formula.tails(head_emb, self.relation(relation_id), candidates)

    def relation(self, relation_id: Tensor) -> Tensor:
        """relation_id (...), int32 or int64 -> (..., R)."""
        return F.embedding(relation_id, self.relation_embedding)

    def squared_moduli(
        self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Squared moduli of the entries of the three rows of each triple, for regularisers."""
        return self.formula.squared_moduli(head_emb, self.relation(relation_id), tail_emb)

    def update_sharding(self, new_sharding: Sharding) -> None:
        """Lay the entity table out for another sharding; dtype and `requires_grad` stay.

        Optimisers made before still hold the old table: make them anew.

        Raises:
            ConfigError: the sharding is of another number of entities.
        """
        if new_sharding.n_entity != self.sharding.n_entity:
            raise ConfigError(
                f"the new sharding is of {new_sharding.n_entity} entities,"
                f" the table of {self.sharding.n_entity}"
            )
        self.entity_embedding = refactor_embedding_sharding(
            self.entity_embedding, self.sharding, new_sharding
        )
        self.sharding = new_sharding

    def _candidates(self, rows: Tensor, relation_id: Tensor) -> Tensor:
        """(N', D) where the queries share their candidates, else (B, N, D)."""
        if rows.dim() != 3 or rows.shape[0] not in (1, relation_id.shape[0]):
            raise ShapeError(
                f"candidates have shape {tuple(rows.shape)},"
                f" expected (1 or B, N, D) with B={relation_id.shape[0]}"
            )
        if self.negative_sample_sharing or rows.shape[0] == 1:
            return rows.reshape(-1, rows.shape[-1])
        return rows


SCORE_FUNCTIONS: Registry[type] = Registry("score function")
