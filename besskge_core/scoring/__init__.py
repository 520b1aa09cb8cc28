"""Score functions: how plausible is a triple (head, relation, tail)?

`formula` says what a score is, `operators` and `comparators` are what formulas are put together
from, `base` adds the tables of a graph, `models` the constructors that the named ones share, which
are in `distances` and `factorizations`.
"""

from __future__ import annotations

from besskge_core.scoring.base import (
    SCORE_FUNCTIONS,
    BaseScoreFunction,
    DistanceBasedScoreFunction,
    FormulaScoreFunction,
    MatrixDecompositionScoreFunction,
    Query,
)
from besskge_core.scoring.distances import RotatE, TransE
from besskge_core.scoring.factorizations import ComplEx, DistMult
from besskge_core.scoring.formula import Heads

__all__ = [
    "SCORE_FUNCTIONS",
    "BaseScoreFunction",
    "ComplEx",
    "DistMult",
    "DistanceBasedScoreFunction",
    "FormulaScoreFunction",
    "Heads",
    "MatrixDecompositionScoreFunction",
    "Query",
    "RotatE",
    "TransE",
]
