"""Norms of representations, and the precision that they are computed in.

Axes:
    N: representations      ...: axes of one representation, none for scalars
"""

from __future__ import annotations

from typing import Any, Sequence, Union

import torch
from torch import Tensor

#: "row": all axes of a representation together; None: the whole tensor; else axes as in torch.
Dim = Union[int, Sequence[int], str, None]


def norm(x: Tensor, p: Union[float, str] = 2.0, dim: Dim = "row") -> Tensor:
    """p-norm of x (N, ...), real or complex, with the axes kept at size 1; "fro" is p = 2."""
    if dim == "row":
        if x.dim() == 1:
            return x.abs()
        axes: Any = tuple(range(1, x.dim()))
    elif dim is None:
        axes = tuple(range(x.dim()))
    else:
        axes = dim
    order: Any = 2.0 if p == "fro" else p
    return torch.linalg.vector_norm(x, order, axes, keepdim=True)


def normalize(
    x: Tensor, p: Union[float, str] = 2.0, dim: Dim = "row", eps: float = 1e-12
) -> Tensor:
    """x / max(||x||_p, eps): each representation of x (N, ...) gets norm 1, unless it is zero."""
    return x / norm(x, p, dim).clamp_min(eps)


def acts_on_rows(dim: Dim, n_axis: int) -> bool:
    """Whether a norm along `dim` of (N, ...), of `n_axis` axes, is one of each representation."""
    if dim is None or isinstance(dim, str):
        return dim is not None
    return all(axis % n_axis for axis in ([dim] if isinstance(dim, int) else dim))


def widen(x: Tensor) -> Tensor:
    """Half precision to single: sums of squares overflow float16 from 65504 on."""
    if x.dtype == torch.complex32:
        return x.to(torch.complex64)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
