"""The constructors that named score functions share.

A named score function is a formula and the way its tables begin. What is given to all of them:
`negative_sample_sharing`, `sharding`, `n_relation_type` and `embedding_size` (width of one part of
a row), with `scoring_norm` before `sharding` where a distance is measured.
"""

from __future__ import annotations

import abc
from typing import Any, Optional, Sequence

from torch import Tensor

from besskge_core.embedding import Embedding, Initializer, init_KGE_uniform
from besskge_core.scoring.base import FormulaScoreFunction
from besskge_core.scoring.formula import ScoreFormula
from besskge_core.scoring.operators import Parts
from besskge_core.scoring.representations import Table
from besskge_core.sharding import Sharding


class NamedScoreFunction(FormulaScoreFunction, abc.ABC):
    """A formula with default initialisers.

    One initialiser alone serves every part of a row; both halves of complex numbers at once, so
    that one which divides by the width divides by twice `embedding_size`, as upstream.

    Attributes:
        entity_initializers: one for each part of an entity row.
        relation_initializers: one for each part of a relation row.
    """

    entity_initializers: Sequence[Initializer] = (init_KGE_uniform,)
    relation_initializers: Sequence[Initializer] = (init_KGE_uniform,)

    def __init__(
        self,
        formula: ScoreFormula,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            formula, negative_sample_sharing, sharding, n_relation_type,
            _one_a_part(
                entity_initializer, self.entity_initializers, formula.entity_parts,
                formula.complex_entities,
            ),
            _one_a_part(
                relation_initializer, self.relation_initializers, formula.relation_parts,
                formula.complex_relations,
            ),
            inverse_relations,
        )  # fmt: skip

    @property
    def scoring_norm(self) -> float:
        """p of the norm; only where a distance is measured."""
        measured: Any = getattr(self.formula, "comparator", self.formula)
        return float(measured.p)


class DistanceModel(NamedScoreFunction, abc.ABC):
    """Measures a distance.

    Args:
        negative_sample_sharing: score every query against the candidates of all of them.
        scoring_norm: p of the norm.
        sharding: of the entities.
        n_relation_type: relations of the graph.
        embedding_size: width of one part of a row.
        entity_initializer: a table, or a function for each part of a row, or an
            :class:`~besskge_core.embedding.Embedding` with this sharding; None:
            `entity_initializers`. See :class:`FormulaScoreFunction`.
        relation_initializer: likewise.
        inverse_relations: also make embeddings of the inverse relations.
    """

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            self.make_formula(embedding_size, scoring_norm), negative_sample_sharing, sharding,
            n_relation_type, entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip

    @staticmethod
    @abc.abstractmethod
    def make_formula(dim: int, p: float) -> ScoreFormula:
        """The formula for parts `dim` wide and the p-norm."""


class SimilarityModel(NamedScoreFunction, abc.ABC):
    """Measures a similarity; arguments as for :class:`DistanceModel`, but for the norm."""

    def __init__(
        self,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            self.make_formula(embedding_size), negative_sample_sharing, sharding,
            n_relation_type, entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip

    @staticmethod
    @abc.abstractmethod
    def make_formula(dim: int) -> ScoreFormula:
        """The formula for parts `dim` wide."""


def _one_a_part(
    given: Optional[Table], default: Sequence[Initializer], parts: Parts, is_complex: bool
) -> Table:
    given = default if given is None else given
    if isinstance(given, (Tensor, Embedding)) or len(given) != 1 or is_complex:
        return given
    return list(given) * len(parts)
