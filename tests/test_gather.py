"""Rows looked up natively are those of the reference, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from support import needs_opcheck
from torch.testing import assert_close

from besskge_core.ops import gather
from besskge_core.ops.gather import reference
from besskge_core.ops.native import NATIVE

needs_build = pytest.mark.skipif(not NATIVE, reason="the native operations are not built")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = {  # name -> (L, E, D, K)
    "some": (2, 40, 7, 30),
    "more look-ups than are asked for ahead": (3, 50, 3, 500),
    "wide rows": (1, 30, 3000, 20),
    "one row": (1, 1, 5, 9),
    "one number": (1, 1, 1, 1),
    "no look-ups": (2, 3, 4, 0),
    "no rows": (2, 0, 4, 0),
    "no width": (1, 3, 0, 2),
    "no shard": (0, 3, 4, 2),
}
CASES = [*(("some", dtype) for dtype in DTYPES), *((x, torch.float32) for x in list(SHAPES)[1:])]


@pytest.fixture(params=[gather, reference], ids=["served", "reference"])
def look_up(request):
    return request.param


def sample(generator, shape, dtype=torch.float32):
    n_host, n_row, width, n_lookup = shape
    table = torch.randn(n_host, n_row, width, generator=generator).to(dtype)
    return table, torch.randint(max(n_row, 1), (n_host, n_lookup), generator=generator)


def rows_of(table, index):
    """By the definition, row by row."""
    rows = [table[i, row] for i, of_shard in enumerate(index.tolist()) for row in of_shard]
    shape = (*index.shape, table.shape[2])
    return torch.stack(rows).view(shape) if rows else table.new_empty(shape)


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, dtype", CASES, ids=str)
def test_rows_have_the_bits_of_the_table(look_up, generator, name, dtype):
    table, index = sample(generator, SHAPES[name], dtype)
    found = look_up(table, index.int())
    assert found.dtype == dtype and found.is_contiguous()
    assert torch.equal(found, rows_of(table, index))


@pytest.mark.parametrize(
    "apart",
    {
        "columns": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "rows": lambda x: torch.cat([x, x + 1], dim=2)[..., : x.shape[2]],
        "shards": lambda x: torch.cat([x, x + 1], dim=1)[:, : x.shape[1]],
        "no shards": lambda x: x[:1].expand(len(x), -1, -1),
    }.values(),
    ids=["columns", "rows", "shards", "one shard as several"],
)
def test_what_is_looked_up_in_may_lie_apart(look_up, generator, apart):
    table, index = sample(generator, SHAPES["some"])
    table = apart(table)
    assert torch.equal(look_up(table, index), rows_of(table, index))


def test_indices_may_lie_apart(look_up, generator):
    table, index = sample(generator, SHAPES["some"])
    for apart in (index.t().contiguous().t(), index[:, ::3], index[:, :1].expand(-1, 4)):
        assert torch.equal(look_up(table, apart), rows_of(table, apart))


def test_rows_are_the_same_for_any_number_of_threads(threads, generator):
    table, index = sample(generator, (3, 1000, 64, 5001))  # several parts of a thread's least
    expected = reference(table, index)
    for n_thread in (1, 2, 4):
        threads(n_thread)
        assert torch.equal(gather(table, index), expected)


def test_a_result_outlives_those_after_it(generator):
    # Buffers are kept and used again, but not while someone holds them.
    table, index = sample(generator, SHAPES["some"])
    first = gather(table, index)
    later = [gather(table + i, index) for i in (1, 2)]
    assert torch.equal(first, rows_of(table, index)) and not torch.equal(*later)


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, dtype", CASES, ids=str)
def test_gradients_are_those_of_the_reference(generator, name, dtype):
    table, index = sample(generator, SHAPES[name], dtype)
    table, index = table.requires_grad_(), index.to(torch.int64 if len(table) > 1 else torch.int32)
    weight = torch.randn(*index.shape, table.shape[2], generator=generator).to(dtype)
    found, expected = (torch.autograd.grad(f(table, index), table, weight)[0]
                       for f in (gather, reference))  # fmt: skip
    assert found.is_sparse and found.shape == table.shape and found.dtype == dtype
    assert (found.sparse_dim(), found.dense_dim()) == (2, 1)
    assert found.is_coalesced() == expected.is_coalesced()
    assert torch.equal(found._indices(), expected._indices())
    assert torch.equal(found._values(), expected._values())


def test_gradients_may_lie_apart(look_up, generator):
    table, index = sample(generator, SHAPES["some"])
    table.requires_grad_()
    (found,) = torch.autograd.grad(look_up(table, index).sum(), table)  # an expanded 1
    times = torch.stack([x.bincount(minlength=40) for x in index])
    assert_close(found.to_dense(), times[..., None].expand_as(table).float())


def test_a_gradient_has_a_gradient(look_up, generator):
    table, index = sample(generator, SHAPES["some"], torch.float64)
    table, weight = table.requires_grad_(), torch.ones(2, 30, 7, dtype=torch.float64)
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(look_up(table, index), table, weight, create_graph=True)
    (found,) = torch.autograd.grad(grad.to_dense().square().sum(), weight)
    assert_close(found, rows_of(2 * grad.detach().to_dense(), index))


def test_a_table_that_is_not_trained_has_no_gradient(look_up, generator):
    table, index = sample(generator, SHAPES["some"])
    assert not look_up(table, index).requires_grad
    with torch.no_grad():
        assert not look_up(table.requires_grad_(), index).requires_grad


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, 40, 80])
def test_an_index_out_of_range_is_named(look_up, generator, wrong):
    table, index = sample(generator, SHAPES["some"])
    index[1, 3] = wrong  # 40 of the first shard would be a row of the second
    index[0, 3] = wrong
    message = f"gather: index {wrong} is out of range for a table of 40 rows"
    for dtype in (torch.int32, torch.int64):
        with pytest.raises(IndexError, match=message):
            look_up(table, index.to(dtype))


def test_a_table_without_rows_has_nothing_to_look_up(look_up):
    with pytest.raises(IndexError, match="gather: index 0 is out of range for a table of 0 rows"):
        look_up(torch.zeros(1, 0, 3), torch.zeros(1, 2, dtype=torch.long))


@needs_build
def test_the_operation_names_itself_in_its_errors():
    table, index = torch.zeros(2, 4, 3), torch.zeros(2, 5, dtype=torch.long)
    native = torch.ops.besskge.gather
    with pytest.raises(ValueError, match=r"gather expects table \(L, E, D\) and index \(L, K\)"):
        native(table, index[:1])
    with pytest.raises(TypeError, match="gather expects an index of int32 or int64, got Float"):
        native(table, index.float())
    with pytest.raises(ValueError, match=r"lookup_entries expects index \(L, K\), got \[5\]"):
        torch.ops.besskge.lookup_entries(index[0])


@needs_opcheck
@needs_build
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_the_operations_are_registered_well(generator, dtype):
    table, index = sample(generator, SHAPES["some"])
    torch.library.opcheck(torch.ops.besskge.gather.default, (table, index.to(dtype)))
    torch.library.opcheck(torch.ops.besskge.lookup_entries.default, (index.to(dtype),))
