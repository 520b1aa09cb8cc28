"""True triples are left out of the negatives: all of them, and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SHARDS, global_batch, make_score
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE
from besskge_core.bess.filtering import known_candidates
from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.loss import LOSSES, LogSigmoidLoss
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    RandomShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.runtime import LocalRuntime
from besskge_core.sharding import PartitionedTripleSet, Sharding

#: Losses that are means by default; a mean over each shard is not one over all.
SUM = dict(reduction="sum")
LOSS_ARGUMENTS = {
    "logsigmoid": dict(margin=2.0, negative_adversarial_sampling=True),
    "marginranking": dict(margin=2.0, negative_adversarial_sampling=False),
    "sampledsoftmax": dict(n_entity=37),
}


def step(graph, mover, scheme, form, n_shard=4, inverse=False, known=True, n_hub=0, **options):
    types = list(graph.type_offsets.values())
    hubs = graph.triples["train"][:n_hub, 2]
    sharding = Sharding.create(graph.n_entity, n_shard, 3, types, hubs)
    triple_set = PartitionedTripleSet.create_from_dataset(
        graph, "train", sharding, add_inverse_triples=inverse
    )
    given_known = KnownTriples.of(graph) if known else None
    flat = form == "flat"
    if scheme == "either":
        sampler = BernoulliShardedNegativeSampler(triple_set, 5, 0, False, flat, given_known)
    elif form == "typed":
        sampler = TypeBasedShardedNegativeSampler(
            triple_set.types, 5, sharding, scheme, False, 0, given_known
        )
    else:
        sampler = RandomShardedNegativeSampler(5, sharding, 0, scheme, False, flat, given_known)
    batches = RigidShardedBatchSampler(triple_set, sampler, 4 * n_shard, 1, seed=0)
    score_fn = make_score("distmult", sharding, 4, sharing=form == "shared", inverse=inverse)
    model = mover(sampler, score_fn, **{"return_scores": True, **options})
    return model, {name: x[0] for name, x in batches[0].items()}, batches


def is_known(graph, batch, model):
    """bool (Q, C): whether the corrupted triple is true."""
    found = global_batch(batch, model)
    known = set(map(tuple, np.concatenate(list(graph.triples.values())).tolist()))
    rows = []
    for (h, r, t), heads, entities in zip(
        found.triples.tolist(), found.heads.tolist(), found.candidates.tolist()
    ):
        made = [(e, r, t) if heads else (h, r, e) for e in entities]
        made = [(h, r, t) if r < 4 else (t, r - 4, h) for h, r, t in made]
        rows.append([triple in known for triple in made])
    return torch.tensor(rows)


@pytest.fixture(params=[EmbeddingMovingBessKGE, ScoreMovingBessKGE])
def mover(request):
    return request.param


@pytest.mark.parametrize("form", ["flat", "per triple", "shared"])
@pytest.mark.parametrize("scheme", ["h", "t", "ht", "either"])
def test_just_the_true_triples_are_left_out(graph, mover, scheme, form):
    model, batch, _ = step(graph, mover, scheme, form)
    plain, _, _ = step(graph, mover, scheme, form, known=False)
    known = is_known(graph, batch, model)
    assert 0.01 < known.float().mean() < 0.9
    scores = model(**batch)["negative_score"]
    expected = plain(**batch)["negative_score"].masked_fill(known, -torch.inf)
    assert_close(scores, expected)


@pytest.mark.parametrize("n_shard", SHARDS)
def test_any_number_of_shards_and_hubs(graph, mover, n_shard):
    model, batch, _ = step(graph, mover, "ht", "per triple", n_shard, n_hub=3)
    excluded = model(**batch)["negative_score"].isneginf()
    assert torch.equal(excluded, is_known(graph, batch, model))


def test_the_answers_of_inverse_triples_are_heads(graph, mover):
    model, batch, _ = step(graph, mover, "t", "flat", inverse=True)
    assert (batch["relation"] >= 4).any()
    excluded = model(**batch)["negative_score"].isneginf()
    assert torch.equal(excluded, is_known(graph, batch, model))


def test_a_mask_and_a_filter_exclude_together(graph, mover):
    model, batch, _ = step(graph, mover, "ht", "typed", loss_fn=LogSigmoidLoss(1.0, False))
    batch["negative_mask"] = torch.rand(4, 16, 4, 5, generator=torch.manual_seed(0)) < 0.7
    plain, _, _ = step(graph, mover, "ht", "typed", known=False)
    by_mask = plain(**batch)["negative_score"].isneginf()
    out = model(**batch)
    excluded = by_mask | is_known(graph, batch, model)
    assert torch.equal(out["negative_score"].isneginf(), excluded)
    counts = (~excluded).sum(1)
    expected = LogSigmoidLoss(1.0, False)(
        out["positive_score"], out["negative_score"], torch.ones(()), counts
    )
    assert_close(out["loss"], expected / 4, check_dtype=False)


@pytest.mark.parametrize("loss", sorted(LOSS_ARGUMENTS))
def test_what_is_filtered_might_as_well_not_be_there(graph, mover, loss):
    loss_fn = LOSSES[loss](**LOSS_ARGUMENTS.get(loss, SUM))
    model, batch, _ = step(graph, mover, "t", "per triple", loss_fn=loss_fn)
    out = model(**batch)
    rows = [
        loss_fn(p[None], n[None, ~n.isneginf()], torch.ones(1))
        for p, n in zip(out["positive_score"], out["negative_score"])
    ]
    assert_close(out["loss"], torch.stack(rows).sum() / 4, check_dtype=False)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_gradients_are_finite_where_every_negative_is_filtered(graph, mover, loss):
    loss_fn = LOSSES[loss](**LOSS_ARGUMENTS.get(loss, SUM))
    model, batch, _ = step(graph, mover, "t", "per triple", known=False, loss_fn=loss_fn)
    n_column = model(**batch)["negative_score"].shape[1]
    pairs = torch.full((4, n_column + 2, 2), -1, dtype=torch.int32)
    pairs[:, :n_column, 0], pairs[:, :n_column, 1] = 3, torch.arange(n_column)
    out = model(**batch, negative_filter=pairs)
    out["loss"].backward()
    assert out["negative_score"].view(4, 16, -1)[:, 3].isneginf().all()
    assert out["negative_score"].isneginf().sum() == 4 * n_column
    assert torch.isfinite(out["loss"])
    assert torch.isfinite(model.entity_embedding.grad.to_dense()).all()


def test_the_list_is_sparse_and_made_with_the_batch(graph, mover):
    model, batch, batches = step(graph, mover, "t", "flat", loss_fn=LogSigmoidLoss(1.0, False))
    pairs = model.filter_negatives(batch)
    assert pairs.shape[0] == 4 and pairs.shape[2] == 2 and pairs.dtype == torch.int32
    assert (pairs[..., 0] >= 0).sum() == is_known(graph, batch, model).sum()
    planned = next(LocalRuntime(model).dataloader(batches))
    assert planned[0].columns["negative_filter"].dtype == torch.int32


def test_a_step_with_the_list_equals_one_without(graph, mover):
    losses = []
    for ahead in (True, False):
        model, _, batches = step(graph, mover, "t", "flat", loss_fn=LogSigmoidLoss(1.0, False))
        runtime = LocalRuntime(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        planned = next(runtime.dataloader(batches))
        losses.append(runtime.training_step(optimizer)(planned if ahead else batches[0])["loss"])
    assert torch.equal(*losses)


def test_filtering_needs_known_triples(graph, mover):
    model, batch, _ = step(graph, mover, "t", "flat", known=False)
    with pytest.raises(ConfigError, match="no known triples to filter with"):
        model.filter_negatives(batch)
    assert model.filter_negatives(batch, KnownTriples.of(graph)).numel() > 0


IDS = st.integers(0, 6)


@given(
    known=st.lists(st.tuples(IDS, st.integers(0, 1), IDS), max_size=30),
    triples=st.lists(st.tuples(IDS, st.integers(0, 3), IDS, st.booleans()), min_size=1, max_size=5),
    lists=st.lists(st.lists(IDS, min_size=4, max_size=4), min_size=5, max_size=5),
    shared=st.booleans(),
)
def test_places_of_known_candidates_are_found_once_each(known, triples, lists, shared):
    facts = KnownTriples([np.array(known, dtype=np.int64).reshape(-1, 3)], 7, 2)
    rows = np.array([t[:3] for t in triples])
    heads = np.array([t[3] for t in triples])
    candidates = np.array(lists)[: 1 if shared else len(rows)]
    expected = set()
    for i, ((h, r, t), is_head) in enumerate(zip(rows.tolist(), heads)):
        for j, e in enumerate(candidates[0 if shared else i].tolist()):
            made = (e, r, t) if is_head else (h, r, e)
            made = (made[2], r - 2, made[0]) if r >= 2 else made
            if made in set(known):
                expected.add((i, j))
    found = list(zip(*(x.tolist() for x in known_candidates(facts, rows, heads, candidates))))
    assert len(found) == len(set(found)) and set(found) == expected
