"""Triples in buckets of shard pairs, sorted by counting in two passes over a file.

The first pass counts the triples of each bucket, which says where each begins; the second puts
each triple at its place. It gives what PartitionedTripleSet.create_from_dataset does, for which all
triples must be in memory: bucket after bucket, within one the triples in their order, then the
inverse ones in theirs.

Axes:
    S: shard, of heads then of tails
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, List, NamedTuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.ahead import in_order
from besskge_core.preparation.writing import HashedFile, npy_header, save_npy
from besskge_core.prepared import Record, record_of
from besskge_core.sharding import PartitionedTripleSet, Sharding

__all__ = ["write_buckets"]


class Sorted(NamedTuple):
    """Triples (n, 3) of a piece, bucket after bucket, and how many each has, int64 (S, S)."""

    triples: NDArray[np.int32]
    counts: NDArray[np.int64]


def write_buckets(
    path: Path,
    n_relation_type: int,
    sharding: Sharding,
    inverse: bool,
    folder: Path,
    n_row: int,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], None],
) -> Dict[Path, Record]:
    """Write sharding, counts and triples of a partitioned triple set ("ht_shardpair").

    Args:
        path: of the .npy file of the triples, int32 (n, 3) IDs.
        n_relation_type: number of relations, which the inverse ones follow.
        sharding: of the entities, without hubs.
        inverse: add (t, r + n_relation_type, h) for each (h, r, t).
        folder: which is made.
        n_row: rows of a piece.
        pool: threads that sort pieces.
        progress: is told the rows of each piece, twice.

    Returns:
        path to size and checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sharding.save(folder / "sharding.npz")

    own = np.zeros((sharding.n_shard, sharding.n_shard), np.int64)
    for found in in_order(pool, lambda x: _count(x, sharding), _pieces(path, n_row), 2):
        own += found
        progress(int(found.sum()))
    counts = own + own.T if inverse else own
    place = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
    places = [place, place + own] if inverse else [place]

    def sort(piece: NDArray[np.int32]) -> List[Sorted]:
        both = [piece, _inverse(piece, n_relation_type)] if inverse else [piece]
        return [_sort(rows, sharding) for rows in both]

    target = folder / "triples.npy"
    with HashedFile(target) as file:
        header = npy_header((int(counts.sum()), 3), np.int32)
        np.lib.format.write_array_header_1_0(file, header)
    start = target.stat().st_size
    with target.open("r+b") as out:
        for results in in_order(pool, sort, _pieces(path, n_row), 2):
            for first, result in zip(places, results):
                _scatter(out, start, first, result)
                first += result.counts
            progress(len(results[0].triples))
    return {
        folder / "counts.npy": save_npy(folder / "counts.npy", counts),
        **{name: record_of(name) for name in (folder / "sharding.npz", target)},
    }


def _pieces(path: Path, n_row: int) -> Iterator[NDArray[np.int32]]:
    """The rows of a .npy file, `n_row` at a time; mapped, all pages would come to be in memory."""
    mapped = np.load(path, mmap_mode="r")
    for first in range(0, len(mapped), n_row):
        n = min(n_row, len(mapped) - first)
        yield np.fromfile(path, np.int32, 3 * n, offset=mapped.offset + 12 * first).reshape(n, 3)


def _count(piece: NDArray[np.int32], sharding: Sharding) -> NDArray[np.int64]:
    """int64 (S, S), triples of each bucket."""
    n_shard, shard = sharding.n_shard, sharding.entity_to_shard
    bucket = shard[piece[:, 0]].astype(np.int64) * n_shard + shard[piece[:, 2]]
    return np.bincount(bucket, minlength=n_shard**2).reshape(n_shard, n_shard)


def _sort(piece: NDArray[np.int32], sharding: Sharding) -> Sorted:
    triples, counts, _, _ = PartitionedTripleSet.partition_triples(piece, sharding, "ht_shardpair")
    return Sorted(triples, counts)


def _inverse(piece: NDArray[np.int32], n_relation_type: int) -> NDArray[np.int32]:
    return piece[:, ::-1] + np.array([0, n_relation_type, 0], np.int32)


def _scatter(out: BinaryIO, start: int, first: NDArray[np.int64], piece: Sorted) -> None:
    """Write each bucket of a piece to its place in the file, row `first` of the bucket."""
    row = 0
    for place, n in zip(first.ravel().tolist(), piece.counts.ravel().tolist()):
        if n:
            out.seek(start + 12 * place)
            out.write(piece.triples[row : row + n].tobytes())
            row += n
