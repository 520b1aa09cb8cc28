"""Initialisers that only score functions need: matrices laid out in a row, and fixed ranges."""

from __future__ import annotations

import functools
import math
from typing import Optional

import torch
from torch import Tensor, nn

from besskge_core.embedding import Initializer
from besskge_core.errors import ConfigError


def init_matrix(embedding_table: Tensor) -> Tensor:
    """N(0, 1 / D) for rows that are D x D matrices. Glorot and Bengio, AISTATS 2010."""
    return nn.init.normal_(embedding_table, std=embedding_table.shape[-1] ** -0.25)


def init_identity(embedding_table: Tensor, n_row: Optional[int] = None) -> Tensor:
    """Rows that are matrices with `n_row` rows, a square one if not given: ones on the diagonal."""
    width = embedding_table.shape[-1]
    n_row = math.isqrt(width) if n_row is None else n_row
    if n_row == 0 or width % n_row:
        raise ConfigError(f"rows {width} wide are no matrices with {n_row} rows; give n_row")
    identity = torch.eye(n_row, width // n_row, dtype=embedding_table.dtype)
    with torch.no_grad():
        return embedding_table.copy_(identity.flatten())


#: U(-1, 1).
init_symmetric_uniform: Initializer = functools.partial(nn.init.uniform_, a=-1.0, b=1.0)
#: U(0.5, 1.5): moduli around 1.
init_near_one: Initializer = functools.partial(nn.init.uniform_, a=0.5, b=1.5)
