"""Python face of the native operations: one file each, with a plain-torch reference.

The reference defines the meaning of an operation, and serves it wherever no native kernel does.
"""

from __future__ import annotations

from besskge_core.ops.count_better import count_better
from besskge_core.ops.gather import gather
from besskge_core.ops.huge_pages import prefer_huge_pages
from besskge_core.ops.indexed import indexed
from besskge_core.ops.pairwise import pairwise
from besskge_core.ops.rounding import Rounding
from besskge_core.ops.rows import RowPlan, plan_rows, sparse_rows, sum_rows
from besskge_core.ops.rules import Rule
from besskge_core.ops.sample import take_columns
from besskge_core.ops.sampled_loss import LossRule, Pairing, sampled_loss
from besskge_core.ops.scatter_update import scatter_update

__all__ = [
    "LossRule", "Pairing", "Rounding", "RowPlan", "Rule", "count_better", "gather", "indexed",
    "pairwise", "plan_rows", "prefer_huge_pages", "sampled_loss", "scatter_update", "sparse_rows",
    "sum_rows", "take_columns",
]  # fmt: skip
