"""Bind axis letters to sizes at the public boundary: plain Python, no cost on a device."""

from __future__ import annotations

from typing import Dict, Tuple

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
        expected, actual = axes.split(), tuple(tensor.shape)
        seen = dict(sizes)
        if len(expected) != len(actual) or any(
            n != (int(axis) if axis.isdigit() else seen.setdefault(axis, n))
            for axis, n in zip(expected, actual)
        ):
            bound = ", ".join(f"{axis}={n}" for axis, n in sizes.items()) or "no axis bound yet"
            raise ShapeError(
                f"{name} has shape {actual}, expected ({', '.join(expected)}) with {bound}"
            )
        sizes = seen
    return sizes
