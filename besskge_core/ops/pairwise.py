"""Scores of queries with shared candidates, of which no row of a pair ever exists.

Axes:
    B: queries      N: candidates      D: width of a row
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from besskge_core.errors import ConfigError
from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.ops.tracing import device_library
from besskge_core.shapes import match_shapes

#: How queries are compared with candidates: by the inner product; by the negated L1 or L2 norm of
#: the difference; by the negated sum of its complex moduli (rows hold real parts, then imaginary
#: ones); or by the norm on a torus, where entries count modulo 1.
COMPARISONS = ("dot", "l1", "l2", "modulus", "torus_l1", "torus_l2")

_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pairwise(q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor] = None) -> Tensor:
    """Compare every query with every candidate.

    Args:
        q: (B, D), floating.
        e: (N, D), of the same dtype.
        comparison: one of :data:`COMPARISONS`.
        weight: (B, D), for "l1" and "l2": what each query scales candidates by first.

    Returns:
        (B, N). Native in float32 on a CPU; half precision is computed in float32.

    Raises:
        ShapeError: on other shapes.
        ConfigError: there is no such comparison, or no weights for it.
    """
    match_shapes(
        q=(q, "B D"), e=(e, "N D"), **({} if weight is None else {"weight": (weight, "B D")})
    )
    if comparison not in COMPARISONS:
        raise ConfigError(f"unknown comparison {comparison!r}; expected one of {COMPARISONS}")
    if weight is not None and comparison not in ("l1", "l2"):
        raise ConfigError(f"weights are for 'l1' and 'l2', got {comparison!r}")
    if not serves(q):
        return reference(q, e, comparison, weight)
    wide = (q.float(), e.float(), None if weight is None else weight.float())
    scores: Tensor = _Pairwise.apply(*wide, comparison)
    return scores.to(q.dtype)


def serves(x: Tensor) -> bool:
    """Whether comparisons of such rows are native."""
    return native.serves("pairwise", x, *_NATIVE_DTYPES)


def native_pairwise(
    q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor] = None
) -> Optional[Tensor]:
    """:func:`pairwise` as one operation; None: this device has none."""
    if serves(q):
        return pairwise(q, e, comparison, weight)
    return device_library().pairwise(q, e, comparison) if weight is None else None


class _Pairwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, e: Tensor, weight: Optional[Tensor], comparison: str
    ) -> Tensor:
        scores: Tensor = torch.ops.besskge.pairwise(q, e, comparison, weight)
        ctx.save_for_backward(q, e, weight, scores)
        ctx.comparison = comparison
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        q, e, weight, scores = ctx.saved_tensors
        dq, de, dw = torch.ops.besskge.pairwise_backward(grad, scores, q, e, ctx.comparison, weight)
        return dq, de, None if weight is None else dw, None


def reference(q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor] = None) -> Tensor:
    """The meaning of :func:`pairwise`, in plain torch; holds a row for each pair."""
    if comparison == "dot":
        return q @ e.T
    return compared(q.unsqueeze(1), e if weight is None else weight.unsqueeze(1) * e, comparison)


def compared(q: Tensor, e: Tensor, comparison: str) -> Tensor:
    """q (..., D), e (..., D) -> (...), leading axes broadcast."""
    if comparison == "dot":
        return (q * e).sum(-1)
    way = q - e
    if comparison == "modulus":
        re, im = way.chunk(2, -1)
        # Not hypot, whose gradient at 0 is not a number.
        return -(re * re + im * im).clamp(min=least_square(q.dtype)).sqrt().sum(-1)
    if comparison.startswith("torus"):
        way = way - way.round()
    return -torch.norm(way, p=1 if comparison.endswith("l1") else 2, dim=-1)


def least_square(dtype: torch.dtype) -> float:
    """Squared moduli are kept above this, where the square root still has a gradient."""
    info = torch.finfo(dtype)
    return max(1e-30, info.tiny * info.eps)  # in float16 the smallest number that there is


@register_fake("pairwise")
def _(q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor]) -> Tensor:
    return q.new_empty(len(q), len(e))


@register_fake("pairwise_backward")
def _(
    grad: Tensor, scores: Tensor, q: Tensor, e: Tensor, comparison: str, weight: Optional[Tensor]
) -> Tuple[Tensor, Tensor, Tensor]:
    dw = q.new_empty(0, q.shape[1]) if weight is None else torch.empty_like(weight)
    return q.new_empty(q.shape), e.new_empty(e.shape), dw
