"""What tests of native comparisons share: rows without rounding errors, instruction sets, threads."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from besskge_core.ops.native import NATIVE
from besskge_core.ops.pairwise import COMPARISONS

SETS = ["baseline", "avx2", "avx512"]
native = pytest.mark.skipif(not NATIVE, reason="the native operations are not built")


def rows(n, width, seed=0):
    """(n, width) of eighths in [-4, 4]: products and differences of such have no rounding error, so
    that in float32 each has the sign that it has in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-32, 33, (n, width), generator=generator) / 8.0


def width_of(comparison, half):
    """Complex entries have two parts."""
    return 2 * half if comparison == "modulus" else half


def value_and_gradients(fn, leaves, slopes=None):
    """fn() and its gradients with respect to these leaves, dense; rows that are not there are refused."""
    value = fn()
    slopes = None if slopes is None else slopes.to(value.dtype)
    grads = torch.autograd.grad(value, leaves, slopes, allow_unused=True)
    return [
        value.detach(),
        *(x if x is None or not x.is_sparse else checked_dense(x) for x in grads),
    ]


def checked_dense(x):
    entries = x._indices(), x._values()
    return torch.sparse_coo_tensor(*entries, x.shape, check_invariants=True).to_dense()


def leaves_of(tensors, dtype):
    return [None if x is None else x.detach().to(dtype).requires_grad_() for x in tensors]


def same_bits(a, b):
    assert len(a) == len(b)
    return all(x is y or torch.equal(x, y) for x, y in zip(a, b))


@contextmanager
def instruction_set(name):
    """Compute with the instructions `name`, or skip the test where the processor has none such."""
    choose = torch.ops.besskge.instruction_set
    if SETS.index(name) > SETS.index(choose("widest")):
        pytest.skip(f"this processor has no {name}")
    try:
        assert choose(name) == name
        yield
    finally:
        choose("widest")


def by_threads(fn):
    """What fn() gives with 1, 2 and 4 threads."""
    before, found = torch.get_num_threads(), []
    try:
        for n_thread in (1, 2, 4):
            torch.set_num_threads(n_thread)
            found.append(fn())
    finally:
        torch.set_num_threads(before)
    return found


__all__ = [
    "COMPARISONS", "SETS", "by_threads", "instruction_set", "leaves_of", "native", "rows",
    "same_bits", "value_and_gradients", "width_of",
]  # fmt: skip
