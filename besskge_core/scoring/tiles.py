"""Broadcast scores of shared candidates, a tile of candidates at a time.

A formula that broadcasts holds a row for each score, B x N x D. Here it holds that of one tile, in
the forward pass and, by computing the tile again, in the backward pass.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from besskge_core.ops.tracing import is_traced

#: Numbers held by a tile: 16 MiB in float32.
TILE_SIZE = 2**22


def in_tiles(score: Callable[[Tensor], Tensor], e: Tensor, held: int) -> Tensor:
    """Scores of candidates by a function that broadcasts.

    Args:
        score: e (T, D) -> (B, T), of which each column depends on its row alone.
        e: (N, D).
        held: numbers that `score` holds for one candidate, B D or more.

    Returns:
        (B, N).
    """
    height = max(TILE_SIZE // max(held, 1), 1)
    if e.shape[0] <= height:
        return score(e)
    tiles = e.split(height)
    if is_traced() or not torch.is_grad_enabled():  # a compiler decides what it computes again
        return torch.cat([score(tile) for tile in tiles], dim=-1)
    return torch.cat([checkpoint(score, tile, use_reentrant=False) for tile in tiles], dim=-1)
