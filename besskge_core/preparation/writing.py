"""Files with checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.errors import BessError, PreparationError
from besskge_core.prepared import Record

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up",
        errno.EFBIG: "the file grows larger than is allowed"}  # fmt: skip


class HashedFile:
    """A new file, written from its beginning to its end, which knows its checksum."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.size = path, 0
        self._file, self._hash = path.open("wb"), hashlib.sha256()

    def write(self, content: Any) -> int:
        """Append an array or bytes; returns their number."""
        array = np.ascontiguousarray(content) if isinstance(content, np.ndarray) else content
        view = memoryview(array)  # type: ignore[arg-type]
        view = view.cast("B") if view.nbytes else memoryview(b"")
        self._file.write(view)
        self._hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    @property
    def record(self) -> Record:
        return {"size": self.size, "sha256": self._hash.hexdigest()}


def npy_header(shape: Tuple[int, ...], dtype: Any) -> Dict[str, Any]:
    """What the beginning of a .npy file says of an array in C order."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    return {"descr": descr, "fortran_order": False, "shape": shape}


def save_npy(path: Path, array: NDArray[Any]) -> Record:
    """An array to a .npy file."""
    with HashedFile(path) as file:
        np.lib.format.write_array_header_1_0(file, npy_header(array.shape, array.dtype))
        file.write(array)
    return file.record


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns what the operating system refuses into an error that says how to go on."""
    try:
        yield
    except BessError:
        raise
    except OSError as error:
        what = FULL.get(error.errno or 0, str(error))
        raise PreparationError(
            f"{folder}: {what}; nothing in it is used before it is complete. Mend that and go on"
            " with resume=True (--resume), or remove the folder"
        ) from error
