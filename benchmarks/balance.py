"""What hubs on every shard do to the shard pairs: imbalance before and after, and equal gradients.

    python benchmarks/balance.py [--quick]

An epoch is as long as its largest shard pair, so that the imbalance, largest over mean, is what
padding costs. Results go to `benchmarks/results/balance.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import List, Tuple

import numpy as np
import torch
from torch import Tensor

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE
from besskge_core.catalogue import load_dataset
from besskge_core.dataset import KGDataset
from besskge_core.embedding import unshard_rows
from besskge_core.environment import describe
from besskge_core.errors import DownloadError
from besskge_core.loss import MarginRankingLoss
from besskge_core.negative_sampler import TripleBasedShardedNegativeSampler
from besskge_core.runtime import LocalRuntime
from besskge_core.scoring import ComplEx
from besskge_core.sharding import PartitionedTripleSet, Sharding, most_frequent_entities

RESULT = Path(__file__).parent / "results" / "balance.md"
HUBS = (0, 32, 128, 512, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="family alone, to try the script")
    quick = parser.parse_args().quick
    machine = describe()
    lines = [
        "# Even shard pairs",
        "",
        f"`python benchmarks/balance.py`, torch {machine['torch']}, Python {machine['python']}."
        " Largest shard pair of the train triples over the mean, for K hubs on every shard; 1 is"
        " even, and the mean rounded up is the least there can be.",
        "",
        f"| graph | shards | mean | least | {' | '.join(f'K = {k:,}' for k in HUBS)} |",
        f"|---|---|---|---|{'---|' * len(HUBS)}",
    ]
    for name in ["family"] if quick else ["fb15k-237", "family"]:
        try:
            graph = load_dataset(name)
        except DownloadError as error:
            print(f"{name} left out: {error}")
            continue
        lines += [_imbalance(name, graph, n_shard) for n_shard in (4, 16, 64)]
    lines += ["", "## The gradients are the same", ""]
    lines += _gradients(load_dataset("family"))
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _partition(graph: KGDataset, n_shard: int, n_hub: int) -> PartitionedTripleSet:
    hubs = most_frequent_entities(graph.triples["train"], graph.n_entity, n_hub)
    sharding = Sharding.create(graph.n_entity, n_shard, seed=0, hubs=hubs)
    return PartitionedTripleSet.create_from_dataset(graph, "train", sharding)


def _imbalance(name: str, graph: KGDataset, n_shard: int) -> str:
    mean = len(graph.triples["train"]) / n_shard**2
    found = [f"{_partition(graph, n_shard, k).imbalance:.3f}" for k in HUBS]
    least = -(-len(graph.triples["train"]) // n_shard**2) / mean
    return f"| {name} | {n_shard} | {mean:,.1f} | {least:.3f} | {' | '.join(found)} |"


def _gradients(graph: KGDataset) -> List[str]:
    """Sums over an epoch, each triple with negatives of its own, in float64."""
    lists = np.random.default_rng(0).integers(graph.n_entity, size=(len(graph.triples["train"]), 8))
    graph.neg_tails = {"train": lists}
    lines = []
    for n_shard in (4, 16):
        plain, hubs = (_epoch_gradient(graph, n_shard, k) for k in (0, 128))
        largest = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(plain, hubs)]
        lines.append(
            f"* family, {n_shard} shards, ComplEx, 8 given negatives a triple, sum over an epoch,"
            f" float64: with 128 hubs the gradients of entities and relations differ from those"
            f" without by at most {largest[0]:.1e} and {largest[1]:.1e} of the largest entry."
        )
    return lines


def _epoch_gradient(graph: KGDataset, n_shard: int, n_hub: int) -> Tuple[Tensor, Tensor]:
    triple_set = _partition(graph, n_shard, n_hub)
    sharding = triple_set.sharding
    negatives = TripleBasedShardedNegativeSampler(None, triple_set.neg_tails, sharding, "t", 0)
    torch.manual_seed(0)
    score_fn = ComplEx(False, sharding, graph.n_relation_type, 16).double()
    model = EmbeddingMovingBessKGE(
        negatives, score_fn, MarginRankingLoss(1.0, False, loss_scale=n_shard)
    )
    batches = RigidShardedBatchSampler(triple_set, negatives, 64 * n_shard, 1, seed=0)
    for step in LocalRuntime(model).dataloader(batches):
        for micro in step:
            model(**micro.columns)["loss"].backward()
    entities, relations = score_fn.entity_embedding.grad, score_fn.relation_embedding.grad
    assert entities is not None and relations is not None
    return unshard_rows(entities.to_dense(), sharding), relations


if __name__ == "__main__":
    main()
