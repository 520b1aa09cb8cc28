"""Kernels that compare queries with shared candidates give the values of the plain-torch reference."""

from __future__ import annotations

import sys

import pytest
import torch
from pairs_support import rows, value_and_gradients, width_of
from torch.testing import assert_close
from triton_support import DEVICE

from besskge_core.ops.gpu import pairwise as module
from besskge_core.ops.gpu.pairwise import n_parts, pairwise, pairwise_backward
from besskge_core.ops.pairwise import COMPARISONS

reference = sys.modules["besskge_core.ops.pairwise"].reference

WEIGHTED = ["weighted l1", "weighted l2"]
SHAPES = {  # name -> (B, N, entries, of which a complex one has two parts)
    "no queries": (0, 5, 6),
    "no candidates": (5, 0, 6),
    "no entries": (3, 4, 0),
    "one": (1, 1, 1),
    "less than a tile": (37, 19, 13),
    "more than a tile": (18, 131, 34),
    "parts of candidates": (3, 130, 5),
    "parts of queries": (130, 2, 7),
}


@pytest.fixture(params=[*COMPARISONS, *WEIGHTED])
def name(request):
    return request.param


def case(name, n_query, n_candidate, half, seed=0):
    """The comparison, and q, e, weight or None."""
    comparison = name.split()[-1]
    width = width_of(comparison, half)
    tensors = [rows(n_query, width, seed), rows(n_candidate, width, seed + 1), None]
    if name in WEIGHTED:
        tensors[2] = rows(n_query, width, seed + 2)
    if comparison.startswith("torus"):  # not on the edge of half a turn, where the sign changes
        tensors = [None if x is None else x * 0.9375 for x in tensors]
    return comparison, tensors


def found_by_kernels(comparison, tensors, slopes):
    """Scores and gradients, of queries, candidates, and weights if there are some."""
    q, e, weight = [None if x is None else x.to(DEVICE) for x in tensors]
    scores = pairwise(q, e, comparison, weight)
    grads = pairwise_backward(slopes.to(DEVICE), scores, q, e, comparison, weight)
    return [x.cpu() for x in (scores, *grads[: 2 + (weight is not None)])]


def expected_of(comparison, tensors, slopes):
    leaves = [x.double().requires_grad_() for x in tensors if x is not None]
    q, e, *weight = leaves
    return value_and_gradients(lambda: reference(q, e, comparison, *weight), leaves, slopes)


def check(comparison, tensors, seed=9, rtol=1e-5):
    slopes = rows(len(tensors[0]), len(tensors[1]), seed)
    found = found_by_kernels(comparison, tensors, slopes)
    expected = expected_of(comparison, tensors, slopes)
    assert len(found) == len(expected)
    for x, y in zip(found, expected):
        assert x.dtype == torch.float32
        size = y.abs().max().item() if y.numel() else 0.0
        assert_close(x.double(), y, rtol=rtol, atol=2e-6 * size)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_and_gradients_are_those_of_the_reference(name, shape):
    check(*case(name, *shape))


def test_huge_and_tiny_entries_lose_nothing(name):
    for exponent in (50, -30):
        comparison, (q, e, weight) = case(name, 5, 9, 7)
        check(comparison, (q * 2.0**exponent, e * 2.0**exponent, weight))


def test_equal_rows_have_no_distance_and_no_gradient(name):
    comparison, (q, e, weight) = case(name, 5, 4, 21)
    if comparison == "dot":
        pytest.skip("an inner product is no distance")
    same = q[:1].expand(4, -1) + (2.0 if comparison.startswith("torus") else 0.0)
    weight = None if weight is None else torch.ones_like(q[:1])
    scores, *grads = found_by_kernels(comparison, (q[:1], same, weight), rows(1, 4))
    assert scores.abs().max() < 1e-12 and not any(x.any() for x in grads)


def test_whole_numbers_are_no_way_apart_on_a_torus_however_large():
    q = torch.tensor([[2.0**23 + 1, -(2.0**23) - 3, 2.0**22 + 5, -7.0, 2.0**30, 0.0]])
    for comparison in ("torus_l1", "torus_l2"):
        scores, *grads = found_by_kernels(comparison, (q, torch.zeros(1, 6), None), rows(1, 1))
        assert not scores.any() and not any(x.any() for x in grads)


def test_what_is_no_number_is_passed_on(name):
    comparison, (q, e, weight) = case(name, 3, 5, 18)
    q[1, 2] = float("nan")
    scores, dq, *_ = found_by_kernels(comparison, (q, e, weight), rows(3, 5))
    assert scores[1].isnan().all() and not scores[[0, 2]].isnan().any()
    assert not dq[[0, 2]].isnan().any()


def test_slopes_may_be_those_of_a_sum():
    comparison, (q, e, weight) = case("l1", 4, 70, 5)
    scores = pairwise(q.to(DEVICE), e.to(DEVICE), comparison, None)
    one = torch.ones((), device=DEVICE)
    both = [
        pairwise_backward(slopes, scores, q.to(DEVICE), e.to(DEVICE), comparison, None)[:2]
        for slopes in (one.expand(4, 70), one.expand(4, 70).contiguous())
    ]
    assert all(torch.equal(x, y) for x, y in zip(*both))


def test_two_runs_give_the_same_bits(name):
    comparison, tensors = case(name, 18, 130, 9)
    tensors = [None if x is None else torch.sin(100 * x) for x in tensors]
    once, again = (found_by_kernels(comparison, tensors, rows(18, 130, 3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(once, again))


def test_few_rows_of_one_side_are_made_up_for_by_parts_of_the_other():
    assert n_parts(module.N_PROGRAM, 10**6) == 1 and n_parts(10 * module.N_PROGRAM, 10**6) == 1
    assert n_parts(1, 10**6) == module.N_PROGRAM
    assert n_parts(100, 10**6) == 11
    assert n_parts(1, module.LEAST_PART - 1) == 1 and n_parts(1, 2 * module.LEAST_PART) == 2
