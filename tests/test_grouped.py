"""All answers of queries against all entities equal the dense formula, whatever shards and tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import SHARDS, by_entity, make_score
from torch.testing import assert_close

from besskge_core.bess import LCWABessKGE
from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.loss import LOSSES, labelled_losses
from besskge_core.sharding import Sharding

LABELLED = {name: LOSSES[name] for name in labelled_losses()}
N_ENTITY, N_RELATION = 13, 3


@pytest.fixture(scope="module")
def known():
    """Triples of which one query has all entities as answers, and some queries have none."""
    rows = torch.randint(N_ENTITY, (40, 3), generator=torch.manual_seed(0)).numpy()
    rows[:, 1] %= N_RELATION
    everything = np.stack([np.zeros(N_ENTITY, int), np.full(N_ENTITY, 2), np.arange(N_ENTITY)], 1)
    return KnownTriples([rows, everything, everything[:, ::-1]], N_ENTITY, N_RELATION)


def prepare(known, n_shard, name, side="tail", **options):
    """A model, its batch, and the same queries by ID: every entity with every relation."""
    sharding = Sharding.create(N_ENTITY, n_shard, seed=1)
    score_fn = make_score("complex", sharding, N_RELATION)
    model = LCWABessKGE(score_fn, known, LABELLED[name](), side, **options)
    n_row = sharding.max_entity_per_shard
    row = torch.arange(n_row).repeat_interleave(N_RELATION).expand(n_shard, -1)
    relation = torch.arange(N_RELATION).repeat(n_row).expand(n_shard, -1)
    ids = torch.from_numpy(sharding.shard_and_idx_to_entity.astype(np.int64))
    entity = ids.gather(1, row)
    real = entity < N_ENTITY
    given = "head" if side == "tail" else "tail"
    batch = {given: row, "relation": relation, "triple_mask": real}
    return model, batch, entity[real], relation[real]


def dense_loss(model, known, entity, relation):
    score_fn, side = model.score_fn, model.side
    flat = score_fn.entity_embedding.flatten(end_dim=1)
    table = flat[torch.from_numpy(score_fn.sharding.flat_row)]
    query = score_fn.query(table[entity], relation, side == "head")
    scores = score_fn.score_candidates(query, table[None], side == "head")
    which, answer = known.answers(side, entity.numpy(), relation.numpy())
    labels = torch.zeros(len(entity), N_ENTITY, dtype=scores.dtype)
    labels[torch.from_numpy(which), torch.from_numpy(answer)] = 1.0
    smoothing = model.smoothing
    return model.loss_fn.process_lcwa_scores(scores, labels, smoothing.epsilon, N_ENTITY)


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("max_scores", [30, 2**22])
@pytest.mark.parametrize("name", sorted(LABELLED))
def test_every_loss_is_that_of_the_dense_formula(known, name, max_scores, n_shard):
    model, batch, *queries = prepare(known, n_shard, name, max_scores=max_scores)
    loss, expected = model(**model.prepare(batch))["loss"], dense_loss(model, known, *queries)
    assert_close(loss, expected)
    for parameter in (model.entity_embedding, model.score_fn.relation_embedding):
        found, dense = (
            torch.autograd.grad(x, parameter, retain_graph=x is expected)[0]
            for x in (loss, expected)
        )
        loss = model(**batch)["loss"]  # which prepares itself, and has one backward pass
        assert_close(found.to_dense(), dense)


@pytest.mark.parametrize("n_shard", [1, 4])
@pytest.mark.parametrize("side", ["head", "tail"])
def test_heads_are_asked_for_as_well_and_labels_smoothed(known, side, n_shard):
    model, batch, *queries = prepare(known, n_shard, "crossentropy", side, label_smoothing=0.1)
    assert_close(model(**batch)["loss"], dense_loss(model, known, *queries))


def test_what_cannot_be_asked_is_refused(known):
    score_fn = make_score("conve", Sharding.create(N_ENTITY, 2, 0), N_RELATION, dim=8)
    with pytest.raises(ConfigError, match="ConvE has no query for heads"):
        LCWABessKGE(score_fn, known, side="head")
    with pytest.raises(ConfigError, match="side is 'relation', expected 'head' or 'tail'"):
        LCWABessKGE(score_fn, known, side="relation")
    model, batch, *_ = prepare(known, 2, "mse")
    with pytest.raises(ConfigError, match="head is missing: queries for tails need it"):
        model(relation=batch["relation"])
    assert by_entity(model.score_fn).shape == (N_ENTITY, 12)
