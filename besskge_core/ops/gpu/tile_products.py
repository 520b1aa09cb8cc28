"""Inner products of queries with all rows of a table, and the softmax over them.

Narrow rows are scored three times, and no score is ever stored: for the log-sum-exp, for the
gradient of the queries, and for that of the rows. To store and read the scores of wide rows takes
less time than to compute them again, and so it does without tensor cores, in true float32: then
there is a tile at a time, or all of them if they are kept.

Labels are few. What they add to a gradient is added to it at the end, sorted, in one order.

Axes:
    Q: queries      M: rows of a table      D: width of a row      K: places of labels
    S: parts of the rows, summed at the end
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.ops.gpu.language import constexpr, jit, n_warps, power_of_two, tl, triton
from besskge_core.ops.gpu.pairwise import n_parts
from besskge_core.ops.gpu.segments import column_block
from besskge_core.ops.gpu.softmax_tiles import share_of, softmax_gradient, softmax_log_sum

#: Rows of so many bytes at most are scored again: tiles of wider ones do not fit into a
#: multiprocessor of a GPU.
NARROW = 512

#: Rows of a program, and of the other side that it reads at a time.
TILE_OWN, TILE_OTHER = 128, 64

#: Warps of a program.
WARPS = 8


@jit
def rows_of(x, row, n_row, D: constexpr):
    """Rows (len(row), D) of a matrix (n_row, D), 0 where there are none."""
    at = row.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    return tl.load(x + at, mask=(row < n_row)[:, None], other=0.0)


@jit
def products(a, b, temperature):
    """Inner products (len(a), len(b)) of rows, divided by the temperature."""
    return tl.dot(a, tl.trans(b), input_precision="tf32") / temperature


@jit
def takes_part(m, n_row, excluded, EXCLUDES: constexpr):
    """Which of the rows m there are, and are not excluded."""
    is_row = m < n_row
    if EXCLUDES:
        is_row = is_row & (tl.load(excluded + m, mask=is_row, other=1) == 0)
    return is_row


@jit
def products_log_sum_kernel(
    query, rows, excluded, log_sum, n_query, n_row, n_part, temperature,
    EXCLUDES: constexpr, BLOCK_Q: constexpr, BLOCK_M: constexpr,
    D: constexpr,
):  # fmt: skip
    """Log-sum-exp of the logits with a part of the rows, into (S, Q). Grid: queries, parts."""
    i, part = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.program_id(1)
    q = rows_of(query, i, n_query, D)
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    for first in range(part * n_part, tl.minimum((part + 1) * n_part, n_row), BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        e = rows_of(rows, m, n_row, D)
        is_row = takes_part(m, n_row, excluded, EXCLUDES)
        logit = tl.where(is_row[None, :], products(q, e, temperature), float("-inf"))
        higher = tl.maximum(highest, tl.max(logit, 1), propagate_nan=tl.PropagateNan.ALL)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(logit - base[:, None]), 1)
        highest = higher
    base = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(log_sum + part.to(tl.int64) * n_query + i, base + tl.log(total), mask=i < n_query)


@jit
def query_products_kernel(
    query, rows, excluded, log_total, weight, out, n_query, n_row, width, n_part, temperature,
    EXCLUDES: constexpr, BLOCK_Q: constexpr, BLOCK_M: constexpr,
    D: constexpr,
):  # fmt: skip
    """Gradients of queries from a part of the rows, into (S, Q, D). Grid: queries, parts."""
    i, part = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.program_id(1)
    d, is_query = tl.arange(0, D), i < n_query
    q = rows_of(query, i, n_query, D)
    of_total = tl.load(log_total + i, mask=is_query, other=0.0)[:, None]
    of_weight = tl.load(weight + i, mask=is_query, other=0.0)[:, None]
    grad = tl.zeros([BLOCK_Q, D], tl.float32)
    for first in range(part * n_part, tl.minimum((part + 1) * n_part, n_row), BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        e = rows_of(rows, m, n_row, D)
        share = share_of(products(q, e, temperature), of_total, of_weight)
        share = tl.where(takes_part(m, n_row, excluded, EXCLUDES)[None, :], share, 0.0).to(e.dtype)
        grad = tl.dot(share, e, grad, input_precision="tf32")
    at = (part.to(tl.int64) * n_query + i)[:, None] * width + d[None, :]
    tl.store(out + at, grad, mask=is_query[:, None] & (d < width)[None, :])


@jit
def row_products_kernel(
    query, rows, excluded, log_total, weight, out, n_query, n_row, width, out_stride, temperature,
    ADD: constexpr, EXCLUDES: constexpr, BLOCK_Q: constexpr,
    BLOCK_M: constexpr, D: constexpr,
):  # fmt: skip
    """Gradients of rows from all queries, in place of or added to (M, D). Grid: rows."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    e = rows_of(rows, m, n_row, D)
    grad = tl.zeros([BLOCK_M, D], tl.float32)
    for first in range(0, n_query, BLOCK_Q):
        i = first + tl.arange(0, BLOCK_Q)
        q = rows_of(query, i, n_query, D)
        of_total = tl.load(log_total + i, mask=i < n_query, other=0.0)[None, :]
        of_weight = tl.load(weight + i, mask=i < n_query, other=0.0)[None, :]
        share = share_of(products(e, q, temperature), of_total, of_weight).to(q.dtype)
        grad = tl.dot(share, q, grad, input_precision="tf32")
    grad = tl.where(takes_part(m, n_row, excluded, EXCLUDES)[:, None], grad, 0.0)
    at = out + m.to(tl.int64)[:, None] * out_stride + d[None, :]
    inside = (m < n_row)[:, None] & (d < width)[None, :]
    if ADD:
        grad += tl.load(at, mask=inside, other=0.0)
    tl.store(at, grad, mask=inside)


@jit
def subtract_kernel(
    out, to, order, source, source_row, factor, n_label, width, out_stride, BLOCK_D: constexpr
):
    """Subtract factor * source[source_row] of the labels of one row of `out` from it.

    to (K,), rising: rows of `out`; order (K,): which label that is. Grid: labels, columns.
    """
    first = tl.program_id(0)
    row = tl.load(to + first)
    before = tl.load(to + first - 1, mask=first > 0, other=-1)
    if before == row:  # the program of the first of these labels does all
        return
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < width
    total = tl.zeros([BLOCK_D], tl.float32)
    k, more = first, True
    while more:
        label = tl.load(order + k)
        at = tl.load(source_row + label).to(tl.int64) * width
        x = tl.load(source + at + d, mask=inside, other=0.0).to(tl.float32)
        total += x * tl.load(factor + label)
        k += 1
        more = tl.load(to + k, mask=k < n_label, other=-1) == row
    target = out + row.to(tl.int64) * out_stride + d
    tl.store(target, tl.load(target, mask=inside, other=0.0) - total, mask=inside)


def _subtract(out: Tensor, to: Tensor, source: Tensor, row: Tensor, factor: Tensor) -> None:
    """out[to[k]] -= factor[k] * source[row[k]], for all k, in one order."""
    if not (len(to) and out.shape[1]):
        return
    width = out.shape[1]
    ordered, order = to.sort(stable=True)
    block = column_block(width)
    subtract_kernel[(len(to), triton.cdiv(width, block))](
        out, ordered, order, source, row, factor, len(to), width, out.stride(0), BLOCK_D=block,
        num_warps=n_warps(block),
    )  # fmt: skip


def recomputes(width: int, dtype: torch.dtype) -> bool:
    """Whether scores are computed again; in float32 tensor cores may be used if torch may use them."""
    has_cores = dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32
    return has_cores and 0 < width * torch.finfo(dtype).bits // 8 <= NARROW


def padded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows as wide as a power of two, by zeros."""
    n = max(power_of_two(x.shape[1]), 16)
    return F.pad(x.to(dtype), (0, n - x.shape[1])).contiguous()


def _form(query: Tensor, excluded: Optional[Tensor], of_rows: bool = False) -> Dict[str, Any]:
    """Options of the kernels of narrow rows, padded ones."""
    return dict(
        EXCLUDES=excluded is not None, BLOCK_Q=TILE_OTHER if of_rows else TILE_OWN,
        BLOCK_M=TILE_OWN if of_rows else TILE_OTHER, D=query.shape[1], num_warps=WARPS,
    )  # fmt: skip


def _mask(excluded: Optional[Tensor], otherwise: Tensor) -> Tensor:
    return otherwise if excluded is None else excluded.contiguous().view(torch.uint8)


def parts_of(n_query: int, n_row: int) -> Tuple[int, int]:
    """Parts of the rows, and rows of a part, whole tiles of them."""
    n_tile = triton.cdiv(n_row, TILE_OTHER)
    n_part = min(n_parts(WARPS * triton.cdiv(n_query, TILE_OWN), n_row), n_tile)
    n_part_row = triton.cdiv(n_tile, n_part) * TILE_OTHER
    return triton.cdiv(n_row, n_part_row), n_part_row


def softmax_scores(
    query: Tensor,
    rows: Tensor,
    excluded: Optional[Tensor],
    label_row: Tensor,
    label_column: Tensor,
    margin: float,
    temperature: float,
    dtype: torch.dtype,
    keep: bool,
    tile: int,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Scores for the gradient, log_sum (Q,), and own (K,); see the operation's Python face.

    Scores of narrow rows are not kept. There is no margin for this device.
    """
    assert margin == 0.0
    n_query, n_row = len(query), len(rows)
    q, e = query.to(dtype), rows.to(dtype)
    again = recomputes(query.shape[1], dtype)
    if keep and not again:
        scores = q @ e.t()
        log_sum, own = softmax_log_sum(scores, excluded, label_row, label_column, 0.0, temperature)
        return scores, log_sum, own
    own = (q[label_row].float() * e[label_column].float()).sum(1) / temperature
    if excluded is not None:
        own = own.masked_fill(excluded[label_column], -torch.inf)
    none, log_sum = q.new_empty(0), own.new_full((n_query,), -torch.inf)
    if not again:
        for columns in _tiles(n_row, tile):
            mask = None if excluded is None else excluded[columns]
            labels = label_row[:0], label_column[:0]
            part, _ = softmax_log_sum(q @ e[columns].t(), mask, *labels, 0.0, temperature)
            log_sum = torch.logaddexp(log_sum, part)
    elif n_query and n_row:
        n_part, n_part_row = parts_of(n_query, n_row)
        found = own.new_empty((n_part, n_query))
        q = padded(query, dtype)
        products_log_sum_kernel[(triton.cdiv(n_query, TILE_OWN), n_part)](
            q, padded(rows, dtype), _mask(excluded, q), found, n_query, n_row, n_part_row,
            temperature, **_form(q, excluded),
        )  # fmt: skip
        log_sum = found[0] if n_part == 1 else found.logsumexp(0)
    return none, log_sum, own


def _tiles(n_row: int, height: int) -> Iterator[slice]:
    return (slice(begin, begin + height) for begin in range(0, n_row, height))


def softmax_gradients(
    scores: Tensor,
    query: Tensor,
    rows: Tensor,
    excluded: Optional[Tensor],
    label_row: Tensor,
    label_column: Tensor,
    log_total: Tensor,
    weight: Tensor,
    of_label: Tensor,
    margin: float,
    temperature: float,
    dtype: torch.dtype,
    grad_query: Tensor,
    grad_rows: Tensor,
    add: bool,
    tile: int,
) -> None:
    """Changes the gradients of queries (Q, D) and rows (M, D); see the operation's Python face."""
    assert margin == 0.0
    q, e = query.to(dtype).contiguous(), rows.to(dtype).contiguous()
    share = log_total.contiguous(), weight.contiguous()
    if len(q) and len(e) and recomputes(q.shape[1], dtype):
        _of_narrow(q, e, excluded, *share, temperature, grad_query, grad_rows, add)
    else:
        grad_query.zero_()
        none, no_label = label_row[:0], of_label[:0]
        for columns in _tiles(len(e), tile):
            part, mask = e[columns], None if excluded is None else excluded[columns]
            found = scores[:, columns] if scores.numel() else q @ part.t()
            grad = softmax_gradient(found, mask, none, none, *share, no_label, 0.0, temperature)
            grad_query += grad @ part
            of_rows = grad.t() @ q
            grad_rows[columns] = grad_rows[columns] + of_rows if add else of_rows
    factor = of_label.contiguous()
    _subtract(grad_query, label_row, e, label_column, factor)
    _subtract(grad_rows, label_column, q, label_row, factor)


def _of_narrow(
    q: Tensor,
    e: Tensor,
    excluded: Optional[Tensor],
    log_total: Tensor,
    weight: Tensor,
    temperature: float,
    grad_query: Tensor,
    grad_rows: Tensor,
    add: bool,
) -> None:
    """Gradients of queries and narrow rows, but for what labels add to them."""
    (n_query, width), n_row = q.shape, len(e)
    n_part, n_part_row = parts_of(n_query, n_row)
    of_query = torch.empty((n_part, n_query, width), dtype=torch.float32, device=q.device)
    wide = padded(q, q.dtype)
    given = wide, padded(e, e.dtype), _mask(excluded, q), log_total, weight
    query_products_kernel[(triton.cdiv(n_query, TILE_OWN), n_part)](
        *given, of_query, n_query, n_row, width, n_part_row, temperature, **_form(wide, excluded)
    )
    grad_query.copy_(of_query[0] if n_part == 1 else of_query.sum(0))
    row_products_kernel[(triton.cdiv(n_row, TILE_OWN),)](
        *given, grad_rows, n_query, n_row, width, grad_rows.stride(0), temperature, ADD=add,
        **_form(wide, excluded, True),
    )  # fmt: skip
