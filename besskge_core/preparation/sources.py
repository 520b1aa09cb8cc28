"""The files that a data set is prepared from: which they are, and how large."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import pyarrow as pa
import pyarrow.parquet

from besskge_core.errors import ConfigError, DataError, DatasetNotFoundError
from besskge_core.reading.files import TableFile
from besskge_core.reading.folders import ENDINGS, PARTS, find_table

__all__ = ["PathLike", "Sources", "as_json", "tables_of", "text_bytes"]

PathLike = Union[str, "os.PathLike[str]"]
Sources = Union[PathLike, Mapping[str, Union[PathLike, Sequence[PathLike]]]]
Tables = Dict[str, List[TableFile]]

INFLATION = 8  # of a compressed source, at most a guess
PARQUET_ROW_BYTES = 120  # of three labels, at most a guess


def tables_of(
    sources: Sources, columns: Optional[Sequence[Union[int, str]]], delimiter: Optional[str]
) -> Tables:
    """The files of each part, as described for :func:`besskge_core.preparation.prepare`.

    Raises:
        ConfigError: no part, or one whose name cannot be that of a file.
        DataError: a folder that holds no such file.
        DatasetNotFoundError: no such file.
    """
    parts = dict(sources) if isinstance(sources, Mapping) else _parts_of(os.fspath(sources))
    if not parts:
        raise ConfigError("no part given; expected at least one, for example 'train'")
    wanted = None if columns is None else tuple(columns)
    tables = {}
    for part, given in parts.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", part):
            raise ConfigError(
                f"part {part!r}: expected letters, digits, _ and -, as of a file name"
            )
        several = [given] if isinstance(given, (str, os.PathLike)) else list(given)
        paths = [path for entry in several for path in _files_of(os.fspath(entry))]
        if not paths:
            raise ConfigError(f"part {part!r} has no file")
        tables[part] = [TableFile(path, 3, wanted, delimiter) for path in paths]
    return tables


def _parts_of(path: str) -> Dict[str, Any]:
    """The parts of one path: a folder's by their names, a file is train."""
    if not os.path.isdir(path):
        return {"train": path}
    found = {part: find_table(path, *stems) for part, stems in PARTS.items()}
    if found["train"] is None or found["train"].endswith(".del"):
        raise DataError(
            f"{path}: no file of labelled training triples, such as train.tsv or train.csv.gz; it"
            f" has {sorted(os.listdir(path))[:20]}"
        )
    return {part: file for part, file in found.items() if file is not None}


def _files_of(path: str) -> List[str]:
    """The file, or those of a folder by their names."""
    if os.path.isdir(path):
        names = [name for name in sorted(os.listdir(path)) if name.lower().endswith(ENDINGS)]
        if not names:
            raise DataError(f"{path}: no file in it ends in one of {', '.join(ENDINGS[:4])}, ...")
        return [os.path.join(path, name) for name in names]
    if not os.path.isfile(path):
        raise DatasetNotFoundError(f"{path}: no such file")
    return [path]


def text_bytes(tables: Tables) -> int:
    """About how many bytes all labels have, repeated ones as often as they stand there."""
    total = 0
    for table in (table for part in tables.values() for table in part):
        size = os.path.getsize(table.path)
        if table.kind == "parquet":
            try:
                n_row = pa.parquet.read_metadata(table.path).num_rows
            except (pa.ArrowException, OSError):
                n_row = 0  # reading it will say what is wrong
            total += max(n_row * PARQUET_ROW_BYTES, size)
        else:
            total += size * (INFLATION if table.compression else 1)
    return total


def as_json(tables: Tables) -> Dict[str, List[Dict[str, Any]]]:
    """Part to path and size of its files."""
    return {
        part: [{"path": str(Path(t.path)), "size": os.path.getsize(t.path)} for t in files]
        for part, files in tables.items()
    }


def fingerprint(tables: Tables) -> List[Tuple[str, str, int, int]]:
    """What tells the sources of one call from those of another: part, path, size, time."""
    return [
        (part, os.path.abspath(t.path), os.path.getsize(t.path), os.stat(t.path).st_mtime_ns)
        for part, files in tables.items()
        for t in files
    ]
