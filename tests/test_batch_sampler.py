"""A batch takes equally many triples of each bucket, and is a pure function of its position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import SHARDS, global_triples, random_triples

from besskge_core.batch_sampler import (
    RandomShardedBatchSampler,
    RigidShardedBatchSampler,
    frequency_weight,
)
from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.philox import Position
from besskge_core.sharding import PARTITION_MODES, PartitionedTripleSet, Sharding

SAMPLERS = {"rigid": RigidShardedBatchSampler, "random": RandomShardedBatchSampler}


def partitioned(graph, n_shard, mode="ht_shardpair", inverse=False, part="train"):
    sharding = Sharding.create(
        graph.n_entity, n_shard, seed=2, type_offsets=list(graph.type_offsets.values())
    )
    return PartitionedTripleSet.create_from_dataset(graph, part, sharding, mode, inverse)


def make(kind, triple_set, shard_bs=None, step=3, seed=0, scheme="t", **options):
    negatives = RandomShardedNegativeSampler(2, triple_set.sharding, seed, scheme)
    shard_bs = 4 * triple_set.sharding.n_shard if shard_bs is None else shard_bs
    return SAMPLERS[kind](triple_set, negatives, shard_bs, step, seed, **options)


def ids_of(batch, triple_set):
    """Global triples (M, S, [S,] P, 3) of a batch."""
    if triple_set.partition_mode == "ht_shardpair":
        return torch.stack(
            [
                global_triples({k: x[m] for k, x in batch.items()}, triple_set.sharding)
                for m in range(batch["head"].shape[0])
            ]
        )
    columns = [batch[name].long() for name in ("head", "relation", "tail")]
    to_entity = torch.from_numpy(triple_set.sharding.shard_and_idx_to_entity).long()
    side = 0 if triple_set.partition_mode == "h_shard" else 2
    columns[side] = to_entity[torch.arange(len(to_entity))[:, None], columns[side]]
    return torch.stack(columns, dim=-1)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(params=sorted(SAMPLERS))
def kind(request):
    return request.param


# -- which triples -----------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("mode", PARTITION_MODES)
@pytest.mark.parametrize("n_shard", SHARDS)
def test_a_rigid_epoch_sees_every_triple_just_once(graph, n_shard, mode, shuffle):
    triple_set = partitioned(graph, n_shard, mode)
    sampler = make("rigid", triple_set)
    seen = []
    for step in range(sampler.n_step):
        batch = sampler.batch(Position(4, step), shuffle)
        seen.append(ids_of(batch, triple_set)[batch["triple_mask"]])
    expected = sorted(map(tuple, graph.triples["train"].tolist()))
    assert sorted(map(tuple, torch.cat(seen).tolist())) == expected


def test_empty_buckets_give_only_masked_triples(graph):
    triple_set = partitioned(graph, 7, part="test")
    assert (triple_set.triple_counts == 0).any()
    sampler = make("rigid", triple_set)
    masks = torch.cat([sampler[step]["triple_mask"] for step in range(len(sampler))])
    kept = masks.sum(dim=(0, 3)).numpy()
    assert (kept == triple_set.triple_counts).all()


def test_padding_repeats_the_triples_of_its_bucket(graph):
    triple_set = partitioned(graph, 2)
    sampler = make("rigid", triple_set, return_triple_idx=True)
    n, first = triple_set.triple_counts, triple_set.triple_offsets
    for step in range(sampler.n_step):
        place = sampler[step]["triple_idx"].numpy()
        assert (place >= first[..., None]).all() and (place < (first + n)[..., None]).all()


def test_an_epoch_has_a_new_order_within_the_same_buckets(graph):
    triple_set = partitioned(graph, 2)
    sampler = make("rigid", triple_set, return_triple_idx=True)
    first, second = (sampler.batch(Position(epoch, 0))["triple_idx"] for epoch in (0, 1))
    assert not torch.equal(first, second)
    plain = sampler.batch(Position(0, 0), shuffle=False)["triple_idx"]
    offsets = torch.from_numpy(triple_set.triple_offsets)[:, :, None]
    in_order = (torch.arange(12).view(3, 4)[:, None, None] + offsets).squeeze(0)
    assert torch.equal(plain, in_order)


def test_the_current_epoch_is_what_indexing_draws(graph, kind):
    sampler = make(kind, partitioned(graph, 2))
    sampler.epoch = 3
    assert same(sampler[1], sampler.batch(Position(3, 1)))
    assert not same(sampler[1], sampler.batch(Position(0, 1)))


def test_a_list_of_places_takes_these_of_each_bucket(graph):
    triple_set = partitioned(graph, 2)
    sampler = make("rigid", triple_set, step=1, return_triple_idx=True)
    places = [5, 0, 300, 1]
    batch = sampler[places]
    counts, first = triple_set.triple_counts[..., None], triple_set.triple_offsets[..., None]
    assert (batch["triple_idx"][0].numpy() == first + np.array(places) % counts).all()
    assert (batch["triple_mask"][0].numpy() == (np.array(places) < counts)).all()


def test_a_random_batch_takes_triples_of_each_bucket(graph):
    triple_set = partitioned(graph, 4)
    sampler = make("random", triple_set, return_triple_idx=True)
    place = sampler[0]["triple_idx"].numpy()
    n, first = triple_set.triple_counts[..., None], triple_set.triple_offsets[..., None]
    assert ((place >= first) & (place < first + n)).all()
    assert len(np.unique(place)) > place.size / 4


# -- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PARTITION_MODES)
@pytest.mark.parametrize("n_shard", SHARDS)
def test_every_triple_has_the_same_expected_weight(graph, n_shard, mode):
    triple_set = partitioned(graph, n_shard, mode)
    sampler = make("random", triple_set)
    weight = sampler[0].get("triple_weight", torch.ones(3, n_shard, sampler.shard_bs))
    of_bucket = weight.view(3, *triple_set.triple_counts.shape, -1).double()
    assert (of_bucket == of_bucket[:1, ..., :1]).all()  # one weight for a bucket
    drawn = sampler.partition_sample_size * of_bucket[0, ..., 0].numpy()
    filled = triple_set.triple_counts > 0
    per_triple = drawn[filled] / triple_set.triple_counts[filled]
    np.testing.assert_allclose(per_triple, per_triple[0], rtol=1e-6)


def test_weights_of_a_random_step_sum_to_its_number_of_triples(graph):
    triple_set = partitioned(graph, 7, part="test")
    assert (triple_set.triple_counts == 0).any()
    batch = make("random", triple_set)[0]
    assert batch["triple_weight"].sum().item() == pytest.approx(batch["head"].numel(), rel=1e-6)
    weight = batch["triple_weight"].view(3, 7, 7, 4)
    empty = torch.from_numpy(triple_set.triple_counts == 0)
    assert (weight[:, empty] == 0).all() and not batch["triple_mask"][:, empty].any()
    assert (weight[:, ~empty] > 0).all() and batch["triple_mask"][:, ~empty].all()


def test_random_batches_can_go_without_bucket_weights(graph):
    batch = make("random", partitioned(graph, 4), bucket_weighting=False)[0]
    assert "triple_weight" not in batch


def frequencies(triples, smoothing):
    """By the definition, triple by triple."""
    heads, tails = triples[:, :2].tolist(), triples[:, 1:].tolist()
    total = [heads.count(h) + tails.count(t) for h, t in zip(heads, tails)]
    weight = 1 / np.sqrt(np.array(total) + smoothing)
    return weight / weight.mean()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("mode", PARTITION_MODES)
@pytest.mark.parametrize("n_shard", SHARDS)
def test_frequencies_count_entities_whatever_their_row(graph, n_shard, mode, inverse):
    triple_set = partitioned(graph, n_shard, mode, inverse)
    triples = graph.triples["train"]
    if inverse:
        triples = np.concatenate([triples, triples[:, ::-1] + [0, 4, 0]])
    weight = frequency_weight(triple_set, 2.0)
    np.testing.assert_allclose(weight, frequencies(triples, 2.0)[triple_set.triple_sort_idx])


def test_frequency_weights_follow_their_triples_into_the_batch(graph, kind):
    triple_set = partitioned(graph, 2)
    options = dict(return_triple_idx=True)
    weighted = make(kind, triple_set, hrt_freq_weighting=True, weight_smoothing=1.0, **options)[0]
    expected = frequency_weight(triple_set, 1.0)[weighted["triple_idx"].numpy()]
    expected = expected.reshape(weighted["triple_weight"].shape)
    if kind == "random":
        expected = expected * make(kind, triple_set)[0]["triple_weight"].numpy()
    np.testing.assert_allclose(weighted["triple_weight"].numpy(), expected, rtol=1e-5)


# -- a pure function of (seed, epoch, step) ----------------------------------------------------


def test_a_batch_depends_on_seed_epoch_and_step_alone(graph, kind):
    triple_set = partitioned(graph, 4)
    a, b = make(kind, triple_set), make(kind, triple_set)
    places = [Position(epoch, step) for epoch in (0, 5) for step in (0, 1)]
    forwards = {place: a.batch(place) for place in places}
    for place in reversed(places + places):
        b[0]  # a draw in between
        assert same(b.batch(place), forwards[place])


def test_other_seeds_epochs_and_steps_give_other_batches(graph, kind):
    triple_set = partitioned(graph, 2)
    batches = [
        make(kind, triple_set, seed=seed).batch(Position(epoch, step))
        for seed, epoch, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    for name in ("relation", "negative"):
        rows = [batch[name].flatten().tolist() for batch in batches]
        assert all(a != b for i, a in enumerate(rows) for b in rows[:i])


@pytest.mark.parametrize("of", ["random", "typed", "given"])
def test_negatives_of_a_batch_are_as_repeatable_as_its_triples(graph, kind, of):
    triple_set = partitioned(graph, 2)
    sharding = triple_set.sharding
    lists = np.random.default_rng(0).integers(37, size=(200, 5))

    def sampler():
        negatives = {
            "random": RandomShardedNegativeSampler(2, sharding, 0, "t"),
            "typed": TypeBasedShardedNegativeSampler(triple_set.types, 2, sharding, "t", False, 0),
            "given": TripleBasedShardedNegativeSampler(None, lists, sharding, "t", 0),
        }[of]
        return SAMPLERS[kind](triple_set, negatives, 8, 2, seed=0)

    a, b = sampler(), sampler()
    a[0]
    assert same(a.batch(Position(2, 1)), b.batch(Position(2, 1)))


# -- shapes ------------------------------------------------------------------------------------


def test_shapes_and_dtypes_of_a_shard_pair_batch(graph):
    batch = make(
        "random",
        partitioned(graph, 4),
        shard_bs=10,
        hrt_freq_weighting=True,
        return_triple_idx=True,
    )[0]
    of_triples = (3, 4, 4, 3)  # 10 rounded up to 4 buckets of 3
    expected = {
        "head": (of_triples, torch.int32), "relation": (of_triples, torch.int32),
        "tail": (of_triples, torch.int32), "negative": ((3, 4, 4, 12, 2), torch.int32),
        "triple_weight": ((3, 4, 12), torch.float32), "triple_idx": (of_triples, torch.int64),
    }  # fmt: skip
    assert {name: (tuple(x.shape), x.dtype) for name, x in batch.items()} == expected


def test_shapes_of_a_batch_by_heads(graph):
    batch = make("rigid", partitioned(graph, 4, "h_shard"), shard_bs=5)[0]
    assert batch["head"].shape == batch["triple_mask"].shape == (3, 4, 5)
    assert batch["negative"].shape == (3, 4, 4, 5, 2)


def test_tails_are_listed_by_the_shard_that_owns_them(graph):
    triple_set = partitioned(graph, 4)
    batch = make("rigid", triple_set, return_triple_idx=True)[0]
    rows = triple_set.triples[batch["triple_idx"].numpy()]
    assert (batch["tail"].numpy().swapaxes(1, 2) == rows[..., 2]).all()


def test_rows_never_reach_beyond_a_shard_but_in_masked_triples(graph, kind):
    triple_set = partitioned(graph, 7)
    batch = make(kind, triple_set)[0]
    counts = torch.from_numpy(triple_set.sharding.shard_counts)[:, None, None]
    kept = batch.get("triple_mask", torch.ones_like(batch["head"], dtype=torch.bool))
    assert (batch["head"] < counts)[kept].all()
    assert (batch["tail"] < counts).transpose(1, 2)[kept].all()


@pytest.mark.parametrize("n_shard", [1, 4])
def test_duplicated_halves_are_identical(graph, kind, n_shard):
    triple_set = partitioned(graph, n_shard)
    sampler = make(kind, triple_set, scheme="ht", duplicate_batch=True, return_triple_idx=True)
    batch = sampler[0]
    first, second = batch["triple_idx"].chunk(2, dim=-1)
    assert torch.equal(first, second) and first.shape[-1] == 2
    seen = torch.cat([sampler[step]["triple_idx"] for step in range(len(sampler))])
    assert kind == "random" or len(seen.unique()) == len(triple_set.triples)


@pytest.mark.parametrize("shard_bs, even", [(8, 2), (12, 2), (13, 4), (20, 4)])
def test_both_sides_get_equally_many_triples(graph, kind, shard_bs, even):
    sampler = make(kind, partitioned(graph, 4), shard_bs=shard_bs, scheme="ht")
    assert sampler.positive_per_partition == even and sampler.shard_bs == 4 * even
    assert sampler[0]["head"].shape[-1] == even


def test_the_length_of_an_epoch_counts_steps(graph):
    triple_set = partitioned(graph, 4)
    rigid, random = make("rigid", triple_set), make("random", triple_set)
    assert len(rigid) == -(-triple_set.triple_counts.max() // 12)
    assert len(random) == -(-200 // (12 * 16))


def test_a_made_up_column_is_left_out(graph):
    sharding = Sharding.create(graph.n_entity, 4, seed=0)
    queries = graph.triples["test"][:, :2]
    triple_set = PartitionedTripleSet.create_from_queries(graph, sharding, queries, "hr")
    sampler = RigidShardedBatchSampler(triple_set, PlaceholderNegativeSampler("t"), 4, 1, seed=0)
    assert sorted(sampler[0]) == ["head", "relation", "triple_mask"]


def test_a_torch_loader_may_make_the_batches_in_other_processes(graph):
    sampler = make("rigid", partitioned(graph, 2))
    loader = torch.utils.data.DataLoader(sampler, batch_size=None, num_workers=2)
    for step, batch in enumerate(loader):
        assert same(batch, sampler[step])
    assert step == len(sampler) - 1


@pytest.mark.parametrize("n_worker, persistent", [(0, False), (2, False), (2, True)])
def test_a_loader_gives_the_batches_of_one_epoch_after_the_other(graph, kind, n_worker, persistent):
    # Upstream's workers begin each epoch from the same state, and draw the same negatives again.
    sampler = make(kind, partitioned(graph, 2))
    loader = sampler.get_dataloader(
        shuffle=True, num_workers=n_worker, persistent_workers=persistent, buffer_size=4
    )
    assert len(loader) == sampler.n_step
    for epoch in range(2):
        batches = list(loader)
        assert len(batches) == sampler.n_step
        for step, batch in enumerate(batches):
            assert same(batch, sampler.batch(Position(epoch, step)))


def test_a_loader_may_keep_the_stored_order(graph, kind):
    sampler = make(kind, partitioned(graph, 2))
    (first, *_) = sampler.get_dataloader(options=None, shuffle=False)
    assert same(first, sampler.batch(Position(0, 0), shuffle=False))


def test_what_a_loader_is_led_by_indexes_the_sampler(graph, kind):
    sampler = make(kind, partitioned(graph, 2))
    steps = sampler.get_dataloader_sampler(shuffle=True)
    assert len(steps) == sampler.n_step
    for step, index in enumerate(steps):
        assert same(sampler[index], sampler.batch(Position(0, step)))
    assert same(sampler[next(iter(steps))], sampler.batch(Position(1, 0)))


def test_hubs_come_with_every_micro_batch(graph):
    hubs = graph.triples["train"][:3, 2]
    sharding = Sharding.create(graph.n_entity, 4, 2, hubs=hubs)
    paired, by_head = (
        PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode)
        for mode in ("ht_shardpair", "h_shard")
    )
    batch = make("rigid", paired)[0]
    assert batch["hub"].shape == (3, 4, 1) and batch["hub"].dtype == torch.int32
    assert (batch["hub"].numpy() == sharding.hub_rows).all()
    assert "hub" not in make("rigid", by_head)[0]
    assert (make("rigid", by_head)[0]["head"] < sharding.max_entity_per_shard).all()


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme, duplicate, too_small, least",
    [("t", False, 0, 4), ("ht", False, 4, 8), ("ht", True, 4, 8), ("t", True, 4, 8)],
)
def test_a_batch_too_small_for_a_triple_of_each_bucket_is_refused(
    graph, kind, scheme, duplicate, too_small, least
):
    triple_set, options = partitioned(graph, 4), dict(scheme=scheme, duplicate_batch=duplicate)
    assert make(kind, triple_set, too_small + 1, **options).shard_bs == least
    message = f"shard_bs must be at least {least} here, got {too_small}"
    with pytest.raises(ConfigError, match=message):
        make(kind, triple_set, too_small, **options)


def test_no_triples_are_refused(graph):
    empty = KGDataset(37, 4, {"train": np.empty((0, 3), int)}, {"train": np.empty(0, int)})
    sharding = Sharding.create(37, 2, seed=0)
    triple_set = PartitionedTripleSet.create_from_dataset(empty, "train", sharding)
    with pytest.raises(ConfigError, match="there are no triples to sample from"):
        make("rigid", triple_set)


def test_a_step_beyond_the_epoch_is_an_index_error(graph, kind):
    sampler = make(kind, partitioned(graph, 2))
    with pytest.raises(IndexError, match=rf"step {len(sampler)} of an epoch of {len(sampler)}"):
        sampler[len(sampler)]


def test_one_triple_makes_an_epoch():
    graph = KGDataset.from_triples(random_triples(9, 2, 1, seed=0), split=(1, 0, 0),
                                   entity_dict=list("abcdefghi"), type_offsets={"x": 0})  # fmt: skip
    sampler = make("rigid", partitioned(graph, 3), step=1)
    assert len(sampler) == 1 and sampler[0]["triple_mask"].sum() == 1
