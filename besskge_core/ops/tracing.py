"""Whether a step is being traced for another device, whose compiler makes the gradients.

While it is, operations are plain torch that PopTorch can lower, or those of a library that the
compiler has: no native kernels of a CPU, no sparse gradients, no `torch.autograd.Function`, whose
backward pass a tracer does not see.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator, Optional, Protocol

from torch import Tensor


class DeviceLibrary(Protocol):
    """Operations of a device besides torch's; None where it has none for this."""

    def gather(self, table: Tensor, index: Tensor) -> Optional[Tensor]:
        """table (E, D), index (K,) -> (K, D)"""

    def pairwise(self, q: Tensor, e: Tensor, comparison: str) -> Optional[Tensor]:
        """q (B, D), e (N, D) -> (B, N); see :func:`besskge_core.ops.pairwise`."""


class PlainTorch:
    """A device that has nothing besides torch's operators."""

    def gather(self, table: Tensor, index: Tensor) -> Optional[Tensor]:
        return None

    def pairwise(self, q: Tensor, e: Tensor, comparison: str) -> Optional[Tensor]:
        return None


_TRACED: ContextVar[Optional[DeviceLibrary]] = ContextVar("traced", default=None)


@contextmanager
def tracing(library: Optional[DeviceLibrary] = None) -> Iterator[None]:
    """While this lasts, :func:`is_traced` is true; in this thread alone."""
    token = _TRACED.set(library or PlainTorch())
    try:
        yield
    finally:
        _TRACED.reset(token)


def is_traced() -> bool:
    """Whether a step is being traced."""
    return _TRACED.get() is not None


def device_library() -> DeviceLibrary:
    """Of the device that a step is being traced for; without one, nothing but torch."""
    return _TRACED.get() or PlainTorch()


def as_index(x: Tensor) -> Tensor:
    """Whole numbers as torch gathers by them, int64; IPUs have int32 alone, and keep what comes."""
    return x if is_traced() else x.long()
