"""Python face of the native operations: one file each, with a plain-torch reference.

The reference defines the meaning of an operation, and serves it wherever no native kernel does.
"""

from __future__ import annotations

from besskge_core.ops.best_k import best_k
from besskge_core.ops.gather import gather
from besskge_core.ops.huge_pages import prefer_huge_pages
from besskge_core.ops.indexed import indexed
from besskge_core.ops.pairwise import pairwise
from besskge_core.ops.rank_counts import Filter, rank_counts
from besskge_core.ops.rounding import Rounding
from besskge_core.ops.rows import RowPlan, plan_rows, sparse_rows, sum_rows
from besskge_core.ops.rules import Rule
from besskge_core.ops.sample import take_columns
from besskge_core.ops.sampled_loss import LossRule, Pairing, sampled_loss
from besskge_core.ops.scatter_update import scatter_update
from besskge_core.ops.softmax_tiles import Logits, Slope, softmax_gradient, softmax_log_sum
from besskge_core.ops.tile_products import (
    Scored,
    buffer,
    inner_products,
    softmax_gradients,
    softmax_scores,
)

__all__ = [
    "Filter", "Logits", "LossRule", "Pairing", "Rounding", "RowPlan", "Rule", "Scored", "Slope",
    "best_k", "buffer", "gather", "indexed", "inner_products", "pairwise", "plan_rows",
    "prefer_huge_pages", "rank_counts", "sampled_loss", "scatter_update", "softmax_gradient",
    "softmax_gradients", "softmax_log_sum", "softmax_scores", "sparse_rows", "sum_rows", "take_columns",
]  # fmt: skip
