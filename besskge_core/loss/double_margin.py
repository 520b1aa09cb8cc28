"""The double margin loss: one margin for the scores of positives, another for those of negatives."""

from __future__ import annotations

from typing import Any, ClassVar, Mapping, Optional, Sequence, Tuple, Type, Union

from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.loss.base import LOSSES
from besskge_core.loss.entries import Labelled, Part, Samples, Smoothing, Term, product
from besskge_core.loss.labelled import UnknownOptionError
from besskge_core.loss.pointwise import PointwiseLoss

#: What a margin activation may be given as.
MarginActivation = Union[str, nn.Module, Type[nn.Module], None]

#: Margin activations by name.
MARGIN_ACTIVATIONS: Mapping[str, Type[nn.Module]] = {
    "hard": nn.ReLU,
    "relu": nn.ReLU,
    "soft": nn.Softplus,
    "softplus": nn.Softplus,
}


def margin_activation_of(given: MarginActivation) -> nn.Module:
    """A margin activation by its name, or a module, or one of its class; None: "relu"."""
    if isinstance(given, nn.Module):
        return given
    if isinstance(given, type):
        return given()
    name = "relu" if given is None else given.lower()
    if name not in MARGIN_ACTIVATIONS:
        raise UnknownOptionError(
            f"unknown margin activation {given!r}; expected a module or one of"
            f" {sorted(MARGIN_ACTIVATIONS)}"
        )
    return MARGIN_ACTIVATIONS[name]()


@LOSSES.register("doublemargin")
class DoubleMarginLoss(PointwiseLoss):
    """b R(g(m+ - x+)) + (1 - b) R(g(m- + x-)), with R the reduction. Sun et al., IJCAI 2018.

    The margin of the negatives is added: with "relu", positives cost nothing from m+ on, and
    negatives up to -m-. What R is taken over is PyKEEN's: with negatives, a positive counts once
    for each that is left; with labels, both parts are over all entries, each with its label (or
    what is missing to 1) as a factor.

    Args:
        positive_margin, negative_margin, offset: see :meth:`resolve_margin`.
        positive_negative_balance: b, 0 to 1.
        margin_activation: g; "relu" or "hard", "softplus" or "soft", or a module or its class.
        reduction, loss_scale: see the base class.
    """

    smooths_samples: ClassVar[bool] = False

    #: The default strategy for searching the options.
    hpo_default: ClassVar[Mapping[str, Any]] = {
        "margin_activation": {"type": "categorical", "choices": set(MARGIN_ACTIVATIONS)},
        "offset": {"type": float, "low": 0, "high": 1},
        "positive_margin": {"type": float, "low": -1, "high": 1},
        "positive_negative_balance": {"type": float, "low": 1.0e-03, "high": 1.0 - 1.0e-03},
    }

    def __init__(
        self,
        *,
        positive_margin: Optional[float] = None,
        negative_margin: Optional[float] = None,
        offset: Optional[float] = None,
        positive_negative_balance: float = 0.5,
        margin_activation: MarginActivation = "relu",
        reduction: str = "mean",
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_scale)
        if not 0.0 <= positive_negative_balance <= 1.0:
            raise ConfigError(
                f"positive_negative_balance must be 0 to 1, got {positive_negative_balance}"
            )
        margins = self.resolve_margin(positive_margin, negative_margin, offset)
        self.positive_margin, self.negative_margin = margins
        self.positive_weight = positive_negative_balance
        self.negative_weight = 1.0 - positive_negative_balance
        self.margin_activation = margin_activation_of(margin_activation)

    @staticmethod
    def resolve_margin(
        positive_margin: Optional[float],
        negative_margin: Optional[float],
        offset: Optional[float],
    ) -> Tuple[float, float]:
        """The two margins from two of three values, positive = negative + offset; or from none.

        Args:
            positive_margin: at least the negative one.
            negative_margin: at most the positive one.
            offset: at least 0.

        Returns:
            positive and negative margin; (1, 0) if nothing is given.

        Raises:
            ConfigError: one or three values are given, or the positive margin is the lower one.
        """
        given = (positive_margin, negative_margin, offset)
        n_given = sum(x is not None for x in given)
        if n_given == 0:
            return 1.0, 0.0
        if n_given != 2:
            raise ConfigError(
                "give two of positive_margin, negative_margin and offset, or none, but got"
                f" {positive_margin}, {negative_margin} and {offset}"
            )
        if offset is not None and not offset >= 0.0:
            raise ConfigError(f"offset must be at least 0, got {offset}")
        if positive_margin is None:
            assert negative_margin is not None and offset is not None
            return negative_margin + offset, negative_margin
        if negative_margin is None:
            assert offset is not None
            return positive_margin, positive_margin - offset
        if not positive_margin >= negative_margin:
            raise ConfigError(
                f"positive_margin must be at least negative_margin, got {positive_margin} and"
                f" {negative_margin}"
            )
        return positive_margin, negative_margin

    #: The name by which PyKEEN's page refers to it.
    resolve_margins = resolve_margin

    def of_samples(self, samples: Samples, smoothing: Smoothing) -> Sequence[Term]:
        row = samples.row_weight
        p = self.margin_activation(self.positive_margin - samples.positive)
        n = self.margin_activation(self.negative_margin + samples.filled())
        once_each = samples.kept.sum(1, keepdim=True).to(p.dtype)
        positives = Part(p, weight=product(once_each, row, samples.positive_weight))
        negatives = Part(n, samples.kept, product(row, samples.negative_weight))
        return self._balanced([positives], [negatives])

    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        score, kept = entries.filled(), entries.kept
        if entries.label is not None:
            y = smoothing.smooth(entries.label.to(score.dtype))
            p, n = self._costs(score, y)
            return self._balanced(
                [Part(p, kept, entries.weights)], [Part(n, kept, entries.weights)]
            )
        one, zero = smoothing.smooth(1.0), smoothing.smooth(0.0)
        own, weight = score[entries.places], entries.at(entries.weights)
        terms = []
        for whole, as_one, as_zero in zip(
            self._costs(score, zero), self._costs(own, one), self._costs(own, zero)
        ):
            more = Part(as_one - as_zero, None, weight, counts=False)
            terms.append((Part(whole, kept, entries.weights), more))
        return self._balanced(*terms)

    def _costs(self, score: Tensor, y: Tensor | float) -> Tuple[Tensor, Tensor]:
        """What entries of these labels cost as positives and as negatives."""
        p = y * self.margin_activation(self.positive_margin - score)
        n = (1.0 - y) * self.margin_activation(self.negative_margin + score)
        return p, n

    def counts(self, n_positive: Tensor, n_kept: Tensor) -> Sequence[Tensor]:
        return [n_kept, n_kept]

    def _balanced(self, positives: Sequence[Part], negatives: Sequence[Part]) -> Sequence[Term]:
        return [
            Term(tuple(positives), self.positive_weight),
            Term(tuple(negatives), self.negative_weight),
        ]
