"""Measure what the design promises, in one run on one machine: medians and ratios.

    python benchmarks/run.py [--quick]

1. A training step on growing graphs: its time must not follow the number of entities.
2. Native operations against their plain-torch references.
3. Filtered evaluation, queries a second.

Results go to `benchmarks/results/local.{json,md}`, with machine and versions. Absolute times
belong to the machine; the ratios are the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import torch

from besskge_core.batch_sampler import RandomShardedBatchSampler
from besskge_core.bess import ScoreMovingBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.environment import describe
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.loss import SampledSoftmaxCrossEntropyLoss
from besskge_core.negative_sampler import RandomShardedNegativeSampler
from besskge_core.ops.native import NATIVE
from besskge_core.ops.rank_counts import Filter, rank_counts, reference
from besskge_core.optim import Adagrad
from besskge_core.runtime import LocalRuntime
from besskge_core.scoring import ComplEx
from besskge_core.sharding import PartitionedTripleSet, Sharding

RESULTS = Path(__file__).parent / "results"
N_SHARD, DIM, BATCH_SIZE, N_NEGATIVE = 4, 100, 1024, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    quick = parser.parse_args().quick
    sizes = [1_000, 10_000] if quick else [10_000, 100_000, 1_000_000]
    repeats = 3 if quick else 15
    report = {
        "environment": describe(),
        "step": measure_steps(sizes, repeats),
        "rank_counts": measure_rank_counts(sizes[0] if quick else 40_000, repeats),
        "evaluation": measure_evaluation(sizes[0] if quick else 40_000, 200 if quick else 4_000),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "local.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "local.md").write_text(as_markdown(report))
    print(as_markdown(report))


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def random_graph(n_entity: int, n_triple: int = 200_000) -> KGDataset:
    rng = np.random.default_rng(0)
    columns = [rng.integers(n, size=n_triple) for n in (n_entity, 100, n_entity)]
    return KGDataset.from_triples(
        np.stack(columns, axis=1).astype(np.int32),
        split=(0.9, 0.05, 0.05),
        entity_dict=[str(i) for i in range(n_entity)],
        relation_dict=[str(i) for i in range(100)],
    )


def measure_steps(sizes: List[int], repeats: int) -> List[Dict[str, float]]:
    """One step of ComplEx with shared negatives, for graphs of these numbers of entities.

    The graphs take turns, so that a change of the machine's speed falls on all alike.
    """
    runs = []
    for n_entity in sizes:
        graph = random_graph(n_entity)
        sharding = Sharding.create(n_entity, N_SHARD, seed=0)
        triples = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
        negatives = RandomShardedNegativeSampler(
            N_NEGATIVE // N_SHARD**2, sharding, 0, "t", flat_negative_format=True
        )
        sampler = RandomShardedBatchSampler(triples, negatives, BATCH_SIZE // N_SHARD, 1, 0)
        score_fn = ComplEx(False, sharding, graph.n_relation_type, DIM)
        loss = SampledSoftmaxCrossEntropyLoss(n_entity, loss_scale=1 / sampler.shard_bs)
        runtime = LocalRuntime(ScoreMovingBessKGE(negatives, score_fn, loss))
        step = runtime.training_step(Adagrad(runtime.model.parameters()))
        batches = runtime.dataloader(sampler)
        step(next(batches))
        runs.append((n_entity, step, batches, []))
    for _ in range(repeats):
        for _, step, batches, times in runs:
            batch = next(batches)
            times.append(timed(lambda step=step, batch=batch: step(batch)))
    base = statistics.median(runs[0][3])
    return [
        {"n_entity": n, "ms": statistics.median(times), "ratio": statistics.median(times) / base}
        for n, _, _, times in runs
    ]


def measure_rank_counts(n_entity: int, repeats: int) -> Dict[str, Any]:
    """Counting of 512 queries against all entities, native against reference, in turns."""
    scores = torch.randn(512, n_entity, generator=torch.Generator().manual_seed(0))
    truth, row, none = scores[:, 0].contiguous(), torch.arange(512), torch.zeros(513).long()
    filtered = Filter(none, none[:0])
    times: Dict[str, List[float]] = {"native": [], "reference": []}
    for _ in range(repeats):
        times["native"].append(timed(lambda: rank_counts(scores, truth)))
        times["reference"].append(timed(lambda: reference(scores, truth, row, filtered, 0)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    speed = scores.numel() * scores.element_size() / medians["native"] / 1e6
    ratio = medians["reference"] / medians["native"]
    return {"native": NATIVE, "ms": medians, "speed_up": ratio, "native_GB_per_s": speed}


def measure_evaluation(n_entity: int, n_triple: int) -> Dict[str, float]:
    """Filtered ranking of both sides of random triples."""
    graph = random_graph(n_entity)
    sharding = Sharding.create(n_entity, N_SHARD, seed=0)
    score_fn = ComplEx(False, sharding, graph.n_relation_type, DIM)
    known, triples = KnownTriples.of(graph), graph.triples["test"][:n_triple]
    milliseconds = timed(lambda: rank_triples(score_fn, triples, known))
    scores_per_second = 2 * len(triples) * n_entity / milliseconds * 1e3
    return {
        "n_entity": n_entity,
        "n_triple": len(triples),
        "seconds": milliseconds / 1e3,
        "scores_per_second": scores_per_second,
    }


def as_markdown(report: Dict[str, Any]) -> str:
    environment = report["environment"]
    count, evaluation = report["rank_counts"], report["evaluation"]
    lines = [
        "# Measured on one machine",
        "",
        "`make bench` on "
        + ", ".join(f"{environment[k]}" for k in ("cpu", "platform"))
        + f"; {environment['threads']} threads, torch {environment['torch']},"
        + f" Python {environment['python']}",
        "",
        f"## A training step (ComplEx, {DIM} complex, {N_SHARD} shards, batch {BATCH_SIZE},"
        f" {N_NEGATIVE} shared negatives, Adagrad)",
        "",
        "| entities | ms | of the smallest |",
        "|---|---|---|",
        *(f"| {r['n_entity']:,} | {r['ms']:.1f} | {r['ratio']:.2f} x |" for r in report["step"]),
        "",
        "## Native operations",
        "",
        "| operation | native ms | reference ms | speed-up | GB/s |",
        "|---|---|---|---|---|",
        f"| rank_counts{'' if count['native'] else ' (not built)'} | {count['ms']['native']:.2f} |"
        f" {count['ms']['reference']:.2f} | {count['speed_up']:.1f} x |"
        f" {count['native_GB_per_s']:.1f} |",
        "",
        "## Filtered evaluation, both sides",
        "",
        f"{evaluation['n_triple']:,} triples, {evaluation['n_entity']:,} entities:"
        f" {evaluation['seconds']:.2f} s, {evaluation['scores_per_second'] / 1e6:.0f} M scores/s.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
