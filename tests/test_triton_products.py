"""The softmax over inner products with all rows, by Triton kernels, is that of all scores at once."""

from __future__ import annotations

import pytest
import torch
from test_softmax_tiles import formula, make_logits, make_slope
from torch.testing import assert_close
from triton_support import DEVICE

from besskge_core.ops import Logits
from besskge_core.ops.gpu import tile_products as module
from besskge_core.ops.gpu.tile_products import softmax_gradients, softmax_scores


@pytest.fixture(autouse=True, params=[True, False], ids=["tensor cores", "true float32"])
def allow_tf32(request):
    """Whether float32 may be rounded for tensor cores; the interpreter does not round."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = before


SHAPES = {  # name -> queries, rows, labels, width
    "some": (5, 70, 9, 6),
    "no queries": (0, 8, 0, 4),
    "no rows": (2, 0, 0, 4),
    "parts": (3, 400, 5, 20),
    "more queries than a tile": (70, 130, 80, 18),
    "wide": (4, 50, 6, 300),
}
TOLERANCE = {torch.float32: dict(rtol=2e-5, atol=5e-6), torch.bfloat16: dict(rtol=2e-2, atol=2e-2)}


def tolerance_of(dtype):
    if DEVICE == "cuda" and dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return dict(rtol=5e-3, atol=5e-3)  # of 10 bits
    return TOLERANCE[dtype]


def make(shape, generator, excluded=False, **options):
    """Queries, rows, and logits of no few scores that count."""
    n_query, n_row, n_label, width = shape
    query = torch.randn(n_query, width, generator=generator) / max(width, 1) ** 0.5
    rows = 2.0 * torch.randn(n_row, width, generator=generator)
    return query, rows, make_logits(n_query, n_row, n_label, generator, excluded, **options)


def found_by_kernels(query, rows, logits, dtype, add, generator, keep=True, tile=1024):
    """log_sum, own, gradients of queries and rows; the slope, and what was added to."""
    given = [x.to(DEVICE) for x in (query, rows)]
    places = [
        x if x is None else x.to(DEVICE) for x in (logits.excluded, logits.row, logits.column)
    ]
    rest = 0.0, logits.temperature, dtype
    scores, log_sum, own = softmax_scores(*given, *places, *rest, keep, tile)
    slope = make_slope(len(query), len(logits.row), log_sum.cpu(), generator)
    before = torch.randn(rows.shape, generator=generator)
    of_query, of_rows = torch.full_like(given[0], 7.0), before.to(DEVICE, copy=True)
    softmax_gradients(
        scores, *given, *places, *(x.to(DEVICE) for x in slope), *rest, of_query, of_rows, add, tile
    )
    return [x.cpu() for x in (log_sum, own, of_query, of_rows)], slope, before


def check(query, rows, logits, dtype, add, generator, **options):
    (log_sum, own, of_query, of_rows), slope, before = found_by_kernels(
        query, rows, logits, dtype, add, generator, **options
    )
    assert log_sum.dtype == own.dtype == torch.float32
    wide = query.to(dtype).double(), rows.to(dtype).double()
    scores = wide[0] @ wide[1].T
    expected = formula(scores, logits)
    grad = formula(scores, logits, slope)
    tolerance = tolerance_of(dtype)
    assert_close(log_sum.double(), expected[0], **tolerance)
    assert_close(own.double(), expected[1], **tolerance)
    for x, y in ((of_query, grad @ wide[1]), (of_rows, grad.T @ wide[0] + before * add)):
        size = y.abs().max().item() if y.numel() else 0.0
        assert_close(x.double(), y, rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sums_and_gradients_are_those_of_all_scores(shape, dtype, generator, monkeypatch):
    monkeypatch.setattr(module, "n_parts", lambda n_program, n_row: 3)
    for add, excluded in ((False, True), (True, False)):
        given = make(shape, generator, excluded and shape[1] > 0, temperature=0.7)
        check(*given, dtype, add, generator)


def test_wide_rows_are_scored_a_tile_at_a_time_where_scores_are_not_kept(generator):
    given = make(SHAPES["wide"], generator, excluded=True)
    for keep, tile in ((False, 1024), (False, 16), (True, 1024)):
        check(*given, torch.float32, True, generator, keep=keep, tile=tile)


def test_scores_of_narrow_rows_are_not_stored_where_there_are_tensor_cores(generator, allow_tf32):
    n_narrow = 0 if allow_tf32 else 5 * 70
    for shape, n_score in ((SHAPES["some"], n_narrow), (SHAPES["wide"], 4 * 50)):
        query, rows, logits = make(shape, generator)
        places = [x.to(DEVICE) for x in (logits.row, logits.column)]
        given = query.to(DEVICE), rows.to(DEVICE), None, *places, 0.0, 1.0, torch.float32
        assert softmax_scores(*given, True, 1024)[0].numel() == n_score


def test_labels_may_come_again(generator):
    query, rows, _ = make((6, 30, 0, 8), generator)
    row, column = torch.tensor([5, 2, 2, 0, 5, 5]), torch.tensor([7, 7, 7, 29, 0, 7])
    check(query, rows, Logits(row, column), torch.float32, False, generator)


def test_two_runs_give_the_same_bits(generator):
    given = make(SHAPES["more queries than a tile"], generator)
    once, again = (
        found_by_kernels(*given, torch.bfloat16, True, torch.Generator().manual_seed(1))[0]
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(once, again))
