"""Batches drawn and planned natively hold the very integers of the reference."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import needs_opcheck

from besskge_core import philox
from besskge_core.batch_sampler import RandomShardedBatchSampler, RigidShardedBatchSampler
from besskge_core.negative_sampler import (
    RandomShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.ops import gather, plan_rows, rows, sample, take_columns
from besskge_core.ops.native import NATIVE
from besskge_core.philox import Position, Purpose, below, permutation, random_below, random_bits
from besskge_core.sharding import PARTITION_MODES, PartitionedTripleSet, Sharding

needs_build = pytest.mark.skipif(not NATIVE, reason="the native operations are not built")

PLACE = Position(epoch=3, step=5)
SEEDS = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.fixture(params=["served", "reference"])
def served(request, monkeypatch):
    """Native code, where it is built, then NumPy."""
    if request.param == "reference":
        as_reference(monkeypatch)


def as_reference(monkeypatch):
    monkeypatch.setattr(philox, "native", None)
    monkeypatch.setattr("besskge_core.batch_sampler.base.take_columns", sample.reference)


# -- draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_each_bound_has_a_part_of_the_row_to_itself(served, dtype):
    bounds = np.array([5, 0, 1, 70_000], dtype=np.int32)
    for width in (0, 1, 3, 4, 5, 9, 1000):
        found = random_below(1, Purpose.TRIPLES, PLACE, bounds, width, dtype)
        assert found.shape == (4, width) and found.dtype == dtype
        for part, bound, numbers in zip(range(4), bounds, found):
            first = part * (-(-width // 4) * 4)
            bits = random_bits(1, Purpose.TRIPLES, PLACE, width, first)
            assert (numbers == below(bits, bound)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_and_place_gives_the_numbers_of_the_reference(seed):
    bounds = np.array([2**63 - 1])
    for purpose in Purpose:
        for place in (Position(), Position(0, 1), Position(2**40, 2**50)):
            found = random_below(seed, purpose, place, bounds, 9)
            assert (found == below(random_bits(seed, purpose, place, 9), bounds)).all()


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32))
def test_remainders_are_exact(bound, seed):
    found = random_below(seed, Purpose.SPLIT, PLACE, np.array([bound]), 40)
    assert (found == below(random_bits(seed, Purpose.SPLIT, PLACE, 40), bound)).all()


def test_remainders_are_exact_beside_powers_of_two():
    for bound in [2**n + i for n in (1, 16, 31, 32, 33, 62) for i in (-1, 0, 1)]:
        found = random_below(7, Purpose.SPLIT, PLACE, np.array([bound]), 400)
        assert (found == below(random_bits(7, Purpose.SPLIT, PLACE, 400), bound)).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 1000, 300_000])
def test_permutations_are_those_of_a_stable_sort(n):
    for seed in SEEDS if n <= 1000 else [0]:
        order = permutation(seed, Purpose.SHUFFLE, PLACE, n)
        expected = random_bits(seed, Purpose.SHUFFLE, PLACE, n).argsort(kind="stable")
        assert order.dtype == np.int64 and (order == expected).all()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(served, seed):
    message = rf"seed must be in \[0, 2\*\*64\), got {seed}"
    with pytest.raises(ValueError, match=message):
        random_below(seed, Purpose.TRIPLES, PLACE, np.array([3]), 4)
    with pytest.raises(ValueError, match=message):
        permutation(seed, Purpose.TRIPLES, PLACE, 4)


@needs_build
def test_draws_name_what_they_cannot_do():
    native, bounds = torch.ops.besskge, torch.tensor([3])
    with pytest.raises(ValueError, match="random_below expects an epoch and a step of at least 0"):
        native.random_below(0, 0, -1, 0, bounds, 4, torch.int64)
    with pytest.raises(ValueError, match=r"random_below expects bounds \(G\) and a width"):
        native.random_below(0, 0, 0, 0, bounds, -1, torch.int64)
    with pytest.raises(TypeError, match="random_below draws int32 or int64, got Float"):
        native.random_below(0, 0, 0, 0, bounds, 4, torch.float32)
    with pytest.raises(ValueError, match="permutation expects a size, an epoch and a step of at"):
        native.permutation(0, 0, 0, 0, -1)


# -- triples -----------------------------------------------------------------------------------


@pytest.fixture(params=[take_columns, sample.reference], ids=["served", "reference"])
def take(request):
    return request.param


@pytest.mark.parametrize("shape", [(100,), (2, 3, 4), (1, 0), ()])
def test_columns_are_those_of_the_triples(take, rng, shape):
    triples = rng.integers(99, size=(50, 3)).astype(np.int32)
    places = rng.integers(50, size=shape)
    columns = take(triples, np.asarray(places, dtype=np.int64))
    assert columns.dtype == torch.int32 and columns.shape == (3, *shape)
    assert all((columns[i].numpy() == triples[places, i]).all() for i in range(3))


def test_triples_may_be_read_only_or_lie_apart(rng):
    triples = rng.integers(99, size=(50, 3)).astype(np.int32)
    places = np.arange(49, -1, -1)[::2]
    expected = sample.reference(triples, places.copy())
    frozen = triples.copy()
    frozen.flags.writeable = False
    for same in (frozen, np.asfortranarray(triples), triples.astype(np.int64)):
        assert torch.equal(take_columns(same, places), expected)
    for same in (np.broadcast_to(places, (1, 25))[0], places.astype(np.int32)):
        assert torch.equal(take_columns(triples, same), expected)


@pytest.mark.parametrize("wrong", [-1, 50])
def test_a_place_without_a_triple_is_named(take, wrong):
    triples, places = np.zeros((50, 3), dtype=np.int32), np.array([3, wrong])
    with pytest.raises(IndexError, match=f"take_columns: place {wrong} is out of range for 50 tri"):
        take(triples, places)


# -- plans -------------------------------------------------------------------------------------


def same_plan(a, b):
    return all(torch.equal(x, y) and x.dtype == torch.int64 for x, y in zip(a, b))


@pytest.mark.parametrize("n_row", [1, 2, 2047, 2048, 2049, 70_000, 2**22 + 1, 2**31 - 1])
def test_plans_are_those_of_a_stable_sort(rng, n_row):
    drawn = rng.integers(n_row, size=3000)
    drawn[:2000] = rng.choice(drawn[2000:], 2000)  # so that many are the same
    drawn[:2] = n_row - 1, 0
    for dtype in (torch.int32, torch.int64):
        keys = torch.from_numpy(drawn).to(dtype)
        assert same_plan(plan_rows(keys, n_row), rows.reference(keys, n_row))


@pytest.mark.parametrize("n_row", [2**30, 2**32, 2**40])
def test_more_rows_than_32_bits_count_are_planned(rng, n_row):
    keys = torch.from_numpy(rng.integers(n_row, size=(5, 300)))
    keys[:, 7] = n_row - 1
    assert same_plan(plan_rows(keys, n_row), rows.reference(keys, n_row))


@pytest.mark.parametrize(
    "keys",
    {
        "none": [],
        "one": [4],
        "a hub": [3] * 50,
        "no look-ups of two shards": [[], []],
        "the same rows of two shards": [[4, 0, 4], [4, 4, 0]],
        "no shard": torch.zeros(0, 3),
    }.values(),
    ids=["none", "one", "a hub", "no look-ups", "two shards", "no shard"],
)
def test_odd_plans_are_those_of_the_reference(keys):
    keys = torch.as_tensor(keys).int()
    assert same_plan(plan_rows(keys, 5), rows.reference(keys, 5))


def test_plans_of_shards_are_those_of_their_tables_end_to_end(rng):
    keys = torch.from_numpy(rng.integers(30, size=(4, 100)))
    flat = (keys + 30 * torch.arange(4)[:, None]).flatten()
    assert same_plan(plan_rows(keys, 30), plan_rows(flat, 120))
    apart = keys.t().contiguous().t()
    assert same_plan(plan_rows(apart, 30), plan_rows(keys, 30))


@pytest.mark.parametrize("plan", [plan_rows, rows.reference], ids=["served", "reference"])
@pytest.mark.parametrize("wrong", [-1, 9])
def test_a_row_out_of_range_is_named(plan, wrong):
    message = f"plan_rows: row {wrong} is out of range for a table of 9 rows"
    with pytest.raises(IndexError, match=message):
        plan(torch.tensor([[3, 8], [wrong, 0]]), 9)


@needs_opcheck
@needs_build
def test_the_operations_are_registered_well(rng):
    native, kinds = torch.ops.besskge, ("test_schema", "test_faketensor")
    check = partial(torch.library.opcheck, test_utils=kinds)  # they are never compiled
    check(native.random_below.default, (1, 2, 3, 4, torch.tensor([3, 9]), 6, torch.int32))
    check(native.permutation.default, (1, 2, 3, 4, 9))
    check(native.plan_rows.default, (torch.tensor([3, 0, 3]), 5))
    triples = torch.from_numpy(rng.integers(9, size=(50, 3)).astype(np.int32))
    check(native.take_columns.default, (triples, torch.tensor([[3], [4]])))


# -- batches -----------------------------------------------------------------------------------


def samplers(graph, n_shard, mode, scheme, flat=False):
    types = list(graph.type_offsets.values())
    sharding = Sharding.create(graph.n_entity, n_shard, seed=2, type_offsets=types)
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode)
    uniform = RandomShardedNegativeSampler(3, sharding, 5, scheme, flat_negative_format=flat)
    typed = TypeBasedShardedNegativeSampler(triple_set.types, 3, sharding, scheme, False, 5)
    options = dict(shard_bs=4 * n_shard, batches_per_step=2, seed=2**64 - 1)
    options.update(hrt_freq_weighting=scheme == "ht", return_triple_idx=True)
    for kind in (RigidShardedBatchSampler, RandomShardedBatchSampler):
        for negatives in (uniform, typed):
            yield kind(triple_set, negatives, **options)


@pytest.mark.parametrize("scheme", ["t", "ht"])
@pytest.mark.parametrize("mode", PARTITION_MODES)
@pytest.mark.parametrize("n_shard", [1, 4])
def test_batches_hold_the_same_whoever_draws_them(graph, monkeypatch, n_shard, mode, scheme):
    places = [Position(0, 0), Position(7, 1)]
    for flat in (False, True):

        def made(flat=flat):
            kinds = samplers(graph, n_shard, mode, scheme, flat)
            return [sampler.batch(place) for sampler in kinds for place in places]

        native = made()
        with monkeypatch.context() as patch:
            as_reference(patch)
            reference = made()
        for a, b in zip(native, reference):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[x], b[x]) and a[x].dtype == b[x].dtype for x in a)
            assert all(x.is_contiguous() for x in a.values())


def test_batches_are_those_that_were_drawn_in_the_past(graph, served):
    # Pinned: a stored run must find its batches again.
    rigid, _, drawn, _ = samplers(graph, 4, "ht_shardpair", "t")
    triples = [[8, 97, 176, 71, 163], [5, 91, 169, 65, 159]]
    for sampler, expected in zip((rigid, drawn), triples):
        batch = sampler.batch(Position(3, 1))
        assert batch["triple_idx"].flatten()[::29].tolist() == expected
        negatives = batch["negative"].flatten()[::97].tolist()
        assert negatives == [9, 0, 0, 2, 7, 0, 5, 7, 3, 1, 4, 2, 3, 2, 8, 1]


def test_who_draws_otherwise_is_asked(graph, served):
    class FirstRow(RandomShardedNegativeSampler):
        def rows(self, bits, hosted):
            return (bits % np.uint64(2)).astype(np.int64)

    sharding = Sharding.create(graph.n_entity, 2, seed=0)
    drawn = FirstRow(50, sharding, 0, "t").draw(np.zeros((1, 2, 2, 3), int), PLACE)
    assert np.unique(drawn["negative_entities"]).tolist() == [0, 1]


# -- beside the step ---------------------------------------------------------------------------


def runs_beside(work):
    """Whether another thread runs while `work` does, which is so if Python's lock is released."""
    before, go, seen = sys.getswitchinterval(), threading.Event(), []
    other = threading.Thread(target=lambda: (go.wait(), seen.append(time.perf_counter())))
    other.start()
    sys.setswitchinterval(100)  # nobody is made to release it
    try:
        go.set()
        work()
        end = time.perf_counter()
    finally:
        sys.setswitchinterval(before)
        other.join()
    return seen[0] < end


@needs_build
@pytest.mark.parametrize("name", ["gather", "permutation", "plan", "random", "take"])
def test_pythons_lock_is_released(name):
    keys = torch.arange(500_000) % 1000
    table, triples = torch.zeros(1, 1000, 50), np.zeros((1000, 3), dtype=np.int32)
    work = {
        "gather": lambda: gather(table, keys[None]),
        "permutation": lambda: permutation(0, Purpose.SHUFFLE, PLACE, 300_000),
        "plan": lambda: plan_rows(keys, 1000),
        "random": lambda: random_below(0, Purpose.TRIPLES, PLACE, np.array([9]), 2_000_000),
        "take": lambda: take_columns(triples, keys.repeat(5).numpy()),
    }[name]
    # Of many attempts one must succeed: the other thread may find no processor in time.
    assert any(runs_beside(work) for _ in range(50))


def test_a_pure_computation_does_not_release_it():
    assert not any(runs_beside(lambda: sum(range(100_000))) for _ in range(3))
