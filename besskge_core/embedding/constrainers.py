"""Constrainers: what is done to the weights after each update, without a gradient.

Each is called with rows (N, ...) of a table, complex if the table is, and returns as many. All of
them act on each row alone, so that after a step only the rows that it changed need be looked at;
those which are asked for a norm of the whole table (`dim=None`) need all of it.
"""

from __future__ import annotations

from typing import Callable, Optional, Union

import torch
from torch import Tensor

from besskge_core.embedding.norms import Dim, norm, normalize
from besskge_core.embedding.resolving import LooseRegistry
from besskge_core.errors import ConfigError

Constrainer = Callable[..., Tensor]

CONSTRAINERS: LooseRegistry[Constrainer] = LooseRegistry("constrainer")

CONSTRAINERS.register("normalize")(normalize)


@CONSTRAINERS.register("complex_normalize")
def complex_normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Entries of modulus 1, or 0; a real x is read as pairs of real and imaginary part.

    Raises:
        ConfigError: x is real with an odd last axis.
    """
    if x.is_complex():
        return x / x.abs().clamp_min(eps)
    if x.dim() < 2 or x.shape[-1] % 2:
        raise ConfigError(
            "complex_normalize needs a complex table, or a real one of pairs of numbers along the"
            f" last axis, got a shape of {tuple(x.shape[1:])}; give a complex dtype"
        )
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    return normalize(pairs, dim=-1, eps=eps).view_as(x)


@CONSTRAINERS.register("clamp")
def clamp(x: Tensor, min: Optional[float] = None, max: Optional[float] = None) -> Tensor:
    """Entries in [min, max], of real tables.

    Raises:
        ConfigError: no bound, or complex entries, which have no order.
    """
    if min is None and max is None:
        raise ConfigError("clamp needs min, max or both in constrainer_kwargs")
    if x.is_complex():
        raise ConfigError("clamp needs a real table; complex numbers have no order")
    return x.clamp(min, max)


@CONSTRAINERS.register("clamp_norm")
def clamp_norm(
    x: Tensor, maxnorm: float, p: Union[float, str] = "fro", dim: Dim = "row", eps: float = 1e-12
) -> Tensor:
    """Scale rows down to norm `maxnorm` if they are longer; `dim=None`: the table as a whole."""
    size = norm(x, p, dim)
    return torch.where(size < maxnorm, x, x / size.clamp_min(eps) * maxnorm)
