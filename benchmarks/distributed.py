"""The same run on 1, 2 and 4 ranks of one machine: losses, bytes sent, memory, seconds a step.

    python -m benchmarks.distributed [--steps 60] [--quick]

Four shards in each case, so that all take the same steps; the ranks talk over gloo and the loopback
interface. On a machine with fewer cores than ranks the times show what ranks cost, not what they
gain. Writes `benchmarks/results/distributed.md`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, OneVsAllBessKGE
from besskge_core.config import replace_flags
from besskge_core.dataset import KGDataset
from besskge_core.embedding import hosting
from besskge_core.environment import describe
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import PlaceholderNegativeSampler, RandomShardedNegativeSampler
from besskge_core.optim import Adagrad
from besskge_core.planning import HARDWARE, plan
from besskge_core.runtime import join, leave, make_runtime
from besskge_core.scoring import ComplEx
from besskge_core.sharding import PartitionedTripleSet, Sharding
from besskge_core.training import TrainingConfig

RESULT = Path(__file__).parent / "results" / "distributed.md"
N_SHARD, N_RELATION, WIDTH = 4, 237, 200
#: Name -> entities, triples, positives of a step, negatives of a positive (0: all entities).
CASES = {
    "10 thousand entities, 256 negatives": (10_000, 200_000, 1024, 256),
    "1 million entities, 256 negatives": (1_000_000, 2_000_000, 1024, 256),
    "10 thousand entities, all of them": (10_000, 200_000, 1024, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="the first case alone, few steps")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        work(options.case, options.steps)
        return
    names = list(CASES)[:1] if options.quick else list(CASES)
    steps = 12 if options.quick else options.steps
    found = {name: [on_ranks(n, name, steps) for n in (1, 2, 4)] for name in names}
    lines = report(found, steps)
    if not options.quick:
        RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def on_ranks(n_rank: int, case: str, steps: int) -> Dict[str, Any]:
    """What `work` finds on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_rank}"]
    command = [sys.executable, *(launcher if n_rank > 1 else []), "-m", "benchmarks.distributed"]
    out = subprocess.run(
        [*command, "--case", case, "--steps", str(steps)], stdout=subprocess.PIPE, check=True
    )
    answer: Dict[str, Any] = json.loads(out.stdout.decode().strip().split("\n")[-1])
    print(f"{case}, {n_rank} ranks: {answer['ms']:.1f} ms", file=sys.stderr, flush=True)
    return answer


def work(case: str, steps: int) -> None:
    """Train a few steps on this rank, and print what all ranks have found."""
    n_entity, n_triple, batch_size, n_negative = CASES[case]
    torch.set_num_threads(max(torch.get_num_threads() // 2, 1))
    ranks = join()
    before = peak_memory()
    sharding = Sharding.create(n_entity, N_SHARD, 0)
    sampler, negatives = batches(n_entity, n_triple, batch_size, n_negative, sharding)
    data = peak_memory()
    torch.manual_seed(0)
    with hosting(ranks.hosted(N_SHARD)):
        score_fn = ComplEx(False, sharding, N_RELATION, WIDTH // 2)
    model = (
        EmbeddingMovingBessKGE(negatives, score_fn, LogSigmoidLoss(1.0, False))
        if n_negative
        else OneVsAllBessKGE(score_fn, sides=("tail",))
    )
    runtime = make_runtime(model, ranks)
    step = runtime.training_step(Adagrad(list(model.parameters()), lr=0.1))
    losses: List[float] = []
    seconds: List[float] = []
    sent: Dict[str, int] = {}
    for i, batch in enumerate(runtime.dataloader(sampler)):
        if i == steps:
            break
        if i == 1 and ranks.n_rank > 1:
            sent = dict(runtime.exchange.sent)
        started = time.perf_counter()
        losses.append(float(step(batch)["loss"].mean()))
        seconds.append(time.perf_counter() - started)
    if ranks.n_rank > 1:
        n = len(losses) - 1
        sent = {k: (x - sent[k]) // n for k, x in runtime.exchange.sent.items()}
    of_ranks = ranks.gather(
        dict(sent=sent, memory=peak_memory() - data, data=data - before,
             table=score_fn.entity_embedding.numel() * 4)
    )  # fmt: skip
    if ranks.rank == 0:
        ms = 1e3 * float(np.median(seconds[5:]))
        print(json.dumps(dict(ms=ms, losses=losses, ranks=of_ranks)), flush=True)
    leave(ranks)


def batches(
    n_entity: int, n_triple: int, batch_size: int, n_negative: int, sharding: Sharding
) -> Any:
    """Sampler and negative sampler, of random triples."""
    rng = np.random.default_rng(0)
    columns = [rng.integers(n, size=n_triple) for n in (n_entity, N_RELATION, n_entity)]
    triples = np.stack(columns, axis=1).astype(np.int32)
    graph = KGDataset(n_entity, N_RELATION, {"train": triples}, {"train": np.arange(n_triple)})
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    negatives: Any = PlaceholderNegativeSampler("t")
    if n_negative:
        per_pair = n_negative // N_SHARD
        negatives = RandomShardedNegativeSampler(
            per_pair, sharding, 0, "t", flat_negative_format=True
        )
    shard_bs = batch_size // N_SHARD
    return RigidShardedBatchSampler(triple_set, negatives, shard_bs, 1, 0), negatives


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def formula(n_rank: int, case: str) -> int:
    """2 (B + N) d s (n - 1) / n: bytes of rows that a rank of n sends in a step, there and back.

    B and N are those of the rank's shards.
    """
    _, _, batch_size, n_negative = CASES[case]
    n_host = N_SHARD // n_rank
    n_row = n_host * (batch_size // N_SHARD + n_negative)
    return 2 * n_row * WIDTH * 4 * (n_rank - 1) // n_rank


def predicted(n_rank: int, case: str) -> float:
    """Milliseconds of a step, as `besskge plan` has it, of ranks that share this machine evenly.

    Plans know one shard a rank, or one rank; so that is what two ranks are planned with.
    """
    n_entity, n_triple, batch_size, n_negative = CASES[case]
    flags = dict(
        score_function="complex", dim=WIDTH // 2, inverse_relations=False,
        n_shard=N_SHARD if n_rank == 1 else n_rank,
        scheme="embedding" if n_negative else "all", batch_size=batch_size, loss="logsigmoid",
        n_negative=max(n_negative, 1), optimizer="adagrad",
    )  # fmt: skip
    if not n_negative:
        flags["loss"] = "crossentropy"
    config, whole = replace_flags(TrainingConfig(), flags), HARDWARE["cpu"]
    shared = {
        name: getattr(whole, name) / n_rank
        for name in ("bandwidth_gb_s", "row_bandwidth_gb_s", "cache_bandwidth_gb_s", "dot_tflops",
                     "half_tflops", "l1_tflops", "list_tflops")
    }  # fmt: skip
    slower = max(n_rank / describe()["n_cpu"], 1.0)
    shared.update(pair_ns=whole.pair_ns * n_rank)
    for name in ("overhead_us", "call_overhead_us", "sample_ns", "latency_us"):
        shared[name] = getattr(whole, name) * slower
    hardware = replace(whole, **shared)
    found = plan(config, n_entity, N_RELATION, n_triple, hardware, n_rank)
    return 1e3 * found.step_seconds


def report(found: Dict[str, List[Dict[str, Any]]], steps: int) -> List[str]:
    environment = describe()
    lines = [
        "# One run on 1, 2 and 4 ranks",
        "",
        f"`python -m benchmarks.distributed` on {environment['cpu']}, {environment['n_cpu']}"
        f" processors, torch {environment['torch']}, Python {environment['python']}; gloo over"
        f" loopback, ComplEx of {WIDTH} numbers, Adagrad, {N_SHARD} shards in each case, {steps} steps.",
        "",
        "A rank has half of the threads of torch, at least one. *1 rank* is the local runtime, which for"
        " sampled negatives takes the step in one operation; the others exchange rows. Where there are"
        " fewer cores than ranks, times show what ranks cost, not what they gain. *As planned* is what"
        " `besskge plan` predicts for ranks that share the figures of its `cpu` evenly.",
        "",
    ]
    for case, of_ranks in found.items():
        lines += [
            f"## {case}",
            "",
            "| ranks | ms a step | as planned | loss, largest relative difference | rows sent by a rank, MB a step"
            " | formula, MB | all sent, MB | the same on all ranks | table of a rank, MB"
            " | memory of a rank above the data, MB |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        base = np.array(of_ranks[0]["losses"])
        for n_rank, x in zip((1, 2, 4), of_ranks):
            difference = np.abs(np.array(x["losses"]) / base - 1).max()
            sent = [y["sent"] for y in x["ranks"]]
            rows = sent[0].get("all_to_all", 0)
            expected = f"{formula(n_rank, case) / 1e6:.3f}" if CASES[case][3] else "-"
            lines.append(
                f"| {n_rank} | {x['ms']:.1f} | {predicted(n_rank, case):.1f} | {difference:.1e} | {rows / 1e6:.3f} | {expected}"
                f" | {sum(sent[0].values()) / 1e6:.3f} | {all(y == sent[0] for y in sent)}"
                f" | {x['ranks'][0]['table'] / 1e6:.0f}"
                f" | {max(y['memory'] for y in x['ranks']) / 1e6:.0f} |"
            )
        lines.append("")
    return lines


if __name__ == "__main__":
    main()
