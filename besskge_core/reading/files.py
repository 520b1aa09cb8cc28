"""Files of triples become columns of strings.

The idea: pyarrow reads the file in C++, fast and without explanations. Where it fails, the same
file is read again line by line, slowly, to say which line is wrong and what to do about it.

========== ========= ======================================= ===============================
file name  separator quotes                                  compression
========== ========= ======================================= ===============================
.tsv, .txt tab       none: ``"`` is a character like others  .gz .bz2 .xz .zst, or none
.del       tab       none                                    the same
.csv       comma     ``"a, b"`` and ``""`` (RFC 4180)        the same
.parquet   –         –                                       inside the file
========== ========= ======================================= ===============================

Labels stay strings, exactly as they are written: ``007``, ``NA`` and ``" x"`` survive.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NoReturn, Optional, Sequence, Tuple, Union

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from besskge_core.errors import ConfigError, DataError, DatasetNotFoundError, DataWarning
from besskge_core.reading.lines import (
    DAMAGE,
    explain,
    first_row,
    numbered_rows,
    open_stream,
    refuse_width,
)

__all__ = [
    "TableFile",
    "as_strings",
    "encode",
    "locate",
    "read_integers",
    "read_strings",
    "stream_strings",
]

Column = Union[int, str]

PARQUET_ROW_BYTES = 40  # of three labels, to turn bytes into rows
KINDS = ("tsv", "txt", "del", "csv", "parquet")
COMPRESSIONS: Dict[str, str] = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "xz": "xz"}
HEADERS = (
    {"head", "relation", "tail"},
    {"h", "r", "t"},
    {"subject", "predicate", "object"},
    {"s", "p", "o"},
    {"source", "relation", "target"},
)


@dataclass(frozen=True)
class TableFile:
    """A file with a record on each line, and how it is to be read.

    Attributes:
        path: its name decides separator, quoting and compression, see above.
        n_column: number of columns wanted.
        columns: which ones: positions from 0, or names, which then stand in the first line. By
            default the file has the `n_column` wanted columns, no other and no header.
        delimiter: another separator.
    """

    path: str
    n_column: int = 3
    columns: Optional[Tuple[Column, ...]] = None
    delimiter: Optional[str] = None

    def __post_init__(self) -> None:
        if self.columns is not None and (
            len(self.columns) != self.n_column or len({type(c) for c in self.columns}) != 1
        ):
            raise ConfigError(
                f"columns is {self.columns}, expected {self.n_column} positions or"
                f" {self.n_column} names"
            )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"delimiter is {self.delimiter!r}, expected one character")
        if self.kind not in KINDS:
            raise DataError(
                f"{self.path}: unknown kind of file; expected a name ending in"
                f" .{', .'.join(KINDS)}, with .{', .'.join(COMPRESSIONS)} behind it if compressed"
            )

    @property
    def kind(self) -> str:
        """The ending that says what is in the file: "tsv" for ``train.tsv.xz``."""
        parts = os.path.basename(self.path).lower().split(".")
        return parts[-2 if self.compression and len(parts) > 1 else -1]

    @property
    def compression(self) -> Optional[str]:
        """The codec, as pyarrow calls it, or None."""
        return COMPRESSIONS.get(self.path.lower().rsplit(".", 1)[-1])

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns."""
        return self.columns is not None and isinstance(self.columns[0], str)

    @property
    def is_quoted(self) -> bool:
        """Whether a field may stand in quotes."""
        return self.kind == "csv"

    @property
    def separator(self) -> str:
        """What stands between two fields."""
        return self.delimiter or ("," if self.kind == "csv" else "\t")


def read_strings(table: TableFile) -> List[pa.ChunkedArray]:
    """The wanted columns as Arrow strings, in the order of the file.

    Empty lines are skipped with a :class:`~besskge_core.errors.DataWarning` that counts them.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: it cannot be read as it should; names the line and the remedy.
    """
    if not os.path.isfile(table.path):
        raise DatasetNotFoundError(f"{table.path}: no such file")
    if table.kind == "parquet":
        return _read_parquet(table)
    first_line, first = first_row(table)
    positions = _positions(table, first, f"{table.path}:{first_line}")
    skip = first_line if table.has_header else 0
    try:
        columns = _read_csv(table, len(first), positions, skip, ignore_empty_lines=False)
        problem = "it has an empty label"
    except DAMAGE as error:
        problem, columns = str(error), []
    if columns and not any(_has_empty(column) for column in columns):
        return _not_empty(columns, table)
    n_empty, first_empty = explain(table, len(first), positions)
    if not n_empty:
        raise DataError(f"{table.path}: {problem}")
    warnings.warn(
        f"{table.path}:{first_empty}: empty line, skipped ({n_empty} in the file); remove it",
        DataWarning,
        stacklevel=2,
    )
    return _not_empty(_read_csv(table, len(first), positions, skip, True), table)


def stream_strings(table: TableFile, block_size: int) -> Iterator[List[pa.ChunkedArray]]:
    """The columns of :func:`read_strings`, a piece of the file after the other.

    Empty lines are skipped without a warning.

    Args:
        table: what to read.
        block_size: bytes of a piece; no line may be longer.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: as of :func:`read_strings`, perhaps after some pieces.
    """
    if not os.path.isfile(table.path):
        raise DatasetNotFoundError(f"{table.path}: no such file")
    stream = _stream_parquet if table.kind == "parquet" else _stream_csv
    n_row = 0
    for columns in stream(table, block_size):
        n_row += len(columns[0])
        if len(columns[0]):
            yield columns
    if not n_row:
        _refuse_no_row(table)


def read_integers(table: TableFile) -> NDArray[np.int64]:
    """The wanted columns as int64 (n, n_column).

    Raises:
        DataError: as :func:`read_strings`, or where a field is no integer.
    """
    columns = read_strings(table)
    try:
        return np.stack([pc.cast(column, pa.int64()).to_numpy() for column in columns], axis=1)
    except pa.ArrowInvalid:
        records = zip(*(column.to_pylist() for column in columns))
        row, fields = next((i, f) for i, f in enumerate(records) if not all(map(_is_int64, f)))
        wrong = next(field for field in fields if not _is_int64(field))
        raise DataError(
            f"{locate(table, row)}: {wrong!r} is not an integer ID; files of labels are read by"
            " KGDataset.from_files"
        ) from None


def as_strings(values: Any, what: str) -> pa.ChunkedArray:
    """A column of a data frame as Arrow strings; integers are written out.

    Raises:
        DataError: a missing value, or a column that is neither strings nor integers.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        array = array.astype(str)
    if array.dtype.kind not in "OU":
        raise DataError(
            f"{what} holds {array.dtype}, expected strings or integers; convert it first, for"
            " example with .astype(str)"
        )
    try:
        strings = pa.array(array, type=pa.string(), from_pandas=True)
    except pa.ArrowException:
        present = (pa.scalar(value, from_pandas=True).is_valid for value in array)
        strings = pa.array([str(v) if ok else None for v, ok in zip(array, present)], pa.string())
    if strings.null_count:
        row = int(np.flatnonzero(np.asarray(strings.is_null()))[0])
        raise DataError(
            f"{what}, row {row}: the value is missing ({strings.null_count} in the column); drop"
            " such rows first, for example with .dropna()"
        )
    return strings if isinstance(strings, pa.ChunkedArray) else pa.chunked_array([strings])


def encode(
    columns: Sequence[pa.ChunkedArray], labels: Optional[Sequence[str]] = None
) -> Tuple[List[NDArray[np.int32]], List[str]]:
    """Labels to IDs.

    Args:
        columns: strings, each of any length.
        labels: ID to label; by default IDs are given in the order of first appearance.

    Returns:
        ids: int32, as `columns`; -1 where `labels` lacks the label.
        labels: ID to label.
    """
    chunks = pa.chunked_array([c for column in columns for c in column.chunks], pa.string())
    if labels is None:
        coded = chunks.dictionary_encode()
        labels = coded.chunk(0).dictionary.to_pylist() if coded.num_chunks else []
        codes = [chunk.indices for chunk in coded.chunks]
    else:
        known = pa.array(labels, pa.string())
        codes = [pc.fill_null(pc.index_in(chunk, value_set=known), -1) for chunk in chunks.chunks]
    joined = np.concatenate([np.empty(0, np.int32), *(code.to_numpy() for code in codes)])
    ends = np.cumsum([len(column) for column in columns])
    return [np.asarray(part, np.int32) for part in np.split(joined, ends[:-1])], list(labels)


def locate(table: TableFile, row: int) -> str:
    """Where a row stands: "file:line", or "file: row" in a Parquet file."""
    if table.kind == "parquet":
        return f"{table.path}: row {row}"
    filled = (line for line, fields in numbered_rows(table) if fields)
    for _ in range(row + table.has_header):
        next(filled)
    return f"{table.path}:{next(filled)}"


# -- the fast way ----------------------------------------------------------------------------------


def _csv_options(
    table: TableFile, n_column: int, positions: Sequence[int], skip: int, ignore_empty_lines: bool,
    block_size: Optional[int] = None,
) -> Dict[str, Any]:  # fmt: skip
    names = [str(i) for i in range(n_column)]
    wanted = [names[i] for i in positions]
    return {
        "read_options": pyarrow.csv.ReadOptions(
            column_names=names, skip_rows=skip, block_size=block_size
        ),
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter=table.separator,
            quote_char='"' if table.is_quoted else False,
            newlines_in_values=table.is_quoted,
            ignore_empty_lines=ignore_empty_lines,
        ),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in wanted}, include_columns=wanted
        ),
    }


def _read_csv(
    table: TableFile, n_column: int, positions: Sequence[int], skip: int, ignore_empty_lines: bool
) -> List[pa.ChunkedArray]:
    options = _csv_options(table, n_column, positions, skip, ignore_empty_lines)
    with open_stream(table) as stream:
        read = pyarrow.csv.read_csv(stream, **options)
    return [read[name] for name in options["convert_options"].include_columns]


def _stream_csv(table: TableFile, block_size: int) -> Iterator[List[pa.ChunkedArray]]:
    first_line, first = first_row(table)
    positions = _positions(table, first, f"{table.path}:{first_line}")
    skip = first_line if table.has_header else 0
    options = _csv_options(table, len(first), positions, skip, True, block_size)
    problem = "it has an empty label"
    try:
        with open_stream(table) as stream, pyarrow.csv.open_csv(stream, **options) as reader:
            for batch in reader:
                piece = pa.Table.from_batches([batch])
                columns = [piece[name] for name in options["convert_options"].include_columns]
                if any(_has_empty(column) for column in columns):
                    break
                yield columns
            else:
                return
    except DAMAGE as error:
        problem = str(error)
    explain(table, len(first), positions)
    raise DataError(f"{table.path}: {problem}")


def _read_parquet(table: TableFile) -> List[pa.ChunkedArray]:
    file, wanted = _open_parquet(table)
    try:
        read = file.read(columns=wanted)
    except DAMAGE as error:
        _refuse_parquet(table, error)
    return _not_empty([_parquet_strings(table, name, read[name]) for name in wanted], table)


def _stream_parquet(table: TableFile, block_size: int) -> Iterator[List[pa.ChunkedArray]]:
    file, wanted = _open_parquet(table)
    n_row = 0
    batches = file.iter_batches(max(block_size // PARQUET_ROW_BYTES, 1), columns=wanted)
    while True:
        try:
            batch = next(batches, None)
        except DAMAGE as error:
            _refuse_parquet(table, error)
        if batch is None:
            return
        piece = pa.Table.from_batches([batch])
        yield [_parquet_strings(table, name, piece[name], n_row) for name in wanted]
        n_row += batch.num_rows


def _open_parquet(table: TableFile) -> Tuple[Any, List[str]]:
    """The file, and the names of the wanted columns."""
    try:
        file = pyarrow.parquet.ParquetFile(table.path)
    except DAMAGE as error:
        _refuse_parquet(table, error)
    names = file.schema_arrow.names
    return file, [names[i] for i in _positions(table, names, table.path)]


def _refuse_parquet(table: TableFile, error: Exception) -> NoReturn:
    raise DataError(
        f"{table.path}: not a Parquet file, or one cut short ({error}); copy or write it again"
    ) from error


def _parquet_strings(
    table: TableFile, name: str, column: pa.ChunkedArray, first_row: int = 0
) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_integer(column.type) or str(column.type) in ("string", "large_string")):
        raise DataError(
            f"{table.path}: column {name!r} holds {column.type}, expected strings or integers"
        )
    column = column.cast(pa.string())
    if column.null_count or _has_empty(column):
        missing = pc.or_kleene(pc.is_null(column), pc.equal(column, ""))
        row = first_row + int(np.flatnonzero(np.asarray(missing))[0])
        raise DataError(f"{locate(table, row)}: column {name!r} is empty; remove the row")
    return column


def _positions(table: TableFile, first: Sequence[str], where: str) -> List[int]:
    """Positions of the wanted columns, of the names or fields in the first row."""
    if table.has_header:
        missing = [c for c in table.columns or () if c not in first]
        if missing:
            raise DataError(f"{where}: no column {missing[0]!r}; the columns are {list(first)}")
        return [first.index(str(c)) for c in table.columns or ()]
    wanted = [int(c) for c in table.columns or range(table.n_column)]
    if max(wanted) >= len(first) or (table.columns is None and len(first) != table.n_column):
        refuse_width(table, where, len(first), table.n_column)
    if {field.strip().lower() for field in first} in HEADERS and table.kind != "parquet":
        raise DataError(
            f"{where}: {list(first)} looks like a header; pass its names, columns={tuple(first)}"
        )
    return wanted


def _has_empty(column: pa.ChunkedArray) -> bool:
    # Not pc.equal(column, ""): turning that label to Arrow imports pandas, where there is one.
    return bool(pc.min(pc.binary_length(column)).as_py() == 0)


def _not_empty(columns: List[pa.ChunkedArray], table: TableFile) -> List[pa.ChunkedArray]:
    if not len(columns[0]):
        _refuse_no_row(table)
    return columns


def _refuse_no_row(table: TableFile) -> NoReturn:
    raise DataError(f"{table.path}: there is no row in it; leave the file out or fill it")


def _is_int64(field: str) -> bool:
    try:
        return abs(int(field)) < 2**63
    except ValueError:
        return False
