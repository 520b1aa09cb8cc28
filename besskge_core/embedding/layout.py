"""Representations and the rows of real numbers that they lie in.

Axes:
    n: representations      W: numbers in a row      (..., and *shape): axes of a representation
"""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.sharding import Sharding

_PARTS = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
_WHOLES = {part: whole for whole, part in _PARTS.items()}


class Layout:
    """Representations of one shape, real, or complex as (real, imaginary) pairs.

    Args:
        shape: axes of a representation.
        dtype: of representations.

    Attributes:
        width: W, numbers in a row.
        real_dtype: of those numbers.
    """

    def __init__(self, shape: Tuple[int, ...], dtype: torch.dtype) -> None:
        if not (dtype.is_floating_point or dtype.is_complex):
            raise ConfigError(f"dtype must be floating or complex, got {dtype}")
        self.shape, self.is_complex = shape, dtype.is_complex
        self.real_shape = (*shape, 2) if dtype.is_complex else shape
        self.width, self.real_dtype = math.prod(self.real_shape), _PARTS.get(dtype, dtype)

    def dtype(self, real: torch.dtype) -> torch.dtype:
        """Of representations that lie in numbers of type `real`."""
        return _WHOLES[real] if self.is_complex else real

    def representations(self, rows: Tensor) -> Tensor:
        """(n, W) -> (n, *shape), a view."""
        x = rows.view(len(rows), *self.real_shape)
        return torch.view_as_complex(x) if self.is_complex else x

    def rows(self, x: Tensor) -> Tensor:
        """(n, *shape), or with pairs of real numbers -> (n, W)."""
        real = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
        return real.reshape(len(real), self.width)


def count_ids(
    max_id: Optional[int], num_embeddings: Optional[int], sharding: Optional[Sharding]
) -> int:
    """The number of IDs, however it is given."""
    sizes = {"max_id": max_id, "num_embeddings": num_embeddings}
    if sharding is not None:
        sizes["sharding.n_entity"] = sharding.n_entity
    given = {name: _integer(n, name) for name, n in sizes.items() if n is not None}
    if not given:
        raise ConfigError("max_id, the number of IDs, is missing; give it or a sharding")
    if len(set(given.values())) > 1:
        raise ConfigError(
            f"the number of IDs is given twice, as {given}; the width is embedding_dim"
        )
    return next(iter(given.values()))


def representation_shape(
    embedding_dim: Optional[int], shape: Union[int, Sequence[int], None]
) -> Tuple[int, ...]:
    """Axes of a representation, however they are given."""
    if (embedding_dim is None) == (shape is None):
        raise ConfigError(
            f"give either embedding_dim or shape, got embedding_dim={embedding_dim!r} and"
            f" shape={shape!r}"
        )
    if embedding_dim is not None:
        return (_integer(embedding_dim, "embedding_dim"),)
    axes: Any = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else [shape]
    return tuple(_integer(n, "shape") for n in axes)


def _integer(value: Any, name: str) -> int:
    try:
        number: int = value.__index__()
    except AttributeError:
        raise TypeError(f"{name} must be made of integers, got {value!r}") from None
    if number < 0:
        raise ConfigError(f"{name} must not be negative, got {number}")
    return number


def checked_ids(ids: Tensor, n: int, name: str, bound: str) -> Tensor:
    """Integers (...) in [0, n) -> the same (K,); on the CPU, where looking is free."""
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {ids.dtype}")
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= n:
            raise IndexError(
                f"{name} are from {low} to {high}, expected some of [0, {n}) for {bound}"
            )
    return ids.reshape(-1)


def same_shape(after: Tensor, before: Tensor, what: str) -> Tensor:
    """What a function of the user made of representations, if it can stand for them."""
    if after.shape != before.shape or (after.is_complex() and not before.is_complex()):
        raise ShapeError(
            f"the {what} made {tuple(after.shape)} {after.dtype} of {tuple(before.shape)}"
            f" {before.dtype}; it must keep the shape, and real numbers real"
        )
    return after
