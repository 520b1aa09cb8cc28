"""Tables line by line: slow, but each line has its number, and a fault its explanation.

:mod:`besskge_core.reading.files` reads the same tables fast; it comes here where that fails.
"""

from __future__ import annotations

import csv
import io
import lzma
from typing import TYPE_CHECKING, Any, Iterator, List, NoReturn, Sequence, Tuple

import pyarrow as pa

from besskge_core.errors import DataError

if TYPE_CHECKING:
    from besskge_core.reading.files import TableFile

__all__ = ["DAMAGE", "explain", "first_row", "numbered_rows", "open_stream", "refuse_width"]

#: What a damaged file raises, or one that is not of its kind.
DAMAGE = (pa.ArrowException, OSError, EOFError, lzma.LZMAError)


def open_stream(table: TableFile) -> Any:
    """The decompressed bytes."""
    if table.compression == "xz":
        return lzma.open(table.path)
    return pa.input_stream(table.path, compression=table.compression)


def explain(table: TableFile, n_column: int, positions: Sequence[int]) -> Tuple[int, int]:
    """Number of empty lines and the first of them; any other fault is raised, with its line."""
    n_empty = first_empty = 0
    for line, fields in numbered_rows(table):
        if not fields:
            n_empty += 1
            first_empty = first_empty or line
        elif len(fields) != n_column:
            refuse_width(table, f"{table.path}:{line}", len(fields), n_column)
        elif not all(fields[i] for i in positions):
            empty = next(i for i in positions if not fields[i])
            raise DataError(
                f"{table.path}:{line}: column {empty} is empty; write a label there, or remove the"
                " line"
            )
    return n_empty, first_empty


def refuse_width(table: TableFile, where: str, n_column: int, expected: int) -> NoReturn:
    separator = "" if table.kind == "parquet" else f" separated by {table.separator!r}"
    remedy = (
        "pass another delimiter, or mend the line"
        if n_column < expected
        else "choose some with columns=(...), or mend the line"
    )
    raise DataError(f"{where}: {n_column} columns{separator}, expected {expected}; {remedy}")


def first_row(table: TableFile) -> Tuple[int, List[str]]:
    """Line and fields of the first line that is not empty."""
    for line, fields in numbered_rows(table):
        if fields:
            return line, fields
    raise DataError(
        f"{table.path}:1: the file is empty; expected {table.n_column} columns separated by"
        f" {table.separator!r}"
    )


def numbered_rows(table: TableFile) -> Iterator[Tuple[int, List[str]]]:
    """Line number, from 1, and fields of each line; no fields for an empty one."""
    if table.is_quoted:
        reader = csv.reader((line + "\n" for line in _lines(table)), delimiter=table.separator)
        for fields in reader:
            yield reader.line_num, fields
    else:
        for number, line in enumerate(_lines(table), start=1):
            yield number, line.split(table.separator) if line else []


def _lines(table: TableFile) -> Iterator[str]:
    """Lines without their ends, which are LF, CR LF or CR."""
    number = 0
    try:
        with open_stream(table) as stream:
            for raw in io.BufferedReader(stream):
                raw = raw[3:] if not number and raw.startswith(b"\xef\xbb\xbf") else raw
                ended = raw[:-1] if raw.endswith(b"\n") else raw
                for line in (ended[:-1] if ended.endswith(b"\r") else ended).split(b"\r"):
                    number += 1
                    yield _decoded(line, f"{table.path}:{number}")
    except DAMAGE as error:
        what = f"the .{table.path.rsplit('.', 1)[-1]} archive" if table.compression else "the file"
        raise DataError(
            f"{table.path}:{number + 1}: {what} cannot be read on from here ({error}); it is damaged"
            " or cut short, so copy or download it again"
        ) from error


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; convert"
            " the file, for example with iconv -f latin1 -t utf-8"
        ) from None
