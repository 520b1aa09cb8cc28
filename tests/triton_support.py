"""Kernels in Triton's interpreter (see `conftest.py`), or compiled where there is a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from besskge_core.ops.gpu.language import HAS_TRITON, triton

if not HAS_TRITON:
    pytest.skip("Triton is not installed, or too old", allow_module_level=True)

from triton.runtime import interpreter

#: Where kernels run in these tests.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

_patch_tensor = interpreter._patch_lang_tensor


def _count_with_new_numpy(tensor, scope):
    # Triton 3.6 takes an array of one number for an index, which NumPy 2.4 refuses.
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _count_with_new_numpy

_run_grid, _call = interpreter.GridExecutor.__call__, interpreter.InterpretedFunction.__call__
_ready = set()


def _call_within_kernel(self, *arguments, **options):
    # Triton 3.6 makes its language ready for each call, most of whose time that is; here for the
    # first one of a module in a launch.
    if self.fn.__module__ in _ready:
        return self.rewrite()(*arguments, **options)
    _ready.add(self.fn.__module__)
    return _call(self, *arguments, **options)


def _run_without_warnings(self, *arguments, **options):
    _ready.clear()
    with np.errstate(all="ignore"):  # a GPU tells nobody of an overflow
        return _run_grid(self, *arguments, **options)


interpreter.GridExecutor.__call__ = _run_without_warnings
interpreter.InterpretedFunction.__call__ = _call_within_kernel

_create_dot = interpreter.InterpreterBuilder.create_dot


def _as_float(x):
    if x.dtype.scalar != triton.language.bfloat16:
        return x
    bits = x.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), triton.language.float32)


def _dot_of_halves(self, a, b, *arguments):
    # Triton 3.6 multiplies the bits of bfloat16 as if they were integers.
    return _create_dot(self, _as_float(a), _as_float(b), *arguments)


interpreter.InterpreterBuilder.create_dot = _dot_of_halves

_convert_float = interpreter._convert_float


def _convert_to_nearest(x, source, target, rounding):
    # Triton 3.6 cuts off what a GPU rounds to the nearest.
    if (source, target) != (triton.language.float32, triton.language.bfloat16):
        return _convert_float(x, source, target, rounding)
    bits = np.asarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


interpreter._convert_float = _convert_to_nearest
