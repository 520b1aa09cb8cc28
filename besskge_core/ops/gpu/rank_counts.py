"""How many candidates score better than an answer, and how many the same: one read of the scores.

Axes:
    Q: queries      T: candidates of a tile      A: answers      K: candidates that are filtered
    S: parts of the candidates, whose counts are added
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, power_of_two, tl, triton
from besskge_core.ops.gpu.pairwise import n_parts

#: Candidates that a program compares at a time.
BLOCK_T = 1024


@jit
def rank_kernel(
    scores, answer_score, row, filter_start, filter_column, counts, n_answer, n_column, n_part,
    first, row_stride, column_stride, BLOCK_T: constexpr,
):  # fmt: skip
    """Counts of a part of the candidates, into int64 (S, 2, A). Grid: answers, parts."""
    answer, part = tl.program_id(0), tl.program_id(1)
    query = tl.load(row + answer).to(tl.int64)
    # Halves are compared as floats, which every processor does alike.
    WIDE: constexpr = tl.float64 if scores.dtype.element_ty == tl.float64 else tl.float32
    truth = tl.load(answer_score + answer).to(WIDE)
    of_query = scores + query * row_stride
    better, equal = tl.zeros([BLOCK_T], tl.int32), tl.zeros([BLOCK_T], tl.int32)
    end = tl.minimum((part + 1) * n_part, n_column)
    for start in range(part * n_part, end, BLOCK_T):
        column = start + tl.arange(0, BLOCK_T)
        inside = column < end
        found = tl.load(of_query + column.to(tl.int64) * column_stride, mask=inside, other=0.0).to(
            WIDE
        )
        better += (inside & (found > truth)).to(tl.int32)
        equal += (inside & (found == truth)).to(tl.int32)
    last = tl.load(filter_start + query + 1)
    for start in range(tl.load(filter_start + query), last, BLOCK_T):
        at = start + tl.arange(0, BLOCK_T)
        column = tl.load(filter_column + at, mask=at < last, other=0) - first
        inside = (at < last) & (column >= part * n_part) & (column < end)
        found = tl.load(of_query + column * column_stride, mask=inside, other=0.0).to(WIDE)
        better -= (inside & (found > truth)).to(tl.int32)
        equal -= (inside & (found == truth)).to(tl.int32)
    out = counts + part.to(tl.int64) * 2 * n_answer + answer
    tl.store(out, tl.sum(better, 0).to(tl.int64))
    tl.store(out + n_answer, tl.sum(equal, 0).to(tl.int64))


def rank_counts(
    scores: Tensor,
    answer_score: Tensor,
    row: Tensor,
    filter_start: Tensor,
    filter_column: Tensor,
    first: int,
) -> Tuple[Tensor, Tensor]:
    """better (A,), equal (A,); see the operation's Python face."""
    n_answer, n_column = len(row), scores.shape[1]
    n_part = min(n_parts(n_answer, n_column), triton.cdiv(n_column, BLOCK_T)) or 1
    counts = torch.zeros((n_part, 2, n_answer), dtype=torch.int64, device=scores.device)
    if counts.numel() and n_column:
        rank_kernel[(n_answer, n_part)](
            scores, answer_score.contiguous(), row.contiguous(), filter_start.contiguous(),
            filter_column.contiguous(), counts, n_answer, n_column, triton.cdiv(n_column, n_part),
            first, *scores.stride(), BLOCK_T=min(power_of_two(n_column), BLOCK_T), num_warps=4,
        )  # fmt: skip
    return counts[:, 0].sum(0), counts[:, 1].sum(0)
