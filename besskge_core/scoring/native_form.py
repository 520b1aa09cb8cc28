"""Which score functions native operations compute, and in which terms."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from besskge_core.scoring.base import BaseScoreFunction, FormulaScoreFunction
from besskge_core.scoring.comparators import (
    Comparator,
    Distance,
    Dot,
    ModulusDistance,
    widened,
)
from besskge_core.scoring.formula import QueryScore
from besskge_core.scoring.operators import ComplexScaling, Rotation, Scaling, Translation

#: What an operator does, by its exact class: a subclass may do something else.
_MOVES = {
    Translation: "translation",
    Scaling: "scaling",
    ComplexScaling: "complex_scaling",
    Rotation: "complex_scaling",
}


class NativeForm(NamedTuple):
    """A score function in the terms of :mod:`besskge_core.ops.sampled_loss`."""

    move: str
    comparison: str


def relation_moves(score_fn: BaseScoreFunction) -> Tensor:
    """(M, D), what a score function with a native form moves entities by, angles in float32."""
    relation: Tensor = score_fn.relation_embedding
    if type(score_fn.formula.operator) is Rotation:
        relation = widened(relation)
        return torch.cat([relation.cos(), relation.sin()], dim=-1)
    return relation


def native_form(score_fn: BaseScoreFunction) -> Optional[NativeForm]:
    """The terms of a score function, or None: it is scored as it says itself."""
    representations = score_fn.entity_representation, score_fn.relation_representation
    if not _asks_its_formula(score_fn) or representations != (None, None):
        return None
    formula = score_fn.formula
    if type(formula) is not QueryScore:
        return None
    move = _MOVES.get(type(formula.operator))
    comparison = comparison_of(formula.comparator)
    return None if move is None or comparison is None else NativeForm(move, comparison)


def comparison_of(comparator: Comparator) -> Optional[str]:
    """The name of a comparator, or None."""
    if type(comparator) is Dot:
        return "dot"
    if type(comparator) in (Distance, ModulusDistance):
        p = comparator.p  # type: ignore[attr-defined]
        if p == 2:  # of complex moduli the same
            return "l2"
        if p == 1:
            return "l1" if type(comparator) is Distance else "modulus"
    return None


def _asks_its_formula(score_fn: BaseScoreFunction) -> bool:
    """Whether scores are those of the formula, none of them written anew."""
    names = ("query", "score_query", "score_candidates", "entities", "relation")
    return isinstance(score_fn, FormulaScoreFunction) and all(
        getattr(type(score_fn), name) is getattr(FormulaScoreFunction, name) for name in names
    )
