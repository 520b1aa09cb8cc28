"""A rank is the place of the true one among its candidates, whichever way ties are broken."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.metric import MODES, Evaluation, HitsAtK, ReciprocalRank, count_ranks, make_metric

INF, NAN = math.inf, math.nan
POSITIVE = torch.tensor([0.5, 2.0, -1.0, 0.0])
CANDIDATES = torch.tensor([[0.4, 0.6, 0.5], [1.0, 0.0, -3.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
RANKS = {
    "optimistic": [2, 1, 4, 1],
    "pessimistic": [3, 1, 4, 4],
    "average": [2.5, 1, 4, 2.5],
    "realistic": [2.5, 1, 4, 2.5],
}


def ranks(positive, candidates, mode="average", **options):
    evaluation = Evaluation(["mrr"], mode=mode, **options)
    return evaluation.ranks_from_scores(torch.tensor(positive), torch.tensor(candidates)).tolist()


# -- ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_ties_are_broken_as_the_mode_says(mode, dtype):
    found = Evaluation(["mrr"], mode=mode).ranks_from_scores(
        POSITIVE.to(dtype), CANDIDATES.to(dtype)
    )
    assert found.dtype == torch.float32 and found.tolist() == RANKS[mode]


@given(st.lists(st.integers(-3, 3), min_size=0, max_size=8), st.integers(-3, 3))
def test_ranks_are_places_in_a_sorted_list(candidates, positive):
    worse_first = sorted([*candidates, positive])
    first, last = worse_first.index(positive), worse_first[::-1].index(positive)
    best, worst = last + 1, len(worse_first) - first
    row = [[float(x) for x in candidates]]
    found = [ranks([float(positive)], row, mode)[0] for mode in MODES]
    assert found == [best, worst, (best + worst) / 2, (best + worst) / 2]


@pytest.mark.parametrize("mode", MODES)
def test_a_score_that_is_not_a_number_ranks_last(mode):
    assert ranks([NAN, NAN, NAN], [[1.0, 2.0], [NAN, NAN], [-INF, 5.0]], mode) == [3, 3, 2]


@pytest.mark.parametrize("mode", MODES)
def test_candidates_that_are_not_numbers_never_beat(mode):
    assert ranks([0.0, -1e30], [[NAN, 1.0], [NAN, NAN]], mode) == [2, 1]


@pytest.mark.parametrize("mode", MODES)
def test_candidates_that_are_excluded_never_beat_nor_tie(mode):
    assert ranks([-3e38, -INF], [[-INF, -INF], [-INF, 0.0]], mode) == [1, 2]


@pytest.mark.parametrize("mode", MODES)
def test_no_candidates_make_the_positive_first(mode):
    found = Evaluation(["mrr"], mode, True).ranks_from_scores(torch.zeros(2), torch.zeros(2, 0))
    assert found.tolist() == [1, 1]


def test_ranking_changes_none_of_the_scores():
    positive, candidates = torch.tensor([NAN, 1.0]), torch.tensor([[NAN, -INF], [INF, 0.0]])
    copies = positive.clone(), candidates.clone()
    Evaluation(["mrr"], worst_rank_infty=True).ranks_from_scores(positive, candidates)
    torch.testing.assert_close((positive, candidates), copies, equal_nan=True)


@pytest.mark.parametrize(
    "mode, tied", [("optimistic", 1.0), ("pessimistic", INF), ("average", INF)]
)
def test_the_last_place_counts_as_infinite_if_asked(mode, tied):
    rows = [[1.0, 2.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 0.0], [1.0, -INF]]
    found = ranks([0.0] * 5, rows, mode, worst_rank_infty=True)
    assert found == [INF, 2, 1, tied, INF]


def test_counts_give_exact_ranks_beyond_single_precision():
    better = torch.tensor([2**24 + 1])
    assert count_ranks(better, torch.tensor([1]), "average").item() == 2**24 + 2.5


def test_a_rank_in_a_list_is_the_place_of_the_truth():
    truth, lists = torch.tensor([7, 8, 9]), torch.tensor([[7, 1, 2], [1, 2, 8], [1, 2, 3]])
    assert Evaluation(["mrr"]).ranks_from_indices(truth, lists).tolist() == [1, 3, 4]
    worst = Evaluation(["mrr"], worst_rank_infty=True)
    assert worst.ranks_from_indices(truth, lists).tolist() == [1, 3, INF]


def test_a_truth_listed_twice_ranks_by_its_better_place():
    assert Evaluation(["mrr"]).ranks_from_indices(
        torch.tensor([4]), torch.tensor([[1, 4, 4]])
    ).tolist() == [2]  # fmt: skip


# -- metrics -----------------------------------------------------------------------------------


def test_metrics_are_their_formulas():
    rank = torch.tensor([1.0, 2.5, 10.0, INF])
    assert ReciprocalRank()(rank).tolist() == pytest.approx([1, 0.4, 0.1, 0])
    assert HitsAtK(2)(rank).tolist() == [1, 0, 0, 0]
    assert HitsAtK(10)(rank).tolist() == [1, 1, 1, 0]


def test_metrics_come_hits_first_then_mrr():
    evaluation = Evaluation(["mrr", "hits@3", "hits@1"])
    stacked = evaluation.stacked_metrics_from_ranks(torch.tensor([1.0, 2.0]))
    assert list(evaluation.metrics) == ["hits@3", "hits@1", "mrr"]
    assert stacked.tolist() == [[[1, 1], [1, 0], [1, 0.5]]]


def test_masked_queries_count_nothing():
    rank, mask = torch.tensor([1.0, 2.0, INF]), torch.tensor([[True, False, True]])
    evaluation = Evaluation(["mrr"], reduction="none")
    assert evaluation.dict_metrics_from_ranks(rank, mask)["mrr"].tolist() == [1, 0, 0]
    total = Evaluation(["mrr"], reduction="sum")
    assert total.stacked_metrics_from_ranks(rank, mask).tolist() == [[1.0]]


def test_a_report_has_the_ranks_only_if_asked():
    plain = Evaluation(["mrr"]).report(POSITIVE, CANDIDATES)
    full = Evaluation(["mrr"], return_ranks=True).report(POSITIVE, CANDIDATES)
    assert sorted(plain) == ["metrics"] and sorted(full) == ["metrics", "ranks"]
    np.testing.assert_allclose(plain["metrics"][0, 0], 1 / np.array(RANKS["average"]), rtol=1e-6)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mr", "hits@", "hits@ten", "hits@-1"])
def test_an_unknown_metric_is_refused(name):
    with pytest.raises(ConfigError, match=f"unknown metric {name!r}; expected 'mrr' or 'hits@k'"):
        make_metric(name)


def test_hits_at_zero_is_refused():
    with pytest.raises(ConfigError, match="Hits@k needs k of at least 1, got 0"):
        Evaluation(["hits@0"])


def test_an_unknown_mode_is_refused():
    for make in (lambda: Evaluation(["mrr"], mode="best"), lambda: count_ranks(1, 1, "best")):
        with pytest.raises(ConfigError, match=r"unknown mode 'best'; expected one of \('optim"):
            make()


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ConfigError, match="unknown reduction 'mean'; expected 'none' or 'sum'"):
        Evaluation(["mrr"], reduction="mean")


def test_scores_of_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"candidate_score has shape \(2, 3\), expected \(B, N\)"):
        Evaluation(["mrr"]).ranks_from_scores(torch.zeros(4), torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"candidate_indices has shape \(2,\), expected \(B, N\)"):
        Evaluation(["mrr"]).ranks_from_indices(torch.zeros(2), torch.zeros(2))
