"""Hubs that every shard knows make the buckets even, and nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SHARDS, by_entity, make_score
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE
from besskge_core.catalogue import load_dataset
from besskge_core.errors import ConfigError
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import RandomShardedNegativeSampler
from besskge_core.optim import OPTIMIZERS
from besskge_core.runtime import LocalRuntime
from besskge_core.sharding import (
    PartitionedTripleSet,
    Sharding,
    entity_degree,
    most_frequent_entities,
)
from besskge_core.sharding.balance import balanced_buckets


def with_hubs(graph, n_hub, n_shard, part="train"):
    hubs = most_frequent_entities(graph.triples["train"], graph.n_entity, n_hub)
    sharding = Sharding.create(graph.n_entity, n_shard, seed=1, hubs=hubs)
    return PartitionedTripleSet.create_from_dataset(graph, part, sharding)


# -- who is a hub ------------------------------------------------------------------------------


def test_the_most_frequent_entities_come_first_and_equal_ones_by_id():
    triples = np.array([[3, 0, 1], [3, 0, 2], [4, 1, 3], [4, 0, 4]])
    assert entity_degree(triples, 6).tolist() == [0, 1, 1, 3, 3, 0]
    assert most_frequent_entities(triples, 6, 4).tolist() == [3, 4, 1, 2]
    with pytest.raises(ConfigError, match=r"k must be in \[0, 6\] for 6 entities, got 7"):
        most_frequent_entities(triples, 6, 7)


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("n_hub", [1, 5, 37])
def test_hubs_are_dealt_evenly_and_have_one_row_on_every_shard(n_shard, n_hub):
    hubs = np.random.default_rng(0).permutation(37)[:n_hub]
    sharding = Sharding.create(37, n_shard, 0, hubs=hubs)
    assert sorted(sharding.hubs.tolist()) == sorted(hubs.tolist())
    per_shard = np.bincount(sharding.entity_to_shard[hubs], minlength=n_shard)
    assert per_shard.max() - per_shard.min() <= 1
    assert sharding.shard_counts.max() - sharding.shard_counts.min() <= 1
    assert (sharding.shard_counts < sharding.max_entity_per_shard).all()  # a row of padding
    rows = sharding.row_on_any_shard
    for shard in range(n_shard):
        assert (sharding.entity_of(np.full(n_hub, shard), rows[hubs]) == hubs).all()
    others = np.setdiff1d(np.arange(37), hubs)
    assert (rows[others] == sharding.entity_to_idx[others]).all()
    home = sharding.entity_of(sharding.entity_to_shard, sharding.entity_to_idx)
    assert home.tolist() == list(range(37))


def test_hubs_that_are_no_entities_are_refused():
    with pytest.raises(ConfigError, match=r"hubs has IDs from 3 to 37, expected some of \[0, 37\)"):
        Sharding.create(37, 4, 0, hubs=[3, 37])


def test_a_sharding_with_hubs_is_stored_whole(tmp_path, graph):
    triple_set = with_hubs(graph, 5, 4)
    triple_set.save(tmp_path / "triples.npz")
    loaded = PartitionedTripleSet.load(tmp_path / "triples.npz")
    assert loaded.sharding.hub_rows.tolist() == triple_set.sharding.hub_rows.tolist()
    assert loaded.entity_ids().tolist() == triple_set.entity_ids().tolist()


# -- even buckets ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_hub", [0, 3, 37])
@pytest.mark.parametrize("n_shard", SHARDS)
def test_every_triple_is_in_one_bucket_where_its_ends_are_known(graph, n_shard, n_hub):
    triple_set = with_hubs(graph, n_hub, n_shard)
    ids, original = triple_set.entity_ids(), graph.triples["train"]
    assert ids.tolist() == original[triple_set.triple_sort_idx].tolist()
    assert sorted(triple_set.triple_sort_idx.tolist()) == list(range(len(original)))
    assert triple_set.triple_counts.sum() == len(original)
    hubs, home = triple_set.sharding.hubs, triple_set.sharding.entity_to_shard
    bucket = np.repeat(np.arange(n_shard**2), triple_set.triple_counts.ravel())
    for column, shard in zip((0, 2), np.divmod(bucket, n_shard)):
        settled = ~np.isin(ids[:, column], hubs)
        assert (home[ids[settled, column]] == shard[settled]).all()


@given(data=st.data(), n_shard=st.integers(1, 3))
def test_no_other_choice_has_a_smaller_largest_bucket(data, n_shard):
    shard = st.integers(0, n_shard - 1)
    triples = data.draw(
        st.lists(st.tuples(shard, shard, st.booleans(), st.booleans()), min_size=1, max_size=6)
    )
    columns = [np.array(x) for x in zip(*triples)]
    head, tail = balanced_buckets(*columns, n_shard)
    head_shard, tail_shard, head_free, tail_free = columns
    assert (head[~head_free] == head_shard[~head_free]).all()
    assert (tail[~tail_free] == tail_shard[~tail_free]).all()
    choices = [
        [(i, j) for i in (range(n_shard) if hf else [h]) for j in (range(n_shard) if tf else [t])]
        for h, t, hf, tf in triples
    ]
    least = min(
        max(np.unique(np.array(choice), axis=0, return_counts=True)[1])
        for choice in itertools.product(*choices)
    )
    found = np.bincount(head * n_shard + tail, minlength=n_shard**2)
    assert found.sum() == len(triples) and found.max() == least


@pytest.mark.parametrize(
    "n_shard, before, n_hub", [(4, 1.05, 128), (16, 1.3, 128), (64, 3.0, 1024)]
)
def test_the_buckets_of_family_become_even(n_shard, before, n_hub):
    family = load_dataset("family")
    assert with_hubs(family, 0, n_shard).imbalance > before
    after = with_hubs(family, n_hub, n_shard)
    even = -(-len(after.triples) // n_shard**2) / (len(after.triples) / n_shard**2)
    assert after.imbalance < (1.01 * even if n_shard < 64 else 1.25)


# -- the same training -------------------------------------------------------------------------


def gradients(graph, mover, n_hub, n_shard):
    """Sums over an epoch of the positives' loss: the same triples, however they are dealt."""
    triple_set = with_hubs(graph, n_hub, n_shard)
    sharding = triple_set.sharding
    # Negatives depend on where a triple is scored, so they count for nothing here.
    sampler = RandomShardedNegativeSampler(1, sharding, 0, "t", flat_negative_format=True)
    score_fn = make_score("rotate", sharding, graph.n_relation_type)
    model = mover(sampler, score_fn, PositiveOnly(), return_scores=True)
    for batch in LocalRuntime(model).dataloader(
        RigidShardedBatchSampler(triple_set, sampler, 8, 2, 0)
    ):
        for micro in batch:
            (n_shard * model(**micro.columns)["loss"]).backward()
    table = score_fn.entity_embedding.grad.coalesce()
    return by_entity(score_fn, table), score_fn.relation_embedding.grad


class PositiveOnly(LogSigmoidLoss):
    """The loss without its negatives."""

    def __init__(self):
        super().__init__(2.0, False)

    def per_positive(self, positive, negative, n_negative):
        return super().per_positive(positive, torch.full_like(negative, -torch.inf), n_negative)


@pytest.mark.parametrize("mover", [EmbeddingMovingBessKGE, ScoreMovingBessKGE])
@pytest.mark.parametrize("n_shard", SHARDS)
def test_gradients_of_an_epoch_are_equal_with_and_without_hubs(graph, mover, n_shard):
    plain, relation = gradients(graph, mover, 0, n_shard)
    for n_hub in (1, 6, 37):
        found = gradients(graph, mover, n_hub, n_shard)
        assert_close(found[0], plain)
        assert_close(found[1], relation)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_padding_rows_stay_zero_though_they_are_read_in_the_place_of_hubs(graph, name):
    triple_set = with_hubs(graph, 6, 4)
    sharding = triple_set.sharding
    sampler = RandomShardedNegativeSampler(2, sharding, 0, "ht")
    model = EmbeddingMovingBessKGE(
        sampler, make_score("complex", sharding, 4), LogSigmoidLoss(1.0, True)
    )
    runtime = LocalRuntime(model)
    step = runtime.training_step(OPTIMIZERS[name](model.parameters(), lr=0.1))
    before = by_entity(model.score_fn).clone()
    for _ in range(2):
        for batch in runtime.dataloader(RigidShardedBatchSampler(triple_set, sampler, 16, 1, 0)):
            step(batch)
    padding = sharding.shard_and_idx_to_entity >= graph.n_entity
    assert padding.any() and (model.entity_embedding[torch.from_numpy(padding)] == 0).all()
    assert (by_entity(model.score_fn) != before).all(dim=1).float().mean() > 0.9
