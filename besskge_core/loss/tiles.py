"""The loss of a tile of the scores of all entities, and its gradient.

A tile is looked at twice. First it gives, where the loss needs it, its part of the log-sum-exp of
each row; then, when that of whole rows is known, its share of the loss and its gradient.

Axes:
    B: rows      T: columns of the tile      K: places of label 1      P: pairs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from besskge_core.loss.entries import Labelled, Rows, Smoothing, wide
from besskge_core.ops import Logits, Slope, softmax_gradient, softmax_log_sum

if TYPE_CHECKING:
    from besskge_core.loss.labelled import LabelledLoss


class Softmax(NamedTuple):
    """What cross-entropy makes of scores before the softmax: (x - margin, at labels) / temperature."""

    margin: float = 0.0
    temperature: float = 1.0


class Share(NamedTuple):
    """What a tile adds to the loss (), and the gradients of its scores (B, T) and of the pairs (P,)."""

    value: Tensor
    score: Optional[Tensor] = None
    pairs: Optional[Tensor] = None


class LossTile:
    """A tile, for any loss.

    Args:
        loss: the loss.
        entries: scores, with their labels as places; they are not changed.
        smoothing: of the labels.
    """

    def __init__(self, loss: LabelledLoss, entries: Labelled, smoothing: Smoothing) -> None:
        self.loss, self.entries, self.smoothing = loss, entries, smoothing

    def log_sum(self) -> Tensor:
        """(B,): log-sum-exp of the logits of the tile."""
        return self.loss.logits(self._wide()).logsumexp(1)

    def share(self, rows: Rows, sizes: Sequence[Tensor], wanted: bool) -> Share:
        """The share in the loss.

        Args:
            rows: what is known of the whole rows.
            sizes: what the sums of the terms of the loss are divided by; none for a sum.
            wanted: whether gradients are.
        """
        entries, pairs = self._wide(), rows.pairs
        score = entries.score.detach().requires_grad_(wanted)
        if pairs is not None:
            pairs = pairs[0], pairs[1].detach().requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            entries = entries._replace(score=score, rows=rows._replace(pairs=pairs))
            value = self.loss.of_tile(entries, self.smoothing, sizes)
        if not wanted:
            return Share(value)
        inputs = [score] if pairs is None else [score, pairs[1]]
        found = torch.autograd.grad(value, inputs, allow_unused=True)
        of_pairs = found[1] if len(found) > 1 else None
        return Share(value.detach(), found[0], of_pairs)

    def _wide(self) -> Labelled:
        """The entries in float32 or float64."""
        return self.entries._replace(score=self.entries.score.to(wide(self.entries.score)))


class SoftmaxTile(LossTile):
    """A tile of cross-entropy: the same, without a graph, and with no copy of the scores.

    Args:
        loss, entries, smoothing: see the base class.
        softmax: what the loss makes of scores.
    """

    def __init__(
        self, loss: LabelledLoss, entries: Labelled, smoothing: Smoothing, softmax: Softmax
    ) -> None:
        super().__init__(loss, entries, smoothing)
        assert entries.places is not None
        excluded = entries.excluded
        if excluded is not None:
            assert len(excluded) == 1, "a tile excludes columns, the same of all rows"
            excluded = excluded[0]
        self.softmax, self.logits = softmax, Logits(*entries.places, excluded, *softmax)
        self._found: Optional[Tuple[Tensor, Tensor]] = None

    def log_sum(self) -> Tensor:
        self._found = softmax_log_sum(self.entries.score, self.logits)
        return self._found[0]

    def share(self, rows: Rows, sizes: Sequence[Tensor], wanted: bool) -> Share:
        if self._found is None:
            self.log_sum()
        assert self._found is not None
        row, own = self.logits.row, self._found[1]
        value, slope = softmax_share(
            self.softmax, row, own, rows, sizes, self.entries.row_weight, self.loss.loss_scale
        )
        if not wanted:
            return Share(value)
        return Share(value, softmax_gradient(self.entries.score, self.logits, slope))


def softmax_share(
    softmax: Softmax,
    row: Tensor,
    own: Tensor,
    rows: Rows,
    sizes: Sequence[Tensor],
    row_weight: Optional[Tensor],
    loss_scale: float,
) -> Tuple[Tensor, Slope]:
    """The share of labels in cross-entropy, and what the gradient of their tile is made of.

    Args:
        softmax: what the loss makes of scores.
        row, own: (K,) each, rows of the labels, and the logits there.
        rows: what is known of the whole rows.
        sizes: see :meth:`LossTile.share`.
        row_weight: (B, 1), or None: 1.
        loss_scale: factor of the loss.
    """
    assert rows.log_total is not None
    log_total = rows.log_total.squeeze(1)
    log_total = log_total.masked_fill(log_total.isneginf(), 0.0)
    n_positive = rows.n_positive.squeeze(1).to(own.dtype)
    weight = torch.ones_like(n_positive) if row_weight is None else row_weight.squeeze(1)
    weight = weight.to(own.dtype) * loss_scale
    if sizes:
        weight = weight / sizes[0].to(own.dtype)
    of_label = weight[row] / n_positive[row]
    value = (of_label * (log_total[row] - own)).sum()
    has_label = (n_positive > 0).to(weight.dtype)
    of_row = weight * has_label / softmax.temperature
    return value, Slope(log_total.to(own.dtype), of_row, of_label / softmax.temperature)
