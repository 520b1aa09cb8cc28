"""Score functions: how plausible is a triple (head, relation, tail)?

`formula` says what a score is, `operators` and `comparators` are what formulas are put together
from, `base` adds the tables of a graph, `models` names the well-known ones.
"""

from __future__ import annotations

from besskge_core.scoring.base import SCORE_FUNCTIONS, BaseScoreFunction
from besskge_core.scoring.models import ComplEx, DistMult, RotatE, TransE

__all__ = [
    "SCORE_FUNCTIONS",
    "BaseScoreFunction",
    "ComplEx",
    "DistMult",
    "RotatE",
    "TransE",
]
