"""Prepared folders: a knowledge graph on disk, opened without reading it.

:mod:`besskge_core.preparation` writes such a folder, of any size, and so may another tool:
docs/prepared-data.md is the contract. Triples are mapped into memory, which costs nothing until a
row is looked at; labels are read when one is asked for; the manifest says how large each file is
and what its checksum is.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple, Union, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from besskge_core.dataset import KGDataset
from besskge_core.errors import DataError, DatasetNotFoundError
from besskge_core.whole_files import sha256_of

__all__ = ["Buckets", "Manifest", "check_files", "is_prepared", "map_array", "open_prepared"]

FORMAT = "besskge_core.prepared"
VERSION = 1
MANIFEST = "manifest.json"
#: Where work that has not ended is kept; what is in it is nobody else's business.
UNFINISHED = "unfinished"
#: The file of each kind of label.
LABELS = {"entity": "entities.parquet", "relation": "relations.parquet"}

#: Size in bytes and sha256 of a file.
Record = Dict[str, Any]


@dataclass(frozen=True)
class Buckets:
    """The training triples, sorted for a number of shards."""

    folder: str
    n_shard: int
    seed: int
    inverse_triples: bool
    n_triple: int
    partition_mode: str = "ht_shardpair"


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds.

    Attributes:
        n_entity: number of entities, over all parts.
        n_relation_type: number of relations.
        parts: part to its number of triples, in the order of IDs.
        sources: part to path and size of the files it was made from.
        files: file name to size and sha256.
        buckets: one entry for each folder of buckets.
    """

    n_entity: int
    n_relation_type: int
    parts: Dict[str, int]
    sources: Dict[str, List[Dict[str, Any]]]
    files: Dict[str, Record]
    buckets: List[Buckets] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            DatasetNotFoundError: there is none.
            DataError: it is damaged, of another make, or of a later format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            begun = (folder / UNFINISHED).is_dir()
            how = "preparing it has not ended; go on with --resume" if begun else "not prepared"
            raise DatasetNotFoundError(f"{folder}: {how} (there is no {MANIFEST})")
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            found, version = stored.pop("format"), stored.pop("version")
            stored.pop("dtype")
            if found == FORMAT and version == VERSION:
                buckets = [Buckets(**entry) for entry in stored.pop("buckets")]
                return cls(**stored, buckets=buckets)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: damaged ({error!r}); prepare the folder again") from error
        raise DataError(
            f"{path}: {found!r} of version {version!r}, this besskge_core reads {FORMAT!r} of"
            f" version {VERSION}"
        )

    def as_json(self) -> Dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "dtype": "int32", **asdict(self)}


def is_prepared(folder: Union[str, os.PathLike[str]]) -> bool:
    """Whether this is a prepared folder, or one that should have become one."""
    folder = Path(folder)
    files = [folder / name for name in (MANIFEST, LABELS["entity"])]  # others have a manifest too
    return all(file.is_file() for file in files) or (folder / UNFINISHED).is_dir()


def open_prepared(folder: Union[str, os.PathLike[str]], verify: bool = False) -> KGDataset:
    """The data set in a prepared folder, its triples mapped into memory.

    Args:
        folder: made by :func:`besskge_core.preparation.prepare`.
        verify: read all of it and compare checksums and IDs; by default only sizes are compared.

    Raises:
        DatasetNotFoundError: it is not a prepared folder, or preparing it has not ended.
        DataError: a file is missing, cut short or, if `verify`, changed.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    names = [name for name in manifest.files if "/" not in name]
    check_files(folder, manifest, names, verify)
    triples = {
        part: map_array(folder / f"{part}.npy", (n, 3), np.int32)
        for part, n in manifest.parts.items()
    }
    sizes = (manifest.n_entity, manifest.n_relation_type)
    if verify:
        for part, rows in triples.items():
            _check_ids(folder / f"{part}.npy", rows, sizes)
    entities, relations = (
        StoredLabels(folder / LABELS[kind], n) for kind, n in zip(("entity", "relation"), sizes)
    )
    return KGDataset.of_checked(
        n_entity=manifest.n_entity,
        n_relation_type=manifest.n_relation_type,
        triples=triples,
        original_triple_ids=RowNumbers(manifest.parts),
        entity_dict=entities,
        relation_dict=relations,
    )


def check_files(folder: Path, manifest: Manifest, names: Sequence[str], verify: bool) -> None:
    """Compare files with the manifest: sizes and, if `verify`, checksums.

    Raises:
        DataError: a file is missing, or not as it was written.
    """
    for name in names:
        path, record = folder / name, manifest.files[name]
        if not path.is_file():
            raise DataError(f"{path}: missing; prepare the folder again")
        size = path.stat().st_size
        if size != record["size"]:
            raise DataError(
                f"{path}: {size} bytes, the manifest says {record['size']}; prepare the folder again"
            )
        if verify and record_of(path) != record:
            raise DataError(
                f"{path}: its checksum is not that of the manifest, so it was changed or damaged;"
                " prepare the folder again"
            )


def record_of(path: Path) -> Record:
    """Size and checksum of a file that is there."""
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def map_array(path: Path, shape: Tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array in a .npy file, mapped copy-on-write: torch takes it, the file never changes.

    Raises:
        DataError: it is damaged, or another array.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare the folder again") from error
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise DataError(
            f"{path}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape} in C order"
        )
    return array.view(np.ndarray)


def _check_ids(path: Path, triples: NDArray[np.int32], sizes: Tuple[int, int]) -> None:
    for column, limit in enumerate((sizes[0], sizes[1], sizes[0])):
        ids = triples[:, column]
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < limit:
            row = int(np.flatnonzero((ids < 0) | (ids >= limit))[0])
            raise DataError(
                f"{path}: row {row}, column {column}: ID {ids[row]}, expected 0 to {limit - 1}"
            )


class StoredLabels(Sequence[str]):
    """Labels of a Parquet file, by ID; the file is read when the first is asked for.

    Args:
        path: of the file, with one column.
        n: how many there are.
    """

    def __init__(self, path: Path, n: int) -> None:
        self._path, self._n = path, n
        self._column: Any = None

    def _labels(self) -> Any:
        if self._column is None:
            try:
                column = pa.parquet.read_table(str(self._path)).column(0)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self._path}: damaged ({error}); prepare it again") from error
            if len(column) != self._n:
                raise DataError(f"{self._path}: {len(column)} labels, expected {self._n}")
            self._column = column
        return self._column

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> List[str]: ...

    def __getitem__(self, i: Union[int, slice]) -> Union[str, List[str]]:
        if isinstance(i, slice):
            return [self._labels()[k].as_py() for k in range(*i.indices(self._n))]
        label: str = self._labels()[range(self._n)[i]].as_py()
        return label

    def __iter__(self) -> Iterator[str]:
        for chunk in self._labels().chunks:
            yield from chunk.to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class RowNumbers(Mapping[str, NDArray[np.int64]]):
    """Part to int64 (n,), 0 to n - 1, made when it is asked for: 8 bytes a triple are many."""

    def __init__(self, parts: Mapping[str, int]) -> None:
        self._parts = parts

    def __getitem__(self, part: str) -> NDArray[np.int64]:
        return np.arange(self._parts[part])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
