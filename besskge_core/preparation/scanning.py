"""First pass: each piece of a source gets numbers of its own, and its labels are kept once.

The idea: labels are compared within a piece, which is small, then (in `numbering`) within a
partition of all labels by their hash, which is small too. Neither ever sees all labels, and rows
stay where they are: a row is three int32 from here on.

A *scan* is what is left of one source file:

=============== ================================================================================
codes           piece after piece: int32 (3, n), the place of a label in its piece's dictionary
entity.text     piece after piece, the labels of its dictionary, UTF-8
entity.marks    int32 (K, 2), of each label: its bytes; when it appeared first, among those of
                its piece and its side
entity.table    int64 (n_piece, P, S, 2): labels, and bytes of them, of a partition and a side
relation.*      likewise
rows            int64 (n_piece,), rows of each piece
=============== ================================================================================

Axes:
    P: partition of the labels, by hash      S: side on which a label appears first: head, tail
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import (
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Sequence,
    Tuple,
)

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from besskge_core.ahead import in_order
from besskge_core.counting import counting_argsort
from besskge_core.preparation.stages import Facts
from besskge_core.preparation.writing import HashedFile, save_npy
from besskge_core.prepared import Record
from besskge_core.reading.files import TableFile, stream_strings

__all__ = ["Piece", "Scan", "codes_of", "indices", "label_array", "scan", "text_of"]

#: Columns of a triple that hold labels of each kind; the order of the columns is that of IDs.
SIDES = {"entity": (0, 2), "relation": (1,)}
KINDS = tuple(SIDES)

BLOCK_SIZES = (2**16, 2**20)  # bytes
MIX = np.uint64(0x9E3779B97F4A7C15)


class Dictionary(NamedTuple):
    """The labels of a piece, sorted by partition, side and first appearance.

    Attributes:
        labels: strings (K,).
        ranks: int32 (K,), by first appearance on its side, from 0.
        table: int64 (P, S, 2), number and bytes of the labels.
    """

    labels: pa.StringArray
    ranks: NDArray[np.int32]
    table: NDArray[np.int64]


class Piece(NamedTuple):
    """codes int32 (3, n), and the dictionary of each kind."""

    codes: NDArray[np.int32]
    dictionaries: Dict[str, Dictionary]


def scan(
    table: TableFile,
    stem: Path,
    n_partition: int,
    piece_size: int,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], None],
) -> Tuple[Facts, Dict[Path, Record]]:
    """Read a source file and write its scan.

    Args:
        table: the source.
        stem: of the paths of the scan's files.
        n_partition: P.
        piece_size: bytes of the labels of a piece.
        pool: threads that number the pieces.
        progress: is told the rows of each piece.

    Returns:
        n, the number of rows; path to size and checksum.
    """
    rows: List[int] = []
    tables: Dict[str, List[NDArray[np.int64]]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:

        def new(name: str) -> HashedFile:
            return stack.enter_context(HashedFile(stem.with_name(f"{stem.name}.{name}")))

        names = [f"{kind}.{name}" for kind in KINDS for name in ("text", "marks")]
        files = {name: new(name) for name in ("codes", *names)}
        pieces = _gathered(stream_strings(table, _block_size(piece_size)), piece_size)
        for piece in in_order(pool, lambda x: number_piece(x, n_partition), pieces, 2):
            files["codes"].write(piece.codes)
            for kind, (labels, ranks, counts) in piece.dictionaries.items():
                text, ends = text_of(labels)
                files[f"{kind}.text"].write(text)
                files[f"{kind}.marks"].write(np.stack([np.diff(ends), ranks], axis=1))
                tables[kind].append(counts)
            rows.append(piece.codes.shape[1])
            progress(rows[-1])
    records = {file.path: file.record for file in files.values()}
    arrays = {f"{kind}.table": np.stack(tables[kind]) for kind in KINDS}
    for name, array in {**arrays, "rows": np.array(rows, np.int64)}.items():
        path = stem.with_name(f"{stem.name}.{name}.npy")
        records[path] = save_npy(path, array)
    return {"n": sum(rows)}, records


def _block_size(piece_size: int) -> int:
    """Bytes that Arrow reads at once; it reads 32 such blocks ahead, whoever waits for them."""
    low, high = BLOCK_SIZES
    return min(max(piece_size // 2, low), high)


def _gathered(
    blocks: Iterable[List[pa.ChunkedArray]], piece_size: int
) -> Iterator[List[pa.ChunkedArray]]:
    """Blocks joined to pieces, of this size or a little larger: the larger, the fewer labels."""
    waiting: List[List[pa.ChunkedArray]] = []
    size = 0
    for block in blocks:
        waiting.append(block)
        size += sum(column.nbytes for column in block)
        if size >= piece_size:
            yield _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(blocks: List[List[pa.ChunkedArray]]) -> List[pa.ChunkedArray]:
    return [
        pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
        for columns in zip(*blocks)
    ]


class Scan:
    """The files of a scan, opened.

    Attributes:
        rows: int64 (n_piece,).
        tables: kind to int64 (n_piece, P, S, 2).
    """

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self.rows = np.load(self._path("rows.npy"))
        self.tables = {kind: np.load(self._path(f"{kind}.table.npy")) for kind in KINDS}
        self._starts = {kind: _exclusive(table) for kind, table in self.tables.items()}
        self._files: Dict[str, FileIO] = {}

    def _path(self, name: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{name}")

    def codes(self, piece: int) -> NDArray[np.int32]:
        """int32 (3, n) of a piece."""
        start, n = int(self.rows[:piece].sum()), int(self.rows[piece])
        path = self._path("codes")
        return np.fromfile(path, np.int32, 3 * n, offset=12 * start).reshape(3, n)

    def cell(self, kind: str, piece: int, partition: int, side: int) -> Tuple[bytes, bytes]:
        """Text and marks of one cell of the table; not for several threads at once."""
        label, byte = self._starts[kind][piece, partition, side].tolist()
        n_label, n_byte = self.tables[kind][piece, partition, side].tolist()
        return (
            self._read(f"{kind}.text", byte, n_byte),
            self._read(f"{kind}.marks", 8 * label, 8 * n_label),
        )

    def _read(self, name: str, start: int, n: int) -> bytes:
        if name not in self._files:  # there may be millions of cells, so they stay open
            self._files[name] = self._path(name).open("rb", buffering=0)
        self._files[name].seek(start)
        return self._files[name].read(n)

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


def number_piece(columns: Sequence[pa.ChunkedArray], n_partition: int) -> Piece:
    """Codes and dictionaries of heads, relations and tails."""
    codes = np.empty((3, len(columns[0])), np.int32)
    dictionaries = {}
    for kind, sides in SIDES.items():
        found, dictionaries[kind] = _encode([columns[i] for i in sides], n_partition)
        for i, row in zip(sides, found):
            codes[i] = row
    return Piece(codes, dictionaries)


def _encode(
    columns: Sequence[pa.ChunkedArray], n_partition: int
) -> Tuple[List[NDArray[np.int32]], Dictionary]:
    """Codes of each column, and what they mean."""
    joined = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    coded = joined.dictionary_encode()
    labels = coded.chunk(0).dictionary
    codes = codes_of(coded)
    parts = np.split(codes, np.cumsum([len(column) for column in columns])[:-1])
    # Codes are given by first appearance: those of a side end where its largest one is.
    ends = np.maximum.accumulate([int(part.max()) + 1 for part in parts])
    n_side = np.diff(ends, prepend=0)
    ranks = np.concatenate([np.arange(n, dtype=np.int32) for n in n_side])
    if n_partition == 1:
        counts = n_side.reshape(1, -1)
    else:
        cell = hashes(labels) % np.uint64(n_partition) * np.uint64(len(n_side))
        cell += np.repeat(np.arange(len(n_side), dtype=np.uint64), n_side)
        n_cell = n_partition * len(n_side)
        order = counting_argsort(cell, n_cell)
        counts = np.bincount(cell.astype(np.int64), minlength=n_cell).reshape(n_partition, -1)
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        labels, ranks, parts = labels.take(indices(order)), ranks[order], [place[x] for x in parts]
    bounds = np.concatenate([[0], np.cumsum(counts)])
    n_byte = np.diff(text_of(labels)[1][bounds]).reshape(counts.shape)
    return parts, Dictionary(labels, ranks, np.stack([counts, n_byte], axis=-1))


def hashes(labels: pa.StringArray) -> NDArray[np.uint64]:
    """uint64 (K,): a number of each label, equal for equal labels; all bytes count."""
    text, ends = text_of(labels)
    padded = np.concatenate([text, np.zeros(8, np.uint8)])
    words = np.ndarray((len(text) + 1,), np.uint64, padded, strides=(1,))  # at every byte
    start, size = ends[:-1].astype(np.int64), np.diff(ends).astype(np.int64)
    mask = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
    mixed = size.astype(np.uint64)
    rows = np.arange(len(size))
    for at in range(0, int(size.max(initial=0)), 8):
        rows = rows[size[rows] > at]
        word = words[start[rows] + at] & mask[np.minimum(size[rows] - at, 8)]
        found = (mixed[rows] ^ word) * MIX
        mixed[rows] = found ^ (found >> np.uint64(29))
    return mixed


def codes_of(coded: pa.ChunkedArray) -> NDArray[np.int32]:
    """Codes of strings that are encoded as a dictionary; to_numpy would import pandas."""
    parts = [np.empty(0, np.int32)]
    for chunk in coded.chunks:
        found = chunk.indices
        numbers = np.frombuffer(found.buffers()[1], np.int32)
        parts.append(numbers[found.offset : found.offset + len(found)])
    return np.concatenate(parts)


def indices(order: NDArray[np.int64]) -> pa.Int64Array:
    """Places (K,) for Arrow's take; pa.array would import pandas, where there is one."""
    return pa.Array.from_buffers(pa.int64(), len(order), [None, pa.py_buffer(order)])


def text_of(labels: pa.StringArray) -> Tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """UTF-8 of the labels (n_byte,), one behind the other, and int32 (K + 1,) where they end."""
    _, offsets, content = labels.buffers()
    ends = np.frombuffer(offsets, np.int32)[labels.offset : labels.offset + len(labels) + 1]
    text = np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)
    return text[ends[0] : ends[-1]], ends - ends[0]


def label_array(text: NDArray[np.uint8], sizes: NDArray[np.integer]) -> pa.StringArray:
    """The labels of a text, by the bytes (K,) of each."""
    ends = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=ends[1:])
    return pa.StringArray.from_buffers(len(sizes), pa.py_buffer(ends), pa.py_buffer(text))


def _exclusive(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each cell of (n_piece, P, S, 2) begins in its file."""
    flat = table.reshape(-1, 2)
    starts: NDArray[np.int64] = (np.cumsum(flat, axis=0) - flat).reshape(table.shape)
    return starts
