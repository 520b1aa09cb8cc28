"""The rules by which rows change: SGD, Adagrad and Adam, in plain torch.

This is what the native operation computes, bit for bit in float32: products and sums are rounded
apart, and the sum of squares of a row has one order, so that any width of vectors gives the same.

Axes:
    U: rows that change      D: width of a row
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

#: The state of each rule, in the order in which it is given; see :data:`PER_ROW`.
STATES: Dict[str, Tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("momentum",),
    "adagrad": ("sum",),
    "rowwise_adagrad": ("sum",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "rowwise_adam": ("exp_avg", "exp_avg_sq"),
}

#: Rules whose last state is one number a row, (..., 1).
PER_ROW = ("rowwise_adagrad", "rowwise_adam")


#: How many updates there have been, with this one; int64 () where a captured step counts on.
Step = Union[int, Tensor]


class Rule(NamedTuple):
    """A rule and its hyper-parameters.

    Attributes:
        name: of :data:`STATES`.
        lr: learning rate; float64 () where a captured step reads it.
        weight_decay: share of the weight, times lr, taken off before the rest.
        beta1: decay of the first moment; of momentum, what is kept of it.
        beta2: decay of the second moment.
        eps: added to the root that the gradient is divided by.
    """

    name: str
    lr: Union[float, Tensor]
    weight_decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0


def apply_rule(
    rule: Rule, weight: Tensor, grad: Tensor, state: Sequence[Tensor], step: Step
) -> None:
    """Change weights and state in place, without weight decay.

    Args:
        rule: see there.
        weight: (..., D), float32 or wider.
        grad: (..., D), of its dtype.
        state: (..., D) each, or (..., 1) where kept a row.
        step: from 1; counted for the correction of Adam's moments.
    """
    lr, direction = rule.lr, grad
    count = step.double() if isinstance(step, Tensor) else step
    if rule.name == "momentum":
        direction = state[0].mul_(rule.beta1).add_(grad)
    elif rule.name != "sgd":
        square = mean_square(grad) if rule.name in PER_ROW else grad * grad
        if rule.name in ("adagrad", "rowwise_adagrad"):
            root = square_root(state[0].add_(square))
        else:
            direction = state[0].mul_(rule.beta1).add_(grad * (1.0 - rule.beta1))
            second = state[1].mul_(rule.beta2).add_(square * (1.0 - rule.beta2))
            root = square_root(second * (1.0 / (1.0 - rule.beta2**count)))
            lr = lr / (1.0 - rule.beta1**count)
        direction = direction / root.add_(rule.eps)
    weight.sub_(direction * lr)


def mean_square(x: Tensor) -> Tensor:
    """Mean of the squares of each row: (..., D) -> (..., 1), () -> ().

    Squares 64 columns apart are added one after the other, and then the halves of the 64 sums entry
    by entry until one is left; narrow rows have fewer, a power of two.
    """
    if not x.dim():
        return x * x
    width = x.shape[-1]
    n = min(64, 1 << max(width - 1, 0).bit_length())
    squares = F.pad(x * x, (0, max(-width % n, n - width)))
    total = torch.zeros_like(squares[..., :n])
    for part in squares.split(n, dim=-1):
        total = total + part
    while n > 1:
        n //= 2
        total = total[..., :n] + total[..., n:]
    return total / max(width, 1)


def square_root(x: Tensor) -> Tensor:
    """The root, rounded correctly; that of torch may be off by the last bit in float32."""
    return x.double().sqrt().to(x.dtype)
