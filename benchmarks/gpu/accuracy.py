"""Training on real graphs: FB15k-237 with all entities, and the time to an MRR."""

from __future__ import annotations

import lzma
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch

from benchmarks.gpu.measure import Bench
from benchmarks.gpu.steps import generated
from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import OneVsAllBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.negative_sampler import PlaceholderNegativeSampler
from besskge_core.optim import OPTIMIZERS
from besskge_core.regularizer import REGULARIZERS
from besskge_core.runtime import ResidentRuntime
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import PartitionedTripleSet, Sharding

TITLE = "Training against all entities, and time to an MRR"

FB15K_237 = (14_541, 237, 272_115)

#: Of each graph: folder under $BESSKGE_DATA; rank, batch, regularisation and weight of relation
#: prediction of Chen et al., AKBC 2021; their MRR of the test triples without and with relation
#: prediction, and the seconds that training took them on a GPU with 16 GB.
PUBLISHED: Dict[str, Dict[str, Any]] = {
    "fb15k-237": dict(folder="FB15k-237", dim=1000, batch=1000, n3=0.05, relation_weight=4.0,
                      mrr="0.366 / 0.388", seconds=41_400),
    "wn18rr": dict(folder="WN18RR", dim=1000, batch=100, n3=0.1, relation_weight=0.05,
                   mrr="0.487", seconds=25_200),
}  # fmt: skip


def stored(name: str) -> Optional[KGDataset]:
    """A graph under $BESSKGE_DATA; None if it is not there: nothing is fetched."""
    folder = os.environ.get("BESSKGE_DATA")
    if not folder or not (Path(folder) / PUBLISHED[name]["folder"]).is_dir():
        return None
    return read(Path(folder) / PUBLISHED[name]["folder"])


def read(folder: Path) -> KGDataset:
    """A graph of labels, in files TRAIN, VALID and TEST.tsv.xz; the package reads them by Arrow."""
    parts: Dict[str, List[List[str]]] = {}
    for part in ("train", "valid", "test"):
        with lzma.open(folder / f"{part}.tsv.xz", "rt", encoding="utf-8") as lines:
            parts[part] = [line.rstrip("\n").split("\t") for line in lines]
    entities: Dict[str, int] = {}
    relations: Dict[str, int] = {}
    triples = {}
    for part, rows in parts.items():
        ids = [
            (
                entities.setdefault(h, len(entities)),
                relations.setdefault(r, len(relations)),
                entities.setdefault(t, len(entities)),
            )
            for h, r, t in rows
        ]
        triples[part] = np.array(ids, dtype=np.int32)
    return KGDataset(
        len(entities), len(relations), triples,
        {part: np.arange(len(x)) for part, x in triples.items()},
    )  # fmt: skip


def split(size: Tuple[int, int, int]) -> KGDataset:
    """A generated graph, in parts."""
    return KGDataset.from_triples(generated(size).triples["train"])


def run_of(graph: KGDataset, dim: int, batch: int, n3: float, relation_weight: float) -> Any:
    """Model, sampler and optimiser of 1vsAll with ComplEx."""
    sharding = Sharding.create(graph.n_entity, 1, seed=0)
    triples = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    sampler = RigidShardedBatchSampler(triples, PlaceholderNegativeSampler("t"), batch, 1, seed=0)
    torch.manual_seed(0)
    score_fn = SCORE_FUNCTIONS["complex"](
        negative_sample_sharing=False, sharding=sharding, n_relation_type=graph.n_relation_type,
        embedding_size=dim, inverse_relations=True,
    )  # fmt: skip
    with torch.no_grad():
        for table in score_fn.parameters():
            table.mul_(1e-3 / float(table.std().clamp(min=1e-12)))
    model = OneVsAllBessKGE(
        score_fn,
        regularizer=REGULARIZERS["lp"](weight=n3, p=3.0) if n3 else None,
        score_dtype=torch.bfloat16,
        max_scores=2**31,
        relation_weight=relation_weight,
    )
    return model, sampler, OPTIMIZERS["adagrad"](model.parameters(), lr=0.1)


def epoch_seconds(bench: Bench) -> Dict[str, Any]:
    """Of FB15k-237, or of a graph of its shape, with rank 1000."""
    graph = None if bench.rehearsal else stored("fb15k-237")
    name = "FB15k-237"
    if graph is None:
        name = "a generated graph of FB15k-237's shape"
        graph = generated((60, 4, 300) if bench.rehearsal else FB15K_237)
    model, sampler, optimizer = run_of(graph, bench.size(1000, 4), bench.size(1000, 32), 0.05, 0.0)
    runtime = ResidentRuntime(model, str(bench.device))
    step = runtime.training_step(optimizer)
    turns = [x for epoch in range(bench.size(12, 1)) for x in runtime.dataloader(sampler, epoch)]
    for turn in turns[:6]:
        step(turn)
    bench.wait()
    started, n = time.perf_counter(), 0
    for turn in turns[6:]:
        step(turn)
        n += 1
        if n % 20 == 0:
            bench.wait()
            if time.perf_counter() - started > 8.0:
                break
    bench.wait()
    of_step = (time.perf_counter() - started) / max(n, 1)
    program = runtime._programs[0].run
    return {
        "name": f"{name}: ComplEx, rank 1000, 1vsAll on both sides, bf16 products",
        "seconds": of_step * sampler.n_step, "step_ms": of_step * 1e3,
        "captured": program.is_captured, "reason": program.reason,
    }  # fmt: skip


def time_to_mrr(bench: Bench, name: str, seconds: float) -> Dict[str, Any]:
    """Validation MRR by the seconds of training, and the test MRR at the end."""
    published = PUBLISHED[name]
    graph = split((60, 4, 600)) if bench.rehearsal else stored(name)
    if graph is None:
        return {"graph": name, "error": "not under $BESSKGE_DATA"}
    size = {key: published[key] for key in ("dim", "batch", "n3", "relation_weight")}
    if bench.rehearsal:
        size.update(dim=4, batch=100)
    model, sampler, optimizer = run_of(graph, **size)
    runtime = ResidentRuntime(model, str(bench.device))
    step, known = runtime.training_step(optimizer), KnownTriples.of(graph)

    def mrr(part: str, at_most: int) -> float:
        triples = graph.triples[part]
        chosen = triples[:: max(len(triples) // at_most, 1)]
        return rank_triples(model.score_fn, chosen, known).metrics()["mrr"]

    spent, epoch, curve = 0.0, 0, []
    while True:
        started = time.perf_counter()
        for turn in runtime.dataloader(sampler, epoch):
            step(turn)
        bench.wait()
        spent, epoch = spent + time.perf_counter() - started, epoch + 1
        over = bench.rehearsal or spent >= seconds or bench.left() < 20.0
        if epoch & (epoch - 1) == 0 or epoch % 10 == 0 or over:
            found = mrr("valid", bench.size(4000, 50))
            curve.append({"seconds": spent, "epoch": epoch, "valid_mrr": found})
        if over:
            break
    return {
        "graph": "a generated graph" if bench.rehearsal else name, "curve": curve, "test_mrr": mrr("test", bench.size(10**9, 50)),
        "published_mrr": published["mrr"], "published_seconds": published["seconds"],
    }  # fmt: skip


def measure(bench: Bench, roofs: Dict[str, float]) -> Dict[str, Any]:
    found: Dict[str, Any] = {"epoch": epoch_seconds(bench), "runs": []}
    for name in PUBLISHED:
        share = max(min((bench.left() - 90.0) / 2, 90.0), 0.0)
        if share < 10.0 and not bench.rehearsal:
            found["runs"].append({"graph": name, "error": "no time was left"})
            continue
        bench.free()
        found["runs"].append(time_to_mrr(bench, name, share))
    return found


def as_markdown(found: Dict[str, Any]) -> List[str]:
    epoch = found["epoch"]
    graph = "yes" if epoch["captured"] else f"no: {epoch['reason']}"
    lines = [
        f"{epoch['name']}: **{epoch['seconds']:.3f} s an epoch** (goal: at most 0.6), CUDA graph: {graph}.",
        "", "| graph | epochs | seconds of training | MRR, valid | MRR, test | published MRR, hours |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for run in found["runs"]:
        if "error" in run:
            lines.append(f"| {run['graph']} | not run: {run['error']} | | | | |")
            continue
        theirs = f"{run['published_mrr']}, {run['published_seconds'] / 3600:.1f}"
        for i, at in enumerate(run["curve"]):
            is_last = i == len(run["curve"]) - 1
            test = f"{run['test_mrr']:.4f}" if is_last else ""
            lines.append(
                f"| {run['graph']} | {at['epoch']} | {at['seconds']:.1f} |"
                f" {at['valid_mrr']:.4f} | {test} | {theirs if is_last else ''} |"
            )
    return lines
