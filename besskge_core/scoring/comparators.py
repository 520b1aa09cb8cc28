"""Comparators: how near is a query (B, D) to entities?

Candidates are shared by the batch, (N, D), or its own of each query, (B, N, D): the shape says
which. A score is higher for what is more plausible, so distances are negated.
"""

from __future__ import annotations

import abc
from typing import Dict, Optional

import torch
from torch import Tensor

from besskge_core.ops.pairwise import least_square, native_pairwise
from besskge_core.scoring.tiles import in_tiles

_NATIVE_NORMS: Dict[float, str] = {1: "l1", 2: "l2"}


class Comparator(abc.ABC):
    """Compares queries with entities."""

    @abc.abstractmethod
    def rowwise(self, q: Tensor, e: Tensor) -> Tensor:
        """q (..., D), e (..., D) -> (...), leading axes broadcast."""

    @abc.abstractmethod
    def pairwise(self, q: Tensor, e: Tensor) -> Tensor:
        """q (B, D), e (N, D) or (B, N, D) -> (B, N)."""


class Dot(Comparator):
    """Inner product."""

    def rowwise(self, q: Tensor, e: Tensor) -> Tensor:
        return (q * e).sum(-1)

    def pairwise(self, q: Tensor, e: Tensor) -> Tensor:
        if e.dim() == 2:
            return q @ e.T
        return torch.bmm(e, q.unsqueeze(-1)).squeeze(-1)


class Distance(Comparator):
    """Negated p-norm of the difference."""

    def __init__(self, p: float) -> None:
        self.p = p

    def rowwise(self, q: Tensor, e: Tensor) -> Tensor:
        return -norm(q - e, self.p)

    def pairwise(self, q: Tensor, e: Tensor) -> Tensor:
        if e.dim() == 2:
            return negated_distances(q, e, self.p)
        return self.rowwise(q.unsqueeze(-2), e)


class ModulusDistance(Comparator):
    """Negated p-norm of the complex moduli, so that rotating both sides changes nothing.

    Rows hold real parts, then imaginary parts.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def rowwise(self, q: Tensor, e: Tensor) -> Tensor:
        re, im = (q - e).chunk(2, -1)
        if self.p == 2:
            return -norm(q - e, 2)
        # Not hypot, whose gradient at 0 is not a number.
        return -norm((re * re + im * im).clamp(min=least_square(q.dtype)).sqrt(), self.p)

    def pairwise(self, q: Tensor, e: Tensor) -> Tensor:
        if e.dim() == 3:
            return self.rowwise(q.unsqueeze(-2), e)
        if self.p == 2:
            return negated_distances(q, e, 2)
        scores = native_pairwise(q, e, "modulus") if self.p == 1 else None
        if scores is not None:
            return scores
        return in_tiles(lambda tile: self.rowwise(q.unsqueeze(-2), tile), e, q.numel())


class TorusDistance(Comparator):
    """Negated p-norm of the shortest way round a torus: entries count modulo 1."""

    def __init__(self, p: float) -> None:
        self.p = p

    def rowwise(self, q: Tensor, e: Tensor) -> Tensor:
        way = q - e
        return -norm(way - way.round(), self.p)

    def pairwise(self, q: Tensor, e: Tensor) -> Tensor:
        if e.dim() == 3:
            return self.rowwise(q.unsqueeze(-2), e)
        scores = native_scores(q, e, self.p, space="torus_")
        if scores is not None:
            return scores
        return in_tiles(lambda tile: self.rowwise(q.unsqueeze(-2), tile), e, q.numel())


def norm(x: Tensor, p: float) -> Tensor:
    """x (..., D) -> (...), the p-norm; its gradient at 0 is 0."""
    out: Tensor = torch.norm(x, p=p, dim=-1)
    return out


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x over its Euclidean norm along `dim`; 0 stays 0, with a finite gradient."""
    least = 1e-3 if x.dtype == torch.float16 else 1e-12
    return x / torch.norm(x, p=2, dim=dim, keepdim=True).clamp(min=least)


def clamp_norm(x: Tensor, p: float) -> Tensor:
    """x (..., D), scaled down to a p-norm of 1 where it is longer."""
    return x / norm(x, p).clamp(min=1.0).unsqueeze(-1)


def widened(x: Tensor) -> Tensor:
    """Half precision in float32, for what half precision cannot hold or has no kernel for."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def native_scores(
    q: Tensor, e: Tensor, p: float, weight: Optional[Tensor] = None, space: str = ""
) -> Optional[Tensor]:
    """q (B, D), e (N, D) -> (B, N), the negated p-norm of q - weight o e; None: not native."""
    if p not in _NATIVE_NORMS:
        return None
    return native_pairwise(q, e, space + _NATIVE_NORMS[p], weight)


def negated_distances(q: Tensor, e: Tensor, p: float) -> Tensor:
    """q (B, D), e (N, D) -> (B, N), p-norms, negated; of halves by way of float32."""
    scores = native_scores(q, e, p)
    if scores is not None:
        return scores
    mode = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(widened(q), widened(e), p=p, compute_mode=mode).to(q.dtype)


def distance_matrix(a: Tensor, b: Tensor, p: float) -> Tensor:
    """a (M, D), b (N, D) -> (M, N), the p-norm of every difference."""
    return -negated_distances(a, b, p)
