"""Memory of this process: how it is given back, and how much there is.

A step makes and frees buffers as large as a table. The C library's allocator hands each back to
the system, which must clear its pages again for the next step: that costs more than what is
computed in them.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Callable

import torch

#: Bytes that a score may take on its way to a gradient: 13 measured with cross-entropy, 50 with NSSA,
#: 100 with the focal loss.
BYTES_PER_SCORE = 100

# Numbers of mallopt(3) in glibc.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next buffer; of the whole process, until it ends.

    The process then stays as large as it has been.

    Returns:
        Whether this C library does so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**26}
    return all(bool(mallopt(name, value)) for name, value in settings.items())


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):  # which counts what the page cache would give back
                limits[0] = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return max(min(limits), 0)


def largest_that_fits(most: int, probe: Callable[[int], None], device: torch.device) -> int:
    """The largest number of scores to hold at a time, halving from `most`, with which a step runs.

    A CPU's memory is looked at first: there, who asks for too much may be killed, not refused.

    Args:
        most: more are of no use.
        probe: runs a step with so many.
        device: where it runs.

    Raises:
        MemoryError: not even one fits.
    """
    n = max(most, 1)
    if device.type == "cpu":
        n = max(min(n, available_memory(device) // (2 * BYTES_PER_SCORE)), 1)
    while True:
        try:
            probe(n)
            return n
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if n == 1:
                raise MemoryError("not even one score at a time fits into memory") from error
        n //= 2


def _is_out_of_memory(error: BaseException) -> bool:
    out = getattr(torch.cuda, "OutOfMemoryError", MemoryError)
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, (MemoryError, out)) or any(x in str(error).lower() for x in words)
