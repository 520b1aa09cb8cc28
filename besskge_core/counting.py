"""Integers as keys: those of triples, and counting sorts, linear in the number of keys.

NumPy's stable argsort of 16-bit integers is a counting sort; wider keys take one such pass for
each 16-bit digit, lowest digit first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def counting_argsort(keys: NDArray[np.integer], n_key: int) -> NDArray[np.int64]:
    """Stable order of `keys`, each in `[0, n_key)`.

    Args:
        keys: integers, shape (n,).
        n_key: upper bound of the keys; decides how many passes are needed.

    Returns:
        int64 (n,): `keys[order]` is sorted, equal keys in their original order.
    """
    order = (keys & 0xFFFF).astype(np.uint16).argsort(kind="stable")
    for shift in range(16, max(int(n_key) - 1, 1).bit_length(), 16):
        digit = ((keys >> shift) & 0xFFFF).astype(np.uint16)
        order = order[digit[order].argsort(kind="stable")]
    return order


def run_starts(sorted_keys: NDArray[np.integer]) -> NDArray[np.int64]:
    """int64 (n_run,): where each run of equal keys begins."""
    if len(sorted_keys) == 0:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))


def triple_keys(triples: NDArray[np.integer], n_entity: int, n_relation_type: int) -> NDArray[Any]:
    """A key for each triple, (n,): equal for equal triples, and for these only."""
    if n_entity * n_entity * max(n_relation_type, 1) < 2**63:
        h, r, t = (triples[:, i].astype(np.int64) for i in range(3))
        return (h * n_relation_type + r) * n_entity + t
    packed = np.ascontiguousarray(triples, dtype=np.int32)
    return packed.view([("h", np.int32), ("r", np.int32), ("t", np.int32)])[:, 0]
