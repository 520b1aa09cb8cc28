"""An update of rows does what its reference says, bit for bit, however it is computed."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from support import needs_opcheck

from besskge_core.ops import Rounding, Rule, plan_rows, prefer_huge_pages, scatter_update
from besskge_core.ops.native import NATIVE
from besskge_core.ops.rounding import narrow, philox_4x32, random_halves
from besskge_core.ops.rows import plan_rows_padded, sum_rows
from besskge_core.ops.rules import PER_ROW, STATES
from besskge_core.optim import OPTIMIZERS, SGD, LazyAdam

reference = sys.modules["besskge_core.ops.scatter_update"].reference
native = pytest.mark.skipif(not NATIVE, reason="the native operations are not built")

N_ROW = 40
FLOATS = [torch.float32, torch.bfloat16]


def make_rule(name, **other):
    return Rule(
        name, **{**dict(lr=0.1, weight_decay=0.2, beta1=0.9, beta2=0.99, eps=1e-8), **other}
    )


def tables(name, width, dtype=torch.float32, n_row=N_ROW, seed=0):
    """A table (R, D) and its state."""
    generator = torch.Generator().manual_seed(seed)
    widths = [width] * len(STATES[name])
    if name in PER_ROW:
        widths[-1] = 1
    table = torch.randn(n_row, width, generator=generator).to(dtype)
    return table, [torch.rand(n_row, x, generator=generator) for x in widths]


def gradients(rows, width, dtype=torch.float32):
    """Values of these look-ups and their plan."""
    values = torch.randn(len(rows), width, generator=torch.Generator().manual_seed(1)).to(dtype)
    return values, plan_rows(torch.tensor(rows, dtype=torch.int64), N_ROW)


def updated(update, table, state, values, rule, plan=(), rounding=None):
    table, state = table.clone(), [x.clone() for x in state]
    update(table, state, values, rule, 3, *plan, rounding=rounding)
    return [table, *state]


def same_bits(a, b):
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape
        and torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())
        for x, y in zip(a, b)
    )  # fmt: skip


@pytest.fixture
def instruction_set():
    if not NATIVE:
        pytest.skip("the native operations are not built")
    yield torch.ops.besskge.instruction_set
    torch.ops.besskge.instruction_set("widest")


# -- padded plans --------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [scatter_update, reference])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", STATES)
def test_padding_changes_nothing(name, dtype, update):
    given, rounding = tables(name, 17, dtype), Rounding(seed=5, stream=1)
    all_rows = list(range(N_ROW))
    for rows in ([7, 3, 7, 39, 0, 3, 7, 21], [], [39], [0], all_rows, [*all_rows, 5], 3 * all_rows):
        values, plan = gradients(rows, 17)
        padded = plan_rows_padded(torch.tensor(rows, dtype=torch.int64), N_ROW)
        assert len(plan.unique_rows) < len(padded.unique_rows) <= min(len(rows), N_ROW) + 2
        assert len(padded.unique_rows) != len(rows) and padded.unique_rows[-1] == N_ROW
        assert torch.equal(padded.unique_rows[: len(plan.unique_rows)], plan.unique_rows)
        rule = make_rule(name)
        both = [updated(update, *given, values, rule, x, rounding) for x in (plan, padded)]
        assert same_bits(*both)
        summed = F.pad(sum_rows(values, plan), (0, 0, 0, len(padded[0]) - len(plan[0])), value=9.0)
        alone = updated(update, *given, summed, rule, (padded.unique_rows, None, None), rounding)
        assert same_bits(alone, both[0])


@pytest.mark.parametrize("update", [scatter_update, reference])
def test_a_plan_of_padding_alone_changes_nothing(update):
    table, state = tables("adam", 5)
    values, plan = gradients([7, 3, 7], 5)
    none = plan._replace(unique_rows=torch.full_like(plan.unique_rows, N_ROW))
    found = updated(update, table, state, values, make_rule("adam"), none)
    assert same_bits(found, [table, *state])


def test_lists_are_planned_apart():
    rows = torch.tensor([[4, 1, 4, 4], [0, 0, 0, 0], [9, 8, 7, 6]])
    padded = plan_rows_padded(rows, 2**33)
    for i, of_list in enumerate(rows):
        plan, n = plan_rows(of_list, 10), len(set(of_list.tolist()))
        assert torch.equal(padded.order[i], plan.order)
        assert torch.equal(padded.unique_rows[i, :n], plan.unique_rows)
        assert torch.equal(padded.run_offsets[i, :n], plan.run_offsets)
        assert set(padded.unique_rows[i, n:].tolist()) == {2**33}
        assert set(padded.run_offsets[i, n:].tolist()) == {4}


# -- against the reference -----------------------------------------------------------------------

LOOK_UPS = {
    "some": [7, 3, 7, 39, 0, 3, 7, 21],
    "no rows": [],
    "one": [5],
    "a hub": [11] * 10_000 + [2, 39],
    "all": list(range(N_ROW)),
}


@native
@pytest.mark.parametrize("width", [1, 3, 17, 200])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", STATES)
def test_rows_change_as_the_reference_says(name, dtype, width):
    given, rounding = tables(name, width, dtype), Rounding(seed=2**40 + 5, stream=3)
    for rows in LOOK_UPS.values():
        values, plan = gradients(rows, width)
        both = [
            updated(f, *given, values, make_rule(name), plan, rounding)
            for f in (scatter_update, reference)
        ]
        assert same_bits(*both)
        changed = (both[0][0] != given[0]).any(-1).nonzero().flatten().tolist()
        assert set(changed) <= set(rows)
        assert len(changed) == len(set(rows)) or dtype == torch.bfloat16  # may round to itself


@native
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", STATES)
def test_values_may_be_half_apart_or_of_all_rows(name, dtype):
    given = tables(name, 20, dtype)
    values, plan = gradients([7, 3, 7, 39], 20)
    unplanned = (torch.tensor([1, 2, 5, 30]),)
    for x, rows in [
        (values.bfloat16(), plan),
        (values.bfloat16(), unplanned),
        (values.T.contiguous().T, plan),
        (torch.cat([values, values], 1)[:, 3:23], unplanned),
        (values[:1].expand(4, 20), plan),
        (gradients(range(N_ROW), 20)[0], ()),
    ]:
        both = [updated(f, *given, x, make_rule(name), rows) for f in (scatter_update, reference)]
        assert same_bits(*both)


@pytest.mark.parametrize("widths", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(widths, instruction_set):
    wider = ["baseline", "avx2", "avx512"].index(instruction_set("widest"))
    if ["baseline", "avx2", "avx512"].index(widths) > wider:
        pytest.skip(f"this processor has no {widths}")
    for name in STATES:
        for dtype in FLOATS:
            given = *tables(name, 217, dtype), *gradients([3, 3, 3, 9, 1, 9], 217)
            call = *given[:3], make_rule(name), given[3], Rounding(1)
            assert instruction_set(widths) == widths
            assert same_bits(updated(scatter_update, *call), updated(reference, *call))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_number_of_threads_gives_the_same_bits(threads, dtype):
    generator = torch.Generator().manual_seed(0)
    table, state = tables("adam", 33, dtype, n_row=5000)
    rows = torch.randint(5000, (20_000,), generator=generator)
    rows[:3000] = 77
    values, plan = torch.randn(20_000, 33, generator=generator), plan_rows(rows, 5000)
    found = []
    for n_thread in (1, 2, 4):
        threads(n_thread)
        found.append(
            updated(scatter_update, table, state, values, make_rule("adam"), plan, Rounding(0))
        )
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


@native
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", STATES)
def test_huge_values_and_what_is_no_number_are_passed_on(name, dtype):
    given = tables(name, 18, dtype)
    values, plan = gradients([4, 6, 6, 8, 9], 18)
    values[0, 0], values[1, 1], values[3, 17] = float("nan"), float("inf"), -3e38
    values[0, 1:3] = torch.tensor([2**31 - 1, -1], dtype=torch.int32).view(torch.float32)  # NaN
    values[4] = 1e-40
    call = *given, values, make_rule(name), plan, Rounding(0)
    found = updated(scatter_update, *call)
    assert same_bits(found, updated(reference, *call))
    assert found[0][4, :3].isnan().all() and not found[0][7].isnan().any()


@pytest.mark.parametrize("shape", [(2, 20, 5), (40, 5), (5,)], ids=str)
def test_leading_axes_are_rows_laid_end_to_end(shape):
    (table, (first, second)), values = tables("adam", 5), gradients(range(N_ROW), 5)[0]
    n_row = 1 if shape == (5,) else N_ROW
    flat = [x[:n_row].clone() for x in (table, first, second)]
    shaped = [x.clone().view(shape) for x in flat]
    for x in (flat, shaped):
        grad = values[:n_row].view(x[0].shape)
        scatter_update(x[0], x[1:], grad, make_rule("adam"), 1)
    assert same_bits(flat, [x.view(n_row, 5) for x in shaped])


# -- stochastic rounding ---------------------------------------------------------------------------


def test_the_generator_is_philox():  # known answers of Random123
    numbers = [torch.tensor(x) for x in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    words = philox_4x32(numbers, [0xA4093822, 0x299F31D0])
    assert [int(x) for x in words] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    words = philox_4x32([torch.tensor(0)] * 4, [0, 0])
    assert [int(x) for x in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_random_numbers_have_an_address():
    rows = torch.arange(50)
    found = random_halves(rows, 200, 7, Rounding(5, 1))
    assert torch.equal(found[20:23, :17], random_halves(rows[20:23], 17, 7, Rounding(5, 1)))
    for other in [(8, Rounding(5, 1)), (7, Rounding(6, 1)), (7, Rounding(5, 2)),
                  (7, Rounding(5 + 2**40, 1))]:  # fmt: skip
        assert (found == random_halves(rows, 200, *other)).float().mean() < 0.01
    assert found.min() >= 0 and found.max() < 2**16
    assert abs(found.double().mean() / 2**15 - 1) < 0.01  # of 10,000: 3 deviations are 0.017
    assert found.unique().numel() > 9000


@pytest.mark.parametrize("value", [1.0 + 2.0**-10, -3.3, 0.1, 1e-30, 0.0])
def test_rounding_is_right_on_average(value):
    exact = torch.full((2000, 100), value)
    rounded = narrow(exact, torch.bfloat16, torch.arange(2000), 1, Rounding(0)).double()
    step = torch.tensor(abs(value)).frexp()
    unit = 2.0 ** (int(step.exponent) - 8)  # between neighbours in bfloat16
    assert ((rounded - exact.double()).abs() < unit).all()
    assert abs(rounded.mean() - exact[0, 0].double()) < 0.005 * unit  # over 4 deviations


def test_what_bfloat16_holds_stays_and_the_rest_is_kept():
    held = torch.tensor([[0.0, -0.0, 1.5, float("inf"), float("-inf"), 2.0**-140]])
    found = narrow(held, torch.bfloat16, torch.tensor([0]), 1, Rounding(0))
    assert torch.equal(found, held.bfloat16())
    nan = narrow(
        torch.full((1, 64), float("nan")), torch.bfloat16, torch.tensor([0]), 1, Rounding(0)
    )
    assert nan.isnan().all()


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "rowwise_adam"])
def test_training_goes_on_where_rounding_to_the_nearest_stalls(name):
    # Each step moves a weight of 1 by a fraction of what bfloat16 can tell apart.
    moved = {}
    for stochastic in (True, False):
        parameter = torch.nn.Parameter(torch.ones(20, 50, dtype=torch.bfloat16))
        start = dict(initial_accumulator_value=1.0) if name == "adagrad" else {}
        optimizer = OPTIMIZERS[name](
            [parameter], lr=5e-4, stochastic_rounding=stochastic, **start
        )  # fmt: skip
        for _ in range(100):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        moved[stochastic] = 1.0 - parameter.detach().float().mean().item()
    exact = 5e-4 * (sum((1 + i) ** -0.5 for i in range(1, 101)) if name == "adagrad" else 100)
    assert moved[False] == 0.0
    assert abs(moved[True] / exact - 1) < 0.05


def test_tables_are_rounded_apart_and_again_the_same():
    def trained(seed):
        parameters = [torch.nn.Parameter(torch.ones(8, 64, dtype=torch.bfloat16)) for _ in "ab"]
        for x in parameters:
            x.grad = torch.full_like(x, 1e-3)
        SGD(parameters, lr=1.0, seed=seed).step()
        return [x.detach() for x in parameters]

    a, b = trained(0)
    assert not torch.equal(a, b)
    assert torch.equal(a, trained(0)[0]) and not torch.equal(a, trained(1)[0])


# -- in an optimiser -----------------------------------------------------------------------------


class Plain(LazyAdam):
    """Has a rule of its own, so that it is torch that computes."""

    n_asked = 0

    def update(self, *arguments):
        self.n_asked += 1
        super().update(*arguments)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_a_subclass_with_an_update_of_its_own_is_asked(dtype):
    found = []
    for optimizer_class in (LazyAdam, Plain):
        parameter = torch.nn.Parameter(tables("adam", 9)[0].to(dtype))
        optimizer = optimizer_class([parameter], weight_decay=0.1)
        for rows in ([3, 3, 1], [1, 0, 1]):
            values = gradients(rows, 9)[0].to(dtype)
            parameter.grad = torch.sparse_coo_tensor(
                torch.tensor([rows]), values, (N_ROW, 9), check_invariants=False
            )
            optimizer.step()
        found.append(parameter.detach())
    assert same_bits(found[:1], found[1:]) and optimizer.n_asked == 2


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*63\), got {seed}"):
        SGD([torch.nn.Parameter(torch.zeros(1))], seed=seed)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [scatter_update, reference])
@pytest.mark.parametrize(
    "rule, state, values, expected",
    [
        ("sgd", [(40, 5)], (40, 5), "by sgd expects 0 tensors of state, got 1"),
        ("adam", [(40, 5)], (40, 5), "by adam expects 2 tensors of state, got 1"),
        ("adagrad", [(40, 1)], (40, 5), r"of a table \[40, 5\], got \[40, 1\]"),
        ("rowwise_adagrad", [(40, 5)], (40, 5), r"of a table \[40, 5\], got \[40, 5\]"),
        ("sgd", [], (3, 5), r"expects values \(2, 5\), one for each row, got "),
        ("lion", [], (40, 5), "scatter_update knows no rule 'lion'"),
    ],
)
def test_what_does_not_fit_is_refused(update, rule, state, values, expected):
    rows = torch.tensor([0, 1]) if values[0] == 3 else None
    with pytest.raises(ValueError, match=f"scatter_update .*{expected}|{expected}"):
        update(
            torch.zeros(40, 5), [torch.zeros(x) for x in state], torch.zeros(values),
            make_rule(rule), 1, rows,
        )  # fmt: skip


@native
@pytest.mark.parametrize(
    "plan, expected",
    [
        (([1, 0],), r"unique_rows that rise, in \[0, 40\)"),
        (([1, 1],), r"unique_rows that rise, in \[0, 40\)"),
        (([-1, 1],), r"unique_rows that rise, in \[0, 40\)"),
        (([1, 41],), r"unique_rows that rise, in \[0, 40\)"),
        (([1], [0], [0, 2]), r"an order of places in \[0, 2\)"),
        (([1, 2], [0, 3], [0, 1]), "run_offsets that rise from 0 to at most 2"),
        (([1, 2], [1, 1], [0, 1]), "run_offsets that rise from 0 to at most 2"),
        (([1, 2], [0], [0, 1]), r"run_offsets \(2,\) and order \(2,\), got \[1\] and \[2\]"),
        (([1, 2], [0, 1]), "both run_offsets and order, or neither"),
    ],
)
def test_plans_that_would_write_elsewhere_are_refused(plan, expected):
    table = torch.zeros(40, 5)
    with pytest.raises(ValueError, match=f"scatter_update expects {expected}"):
        scatter_update(
            table, [], torch.ones(2, 5), make_rule("sgd"), 1, *(torch.tensor(x) for x in plan)
        )
    assert not table.any()


# -- registrations -------------------------------------------------------------------------------


@native
@needs_opcheck
def test_torch_is_told_what_the_operations_do():
    table, state = tables("adam", 5)
    values, plan = gradients([7, 3, 7], 5)
    arguments = (table, state, values, *plan, *make_rule("adam"), 1, None, 0)
    torch.library.opcheck(torch.ops.besskge.scatter_update.default, arguments)
    torch.library.opcheck(torch.ops.besskge.prefer_huge_pages.default, (table,))


@native
def test_autograd_sees_that_a_table_has_changed():
    leaf = torch.ones(3, 2, requires_grad=True)
    table = leaf * 1.0
    loss = (table * table).sum()
    scatter_update(table.detach(), [], torch.ones(3, 2), make_rule("sgd"), 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("n_row", [0, 3, 40_000])
def test_huge_pages_leave_values_alone(n_row):
    x = torch.randn(n_row, 101, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    prefer_huge_pages(x)
    prefer_huge_pages(x.T)
    assert torch.equal(x, before)
