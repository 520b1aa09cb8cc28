"""Prediction ranks and the metrics made of them.

A rank is 1 for the best candidate. Ties are broken in one of three ways:

- "optimistic": before all candidates with the same score,
- "pessimistic": after them,
- "average" or "realistic": the mean of the two, which no constant model can exploit.

A score that is not a number is worse than any other. Candidates that score -inf do not take
part: they never beat a finite score.

Axes:
    B: queries      N: candidates
"""

from __future__ import annotations

import abc
import math
from typing import Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from besskge_core.errors import ConfigError
from besskge_core.ops.tracing import is_traced
from besskge_core.shapes import match_shapes

MODES = ("optimistic", "pessimistic", "average", "realistic")


class BaseMetric(abc.ABC):
    """A number for each prediction rank."""

    @abc.abstractmethod
    def __call__(self, prediction_rank: Tensor) -> Tensor:
        """prediction_rank (B,), from 1, perhaps infinite -> (B,)."""


class ReciprocalRank(BaseMetric):
    """1 / rank; its mean is the MRR."""

    def __call__(self, prediction_rank: Tensor) -> Tensor:
        return prediction_rank.float().reciprocal()


class HitsAtK(BaseMetric):
    """1 where rank <= k, else 0.

    Args:
        k: at least 1.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ConfigError(f"Hits@k needs k of at least 1, got {k}")
        self.k = k

    def __call__(self, prediction_rank: Tensor) -> Tensor:
        return (prediction_rank <= self.k).float()


#: Metrics by name; "hits@k" stands for any k, as in "hits@10".
METRICS_DICT: Dict[str, Callable[..., BaseMetric]] = {"mrr": ReciprocalRank, "hits@k": HitsAtK}


def make_metric(name: str) -> BaseMetric:
    """The metric of this name: "mrr" or "hits@k" with a number for k.

    Raises:
        ConfigError: unknown name.
    """
    if name.startswith("hits@") and name[5:].isdigit():
        return METRICS_DICT["hits@k"](int(name[5:]))
    if name in METRICS_DICT and name != "hits@k":
        return METRICS_DICT[name]()
    raise ConfigError(f"unknown metric {name!r}; expected 'mrr' or 'hits@k' such as 'hits@10'")


def count_ranks(better: Tensor, equal: Tensor, mode: str) -> Tensor:
    """Ranks from the numbers of better and of equal candidates, the true one not counted.

    Returns:
        float64, of the same shape: exact for up to 2**52 candidates. While a step is traced for a
        device without it float32, exact for up to 2**23.
    """
    if mode not in MODES:
        raise ConfigError(f"unknown mode {mode!r}; expected one of {MODES}")
    share = {"optimistic": 0.0, "pessimistic": 1.0}.get(mode, 0.5)
    dtype = torch.float32 if is_traced() else torch.float64
    return 1.0 + better.to(dtype) + share * equal.to(dtype)


class Evaluation:
    """Ranks and metrics of micro-batches.

    Args:
        metric_list: names for :func:`make_metric`; they keep this order, but "mrr" comes last.
        mode: how ties are broken, see the module.
        worst_rank_infty: a rank behind all candidates counts as infinite; unless the mode is
            optimistic, ties are behind.
        reduction: "none" or "sum" over the queries.
        return_ranks: also report the ranks.

    Raises:
        ConfigError: unknown metric, mode or reduction.
    """

    def __init__(
        self,
        metric_list: Sequence[str],
        mode: str = "average",
        worst_rank_infty: bool = False,
        reduction: str = "none",
        return_ranks: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"unknown mode {mode!r}; expected one of {MODES}")
        if reduction not in ("none", "sum"):
            raise ConfigError(f"unknown reduction {reduction!r}; expected 'none' or 'sum'")
        ordered: List[str] = sorted(metric_list, key=lambda name: name == "mrr")
        self.metrics = {name: make_metric(name) for name in ordered}
        self.mode, self.worst_rank_infty = mode, worst_rank_infty
        self.reduction, self.return_ranks = reduction, return_ranks

    def ranks_from_scores(self, pos_score: Tensor, candidate_score: Tensor) -> Tensor:
        """Rank of each positive among its candidates, itself not among them.

        Args:
            pos_score: (B,).
            candidate_score: (B, N).

        Returns:
            float32 (B,).
        """
        match_shapes(pos_score=(pos_score, "B"), candidate_score=(candidate_score, "B N"))
        positive = pos_score.unsqueeze(-1)
        takes_part = candidate_score != -math.inf
        better = (((candidate_score > positive) | positive.isnan()) & takes_part).sum(-1)
        equal = ((candidate_score == positive) & takes_part).sum(-1)
        return self.ranks_from_counts(better, equal, takes_part.sum(-1))

    def ranks_from_counts(self, better: Tensor, equal: Tensor, n_rival: Tensor) -> Tensor:
        """Ranks from the rivals that score better, those that score the same, and all; (B,) each.

        Returns:
            float32 (B,).
        """
        ranks = count_ranks(better, equal, self.mode).float()
        if self.worst_rank_infty:
            behind = better if self.mode == "optimistic" else better + equal
            ranks = ranks.masked_fill((behind >= n_rival) & (behind > 0), math.inf)
        return ranks

    def ranks_from_indices(self, ground_truth: Tensor, candidate_indices: Tensor) -> Tensor:
        """Place of the truth in lists that are sorted best first.

        Args:
            ground_truth: (B,), entity IDs.
            candidate_indices: (B, N).

        Returns:
            float32 (B,); N + 1, or infinity, where the truth is not listed.
        """
        match_shapes(ground_truth=(ground_truth, "B"), candidate_indices=(candidate_indices, "B N"))
        found = candidate_indices == ground_truth.unsqueeze(-1)
        missing = math.inf if self.worst_rank_infty else candidate_indices.shape[1] + 1.0
        place = torch.arange(1, found.shape[1] + 1, device=found.device, dtype=torch.float32)
        return torch.where(found, place, missing).amin(-1)

    def dict_metrics_from_ranks(
        self, batch_rank: Tensor, triple_mask: Optional[Tensor] = None
    ) -> Dict[str, Tensor]:
        """Each metric, (B,) or its sum (); 0 where the mask is False."""
        values = {name: metric(batch_rank) for name, metric in self.metrics.items()}
        if triple_mask is not None:
            values = {name: x * triple_mask.flatten() for name, x in values.items()}
        if self.reduction == "sum":
            values = {name: x.sum() for name, x in values.items()}
        return values

    def stacked_metrics_from_ranks(
        self, batch_rank: Tensor, triple_mask: Optional[Tensor] = None
    ) -> Tensor:
        """(1, n_metric, B) or (1, n_metric), in the order of :attr:`metrics`."""
        values = self.dict_metrics_from_ranks(batch_rank, triple_mask)
        return torch.stack(list(values.values())).unsqueeze(0)

    def report(
        self, positive: Tensor, negative: Tensor, triple_mask: Optional[Tensor] = None
    ) -> Dict[str, Tensor]:
        """Give "metrics", and "ranks" if asked for, of positives (B,) among negatives (B, N)."""
        ranks = self.ranks_from_scores(positive, negative)
        out = {"metrics": self.stacked_metrics_from_ranks(ranks, triple_mask)}
        if self.return_ranks:
            out["ranks"] = ranks
        return out
