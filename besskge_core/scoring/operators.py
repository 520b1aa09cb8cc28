"""Operators: how a relation moves an entity.

`adjoint` moves back, so that compare(operator(h, r), t) = compare(operator.adjoint(t, r), h).
A row is made of parts; a part is `dim` wide ("d") or a number of scalars.
"""

from __future__ import annotations

import abc
import math
from typing import NoReturn, Sequence, Union

import torch
from torch import Tensor, nn

from besskge_core.scoring.comparators import unit, widened

Parts = Sequence[Union[str, int]]


class Operator(nn.Module, abc.ABC):
    """Moves entities by relations.

    Attributes:
        entity_parts, relation_parts: parts of the rows.
        complex_entities, complex_relations: rows hold complex numbers, real half first.
        scores_heads: whether there is an adjoint.
        is_linear: whether what it makes of e is linear in r.
    """

    entity_parts: Parts = ("d",)
    relation_parts: Parts = ("d",)
    complex_entities: bool = False
    complex_relations: bool = False
    scores_heads: bool = True
    is_linear: bool = False

    @abc.abstractmethod
    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        """Move e (..., D) by r (..., R), for queries (h, r, ?)."""

    @abc.abstractmethod
    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        """Move e (..., D) back by r (..., R), for queries (?, r, t)."""


class Translation(Operator):
    """e + r."""

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return e + r

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        return e - r


class Scaling(Operator):
    """e o r."""

    is_linear = True

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return e * r

    adjoint = forward


class ComplexScaling(Operator):
    """e o r over the complex numbers."""

    is_linear = True
    entity_parts = relation_parts = ("d", "d")
    complex_entities = complex_relations = True

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return complex_multiplication(e, r)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        re, im = r.chunk(2, -1)
        return complex_multiplication(e, torch.cat([re, -im], -1))


class Rotation(Operator):
    """e o exp(i r): relations are phases in radians."""

    entity_parts = ("d", "d")
    complex_entities = True

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return complex_rotation(e, r)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        return complex_rotation(e, -r)


class SwappedScaling(Operator):
    """(a, b) moved by (r, s) to (b o s, a o r) / 2: what was a tail is compared with a head."""

    is_linear = True
    entity_parts = relation_parts = ("d", "d")

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return 0.5 * self._swapped(e) * self._swapped(r)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        return 0.5 * self._swapped(e) * r

    @staticmethod
    def _swapped(x: Tensor) -> Tensor:
        return torch.cat(x.chunk(2, -1)[::-1], -1)


class RoleScaling(Operator):
    """(a, b) to (0, a o r) and back to (b o r, 0): an entity has a row as head and one as tail."""

    is_linear = True
    entity_parts = ("d", "d")

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        as_head, _ = e.chunk(2, -1)
        return torch.cat([torch.zeros_like(as_head), as_head * r], -1)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        _, as_tail = e.chunk(2, -1)
        return torch.cat([as_tail * r, torch.zeros_like(as_tail)], -1)


class CircularConvolution(Operator):
    """e * r, the circular convolution, by way of Fourier transforms; in float32 or wider."""

    is_linear = True

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return self._multiplied(e, r, backwards=False)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        return self._multiplied(e, r, backwards=True)

    @staticmethod
    def _multiplied(e: Tensor, r: Tensor, backwards: bool) -> Tensor:
        if e.numel() == 0:
            return e * r  # there is no Fourier transform of nothing
        a, b = torch.fft.rfft(widened(e)), torch.fft.rfft(widened(r))
        product = a * b.conj() if backwards else a * b
        return torch.fft.irfft(product, n=e.shape[-1]).to(e.dtype)


class QuaternionRotation(Operator):
    """e (x) r / |r|, the Hamilton product from the right by quaternions of length 1."""

    entity_parts = relation_parts = ("d", "d", "d", "d")  # 1, i, j, k

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        a, b, c, d = e.chunk(4, -1)
        w, x, y, z = unit(torch.stack(r.chunk(4, -1)), dim=0)
        product = (
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        )
        return torch.cat(product, -1)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        real, imaginary = r.split([r.shape[-1] // 4, r.shape[-1] // 4 * 3], -1)
        return self(e, torch.cat([real, -imaginary], -1))


class LinearMap(Operator):
    """e M, of which a relation holds the `dim` x `dim` matrix M, row by row."""

    is_linear = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.relation_parts = (dim * dim,)

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return row_times_matrix(e, r)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        return row_times_matrix(e, square(r).transpose(-1, -2).flatten(-2))


class CoreTensor(Operator):
    """e M, where M = sum_k r_k W_k for matrices W (K, dim, dim) that all relations share.

    Args:
        dim: width of an entity row.
        relation_size: K, width of a relation row.
        input_dropout: of e.
        relation_dropout: of M.
        hidden_dropout: of e M.
        batch_normalization: normalise e and e M over the batch; then there is no adjoint.
    """

    def __init__(
        self,
        dim: int,
        relation_size: int,
        input_dropout: float,
        relation_dropout: float,
        hidden_dropout: float,
        batch_normalization: bool,
    ) -> None:
        super().__init__()
        self.relation_parts = (relation_size,)
        self.core = nn.Parameter(nn.init.uniform_(torch.empty(relation_size, dim, dim), -1.0, 1.0))
        self.relation_dropout = nn.Dropout(relation_dropout)
        self.before, self.after = (
            nn.Sequential(nn.BatchNorm1d(dim) if batch_normalization else nn.Identity(), dropout)
            for dropout in (nn.Dropout(input_dropout), nn.Dropout(hidden_dropout))
        )
        self.scores_heads = not batch_normalization

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return self._moved(e, r @ self.core.flatten(1))

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        if not self.scores_heads:
            no_query_for_heads("TuckER with batch normalization")
        return self._moved(e, r @ self.core.transpose(1, 2).flatten(1))

    def _moved(self, e: Tensor, matrix: Tensor) -> Tensor:
        moved: Tensor = self.after(row_times_matrix(self.before(e), self.relation_dropout(matrix)))
        return moved


def no_query_for_heads(name: str) -> NoReturn:
    """Refuse to answer for heads."""
    raise NotImplementedError(
        f"{name} has no query for heads; add inverse triples and corrupt tails only"
    )


def square(matrix: Tensor) -> Tensor:
    """matrix (..., D * D), row by row -> (..., D, D)."""
    dim = math.isqrt(matrix.shape[-1])
    return matrix.unflatten(-1, (dim, dim))


def row_times_matrix(e: Tensor, matrix: Tensor) -> Tensor:
    """e (..., D), matrix (..., D * E), row by row -> (..., E), leading axes broadcast."""
    dim = e.shape[-1]
    return torch.einsum("...d,...de->...e", e, matrix.unflatten(-1, (dim, -1)))


def complex_multiplication(v1: Tensor, v2: Tensor) -> Tensor:
    """v1, v2 (..., 2 D), real half first -> their complex product, likewise."""
    a_re, a_im = v1.chunk(2, -1)
    b_re, b_im = v2.chunk(2, -1)
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], -1)


def complex_rotation(v: Tensor, r: Tensor) -> Tensor:
    """v (..., 2 D), real half first, times exp(i r), r (..., D) in radians."""
    return complex_multiplication(v, torch.cat([r.cos(), r.sin()], -1))
