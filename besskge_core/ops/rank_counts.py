"""How many candidates score better than an answer, and how many the same, but for filtered ones.

Axes:
    Q: queries      T: candidates of a tile      A: answers      K: candidates that are filtered
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.shapes import match_shapes

_NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Filter(NamedTuple):
    """Candidates of each query that take no part; each of them once.

    Args:
        start: int64 (Q + 1,), where those of a query begin, and the end.
        column: int64 (K,), numbers of candidates.
    """

    start: Tensor
    column: Tensor

    @classmethod
    def of(cls, query: Tensor, column: Tensor, n_query: int) -> Filter:
        """Of pairs of a query and a column, int64 (K,) each, with rising queries."""
        queries = torch.arange(n_query + 1, device=query.device)
        return cls(torch.searchsorted(query.contiguous(), queries), column)

    @classmethod
    def none(cls, scores: Tensor) -> Filter:
        """Of no candidates of the queries with these scores (Q, T)."""
        start = torch.zeros(len(scores) + 1, dtype=torch.int64, device=scores.device)
        return cls(start, start[:0])

    @property
    def query(self) -> Tensor:
        """int64 (K,), the query of each column."""
        queries = torch.arange(len(self.start) - 1, device=self.start.device)
        return queries.repeat_interleave(self.start.diff())

    def places(self, first: int, n_column: int) -> Tuple[Tensor, Tensor]:
        """Rows and columns, of a tile of `n_column` candidates of which `first` is the first."""
        column = self.column - first
        inside = (column >= 0) & (column < n_column)
        return self.query[inside], column[inside]


def rank_counts(
    scores: Tensor,
    answer_score: Tensor,
    row: Optional[Tensor] = None,
    filtered: Optional[Filter] = None,
    first: int = 0,
) -> Tuple[Tensor, Tensor]:
    """Count, without a temporary of the size of the scores where it is native.

    Args:
        scores: (Q, T), floating.
        answer_score: (A,), of the same dtype.
        row: int64 (A,), the query of each answer. None: the answers are of the queries in turn.
        filtered: what takes no part. None: all candidates do.
        first: the number of the candidate in column 0; filtered ones of other tiles are ignored.

    Returns:
        better int64 (A,), scores above that of the answer; equal int64 (A,). What is not a number
        is neither.

    Raises:
        ShapeError: on other shapes.
    """
    match_shapes(scores=(scores, "Q T"))
    if row is None:
        match_shapes(scores=(scores, "Q T"), answer_score=(answer_score, "Q"))
        row = torch.arange(len(scores), device=scores.device)
    match_shapes(answer_score=(answer_score, "A"), row=(row, "A"))
    if filtered is None:
        filtered = Filter.none(scores)
    if native.serves("rank_counts", scores, *_NATIVE_DTYPES):
        counts: Tuple[Tensor, Tensor] = torch.ops.besskge.rank_counts(
            scores, answer_score, row, *filtered, first
        )
        return counts
    return reference(scores, answer_score, row, filtered, first)


def reference(
    scores: Tensor, answer_score: Tensor, row: Tensor, filtered: Filter, first: int
) -> Tuple[Tensor, Tensor]:
    """The meaning of :func:`rank_counts`, in plain torch."""
    kept = torch.ones_like(scores, dtype=torch.bool)
    kept[filtered.places(first, scores.shape[1])] = False
    truth = answer_score.unsqueeze(-1)
    better, equal = (scores[row] > truth) & kept[row], (scores[row] == truth) & kept[row]
    return better.sum(-1), equal.sum(-1)


@register_fake("rank_counts")
def _(
    scores: Tensor,
    answer_score: Tensor,
    row: Tensor,
    filter_start: Tensor,
    filter_column: Tensor,
    first: int,
) -> Tuple[Tensor, Tensor]:
    shape = (answer_score.shape[0],)
    return scores.new_empty(shape, dtype=torch.int64), scores.new_empty(shape, dtype=torch.int64)
