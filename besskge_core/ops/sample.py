"""Draw a batch: random integers below bounds, shuffles, and the triples at given places.

All run without Python's lock, so that a batch is made beside the step. They read and give what
the data layer holds, NumPy arrays.

Axes:
    T: triples of a set
"""

from __future__ import annotations

from typing import Dict, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from besskge_core import philox
from besskge_core.ops.native import NATIVE, register_fake
from besskge_core.philox import Position, Purpose

_DTYPES: Dict[type, torch.dtype] = {np.int32: torch.int32, np.int64: torch.int64}


class _NativeDraws:
    """Functions of :mod:`besskge_core.philox`, each in one pass."""

    def random_below(
        self, seed: int, purpose: Purpose, position: Position, bounds: NDArray[np.integer],
        width: int, dtype: type,
    ) -> NDArray[np.integer]:  # fmt: skip
        address = _address(seed, purpose, position)
        below = torch.from_numpy(np.array(bounds, dtype=np.int64))
        drawn: NDArray[np.integer] = torch.ops.besskge.random_below(
            *address, below, width, _DTYPES[dtype]
        ).numpy()
        return drawn

    def permutation(
        self, seed: int, purpose: Purpose, position: Position, n: int
    ) -> NDArray[np.int64]:
        order: NDArray[np.int64] = torch.ops.besskge.permutation(
            *_address(seed, purpose, position), n
        ).numpy()
        return order


def _address(seed: int, purpose: Purpose, position: Position) -> Tuple[int, int, int, int]:
    """seed, purpose, epoch, step; the seed as the signed integer of the same bits."""
    signed = int(seed) - (int(seed) >> 63 << 64)
    return signed, int(purpose), int(position.epoch), int(position.step)


if NATIVE:
    philox.native = _NativeDraws()


def take_columns(triples: NDArray[np.int32], places: NDArray[np.int64]) -> Tensor:
    """Heads, relations and tails of the triples at some places.

    Args:
        triples: int32 (T, 3).
        places: int64 (...), in [0, T).

    Returns:
        int32 (3, ...), each column contiguous.

    Raises:
        IndexError: a place out of range.
    """
    # Torch warns of arrays that are read-only.
    writeable = triples.flags.writeable and places.flags.writeable
    if NATIVE and writeable and triples.dtype == np.int32 and places.dtype == np.int64:
        columns: Tensor = torch.ops.besskge.take_columns(
            torch.from_numpy(triples), torch.from_numpy(places)
        )
        return columns
    return reference(triples, places)


def reference(triples: NDArray[np.int32], places: NDArray[np.int64]) -> Tensor:
    """The meaning of :func:`take_columns`, in NumPy."""
    outside = (places < 0) | (places >= len(triples))
    if outside.any():
        raise IndexError(
            f"take_columns: place {places[outside][0]} is out of range for {len(triples)} triples"
        )
    columns = np.moveaxis(triples[places], -1, 0)
    return torch.from_numpy(np.ascontiguousarray(columns, dtype=np.int32))


@register_fake("random_below")
def _(
    seed: int, purpose: int, epoch: int, step: int, bounds: Tensor, width: int, dtype: torch.dtype
) -> Tensor:
    return bounds.new_empty((bounds.shape[0], width), dtype=dtype)


@register_fake("permutation")
def _(seed: int, purpose: int, epoch: int, step: int, n: int) -> Tensor:
    return torch.empty((n,), dtype=torch.int64)


@register_fake("take_columns")
def _(triples: Tensor, places: Tensor) -> Tensor:
    return triples.new_empty((3, *places.shape))
