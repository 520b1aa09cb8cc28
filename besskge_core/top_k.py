"""The best k answers of queries, of scores that come a tile at a time.

Equal scores are ordered by ID, whatever the tiles; a candidate whose score is -inf is no answer.

Axes:
    Q: queries      T: candidates of a tile      K: answers of a query
"""

from __future__ import annotations

import math
from typing import NamedTuple, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from besskge_core.exchange import Exchange


class TopK(NamedTuple):
    """The best answers of queries, best first; fewer than K leave IDs of -1 and scores of -inf.

    Attributes:
        id: int64 (Q, K).
        score: (Q, K).
    """

    id: NDArray[np.int64]
    score: NDArray[np.floating]


class BestSoFar:
    """The best answers met so far; score (Q, K), and ID (Q, K), -1 for none."""

    def __init__(self, n_query: int, table: Tensor) -> None:
        self.score = table.new_empty((n_query, 0))
        self.id = torch.empty((n_query, 0), dtype=torch.int64, device=table.device)

    def add(self, scores: Tensor, ids: Tensor, k: int) -> None:
        """Scores (Q, T) of candidates whose IDs (T,) rise."""
        score, column = _first_k(scores, k)
        score = torch.cat([self.score, score.to(self.score.dtype)], dim=1)
        self._keep(score, torch.cat([self.id, ids.long()[column]], dim=1), k)

    def of_ranks(self, exchange: Exchange, k: int) -> BestSoFar:
        """The best that all ranks together have met."""
        if exchange.n_rank > 1:
            missing = k - self.score.shape[1]
            score = nn.functional.pad(self.score, (0, missing), value=-math.inf)
            ids = nn.functional.pad(self.id, (0, missing), value=-1)
            score, ids = (exchange.gather_ranks(x).transpose(0, 1).flatten(1) for x in (score, ids))
            self._keep(score, ids, k)
        return self

    def _keep(self, score: Tensor, ids: Tensor, k: int) -> None:
        by_id = ids.sort(dim=1)[1]
        score, ids = score.gather(1, by_id), ids.gather(1, by_id)
        order = score.sort(dim=1, descending=True, stable=True)[1][:, :k]
        self.score, self.id = score.gather(1, order), ids.gather(1, order)

    def result(self) -> TopK:
        ids = self.id.masked_fill(self.score == -math.inf, -1)
        return TopK(ids.cpu().numpy(), self.score.float().cpu().numpy())


def _first_k(scores: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """The k largest of each row and their columns; of equal ones, the first columns."""
    n = scores.shape[1]
    if n <= k:
        return scores, torch.arange(n, device=scores.device).expand_as(scores)
    score, column = scores.topk(k + 1, dim=1)
    # Only a tie across the cut leaves open which ones belong in.
    tied = score[:, k - 1] == score[:, k]
    score, column = score[:, :k].clone(), column[:, :k].clone()
    if tied.any():
        best = scores[tied].sort(dim=1, descending=True, stable=True)
        score[tied], column[tied] = best[0][:, :k], best[1][:, :k]
    return score, column


def without_nan(scores: Tensor) -> Tensor:
    """Scores that are not a number as -inf, which is no answer."""
    return scores.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
