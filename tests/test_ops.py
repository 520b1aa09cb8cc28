"""Rows looked up and rows summed, with gradients of the rows that were touched alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from besskge_core.errors import ShapeError
from besskge_core.ops import gather, plan_rows, sum_rows

SAMPLES = {  # name -> (L, E, D, look-ups of a shard)
    "some": (2, 6, 3, [[0, 5, 2, 2, 5], [1, 1, 1, 0, 4]]),
    "duplicates only": (1, 4, 2, [[3, 3, 3, 3]]),
    "one": (1, 1, 1, [[0]]),
    "no rows": (2, 3, 4, [[], []]),
    "no width": (1, 3, 0, [[1, 1]]),
}


@pytest.fixture(params=SAMPLES.values(), ids=SAMPLES)
def sample(request, generator):
    """table (L, E, D), index (L, K)."""
    n_host, n_row, width, index = request.param
    table = torch.randn(n_host, n_row, width, generator=generator, dtype=torch.float64)
    return table.requires_grad_(), torch.tensor(index, dtype=torch.int64).view(n_host, -1)


def reference(table, index):
    return torch.stack([table[i, rows.long()] for i, rows in enumerate(index)])


# -- gather ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gather_takes_the_rows_of_each_shard(sample, dtype):
    table, index = sample
    assert torch.equal(gather(table, index.to(dtype)), reference(table, index))


def test_the_gradient_equals_the_dense_one(sample):
    table, index = sample
    rows = gather(table, index)
    weight = torch.arange(1.0, rows.numel() + 1, dtype=rows.dtype).view(rows.shape)
    (grad,) = torch.autograd.grad(rows, table, weight)
    (expected,) = torch.autograd.grad(reference(table, index), table, weight)
    assert_close(grad.to_dense(), expected)


def test_the_gradient_has_one_entry_for_each_look_up(sample):
    table, index = sample
    (grad,) = torch.autograd.grad(gather(table, index).sum(), table)
    assert grad.is_sparse and grad.shape == table.shape
    assert grad.sparse_dim() == 2 and grad._nnz() == index.numel()
    shard = torch.arange(len(index))[:, None].expand_as(index)
    assert torch.equal(grad._indices(), torch.stack([shard.flatten(), index.flatten()]))


def test_gradients_of_two_look_ups_add_up(sample):
    table, index = sample
    for _ in range(2):
        gather(table, index).sum().backward()
    (expected,) = torch.autograd.grad(2 * reference(table, index).sum(), table)
    assert_close(table.grad.to_dense(), expected)


def test_gather_gives_no_view_of_the_table(sample):
    table, index = sample
    before = table.detach().clone()
    gather(table.detach(), index).zero_()
    assert torch.equal(table.detach(), before)


@pytest.mark.parametrize("table, index", [((3, 4), (3, 2)), ((2, 4, 5), (3, 2)), ((2, 4, 5), (2,))])
def test_other_shapes_are_refused(table, index):
    with pytest.raises(ShapeError, match=r"has shape \(.*\), expected \("):
        gather(torch.zeros(table), torch.zeros(index, dtype=torch.long))


# -- sums of rows ------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 8), max_size=30))
def test_a_plan_groups_look_ups_by_row(rows):
    plan = plan_rows(torch.tensor(rows, dtype=torch.int64), 9)
    assert plan.unique_rows.tolist() == sorted(set(rows))
    ends = [*plan.run_offsets.tolist()[1:], len(rows)]
    for row, first, last in zip(plan.unique_rows.tolist(), plan.run_offsets.tolist(), ends):
        places = plan.order[first:last].tolist()
        assert places == [i for i, x in enumerate(rows) if x == row]


@given(st.lists(st.integers(0, 8), max_size=30), st.integers(0, 3))
def test_sums_are_those_of_index_add(rows, width):
    rows = torch.tensor(rows, dtype=torch.int64)
    values = torch.arange(1.0, len(rows) * width + 1, dtype=torch.float64).sqrt()
    values = values.view(len(rows), width)
    plan = plan_rows(rows, 9)
    expected = torch.zeros(9, width, dtype=torch.float64).index_add_(0, rows, values)
    assert_close(sum_rows(values, plan), expected[plan.unique_rows])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_plans_are_of_any_integers(dtype):
    plan = plan_rows(torch.tensor([70_000, 3, 70_000], dtype=dtype), 100_000)
    assert plan.unique_rows.tolist() == [3, 70_000] and plan.order.tolist() == [1, 0, 2]
    assert all(part.dtype == torch.int64 for part in plan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_come_in_the_dtype_of_the_values(dtype):
    plan = plan_rows(torch.tensor([1, 1]), 2)
    found = sum_rows(torch.ones(2, 3, dtype=dtype), plan)
    assert found.dtype == dtype and found.tolist() == [[2, 2, 2]]


def test_sums_have_the_same_bits_for_any_number_of_threads(threads, generator):
    rows = torch.randint(300, (20_000,), generator=generator)
    values, plan = torch.randn(20_000, 33, generator=generator), plan_rows(rows, 300)
    found = []
    for n_thread in (1, 2):
        threads(n_thread)
        found.append(sum_rows(values, plan))
    assert torch.equal(*found)
