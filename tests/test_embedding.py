"""A table holds the same embeddings by entity ID, however it is sharded."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SHARDS

from besskge_core.embedding import (
    INITIALIZERS,
    init_KGE_normal,
    init_KGE_uniform,
    init_xavier_norm,
    initialize_entity_embedding,
    initialize_relation_embedding,
    refactor_embedding_sharding,
    shard_rows,
    unshard_rows,
)
from besskge_core.errors import ConfigError
from besskge_core.sharding import Sharding

N_ENTITY, WIDTH = 23, 5


@pytest.fixture(params=sorted(INITIALIZERS))
def initializer(request):
    return INITIALIZERS[request.param]


@pytest.fixture(params=SHARDS)
def sharding(request):
    return Sharding.create(N_ENTITY, request.param, seed=1)


def seeded(make, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments)


def by_id():
    return torch.arange(float(N_ENTITY * WIDTH)).view(N_ENTITY, WIDTH) + 1.0


# -- layout ------------------------------------------------------------------------------------


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_rows_come_back_from_their_shards(size):
    sharding = Sharding.create(*size, seed=0)
    table = torch.arange(2.0 * size[0]).view(-1, 2)
    sharded = shard_rows(table, sharding)
    assert sharded.shape == (size[1], sharding.max_entity_per_shard, 2)
    assert torch.equal(unshard_rows(sharded, sharding), table)


def test_entities_lie_where_the_sharding_says_and_padding_is_zero(sharding):
    sharded = shard_rows(by_id(), sharding)
    for shard, row in enumerate(sharding.shard_and_idx_to_entity):
        for place, entity in enumerate(row):
            expected = by_id()[entity] if entity < N_ENTITY else torch.zeros(WIDTH)
            assert torch.equal(sharded[shard, place], expected)


def test_tables_have_the_same_embeddings_for_any_number_of_shards(initializer, sharding):
    def make(of):
        return initialize_entity_embedding(of, [initializer, initializer], [2, 3])

    one = Sharding.create(N_ENTITY, 1, seed=9)
    a, b = seeded(make, sharding), seeded(make, one)
    assert torch.equal(unshard_rows(a, sharding), unshard_rows(b, one))
    assert a.requires_grad and a.dtype == torch.float32


def test_padding_rows_of_a_new_table_are_zero(initializer, sharding):
    table = seeded(initialize_entity_embedding, sharding, [initializer], [WIDTH])
    padding = torch.from_numpy(sharding.shard_and_idx_to_entity) >= N_ENTITY
    assert (table[padding] == 0).all()


def test_parts_are_initialized_one_by_one(sharding):
    parts = [torch.nn.init.zeros_, torch.nn.init.ones_]
    table = unshard_rows(initialize_entity_embedding(sharding, parts, [2, 1]), sharding)
    assert torch.equal(table, torch.tensor([0.0, 0.0, 1.0]).expand(N_ENTITY, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_given_table_is_copied_in_its_dtype(sharding, dtype):
    given = by_id().to(dtype)
    for table in (given, shard_rows(given, sharding)):
        before = table.clone()
        made = initialize_entity_embedding(sharding, table)
        assert made.dtype == dtype and torch.equal(unshard_rows(made, sharding), given)
        made.data.zero_()
        assert torch.equal(table, before)


@pytest.mark.parametrize("trainable", [True, False])
def test_another_sharding_moves_rows_and_nothing_else(sharding, trainable):
    table = torch.nn.Parameter(shard_rows(by_id().half(), sharding), requires_grad=trainable)
    other = Sharding.create(N_ENTITY, 5, seed=3)
    moved = refactor_embedding_sharding(table, sharding, other)
    assert torch.equal(unshard_rows(moved, other), by_id().half())
    assert moved.requires_grad == trainable and moved.is_leaf


@pytest.mark.parametrize("inverse, n_row", [(False, 4), (True, 8)])
def test_inverse_relations_double_the_table(initializer, inverse, n_row):
    table = seeded(initialize_relation_embedding, 4, inverse, [initializer], [WIDTH])
    assert table.shape == (n_row, WIDTH) and len(table.unique(dim=0)) == n_row


# -- initialisers ------------------------------------------------------------------------------


def sample(initializer, width=8, **options):
    return seeded(lambda: initializer(torch.empty(4000, width), **options))


def test_initializers_fill_with_distinct_finite_numbers(initializer):
    table = sample(initializer)
    assert torch.isfinite(table).all() and len(table.unique(dim=0)) == 4000
    assert torch.equal(table, sample(initializer)) and table.std() > 0


@pytest.mark.parametrize(
    "name, low, high",
    [("uniform_rotation", 0.0, 2 * math.pi), ("kge_uniform", -1 / 8, 1 / 8)],
)
def test_uniform_tables_fill_their_range(name, low, high):
    table = sample(INITIALIZERS[name])
    assert low <= table.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < table.max() <= high
    assert table.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))


@pytest.mark.parametrize(
    "initializer, options, std",
    [
        (init_xavier_norm, {}, 0.5),
        (init_xavier_norm, dict(gain=3.0), 1.5),
        (init_KGE_normal, {}, 1 / 8),
        (init_KGE_normal, dict(std=2.0, divide_by_embedding_size=False), 2.0),
        (init_KGE_uniform, dict(b=2.0, divide_by_embedding_size=False), 2 / math.sqrt(3)),
    ],
)
def test_tables_have_the_spread_that_is_asked_for(initializer, options, std):
    table = sample(initializer, **options)
    assert table.std().item() == pytest.approx(std, rel=0.02)
    assert abs(table.mean().item()) < 0.03 * std


def test_rows_of_uniform_norm_have_norm_one():
    table = sample(INITIALIZERS["uniform_norm"])
    torch.testing.assert_close(table.norm(dim=-1), torch.ones(4000))
    assert (table >= 0).all()


# -- errors ------------------------------------------------------------------------------------


def test_an_unknown_initializer_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown initializer 'xavier'; expected one of \['kge_n"):
        INITIALIZERS["xavier"]


SHARDING = Sharding.create(N_ENTITY, 4, seed=0)
ZEROS = torch.nn.init.zeros_


@pytest.mark.parametrize(
    "initializer, row_size, message",
    [
        (torch.zeros(22, 5), None, r"entity table has shape \(22, 5\), expected \(23, D\)"),
        (torch.zeros(23), None, r"entity table has shape \(23,\), expected \(23, D\)"),
        (
            torch.zeros(4, 5, 2),
            None,
            r"shape \(4, 5, 2\), expected \(4, 6, 'D'\) for this sharding",
        ),
        (torch.zeros(23, 5), [2, 2], r"rows of the entity table are 5 wide, expected 4 = 2 \+ 2"),
        (torch.zeros(4, 6, 5), [2, 2], r"rows of the entity table are 5 wide, expected 4 = 2 \+ 2"),
        ([ZEROS], [2, 2], "1 initializers for the entity table, whose row has 2 parts; give one"),
        ([ZEROS], None, "1 initializers for the entity table, whose row has no sizes"),
    ],
)
def test_tables_that_do_not_fit_are_refused(initializer, row_size, message):
    with pytest.raises(ConfigError, match=message):
        initialize_entity_embedding(SHARDING, initializer, row_size)


def test_a_relation_table_without_inverses_is_refused_where_they_are_wanted():
    with pytest.raises(ConfigError, match=r"relation table has shape \(4, 5\), expected \(8, D\)"):
        initialize_relation_embedding(4, True, torch.zeros(4, 5))
