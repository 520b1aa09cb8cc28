"""What every loss of training has, and the losses of the BESS-KGE kind.

A :class:`BaseLossFunction` is a weighted *sum* over the positives of a micro-batch, times
`loss_scale`, in float32 (or float64 if the scores are), and changes none of its arguments. A
negative that is excluded (padding, a true triple) scores -inf: it costs nothing and has no
gradient; with `n_negative` it does not count among the negatives of its row either.

Axes:
    B: positives      N: negatives of each
"""

from __future__ import annotations

import abc
import inspect
import math
from typing import Optional

import torch
from torch import Tensor, nn

from besskge_core.registry import Registry
from besskge_core.shapes import match_shapes

LOSSES: Registry[type] = Registry("loss")


class Loss(nn.Module, abc.ABC):
    """What :class:`~besskge_core.bess.BessKGE` asks of a loss.

    Attributes:
        loss_scale: factor of the loss; that of the regularizer too.
    """

    loss_scale: float

    @abc.abstractmethod
    def sampled(
        self,
        positive_score: Tensor,
        negative_score: Tensor,
        triple_weight: Tensor,
        n_negative: Optional[Tensor] = None,
    ) -> Tensor:
        """The loss of a micro-batch.

        Args:
            positive_score: (B,).
            negative_score: (B, N), -inf where a negative is excluded.
            triple_weight: (B,) or (1,) or (), weights of the positives; 0 leaves one out.
            n_negative: (B,), negatives of each row that are not excluded; None: not counted.

        Returns:
            (), float32 or float64.
        """


class BaseLossFunction(Loss):
    """Base of the losses of sampled negatives.

    Args:
        negative_adversarial_sampling: weigh the negatives of a row by the softmax of their
            scores, without gradient (self-adversarial weights, Sun et al., ICLR 2019, eq. 5);
            otherwise uniformly.
        negative_adversarial_scale: factor of the scores in that softmax.
        loss_scale: factor of the loss.
    """

    def __init__(
        self,
        negative_adversarial_sampling: bool = False,
        negative_adversarial_scale: float = 1.0,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.negative_adversarial_sampling = negative_adversarial_sampling
        self.negative_adversarial_scale = negative_adversarial_scale
        self.loss_scale = loss_scale

    def forward(
        self,
        positive_score: Tensor,
        negative_score: Tensor,
        triple_weight: Tensor,
        n_negative: Optional[Tensor] = None,
    ) -> Tensor:
        """The loss of a micro-batch.

        Args:
            positive_score: (B,).
            negative_score: (B, N), -inf where a negative is excluded.
            triple_weight: (B,) or (1,) or (), weights of the positives.
            n_negative: (B,), negatives of each row that are not excluded; None: N.

        Returns:
            (), float32 or float64.
        """
        match_shapes(positive_score=(positive_score, "B"), negative_score=(negative_score, "B N"))
        wide = torch.promote_types(positive_score.dtype, torch.float32)
        negative = negative_score.to(wide)
        count: Tensor | float = float(negative.shape[1])
        if n_negative is not None:
            count = n_negative.to(wide)
        loss = self.per_positive(positive_score.to(wide), negative, count)
        return self.loss_scale * (triple_weight.to(wide) * loss).sum()

    def sampled(
        self,
        positive_score: Tensor,
        negative_score: Tensor,
        triple_weight: Tensor,
        n_negative: Optional[Tensor] = None,
    ) -> Tensor:
        """The same as calling it; a `forward` of upstream's three arguments is not told the count.

        Args, Returns: see :meth:`Loss.sampled`.
        """
        arguments = [positive_score, negative_score, triple_weight]
        if n_negative is not None and "n_negative" in inspect.signature(self.forward).parameters:
            arguments.append(n_negative)
        loss: Tensor = self(*arguments)
        return loss

    def per_positive(
        self, positive: Tensor, negative: Tensor, n_negative: Tensor | float
    ) -> Tensor:
        """positive (B,), negative (B, N) with -inf where excluded, how many are not -> (B,).

        A subclass defines this, or :meth:`forward` as in upstream BESS-KGE.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither per_positive nor forward")

    def get_negative_weights(
        self, negative_score: Tensor, n_negative: Tensor | float = 0.0
    ) -> Tensor:
        """Weights (B, N), or (B, 1) if uniform, of the negatives of each row; they sum to one."""
        if self.negative_adversarial_sampling:
            scaled = self.negative_adversarial_scale * negative_score.detach()
            if not isinstance(n_negative, Tensor):
                return scaled.softmax(-1)
            # Not the product: what is excluded stays so for a scale of 0, or below.
            weight = scaled.masked_fill(negative_score == -math.inf, -math.inf).softmax(-1)
            return torch.where(
                weight.isnan(), 0.0, weight
            )  # nan_to_num cannot be compiled for an IPU
        if isinstance(n_negative, Tensor):
            return 1.0 / n_negative.clamp(min=1.0).unsqueeze(-1)
        return negative_score.new_full((1, 1), 1.0 / negative_score.shape[1])
