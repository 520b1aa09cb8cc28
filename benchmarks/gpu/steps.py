"""Whole training steps: on a generated graph of ogbl-wikikg2's shape, and as small as can be."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterator, List, NamedTuple

import numpy as np
import torch

from benchmarks.gpu.measure import Bench, in_a_line
from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import RandomShardedNegativeSampler
from besskge_core.optim import OPTIMIZERS
from besskge_core.runtime import ResidentRuntime
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import PartitionedTripleSet, Sharding

TITLE = "Training steps"

#: Entities, relations and training triples of ogbl-wikikg2.
WIKIKG2 = (2_500_604, 535, 16_109_182)
#: Steps before those that are timed: the capture, and a window.
N_WARM_UP = 12


class Setting(NamedTuple):
    """What is trained."""

    score: str
    dim: int
    batch: int
    n_negative: int = 640
    dtype: torch.dtype = torch.float32
    optimizer: str = "adagrad"


def generated(sizes: Any, seed: int = 0) -> KGDataset:
    """Random triples, of which some entities have many."""
    n_entity, n_relation, n = sizes
    rng = np.random.default_rng(seed)
    columns = [
        (n_entity * rng.random(n) ** 2.0).astype(np.int32),
        rng.integers(n_relation, size=n, dtype=np.int32),
        (n_entity * rng.random(n) ** 2.0).astype(np.int32),
    ]
    triples = {"train": np.stack(columns, axis=1)}
    return KGDataset(n_entity, n_relation, triples, {"train": np.arange(n)})


def partitioned(graph: KGDataset) -> PartitionedTripleSet:
    sharding = Sharding.create(graph.n_entity, 1, seed=0)
    return PartitionedTripleSet.create_from_dataset(graph, "train", sharding)


def parts(bench: Bench, triples: PartitionedTripleSet, n_relation: int, setting: Setting) -> Any:
    """Model, sampler and optimiser; tables are drawn on the device, which takes no time."""
    sharding = triples.sharding
    negatives = RandomShardedNegativeSampler(
        setting.n_negative, sharding, 0, "t", flat_negative_format=True
    )
    sampler = RigidShardedBatchSampler(triples, negatives, setting.batch, 1, seed=0)
    options: Dict[str, Any] = dict(scoring_norm=1) if setting.score == "transe" else {}
    score_fn = SCORE_FUNCTIONS[setting.score](
        negative_sample_sharing=True, sharding=sharding, n_relation_type=n_relation,
        embedding_size=setting.dim, entity_initializer=[torch.nn.init.zeros_], **options,
    ).to(bench.device, setting.dtype)  # fmt: skip
    with torch.no_grad():
        for table in score_fn.parameters():
            table.normal_(std=setting.dim**-0.5)
    loss = LogSigmoidLoss(12.0, True, loss_scale=1.0 / setting.batch)
    model = EmbeddingMovingBessKGE(negatives, score_fn, loss)
    return model, sampler, OPTIMIZERS[setting.optimizer](model.parameters(), lr=0.1)


def timed(bench: Bench, model: Any, sampler: Any, optimizer: Any, seconds: float) -> Dict[str, Any]:
    """Milliseconds of a step, and of the host's part in it."""
    runtime = ResidentRuntime(model, str(bench.device))
    step = runtime.training_step(optimizer)

    def endless() -> Iterator[Any]:
        epoch = 0
        while True:
            yield from runtime.dataloader(sampler, epoch)
            epoch += 1

    turns, out = endless(), {}
    for _ in range(bench.size(N_WARM_UP, 2)):
        out = step(next(turns))
    bench.wait()
    started, n, on_host = time.perf_counter(), 0, 0.0
    while n == 0 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        for _ in range(bench.size(50, 2)):
            out = step(next(turns))
            n += 1
        on_host += time.perf_counter() - begun
        bench.wait()
    of_step = (time.perf_counter() - started) / n
    program = runtime._programs[0].run if runtime._programs else None
    captured = program is not None and program.is_captured
    return {
        "step_ms": of_step * 1e3,
        "host_ms": on_host / n * 1e3,
        "triples_per_second": sampler.epoch_size / sampler.n_step / of_step,
        "n_step": n,
        "captured": captured,
        "reason": runtime.reason or ("" if captured or program is None else program.reason),
        "loss": float(out["loss"].float().mean()),
    }


def measure(bench: Bench, roofs: Dict[str, float]) -> Dict[str, Any]:
    rows = [_row(bench, "step floor", generated((1000, 8, 20_000)), Setting("distmult", 8, 16, 4))]
    graph = generated((1000, 8, 5000) if bench.rehearsal else WIKIKG2)
    triples = partitioned(graph)
    few, many = bench.size(8192, 32), bench.size(65_536, 64)
    n_negative = bench.size(640, 8)
    for batch in (few, many):
        for score, dim, dtype in (
            ("transe", 100, torch.float32), ("distmult", 256, torch.float32),
            ("distmult", 256, torch.bfloat16),
        ):  # fmt: skip
            if bench.left() < 20.0:
                rows.append({"name": f"{score}, batch {batch}", "error": "no time was left"})
                continue
            setting = Setting(score, bench.size(dim, 8), batch, n_negative, dtype)
            rows.append(_row(bench, "wikikg2's shape", graph, setting, triples))
    return {"rows": rows, "shape": list(WIKIKG2)}


def _row(
    bench: Bench, where: str, graph: KGDataset, setting: Setting, triples: Any = None
) -> Dict[str, Any]:
    dtype = str(setting.dtype).replace("torch.", "")
    name = (
        f"{where}: {setting.score}, d = {setting.dim}, {dtype}, batch {setting.batch},"
        f" {setting.n_negative} shared negatives"
    )
    try:
        triples = partitioned(graph) if triples is None else triples
        made = parts(bench, triples, graph.n_relation_type, setting)
        return {"name": name, **timed(bench, *made, bench.size(4, 0))}
    except Exception as error:  # a setting that fails must not hide the others
        return {"name": name, "error": in_a_line(error)}
    finally:
        bench.free()


def as_markdown(found: Dict[str, Any]) -> List[str]:
    lines = [
        "Goals: at least 10 M triples/s at wikikg2's shape; a floor of at most 100 microseconds.",
        "", "| what | ms a step | of it on the host | triples/s | CUDA graph | loss |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        if "error" in row:
            lines.append(f"| {row['name']} | failed: {row['error']} | | | | |")
            continue
        graph = "yes" if row["captured"] else f"no: {row['reason']}"
        lines.append(
            f"| {row['name']} | {row['step_ms']:.3f} | {row['host_ms']:.3f} |"
            f" {row['triples_per_second']:.3g} | {graph} | {row['loss']:.4f} |"
        )
    return lines
