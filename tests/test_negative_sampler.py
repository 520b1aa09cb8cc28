"""A negative sampler gives rows of the owner's table, of the entities it should give."""

from __future__ import annotations

import numpy as np
import pytest
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from support import SHARDS

from besskge_core.errors import ConfigError
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    DegreeWeightedShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    ShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
    head_probability,
)
from besskge_core.philox import Position
from besskge_core.sharding import PartitionedTripleSet, Sharding

N_ENTITY, OFFSETS, N_TRIPLE = 37, np.array([0, 11, 34]), 50
SAMPLERS = ["random", "flat", "degree", "typed", "given", "given flat"]


def make(kind, sharding, scheme="t", local=False, n_negative=3, seed=0, **options):
    rng = np.random.default_rng(0)
    if kind == "typed":
        types = rng.integers(3, size=(N_TRIPLE, 2))
        return TypeBasedShardedNegativeSampler(types, n_negative, sharding, scheme, local, seed)
    if kind.startswith("given"):
        shape = (1 if kind == "given flat" else N_TRIPLE, 8)
        lists = [rng.integers(N_ENTITY, size=shape) for _ in "ht"]
        return TripleBasedShardedNegativeSampler(*lists, sharding, scheme, seed, **options)
    if kind == "degree":
        return DegreeWeightedShardedNegativeSampler(
            np.arange(N_ENTITY), n_negative, sharding, seed, scheme, local
        )
    return RandomShardedNegativeSampler(
        n_negative, sharding, seed, scheme, local, flat_negative_format=kind == "flat"
    )


def sample(n_shard, n_micro=2, n_positive=4, paired=True):
    shape = (n_micro,) + (n_shard,) * (2 if paired else 1) + (n_positive,)
    return np.random.default_rng(1).integers(N_TRIPLE, size=shape)


@pytest.fixture(params=SHARDS)
def sharding(request):
    return Sharding.create(N_ENTITY, request.param, seed=4, type_offsets=OFFSETS)


@pytest.fixture(params=["h", "t", "ht"])
def scheme(request):
    return request.param


@pytest.fixture(params=SAMPLERS)
def kind(request):
    return request.param


def entity_ids(found, sharding):
    """IDs (M, S, T, B, N) of the negatives."""
    source = np.arange(sharding.n_shard)[:, None, None, None]
    return sharding.shard_and_idx_to_entity[source, found["negative_entities"]]


# -- all samplers ------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
def test_negatives_are_never_padding(sharding, scheme, kind, paired):
    found = make(kind, sharding, scheme)(sample(sharding.n_shard, paired=paired))
    rows = found["negative_entities"]
    assert rows.dtype == np.int32 and (rows >= 0).all()
    assert (rows < sharding.shard_counts[:, None, None, None]).all()


def test_shapes_of_the_formats(sharding, scheme, kind):
    n_shard, sampler = sharding.n_shard, make(kind, sharding, scheme)
    n_block = n_shard * 4
    if "flat" in kind:
        n_block = 2 if scheme == "ht" else 1
    width = sampler.padded_shard_length if kind.startswith("given") else 3
    found = sampler(sample(n_shard))
    assert found["negative_entities"].shape == (2, n_shard, n_shard, n_block, width)
    if "negative_mask" in found:
        assert found["negative_mask"].shape == (2, n_shard, n_block, n_shard, width)
        assert found["negative_mask"].dtype == bool


def test_a_draw_is_a_pure_function_of_its_position(sharding, kind):
    triples = sample(sharding.n_shard)
    a, b = make(kind, sharding), make(kind, sharding)
    first = a(triples, Position(3, 1))
    a(triples), b(triples, Position(0, 9))  # draws in between
    for again in (a(triples, Position(3, 1)), b(triples, Position(3, 1))):
        assert all((again[name] == first[name]).all() for name in first)


@pytest.mark.parametrize("kind", ["random", "flat", "degree", "typed"])
def test_other_positions_and_seeds_give_other_negatives(sharding, kind):
    triples = sample(sharding.n_shard)
    draws = [
        make(kind, sharding, seed=seed)(triples, Position(*at))["negative_entities"].tolist()
        for seed, at in [(0, (0, 0)), (1, (0, 0)), (0, (1, 0)), (0, (0, 1))]
    ]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])


@pytest.mark.parametrize("kind", ["random", "flat", "degree", "typed"])
def test_calls_without_a_position_differ(sharding, kind):
    sampler, triples = make(kind, sharding), sample(sharding.n_shard)
    first, second = (sampler(triples)["negative_entities"] for _ in range(2))
    assert (first != second).any()
    again = make(kind, sharding)(triples)["negative_entities"]
    assert (first == again).all()


def test_an_unknown_scheme_is_refused(kind):
    with pytest.raises(ConfigError, match=r"unknown corruption scheme 'r'; expected one of \('h',"):
        make(kind, Sharding.create(N_ENTITY, 2, seed=0, type_offsets=OFFSETS), "r")


def test_half_of_each_bucket_corrupts_heads(sharding):
    sampler = make("random", sharding, "ht")
    assert sampler.corrupts_heads(sample(sharding.n_shard)).tolist() == [True, True, False, False]
    for scheme in "ht":
        heads = make("random", sharding, scheme).corrupts_heads(sample(sharding.n_shard))
        assert heads.tolist() == 4 * [scheme == "h"]


# -- random ------------------------------------------------------------------------------------


def test_random_negatives_are_uniform_over_the_entities_of_a_shard():
    sharding = Sharding.create(N_ENTITY, 4, seed=0)
    found = make("random", sharding, n_negative=600)(sample(4, n_micro=1))
    for s, rows in enumerate(found["negative_entities"][0]):
        count = np.bincount(rows.ravel(), minlength=sharding.shard_counts[s])
        mean = rows.size / sharding.shard_counts[s]
        assert abs(count - mean).max() < 5 * np.sqrt(mean)


# -- by degree ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.75, 1.0])
def test_an_entity_is_drawn_by_a_power_of_its_degree_within_its_shard(exponent):
    sharding = Sharding.create(N_ENTITY, 4, seed=4)
    degree = np.arange(N_ENTITY) ** 2
    sampler = DegreeWeightedShardedNegativeSampler(
        degree, 3000, sharding, 0, "t", flat_negative_format=True, exponent=exponent
    )
    found = sampler(sample(4))["negative_entities"]
    for shard, count in enumerate(sharding.shard_counts):
        weight = np.maximum(degree[sharding.shard_and_idx_to_entity[shard, :count]], 1) ** exponent
        drawn = np.bincount(found[:, shard].ravel(), minlength=count)
        share = weight / weight.sum()
        error = np.sqrt(drawn.sum() * share * (1 - share))
        assert (np.abs(drawn - drawn.sum() * share) < 5 * error).all()


@pytest.mark.parametrize("degree", [np.ones(3), -np.ones(N_ENTITY)])
def test_every_entity_has_a_degree(degree):
    sharding = Sharding.create(N_ENTITY, 4, seed=4)
    with pytest.raises(ConfigError, match="degree has shape .*each of the 37 entities"):
        DegreeWeightedShardedNegativeSampler(degree, 3, sharding, 0, "t")


# -- a side of each triple's own ---------------------------------------------------------------


def bernoulli(graph, inverse=False, **options):
    triple_set = PartitionedTripleSet.create_from_dataset(
        graph, "train", Sharding.create(graph.n_entity, 4, 0), add_inverse_triples=inverse
    )
    return triple_set, BernoulliShardedNegativeSampler(triple_set, 2, seed=0, **options)


def test_a_relation_with_many_tails_a_head_gets_its_heads_replaced():
    one_head = [(0, 0, t) for t in range(1, 9)]  # 8 tails a head: 8 / 9
    one_tail = [(h, 1, 0) for h in range(1, 5)]  # 4 heads a tail: 1 / 5
    pairs = [(h, 3, h + 1) for h in range(5)]
    found = head_probability(np.array(one_head + one_tail + pairs))
    np.testing.assert_allclose(found, [8 / 9, 1 / 5, 1 / 2, 1 / 2])


def test_repeated_triples_do_not_change_a_probability():
    triples = np.array([(0, 0, 1), (0, 0, 2), (3, 0, 2)])
    np.testing.assert_array_equal(
        head_probability(np.concatenate([triples, triples[:1]])), head_probability(triples)
    )


@pytest.mark.parametrize("inverse", [False, True])
def test_sides_are_drawn_with_the_probability_of_their_relation(graph, inverse):
    triple_set, sampler = bernoulli(graph, inverse)
    ids = triple_set.entity_ids()
    wanted = head_probability(ids)
    drawn = np.zeros((len(wanted), 2))
    for step in range(200):
        places = np.random.default_rng(step).integers(len(ids), size=(2, 4, 4, 3))
        sides = sampler(places, Position(0, step))["heads_replaced"]
        assert sides.dtype == bool and sides.shape == places.shape
        for replaced in (False, True):
            chosen = ids[places[sides == replaced], 1]
            drawn[:, int(replaced)] += np.bincount(chosen, minlength=len(wanted))
    n = drawn.sum(1)
    assert (np.abs(drawn[:, 1] - n * wanted) < 5 * np.sqrt(n * wanted * (1 - wanted))).all()
    assert len(np.unique(wanted.round(3))) > 2


def test_sides_are_a_pure_function_of_the_position(graph):
    _, sampler = bernoulli(graph, flat_negative_format=True)
    places = sample(4)
    first, second = (sampler(places, Position(1, i))["heads_replaced"] for i in (0, 1))
    assert (first == sampler(places, Position(1, 0))["heads_replaced"]).all()
    assert (first != second).any()
    assert sampler(places)["negative_entities"].shape == (2, 4, 4, 1, 2)


def test_other_samplers_know_no_side_of_each_triple(graph):
    with pytest.raises(ConfigError, match="unknown corruption scheme 'either'"):
        RandomShardedNegativeSampler(3, Sharding.create(N_ENTITY, 4, 0), 0, "either")


def test_lists_of_shards_and_blocks_differ():
    rows = make("random", Sharding.create(N_ENTITY, 2, seed=0), n_negative=20)(sample(2))
    lists = rearrange(rows["negative_entities"], "m s t b n -> (m s t b) n")
    assert len(np.unique(lists, axis=0)) == len(lists)


@pytest.mark.parametrize("kind", ["random", "typed"])
@pytest.mark.parametrize("n_negative", [0, -1])
def test_at_least_one_negative(kind, n_negative):
    sharding = Sharding.create(N_ENTITY, 2, seed=0, type_offsets=OFFSETS)
    with pytest.raises(ConfigError, match=f"n_negative must be at least 1, got {n_negative}"):
        make(kind, sharding, n_negative=n_negative)


# -- typed -------------------------------------------------------------------------------------


def wanted_types(sampler, triples, local):
    """Types (M, S, T, B) that the lists should have."""
    heads = sampler.corrupts_heads(triples)
    types = sampler.triple_types[triples, np.where(heads, 0, 1)]
    lists = rearrange(types, "m t ... -> m t (...)")
    asker = "m s b -> m s 1 b" if local else "m t b -> m 1 t b"
    return np.broadcast_to(
        rearrange(lists, asker), (lists.shape[0], lists.shape[1], *lists.shape[1:])
    )


def kept(found, local):
    """Mask (M, S, T, B, N) in the layout of the entities."""
    if "negative_mask" not in found:
        return np.ones(found["negative_entities"].shape, dtype=bool)
    axes = "m s b t n -> m s t b n" if local else "m t b s n -> m s t b n"
    return rearrange(found["negative_mask"], axes)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("local", [False, True])
def test_negatives_are_of_the_type_they_replace_or_masked(sharding, scheme, local, paired):
    sampler, triples = (
        make("typed", sharding, scheme, local),
        sample(sharding.n_shard, paired=paired),
    )
    found = sampler(triples)
    types = np.searchsorted(OFFSETS, entity_ids(found, sharding), side="right") - 1
    wanted = wanted_types(sampler, triples, local)[..., None]
    assert ((types == wanted) == kept(found, local)).all()
    assert kept(found, local).any()


def test_only_types_that_a_shard_lacks_are_masked():
    sharding = Sharding.create(N_ENTITY, 7, seed=4, type_offsets=OFFSETS)
    assert (sharding.entity_type_counts == 0).any()
    sampler, triples = make("typed", sharding), sample(7)
    has = sharding.entity_type_counts > 0
    wanted = wanted_types(sampler, triples, local=False)
    expected = has[np.arange(7)[:, None, None], wanted]
    assert (kept(sampler(triples), False) == expected[..., None]).all()


def test_all_entities_of_a_type_are_drawn():
    sharding = Sharding.create(N_ENTITY, 2, seed=0, type_offsets=OFFSETS)
    sampler, triples = make("typed", sharding, n_negative=200), sample(2)
    found = sampler(triples)
    ids = entity_ids(found, sharding)[kept(found, False)]
    assert set(ids.tolist()) == set(range(N_ENTITY))


def test_types_need_a_typed_sharding():
    with pytest.raises(ConfigError, match="type-based negatives need a typed sharding; create it"):
        make("typed", Sharding.create(N_ENTITY, 2, seed=0))


# -- given -------------------------------------------------------------------------------------


def given_lists(sampler, triples):
    """The lists (M, T, B, K) that the triples should get."""
    if sampler.flat_negative_format:
        lists = sampler.negatives[:, 0]
        return np.broadcast_to(lists, (*triples.shape[:2], *lists.shape))
    side = np.where(sampler.corrupts_heads(triples), 0, len(sampler.negatives) - 1)
    return rearrange(sampler.negatives[side, triples], "m t ... k -> m t (...) k")


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("kind", ["given", "given flat"])
def test_given_lists_are_found_again_through_mask_and_order(sharding, scheme, kind, paired):
    sampler = make(kind, sharding, scheme, return_sort_idx=True)
    triples = sample(sharding.n_shard, paired=paired)
    found = sampler(triples)
    ids = rearrange(entity_ids(found, sharding), "m s t b n -> m t b s n")
    lists = given_lists(sampler, triples)
    order = found["negative_sort_idx"]
    assert order.shape == lists.shape
    for place in np.ndindex(*lists.shape[:3]):
        split = ids[place][found["negative_mask"][place]]
        assert (split == lists[place][order[place]]).all()
        assert sorted(order[place].tolist()) == list(range(8))


@pytest.mark.parametrize("kind", ["given", "given flat"])
def test_the_mask_may_have_the_layout_of_the_entities(sharding, kind):
    triples = sample(sharding.n_shard)
    plain = make(kind, sharding)(triples)
    there = make(kind, sharding, mask_on_gather=True)(triples)
    assert there["negative_mask"].shape == there["negative_entities"].shape
    moved = rearrange(there["negative_mask"], "m s t b n -> m t b s n")
    assert (moved == plain["negative_mask"]).all()


def test_padding_repeats_the_list_of_its_owner():
    sharding = Sharding.create(N_ENTITY, 4, seed=0)
    sampler, triples = make("given", sharding), sample(4)
    ids = rearrange(entity_ids(sampler(triples), sharding), "m s t b n -> (m t b s) n")
    mask = rearrange(sampler(triples)["negative_mask"], "m t b s n -> (m t b s) n")
    for row, keep in zip(ids, mask):
        if keep.any():
            assert set(row[~keep]) <= set(row[keep])
    assert mask.all(axis=1).any() and (~mask).all(axis=1).any()


@given(st.data())
def test_padding_is_as_long_as_the_longest_part(data):
    n_entity, n_shard = 12, data.draw(st.integers(1, 5))
    sharding = Sharding.create(n_entity, n_shard, seed=0)
    k = data.draw(st.integers(1, 6))
    row = st.lists(st.integers(0, n_entity - 1), min_size=k, max_size=k)
    lists = np.array(data.draw(st.lists(row, min_size=2, max_size=4)))
    sampler = TripleBasedShardedNegativeSampler(None, lists, sharding, "t", seed=0)
    parts = np.stack([(sharding.entity_to_shard[lists] == s).sum(1) for s in range(n_shard)], 1)
    assert sampler.padded_shard_length == parts.max()
    triples = np.arange(len(lists)).reshape(1, 1, -1).repeat(n_shard, 1)
    assert (sampler(triples)["negative_mask"].sum(-1) == parts).all()


def test_lists_of_a_side_that_is_not_replaced_may_be_missing():
    sharding, lists = Sharding.create(N_ENTITY, 2, seed=0), np.zeros((N_TRIPLE, 2), int)
    TripleBasedShardedNegativeSampler(lists, None, sharding, "h", seed=0)
    TripleBasedShardedNegativeSampler(None, lists, sharding, "t", seed=0)
    for scheme, heads, tails in [("h", None, lists), ("t", lists, None), ("ht", lists, None)]:
        with pytest.raises(ConfigError, match=f"corruption scheme '{scheme}' needs negative_heads"):
            TripleBasedShardedNegativeSampler(heads, tails, sharding, scheme, seed=0)


# -- none --------------------------------------------------------------------------------------


def test_a_sampler_of_ones_own_defines_draw_or_is_called_as_upstreams_are():
    class Constant(ShardedNegativeSampler):
        def __call__(self, sample_idx):
            return {"negative_entities": np.zeros((*sample_idx.shape[:2], 1, 1, 1), np.int32)}

    class Nothing(ShardedNegativeSampler):
        pass

    found = Constant("t", 0).draw(sample(2), Position(0, 3))
    assert found["negative_entities"].shape == (2, 2, 1, 1, 1)
    with pytest.raises(NotImplementedError, match="Nothing defines neither draw nor __call__"):
        Nothing("t", 0)(sample(2))


def test_a_placeholder_gives_nothing():
    sampler = PlaceholderNegativeSampler("t")
    assert sampler(sample(2)) == {} and sampler.flat_negative_format
