"""besskge_core, through its public classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from besskge_core import optim, scoring
from besskge_core.batch_sampler import RandomShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import RandomShardedNegativeSampler
from besskge_core.runtime import LocalRuntime
from besskge_core.runtime.memory import keep_freed_memory
from besskge_core.sharding import PartitionedTripleSet, Sharding

from .common import Answer, StepRequest, serve, split_names, time_steps

MODELS = {
    "transe": scoring.TransE,
    "distmult": scoring.DistMult,
    "complex": scoring.ComplEx,
    "rotate": scoring.RotatE,
}
OPTIMIZERS = {"adagrad": optim.Adagrad, "lazy_adam": optim.LazyAdam}


def score_function(
    model: str, dim: int, sharding: Sharding, n_relation: int, **options: Any
) -> Any:
    """A named model with `dim` real numbers an entity."""
    names = split_names(model)
    if names["name"] in ("complex", "rotate"):
        dim //= 2
    if names["p"] or names["name"] == "rotate":
        options["scoring_norm"] = names["p"] or 1
    return MODELS[names["name"]](
        negative_sample_sharing=False,
        sharding=sharding,
        n_relation_type=n_relation,
        embedding_size=dim,
        **options,
    )


def step(**fields: Any) -> Answer:
    request = StepRequest(**fields)
    request.only(optimizer=list(OPTIMIZERS), layout=["shared", "per_triple"])
    keep_freed_memory()
    graph = KGDataset(
        request.n_entity,
        request.n_relation,
        {"train": request.triples().astype(np.int32)},
        {"train": np.arange(request.n_triple)},
    )
    shared = request.layout == "shared"
    sharding = Sharding.create(request.n_entity, n_shard=1, seed=request.seed)
    triples = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    negatives = RandomShardedNegativeSampler(
        request.n_negative, sharding, request.seed, "t", flat_negative_format=shared
    )
    batches = RandomShardedBatchSampler(triples, negatives, request.batch, 1, request.seed)
    score_fn = score_function(request.model, request.dim, sharding, request.n_relation)
    loss = LogSigmoidLoss(margin=12.0, negative_adversarial_sampling=False)
    runtime = LocalRuntime(EmbeddingMovingBessKGE(negatives, score_fn, loss))
    update = runtime.training_step(OPTIMIZERS[request.optimizer](runtime.model.parameters()))

    def forever() -> Any:
        epoch = 0
        while True:
            yield from runtime.dataloader(batches, epoch)
            epoch += 1

    source = forever()
    return time_steps(
        request,
        lambda: float(update(next(source))["loss"]),
        loss="log-sigmoid",
        note=f"{request.optimizer}, rows of the batch only; tails corrupted",
    )


if __name__ == "__main__":
    serve(["besskge_core"], step=step)
