"""Score functions: how plausible is a triple (head, relation, tail)?

`formula` says what a score is, `operators` and `comparators` are what formulas are put together
from, `base` adds the tables of a graph (`representations`: those that are embeddings), `own` has bases
for those who write scores out, `models` the constructors that the named ones share, which
are in `distances`, `projections`, `regions`, `factorizations` and `convolution`.
"""

from __future__ import annotations

from besskge_core.scoring.base import (
    SCORE_FUNCTIONS,
    BaseScoreFunction,
    FormulaScoreFunction,
    Query,
)
from besskge_core.scoring.convolution import ConvE
from besskge_core.scoring.distances import (
    InterHT,
    LineaRE,
    MuRE,
    PairRE,
    RotatE,
    TorusE,
    TranS,
    TransE,
    TripleRE,
)
from besskge_core.scoring.factorizations import (
    CP,
    RESCAL,
    ComplEx,
    DistMult,
    HolE,
    QuatE,
    SimplE,
    TuckER,
)
from besskge_core.scoring.formula import Heads
from besskge_core.scoring.own import DistanceBasedScoreFunction, MatrixDecompositionScoreFunction
from besskge_core.scoring.projections import TransD, TransH, TransR
from besskge_core.scoring.regions import HAKE, BoxE

__all__ = [
    "CP",
    "HAKE",
    "RESCAL",
    "SCORE_FUNCTIONS",
    "BaseScoreFunction",
    "BoxE",
    "ComplEx",
    "ConvE",
    "DistMult",
    "DistanceBasedScoreFunction",
    "FormulaScoreFunction",
    "Heads",
    "HolE",
    "InterHT",
    "LineaRE",
    "MatrixDecompositionScoreFunction",
    "MuRE",
    "PairRE",
    "QuatE",
    "Query",
    "RotatE",
    "SimplE",
    "TorusE",
    "TranS",
    "TransD",
    "TransE",
    "TransH",
    "TransR",
    "TripleRE",
    "TuckER",
]
