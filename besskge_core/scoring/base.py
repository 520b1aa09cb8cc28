"""A score function: how plausible triples are, and the tables of one graph.

:class:`BaseScoreFunction` is what BESS needs of one, :class:`FormulaScoreFunction` makes one of a
formula; bases for those who write the three scores out are in `own`.

Axes:
    B: triples that one shard scores       N: candidates of a block
    A: blocks of candidates, 1 for all triples or B, one a triple
    D, R: widths of entity and relation rows
"""

from __future__ import annotations

import abc
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from besskge_core.embedding import (
    Counted,
    Embedding,
    Initializers,
    hosted_shards,
    initialize_entity_embedding,
    initialize_relation_embedding,
    kept_shards,
    refactor_embedding_sharding,
)
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.registry import Registry
from besskge_core.scoring.comparators import Dot
from besskge_core.scoring.formula import Heads, ScoreFormula
from besskge_core.scoring.representations import (
    Table,
    as_rows,
    check_entities,
    check_relations,
)
from besskge_core.sharding import Sharding

#: What candidates are compared with, (B, ...) each; opaque but to the score function.
Query = Tuple[Tensor, ...]

_OWNERS = {
    "entity_embedding": "entity_representation",
    "relation_embedding": "relation_representation",
}


class BaseScoreFunction(nn.Module, abc.ABC):
    """Scores triples whose entity rows are given; relation rows are looked up.

    A subclass sets the first four attributes and defines the scores of triples, heads and tails.

    A table is a parameter, or the weight of an :class:`~besskge_core.embedding.Embedding`.

    Attributes:
        negative_sample_sharing: score every query against the candidates of all of them.
        sharding: of the entities.
        entity_embedding: (L, max_entity_per_shard, D), of the hosted shards; by default all.
        relation_embedding: (n_relation_type or twice as many, R).
        entity_representation: what `entity_embedding` is the weight of, or None.
        relation_representation: likewise.
        inverse_relations: whether there are embeddings of the inverse relations, too.
        scores_heads: whether queries (?, r, t) can be answered. If not, asking for heads raises
            NotImplementedError: train with inverse triples, and corrupt tails only.
    """

    negative_sample_sharing: bool
    sharding: Sharding
    entity_embedding: nn.Parameter
    relation_embedding: nn.Parameter
    entity_representation: Optional[Embedding]
    relation_representation: Optional[Embedding]
    inverse_relations: bool = False
    scores_heads: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.entity_representation = self.relation_representation = None
        self._relations_seen: List[Tensor] = []  # (K,) each, for the regulariser
        self._hosted: Optional[Tuple[int, ...]] = None

    def __getattr__(self, name: str) -> Any:
        # A weight has one name among the parameters, that of the representation.
        owner = _OWNERS.get(name)
        representation = None if owner is None else self._modules.get(owner)
        return super().__getattr__(name) if representation is None else representation.weight

    @property
    def is_inner_product(self) -> bool:
        """Whether scores are inner products of queries with entity rows, both ways."""
        return False

    @property
    def hosted(self) -> Tuple[int, ...]:
        """The shards whose rows `entity_embedding` has, L of them."""
        if self.entity_representation is not None:
            return self.entity_representation.hosted
        return tuple(range(self.sharding.n_shard)) if self._hosted is None else self._hosted

    def keep_shards(self, shards: Sequence[int]) -> None:
        """Keep the rows of some shards alone, as a worker among others does.

        Optimisers made before still hold the whole table: make them anew.

        Raises:
            ConfigError: their rows are not here.
        """
        if tuple(shards) == self.hosted:
            return
        if self.entity_representation is not None:
            self.entity_representation.keep_shards(shards)
        else:
            self.entity_embedding = kept_shards(self.entity_embedding, self.hosted, shards)
            self._hosted = tuple(shards)

    @property
    def n_relation_type(self) -> int:
        """Relations of the graph, without inverse ones."""
        return self.relation_embedding.shape[0] // (2 if self.inverse_relations else 1)

    @property
    def embedding_size(self) -> int:
        """Width of one part of an entity row; the whole row, unless a subclass knows better."""
        return int(self.entity_embedding.shape[-1])

    def forward(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """See :meth:`score_triple`."""
        return self.score_triple(head_emb, relation_id, tail_emb)

    @abc.abstractmethod
    def score_triple(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """head_emb (B, D), relation_id (B), tail_emb (B, D) -> (B)."""

    @abc.abstractmethod
    def score_heads(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """Candidates head_emb (A, N, D), relation_id (B), tail_emb (B, D).

        Returns:
            (B, N); with `negative_sample_sharing` (B, A * N), every query against every block.
        """

    @abc.abstractmethod
    def score_tails(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        """head_emb (B, D), relation_id (B), candidates tail_emb (A, N, D).

        Returns:
            (B, N); with `negative_sample_sharing` (B, A * N), every query against every block.
        """

    # -- the same in two steps: queries may travel between shards ----------------------------------

    def query(self, known_emb: Tensor, relation_id: Tensor, heads: Heads) -> Query:
        """What is known of triples: tails where heads are asked for, (B, D), and relations (B)."""
        return known_emb, relation_id

    def score_query(self, query: Query, entity_emb: Tensor, heads: Heads) -> Tensor:
        """Each query with one entity, (B, D) -> (B)."""
        known, relation_id = query
        if isinstance(heads, Tensor):
            asked = heads.unsqueeze(-1)
            head, tail = (
                torch.where(asked, entity_emb, known),
                torch.where(asked, known, entity_emb),
            )
            return self.score_triple(head, relation_id, tail)
        head, tail = (entity_emb, known) if heads else (known, entity_emb)
        return self.score_triple(head, relation_id, tail)

    def score_candidates(self, query: Query, candidate_emb: Tensor, heads: Heads) -> Tensor:
        """Queries with candidates (A, N, D); shapes as :meth:`score_tails`."""
        known, relation_id = query
        if not isinstance(heads, Tensor):
            if heads:
                return self.score_heads(candidate_emb, relation_id, known)
            return self.score_tails(known, relation_id, candidate_emb)
        return torch.where(
            heads.unsqueeze(-1),
            self.score_heads(candidate_emb, relation_id, known),
            self.score_tails(known, relation_id, candidate_emb),
        )

    def directed(self, heads: bool, relation_id: Tensor) -> Tuple[bool, Tensor]:
        """How one side is asked for: heads as tails of the inverse relation, where there is one.

        Args:
            heads: whether heads are asked for.
            relation_id: (...), without inverse ones.

        Returns:
            Whether heads are candidates, and the relation IDs (...) to ask with.
        """
        if heads and self.inverse_relations:
            return False, relation_id + self.n_relation_type
        return heads, relation_id

    # -- what else is asked of it ------------------------------------------------------------------

    def entities(self, rows: Tensor, counted: Counted = True) -> Tensor:
        """Rows of the entity table, as they are gathered -> as they are scored, both (..., D).

        In training each call has its own dropout, and a term of the regulariser: call this once
        with all that a shard gathers.

        Args:
            rows: (..., D).
            counted: whether the regulariser sees them; all, or bool (...) each.
        """
        if self.entity_representation is None:
            return rows
        return as_rows(self.entity_representation.represent(rows, counted), rows.dim() - 1)

    def relation(self, relation_id: Tensor) -> Tensor:
        """relation_id (...), int32 or int64 -> (..., R)."""
        representation = self.relation_representation
        if representation is None:
            return F.embedding(relation_id, self.relation_embedding)
        if representation.regularizer is not None and self.training and torch.is_grad_enabled():
            self._relations_seen.append(relation_id.reshape(-1))
        return as_rows(representation(relation_id, counted=False), relation_id.dim())

    def pop_regularization_term(
        self, relation_id: Union[Tensor, Sequence[Tensor], None] = None, counted: Counted = True
    ) -> Tensor:
        """What the representations' regularisers ask for since the last time, a scalar; or 0.

        Each call of :meth:`entities` is a term. Relations make one in all: a step looks them up by
        shard and by side, and should not cost more because it has more of them.

        Args:
            relation_id: (...), of the triples of a step, or several, a term each; None: what
                :meth:`relation` looked up.
            counted: whether these count; all, or bool (...) each.
        """
        entities, relations = self.entity_representation, self.relation_representation
        seen, self._relations_seen = self._relations_seen, []
        if relation_id is None:
            relation_id = [torch.cat(seen)] if seen else []
        if relations is not None and relations.regularizer is not None:
            for ids in [relation_id] if isinstance(relation_id, Tensor) else relation_id:
                relations(ids, counted)
        term = self.entity_embedding.new_zeros(())
        for representation in (entities, relations):
            if representation is not None:
                term = term + representation.pop_regularization_term()
        return term

    def post_parameter_update(self, rows: Optional[Tensor] = None) -> None:
        """Apply the representations' constrainers, in place; for after an update.

        Args:
            rows: integer (U,), entity rows that changed, as places in the shards' tables laid end
                to end; None: all. Of relations it is always all.
        """
        if self.entity_representation is not None:
            self.entity_representation.post_parameter_update(rows)
        if self.relation_representation is not None:
            self.relation_representation.post_parameter_update()

    def score_relations(self, head_emb: Tensor, tail_emb: Tensor) -> Tensor:
        """head_emb (B, D), tail_emb (B, D) -> (B, rows of `relation_embedding`): all relations."""
        ids = torch.arange(len(self.relation_embedding), device=head_emb.device)
        head, tail = (x.repeat_interleave(len(ids), dim=0) for x in (head_emb, tail_emb))
        scores = self.score_triple(head, ids.repeat(len(head_emb)), tail)
        return scores.view(len(head_emb), len(ids))

    def squared_moduli(
        self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Squared moduli of the entries of the three rows of each triple, for regularisers."""
        return head_emb.square(), self.relation(relation_id).square(), tail_emb.square()

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
        if len(self.hosted) != self.sharding.n_shard:
            raise ConfigError(
                f"only the rows of the shards {self.hosted} are here; lay out anew where all are, or"
                " load a checkpoint into a model of the new sharding"
            )
        if self.entity_representation is not None:
            self.entity_representation.update_sharding(new_sharding)
        else:
            self.entity_embedding = refactor_embedding_sharding(
                self.entity_embedding, self.sharding, new_sharding
            )
            self._hosted = None
        self.sharding = new_sharding

    @contextmanager
    def pooling(self, shared: bool) -> Iterator[None]:
        """While this lasts, `negative_sample_sharing` is `shared`."""
        before = self.negative_sample_sharing
        self.negative_sample_sharing = shared
        try:
            yield
        finally:
            self.negative_sample_sharing = before

    def _shared(self, candidate_emb: Tensor, n_query: int) -> Tensor:
        """(A, N, D) -> (A * N, D) where all queries share the candidates, else as it is."""
        if candidate_emb.dim() != 3 or candidate_emb.shape[0] not in (1, n_query):
            raise ShapeError(
                f"candidates have shape {tuple(candidate_emb.shape)},"
                f" expected (1 or B, N, D) with B={n_query}"
            )
        if self.negative_sample_sharing or candidate_emb.shape[0] == 1:
            return candidate_emb.reshape(-1, candidate_emb.shape[-1])
        return candidate_emb


class FormulaScoreFunction(BaseScoreFunction):
    """A formula with the tables of one graph.

    Args:
        formula: the formula.
        negative_sample_sharing: score every query against the candidates of all of them.
        sharding: of the entities.
        n_relation_type: relations of the graph.
        entity_initializer: a table, or a function for each part of a row, or one for all; see
            :func:`~besskge_core.embedding.initialize_entity_embedding`. Or an
            :class:`~besskge_core.embedding.Embedding` with this sharding, whose normaliser,
            regulariser, dropout and constrainer are then in force. Its rows are as wide as the
            formula's; a complex one has half as many entries, for rows of complex numbers only.
        relation_initializer: likewise; an Embedding is by relation ID, without a sharding.
        inverse_relations: also make embeddings of the inverse relations.

    Raises:
        ConfigError: tables or embeddings of another shape, sharding or kind of numbers.
    """

    def __init__(
        self,
        formula: ScoreFormula,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        entity_initializer: Table,
        relation_initializer: Table,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__()
        self.negative_sample_sharing, self.sharding = negative_sample_sharing, sharding
        self.inverse_relations, self.formula = inverse_relations, formula
        self.scores_heads = formula.scores_heads
        widths = formula.widths(formula.entity_parts)
        if isinstance(entity_initializer, Embedding):
            check_entities(entity_initializer, sharding, sum(widths), formula.complex_entities)
            self.entity_representation = entity_initializer
        else:
            self._hosted = hosted_shards(sharding)
            self.entity_embedding = initialize_entity_embedding(
                sharding, entity_initializer, _row_size(entity_initializer, widths)
            )
        widths = formula.widths(formula.relation_parts)
        if isinstance(relation_initializer, Embedding):
            check_relations(
                relation_initializer, n_relation_type, inverse_relations, sum(widths),
                formula.complex_relations,
            )  # fmt: skip
            self.relation_representation = relation_initializer
        else:
            self.relation_embedding = initialize_relation_embedding(
                n_relation_type, inverse_relations, relation_initializer,
                _row_size(relation_initializer, widths),
            )  # fmt: skip

    def __init_subclass__(cls, **options: object) -> None:
        # Who writes a score anew is to be asked for it, not the formula.
        super().__init_subclass__(**options)
        if {"score_triple", "score_heads", "score_tails"} & set(vars(cls)):
            for name in ("query", "score_query", "score_candidates", "score_relations"):
                if name not in vars(cls):
                    setattr(cls, name, getattr(BaseScoreFunction, name))

    @property
    def is_inner_product(self) -> bool:
        comparator = getattr(self.formula, "comparator", None)
        return self.scores_heads and isinstance(comparator, Dot)

    @property
    def embedding_size(self) -> int:
        """Width of one part of a row."""
        return self.formula.dim

    def score_triple(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        return self.formula.triples(head_emb, self.relation(relation_id), tail_emb)

    def score_heads(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        query = FormulaScoreFunction.query(self, tail_emb, relation_id, True)
        return FormulaScoreFunction.score_candidates(self, query, head_emb, True)

    def score_tails(self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor) -> Tensor:
        query = FormulaScoreFunction.query(self, head_emb, relation_id, False)
        return FormulaScoreFunction.score_candidates(self, query, tail_emb, False)

    def query(self, known_emb: Tensor, relation_id: Tensor, heads: Heads) -> Query:
        return (self.formula.query(known_emb, self.relation(relation_id), heads),)

    def score_query(self, query: Query, entity_emb: Tensor, heads: Heads) -> Tensor:
        return self.formula.rowwise(query[0], entity_emb, heads)

    def score_candidates(self, query: Query, candidate_emb: Tensor, heads: Heads) -> Tensor:
        (q,) = query
        return self.formula.pairwise(q, self._shared(candidate_emb, len(q)), heads)

    def score_relations(self, head_emb: Tensor, tail_emb: Tensor) -> Tensor:
        ids = torch.arange(len(self.relation_embedding), device=head_emb.device)
        return self.formula.relations(head_emb, self.relation(ids), tail_emb)

    def squared_moduli(
        self, head_emb: Tensor, relation_id: Tensor, tail_emb: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        return self.formula.squared_moduli(head_emb, self.relation(relation_id), tail_emb)


def _row_size(initializer: Initializers, widths: List[int]) -> List[int]:
    """What initialisers fill: each a part, or one alone the whole row."""
    alone = not isinstance(initializer, Tensor) and len(initializer) == 1
    return [sum(widths)] if alone else widths


SCORE_FUNCTIONS: Registry[type] = Registry("score function")
