"""Weights of triples by how frequent their entities are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from besskge_core.sharding import PartitionedTripleSet


def frequency_weight(triple_set: PartitionedTripleSet, smoothing: float) -> NDArray[np.float64]:
    """1 / sqrt(n(h, r) + n(r, t) + smoothing) of every triple, with mean 1.

    Entities are counted by ID, not by row, so that different shards are not mixed up.

    Returns:
        float64 (n_triple,), in the partitioned order.
    """
    head, relation, tail = triple_set.entity_ids().T
    n_entity = np.int64(triple_set.sharding.n_entity)
    total = np.full(len(head), smoothing)
    for entity in (head, tail):
        _, inverse, count = np.unique(
            relation * n_entity + entity, return_inverse=True, return_counts=True
        )
        total += count[inverse.ravel()]
    weight: NDArray[np.float64] = 1.0 / np.sqrt(total)
    return weight / weight.mean()
