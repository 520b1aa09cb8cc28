"""Kernels that read, sum and update rows give the bits of the plain-torch references."""

from __future__ import annotations

import sys

import pytest
import torch
from pairs_support import rows as exact_rows
from triton_support import DEVICE

from besskge_core.ops import Rounding, Rule, plan_rows, sum_rows
from besskge_core.ops.gpu.gather import gather
from besskge_core.ops.gpu.scatter_update import FORMS, scatter_update, update_rows
from besskge_core.ops.gpu.segments import SEGMENT, sum_runs
from besskge_core.ops.rounding import random_halves as reference_halves
from besskge_core.ops.rules import PER_ROW, STATES

N_ROW = 12
FLOATS = [torch.float32, torch.bfloat16]
LOOKUPS = {
    "some": [3, 1, 3, 3, 0, 11],
    "none": [],
    "one row": [7],
    "runs of every length about a segment": [0] * (SEGMENT - 1)
    + [2] * SEGMENT
    + [3]
    + [5] * (2 * SEGMENT + 1)
    + [9] * 3,
}
THOUSANDS = torch.tensor([4] * 2100 + [6, 6])  # fmt: skip


@pytest.fixture(params=LOOKUPS.values(), ids=LOOKUPS)
def lookups(request):
    return torch.tensor(request.param, dtype=torch.int64)


def on_device(*tensors):
    return [x if x is None else x.to(DEVICE) for x in tensors]


# -- gather ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 5, 128, 2100])
def test_gathered_rows_are_those_of_the_table(dtype, width, generator):
    table = torch.randn(2, 7, width, generator=generator).to(dtype)
    for n_lookup, of_index in ((0, torch.int64), (1, torch.int32), (37, torch.int64)):
        index = torch.randint(7, (2, n_lookup), generator=generator, dtype=of_index)
        expected = torch.stack([rows[i.long()] for rows, i in zip(table, index)])
        assert torch.equal(gather(*on_device(table, index)).cpu(), expected)


def test_tables_and_indices_may_lie_apart(generator):
    table = torch.randn(2, 7, 6, generator=generator)
    index = torch.randint(5, (2, 9), generator=generator)
    expected = gather(*on_device(table[:, 1:6, :5].contiguous(), index))
    apart = index.repeat_interleave(2, 1)[:, ::2]
    assert torch.equal(gather(table.to(DEVICE)[:, 1:6, :5], apart.to(DEVICE)), expected)
    turned = table.transpose(1, 2).contiguous().transpose(1, 2)[:, 1:6, :5]
    assert torch.equal(gather(turned.to(DEVICE), index.to(DEVICE)), expected)


def test_a_row_that_is_not_there_is_no_number():
    table, index = torch.ones(2, 3, 4), torch.tensor([[0, -1, 2], [3, 1, 1]])
    found = gather(*on_device(table, index)).cpu()
    expected = torch.tensor([[False, True, False], [True, False, False]])
    assert torch.equal(found.isnan().all(-1), expected) and torch.equal(
        found.isnan().any(-1), expected
    )


# -- sums of runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 6, 130])
def test_runs_are_summed(lookups, dtype, width):
    plan = plan_rows(lookups, N_ROW)
    values = exact_rows(len(lookups), width).to(dtype)  # sums of such have no rounding error
    expected = sum_rows(values.float(), plan)
    values, offsets, order = on_device(values, plan.run_offsets, plan.order)
    assert torch.equal(sum_runs(values, offsets, order).cpu(), expected)
    assert torch.equal(sum_runs(values[order], offsets).cpu(), expected)


def test_no_value_of_a_run_is_left_out_or_comes_twice():
    for n in (SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT - 1, 3 * SEGMENT):
        for begin in (0, 1, SEGMENT - 1, SEGMENT):
            values = 2.0 ** torch.arange(begin + n + 5).fmod(20).view(-1, 1)
            offsets = torch.tensor([0, begin, begin + n])
            found = sum_runs(*on_device(values, offsets)).cpu().flatten()
            parts = values.flatten().split([begin, n, 5])
            assert torch.equal(found, torch.stack([x.sum() for x in parts]))


# -- updates -----------------------------------------------------------------------------------


def make(name, width, dtype, lookups, exact, seed=0):
    """table, state, values, plan."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(N_ROW, width, generator=generator).to(dtype)
    state = [torch.rand(N_ROW, width, generator=generator) for _ in STATES[name]]
    if name in PER_ROW:
        state[-1] = state[-1][:, :1].contiguous()
    values = torch.randn(len(lookups), width, generator=generator)
    if exact:
        values = exact_rows(len(lookups), width)
    return table, state, values, plan_rows(lookups, N_ROW)


def updated(table, state, values, rule, plan, rounding):
    """Table and state, by the kernel and by the reference."""
    found = [x.to(DEVICE, copy=True) for x in (table, *state)]
    expected = [x.clone() for x in (table, *state)]
    scatter_update(
        found[0], found[1:], values.to(DEVICE), *on_device(*plan), *rule, 3, *rounding or (None, 0)
    )
    reference = sys.modules["besskge_core.ops.scatter_update"].reference
    reference(expected[0], expected[1:], values, rule, 3, *plan, rounding=rounding)
    return [x.cpu() for x in found], expected


def make_rule(name, weight_decay=0.2):
    return Rule(name, 0.1, weight_decay, 0.9, 0.99, 1e-8)


def check(found, expected, bits):
    for x, y in zip(found, expected):
        assert x.dtype == y.dtype
        if bits:
            assert torch.equal(x, y)
        else:
            torch.testing.assert_close(
                x, y, rtol=1e-2 if x.dtype == torch.bfloat16 else 1e-5, atol=1e-5
            )


ROUNDINGS = {"nearest": None, "stochastic": Rounding(5**25, 2**31 + 7)}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 18, 300])
@pytest.mark.parametrize("name", STATES)
def test_an_update_has_the_bits_of_the_reference(name, width, dtype, lookups):
    for rounding in ROUNDINGS.values() if dtype == torch.bfloat16 else [None]:
        given = make(name, width, dtype, lookups, exact=len(lookups) > 9)
        found, expected = updated(*given[:3], make_rule(name), given[3], rounding)
        # The mean of the squares of a row is summed in another order.
        check(found, expected, bits=name not in PER_ROW or width == 1)


def test_a_row_may_be_hit_thousands_of_times():
    for name in STATES:
        given = make(name, 18, torch.float32, THOUSANDS, exact=True)
        found, expected = updated(*given[:3], make_rule(name), given[3], None)
        check(found, expected, bits=name not in PER_ROW)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("width", [7, 1500])
def test_all_rows_may_change(name, width):
    for dtype in FLOATS:
        table, state, values, _ = make(name, width, dtype, range_of_rows(), False)
        plan = (None, None, None)
        found, expected = updated(
            table, state, values, make_rule(name), plan, ROUNDINGS["stochastic"]
        )
        check(found, expected, bits=name not in PER_ROW)


def range_of_rows():
    return torch.arange(N_ROW)


def test_gradients_may_be_summed_already_and_of_half_precision():
    rows, values = torch.tensor([1, 4, 9]), exact_rows(3, 20).to(torch.bfloat16)
    table, state, *_ = make("adam", 20, torch.float32, rows, False)
    check(*updated(table, state, values, make_rule("adam"), (rows, None, None), None), bits=True)


def test_rows_that_are_not_looked_up_stay_as_they_are(lookups):
    table, state, values, plan = make("adam", 6, torch.float32, lookups, False)
    found, _ = updated(table, state, values, make_rule("adam"), plan, None)
    others = [row for row in range(N_ROW) if row not in lookups.tolist()]
    assert all(torch.equal(x[others], y[others]) for x, y in zip(found, [table, *state]))


def test_a_plan_may_be_filled_up_with_rows_behind_the_table():
    lookups = torch.tensor([2, 2, 5])
    table, state, values, plan = make("adagrad", 6, torch.float32, lookups, False)
    expected, _ = updated(table, state, values, make_rule("adagrad"), plan, None)
    found = [x.to(DEVICE, copy=True) for x in (table, *state)]
    rows = torch.cat([plan.unique_rows, torch.tensor([N_ROW, N_ROW + 3, -1])])
    offsets = torch.cat([plan.run_offsets, torch.tensor([3, 3, 3])])
    scatter_update(
        found[0], found[1:], values.to(DEVICE), *on_device(rows, offsets, plan.order),
        *make_rule("adagrad"), 3, None, 0,
    )  # fmt: skip
    assert all(torch.equal(x.cpu(), y) for x, y in zip(found, expected))


def test_what_is_no_number_is_passed_on():
    lookups = torch.tensor([2, 5])
    for dtype in FLOATS:
        for rounding in ROUNDINGS.values():
            table, state, values, plan = make("sgd", 6, dtype, lookups, False)
            values[0, 3], values[1, 2] = float("nan"), float("inf")
            found, expected = updated(table, state, values, make_rule("sgd"), plan, rounding)
            assert torch.equal(found[0].nan_to_num(), expected[0].nan_to_num())
            assert found[0].isnan()[2, 3] and torch.equal(found[0].isnan(), expected[0].isnan())


def test_random_numbers_are_those_of_the_cpu():
    # A table of zeros, moved by less than half the last bit, shows each number of 16 bits.
    width, n_row = 300, 3
    for seed, stream, step in ((1, 0, 1), (2**62 + 12345, 2**32 - 1, 2**31 + 3)):
        rounding = Rounding(seed, stream)
        table = torch.full((n_row, width), 1.0, dtype=torch.bfloat16)
        rows = torch.arange(n_row)
        halves = reference_halves(rows, width, step, rounding)
        size = torch.linspace(0.0, 2.0**-7, width)  # up to the distance of the next bfloat16
        found = table.to(DEVICE, copy=True)
        scatter_update(
            found, [], -size.expand(n_row, width).to(DEVICE), None, None, None, "sgd", 1.0, 0.0,
            0.0, 0.0, 0.0, step, seed, stream,
        )  # fmt: skip
        is_up = (halves + (size * 2.0**23).long()) >= 2**16
        assert torch.equal(found.cpu() > 1.0, is_up)
        assert 0.4 < is_up.float().mean() < 0.6


@pytest.mark.parametrize("name", STATES)
def test_step_and_learning_rate_may_lie_on_the_device(name, lookups):
    rule, seed = make_rule(name), 5**25
    given = make(name, 18, torch.bfloat16, lookups, False)
    plan = tuple(on_device(*given[3]))
    once, again = ([x.to(DEVICE, copy=True) for x in (given[0], *given[1])] for _ in range(2))
    there = rule._replace(lr=torch.tensor(rule.lr, dtype=torch.float64, device=DEVICE))
    for step in (7, 1000):
        count = torch.tensor(step, device=DEVICE)
        update_rows(once[0], once[1:], given[2].to(DEVICE), plan, rule, step, seed, 2)
        update_rows(again[0], again[1:], given[2].to(DEVICE), plan, there, count, seed, 2)
    assert all(torch.equal(x, y) for x, y in zip(once, again))


def test_two_runs_give_the_same_bits(lookups):
    for name in STATES:
        given = make(name, 33, torch.bfloat16, lookups, False)
        once, again = (
            updated(*given[:3], make_rule(name), given[3], ROUNDINGS["stochastic"])[0]
            for _ in range(2)
        )
        assert all(torch.equal(x, y) for x, y in zip(once, again))


def test_every_rule_has_a_kernel():
    assert FORMS.keys() == STATES.keys()
    for name, (momentum, divisor, per_row) in FORMS.items():
        assert (momentum > 0) + (divisor > 0) == len(STATES[name])
        assert per_row == (name in PER_ROW)
