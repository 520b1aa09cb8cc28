"""Small models, samplers and optimisers for the tests of batches and steps on a device."""

from __future__ import annotations

import math

import torch
from support import make_score

from besskge_core.batch_sampler import RandomShardedBatchSampler, RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, OneVsAllBessKGE, ScoreMovingBessKGE
from besskge_core.known import KnownTriples
from besskge_core.loss import LogSigmoidLoss, SampledSoftmaxCrossEntropyLoss
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
)
from besskge_core.optim import OPTIMIZERS
from besskge_core.regularizer import LpRegularizer
from besskge_core.runtime import ResidentRuntime
from besskge_core.sharding import PartitionedTripleSet, Sharding, most_frequent_entities


class Case:
    """A model, its sampler and its optimiser; each begins with the same weights."""

    def __init__(
        self, graph, mover=EmbeddingMovingBessKGE, score="complex", flat=True, scheme="t",
        rigid=True, loss=None, optimizer="adagrad", n_shard=3, n_micro=2, dtype=torch.float32,
        weighted=False, n_hub=0, inverse=False, known=False, **options,
    ) -> None:  # fmt: skip
        hubs = most_frequent_entities(graph.triples["train"], graph.n_entity, n_hub)
        sharding = Sharding.create(graph.n_entity, n_shard, 0, None, hubs)
        triples = PartitionedTripleSet.create_from_dataset(
            graph, "train", sharding, add_inverse_triples=inverse
        )
        make = RigidShardedBatchSampler if rigid else RandomShardedBatchSampler
        if mover is OneVsAllBessKGE:
            negatives = PlaceholderNegativeSampler("t")
        elif scheme == "either":
            negatives = BernoulliShardedNegativeSampler(triples, 3, 0, flat_negative_format=flat)
        else:
            negatives = RandomShardedNegativeSampler(3, sharding, 0, scheme, False, flat)
        negatives.known = KnownTriples.of(graph) if known else None
        self.sampler = make(triples, negatives, 12, n_micro, seed=3, hrt_freq_weighting=weighted)
        score_fn = make_score(score, sharding, 4, dtype=dtype, inverse=inverse)
        if mover is OneVsAllBessKGE:
            self.model = OneVsAllBessKGE(score_fn, sides=("tail",), **options)
        else:
            loss = LogSigmoidLoss(1.0, True) if loss is None else loss
            self.model = mover(negatives, score_fn, loss, **options)
        rate = dict(lr=0.1, weight_decay=0.01)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), seed=9, **rate)

    def followed(self, make, n_epoch=2, change=lambda optimizer: None):
        """Losses of some epochs, then weights and state."""
        runtime, losses = make(self.model), []
        for epoch in range(n_epoch):
            step = runtime.training_step(self.optimizer)
            for batch in runtime.dataloader(self.sampler, epoch):
                losses.append(step(batch)["loss"])
                change(self.optimizer)
        states = [self.optimizer.state[p] for p in self.model.parameters()]
        kept = [state[k] for state in states for k in sorted(state)]
        assert all(not isinstance(x, torch.Tensor) or x.is_floating_point() for x in kept)
        tensors = [torch.as_tensor(x) for x in kept]
        return [torch.stack(losses), *(p.detach() for p in self.model.parameters()), *tensors]


def resident(model):
    return ResidentRuntime(model, "cpu")


def same_bits(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def poison(case):
    with torch.no_grad():
        case.model.entity_embedding.fill_(math.nan)


CASES = {
    "moving embeddings, rigid": dict(),
    "moving scores, random": dict(mover=ScoreMovingBessKGE, rigid=False),
    "candidates of each": dict(flat=False, scheme="ht"),
    "candidates of each, one side": dict(flat=False, scheme="h"),
    "either side": dict(scheme="either", flat=False),
    "weights": dict(weighted=True, loss=SampledSoftmaxCrossEntropyLoss(37)),
    "distances": dict(score="rotate", scheme="h"),
    "a regularizer": dict(regularizer=LpRegularizer(0.1)),
    "augmented": dict(augment_negative=True),
    "one shard": dict(n_shard=1, flat=False),
    "without true triples": dict(known=True, scheme="ht", n_hub=3),
    "without true triples, one shard": dict(known=True, n_shard=1, inverse=True, rigid=False),
    "half": dict(dtype=torch.bfloat16),
    "all entities": dict(mover=OneVsAllBessKGE),
    "all entities, distances": dict(mover=OneVsAllBessKGE, score="transe"),
}
