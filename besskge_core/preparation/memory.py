"""Memory that is given back as soon as it is free, so that the peak is what is in use."""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import Callable, Iterator

import pyarrow as pa

__all__ = ["given_back"]

SECONDS = 0.2  # between two times that memory is given back, whose pages must be cleared again


@contextlib.contextmanager
def given_back() -> Iterator[Callable[[], None]]:
    """Have Arrow allocate from the C library, and ask that to give back what is free.

    Arrow's own pool keeps what is freed for the thread that had it, and pieces wander between
    threads.

    Yields:
        what to call now and then.
    """
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        trim = int
    last = 0.0

    def give_back() -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS:
            trim(0)
            last = time.monotonic()

    pool = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield give_back
    finally:
        pa.set_memory_pool(pool)
