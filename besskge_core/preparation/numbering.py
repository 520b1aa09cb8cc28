"""Second pass: labels get their IDs, then triples of codes become triples of IDs.

The order of IDs is that of :mod:`besskge_core.reading.labelling`: first appearance, in the heads of
a part, then in its tails, then in the next part. It asks for no memory: a label's *key* is where it
appeared first, (part, side, piece, rank); an ID is the rank of a key. Equal labels are in one
partition, so that each partition finds the keys of its labels alone, and merging sorted keys, one
*segment* (part, side, piece) after the other, numbers them.

=============== ================================================================================
KIND.entries    int32, by partition and segment: place of the label in KIND.ids
KIND.ids        int32, by partition: ID of each of its labels
=============== ================================================================================

Axes:
    P: partition of the labels      G: segment, in the order of IDs
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from numpy.typing import NDArray

from besskge_core.ahead import in_order
from besskge_core.dataset import MAX_ENTITY
from besskge_core.errors import DataError
from besskge_core.preparation.scanning import KINDS, SIDES, Scan, codes_of, indices, label_array
from besskge_core.preparation.stages import Facts
from besskge_core.preparation.writing import HashedFile, npy_header, save_npy
from besskge_core.prepared import LABELS, Record, record_of

__all__ = ["number", "translate"]

SCHEMA = pa.schema([pa.field("label", pa.string(), nullable=False)])
ROW_GROUP = 2**17  # labels; whatever the memory is, so that files are equal


class Segment(NamedTuple):
    """Labels that a side of a piece shows first: file of the part, piece in it, side."""

    scan: int
    piece: int
    side: int


class Found(NamedTuple):
    """The different labels of a partition, by first appearance, and their rising int64 keys."""

    labels: pa.StringArray
    keys: NDArray[np.int64]


def segments(scans: Sequence[Scan], part_of: Sequence[int], kind: str) -> List[Segment]:
    """All segments, in the order of IDs.

    Args:
        scans: of all source files.
        part_of: the part of each scan, rising.
        kind: "entity" or "relation".
    """
    return [
        Segment(i, piece, side)
        for part in sorted(set(part_of))
        for side in range(len(SIDES[kind]))
        for i, scan in enumerate(scans)
        if part_of[i] == part
        for piece in range(len(scan.rows))
    ]


def counts_of(scans: Sequence[Scan], order: Sequence[Segment], kind: str) -> NDArray[np.int64]:
    """int64 (P, G): entries of each partition and segment."""
    counts = [scans[s.scan].tables[kind][s.piece, :, s.side, 0] for s in order]
    return np.stack(counts, axis=1)


def number(
    scans: Sequence[Scan],
    part_of: Sequence[int],
    kind: str,
    work: Path,
    folder: Path,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], None],
) -> Tuple[Facts, Dict[Path, Record]]:
    """Give the labels of one kind their IDs, and write them in this order.

    Args:
        scans: of all source files.
        part_of: the part of each scan, rising.
        kind: "entity" or "relation".
        work: folder of the entries and IDs.
        folder: of the file of labels.
        pool: threads that compare labels.
        progress: is told the entries of each partition.

    Returns:
        n, the number of labels; path to size and checksum.
    """
    order = segments(scans, part_of, kind)
    counts = counts_of(scans, order, kind)
    bases = np.concatenate([[0], np.cumsum(counts.sum(axis=0))])
    spilled = _Spilled(work, kind, len(counts))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(HashedFile(work / f"{kind}.entries"))
        for scan in scans:
            stack.callback(scan.close)
        entries = (_entries(scans, order, kind, i, of, bases) for i, of in enumerate(counts))
        for partition, (codes, found) in enumerate(in_order(pool, _distinct, entries, 1)):
            file.write(codes + np.int32(sum(spilled.n_label)))
            spilled.put(partition, found)
            _check_number(kind, sum(spilled.n_label))
            progress(len(codes))
    n, records = _merge(spilled, bases, folder / LABELS[kind], work / f"{kind}.ids")
    return {"n": n}, {file.path: file.record, **records}


def _check_number(kind: str, n: int) -> None:
    if n > MAX_ENTITY:
        raise DataError(
            f"the sources have more than {MAX_ENTITY} different {kind} labels; IDs are int32"
        )


class Entries(NamedTuple):
    """Labels of a partition, segment after segment; one that several pieces have comes again.

    Attributes:
        text: the labels, UTF-8.
        marks: int32 (K, 2), bytes and rank of each label.
        keys: int64 (K,), where each label stands in the order of IDs.
    """

    text: NDArray[np.uint8]
    marks: NDArray[np.int32]
    keys: NDArray[np.int64]


def _entries(
    scans: Sequence[Scan],
    order: Sequence[Segment],
    kind: str,
    partition: int,
    counts: NDArray[np.int64],
    bases: NDArray[np.int64],
) -> Entries:
    """The entries of a partition, of `counts` (G,) in each segment."""
    cells = [scans[s.scan].cell(kind, s.piece, partition, s.side) for s in order]
    text, marks = (b"".join(parts) for parts in zip(*cells))
    numbers = np.frombuffer(marks, np.int32).reshape(-1, 2)
    keys = np.repeat(bases[:-1], counts) + numbers[:, 1]
    return Entries(np.frombuffer(text, np.uint8), numbers, keys)


def _distinct(entries: Entries) -> Tuple[NDArray[np.int32], Found]:
    """Which label each entry of a partition is, int32, and the labels."""
    coded = label_array(entries.text, entries.marks[:, 0]).dictionary_encode()
    codes = codes_of(pa.chunked_array([coded]))
    is_first = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
    return codes, Found(coded.dictionary, entries.keys[is_first])


class _Spilled:
    """The labels and keys of all partitions: in memory if there is one, else in files."""

    def __init__(self, work: Path, kind: str, n_partition: int) -> None:
        self._stem, self.n_partition = work / f"{kind}.found", n_partition
        self._kept: Dict[int, Found] = {}
        self.n_label = [0] * n_partition

    def put(self, partition: int, found: Found) -> None:
        self.n_label[partition] = len(found.keys)
        if self.n_partition == 1:
            self._kept[partition] = found
            return
        save_npy(self._path(partition, "keys.npy"), found.keys)
        with pa.ipc.new_file(str(self._path(partition, "labels")), SCHEMA) as writer:
            writer.write(pa.record_batch([found.labels], schema=SCHEMA))

    def get(self, partition: int) -> Found:
        """What was put; a file is mapped, so that only what is looked at costs memory."""
        if partition in self._kept:
            return self._kept[partition]
        mapped = pa.memory_map(str(self._path(partition, "labels")))
        labels = pa.ipc.open_file(mapped).get_batch(0).column(0)
        return Found(labels, np.load(self._path(partition, "keys.npy"), mmap_mode="r"))

    def remove(self) -> None:
        for path in self._stem.parent.glob(f"{self._stem.name}.*"):
            path.unlink()

    def _path(self, partition: int, name: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{partition}.{name}")


def _merge(
    spilled: _Spilled, bases: NDArray[np.int64], labels_path: Path, ids_path: Path
) -> Tuple[int, Dict[Path, Record]]:
    """Number the labels of all partitions by their keys, and write labels and IDs."""
    found = [spilled.get(partition) for partition in range(spilled.n_partition)]
    cuts = np.stack([np.searchsorted(of.keys, bases) for of in found])
    starts = np.cumsum(spilled.n_label) - spilled.n_label
    ids = np.empty(sum(spilled.n_label), np.int32)
    n = 0
    with _LabelFile(labels_path) as file:
        for first, end in zip(cuts.T, cuts.T[1:]):
            slices = [slice(a, b) for a, b in zip(first.tolist(), end.tolist())]
            order = np.argsort(np.concatenate([of.keys[x] for of, x in zip(found, slices)]))
            labels = pa.chunked_array([of.labels[x] for of, x in zip(found, slices)], pa.string())
            file.write(labels if len(found) == 1 else labels.take(indices(order)))
            places = [np.arange(s + x.start, s + x.stop) for s, x in zip(starts, slices)]
            ids[np.concatenate(places)[order]] = np.arange(n, n + len(order), dtype=np.int32)
            n += len(order)
    del found
    spilled.remove()
    with HashedFile(ids_path) as out:
        out.write(ids)
    return n, {ids_path: out.record, labels_path: record_of(labels_path)}


class _LabelFile:
    """A Parquet file of labels in row groups of equal size."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.parquet.ParquetWriter(
            str(path), SCHEMA, compression="zstd", use_dictionary=False
        )
        self._waiting = pa.chunked_array([], pa.string())

    def write(self, labels: pa.ChunkedArray) -> None:
        self._waiting = pa.chunked_array([*self._waiting.chunks, *labels.chunks], pa.string())
        while len(self._waiting) >= ROW_GROUP:
            self._put(self._waiting[:ROW_GROUP])
            self._waiting = self._waiting[ROW_GROUP:]

    def _put(self, labels: pa.ChunkedArray) -> None:
        self._writer.write_table(pa.table([labels.combine_chunks()], schema=SCHEMA), ROW_GROUP)

    def __enter__(self) -> _LabelFile:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None and len(self._waiting):
            self._put(self._waiting)
        self._writer.close()


def translate(
    scans: Sequence[Scan],
    part_of: Sequence[int],
    paths: Sequence[Path],
    work: Path,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], None],
) -> Tuple[Facts, Dict[Path, Record]]:
    """Write the triples of each part, int32 (n, 3) IDs in the order of its sources.

    Args:
        scans: of all source files.
        part_of: the part of each scan, rising.
        paths: the .npy file of each part.
        work: folder of what :func:`number` left.
        pool: threads that look IDs up.
        progress: is told the rows of each piece.

    Returns:
        n, the triples of each part; path to size and checksum.
    """
    records, sizes = {}, []
    with contextlib.ExitStack() as stack:
        ids_of = {kind: _EntryIds(scans, part_of, kind, work) for kind in KINDS}
        for of in ids_of.values():
            stack.callback(of.close)
        for part, path in enumerate(paths):
            own = [scan for scan, i in enumerate(part_of) if i == part]
            sizes.append(sum(int(scans[i].rows.sum()) for i in own))
            file = stack.enter_context(HashedFile(path))
            np.lib.format.write_array_header_1_0(file, npy_header((sizes[-1], 3), np.int32))
            pieces = (
                (scans[i].codes(k), {kind: of.read(i, k) for kind, of in ids_of.items()})
                for i in own
                for k in range(len(scans[i].rows))
            )
            for rows in in_order(pool, partial(_triples, ids_of), pieces, 2):
                file.write(rows)
                progress(len(rows))
            records[path] = file.record
    return {"n": sizes}, records


def _triples(
    ids_of: Dict[str, _EntryIds], piece: Tuple[NDArray[np.int32], Dict[str, bytes]]
) -> NDArray[np.int32]:
    """int32 (n, 3) IDs of a piece, of its codes and its entries of each kind."""
    codes, entries = piece
    rows = np.empty((codes.shape[1], 3), np.int32)
    for kind, sides in SIDES.items():
        ids = ids_of[kind].ids[np.frombuffer(entries[kind], np.int32)]
        for column in sides:
            rows[:, column] = ids[codes[column]]
    return rows


class _EntryIds:
    """IDs of the entries of a piece, in the order of its dictionary.

    Attributes:
        ids: int32, at the places that the entries of a piece are.
    """

    def __init__(
        self, scans: Sequence[Scan], part_of: Sequence[int], kind: str, work: Path
    ) -> None:
        order = segments(scans, part_of, kind)
        counts = counts_of(scans, order, kind)
        self._counts, self._starts = counts, (np.cumsum(counts) - counts.ravel())
        self._starts = self._starts.reshape(counts.shape)
        self._of = {segment: i for i, segment in enumerate(order)}
        self._n_side = len(SIDES[kind])
        # Not mapped: pages that were read would count as memory of this process.
        self._file = (work / f"{kind}.entries").open("rb", buffering=0)
        self.ids = np.fromfile(work / f"{kind}.ids", np.int32)

    def read(self, scan: int, piece: int) -> bytes:
        """The entries of a piece, int32; not for several threads at once."""
        own = [self._of[Segment(scan, piece, side)] for side in range(self._n_side)]
        cells = zip(self._starts[:, own].ravel().tolist(), self._counts[:, own].ravel().tolist())
        parts = []
        for start, n in cells:
            self._file.seek(4 * start)
            parts.append(self._file.read(4 * n))
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
