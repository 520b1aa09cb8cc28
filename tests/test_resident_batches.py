"""Batches drawn on the device are those of the sampler, integer for integer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from besskge_core.batch_sampler import (
    RandomShardedBatchSampler,
    ResidentBatches,
    RigidShardedBatchSampler,
    why_not_resident,
)
from besskge_core.errors import ConfigError
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    DegreeWeightedShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.philox import Position
from besskge_core.sharding import PartitionedTripleSet, Sharding, most_frequent_entities

SAMPLERS = {"rigid": RigidShardedBatchSampler, "random": RandomShardedBatchSampler}


def uniform(triple_set, scheme, flat):
    return RandomShardedNegativeSampler(3, triple_set.sharding, 7, scheme, False, flat)


NEGATIVES = {
    **{
        f"uniform, {scheme}, {'flat' if flat else 'per triple'}": (
            lambda triples, scheme=scheme, flat=flat: uniform(triples, scheme, flat)
        )
        for scheme, flat in itertools.product(("h", "t", "ht"), (False, True))
    },
    "bernoulli": lambda triples: BernoulliShardedNegativeSampler(triples, 3, 7),
    "degree": lambda triples: DegreeWeightedShardedNegativeSampler(
        np.arange(triples.sharding.n_entity), 3, triples.sharding, 7, "t"
    ),
    "typed": lambda triples: TypeBasedShardedNegativeSampler(
        triples.types, 3, triples.sharding, "ht", False, 7
    ),
    "typed, local": lambda triples: TypeBasedShardedNegativeSampler(
        triples.types, 3, triples.sharding, "h", True, 7
    ),
    "none": lambda triples: PlaceholderNegativeSampler("t", 7),
}


def triples_of(graph, n_shard=3, mode="ht_shardpair", n_hub=0):
    hubs = most_frequent_entities(graph.triples["train"], graph.n_entity, n_hub)
    offsets = list(graph.type_offsets.values())
    sharding = Sharding.create(graph.n_entity, n_shard, 0, offsets, hubs)
    return PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode)


def check(sampler, n_epoch=2, n_step=4, shuffle=True):
    """All steps of some epochs, drawn W at a time from odd places on."""
    resident = ResidentBatches(sampler, "cpu", n_step, shuffle)
    for epoch in range(n_epoch):
        resident.begin(epoch)
        for first in range(epoch, sampler.n_step, n_step):
            found = resident.draw(torch.tensor(epoch), torch.tensor(first))
            for w in range(min(n_step, sampler.n_step - first)):
                own = sampler.batch(Position(epoch, first + w), shuffle)
                assert found.keys() == own.keys()
                for name, x in own.items():
                    assert found[name][w].dtype == x.dtype, name
                    assert torch.equal(found[name][w], x), (name, epoch, first + w)


@pytest.mark.parametrize("make", NEGATIVES.values(), ids=NEGATIVES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_batches_are_those_of_the_sampler(graph, sampler, make):
    triples = triples_of(graph)
    check(sampler(triples, make(triples), 12, 2, seed=2**63 + 3))


@pytest.mark.parametrize("mode", ["h_shard", "t_shard", "ht_shardpair"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_triples_may_be_partitioned_by_one_side(graph, sampler, mode):
    triples = triples_of(graph, mode=mode)
    check(sampler(triples, uniform(triples, "t", True), 6, 1, seed=0))


OPTIONS = {
    "weights": dict(hrt_freq_weighting=True, weight_smoothing=1.0),
    "duplicates": dict(duplicate_batch=True),
    "places": dict(return_triple_idx=True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_options_of_the_sampler_are_kept(graph, sampler, options):
    triples = triples_of(graph)
    check(sampler(triples, uniform(triples, "ht", True), 12, 2, seed=0, **options))


@pytest.mark.parametrize("n_shard", [1, 7])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_one_shard_or_many_with_empty_buckets(graph, sampler, n_shard):
    triples = triples_of(graph, n_shard)
    assert triples.triple_counts.all() == (n_shard == 1)
    check(sampler(triples, uniform(triples, "t", False), 14, 1, seed=0))


def test_hubs_are_listed(graph):
    triples = triples_of(graph, n_hub=4)
    check(RigidShardedBatchSampler(triples, uniform(triples, "t", True), 12, 2, seed=0))


def test_the_stored_order_can_be_kept(graph):
    triples = triples_of(graph)
    sampler = RigidShardedBatchSampler(triples, uniform(triples, "t", True), 12, 2, seed=0)
    check(sampler, shuffle=False)


def test_unweighted_buckets(graph):
    triples = triples_of(graph)
    negatives = uniform(triples, "t", True)
    check(RandomShardedBatchSampler(triples, negatives, 12, 2, 0, bucket_weighting=False))


class OwnTriples(RigidShardedBatchSampler):
    pass


class OwnNegatives(RandomShardedNegativeSampler):
    pass


def test_what_is_made_on_the_host_is_said(graph):
    triples = triples_of(graph)
    sharding, negatives = triples.sharding, uniform(triples, "t", True)
    own = OwnNegatives(3, sharding, 7, "t")
    lists = np.zeros((1, 5), dtype=np.int64)
    given = TripleBasedShardedNegativeSampler(None, lists, sharding, "t", 0)
    reasons = {
        "OwnTriples draws triples in a way of its own": OwnTriples(triples, negatives, 12, 2, 0),
        "OwnNegatives draws negatives": RigidShardedBatchSampler(triples, own, 12, 2, 0),
        "negatives are given": RigidShardedBatchSampler(triples, given, 12, 2, 0),
    }
    for reason, sampler in reasons.items():
        assert reason in why_not_resident(sampler)
        with pytest.raises(ConfigError, match=f"cannot be drawn on the device: .*{reason}"):
            ResidentBatches(sampler, "cpu", 1)
    assert not why_not_resident(RigidShardedBatchSampler(triples, negatives, 12, 2, 0))
