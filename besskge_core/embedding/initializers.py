"""Initialisers of whole tables: PyKEEN's by name, torch's, and those of BESS-KGE.

Each is called with a table (N, ...) to fill or to replace, its axes those of one representation;
complex tables come with a last axis of real and imaginary part. They have a registry of their own
because what they promise differs: those of `INITIALIZERS` fill a *part* of rows, (N, size), with
distinct random rows, while here are constants as well (`zeros`, `eye`), and norms are of whole
rows of any shape. What has a name in both means the same where both apply.

Axes:
    N: representations      ...: axes of one representation, then 2 for complex ones
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

import torch
from torch import Tensor, nn

from besskge_core.embedding.norms import normalize
from besskge_core.embedding.resolving import LooseRegistry
from besskge_core.embedding.tables import INITIALIZERS, Initializer
from besskge_core.errors import ConfigError

#: A function, or a class whose instances are.
TableInitializer = Callable[..., Any]

TABLE_INITIALIZERS: LooseRegistry[TableInitializer] = LooseRegistry("initializer")

for _name in (
    "constant", "dirac", "eye", "kaiming_normal", "kaiming_uniform", "normal", "ones", "orthogonal",
    "sparse", "trunc_normal", "uniform", "zeros",
):  # fmt: skip
    TABLE_INITIALIZERS.register(_name)(getattr(nn.init, f"{_name}_"))


@TABLE_INITIALIZERS.register("xavier_uniform")
def xavier_uniform(x: Tensor, gain: float = 1.0) -> Tensor:
    """U(-a, a), a = gain sqrt(6 / d), with d numbers a row and no other fan.

    Glorot and Bengio, AISTATS 2010, as PyKEEN reads it: torch would count the rows, too.
    """
    bound = gain * math.sqrt(6.0 / x[0].numel())
    return nn.init.uniform_(x, -bound, bound)


@TABLE_INITIALIZERS.register("xavier_normal")
def xavier_normal(x: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, gain^2 2 / d), with d numbers a row."""
    return nn.init.normal_(x, std=gain * math.sqrt(2.0 / x[0].numel()))


def _then_norm_one(name: str, fill: Callable[..., Tensor]) -> None:
    """Register `name`: rows of Euclidean norm 1; of complex entries, the norm of the moduli."""

    def initializer(x: Tensor, **options: Any) -> Tensor:
        return normalize(fill(x, **options))

    initializer.__name__ = name
    initializer.__doc__ = f"{fill.__name__} of torch, then rows of Euclidean norm 1."
    TABLE_INITIALIZERS.register(name)(initializer)


_then_norm_one("xavier_uniform_norm", nn.init.xavier_uniform_)
_then_norm_one("xavier_normal_norm", nn.init.xavier_normal_)
_then_norm_one("uniform_norm", nn.init.uniform_)
_then_norm_one("normal_norm", nn.init.normal_)


@TABLE_INITIALIZERS.register("init_phases")
def init_phases(x: Tensor) -> Tensor:
    """exp(i a) with a in U[0, 2 pi); real tables are read as pairs of numbers.

    Raises:
        ConfigError: the last axis is not of pairs.
    """
    if x.dim() < 2 or x.shape[-1] % 2:
        raise ConfigError(
            f"init_phases needs a complex table, or pairs of numbers along the last axis, got"
            f" a shape of {tuple(x.shape[1:])}; give a complex dtype"
        )
    shape = (*x.shape[:-1], x.shape[-1] // 2) if x.shape[-1] != 2 else x.shape[:-1]
    angle = 2.0 * math.pi * torch.rand(shape, dtype=x.dtype, device=x.device)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).view_as(x)


@TABLE_INITIALIZERS.register("init_quaternions")
def init_quaternions(x: Tensor) -> Tensor:
    """m (cos a + sin a u), m in U[-s, s), a in U[0, 2 pi), s = 1 / sqrt(2 N), for (N, d, 4).

    u is an imaginary unit of the positive octant. Zhang et al., NeurIPS 2019, as in PyKEEN.

    Raises:
        ConfigError: the last axis is not of four numbers.
    """
    if x.dim() < 2 or x.shape[-1] != 4:
        raise ConfigError(
            f"init_quaternions needs a shape of (..., 4), got {tuple(x.shape[1:])}; a quaternion"
            " has four components"
        )
    draw = functools.partial(torch.rand, dtype=x.dtype, device=x.device)
    scale = 1.0 / math.sqrt(2.0 * x.shape[0])
    modulus = (2.0 * draw(x.shape[:-1]) - 1.0) * scale
    angle = 2.0 * math.pi * draw(x.shape[:-1])
    unit = normalize(draw((*x.shape[:-1], 3)), dim=-1)
    imaginary = (modulus * angle.sin()).unsqueeze(-1) * unit
    return torch.cat([(modulus * angle.cos()).unsqueeze(-1), imaginary], dim=-1)


class PretrainedInitializer:
    """A given table, which is copied and never written to.

    Also the way to begin with what an encoder makes of labels, or a random walk of a graph.

    Args:
        tensor: the table, as :class:`~besskge_core.embedding.Embedding` shapes its own; complex
            ones as they are, or as torch.view_as_real shows them.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return self.tensor.to(x.device)


TABLE_INITIALIZERS.register("pretrained")(PretrainedInitializer)


def _of_rows(fill: Initializer) -> TableInitializer:
    """An initialiser of (N, D) rows for tables of any shape."""

    @functools.wraps(fill)
    def initializer(x: Tensor, **options: Any) -> Tensor:
        flat = x.new_empty(x.shape[0], x[0].numel())
        return fill(flat, **options).view_as(x)

    return initializer


for _name in INITIALIZERS:
    if _name not in TABLE_INITIALIZERS:
        TABLE_INITIALIZERS.register(_name)(_of_rows(INITIALIZERS[_name]))
