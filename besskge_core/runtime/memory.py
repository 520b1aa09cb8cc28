"""Memory of this process: how it is given back, and how much there is.

A step makes and frees buffers as large as a table. The C library's allocator hands each back to
the system, which must clear its pages again for the next step: that costs more than what is
computed in them.
"""

from __future__ import annotations

import ctypes
import os

import torch

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
    return all([bool(mallopt(name, value)) for name, value in settings.items()])


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
