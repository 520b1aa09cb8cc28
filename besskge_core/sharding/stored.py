"""Arrays in a file, NumPy's npz; no pickle is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, TypeVar, Union

import numpy as np

from besskge_core.errors import DataError

T = TypeVar("T")


def save_arrays(path: Union[str, Path], arrays: Mapping[str, Any]) -> None:
    """Write arrays by name, but for those that are None."""
    with open(path, "wb") as file:  # given a path, NumPy appends .npz to some
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})


def load_arrays(path: Union[str, Path], what: str, make: Callable[[Dict[str, Any]], T]) -> T:
    """What `make` makes of the arrays.

    Raises:
        DataError: the file is damaged, or something else.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as stored:
                return make({name: stored[name] for name in stored.files})
        except Exception as error:
            raise DataError(
                f"{path}: not a stored {what} ({error}); write it again with save()"
            ) from error
