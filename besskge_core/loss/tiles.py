"""The loss of a tile of the scores of all entities, and its gradient.

A tile is looked at twice. First it gives, where the loss needs it, its part of the log-sum-exp of
each row; then, when that of whole rows is known, its share of the loss and its gradient.

Axes:
    B: rows      T: columns of the tile      K: places of label 1      P: pairs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from besskge_core.loss.entries import Labelled, Rows, Smoothing

if TYPE_CHECKING:
    from besskge_core.loss.labelled import LabelledLoss


class Share(NamedTuple):
    """What a tile adds to the loss (), and the gradients of its scores (B, T) and of the pairs (P,)."""

    value: Tensor
    score: Optional[Tensor] = None
    pairs: Optional[Tensor] = None


class LossTile:
    """A tile, for any loss.

    Args:
        loss: the loss.
        entries: float32 or float64 scores that are nobody else's, with their labels as places.
        smoothing: of the labels.
    """

    def __init__(self, loss: LabelledLoss, entries: Labelled, smoothing: Smoothing) -> None:
        self.loss, self.entries, self.smoothing = loss, entries, smoothing

    def log_sum(self) -> Tensor:
        """(B,): log-sum-exp of the logits of the tile."""
        return self.loss.logits(self.entries).logsumexp(1)

    def share(self, rows: Rows, sizes: Sequence[Tensor], wanted: bool) -> Share:
        """The share in the loss.

        Args:
            rows: what is known of the whole rows.
            sizes: what the sums of the terms of the loss are divided by; none for a sum.
            wanted: whether gradients are.
        """
        score, pairs = self.entries.score.requires_grad_(wanted), rows.pairs
        if pairs is not None:
            pairs = pairs[0], pairs[1].detach().requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            entries = self.entries._replace(rows=rows._replace(pairs=pairs))
            value = self.loss.of_tile(entries, self.smoothing, sizes)
        if not wanted:
            return Share(value)
        inputs = [score] if pairs is None else [score, pairs[1]]
        found = torch.autograd.grad(value, inputs, allow_unused=True)
        of_pairs = found[1] if len(found) > 1 else None
        return Share(value.detach(), found[0], of_pairs)


class SoftmaxTile(LossTile):
    """A tile of cross-entropy: the same, in place, with one exponential of each score."""

    def __init__(
        self,
        loss: LabelledLoss,
        entries: Labelled,
        smoothing: Smoothing,
        margin: float,
        temperature: float,
    ) -> None:
        super().__init__(loss, entries, smoothing)
        assert entries.places is not None
        self.temperature, logit = temperature, entries.score
        if entries.excluded is not None:
            logit.masked_fill_(entries.excluded, -torch.inf)
        if margin:
            less = logit.new_full((), -margin)
            logit.index_put_(entries.places, less, accumulate=True)
        if temperature != 1.0:
            logit.div_(temperature)
        self.own = logit[entries.places]
        self.highest = logit.amax(1, keepdim=True)
        # A tile of excluded entries alone sums up to 0, not to NaN.
        self.highest.masked_fill_(self.highest.isneginf(), 0.0)
        self.part = logit.sub_(self.highest).exp_()
        self.sum = self.part.sum(1, keepdim=True)

    def log_sum(self) -> Tensor:
        return (self.highest + self.sum.log()).squeeze(1)

    def share(self, rows: Rows, sizes: Sequence[Tensor], wanted: bool) -> Share:
        entries, log_total = self.entries, rows.log_total
        assert log_total is not None and entries.places is not None
        log_total = log_total.masked_fill(log_total.isneginf(), 0.0)
        weight = self.sum.new_ones(()) if entries.row_weight is None else entries.row_weight
        weight = (weight * self.loss.loss_scale).expand_as(self.sum)
        if sizes:
            weight = weight / sizes[0]
        # Whatever the tile, its highest logit is below; a tile of excluded entries has none.
        scale = (self.highest - log_total).clamp_(max=0.0).exp_()
        has_label = (rows.n_positive > 0).to(weight.dtype)
        row = entries.places[0]
        of_label = weight[row, 0] / rows.n_positive[row, 0]
        value = (of_label * (log_total[row, 0] - self.own)).sum()
        if not wanted:
            return Share(value)
        grad = self.part.mul_(weight * has_label * scale / self.temperature)
        grad.index_put_(entries.places, -of_label / self.temperature, accumulate=True)
        return Share(value, grad)
