"""Files of torch.save that hold NumPy arrays, read without torch and without trusting them.

The idea: a pickle is a program that names the functions it calls. Here it can only name the few
below, and these are not NumPy's own but stand-ins that note what they were called with; arrays are
made from the notes once the pickle has ended. Any other name is refused before it is looked up.

======== =========================================================================================
zip      since torch 1.6: an archive with one ``*/data.pkl``, whose checksum is compared
stream   before, or with ``_use_new_zipfile_serialization=False``: five pickles one after the other:
         magic number, version, sizes of the system, the object, keys of tensors (none)
======== =========================================================================================
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from typing import IO, Any, Dict, Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.errors import DataError, DatasetNotFoundError

__all__ = ["read"]

MAGIC = 0x1950A86A20F9469CFC6C
DTYPE = re.compile(r"(b1|[iu][1248]|f[248]|[SU][0-9]+|O[48])$")
CHUNK = 2**20


class _Refused(Exception):
    """The file wants something that is not on the list; the message names it."""


def read(path: str) -> Any:
    """The object in a file of torch.save: dicts, lists, strings, numbers and NumPy arrays.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: it is damaged, or holds anything else.
    """
    if not os.path.isfile(path):
        raise DatasetNotFoundError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _finished(_read_zip(file) if is_zip else _read_stream(file))
    except _Refused as error:
        raise DataError(
            f"{path}: refused, it holds {error}; expected what torch.save makes of dicts, lists,"
            " strings, numbers and NumPy arrays. Other pickles can run code and are never loaded"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise any
        raise DataError(
            f"{path}: not a file of torch.save, or damaged or cut short ({error}); copy or download"
            " it again"
        ) from error


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if re.match("[^/]+/data.pkl$", name))
        with archive.open(name) as member:
            loaded = _Unpickler(member).load()
            while member.read(CHUNK):  # the checksum is compared at the end of the member
                pass
    return loaded


def _read_stream(file: IO[bytes]) -> Any:
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("the magic number is missing")
    version, system, loaded, tensors = (_Unpickler(file).load() for _ in range(4))
    if tensors:
        raise _Refused("torch tensors")
    return loaded


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise _Refused(f"{module}.{name}")
        return GLOBALS[module, name]

    def persistent_load(self, key: Any) -> Any:
        raise _Refused("a torch tensor")


# -- what a pickle may call ------------------------------------------------------------------------


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str, *options: Any) -> None:
        if not DTYPE.match(code):
            raise _Refused(f"an array of dtype {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise _Refused(f"an array of byte order {state[1]!r}")
        self.order = state[1]

    def finished(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands in for the function that makes an empty array, and for the array."""

    def __init__(self, kind: str, shape: Tuple[int, ...], code: bytes) -> None:
        self.state: Tuple[Any, ...] = ()

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        self.state = state

    def finished(self) -> NDArray[Any]:
        version, shape, dtype, is_fortran, content = self.state
        if dtype.code[0] == "O":  # its elements went through the same pickle
            flat = np.empty(len(content), object)
            flat[:] = content
        else:
            flat = np.frombuffer(content, dtype.finished())
        return flat.reshape(shape, order="F" if is_fortran else "C")


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    """Stands in for the function that makes a NumPy number or string; makes Python's."""
    if dtype.code[0] == "O":
        raise _Refused("a NumPy scalar that is an object")
    return np.frombuffer(content, dtype.finished())[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which pickles of protocol 2 write bytes."""
    if encoding != "latin1":
        raise _Refused(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands in for bytes, by which pickles of protocol 2 write empty ones."""
    return b""


GLOBALS: Dict[Tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # NumPy 2
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
}


def _finished(value: Any) -> Any:
    """The value, with arrays in place of their stand-ins; those in lists have no use here."""
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    return value.finished() if isinstance(value, _Array) else value
