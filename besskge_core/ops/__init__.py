"""Python face of the native operations: one file each, with a plain-torch reference.

The reference defines the meaning of an operation, and serves it wherever no native kernel does.
"""

from __future__ import annotations

from besskge_core.ops.gather import gather
from besskge_core.ops.rank_counts import Filter, rank_counts
from besskge_core.ops.rows import RowPlan, plan_rows, sparse_rows, sum_rows
from besskge_core.ops.softmax_tiles import Logits, Slope, softmax_gradient, softmax_log_sum
from besskge_core.ops.tile_products import (
    Scored,
    buffer,
    inner_products,
    softmax_gradients,
    softmax_scores,
)

__all__ = [
    "Filter",
    "Logits",
    "RowPlan",
    "Scored",
    "Slope",
    "buffer",
    "gather",
    "inner_products",
    "plan_rows",
    "rank_counts",
    "softmax_gradient",
    "softmax_gradients",
    "softmax_log_sum",
    "softmax_scores",
    "sparse_rows",
    "sum_rows",
]
