"""The loss that is computed with the scores is that of the reference, and so are its gradients."""

from __future__ import annotations

import sys

import pytest
import torch
from pairs_support import (
    COMPARISONS,
    SETS,
    by_threads,
    instruction_set,
    leaves_of,
    native,
    same_bits,
    value_and_gradients,
)
from sampled_loss_support import RULES, case
from support import needs_opcheck
from torch import nn
from torch.testing import assert_close

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.ops import LossRule, Pairing, plan_rows, sampled_loss
from besskge_core.ops.rows import plan_rows_padded
from besskge_core.ops.sampled_loss import MOVES
from besskge_core.optim import SGD

module = sys.modules["besskge_core.ops.sampled_loss"]
reference = module.reference

LAYOUTS = {"shared": (False, 1), "shared, two groups": (False, 2), "per triple": (True, 1)}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layout(request):
    """per_triple, G."""
    return request.param


def found_by(fn, given, pairing, rule, weighted=True, dtype=torch.float32, **options):
    """Loss and gradients of table and relations."""
    table, index, relation, relation_id, weight = given
    table, relation = leaves_of([table, relation], dtype)
    weight = weight.to(dtype) if weighted else None
    return value_and_gradients(
        lambda: fn(table, index, relation, relation_id, pairing, rule, weight, **options),
        [table, relation],
    )


def check(given, pairing, rule, weighted=True, atol=0.0):
    found = found_by(sampled_loss, given, pairing, rule, weighted)
    expected = found_by(reference, given, pairing, rule, weighted, torch.float64)
    assert found[0].dtype == torch.float32
    for x, y in zip(found, expected):
        size = y.abs().max().item() if y.numel() else 0.0
        assert_close(x.double(), y, rtol=1e-5, atol=max(atol, 3e-6 * size))


# -- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_loss_and_gradients_are_those_of_the_reference(comparison, move, layout):
    for i, rule in enumerate(RULES):
        for heads in (False, True):
            pairing = Pairing(11, layout[0], heads, move, comparison)
            check(case(layout=layout, seed=i), pairing, rule, weighted=(i + heads) % 2 == 0)


SHAPES = {  # name -> (B, N, D)
    "no positives": (0, 3, 6),
    "one": (1, 1, 2),
    "no multiples of a tile": (37, 19, 26),
    "blocks of positives": (101, 70, 34),
    "groups of positives": (530, 33, 6),
    "blocks of candidates": (9, 523, 14),
    "wide": (13, 21, 400),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("per_triple", [False, True])
def test_any_number_of_rows_is_served(shape, per_triple):
    n_positive, n_candidate, width = shape
    given = case(n_positive, n_candidate, (per_triple, 1), width)
    for comparison, rule in zip(COMPARISONS, (RULES[3], RULES[4], RULES[12], *RULES[8:11])):
        pairing = Pairing(n_candidate, per_triple, True, "complex_scaling", comparison)
        check(given, pairing, rule._replace(margin=rule.margin + 0.1))


def test_rows_may_have_an_odd_width(layout):
    for comparison in sorted(set(COMPARISONS) - {"modulus"}):
        for move in ("translation", "scaling"):
            pairing = Pairing(11, layout[0], False, move, comparison)
            check(case(layout=layout, width=19), pairing, RULES[0])


@native
@pytest.mark.parametrize("widths", SETS)
def test_every_instruction_set_computes_the_same(widths, layout):
    given = case(29, 41, layout, 46)
    with instruction_set(widths):
        for comparison in COMPARISONS:
            for rule in (RULES[1], RULES[3], RULES[8], RULES[12]):
                pairing = Pairing(41, layout[0], True, "complex_scaling", comparison)
                check(given, pairing, rule)


@native
def test_any_number_of_threads_gives_the_same_bits(layout):
    given = case(600, 40, layout, 34, n_row=200)
    given = (torch.sin(9 * given[0]), *given[1:])
    for comparison in COMPARISONS:
        pairing = Pairing(40, layout[0], False, "complex_scaling", comparison)
        one, two, four = by_threads(lambda p=pairing: found_by(sampled_loss, given, p, RULES[3]))
        assert same_bits(one, two) and same_bits(one, four)


def test_entities_may_come_again_and_be_their_own_negatives(layout):
    for comparison in COMPARISONS:
        table, index, *rest = case(40, 25, layout)
        index[:, ::2] = 17
        pairing = Pairing(25, layout[0], True, "translation", comparison)
        for rule in RULES[::3]:
            check((table, index, *rest), pairing, rule, atol=1e-4)
        index[:] = 17
        check((table, index, *rest), pairing, RULES[3], atol=1e-4)


@pytest.mark.parametrize("size", [2.0**-20, 2.0**7, 2.0**20])
def test_tiny_and_huge_scores_lose_nothing(size, layout):
    table, *rest = case(layout=layout)
    rest[1] = rest[1] * size
    pairing = Pairing(11, layout[0], False, "translation", "l1")
    for rule in RULES if size < 2.0**20 else RULES[:12]:  # a softmax of such is all or nothing
        check((table * size, *rest), pairing, rule, atol=1e-4 * min(size, 1.0))


@pytest.mark.parametrize("place", [0, 7, 14], ids=["head", "tail", "candidate"])
def test_a_loss_of_what_is_no_number_is_none(place, layout):
    table, index, *rest = case(layout=layout)
    index[index == 17] = 16
    table[0, 17] = float("nan")
    with_nan = index.clone()
    with_nan[0, place] = 17
    pairing = Pairing(11, layout[0], False, "translation", "l1")
    for rule in RULES:
        assert torch.isfinite(found_by(sampled_loss, (table, index, *rest), pairing, rule)[0])
        assert found_by(sampled_loss, (table, with_nan, *rest), pairing, rule)[0].isnan()


# -- gradients -----------------------------------------------------------------------------------


def test_gradients_are_scaled_with_the_loss(layout):
    given, pairing = case(layout=layout), Pairing(11, layout[0], False, "scaling", "l2")
    once = found_by(sampled_loss, given, pairing, RULES[3])
    for factor in (3.0, 1.0, 0.0):
        scaled = found_by(lambda *x, f=factor: f * sampled_loss(*x), given, pairing, RULES[3])
        assert_close(scaled, [factor * x for x in once])


@native
def test_the_gradient_has_the_rows_in_the_order_in_which_they_are_read(layout):
    table, index, relation, relation_id, _ = case(layout=layout)
    pairing = Pairing(11, layout[0], False, "scaling", "dot")
    loss = sampled_loss(table.requires_grad_(), index, relation, relation_id, pairing, RULES[0])
    (grad,) = torch.autograd.grad(loss, table)
    read = index.unique() if layout[0] else index.flatten()
    assert grad.is_sparse and grad.shape == table.shape
    assert torch.equal(grad._indices(), torch.stack([read // 30, read % 30]))


@native
def test_there_is_one_backward_pass(layout):
    table, index, relation, relation_id, _ = case(layout=layout)
    pairing = Pairing(11, layout[0], False, "scaling", "dot")
    loss = sampled_loss(table.requires_grad_(), index, relation, relation_id, pairing, RULES[0])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="has one backward pass, this is another"):
        loss.backward()


@native
def test_gradients_of_gradients_are_refused_not_wrong(layout):
    table, index, relation, relation_id, _ = case(layout=layout)
    pairing = Pairing(11, layout[0], False, "scaling", "dot")
    relation.requires_grad_()
    loss = sampled_loss(table, index, relation, relation_id, pairing, RULES[0])
    (grad,) = torch.autograd.grad(loss.square(), relation, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_plan_is_used_or_made():
    given, pairing = case(layout=(True, 1)), Pairing(11, True, False, "scaling", "dot")
    made = found_by(sampled_loss, given, pairing, RULES[0])
    for make in (plan_rows, plan_rows_padded):
        plan = make(given[1][0], 60)
        assert same_bits(found_by(sampled_loss, given, pairing, RULES[0], plan=plan), made)


def test_a_padded_plan_may_be_of_no_look_ups():
    given, pairing = case(0, 3, (True, 1)), Pairing(3, True, False, "scaling", "dot")
    plan = plan_rows_padded(given[1][0], 60)
    found = found_by(sampled_loss, given, pairing, RULES[0], plan=plan)
    assert not any(x.any() for x in found)


@pytest.mark.parametrize("make", [plan_rows, plan_rows_padded])
@pytest.mark.parametrize("n_distinct", [8, 5])
def test_a_planned_update_finds_the_rows_of_the_gradient(n_distinct, make):
    given = case(2, 2, (True, 1), width=6, n_host=1)
    index = torch.tensor([[9, 3, 7, 1, 20, 5, 28, 2]])
    index[:, n_distinct:] = 9
    table = nn.Parameter(given[0].detach().clone())
    before, plan = table.detach().clone(), make(index[0], table.shape[1])
    sampled_loss(table, index, *given[2:4], Pairing(2, True, False, "scaling", "dot"), RULES[0],
                 plan=plan).backward()  # fmt: skip
    SGD([table], lr=1.0).step(plans={table: plan})
    assert_close(table.detach(), before - table.grad.to_dense())


def test_what_is_frozen_has_no_gradient(layout):
    given, pairing = case(layout=layout), Pairing(11, layout[0], True, "scaling", "dot")
    loss, of_table, of_relation = found_by(sampled_loss, given, pairing, RULES[0])
    table, index, relation, relation_id, weight = given
    rest = relation_id, pairing, RULES[0], weight
    with torch.no_grad():
        assert torch.equal(sampled_loss(table, index, relation, *rest), loss)
    assert not sampled_loss(table, index, relation, *rest).requires_grad
    sampled_loss(table, index, relation.requires_grad_(), *rest).backward()
    assert torch.equal(relation.grad, of_relation) and table.grad is None
    sampled_loss(table.requires_grad_(), index, relation.detach(), *rest).backward()
    grad = table.grad
    assert torch.equal(grad.to_dense() if grad.is_sparse else grad, of_table)


@native
def test_tables_and_indices_may_lie_apart(layout):
    table, index, relation, *rest = given = case(layout=layout)
    apart = (
        torch.cat([table, table], 1)[:, :30], index.repeat_interleave(2, 1)[:, ::2],
        relation.T.contiguous().T, *(x.repeat_interleave(2, 1)[:, ::2] for x in rest),
    )  # fmt: skip
    pairing = Pairing(11, layout[0], False, "translation", "modulus")
    found = [found_by(sampled_loss, x, pairing, RULES[3]) for x in (given, apart)]
    assert same_bits(*found)
    narrow = (table, index.int(), relation, rest[0].int(), rest[1])
    assert same_bits(found_by(sampled_loss, narrow, pairing, RULES[3]), found[0])


def test_double_precision_has_the_reference(layout):
    given, pairing = case(layout=layout), Pairing(11, layout[0], False, "scaling", "l1")
    both = [
        found_by(fn, given, pairing, RULES[3], dtype=torch.float64)
        for fn in (sampled_loss, reference)
    ]
    assert same_bits(*both) and both[0][0].dtype == torch.float64


# -- errors --------------------------------------------------------------------------------------


PAIRING = Pairing(11, False, False, "scaling", "l1")


def call(pairing=PAIRING, rule=RULES[0], **changes):
    names = ("table", "index", "relation", "relation_id", "weight")
    given = {**dict(zip(names, case())), **changes}
    weight = given.pop("weight")
    return sampled_loss(*given.values(), pairing, rule, weight)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(table=torch.zeros(30, 10)), r"table has shape \(30, 10\), expected \(L, E, D\)"),
        (dict(relation=torch.zeros(5, 9)), r"relation has shape \(5, 9\), expected \(M, D\) with.*D=10"),
        (dict(relation_id=torch.zeros(2, 7)), r"relation_id has shape \(2, 7\), expected \(G, B\) with.*G=1"),
        (dict(weight=torch.zeros(1, 6)), r"weight has shape \(1, 6\), expected \(G, B\) with.*B=7"),
        (dict(index=torch.zeros(1, 24)), r"\(1, 24\), expected \(G, 25\): heads and tails of 7 triples and 11 candidates$"),
        (dict(pairing=Pairing(3, True, False, "scaling", "l1")), r"\(1, 25\), expected \(G, 35\).* and 3 candidates of each$"),
        (dict(pairing=Pairing(0, False, False, "scaling", "l1"), index=torch.zeros(1, 14)), r"\(G, 14\).* 0 candidates$"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused(changes, expected):
    with pytest.raises(ShapeError, match=expected):
        call(**changes)


def test_candidates_of_each_triple_are_one_group():
    table, index, relation, relation_id, _ = case(layout=(True, 1))
    pairing = Pairing(11, True, False, "scaling", "l1")
    with pytest.raises(ConfigError, match="candidates of each triple are one group, got 2"):
        sampled_loss(
            table, index.repeat(2, 1), relation, relation_id.repeat(2, 1), pairing, RULES[0]
        )


@native
@pytest.mark.parametrize("name, n_row", [("index", 60), ("relation_id", 5)])
def test_rows_that_are_not_there_are_refused(name, n_row):
    given = dict(index=case()[1], relation_id=case()[3])
    for row in (-1, n_row):
        given[name][0, 2] = row
        expected = rf"sampled_loss: rows run from .*, expected rows of \[0, {n_row}\)"
        with pytest.raises(IndexError, match=expected):
            call(**{name: given[name]})


@native
@pytest.mark.parametrize(
    "changes, error, expected",
    [
        (dict(pairing=Pairing(11, False, False, "moving", "l1")), ValueError, "a move of .*'moving'"),
        (dict(pairing=Pairing(11, False, False, "scaling", "l3")), ValueError, "a comparison of .*'l3'"),
        (dict(rule=LossRule("listwise")), ValueError, "a loss of .*got 'listwise'"),
        (dict(rule=LossRule("ranking", "gelu")), ValueError, "an? activation of .*got 'gelu'"),
        (dict(relation=torch.zeros(5, 10).double()), TypeError, "float32 .*got Float and Double"),
        (dict(table=torch.zeros(2, 30, 9), relation=torch.zeros(5, 9),
              pairing=Pairing(11, False, False, "scaling", "modulus")), ValueError, "rows of complex numbers, got a width of 9"),
        (dict(table=torch.zeros(2, 30, 9), relation=torch.zeros(5, 9),
              pairing=Pairing(11, False, False, "complex_scaling", "l1")), ValueError, "rows of complex numbers, got a width of 9"),
    ],
)  # fmt: skip
def test_the_operation_itself_refuses_what_it_cannot_compute(changes, error, expected):
    with pytest.raises(error, match=f"sampled_loss expects {expected}"):
        call(**changes)


@native
@needs_opcheck
@pytest.mark.parametrize("wanted", [False, True])
def test_torch_is_told_what_the_operation_does(layout, wanted):
    table, index, relation, relation_id, weight = case(layout=layout)
    rule, plan = RULES[0], (None, None, None)
    if layout[0] and wanted:
        plan = tuple(plan_rows(index[0], 60))
    torch.library.opcheck(
        torch.ops.besskge.sampled_loss.default,
        (
            table.flatten(end_dim=1), index[0], relation, relation_id[0], weight[0], 11, layout[0],
            False, "scaling", "l1", *rule[:3], list(rule[3:9]), rule.scale, wanted, *plan,
        ),
    )  # fmt: skip
