"""Ask for large tables to lie on huge pages, so that random rows miss the translation cache less."""

from __future__ import annotations

import torch
from torch import Tensor

from besskge_core.ops.native import NATIVE, register_fake

#: Bytes from which on a table is large.
LARGE = 2**23


def prefer_huge_pages(x: Tensor) -> None:
    """Ask the system, which may not have them; values stay as they are.

    Memory that has been written is moved once, a second or so for a gigabyte; ask before where it
    is possible.
    """
    if NATIVE and x.is_cpu and x.numel() * x.element_size() >= LARGE:
        torch.ops.besskge.prefer_huge_pages(x.detach())


@register_fake("prefer_huge_pages")
def _(x: Tensor) -> None:
    return None
