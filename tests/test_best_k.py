"""The best k of scores against sorting them one by one."""

from __future__ import annotations

import math

import pytest
import torch
from support import needs_half, needs_opcheck

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.ops import Filter, best_k
from besskge_core.ops.native import NATIVE

needs_native = pytest.mark.skipif(not NATIVE, reason="the native operations are not built")
NAN, INF = float("nan"), float("inf")

CASES = {  # name -> queries, candidates, filtered, k
    "some": (5, 70, 40, 6),
    "the best": (4, 33, 9, 1),
    "more than candidates": (2, 7, 3, 9),
    "as many as candidates": (2, 16, 5, 16),
    "more than are not filtered": (3, 40, 100, 16),
    "all filtered": (2, 20, 40, 3),
    "nothing filtered": (4, 100, 0, 10),
    "no rows": (0, 8, 0, 3),
    "no candidates": (3, 0, 0, 2),
    "many": (2, 300, 90, 40),
}
HALF = pytest.param(torch.float16, marks=needs_half, id="float16")


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, HALF], ids=str)
def dtype(request):
    return request.param


def filters(n_query, n_column, n_filtered, generator):
    """Anywhere; the columns of a query in any order."""
    place = torch.randperm(n_query * n_column, generator=generator)[:n_filtered]
    query, order = (place // max(n_column, 1)).sort()
    return Filter.of(query, (place % max(n_column, 1))[order], n_query)


def sample(case, dtype, generator, n_level=5):
    """Scores of few values, so that many tie, with some of every kind; a filter; k."""
    n_query, n_column, n_filtered, k = case
    scores = torch.randint(n_level, (n_query, n_column), generator=generator) - n_level // 2
    scores = scores.to(dtype)
    kind = torch.randint(20, scores.shape, generator=generator)
    for i, x in enumerate((NAN, INF, -INF, -0.0)):
        scores[kind == i] = x
    return scores, filters(n_query, n_column, n_filtered, generator), k


def one_by_one(scores, filtered, k, first=0):
    """Scores and columns, as lists."""
    values, columns = [], []
    for q, row in enumerate(scores.tolist()):
        out = filtered.column[filtered.start[q] : filtered.start[q + 1]].tolist()
        row = [-INF if c + first in out or math.isnan(x) else x for c, x in enumerate(row)]
        best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        values.append([row[c] for c in best])
        columns.append(best)
    return values, columns


def check_best(found, scores, filtered, k, first=0):
    score, column = found
    assert score.dtype == scores.dtype and column.dtype == torch.int64
    assert score.shape == column.shape == (len(scores), min(k, scores.shape[1]))
    assert (score.tolist(), column.tolist()) == one_by_one(scores, filtered, k, first)


def check(scores, filtered, k, first=0):
    before = scores.clone()
    check_best(best_k(scores, k, filtered, first), scores, filtered, k, first)
    assert torch.equal(scores.nan_to_num(7.0), before.nan_to_num(7.0))


def parts_that_lie_apart(generator):
    """Scores whose rows or columns do."""
    whole, *_ = sample((6, 90, 0, 1), torch.float32, generator)
    return whole[:, 11:60], whole[:, ::2], whole.T.contiguous().T, whole[:1].expand(6, -1)


@pytest.mark.parametrize("n_level", [5, 10**6])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_best_are_those_of_sorting(case, dtype, n_level, generator):
    check(*sample(case, dtype, generator, n_level))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plain_torch_finds_the_same(plain, case, generator):
    check(*sample(case, torch.float32, generator))


def test_all_candidates_take_part_without_a_filter(dtype, generator):
    scores, none, k = sample((4, 60, 0, 7), dtype, generator)
    check_best(best_k(scores, k), scores, none, k)


@pytest.mark.parametrize("first", [0, 20, 1000])
def test_filtered_candidates_of_other_tiles_are_ignored(first, generator):
    scores, filtered, k = sample((5, 70, 200, 8), torch.float32, generator)
    check(scores[:, 20:50], filtered, k, first)


def test_rows_may_lie_apart_and_so_may_columns(generator):
    for scores in parts_that_lie_apart(generator):
        check(scores, filters(6, scores.shape[1], 50, generator), 6)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_the_order_in_which_scores_come_changes_nothing(k, dtype):
    rising = torch.arange(1000.0).to(dtype)  # of a half many are equal
    scores = torch.stack([rising, rising.flip(0), torch.zeros_like(rising)])
    check(scores, filters(3, 1000, 0, None), k)


def test_every_instruction_set_chooses_the_same(instruction_set, dtype, generator):
    for n_column in (1, 3, 16, 63, 64, 65, 130, 1000):
        scores = torch.randn(8, n_column, generator=generator).to(dtype)  # the best lie anywhere
        check(scores, filters(8, n_column, n_column, generator), 5)


def test_threads_change_nothing(generator, threads):
    scores, filtered, k = sample((50, 3000, 900, 10), torch.float32, generator, 10**6)
    found = []
    for n_thread in (1, 2, 4):
        threads(n_thread)
        found.append([x.tolist() for x in best_k(scores, k, filtered)])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_there_is_no_gradient(dtype):
    score, _ = best_k(torch.zeros(2, 3, dtype=dtype, requires_grad=True), 2)
    assert not score.requires_grad


@needs_native
@needs_opcheck
def test_the_registration_is_right(generator):
    scores, filtered, k = sample(CASES["some"], torch.float32, generator)
    torch.library.opcheck(torch.ops.besskge.best_k, (scores, *filtered, k, 3))


def test_other_shapes_and_no_answers_are_refused():
    with pytest.raises(ShapeError, match=r"scores has shape \(3,\), expected \(Q, T\)"):
        best_k(torch.zeros(3), 1)
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        best_k(torch.zeros(2, 3), 0)


@needs_native
def test_what_is_no_filter_is_refused():
    scores = torch.zeros(2, 3)
    for start in ([0, 2, 1], [1, 1, 1], [0, 0, 2]):
        filtered = Filter(torch.tensor(start), torch.tensor([0]))
        with pytest.raises(ValueError, match="best_k expects filter_start to rise from 0 to 1"):
            best_k(scores, 1, filtered)
    with pytest.raises(ValueError, match=r"best_k expects filter_start \(Q \+ 1\) with Q=2"):
        best_k(scores, 1, Filter(torch.tensor([0, 1]), torch.tensor([0])))
    with pytest.raises(TypeError, match="best_k expects a filter in int64, got Int"):
        best_k(scores, 1, Filter(torch.zeros(3, dtype=torch.int32), torch.tensor([])))
