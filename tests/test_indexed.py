"""Native scores of queries with rows of their own are those of the reference, and so are gradients."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from pairs_support import (
    COMPARISONS,
    SETS,
    by_threads,
    instruction_set,
    leaves_of,
    native,
    rows,
    same_bits,
    value_and_gradients,
    width_of,
)
from support import needs_opcheck
from torch.testing import assert_close

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.ops import indexed, plan_rows
from besskge_core.ops.rows import plan_rows_padded

module = sys.modules["besskge_core.ops.indexed"]
reference = module.reference

SHAPES = {  # name -> (B, N, L, E, entries)
    "one": (1, 1, 1, 1, 1),
    "odd": (5, 7, 1, 11, 17),
    "two shards": (37, 19, 2, 30, 13),
    "wide": (21, 66, 3, 50, 200),
}


@pytest.fixture(params=COMPARISONS)
def comparison(request):
    return request.param


def case(comparison, n_query, n_each, n_host, n_row, half):
    """q, table, index."""
    width = width_of(comparison, half)
    q, table = rows(n_query, width), rows(n_host * n_row, width, 1).view(n_host, n_row, width)
    if comparison.startswith("torus"):  # not on the edge of half a turn, where the sign changes
        q, table = 0.9375 * q, 0.9375 * table
    generator = torch.Generator().manual_seed(2)
    return q, table, torch.randint(n_host * n_row, (n_query, n_each), generator=generator)


def found_by(fn, comparison, q, table, index, dtype=torch.float32, **options):
    q, table = leaves_of([q, table], dtype)
    return value_and_gradients(
        lambda: fn(q, table, index, comparison, **options), [q, table], rows(*index.shape, 9)
    )


def check(comparison, given, rtol=1e-5):
    found = found_by(indexed, comparison, *given)
    expected = found_by(reference, comparison, *given, dtype=torch.float64)
    assert found[0].dtype == torch.float32
    for x, y in zip(found, expected):
        size = y.abs().max().item() if y.numel() else 0.0
        assert_close(x.double(), y, rtol=rtol, atol=1e-6 * size)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_and_gradients_are_those_of_the_reference(comparison, shape):
    check(comparison, case(comparison, *shape))


def test_there_may_be_no_queries_no_rows_or_no_entries(comparison):
    for shape in [(0, 5, 1, 4, 6), (5, 0, 1, 4, 6), (3, 4, 1, 4, 0)]:
        check(comparison, case(comparison, *shape))


@native
@pytest.mark.parametrize("widths", SETS)
def test_every_instruction_set_computes_the_same(widths):
    with instruction_set(widths):
        for comparison in COMPARISONS:
            for half in (3, 19, 140):
                check(comparison, case(comparison, 9, 11, 2, 13, half))


def test_huge_and_tiny_entries_lose_nothing(comparison):
    q, table, index = case(comparison, 5, 7, 1, 11, 17)
    for scale in (2.0**50, 2.0**-30):
        check(comparison, (q * scale, table * scale, index))


def test_a_row_may_be_listed_again_and_again(comparison):
    q, table, index = case(comparison, 100, 150, 1, 40, 9)
    index[:, :100] = 7  # 10,000 times by 100 queries, beside others
    check(comparison, (q, table, index), rtol=1e-4)
    index[:] = 39
    check(comparison, (q, table, index), rtol=1e-4)


def test_equal_rows_have_no_distance_and_no_gradient(comparison):
    if comparison == "dot":
        pytest.skip("an inner product is no distance")
    q, table, index = case(comparison, 3, 5, 1, 4, 17)
    q[:], table[:] = q[0], q[0]
    scores, dq, of_table = found_by(indexed, comparison, q, table, index)
    assert scores.abs().max() < 1e-12 and not dq.any() and not of_table.any()


@native
def test_the_gradient_has_one_entry_for_each_distinct_row(comparison="modulus"):
    q, table, index = case(comparison, 5, 7, 3, 4, 6)
    table.requires_grad_()
    (grad,) = torch.autograd.grad(indexed(q, table, index, comparison).sum(), table)
    rows_of = index.unique()
    assert grad.is_sparse
    assert torch.equal(grad._indices(), torch.stack([rows_of // 4, rows_of % 4]))


def test_a_plan_is_used_or_made(comparison="modulus"):
    given = case(comparison, 5, 7, 2, 4, 6)
    plan = plan_rows(given[2].view(-1), 8)
    assert same_bits(
        found_by(indexed, comparison, *given),
        found_by(indexed if module.native.NATIVE else without_plan, comparison, *given, plan=plan),
    )


def without_plan(*arguments, plan):
    return indexed(*arguments)


@native
def test_a_plan_may_be_padded(comparison):
    for shape in [(5, 7, 2, 4, 6), (0, 7, 2, 4, 6)]:
        given = case(comparison, *shape)
        plan = plan_rows_padded(given[2].view(-1), 8)
        found = found_by(indexed, comparison, *given, plan=plan)
        assert same_bits(found, found_by(indexed, comparison, *given))


@native
def test_the_gradients_are_of_the_rows_of_the_plan(comparison="modulus"):
    q, table, index = case(comparison, 5, 7, 1, 9, 6)
    plan = plan_rows(index.view(-1), 9)
    moved = plan._replace(unique_rows=plan.unique_rows.flip(0))
    table.requires_grad_()
    (grad,) = torch.autograd.grad(indexed(q, table, index, comparison, moved).sum(), table)
    assert torch.equal(grad._indices()[1], moved.unique_rows)


def test_frozen_tables_and_queries_have_no_gradient(comparison="modulus"):
    q, table, index = case(comparison, 5, 7, 2, 4, 6)
    _, dq, of_table = found_by(indexed, comparison, q, table, index)
    q.requires_grad_()
    (alone,) = torch.autograd.grad(indexed(q, table, index, comparison), q, rows(5, 7, 9))
    assert torch.equal(alone, dq)
    q.requires_grad_(False)
    table.requires_grad_()
    (alone,) = torch.autograd.grad(indexed(q, table, index, comparison), table, rows(5, 7, 9))
    assert torch.equal(alone.to_dense() if alone.is_sparse else alone, of_table)
    with torch.no_grad():
        assert not indexed(q, table, index, comparison).requires_grad


def test_indices_of_both_widths_name_the_same_rows(comparison="modulus"):
    q, table, index = case(comparison, 5, 7, 2, 4, 6)
    both = [
        found_by(indexed, comparison, q, table, index.to(x)) for x in (torch.int32, torch.int64)
    ]
    assert same_bits(*both)


@native
def test_rows_and_indices_may_lie_apart(comparison):
    q, table, index = case(comparison, 5, 7, 2, 4, 6)
    apart = (
        q.T.contiguous().T,
        torch.cat([table, table], 1)[:, :4],
        index.repeat_interleave(2, 1)[:, ::2],
    )
    assert not any(x.is_contiguous() for x in apart)
    assert same_bits(
        found_by(indexed, comparison, q, table, index), found_by(indexed, comparison, *apart)
    )


@native
def test_any_number_of_threads_gives_the_same_bits(comparison):
    q, table, index = case(comparison, 300, 40, 2, 70, 21)
    given = torch.sin(100 * q), torch.sin(100 * table), index
    one, two, four = by_threads(lambda: found_by(indexed, comparison, *given))
    assert same_bits(one, two) and same_bits(one, four)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_double_precision_and_halves_have_the_reference(dtype):
    for comparison in COMPARISONS:
        given = case(comparison, 5, 7, 2, 4, 6)
        both = [found_by(f, comparison, *given, dtype=dtype) for f in (indexed, reference)]
        assert same_bits(*both) and both[0][0].dtype == dtype


@native
def test_a_traced_graph_has_no_native_operation(comparison="l1"):
    given = case(comparison, 5, 7, 2, 4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace takes for constant
        traced = torch.jit.trace(lambda *x: indexed(*x, comparison), given)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert kinds and not any("besskge" in x or "Python" in x for x in kinds)
    assert_close(traced(*given), reference(*given, comparison))


# -- errors --------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("row, said", [(8, "0 to 8"), (-1, "-1 to")])
def test_rows_that_are_not_there_are_refused(row, said):
    q, table, index = case("l1", 5, 7, 2, 4, 6)
    index[3, 2] = row
    with pytest.raises(IndexError, match=rf"indexed: rows run from {said}.*of \[0, 8\)"):
        indexed(q, table, index, "l1")
    with pytest.raises(IndexError, match=f"row {row} is out of range for a table of 8 rows"):
        indexed(q, table.requires_grad_(), index, "l1")


@pytest.mark.parametrize(
    "q, table, index, expected",
    [
        ((3, 4), (1, 5, 6), (3, 2), r"table has shape \(1, 5, 6\), expected \(L, E, D\) with B=3, D=4"),
        ((3, 4), (5, 4), (3, 2), r"table has shape \(5, 4\), expected \(L, E, D\)"),
        ((3, 4), (1, 5, 4), (2, 2), r"index has shape \(2, 2\), expected \(B, N\) with B=3"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused(q, table, index, expected):
    with pytest.raises(ShapeError, match=expected):
        indexed(torch.zeros(q), torch.zeros(table), torch.zeros(index, dtype=torch.long), "l1")


def test_other_comparisons_are_refused():
    with pytest.raises(ConfigError, match=r"unknown comparison 'l3'; expected one of \('dot', "):
        indexed(torch.zeros(1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 1).long(), "l3")


@native
def test_the_operation_itself_refuses_what_it_cannot_read():
    op, back = torch.ops.besskge.indexed, torch.ops.besskge.indexed_backward
    q, table, index = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, 2).long()
    plan = tuple(plan_rows(index.view(-1), 5))
    for call, error, expected in [
        (lambda: op(q, table[:, :2], index, "l1"), ValueError, r"got \[3, 4\], \[5, 2\] and \[3, 2\]"),
        (lambda: op(q.double(), table, index, "l1"), TypeError, "float32, got Double and Float"),
        (lambda: op(q, table, index, "l3"), ValueError, "indexed expects a comparison of .*got 'l3'"),
        (lambda: op(q[:, :3], table[:, :3], index, "modulus"), ValueError, "a width of 3"),
        (lambda: back(q, q, q, table, index, "l1", *plan), ValueError, r"got \[3, 4\], \[3, 4\] and \[6\]"),
        (lambda: back(index, index, q, table, index, "l1", *plan[:2], index[0]), ValueError, r"and \[2\]"),
    ]:  # fmt: skip
        with pytest.raises(error, match=expected):
            call()


@native
@needs_opcheck
def test_torch_is_told_what_the_operations_do(comparison):
    q, table, index = case(comparison, 5, 7, 1, 9, 6)
    given = q, table[0], index, comparison
    torch.library.opcheck(torch.ops.besskge.indexed.default, given)
    torch.library.opcheck(
        torch.ops.besskge.indexed_backward.default,
        (rows(5, 7), torch.ops.besskge.indexed(*given), *given, *plan_rows(index.view(-1), 9)),
    )


@native
def test_gradients_of_gradients_are_refused_not_wrong(comparison="modulus"):
    q, table, index = case(comparison, 5, 7, 1, 9, 6)
    scores = indexed(q.requires_grad_(), table.requires_grad_(), index, comparison)
    (grad,) = torch.autograd.grad(scores.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
