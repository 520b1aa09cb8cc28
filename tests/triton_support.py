"""Kernels in Triton's interpreter (see `conftest.py`), or compiled where there is a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime import interpreter

#: Where kernels run in these tests.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

_patch_tensor = interpreter._patch_lang_tensor


def _count_with_new_numpy(tensor, scope):
    # Triton 3.6 takes an array of one number for an index, which NumPy 2.4 refuses.
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _count_with_new_numpy

_run_grid = interpreter.GridExecutor.__call__


def _run_without_warnings(self, *arguments, **options):
    with np.errstate(all="ignore"):  # a GPU tells nobody of an overflow
        return _run_grid(self, *arguments, **options)


interpreter.GridExecutor.__call__ = _run_without_warnings
