"""Inner products of queries with all rows of a table, and the softmax over them.

Natively a thread takes a tile of rows at a time: it multiplies, and goes on with what is still in
its cache. Scores that are not kept are computed again for the gradient.

Axes:
    Q: queries      M: rows of a table      D: width of a row      K: places of labels
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Sequence, Tuple, Union

import torch
from torch import Tensor

from besskge_core.ops import native
from besskge_core.ops.native import register_fake
from besskge_core.ops.softmax_tiles import Logits, Slope, gradient_reference, log_sum_reference
from besskge_core.shapes import match_shapes

#: The most rows of a tile of the native operations.
TILE = 1024


class Scored(NamedTuple):
    """Queries scored with all rows.

    Attributes:
        scores: for :func:`softmax_gradients` alone, which uses them up.
        log_sum: (Q,), log-sum-exp of the logits.
        own: (K,), the logits at the labels.
    """

    scores: Tensor
    log_sum: Tensor
    own: Tensor


def buffer(sizes: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of any contents, in the dtype of another; its memory is kept for the next, if native."""
    if native.serves("buffer", like, like.dtype):
        made: Tensor = torch.ops.besskge.buffer(list(sizes), like.dtype)
        return made
    return like.new_empty(tuple(sizes))


def inner_products(query: Tensor, rows: Tensor) -> Tensor:
    """(Q, D), (M, D) -> (Q, M), without a gradient.

    Raises:
        ShapeError: on other shapes.
    """
    match_shapes(query=(query, "Q D"), rows=(rows, "M D"))
    query, rows = query.detach(), rows.detach()
    if native.serves("inner_products", query, query.dtype):
        out: Tensor = torch.ops.besskge.inner_products(query, rows)
        return out
    return query @ rows.T


def softmax_scores(
    query: Tensor, rows: Tensor, logits: Logits, dtype: torch.dtype, keep: bool, tile: int = TILE
) -> Scored:
    """Score queries with all rows by inner products.

    Args:
        query: (Q, D), floating.
        rows: (M, D), of the same dtype.
        logits: what the scores (Q, M) stand for.
        dtype: of the products and the scores; sums are float32, or float64 if the query is.
        keep: whether the scores are kept for the gradient.
        tile: rows scored at a time, at most.

    Raises:
        ShapeError: on other shapes.
    """
    _check(query, rows, logits)
    query, rows = query.detach(), rows.detach()
    if _native(query, logits, dtype):
        return Scored(
            *torch.ops.besskge.softmax_scores(
                query, rows, logits.excluded, logits.row, logits.column, logits.margin,
                logits.temperature, dtype, keep, tile,
            )
        )  # fmt: skip
    return scores_reference(query, rows, logits, dtype, keep, tile)


def scores_reference(
    query: Tensor, rows: Tensor, logits: Logits, dtype: torch.dtype, keep: bool, tile: int = TILE
) -> Scored:
    """The meaning of :func:`softmax_scores`, in plain torch."""
    q = query.to(dtype)
    if keep:
        scores = q @ rows.to(dtype).T
        return Scored(scores, *log_sum_reference(scores, logits))
    wide = torch.promote_types(dtype, torch.float32)
    log_sum = torch.full((len(q),), -torch.inf, dtype=wide, device=q.device)
    own = torch.empty(len(logits.row), dtype=wide, device=q.device)
    for columns, inside, here in _tiles(logits, len(rows), tile):
        part, of_tile = log_sum_reference(q @ rows[columns].to(dtype).T, here)
        log_sum, own[inside] = torch.logaddexp(log_sum, part), of_tile
    return Scored(q.new_empty(0), log_sum, own)


def softmax_gradients(
    scored: Scored,
    query: Tensor,
    rows: Tensor,
    logits: Logits,
    slope: Slope,
    dtype: torch.dtype,
    grad_query: Tensor,
    grad_rows: Tensor,
    add: bool,
    tile: int = TILE,
) -> None:
    """The gradients of queries and rows, of the dtype of theirs; uses up the scores.

    Args:
        scored: what :func:`softmax_scores` found.
        query, rows, logits, dtype, tile: what it was given.
        slope: the gradient of the scores; of the dtype of `scored.log_sum`.
        grad_query: (Q, D), changed.
        grad_rows: (M, D), changed, contiguous.
        add: add to `grad_rows` what else would replace its contents.

    Raises:
        ShapeError: on other shapes.
    """
    _check(query, rows, logits)
    match_shapes(query=(query, "Q D"), grad_query=(grad_query, "Q D"), log_total=(slope.log_total, "Q"))  # fmt: skip
    match_shapes(rows=(rows, "M D"), grad_rows=(grad_rows, "M D"))
    if _native(query, logits, dtype):
        torch.ops.besskge.softmax_gradients(
            scored.scores, query.detach(), rows.detach(), logits.excluded, logits.row,
            logits.column, *slope, logits.margin, logits.temperature, dtype, grad_query,
            grad_rows, add, tile,
        )  # fmt: skip
        return
    q = query.detach().to(dtype)
    grad_query.zero_()
    for columns, inside, here in _tiles(logits, len(rows), tile):
        part = rows.detach()[columns].to(dtype)
        scores = scored.scores[:, columns] if scored.scores.numel() else q @ part.T
        grad = gradient_reference(scores, here, slope._replace(of_label=slope.of_label[inside]))
        grad_query += (grad @ part).to(grad_query.dtype)
        of_rows = (grad.T @ q).to(grad_rows.dtype)
        grad_rows[columns] = grad_rows[columns] + of_rows if add else of_rows


def _tiles(
    logits: Logits, n_row: int, height: int
) -> Iterator[Tuple[slice, Union[slice, Tensor], Logits]]:
    """Rows of a tile, which of the labels (K,) are of it, and its logits."""
    if n_row <= height:  # all are, and nobody need count them
        yield slice(0, n_row), slice(None), logits
        return
    for begin in range(0, n_row, height):
        tile = slice(begin, begin + height)
        inside = (logits.column >= begin) & (logits.column < begin + height)
        excluded = None if logits.excluded is None else logits.excluded[tile]
        here = logits._replace(
            row=logits.row[inside], column=logits.column[inside] - begin, excluded=excluded
        )
        yield tile, inside, here


def _native(query: Tensor, logits: Logits, dtype: torch.dtype) -> bool:
    if query.is_cuda and logits.margin:  # is of scores at labels, which its kernels do not store
        return False
    is_native = native.serves("softmax_scores", query, torch.float32)
    return is_native and dtype in (torch.float32, torch.bfloat16)


def _check(query: Tensor, rows: Tensor, logits: Logits) -> None:
    match_shapes(query=(query, "Q D"), rows=(rows, "M D"))
    match_shapes(row=(logits.row, "K"), column=(logits.column, "K"))
    if logits.excluded is not None:
        match_shapes(rows=(rows, "M D"), excluded=(logits.excluded, "M"))


@register_fake("buffer")
def _(sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(sizes), dtype=dtype)


@register_fake("inner_products")
def _(query: Tensor, rows: Tensor) -> Tensor:
    return query.new_empty((query.shape[0], rows.shape[0]))


@register_fake("softmax_scores")
def _(
    query: Tensor,
    rows: Tensor,
    excluded: object,
    label_row: Tensor,
    label_column: Tensor,
    margin: float,
    temperature: float,
    dtype: torch.dtype,
    keep: bool,
    tile: int,
) -> Tuple[Tensor, Tensor, Tensor]:
    if query.is_cuda:
        from besskge_core.ops.gpu.tile_products import recomputes  # needs Triton

        kept = keep and not recomputes(query.shape[1], dtype)
        return (
            query.new_empty((len(query), len(rows)) if kept else (0,), dtype=dtype),
            query.new_empty((len(query),)),
            query.new_empty((len(label_row),)),
        )
    height = min(tile, TILE)
    n_tile = (rows.shape[0] + height - 1) // height if keep else 0
    return (
        query.new_empty((n_tile, query.shape[0], height), dtype=dtype),
        query.new_empty((query.shape[0],)),
        query.new_empty((label_row.shape[0],)),
    )


@register_fake("softmax_gradients")
def _(*arguments: object) -> None:
    return None
