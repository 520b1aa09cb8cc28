"""Even buckets: entities that every shard knows leave open where their triples are scored.

A few hubs make real graphs uneven: the bucket (i, j) of a hub's shard holds far more triples than
others, and with equally many triples from each bucket in a step the others must be padded. A
triple whose head is known to all shards fits every bucket of its column, one with such a tail
every bucket of its row. Who goes where is a flow, from the rows, columns and free triples to the
buckets; the least height at which all of it fits is found by bisection.

Axes:
    S: shard, of heads then of tails
"""

from __future__ import annotations

from typing import Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.errors import ConfigError
from besskge_core.philox import Position, Purpose, permutation


def entity_degree(triples: NDArray[np.integer], n_entity: int) -> NDArray[np.int64]:
    """int64 (n_entity,): in how many triples (n, 3) each entity is head or tail."""
    ends = np.asarray(triples)[:, [0, 2]].ravel()
    return np.bincount(ends, minlength=n_entity)


def most_frequent_entities(
    triples: NDArray[np.integer], n_entity: int, k: int
) -> NDArray[np.int64]:
    """IDs (k,) of the entities of most triples, the most frequent first, equal ones by ID.

    Raises:
        ConfigError: k is not in [0, n_entity].
    """
    if not 0 <= k <= n_entity:
        raise ConfigError(f"k must be in [0, {n_entity}] for {n_entity} entities, got {k}")
    return np.argsort(-entity_degree(triples, n_entity), kind="stable")[:k]


def balanced_buckets(
    head_shard: NDArray[np.integer],
    tail_shard: NDArray[np.integer],
    head_free: NDArray[np.bool_],
    tail_free: NDArray[np.bool_],
    n_shard: int,
) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A shard pair for each triple, such that the largest bucket is as small as can be.

    Args:
        head_shard, tail_shard: (n_triple,), where the ends live.
        head_free, tail_free: bool (n_triple,), whether every shard knows the end.
        n_shard: S.

    Returns:
        Shards of head and tail, int64 (n_triple,) each; those of ends that are not free stay.
    """
    head, tail = head_shard.astype(np.int64), tail_shard.astype(np.int64)
    fixed = ~head_free & ~tail_free
    counts = np.bincount(head[fixed] * n_shard + tail[fixed], minlength=n_shard**2)
    rows = np.bincount(head[~head_free & tail_free], minlength=n_shard)
    columns = np.bincount(tail[head_free & ~tail_free], minlength=n_shard)
    by_row, by_column, by_any = _spread(
        counts.reshape(n_shard, n_shard), rows, columns, int((head_free & tail_free).sum())
    )
    for shard in range(n_shard):
        of_row = np.flatnonzero(~head_free & tail_free & (head == shard))
        tail[_mixed(of_row)] = np.repeat(np.arange(n_shard), by_row[shard])
        of_column = np.flatnonzero(head_free & ~tail_free & (tail == shard))
        head[_mixed(of_column)] = np.repeat(np.arange(n_shard), by_column[:, shard])
    free = _mixed(np.flatnonzero(head_free & tail_free))
    bucket = np.repeat(np.arange(n_shard**2), by_any.ravel())
    head[free], tail[free] = np.divmod(bucket, n_shard)
    return head, tail


def _mixed(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """In an order that has nothing to do with that of the source, which is often sorted."""
    return places[permutation(0, Purpose.BUCKETS, Position(), len(places))]


def _spread(
    counts: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64], free: int
) -> Tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How many triples of each row, of each column, and of the free go to each bucket (S, S)."""
    total = int(counts.sum() + rows.sum() + columns.sum()) + free
    low = max(int(counts.max(initial=0)), -(-total // counts.size))
    high = low + int(rows.max() + columns.max())  # enough for any row and any column in one bucket
    while low < high:
        middle = (low + high) // 2
        if _flow(counts, rows, columns, middle)[2]:
            high = middle
        else:
            low = middle + 1
    by_row, by_column, _ = _flow(counts, rows, columns, low)
    room = low - (counts + by_row + by_column)
    by_any = np.diff(np.minimum(np.cumsum(room.ravel()), free), prepend=0)
    return by_row, by_column, by_any.reshape(room.shape)


def _flow(
    counts: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64], height: int
) -> Tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """What of rows and columns flows to buckets of this height, and whether it is all of it."""
    # Few graphs have hubs, and SciPy takes its time and 25 MiB.
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    n = len(rows)
    source, sink = 2 * n + n * n, 2 * n + n * n + 1  # then rows, columns and buckets, from 0
    bucket = 2 * n + np.arange(n * n).reshape(n, n)
    room = height - counts
    of_row = np.repeat(np.arange(n), n).reshape(n, n)
    tails = [np.full(2 * n, source), of_row, n + of_row.T, bucket]
    heads = [np.arange(2 * n), bucket, bucket, np.full((n, n), sink)]
    capacity = [np.concatenate([rows, columns]), room, room, room]
    start, end, size = (np.concatenate([x.ravel() for x in y]) for y in (tails, heads, capacity))
    graph = csr_matrix((size.astype(np.int32), (start, end)), shape=(sink + 1, sink + 1))
    result = maximum_flow(graph, source, sink)
    flow = (result.flow if hasattr(result, "flow") else result.residual).tocsr()
    to_buckets = flow[: 2 * n, 2 * n : 2 * n + n * n].toarray()
    place = np.arange(n)
    by_row = to_buckets[:n].reshape(n, n, n)[place, place]  # row i only reaches buckets (i, ...)
    by_column = to_buckets[n:].reshape(n, n, n)[place, :, place].T
    complete = bool(result.flow_value == rows.sum() + columns.sum())
    return by_row.astype(np.int64), by_column.astype(np.int64), complete
