"""Files that an export writes besides the weights: what IDs mean, and triples."""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Sequence

from besskge_core.errors import ConfigError


def refuse_to_overwrite(paths: Iterable[Path], overwrite: bool) -> None:
    """Unless that is wanted.

    Raises:
        ConfigError: one of them exists.
    """
    found = [path for path in paths if path.exists()]
    if found and not overwrite:
        raise ConfigError(f"{found[0]} exists; give another place, or --overwrite")


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Where to write what `path` is to be when it is complete; after a failure nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        if path.is_dir():  # only what is empty, or was agreed to be replaced, comes here
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        elif partial.exists():
            partial.unlink()


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows with a tab between fields, quoted where need be; compressed if it ends in .gz."""
    with path.open("wb") as raw:
        # Without name and time the same rows make the same file.
        binary: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw
        with io.TextIOWrapper(binary, "utf-8", "surrogatepass", newline="") as text:
            writer = csv.writer(text, delimiter="\t", lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)


def read_table(path: Path) -> List[List[str]]:
    """The columns of what :func:`write_table` wrote, not compressed, without the header."""
    with path.open(encoding="utf-8", errors="surrogatepass", newline="") as text:
        rows = list(csv.reader(text, delimiter="\t"))[1:]
    return [list(column) for column in zip(*rows)]
