"""A safetensors file that is written row by row, so that it may be larger than the memory.

The format: 8 bytes with the length of the header, a JSON header with the place of each tensor,
then the tensors, one after the other. Once the header stands, each row has its place in the file,
and rows can come in any order.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Name in the format, and bytes.
DTYPES = {
    torch.float64: ("F64", 8), torch.float32: ("F32", 4), torch.float16: ("F16", 2),
    torch.bfloat16: ("BF16", 2), torch.int64: ("I64", 8),
}  # fmt: skip

#: Shape and type of a tensor.
Kind = Tuple[Tuple[int, ...], torch.dtype]


class TensorFile:
    """A safetensors file with room for tensors.

    Args:
        path: of the file, which is replaced.
        kinds: name to shape and dtype of each tensor; none is empty.
        metadata: what else the header says; text by name.

    Raises:
        OSError: the disk has no room for it.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Kind], metadata: Mapping[str, str]) -> None:
        header: Dict[str, Any] = {"__metadata__": dict(metadata)}
        # The widest numbers first, so that all are aligned.
        names = sorted(kinds, key=lambda name: (-DTYPES[kinds[name][1]][1], name))
        shapes, end = {}, 0
        for name in names:
            shape, dtype = kinds[name]
            kind, n_byte = DTYPES[dtype]
            start, end = end, end + math.prod(shape) * n_byte
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
            n_row = shape[0] if shape else 1
            shapes[name] = (start, end, n_row, (end - start) // n_row)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, later a signal
                os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
        self._file = np.memmap(path, dtype=np.uint8, mode="r+")
        tensors = self._file[8 + len(text) :]
        self._rows = {
            name: tensors[start:end].reshape(n_row, n_byte)
            for name, (start, end, n_row, n_byte) in shapes.items()
        }

    def put(self, name: str, values: Tensor, rows: Optional[NDArray[np.integer]] = None) -> None:
        """Write a tensor, or some rows of it.

        Args:
            name: of the tensor.
            values: all of it, or (K, ...) of its dtype.
            rows: (K,), where they belong; None: values are all there is.
        """
        to = self._rows[name]
        raw = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        to[slice(None) if rows is None else rows] = raw.reshape(-1, to.shape[1])

    def close(self) -> None:
        """Have everything in the file."""
        self._file.flush()
        self._rows.clear()
        del self._file
