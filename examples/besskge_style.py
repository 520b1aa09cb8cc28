"""A program in the manner of BESS-KGE's tutorials: only the name of the package is new.

    python examples/besskge_style.py
    python examples/besskge_style.py --dataset wn18rr --epochs 3

It trains RotatE over shards with the loop written by hand, validates against given negatives,
completes queries, and ranks the test triples among all entities. PopTorch's options and wrappers
are left out: a module is called as it is. docs/migrate-from-besskge.md says what else is not
needed any more, and the end of this page is the shorter way.
"""

import argparse
from typing import Any, Dict, Iterator

import numpy as np
import torch
from torch import Tensor

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE, TopKQueryBessKGE
from besskge_core.catalogue import load_dataset
from besskge_core.dataset import KGDataset
from besskge_core.loss import LogSigmoidLoss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
)
from besskge_core.optim import LazyAdam
from besskge_core.pipeline import AllScoresPipeline
from besskge_core.runtime import LocalRuntime
from besskge_core.scoring import BaseScoreFunction, RotatE
from besskge_core.sharding import PartitionedTripleSet, Sharding

Batch = Dict[str, Tensor]
METRICS = ["mrr", "hits@1", "hits@10"]


def micro_batches(batch: Batch, n_shard: int) -> Iterator[Batch]:
    """(M, S, ...) -> M times (S, ...), by way of the flat axis (M * S, ...) that PopTorch wants."""
    flat = {k: v.flatten(end_dim=1) for k, v in batch.items()}
    for first in range(0, len(flat["relation"]), n_shard):
        yield {k: v[first : first + n_shard] for k, v in flat.items()}


def validate(
    dataset: KGDataset, sharding: Sharding, score_fn: BaseScoreFunction, shard_bs: int, seed: int
) -> Dict[str, float]:
    """Metrics of the validation triples among given negatives: the data set's, or random ones."""
    valid = PartitionedTripleSet.create_from_dataset(dataset, "valid", sharding)
    lists = [valid.neg_heads, valid.neg_tails]
    if valid.neg_heads is None or valid.neg_tails is None:
        rng = np.random.default_rng(seed)
        lists = [rng.integers(dataset.n_entity, size=(len(valid.triples), 100)) for _ in lists]
    negatives = TripleBasedShardedNegativeSampler(
        negative_heads=lists[0],
        negative_tails=lists[1],
        sharding=sharding,
        corruption_scheme="ht",
        seed=seed,
    )
    batches = RigidShardedBatchSampler(
        valid, negatives, shard_bs, batches_per_step=2, seed=seed, duplicate_batch=True
    )
    # Upstream must not share lists that are given for each triple; here they never are shared.
    score_fn.negative_sample_sharing = False
    evaluation = Evaluation(METRICS, reduction="sum")
    model = ScoreMovingBessKGE(negatives, score_fn, evaluation=evaluation).eval()
    total, n_query = torch.zeros(len(METRICS)), 0
    with torch.no_grad():
        for batch in batches.get_dataloader(options=None, shuffle=False):
            n_query += int(batch["triple_mask"].sum())
            for micro in micro_batches(batch, sharding.n_shard):
                total += model(**micro)["metrics"].sum(dim=0)
    return dict(zip(evaluation.metrics, (total / n_query).tolist()))


def complete(
    dataset: KGDataset, sharding: Sharding, score_fn: BaseScoreFunction, n_query: int
) -> None:
    """Print the ten best tails of the first test queries (h, r, ?)."""
    assert dataset.entity_dict and dataset.relation_dict
    queries = dataset.triples["test"][:n_query, :2]
    triples = PartitionedTripleSet.create_from_queries(dataset, sharding, queries, query_mode="hr")
    candidates = PlaceholderNegativeSampler(corruption_scheme="t")
    batches = RigidShardedBatchSampler(
        triples, candidates, shard_bs=8, batches_per_step=1, seed=0, return_triple_idx=True
    )
    model = TopKQueryBessKGE(k=10, candidate_sampler=candidates, score_fn=score_fn).eval()
    for batch in batches.get_dataloader(options=None, shuffle=False):
        triple_idx, real = batch.pop("triple_idx"), batch["triple_mask"].flatten()
        with torch.no_grad():
            found = model(**{k: v.flatten(end_dim=1) for k, v in batch.items()})
        place = triples.triple_sort_idx[triple_idx.flatten()[real].numpy()]
        for (head, relation), ids in zip(queries[place], found["topk_global_id"][real]):
            names = ", ".join(dataset.entity_dict[i] for i in ids)
            print(f"{dataset.entity_dict[head]} {dataset.relation_dict[relation]}: {names}")


def rank_all(
    dataset: KGDataset, sharding: Sharding, score_fn: BaseScoreFunction
) -> Dict[str, float]:
    """Filtered metrics of the test tails among all entities."""
    test = PartitionedTripleSet.create_from_dataset(
        dataset, "test", sharding, partition_mode="h_shard"
    )
    batches = RigidShardedBatchSampler(
        test, PlaceholderNegativeSampler("t"), shard_bs=64, batches_per_step=1, seed=0,
        return_triple_idx=True,
    )  # fmt: skip
    known = [dataset.triples[part] for part in ("train", "valid", "test")]
    pipeline = AllScoresPipeline(
        batches, "t", score_fn, Evaluation(METRICS), filter_triples=known, window_size=500
    )
    return {name: float(value) for name, value in pipeline()["metrics_avg"].items()}


def show(what: str, metrics: Dict[str, float]) -> None:
    print(what, "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


def main(
    dataset: str = "family",
    epochs: int = 8,
    n_shard: int = 4,
    shard_bs: int = 64,
    embedding_size: int = 32,
    seed: int = 0,
    **options: Any,
) -> Dict[str, float]:
    """Train and infer; `options` are the data set's. Returns the filtered MRR before and after."""
    graph = load_dataset(dataset, **options)
    sharding = Sharding.create(n_entity=graph.n_entity, n_shard=n_shard, seed=seed)
    train = PartitionedTripleSet.create_from_dataset(
        dataset=graph, part="train", sharding=sharding, partition_mode="ht_shardpair"
    )
    negatives = RandomShardedNegativeSampler(
        n_negative=1,
        sharding=sharding,
        seed=seed,
        corruption_scheme="ht",
        local_sampling=False,
        flat_negative_format=False,
    )
    batches = RigidShardedBatchSampler(
        partitioned_triple_set=train,
        negative_sampler=negatives,
        shard_bs=shard_bs,
        batches_per_step=2,
        seed=seed,
        return_triple_idx=True,
    )
    torch.manual_seed(seed)
    score_fn = RotatE(
        negative_sample_sharing=True,
        scoring_norm=1,
        sharding=sharding,
        n_relation_type=graph.n_relation_type,
        embedding_size=embedding_size,
    )
    loss_fn = LogSigmoidLoss(margin=6.0, negative_adversarial_sampling=True)
    model = EmbeddingMovingBessKGE(negatives, score_fn, loss_fn)
    # Gradients of the entity table are sparse, which torch.optim.AdamW does not take.
    optimizer = LazyAdam(model.parameters(), lr=0.01)
    print(f"{graph}: {model.n_embedding_parameters:,} parameters on {n_shard} shards")

    before = rank_all(graph, sharding, score_fn)
    for epoch in range(epochs):
        total, n_triple = 0.0, 0
        for batch in batches.get_dataloader(options=None, shuffle=True):
            # Neither is needed with a runtime. The mask is better left in: without it, padding is
            # trained on, as upstream does.
            batch.pop("triple_idx")
            batch.pop("triple_mask")
            for micro in micro_batches(batch, n_shard):
                optimizer.zero_grad()
                loss = model(**micro)["loss"]  # the mean over the shards
                loss.backward()
                optimizer.step()
                total, n_triple = total + n_shard * loss.item(), n_triple + micro["head"].numel()
        print(f"epoch {epoch + 1}  loss {total / n_triple:.4f}")

    show("valid, given negatives:", validate(graph, sharding, score_fn, shard_bs, seed))
    complete(graph, sharding, score_fn, n_query=5)
    after = rank_all(graph, sharding, score_fn)
    show("test, before:", before)
    show("test, after: ", after)

    # The shorter way: the runtime takes batches as they come, mask, triple_idx and all.
    score_fn.negative_sample_sharing = True
    step = LocalRuntime(model).training_step(optimizer)
    losses = torch.cat([step(batch)["loss"] for batch in batches.get_dataloader()])
    print(f"one more epoch  loss {float(losses.mean()) / batches.shard_bs:.4f}")
    return {"before": before["mrr"], "after": after["mrr"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train and infer in the manner of BESS-KGE.")
    parser.add_argument("--dataset", default="family")
    parser.add_argument("--epochs", type=int, default=8)
    main(**vars(parser.parse_args()))
