"""Counts of better and equal candidates against comparing one by one."""

from __future__ import annotations

import pytest
import torch
from support import needs_opcheck

from besskge_core.errors import ShapeError
from besskge_core.ops import Filter, rank_counts
from besskge_core.ops.native import NATIVE

needs_native = pytest.mark.skipif(not NATIVE, reason="the native operations are not built")
NAN, INF = float("nan"), float("inf")

SHAPES = {  # name -> queries, candidates, answers, filtered
    "some": (5, 70, 9, 40),
    "one row": (1, 33, 1, 4),
    "many answers of one query": (1, 50, 60, 20),
    "no rows": (0, 8, 0, 0),
    "no candidates": (3, 0, 3, 0),
    "nothing filtered": (4, 100, 4, 0),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16,
          "float16": torch.float16}  # fmt: skip


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def dtype(request):
    return request.param


def sample(shape, dtype, generator):
    """Scores of few values, so that many tie; answers and filters anywhere."""
    n_query, n_column, n_answer, n_filtered = shape

    def integers(n, size):
        return torch.randint(max(n, 1), size, generator=generator)

    scores = (integers(5, (n_query, n_column)) - 2.0).to(dtype)
    place = torch.randperm(n_query * n_column, generator=generator)[:n_filtered].sort().values
    filtered = Filter.of(place // max(n_column, 1), place % max(n_column, 1), n_query)
    answer = (integers(5, (n_answer,)) - 2.0).to(dtype)
    return scores, answer, integers(n_query, (n_answer,)), filtered


def one_by_one(scores, answer, row, filtered, first=0):
    better, equal = [0] * len(answer), [0] * len(answer)
    for a, (truth, q) in enumerate(zip(answer.tolist(), row.tolist())):
        out = filtered.column[filtered.start[q] : filtered.start[q + 1]].tolist()
        for c, x in enumerate(scores[q].tolist()):
            if c + first not in out:
                better[a] += x > truth
                equal[a] += x == truth
    return better, equal


def check(scores, answer, row, filtered, first=0):
    better, equal = rank_counts(scores, answer, row, filtered, first)
    assert better.dtype == equal.dtype == torch.int64
    found = better.tolist(), equal.tolist()
    assert found == one_by_one(scores, answer, row, filtered, first)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_counts_are_those_of_comparing_one_by_one(shape, dtype, generator):
    check(*sample(shape, dtype, generator))


def test_answers_are_of_the_queries_in_turn_and_all_candidates_take_part(dtype, generator):
    scores, answer, _, none = sample((4, 30, 4, 0), dtype, generator)
    better, equal = rank_counts(scores, answer)
    assert (better.tolist(), equal.tolist()) == one_by_one(scores, answer, torch.arange(4), none)


@pytest.mark.parametrize("first", [0, 20, 1000])
def test_filtered_candidates_of_other_tiles_are_ignored(first, generator):
    scores, answer, row, filtered = sample((5, 70, 9, 60), torch.float32, generator)
    check(scores[:, 20:50], answer, row, filtered, first)


def test_rows_may_lie_apart_and_so_may_columns(dtype, generator):
    scores, answer, row, filtered = sample((6, 90, 8, 50), dtype, generator)
    for part in (
        scores[:, 11:60],
        scores[:, ::2],
        scores.T.contiguous().T,
        scores[:1].expand(6, -1),
    ):
        check(part, answer, row, filtered)


def test_what_is_not_a_number_is_neither_better_nor_equal(dtype):
    scores = torch.tensor([[NAN, INF, -INF, 0.0, 1e4] * 7] * 4).to(dtype)
    answer = torch.tensor([NAN, INF, -INF, 0.0]).to(dtype)
    filtered = Filter(torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 0, 0, 0]))
    better, equal = rank_counts(scores, answer, None, filtered)
    assert better.tolist() == [0, 0, 21, 14] and equal.tolist() == [0, 7, 7, 7]


def test_every_instruction_set_counts_the_same(instruction_set, dtype, generator):
    for n_column in (1, 3, 16, 17, 100):
        check(*sample((3, n_column, 7, n_column), dtype, generator))


def test_threads_change_nothing(generator, threads):
    arguments, found = sample((50, 3000, 400, 900), torch.float32, generator), []
    for n_thread in (1, 2, 4):
        threads(n_thread)
        found.append(torch.stack(rank_counts(*arguments)).tolist())
    assert found[0] == found[1] == found[2]


@needs_native
@needs_opcheck
def test_the_registration_is_right(generator):
    scores, answer, row, filtered = sample(SHAPES["some"], torch.float32, generator)
    torch.library.opcheck(torch.ops.besskge.rank_counts, (scores, answer, row, *filtered, 3))


def test_other_shapes_are_refused():
    scores, none = torch.zeros(2, 3), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"answer_score has shape \(3,\), expected \(Q\) with Q=2"):
        rank_counts(scores, scores[0])
    with pytest.raises(ShapeError, match=r"row has shape \(0,\), expected \(A\) with A=3"):
        rank_counts(scores, scores[0], none)


@needs_native
def test_what_is_no_filter_and_no_query_is_refused():
    scores, truth = torch.zeros(2, 3), torch.zeros(2)
    for start in ([0, 2, 1], [1, 1, 1], [0, 0, 2]):
        filtered = Filter(torch.tensor(start), torch.tensor([0]))
        with pytest.raises(ValueError, match="expects filter_start to rise from 0 to 1"):
            rank_counts(scores, truth, None, filtered)
    with pytest.raises(IndexError, match="rank_counts has an answer of query 2, of 2"):
        rank_counts(scores, truth, torch.tensor([0, 2]))
    with pytest.raises(TypeError, match="rank_counts expects one dtype"):
        rank_counts(scores, truth.double())
