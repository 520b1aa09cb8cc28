"""Operators: how a relation moves an entity.

`adjoint` moves back, so that compare(operator(h, r), t) = compare(operator.adjoint(t, r), h).
A row is made of parts; a part is `dim` wide ("d") or a number of scalars.
"""

from __future__ import annotations

import abc
from typing import Sequence, Union

import torch
from torch import Tensor, nn

Parts = Sequence[Union[str, int]]


class Operator(nn.Module, abc.ABC):
    """Moves entities by relations.

    Attributes:
        entity_parts, relation_parts: parts of the rows.
        complex_entities, complex_relations: rows hold complex numbers, real half first.
    """

    entity_parts: Parts = ("d",)
    relation_parts: Parts = ("d",)
    complex_entities: bool = False
    complex_relations: bool = False

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

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        return e * r

    adjoint = forward


class ComplexScaling(Operator):
    """e o r over the complex numbers."""

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


def complex_multiplication(v1: Tensor, v2: Tensor) -> Tensor:
    """v1, v2 (..., 2 D), real half first -> their complex product, likewise."""
    a_re, a_im = v1.chunk(2, -1)
    b_re, b_im = v2.chunk(2, -1)
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], -1)


def complex_rotation(v: Tensor, r: Tensor) -> Tensor:
    """v (..., 2 D), real half first, times exp(i r), r (..., D) in radians."""
    return complex_multiplication(v, torch.cat([r.cos(), r.sin()], -1))
