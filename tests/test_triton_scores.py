"""Kernels that rank, choose and take the softmax of scores agree with entries taken one by one."""

from __future__ import annotations

import pytest
import torch
from test_best_k import CASES, check_best, filters, parts_that_lie_apart
from test_best_k import sample as best_sample
from test_rank_counts import SHAPES as RANK_SHAPES
from test_rank_counts import one_by_one, sample
from test_softmax_tiles import OPTIONS, TOLERANCE, formula, make_logits, make_slope
from torch.testing import assert_close
from triton_support import DEVICE

from besskge_core.ops import Filter, Logits, Slope
from besskge_core.ops.gpu import best_k as best_module
from besskge_core.ops.gpu import rank_counts as rank_module
from besskge_core.ops.gpu import softmax_tiles as softmax_module
from besskge_core.ops.gpu.best_k import best_k
from besskge_core.ops.gpu.rank_counts import rank_counts
from besskge_core.ops.gpu.softmax_tiles import softmax_gradient, softmax_log_sum

NAN, INF = float("nan"), float("inf")
HALF = [torch.float32, torch.bfloat16]


def on_device(*tensors):
    return [x if x is None else x.to(DEVICE) for x in tensors]


# -- ranks -------------------------------------------------------------------------------------


def check_counts(scores, answer, row, filtered, first=0):
    found = rank_counts(*on_device(scores, answer, row, *filtered), first)
    assert all(x.dtype == torch.int64 for x in found)
    assert tuple(x.tolist() for x in found) == one_by_one(scores, answer, row, filtered, first)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("shape", RANK_SHAPES.values(), ids=RANK_SHAPES)
def test_counts_are_those_of_comparing_one_by_one(shape, dtype, generator):
    check_counts(*sample(shape, dtype, generator))


def test_parts_of_the_candidates_are_added_up(generator, monkeypatch):
    monkeypatch.setattr(rank_module, "BLOCK_T", 16)
    check_counts(*sample((3, 210, 5, 300), torch.float32, generator))


@pytest.mark.parametrize("first", [0, 20, 1000])
def test_filtered_candidates_of_other_tiles_are_ignored(first, generator):
    scores, answer, row, filtered = sample((5, 70, 9, 60), torch.float32, generator)
    check_counts(scores[:, 20:50], answer, row, filtered, first)


def test_scores_may_lie_apart(generator):
    scores, answer, row, filtered = sample((6, 90, 8, 50), torch.float32, generator)
    for part in (scores[:, ::2], scores.T.contiguous().T, scores[:1].expand(6, -1)):
        check_counts(part, answer, row, filtered)


def test_what_is_not_a_number_is_neither_better_nor_equal():
    scores = torch.tensor([[NAN, INF, -INF, 0.0, 1e4] * 7] * 4)
    answer = torch.tensor([NAN, INF, -INF, 0.0])
    filtered = Filter(torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 0, 0, 0]))
    better, equal = rank_counts(*on_device(scores, answer, torch.arange(4), *filtered), 0)
    assert better.tolist() == [0, 0, 21, 14] and equal.tolist() == [0, 7, 7, 7]


# -- the best k --------------------------------------------------------------------------------


def check_chosen(scores, filtered, k, first=0):
    found = best_k(*on_device(scores, *filtered), k, first)
    check_best([x.cpu() for x in found], scores, filtered, k, first)


@pytest.mark.parametrize(
    ("dtype", "n_level"),
    [(torch.float32, 5), (torch.float32, 10**6), (torch.bfloat16, 10**6), (torch.float16, 5)],
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_best_are_those_of_sorting(case, dtype, n_level, generator):
    check_chosen(*best_sample(case, dtype, generator, n_level))


@pytest.mark.parametrize("n_level", [1, 10**6])
@pytest.mark.parametrize("n_block, n_again", [(32, 128), (8, 16), (64, 1)])
def test_deep_lanes_and_parts_change_nothing(n_block, n_again, n_level, generator, monkeypatch):
    monkeypatch.setattr(best_module, "BLOCK_T", n_block)
    monkeypatch.setattr(best_module, "AGAIN", n_again)
    for case in ((2, 150, 50, 5), (1, 200, 190, 8), (3, 33, 0, 7)):
        check_chosen(*best_sample(case, torch.float32, generator, n_level))


def test_the_best_are_filtered_by_the_tile_that_they_are_in(generator):
    scores, filtered, k = best_sample((5, 70, 200, 8), torch.float32, generator)
    for first in (0, 20, 1000):
        check_chosen(scores[:, 20:50], filtered, k, first)


def test_the_best_may_lie_apart(generator):
    for scores in parts_that_lie_apart(generator):
        check_chosen(scores, filters(6, scores.shape[1], 50, generator), 6)


# -- softmax -----------------------------------------------------------------------------------

SHAPES = {  # name -> queries, columns, labels
    "some": (5, 70, 9),
    "one column": (3, 1, 2),
    "no rows": (0, 8, 0),
    "no columns": (2, 0, 0),
    "blocks and parts": (2, 700, 7),
}


def places(logits):
    return on_device(logits.excluded, logits.row, logits.column)


def check_softmax(scores, logits, generator):
    options = logits.margin, logits.temperature
    log_sum, own = (x.cpu() for x in softmax_log_sum(scores.to(DEVICE), *places(logits), *options))
    assert log_sum.dtype == own.dtype == torch.float32
    expected = formula(scores, logits)
    assert_close(log_sum.double(), expected[0], **TOLERANCE[torch.float32])
    assert_close(own.double(), expected[1], **TOLERANCE[torch.float32])
    slope = make_slope(len(scores), len(logits.row), log_sum, generator)
    grad = softmax_gradient(scores.to(DEVICE), *places(logits), *on_device(*slope), *options)
    assert grad.dtype == scores.dtype and grad.shape == scores.shape
    expected = formula(scores, logits, slope)
    assert_close(grad.cpu().double(), expected, **TOLERANCE[scores.dtype])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_log_sum_and_gradient_are_those_of_the_formula(
    shape, dtype, options, generator, monkeypatch
):
    monkeypatch.setattr(softmax_module, "BLOCK_T", 32)
    monkeypatch.setattr(softmax_module, "n_parts", lambda n_program, n_row: 1 + (n_row > 9))
    scores = (4 * torch.randn(shape[:2], generator=generator)).to(dtype)
    check_softmax(scores, make_logits(*shape, generator, **options), generator)


def test_excluded_columns_take_no_part(generator):
    for dtype in HALF:
        scores = torch.randn(4, 37, generator=generator).to(dtype)
        scores[:, -1] = 90.0
        logits = make_logits(4, 37, 5, generator, excluded=True, margin=0.2)
        check_softmax(scores, logits, generator)


def test_a_label_given_twice_counts_twice(generator):
    place = torch.tensor([1, 1, 0]), torch.tensor([7, 7, 19])
    check_softmax(torch.randn(2, 20, generator=generator), Logits(*place, margin=0.5), generator)


def test_rows_may_lie_apart_and_so_may_columns(generator):
    wide = torch.randn(6, 90, generator=generator)
    logits = make_logits(6, 45, 4, generator, margin=0.1)
    for scores in (wide[:, 20:65], wide[:, ::2], wide.T[:45].T):
        check_softmax(scores, logits, generator)


def test_huge_scores_lose_nothing():
    scores = torch.tensor([[1e30, -1e30, 5e29, 1e30], [-1e30, -1e30, -INF, 0.0]])
    label = torch.tensor([0]), torch.tensor([2])
    log_sum, _ = softmax_log_sum(*on_device(scores, None, *label), 0.0, 0.3)
    assert log_sum[0] == scores[0, 0] / 0.3 and log_sum[1] == 0.0
    slope = Slope(log_sum, log_sum.new_ones(2), log_sum.new_full((1,), 0.5))
    grad = softmax_gradient(*on_device(scores, None, *label, *slope), 0.0, 0.3)
    assert grad.tolist() == [[1.0, 0.0, -0.5, 1.0], [0.0, 0.0, 0.0, 1.0]]


def test_all_excluded_is_minus_infinity_and_what_is_no_number_is_none():
    none = torch.empty(0, dtype=torch.int64)
    scores = torch.full((3, 40), -INF)
    scores[1, 5], scores[2, 7] = NAN, 1.0
    log_sum, _ = softmax_log_sum(*on_device(scores, None, none, none), 0.0, 1.0)
    assert log_sum[0] == -INF and log_sum[1].isnan() and log_sum[2] == 1.0
    slope = Slope(log_sum, torch.ones(3), torch.empty(0))
    grad = softmax_gradient(*on_device(scores, None, none, none, *slope), 0.0, 1.0)
    assert not grad[0].any() and grad[1].isnan().all() and grad[2, 7] == 1.0
