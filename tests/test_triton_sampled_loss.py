"""The loss by Triton kernels is that of the plain-torch reference, and so are its gradients."""

from __future__ import annotations

import sys

import pytest
import torch
from fused_support import general, is_fused, outcome, step
from pairs_support import COMPARISONS, leaves_of, value_and_gradients
from sampled_loss_support import RULES, case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from triton_support import DEVICE

from besskge_core.bess import fused
from besskge_core.ops import Pairing, native
from besskge_core.ops.gpu import losses, pairwise, tile_losses, tile_products
from besskge_core.ops.gpu.sampled_loss import sampled_loss
from besskge_core.ops.sampled_loss import MOVES

module = sys.modules["besskge_core.ops.sampled_loss"]
reference = module.reference


def arguments(given, pairing, rule, weighted, wanted):
    """Of the operation."""
    table, index, relation, relation_id, weight = [x.to(DEVICE) for x in given]
    return (
        table.flatten(end_dim=1), index[0], relation, relation_id[0],
        weight[0] if weighted else None, *pairing, *rule[:3], rule[3:9], rule.scale, wanted,
        None, None, None,
    )  # fmt: skip


def found_by_kernels(given, pairing, rule, weighted, wanted=True):
    """The loss, and the gradients of table (L, E, D) and relations."""
    table, index = given[:2]
    loss, of_rows, of_relation = sampled_loss(*arguments(given, pairing, rule, weighted, wanted))
    if not wanted:
        assert not of_rows.numel() and not of_relation.numel()
        return [loss.cpu()]
    of_table = torch.zeros(table[..., 0].numel(), table.shape[2])
    of_table.index_add_(0, index[0].cpu(), of_rows.cpu())
    return [loss.cpu(), of_table.view(table.shape), of_relation.cpu()]


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
def test_loss_and_gradients_are_those_of_the_reference(comparison, move):
    for i, rule in enumerate(RULES[:: 1 if (comparison, move) == ("l1", "translation") else 4]):
        for heads in (False, True):
            pairing = Pairing(11, False, heads, move, comparison)
            check(case(seed=i), pairing, rule, weighted=(i + heads) % 2 == 0)


SHAPES = {  # name -> (B, N, D)
    "no positives": (0, 3, 6),
    "one": (1, 1, 2),
    "no multiples of a tile": (19, 37, 26),
    "more candidates than a tile": (3, 300, 6),
    "wide": (2, 5, 400),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_number_of_rows_is_served(shape, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK_N", 128)
    n_positive, n_candidate, width = shape
    given = case(n_positive, n_candidate, (False, 1), width)
    for comparison, rule in zip(("dot", "l1", "modulus"), (RULES[3], RULES[9], RULES[12])):
        pairing = Pairing(n_candidate, False, True, "complex_scaling", comparison)
        check(given, pairing, rule._replace(margin=rule.margin + 0.1))


def test_rows_may_have_an_odd_width():
    for comparison in sorted(set(COMPARISONS) - {"modulus"}):
        for move in ("translation", "scaling"):
            check(case(width=19), Pairing(11, False, False, move, comparison), RULES[0])


def test_complex_numbers_have_two_parts():
    for move, comparison in (("complex_scaling", "dot"), ("scaling", "modulus")):
        with pytest.raises(ValueError, match="expects rows of complex numbers, got a width of 19"):
            check(case(width=19), Pairing(11, False, False, move, comparison), RULES[0])


def test_entities_may_come_again_and_be_their_own_negatives():
    for comparison in COMPARISONS:
        table, index, *rest = case(20, 25)
        index[:, ::2] = 17
        check(
            (table, index, *rest),
            Pairing(25, False, True, "translation", comparison),
            RULES[1],
            atol=1e-4,
        )


@pytest.mark.parametrize("size", [2.0**-20, 2.0**7, 2.0**20])
def test_tiny_and_huge_scores_lose_nothing(size):
    table, *rest = case()
    rest[1] = rest[1] * size
    pairing = Pairing(11, False, False, "translation", "l1")
    for rule in RULES if size < 2.0**20 else RULES[:12]:  # a softmax of such is all or nothing
        check((table * size, *rest), pairing, rule, atol=1e-4 * min(size, 1.0))


@pytest.mark.parametrize("place", [0, 7, 14], ids=["head", "tail", "candidate"])
def test_a_loss_of_what_is_no_number_is_none(place):
    table, index, *rest = case()
    index[index == 17] = 16
    table[0, 17] = float("nan")
    with_nan = index.clone()
    with_nan[0, place] = 17
    pairing = Pairing(11, False, False, "translation", "l1")
    for rule in (*RULES[:-2:3], RULES[-1]):
        assert torch.isfinite(found_by_kernels((table, index, *rest), pairing, rule, True)[0])
        assert found_by_kernels((table, with_nan, *rest), pairing, rule, True)[0].isnan()


def test_gradients_are_made_where_they_are_wanted():
    pairing = Pairing(11, False, False, "translation", "l2")
    for rule in RULES:
        (loss,) = found_by_kernels(case(), pairing, rule, True, wanted=False)
        assert torch.equal(loss, found_by_kernels(case(), pairing, rule, True)[0])


def test_two_runs_give_the_same_bits():
    given = case(20, 40)
    given = (torch.sin(9 * given[0]), *given[1:])
    for comparison in ("dot", "l1", "l2"):
        pairing = Pairing(40, False, False, "complex_scaling", comparison)
        once, again = (found_by_kernels(given, pairing, RULES[3], True) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(once, again))


# -- tables in bfloat16 --------------------------------------------------------------------------


def rounded_case(**options):
    """A case whose table and relations are bfloat16."""
    table, index, relation, *rest = case(**options)
    return table.bfloat16(), index, relation.bfloat16(), *rest


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("comparison", sorted(set(COMPARISONS) - {"dot", "l2"}))
def test_distances_of_bfloat16_rows_are_those_of_the_same_rows_in_float32(comparison, move):
    given = rounded_case()
    wide = given[0].float(), given[1], given[2].float(), *given[3:]
    for rule in (RULES[3], RULES[12]):
        pairing = Pairing(11, False, True, move, comparison)
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
    given = rounded_case(n_positive=19, n_candidate=37, width=width)
    for rule, heads in zip((RULES[3], RULES[8], RULES[12]), (False, True, True)):
        check_products(given, Pairing(37, False, heads, move, comparison), rule)


@pytest.mark.parametrize("i", range(len(RULES)))
def test_losses_of_narrow_rows_are_put_together_from_parts(i, monkeypatch):
    monkeypatch.setattr(pairwise, "LEAST_PART", 16)
    for holder in (tile_losses, tile_products):
        monkeypatch.setattr(holder, "TILE_OWN", 16)
        monkeypatch.setattr(holder, "TILE_OTHER", 16)
    given = rounded_case(n_positive=20, n_candidate=37)
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


@pytest.mark.parametrize("score", STEPS)
def test_a_step_of_bfloat16_tables_is_that_of_several_operations(graph, score, monkeypatch):
    model, batch = step(graph, score=score, p=STEPS[score], dtype=torch.bfloat16)
    assert not is_fused(model, batch)
    model.to(DEVICE)
    batch = {name: x.to(DEVICE) for name, x in batch.items()}
    expected = outcome(general(model), batch)
    if DEVICE == "cpu":  # kernels are of CUDA, and this is the interpreter
        for holder in (fused, module):
            monkeypatch.setattr(holder, "serves", lambda table, per_triple: True)
        monkeypatch.setattr(torch.ops.besskge, "sampled_loss", sampled_loss)
    assert is_fused(model, batch)
    found = outcome(model, batch)
    assert found.keys() == expected.keys()
    assert found["loss"].dtype == torch.float32
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        assert_close(found[name], x, rtol=5e-2, atol=3e-2 * x.abs().max().item())


@pytest.mark.parametrize("wanted", [True, False])
def test_torch_is_told_that_results_are_float32(wanted):
    given = arguments(
        rounded_case(), Pairing(11, False, False, "scaling", "dot"), RULES[0], True, wanted
    )
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
            assert module.serves(table, False) == is_served
            assert not module.serves(table, True)
    assert not module.serves(torch.empty(1, 5, 4, dtype=torch.bfloat16), False)


# -- what is refused -----------------------------------------------------------------------------


def test_candidates_of_each_triple_are_refused():
    with pytest.raises(NotImplementedError, match="has candidates that all positives share"):
        found_by_kernels(
            case(layout=(True, 1)), Pairing(11, True, False, "scaling", "l1"), RULES[0], False
        )


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
