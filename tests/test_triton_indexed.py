"""Kernels that compare queries with rows of their own give the values of the plain-torch reference."""

from __future__ import annotations

import pytest
import torch
from pairs_support import COMPARISONS, native, rows, same_bits
from test_indexed import SHAPES, case, found_by, reference
from torch.testing import assert_close
from triton_support import DEVICE

from besskge_core.ops.gpu.indexed import indexed, indexed_backward
from besskge_core.ops.gpu.segments import SEGMENT
from besskge_core.ops.rows import plan_rows, plan_rows_padded

MORE_SHAPES = {  # name -> (B, N, L, E, entries)
    **SHAPES,
    "no queries": (0, 5, 1, 4, 6),
    "no rows": (5, 0, 1, 4, 6),
    "no entries": (3, 4, 1, 4, 0),
    "parts of many rows": (2, 300, 1, 40, 5),
}


@pytest.fixture(params=COMPARISONS)
def comparison(request):
    return request.param


def found_by_kernels(comparison, q, table, index, plan=plan_rows_padded, slopes=None):
    """Scores, and gradients of queries and table (L, E, D)."""
    flat = table.flatten(end_dim=1)
    slopes = rows(*index.shape, 9) if slopes is None else slopes
    planned = plan(index.flatten().long(), len(flat))
    q, of_table, at, slopes, *of_plan = [x.to(DEVICE) for x in (q, flat, index, slopes, *planned)]
    scores = indexed(q, of_table, at, comparison)
    dq, of_rows = indexed_backward(slopes, scores, q, of_table, at, comparison, *of_plan)
    assert of_rows.shape == (len(planned.unique_rows), table.shape[2])
    is_row = planned.unique_rows < len(flat)
    assert not of_rows.cpu()[~is_row].any()
    grad = torch.zeros_like(flat, dtype=torch.float32)
    grad[planned.unique_rows[is_row]] = of_rows.cpu()[is_row]
    return [scores.cpu(), dq.cpu(), grad.view(table.shape)]


def check(comparison, given, rtol=1e-5):
    found = found_by_kernels(comparison, *given)
    expected = found_by(reference, comparison, *given, dtype=torch.float64)
    for x, y in zip(found, expected):
        assert x.dtype == torch.float32
        size = y.abs().max().item() if y.numel() else 0.0
        assert_close(x.double(), y, rtol=rtol, atol=2e-6 * size)


@pytest.mark.parametrize("shape", MORE_SHAPES.values(), ids=MORE_SHAPES)
def test_scores_and_gradients_are_those_of_the_reference(comparison, shape):
    check(comparison, case(comparison, *shape))


def test_a_row_may_be_listed_again_and_again(comparison):
    for n_hub in (SEGMENT - 1, SEGMENT, 2 * SEGMENT + 3, 4 * SEGMENT):
        q, table, index = case(comparison, 4, 64, 1, 9, 5)
        index.view(-1)[:n_hub] = 7
        check(comparison, (q, table, index), rtol=1e-4)


def test_huge_and_tiny_entries_lose_nothing(comparison):
    q, table, index = case(comparison, 5, 7, 1, 11, 17)
    for scale in (2.0**50, 2.0**-30):
        check(comparison, (q * scale, table * scale, index))


def test_equal_rows_have_no_distance_and_no_gradient(comparison):
    if comparison == "dot":
        pytest.skip("an inner product is no distance")
    q, table, index = case(comparison, 3, 5, 1, 4, 17)
    q[:], table[:] = q[0], q[0] + (2.0 if comparison.startswith("torus") else 0.0)
    scores, dq, of_table = found_by_kernels(comparison, q, table, index)
    assert scores.abs().max() < 1e-12 and not dq.any() and not of_table.any()


def test_what_is_no_number_is_passed_on(comparison):
    q, table, index = case(comparison, 3, 5, 1, 40, 18)
    index[:] = torch.arange(15).view(3, 5)
    q[1, 2] = float("nan")
    scores, dq, of_table = found_by_kernels(comparison, q, table, index)
    assert scores[1].isnan().all() and not scores[[0, 2]].isnan().any()
    assert (
        not dq[[0, 2]].isnan().any() and not of_table[0, [*range(5), *range(10, 40)]].isnan().any()
    )


def test_a_row_that_is_not_there_is_no_number(comparison):
    q, table, index = case(comparison, 3, 5, 1, 11, 6)
    index[0, 1], index[2, 4] = -1, 11
    flat = table.flatten(end_dim=1)
    scores = indexed(*(x.to(DEVICE) for x in (q, flat, index)), comparison)
    assert torch.equal(scores.cpu().isnan(), (index < 0) | (index > 10))


def test_plans_are_of_any_length(comparison):
    given = case(comparison, 5, 7, 2, 9, 6)
    both = [found_by_kernels(comparison, *given, plan=x) for x in (plan_rows, plan_rows_padded)]
    assert same_bits(*both)


def test_tensors_may_lie_apart_and_indices_be_narrow(comparison):
    q, table, index = case(comparison, 5, 7, 1, 11, 6)
    wide = torch.cat([table, table], 2)[..., : table.shape[2]]
    apart = q.T.contiguous().T, wide, index.int().repeat_interleave(2, 1)[:, ::2]
    assert not any(x.is_contiguous() for x in apart)
    slopes = torch.ones(()).expand(5, 7)
    found = found_by_kernels(comparison, *apart, slopes=slopes)
    expected = found_by_kernels(comparison, q, table, index, slopes=slopes.contiguous())
    assert same_bits(found, expected)


def test_two_runs_give_the_same_bits(comparison):
    q, table, index = case(comparison, 10, 30, 1, 3, 9)
    given = torch.sin(100 * q), torch.sin(100 * table), index
    once, again = (found_by_kernels(comparison, *given) for _ in range(2))
    assert same_bits(once, again)


@native
def test_the_operation_on_a_cpu_gives_the_same_rows(comparison):
    q, table, index = case(comparison, 9, 40, 1, 12, 7)
    plan, slopes = plan_rows(index.flatten(), 12), rows(9, 40, 9)
    scores = torch.ops.besskge.indexed(q, table[0], index, comparison)
    given = slopes, scores, q, table[0], index
    expected = torch.ops.besskge.indexed_backward(*given, comparison, *plan)
    found = indexed_backward(
        *(x.to(DEVICE) for x in given), comparison, *(x.to(DEVICE) for x in plan)
    )
    for x, y in zip(found, expected):
        assert_close(x.cpu(), y, rtol=1e-5, atol=2e-5)


def test_complex_numbers_have_two_parts():
    q, table, index = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, 4).long()
    with pytest.raises(ValueError, match="indexed expects rows of complex .* a width of 3"):
        indexed(q, table, index, "modulus")
