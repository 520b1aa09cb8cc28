"""The loss by Triton kernels is that of the plain-torch reference, and so are its gradients."""

from __future__ import annotations

import sys

import pytest
import torch
from fused_support import general, is_fused, outcome, step
from pairs_support import COMPARISONS, leaves_of, same_bits, value_and_gradients
from pairs_support import native as built
from resident_support import Case, resident
from sampled_loss_support import RULES, case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from triton_support import DEVICE

from besskge_core.bess import fused
from besskge_core.ops import Pairing, native
from besskge_core.ops.gpu import losses, pairwise, tile_losses, tile_products
from besskge_core.ops.gpu.sampled_loss import sampled_loss
from besskge_core.ops.rows import plan_rows, plan_rows_padded
from besskge_core.ops.sampled_loss import MOVES
from besskge_core.runtime import LocalRuntime

module = sys.modules["besskge_core.ops.sampled_loss"]
reference = module.reference


@pytest.fixture(params=[False, True], ids=["shared", "per triple"])
def per_triple(request):
    return request.param


def sized(per_triple, n_positive=7, n_candidate=11, **options):
    """A case, of a third of the positives where each has candidates: the interpreter takes its time."""
    if per_triple:
        return case(-(-n_positive // 3), n_candidate, (True, 1), n_row=10, **options)
    return case(n_positive, n_candidate, **options)


def arguments(given, pairing, rule, weighted, wanted, plan=(None, None, None)):
    """Of the operation."""
    table, index, relation, relation_id, weight = [x.to(DEVICE) for x in given]
    return (
        table.flatten(end_dim=1), index[0], relation, relation_id[0],
        weight[0] if weighted else None, *pairing, *rule[:3], rule[3:9], rule.scale, wanted,
        *(x if x is None else x.to(DEVICE) for x in plan),
    )  # fmt: skip


def found_by_kernels(given, pairing, rule, weighted, wanted=True, make_plan=plan_rows_padded):
    """The loss, and the gradients of table (L, E, D) and relations."""
    table, index = given[:2]
    n_row, entries, plan = table[..., 0].numel(), index[0].cpu(), (None, None, None)
    if pairing.per_triple and wanted:
        plan = make_plan(entries, n_row)
        entries = plan.unique_rows
    found = sampled_loss(*arguments(given, pairing, rule, weighted, wanted, plan))
    loss, of_rows, of_relation = (x.cpu() for x in found)
    if not wanted:
        assert not of_rows.numel() and not of_relation.numel()
        return [loss]
    of_table = torch.zeros(n_row + 1, table.shape[2])
    of_table.index_add_(0, entries, of_rows)
    assert not of_table[-1].any()  # padding
    return [loss, of_table[:-1].view(table.shape), of_relation]


def expected_of(given, pairing, rule, weighted, dtype=torch.float64):
    table, index, relation, relation_id, weight = given
    leaves = leaves_of([table, relation], dtype)
    weight = weight.double() if weighted else None
    return value_and_gradients(
        lambda: reference(leaves[0], index, leaves[1], relation_id, pairing, rule, weight), leaves
    )


def check(given, pairing, rule, weighted=True, atol=0.0, rtol=2e-5):
    found = found_by_kernels(given, pairing, rule, weighted)
    for x, y in zip(found, expected_of(given, pairing, rule, weighted)):
        assert x.dtype == torch.float32
        size = y.abs().max().item() if y.numel() else 0.0
        assert_close(x.double(), y, rtol=rtol, atol=max(atol, rtol / 2 * size))


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_loss_and_gradients_are_those_of_the_reference(comparison, move, per_triple):
    for i, rule in enumerate(RULES[:: 1 if (comparison, move) == ("l1", "translation") else 4]):
        for heads in (False, True):
            pairing = Pairing(11, per_triple, heads, move, comparison)
            given = sized(per_triple, seed=i)
            check(given, pairing, rule, weighted=(i + heads) % 2 == 0)


SHAPES = {  # name -> (B, N, D)
    "no positives": (0, 3, 6),
    "one": (1, 1, 2),
    "no multiples of a tile": (19, 37, 26),
    "more candidates than a tile": (3, 300, 6),
    "wide": (2, 5, 400),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_number_of_rows_is_served(shape, per_triple, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK_N", 128)
    n_positive, n_candidate, width = shape
    given = case(n_positive, n_candidate, (per_triple, 1), width)
    for comparison, rule in zip(("dot", "l1", "modulus"), (RULES[3], RULES[9], RULES[12])):
        pairing = Pairing(n_candidate, per_triple, True, "complex_scaling", comparison)
        check(given, pairing, rule._replace(margin=rule.margin + 0.1))


def test_rows_may_have_an_odd_width(per_triple):
    for comparison in sorted(set(COMPARISONS) - {"modulus"}):
        for move in ("translation", "scaling"):
            pairing = Pairing(11, per_triple, False, move, comparison)
            check(sized(per_triple, width=19), pairing, RULES[0])


def test_complex_numbers_have_two_parts():
    for move, comparison in (("complex_scaling", "dot"), ("scaling", "modulus")):
        with pytest.raises(ValueError, match="expects rows of complex numbers, got a width of 19"):
            check(case(width=19), Pairing(11, False, False, move, comparison), RULES[0])


def test_entities_may_come_again_and_be_their_own_negatives(per_triple):
    for comparison in COMPARISONS:
        table, index, *rest = sized(per_triple, 20, 25)
        index[:, ::2] = 17
        check(
            (table, index, *rest),
            Pairing(25, per_triple, True, "translation", comparison),
            RULES[1],
            atol=1e-4,
        )


@pytest.mark.parametrize("size", [2.0**-20, 2.0**7, 2.0**20])
def test_tiny_and_huge_scores_lose_nothing(size, per_triple):
    table, *rest = sized(per_triple)
    rest[1] = rest[1] * size
    pairing = Pairing(11, per_triple, False, "translation", "l1")
    for rule in RULES if size < 2.0**20 else RULES[:12]:  # a softmax of such is all or nothing
        check((table * size, *rest), pairing, rule, atol=1e-4 * min(size, 1.0))


@pytest.mark.parametrize("place", [0, 7, 14], ids=["head", "tail", "candidate"])
def test_a_loss_of_what_is_no_number_is_none(place, per_triple):
    table, index, *rest = case(layout=(per_triple, 1))
    index[index == 17] = 16
    table[0, 17] = float("nan")
    with_nan = index.clone()
    with_nan[0, place] = 17
    pairing = Pairing(11, per_triple, False, "translation", "l1")
    for rule in (*RULES[:-2:3], RULES[-1]):
        for rows, is_number in ((index, True), (with_nan, False)):
            (loss,) = found_by_kernels((table, rows, *rest), pairing, rule, True, wanted=False)
            assert loss.isfinite() == is_number and loss.isnan() != is_number


def test_gradients_are_made_where_they_are_wanted(per_triple):
    pairing = Pairing(11, per_triple, False, "translation", "l2")
    given = sized(per_triple)
    for rule in RULES:
        (loss,) = found_by_kernels(given, pairing, rule, True, wanted=False)
        assert torch.equal(loss, found_by_kernels(given, pairing, rule, True)[0])


def test_two_runs_give_the_same_bits(per_triple):
    given = sized(per_triple, 20, 40)
    given = (torch.sin(9 * given[0]), *given[1:])
    for comparison in ("dot", "l1", "l2"):
        pairing = Pairing(40, per_triple, False, "complex_scaling", comparison)
        once, again = (found_by_kernels(given, pairing, RULES[3], True) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(once, again))


# -- candidates of each positive -----------------------------------------------------------------


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_plans_are_of_any_length(comparison):
    pairing, given = Pairing(11, True, True, "scaling", comparison), case(layout=(True, 1))
    both = [
        found_by_kernels(given, pairing, RULES[3], True, make_plan=make)
        for make in (plan_rows, plan_rows_padded)
    ]
    assert same_bits(*both)


@built
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_the_operation_on_a_cpu_gives_the_same_rows(comparison):
    pairing, given = Pairing(25, True, False, "translation", comparison), case(9, 25, (True, 1))
    plan = plan_rows(given[1][0], 60)
    arguments_of = arguments(given, pairing, RULES[3], True, True, plan)
    on_cpu = (x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments_of)
    expected = torch.ops.besskge.sampled_loss(*on_cpu)
    for x, y in zip(sampled_loss(*arguments_of), expected):
        assert_close(x.cpu(), y, rtol=2e-5, atol=1e-5 * y.abs().max().item())


def test_resident_steps_are_those_of_the_host(graph, monkeypatch):
    options = dict(n_shard=2, flat=False, score="rotate", n_micro=1)
    expected = Case(graph, **options).followed(LocalRuntime, n_epoch=1)
    calls = []

    def by_kernels(*given):
        calls.append(given)
        return sampled_loss(*given)

    use_kernels(monkeypatch, by_kernels)
    found = Case(graph, **options).followed(resident, n_epoch=1)
    assert len(calls) == len(found[0]) > 2
    for x, y in zip(found, expected):
        assert_close(x, y, rtol=1e-4, atol=1e-5)


def use_kernels(monkeypatch, launcher=sampled_loss):
    """Kernels are of CUDA; in the interpreter they are the operation of the CPU."""
    if DEVICE == "cpu":
        for holder in (fused, module):
            monkeypatch.setattr(holder, "serves", lambda table: True)
        monkeypatch.setattr(torch.ops.besskge, "sampled_loss", launcher)


# -- tables in bfloat16 --------------------------------------------------------------------------


def rounded_case(*options):
    """A case whose table and relations are bfloat16."""
    table, index, relation, *rest = sized(*options)
    return table.bfloat16(), index, relation.bfloat16(), *rest


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("comparison", sorted(set(COMPARISONS) - {"dot"}))
def test_distances_of_bfloat16_rows_are_those_of_the_same_rows_in_float32(
    comparison, move, per_triple
):
    if comparison == "l2" and not per_triple:
        pytest.skip("made of products")
    given = rounded_case(per_triple)
    wide = given[0].float(), given[1], given[2].float(), *given[3:]
    for rule in (RULES[3], RULES[12]):
        pairing = Pairing(11, per_triple, True, move, comparison)
        found = found_by_kernels(given, pairing, rule, True)
        assert all(x.dtype == torch.float32 for x in found)
        expected = found_by_kernels(wide, pairing, rule, True)
        assert all(torch.equal(x, y) for x, y in zip(found, expected))


#: Widths of rows that are scored again in each pass, and of rows whose scores are stored.
WIDTHS = {"narrow": 26, "wide": 258}


def check_products(given, pairing, rule):
    """Of rows in bfloat16."""
    loss, *found = found_by_kernels(given, pairing, rule, True)
    expected, *grads = expected_of(given, pairing, rule, True, torch.bfloat16)
    assert expected.dtype == torch.float32
    assert_close(loss, expected, rtol=2e-6 if pairing.comparison == "dot" else 2e-5, atol=1e-6)
    for x, y in zip(found, grads):  # slopes have 8 bits, and so have the reference's gradients
        assert_close(x, y.float(), rtol=2e-2, atol=1e-2 * y.abs().max().item())


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("comparison", ["dot", "l2"])
@pytest.mark.parametrize("move", MOVES)
def test_products_of_bfloat16_rows_are_of_rounded_queries(move, comparison, width):
    given = rounded_case(False, 19, 37, width=width)
    for rule, heads in zip((RULES[3], RULES[8], RULES[12]), (False, True, True)):
        check_products(given, Pairing(37, False, heads, move, comparison), rule)


@pytest.mark.parametrize("move", MOVES)
def test_products_with_lists_of_bfloat16_rows_are_of_rounded_queries(move):
    given = rounded_case(True, 19, 37)
    for rule, heads in zip((RULES[3], RULES[8], RULES[12]), (False, True, True)):
        check_products(given, Pairing(37, True, heads, move, "dot"), rule)


@pytest.mark.parametrize("i", range(len(RULES)))
def test_losses_of_narrow_rows_are_put_together_from_parts(i, monkeypatch):
    monkeypatch.setattr(pairwise, "LEAST_PART", 16)
    for holder in (tile_losses, tile_products):
        monkeypatch.setattr(holder, "TILE_OWN", 16)
        monkeypatch.setattr(holder, "TILE_OTHER", 16)
    given = rounded_case(False, 20, 37)
    check_products(given, Pairing(37, False, False, "scaling", ("dot", "l2")[i // 2 % 2]), RULES[i])


@pytest.fixture
def tensor_cores():
    """Float32 may be rounded for tensor cores; the interpreter does not round."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_narrow_rows_of_float32_are_multiplied_on_tensor_cores_if_they_may_be(tensor_cores):
    rtol = 5e-3 if DEVICE == "cuda" else 2e-5
    for i, rule in enumerate(RULES[1::3]):
        pairing = Pairing(37, False, False, "complex_scaling", "dot")
        check(case(1 + 6 * i, 37), pairing, rule, rtol=rtol)


STEPS = {"distmult": 2, "complex": 2, "rotate": 1, "transe": 1}


@pytest.mark.parametrize("form", ["flat", "per triple"])
@pytest.mark.parametrize("score", STEPS)
def test_a_step_of_bfloat16_tables_is_that_of_several_operations(graph, score, form, monkeypatch):
    options = dict(score=score, p=STEPS[score], form=form)
    model, batch = step(graph, dtype=torch.bfloat16, **options)
    assert not is_fused(model, batch)
    model.to(DEVICE)
    batch = {name: x.to(DEVICE) for name, x in batch.items()}
    expected = outcome(general(model), batch)
    use_kernels(monkeypatch)
    assert is_fused(model, batch)
    found = outcome(model, batch)
    assert found.keys() == expected.keys()
    assert found["loss"].dtype == torch.float32
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        assert_close(found[name], x, rtol=5e-2, atol=3e-2 * x.abs().max().item())


@pytest.mark.parametrize("wanted", [True, False])
def test_torch_is_told_that_results_are_float32(wanted, per_triple):
    given = rounded_case(per_triple)
    plan = plan_rows_padded(given[1][0], 60) if per_triple else (None, None, None)
    pairing = Pairing(11, per_triple, False, "scaling", "dot")
    given = arguments(given, pairing, RULES[0], True, wanted, plan)
    for told, found in zip(native.FAKES["sampled_loss"](*given), sampled_loss(*given)):
        assert told.dtype == found.dtype == torch.float32
        assert told.shape == found.shape


def test_a_gpu_serves_tables_of_bfloat16_and_a_cpu_does_not(monkeypatch):
    monkeypatch.setattr(native, "ON_GPU", frozenset({"sampled_loss"}))
    with FakeTensorMode():
        for dtype, is_served in (
            (torch.float32, True),
            (torch.bfloat16, True),
            (torch.float16, False),
        ):
            table = torch.empty(1, 5, 4, dtype=dtype, device="cuda")
            assert module.serves(table) == is_served
    assert not module.serves(torch.empty(1, 5, 4, dtype=torch.bfloat16))


# -- what is refused -----------------------------------------------------------------------------


def test_rows_of_candidates_of_each_triple_are_grouped():
    given = arguments(
        case(layout=(True, 1)), Pairing(11, True, False, "scaling", "l1"), RULES[0], False, True
    )
    with pytest.raises(ValueError, match="of candidates of each triple expects its rows grouped"):
        sampled_loss(*given)


def test_small_and_large_numbers_have_exact_softplus():
    x = torch.tensor([[-100.0, -20.0, -1.0, 0.0, 1e-30, 5.0, 90.0, 1e30]])
    numbers = 0.0, 0.0, 1.0, 0.0, 1.0, 0.0
    formula = losses.Formula("pointwise", "softplus", False, numbers, 1.0, None)
    scores = x.t().to(DEVICE, copy=True)
    found = losses.losses(scores, torch.zeros(x.shape[1], device=DEVICE), formula, True, False)
    wide = x[0].double()
    softplus = torch.nn.functional.softplus(wide)
    assert_close(found.cost.double().cpu(), softplus, rtol=1e-6, atol=1e-37)
    assert_close(found.slope[:, 0].double().cpu(), wide.sigmoid(), rtol=1e-6, atol=1e-37)
