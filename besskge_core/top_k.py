"""The best k answers of queries, of scores that come a tile at a time.

Equal scores are ordered by ID, whatever the tiles; a candidate whose score is -inf is no answer.

Axes:
    Q: queries      T: candidates of a tile      K: answers of a query
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from besskge_core.exchange import Exchange
from besskge_core.ops import Filter, best_k


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

    def add(
        self,
        scores: Tensor,
        ids: Tensor,
        k: int,
        filtered: Optional[Filter] = None,
        first: int = 0,
    ) -> None:
        """Scores (Q, T) of candidates whose IDs (T,) rise; see :func:`besskge_core.ops.best_k`."""
        score, column = best_k(scores, k, filtered, first)
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
        self.score, order = best_k(score.gather(1, by_id), k)
        self.id = ids.gather(1, by_id.gather(1, order))

    def result(self) -> TopK:
        ids = self.id.masked_fill(self.score == -math.inf, -1)
        return TopK(ids.cpu().numpy(), self.score.float().cpu().numpy())
