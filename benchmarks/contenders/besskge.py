"""besskge_core, through its public classes."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import torch

from besskge_core import optim, scoring
from besskge_core.batch_sampler import (
    RandomShardedBatchSampler,
    RigidShardedBatchSampler,
    ShardedBatchSampler,
)
from besskge_core.bess import EmbeddingMovingBessKGE, OneVsAllBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.embedding import unshard_rows
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.loss import LogSigmoidLoss, SampledSoftmaxCrossEntropyLoss
from besskge_core.negative_sampler import PlaceholderNegativeSampler, RandomShardedNegativeSampler
from besskge_core.regularizer import LpRegularizer
from besskge_core.runtime import LocalRuntime
from besskge_core.runtime.memory import keep_freed_memory
from besskge_core.sharding import PartitionedTripleSet, Sharding

from .common import (
    Answer,
    Clock,
    Graph,
    Snapshots,
    StepRequest,
    seconds_an_epoch,
    serve,
    split_names,
    time_once,
    time_steps,
)

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


def in_memory(triples: Dict[str, np.ndarray], n_entity: int, n_relation: int) -> KGDataset:
    """A graph of triples (n, 3) by part."""
    ids = {part: np.arange(len(x)) for part, x in triples.items()}
    narrow = {part: x.astype(np.int32) for part, x in triples.items()}
    return KGDataset(n_entity, n_relation, narrow, ids)


def forever(runtime: LocalRuntime, batches: ShardedBatchSampler) -> Iterator[Any]:
    """Batches of one epoch after another."""
    for epoch in itertools.count():
        yield from runtime.dataloader(batches, epoch)


def step(**fields: Any) -> Answer:
    request = StepRequest(**fields)
    request.only(optimizer=list(OPTIMIZERS), layout=["shared", "per_triple"])
    keep_freed_memory()
    triples = {"train": request.triples()}
    graph = in_memory(triples, request.n_entity, request.n_relation)
    shared = request.layout == "shared"
    sharding = Sharding.create(request.n_entity, n_shard=1, seed=request.seed)
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    negatives = RandomShardedNegativeSampler(
        request.n_negative, sharding, request.seed, "t", flat_negative_format=shared
    )
    batches = RandomShardedBatchSampler(triple_set, negatives, request.batch, 1, request.seed)
    score_fn = score_function(request.model, request.dim, sharding, request.n_relation)
    loss = LogSigmoidLoss(margin=12.0, negative_adversarial_sampling=False)
    runtime = LocalRuntime(EmbeddingMovingBessKGE(negatives, score_fn, loss))
    update = runtime.training_step(OPTIMIZERS[request.optimizer](runtime.model.parameters()))

    source = forever(runtime, batches)
    return time_steps(
        request,
        lambda: float(update(next(source))["loss"]),
        loss="log-sigmoid",
        note=f"{request.optimizer}, rows of the batch only; tails corrupted",
    )


def evaluate(graph: str, dim: int, threads: int) -> Answer:
    stored = Graph.read(graph)
    keep_freed_memory()
    dataset = in_memory(*stored)
    sharding = Sharding.create(stored.n_entity, n_shard=1, seed=0)
    score_fn = score_function("complex", dim, sharding, stored.n_relation)
    found = {}

    def run() -> None:
        known = KnownTriples.of(dataset)
        found["mrr"] = rank_triples(score_fn, dataset.triples["test"], known).metrics()["mrr"]

    return {**time_once(run), **found}


def prepare(path: str, threads: int) -> Answer:
    return time_once(lambda: KGDataset.from_files({"train": Path(path)}))


def all_entities(
    graph: str, dim: int, batch: int, steps: int, warmup: int, threads: int,
    score_dtype: str = "float32",
) -> Answer:  # fmt: skip
    stored = Graph.read(graph)
    keep_freed_memory()
    sharding = Sharding.create(stored.n_entity, n_shard=1, seed=0)
    score_fn = score_function("complex", dim, sharding, stored.n_relation)
    triples = PartitionedTripleSet.create_from_dataset(in_memory(*stored), "train", sharding)
    batches = RigidShardedBatchSampler(triples, PlaceholderNegativeSampler("t", 0), batch, 1, 0)
    model = OneVsAllBessKGE(score_fn, score_dtype=getattr(torch, score_dtype))
    runtime = LocalRuntime(model)
    update = runtime.training_step(optim.Adagrad(model.parameters()))
    source = forever(runtime, batches)

    def run(clock: Clock) -> None:
        while True:
            clock.tick(float(update(next(source))["loss"]))

    note = f"Adagrad, products in {score_dtype}"
    answer = Clock(warmup, steps, 600.0).run(run).answer(loss="cross-entropy", note=note)
    return seconds_an_epoch(answer, len(stored.triples["train"]), batch)


def train(
    graph: str, dim: int, budget: float, folder: str, threads: int, n3: float, recipe: str
) -> Answer:  # fmt: skip
    """ComplEx with inverse relations and N3, against all entities or with 4,096 shared negatives."""
    stored = Graph.read(graph)
    keep_freed_memory()
    sharding = Sharding.create(stored.n_entity, n_shard=1, seed=0)
    small = [functools.partial(torch.nn.init.normal_, std=1e-3)]
    score_fn = score_function(
        "complex", dim, sharding, stored.n_relation, entity_initializer=small,
        relation_initializer=small, inverse_relations=True,
    )  # fmt: skip
    sampled = recipe == "sampled"
    triples = PartitionedTripleSet.create_from_dataset(
        in_memory(*stored), "train", sharding, add_inverse_triples=sampled
    )
    penalty = LpRegularizer(n3)
    if sampled:
        negatives = RandomShardedNegativeSampler(4096, sharding, 0, "t", flat_negative_format=True)
        loss = SampledSoftmaxCrossEntropyLoss(stored.n_entity, loss_scale=1 / 512)
        model = EmbeddingMovingBessKGE(negatives, score_fn, loss, regularizer=penalty)
    else:
        negatives = PlaceholderNegativeSampler("t", 0)
        model = OneVsAllBessKGE(score_fn, regularizer=penalty, score_dtype=torch.bfloat16)
    batches = RigidShardedBatchSampler(triples, negatives, 512, 1, 0)
    runtime = LocalRuntime(model)
    update = runtime.training_step(optim.Adagrad(model.parameters(), lr=0.1))
    snapshots = Snapshots(folder, budget)

    def tables() -> Tuple[torch.Tensor, torch.Tensor]:
        entity, relation = score_fn.entity_embedding, score_fn.relation_embedding
        return unshard_rows(entity.detach(), sharding), relation.detach()

    def loop() -> None:
        for batch in forever(runtime, batches):
            update(batch)
            snapshots.tick(tables)

    against = "4,096 shared negatives" if sampled else "all entities, products in bf16"
    note = f"{against}, batch 512, inverse relations, N3 {n3}, Adagrad 0.1"
    return snapshots.run(loop, note=note)


if __name__ == "__main__":
    serve(
        ["besskge_core"],
        step=step,
        evaluate=evaluate,
        prepare=prepare,
        all_entities=all_entities,
        train=train,
    )
