"""A module with a batch, and what its step comes to, in one operation or in several."""

from __future__ import annotations

import torch
from support import make_score
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE, fused
from besskge_core.bess.layout import MicroBatch
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import (
    RandomShardedNegativeSampler,
)
from besskge_core.ops.native import NATIVE
from besskge_core.sharding import PartitionedTripleSet, Sharding, most_frequent_entities

MOVERS = [EmbeddingMovingBessKGE, ScoreMovingBessKGE]
FORMS = ["flat", "per triple", "shared"]
NO_RULE = {"mse", "focal", "adversarialbce"}


def general(model):
    """The same module, which computes the step in several operations."""
    cls = type("General", (type(model),), {"_pools_lists": None})
    other = object.__new__(cls)
    other.__dict__ = model.__dict__.copy()
    return other


def triples(graph, n_shard, n_hub=0):
    hubs = most_frequent_entities(graph.triples["train"], graph.n_entity, n_hub)
    offsets = list(graph.type_offsets.values())
    sharding = Sharding.create(graph.n_entity, n_shard, seed=3, type_offsets=offsets, hubs=hubs)
    return PartitionedTripleSet.create_from_dataset(graph, "train", sharding)


def drawn(triple_set, scheme="t", form="flat", local=False):
    flat = form == "flat"
    return RandomShardedNegativeSampler(3, triple_set.sharding, 0, scheme, local, flat)


def step(graph, mover=EmbeddingMovingBessKGE, scheme="t", form="flat", n_shard=2, score="rotate",
         p=1, loss_fn=None, local=False, dtype=torch.float32, n_hub=0, negatives=None, make=None,
         table=None, **options):  # fmt: skip
    """A model and the last batch of an epoch, in which some triples are masked."""
    triple_set = triples(graph, n_shard, n_hub)
    sampler = negatives(triple_set) if negatives else drawn(triple_set, scheme, form, local)
    batches = RigidShardedBatchSampler(triple_set, sampler, 4 * n_shard, 1, seed=0)
    sharing = form == "shared"
    changes = {} if table is None else dict(entity_initializer=table(triple_set.sharding))
    if make is not None:
        score_fn = make(sharing, p, triple_set.sharding, graph.n_relation_type, 6).to(dtype)
    else:
        score_fn = make_score(
            score, triple_set.sharding, graph.n_relation_type, 6, p, sharing, dtype=dtype, **changes
        )
    loss_fn = LogSigmoidLoss(2.0, True) if loss_fn is None else loss_fn
    model = mover(sampler, score_fn, loss_fn, **options)
    batch = {name: x[0] for name, x in batches[len(batches) - 1].items()}
    del batch["triple_weight"]  # which says of padding what the mask does
    return model, batch


def outcome(model, batch):
    """Loss and gradients of all parameters, by name."""
    model.zero_grad(set_to_none=True)
    loss = model(**batch)["loss"]
    loss.backward()
    grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {
        "loss": loss.detach(),
        **{k: x.to_dense() if x.is_sparse else x for k, x in grads.items()},
    }


def is_fused(model, batch):
    columns = {name: x for name, x in batch.items() if name in MicroBatch._fields}
    return fused.fused(model, MicroBatch(**columns)) is not None


def check(model, batch):
    """In one operation in float32 it is what it is in several, in double precision."""
    assert is_fused(model, batch) == NATIVE
    found, other = outcome(model, batch), general(model).double()
    assert not is_fused(other, batch)
    expected = outcome(other, batch)
    assert found.keys() == expected.keys() and len(found) == 3
    for name, x in expected.items():
        size = x.abs().max().item()
        assert size > 0.0
        assert_close(
            found[name].double(), x, rtol=2e-5, atol=2e-6 * size, msg=lambda m, n=name: f"{n}: {m}"
        )
