"""Native scores of queries with shared candidates are those of the reference, and so are gradients."""

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
from support import needs_half, needs_opcheck
from torch.testing import assert_close

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.ops import pairwise
from besskge_core.ops.native import NATIVE
from besskge_core.scoring.comparators import Distance, ModulusDistance, TorusDistance
from besskge_core.scoring.distances import ScaledDistance
from besskge_core.scoring.formula import PairScore

module = sys.modules["besskge_core.ops.pairwise"]
reference = module.reference

WEIGHTED = ["weighted l1", "weighted l2"]
EMPTY = [(0, 5, 6), (5, 0, 6), (3, 4, 0), (0, 0, 0)]
SHAPES = {  # name -> (B, N, entries, of which a complex one has two parts)
    "one": (1, 1, 1),
    "no multiples of a tile": (37, 19, 13),
    "wide": (300, 70, 200),
    "groups of queries": (600, 33, 16),
    "blocks of candidates": (11, 523, 17),
}


def case(name, n_query, n_candidate, half, seed=0):
    """The comparison, and (q, e) or (q, e, weight)."""
    comparison = name.split()[-1]
    width = width_of(comparison, half)
    tensors = [rows(n_query, width, seed), rows(n_candidate, width, seed + 1)]
    if name in WEIGHTED:
        tensors.append(rows(n_query, width, seed + 2))
    if comparison.startswith("torus"):  # not on the edge of half a turn, where the sign changes
        tensors = [x * 0.9375 for x in tensors]
    return comparison, tensors


def found_by(fn, comparison, tensors, dtype=torch.float32, seed=9):
    """Scores and gradients of all tensors, for slopes that differ from pair to pair."""
    q, e, *weight = leaves = leaves_of(tensors, dtype)
    slopes = rows(len(q), len(e), seed).to(dtype)
    return value_and_gradients(lambda: fn(q, e, comparison, *weight), leaves, slopes)


def check(name, *shape, scale=1.0, rtol=1e-5):
    comparison, tensors = case(name, *shape)
    if scale != 1.0:
        tensors = [*(x * scale for x in tensors[:2]), *tensors[2:]]
    found = found_by(pairwise, comparison, tensors)
    expected = found_by(reference, comparison, tensors, torch.float64)
    assert found[0].dtype == torch.float32
    for x, y in zip(found, expected):
        size = y.abs().max().item() if y.numel() else 0.0
        assert_close(x.double(), y, rtol=rtol, atol=1e-6 * size)


@pytest.fixture(params=[*COMPARISONS, *WEIGHTED])
def name(request):
    return request.param


# -- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_and_gradients_are_those_of_the_reference(name, shape):
    check(name, *shape)


def test_there_may_be_no_queries_no_candidates_or_no_entries(name):
    for shape in EMPTY:
        check(name, *shape)


def test_huge_and_tiny_entries_lose_nothing(name):
    for exponent in (50, -30):
        check(name, 9, 21, 18, scale=2.0**exponent)


@native
@pytest.mark.parametrize("widths", SETS)
def test_every_instruction_set_computes_the_same(widths):
    with instruction_set(widths):
        for name in (*COMPARISONS, *WEIGHTED):
            check(name, 29, 41, 19)
            check(name, 5, 300, 7)


def test_equal_rows_have_no_distance_and_no_gradient(name):
    comparison, (q, e, *weight) = case(name, 5, 4, 21)
    if comparison == "dot":
        pytest.skip("an inner product is no distance")
    same = q[:1].expand(4, -1) + (2.0 if comparison.startswith("torus") else 0.0)
    weight = [torch.ones_like(x[:1]) for x in weight]
    scores, dq, de, *dw = found_by(pairwise, comparison, [q[:1], same, *weight])
    assert scores.abs().max() < 1e-12 and not dq.any() and not de.any()
    assert all(not x.any() for x in dw)


def test_one_equal_pair_leaves_the_gradients_of_the_others_alone(name):
    comparison, (q, e, *weight) = case(name, 5, 7, 21)
    for x in weight:
        x[2] = 2.0
    e[3] = q[2] / (2.0 if weight else 1.0)
    tensors = [q, e, *weight]
    found = found_by(pairwise, comparison, tensors)
    assert_close(
        found, found_by(reference, comparison, tensors, torch.float64), check_dtype=False,
        rtol=1e-5, atol=1e-4,
    )  # fmt: skip
    assert all(torch.isfinite(x).all() for x in found)


def test_what_is_no_number_is_passed_on():
    for name in (*COMPARISONS, *WEIGHTED):
        comparison, (q, e, *weight) = case(name, 3, 5, 18)
        q[1, 2] = float("nan")
        scores, dq, de, *_ = found_by(pairwise, comparison, [q, e, *weight])
        assert scores[1].isnan().all() and not scores[[0, 2]].isnan().any()
        assert not dq[[0, 2]].isnan().any()


@native
def test_any_number_of_threads_gives_the_same_bits(name):
    for shape in [(37, 19, 13), (600, 33, 16)]:
        comparison, tensors = case(name, *shape)
        tensors = [torch.sin(100 * x) for x in tensors]  # so that the order of a sum shows
        one, two, four = by_threads(lambda c=comparison, t=tensors: found_by(pairwise, c, t))
        assert same_bits(one, two) and same_bits(one, four)


def test_only_gradients_that_are_asked_for_are_given():
    for name in (*COMPARISONS, *WEIGHTED):
        comparison, tensors = case(name, 4, 6, 5)
        expected = found_by(pairwise, comparison, tensors)
        for i in range(len(tensors)):
            leaves = [x.clone().requires_grad_(i == j) for j, x in enumerate(tensors)]
            pairwise(*leaves[:2], comparison, *leaves[2:]).backward(rows(4, 6, 9))
            assert torch.equal(leaves[i].grad, expected[1 + i])
            assert all(x.grad is None for j, x in enumerate(leaves) if i != j)
        with torch.no_grad():
            assert torch.equal(pairwise(*tensors[:2], comparison, *tensors[2:]), expected[0])


# -- how rows lie --------------------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "a part of wider rows": lambda x: torch.cat([x, x, x], 1)[:, 5 : 5 + x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "one row": lambda x: x[:1].expand_as(x),
}


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_may_lie_apart(layout):
    for name in (*COMPARISONS, *WEIGHTED):
        check_apart(name, layout)


def check_apart(name, layout):
    comparison, tensors = case(name, 7, 21, 18)
    apart = [LAYOUTS[layout](x) for x in tensors]
    assert not any(x.is_contiguous() for x in apart)
    together = [x.contiguous() for x in apart]

    def found(tensors):
        q, e, *weight = [x.detach().requires_grad_() for x in tensors]
        slopes = LAYOUTS[layout](rows(7, 21, 5))
        return value_and_gradients(
            lambda: pairwise(q, e, comparison, *weight), [q, e, *weight], slopes
        )

    assert same_bits(found(apart), found(together))


def test_one_column_of_a_table_is_a_row_of_one_entry():
    q, e = rows(9, 4)[:, 1:2], rows(33, 4, 1)[:, 2:3]
    assert_close(pairwise(q, e, "l1"), -(q - e.T).abs())


@native
@needs_half
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_computed_in_float32(dtype):
    for name in (*COMPARISONS, *WEIGHTED):
        comparison, tensors = case(name, 7, 21, 18)
        halves = [x.to(dtype) for x in tensors]
        found = found_by(pairwise, comparison, halves, dtype)
        wide = found_by(pairwise, comparison, [x.float() for x in halves])
        assert all(x.dtype == dtype for x in found)
        assert torch.equal(found[0], wide[0].to(dtype))
        assert_close(found[1:], [x.to(dtype) for x in wide[1:]])


def test_double_precision_and_other_devices_have_the_reference(monkeypatch):
    monkeypatch.setattr(module, "_Pairwise", None)
    for name in (*COMPARISONS, *WEIGHTED):
        comparison, tensors = case(name, 7, 21, 18)
        found = found_by(pairwise, comparison, tensors, torch.float64)
        assert same_bits(found, found_by(reference, comparison, tensors, torch.float64))
        q, e, *weight = (x.to("meta") for x in tensors)
        scores = pairwise(q, e, comparison, *weight)
        assert scores.is_meta and scores.shape == (7, 21)


@native
def test_a_traced_graph_has_no_native_operation(name):
    comparison, tensors = case(name, 3, 5, 4)

    def asked(q, e, *weight):
        assert not module.serves(q)
        return pairwise(q, e, comparison, *weight)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace takes for constant
        traced = torch.jit.trace(asked, tuple(tensors), check_trace=False)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert kinds and not any("besskge" in x or "Python" in x for x in kinds)
    assert module.serves(tensors[0]) == NATIVE
    assert_close(traced(*tensors), asked_plainly(tensors, comparison))


def asked_plainly(tensors, comparison):
    return reference(*tensors[:2], comparison, *tensors[2:])


# -- in a score function -------------------------------------------------------------------------


def in_both_precisions(score, tensors, *arguments):
    both = []
    for dtype in (torch.float32, torch.float64):
        leaves = leaves_of(tensors, dtype)
        slopes = rows(len(leaves[0]), len(leaves[1]), 9)
        both.append(value_and_gradients(lambda x=leaves: score(*x, *arguments), leaves, slopes))
    for x, y in zip(*both):
        assert_close(x.double(), y, rtol=1e-5, atol=1e-4)


def count_calls(monkeypatch):
    calls, apply = [], module._Pairwise.apply
    monkeypatch.setattr(
        module._Pairwise, "apply", lambda *x: calls.append(x[-1]) or apply(*x), raising=True
    )
    return calls


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("comparator", [Distance, ModulusDistance, TorusDistance])
def test_comparators_score_alike_with_and_without_kernels(comparator, p, monkeypatch):
    calls = count_calls(monkeypatch)
    tensors = [0.9375 * rows(7, 20), 0.9375 * rows(33, 20, 1)]
    in_both_precisions(comparator(p).pairwise, tensors)
    names = {Distance: f"l{p}", TorusDistance: f"torus_l{p}"}
    assert calls == NATIVE * [names.get(comparator, "modulus" if p == 1 else "l2")]


@pytest.mark.parametrize("comparator", [Distance, ModulusDistance, TorusDistance])
def test_other_norms_are_not_native(comparator, monkeypatch):
    calls = count_calls(monkeypatch)
    in_both_precisions(comparator(3).pairwise, [0.9375 * rows(7, 20), 0.9375 * rows(9, 20, 1)])
    assert not calls


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        dict(normalize=True, translate=False),
        dict(normalize=True, u=0.25),
        dict(normalize=False),
    ],
    ids=["PairRE", "TripleRE", "LineaRE"],
)
def test_scaled_distances_score_alike_with_and_without_kernels(options, heads, p, monkeypatch):
    calls = count_calls(monkeypatch)
    formula = ScaledDistance(6, p, **options)
    n_part = len(formula.relation_parts)
    tensors = [rows(5, 6 * (1 + n_part)), rows(33, 6, 1)]
    in_both_precisions(formula.pairwise, tensors, heads)
    assert calls == (NATIVE and p < 3) * [f"l{p}"]
    wide = [x.double() for x in tensors]
    in_pairs = PairScore.pairwise(formula, *wide, heads)
    assert_close(formula.pairwise(*wide, heads), in_pairs)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "q, e, weight, expected",
    [
        ((3, 4), (5, 6), None, r"e has shape \(5, 6\), expected \(N, D\) with B=3, D=4"),
        ((3, 4, 1), (5, 4), None, r"q has shape \(3, 4, 1\), expected \(B, D\)"),
        ((3, 4), (5, 4), (5, 4), r"weight has shape \(5, 4\), expected \(B, D\) with B=3, D=4"),
    ],
)
def test_other_shapes_are_refused(q, e, weight, expected):
    with pytest.raises(ShapeError, match=expected):
        pairwise(
            torch.zeros(q), torch.zeros(e), "l1", None if weight is None else torch.zeros(weight)
        )


def test_other_comparisons_are_refused():
    q = torch.zeros(3, 4)
    with pytest.raises(ConfigError, match=r"unknown comparison 'l3'; expected one of \('dot', "):
        pairwise(q, q, "l3")
    for comparison in set(COMPARISONS) - {"l1", "l2"}:
        with pytest.raises(ConfigError, match=f"weights are for 'l1' and 'l2', got '{comparison}'"):
            pairwise(q, q, comparison, q)


@native
def test_the_operation_itself_refuses_what_it_cannot_read():
    op, back = torch.ops.besskge.pairwise, torch.ops.besskge.pairwise_backward
    q, e = torch.zeros(3, 4), torch.zeros(5, 4)
    for call, error, expected in [
        (lambda: op(q, e[:, :2], "l1", None), ValueError, r"got \[3, 4\] and \[5, 2\]"),
        (lambda: op(q.double(), e.double(), "l1", None), TypeError, "float32, got Double"),
        (lambda: op(q, e, "l3", None), ValueError, "pairwise expects a comparison of .*got 'l3'"),
        (lambda: op(q, e, "l1", e), ValueError, r"weights \[3, 4\] of 'l1' or 'l2', got \[5, 4\]"),
        (lambda: op(q, e, "dot", q), ValueError, "of 'l1' or 'l2', got .* of 'dot'"),
        (lambda: op(q, e, "l1", q.double()), TypeError, "float32 weights, got Double"),
        (lambda: op(q[:, :3], e[:, :3], "modulus", None), ValueError, "complex numbers, got a width of 3"),
        (lambda: back(q, q, q, e, "l1", None), ValueError, r"\(3, 5\), got \[3, 4\] and \[3, 4\]"),
    ]:  # fmt: skip
        with pytest.raises(error, match=expected):
            call()


# -- registrations -------------------------------------------------------------------------------


@native
@needs_opcheck
def test_torch_is_told_what_the_operations_do():
    for name in (*COMPARISONS, *WEIGHTED):
        comparison, (q, e, *weight) = case(name, 7, 9, 5)
        rest = comparison, *(weight or [None])
        scores = pairwise(q, e, *rest)
        torch.library.opcheck(torch.ops.besskge.pairwise.default, (q, e, *rest))
        torch.library.opcheck(
            torch.ops.besskge.pairwise_backward.default, (rows(7, 9), scores, q, e, *rest)
        )


@native
def test_gradients_of_gradients_are_refused_not_wrong():
    for name in (*COMPARISONS, *WEIGHTED):
        comparison, (q, e, *weight) = case(name, 3, 5, 4)
        q = q.requires_grad_()
        scores = pairwise(q, e, comparison, *weight)
        (grad,) = torch.autograd.grad(scores.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
