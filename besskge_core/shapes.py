"""Bind axis letters to sizes at the public boundary: plain Python, no cost on a device."""

from __future__ import annotations

from functools import lru_cache
from typing import Dict, Tuple, Union

from torch import Tensor

from besskge_core.errors import ShapeError


def match_shapes(**tensors: Tuple[Tensor, str]) -> Dict[str, int]:
    """Size of every axis letter, the same in each tensor that uses it.

    Args:
        tensors: name to (tensor, axes); axes are letters to bind or numbers to demand.

    Returns:
        Axis letter to size.

    Raises:
        ShapeError: names the tensor, its shape, the expected axes and what is bound so far.

    >>> import torch
    >>> match_shapes(head=(torch.zeros(4, 12), "S P"), negative=(torch.zeros(4, 1, 250), "S 1 N"))
    {'S': 4, 'P': 12, 'N': 250}
    """
    sizes: Dict[str, int] = {}
    for name, (tensor, axes) in tensors.items():
        expected, actual = _split(axes), tensor.shape
        fits, before = len(expected) == len(actual), None
        for axis, n in zip(expected, actual):
            if isinstance(axis, int):
                fits = fits and n == axis
            elif axis not in sizes:
                before = dict(sizes) if before is None else before
                sizes[axis] = n
            else:
                fits = fits and n == sizes[axis]
        if not fits:
            bound = sizes if before is None else before
            known = ", ".join(f"{axis}={n}" for axis, n in bound.items()) or "no axis bound yet"
            raise ShapeError(
                f"{name} has shape {tuple(actual)}, expected ({', '.join(axes.split())}) with"
                f" {known}"
            )
    return sizes


@lru_cache(maxsize=None)
def _split(axes: str) -> Tuple[Union[str, int], ...]:
    """Letters, and numbers as such."""
    return tuple(int(axis) if axis.isdigit() else axis for axis in axes.split())
