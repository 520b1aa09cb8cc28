"""Small functions that users of BESS-KGE find here."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.known import KnownTriples
from besskge_core.ops.tracing import as_index
from besskge_core.scoring.operators import complex_multiplication, complex_rotation

__all__ = ["complex_multiplication", "complex_rotation", "gather_indices", "get_entity_filter"]


def gather_indices(x: Tensor, index: Tensor) -> Tensor:
    """x (A, E), index (B, K), where A = B or one of them is 1 -> (max(A, B), K), x[i, index[i]].

    Raises:
        ShapeError: on other shapes.
    """
    fits = x.dim() == index.dim() == 2 and (len(x) == len(index) or 1 in (len(x), len(index)))
    if not fits:
        raise ShapeError(
            f"x has shape {tuple(x.shape)} and index {tuple(index.shape)}, expected (A, E) and"
            " (B, K) with A = B or one of them 1"
        )
    n = max(len(x), len(index))
    return x.expand(n, -1).gather(1, as_index(index).expand(n, -1))


def get_entity_filter(triples: Tensor, filter_triples: Tensor, filter_mode: str) -> Tensor:
    """Entities that complete the queries of some triples to known ones.

    A sorted join: time and memory grow with the number of pairs found, not with the product.

    Args:
        triples: (n, 3), by ID.
        filter_triples: (m, 3), the known ones.
        filter_mode: "h" for heads of (?, r, t), "t" for tails of (h, r, ?).

    Returns:
        int64 (z, 2): place of the triple, entity ID. Pairs of a triple follow each other.
    """
    if filter_mode not in ("h", "t"):
        raise ConfigError(f"filter_mode must be 'h' or 't', got {filter_mode!r}")
    rows, known = (np.asarray(x.cpu(), dtype=np.int64) for x in (triples, filter_triples))
    n_entity = 1 + max((int(x[:, [0, 2]].max()) for x in (rows, known) if len(x)), default=0)
    n_relation = 1 + max((int(x[:, 1].max()) for x in (rows, known) if len(x)), default=0)
    answers = KnownTriples([known], n_entity, n_relation)
    if filter_mode == "h":
        query, entity = answers.heads(rows[:, 2], rows[:, 1])
    else:
        query, entity = answers.tails(rows[:, 0], rows[:, 1])
    return torch.from_numpy(np.stack([query, entity], axis=1))
