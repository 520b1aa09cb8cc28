"""Side by side with PyG and PyKEEN, where they are installed: triples a second, and the MRR of both."""

from __future__ import annotations

import importlib.util
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.accuracy import FB15K_237, split, stored
from benchmarks.gpu.measure import Bench, in_a_line
from benchmarks.gpu.steps import Setting, generated, partitioned, parts
from besskge_core.dataset import KGDataset
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.runtime import ResidentRuntime
from besskge_core.scoring import SCORE_FUNCTIONS, BaseScoreFunction

TITLE = "Side by side"

#: Takes a step.
Step = Callable[[], object]


def measure(bench: Bench, roofs: Dict[str, float]) -> Dict[str, Any]:
    graph = None if bench.rehearsal else stored("fb15k-237")
    name = "FB15k-237"
    if graph is None:
        name = "a generated graph of FB15k-237's shape"
        graph = split((60, 4, 600)) if bench.rehearsal else generated(FB15K_237)
    dim, batch, seconds = bench.size(256, 8), bench.size(8192, 32), bench.size(15, 0)
    rows = [_row("besskge_core", bench, graph, batch, seconds, _ours(bench, graph, dim, batch))]
    for peer, make in (("torch_geometric", _pyg), ("pykeen", _pykeen)):
        if importlib.util.find_spec(peer) is None:
            rows.append({"name": peer, "error": "not installed"})
            continue
        try:
            made = make(bench, graph, dim, batch)
            rows.append(_row(peer, bench, graph, batch, seconds, made))
        except Exception as error:  # a peer that fails must not hide the others
            rows.append({"name": peer, "error": in_a_line(error)})
    own = rows[0]["triples_per_second"]
    for row in rows:
        if "triples_per_second" in row:
            row["ratio"] = own / row["triples_per_second"]
    return {"graph": name, "dim": dim, "batch": batch, "seconds": seconds, "rows": rows}


def _row(
    name: str, bench: Bench, graph: KGDataset, batch: int, seconds: float, made: Any
) -> Dict[str, Any]:
    step, tables, negatives = made
    for _ in range(bench.size(10, 1)):
        step()
    bench.wait()
    started, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - started < seconds:
        for _ in range(bench.size(20, 1)):
            step()
            n += 1
        bench.wait()
    spent = time.perf_counter() - started
    found: Dict[str, Any] = {
        "name": name, "negatives": negatives, "triples_per_second": n * batch / spent, "n_step": n,
    }  # fmt: skip
    if "test" in graph.triples:
        score_fn = tables()
        ranking = rank_triples(score_fn, graph.triples["test"], KnownTriples.of(graph))
        found["mrr"] = ranking.metrics()["mrr"]
    return found


def _ours(bench: Bench, graph: KGDataset, dim: int, batch: int) -> Any:
    n_negative = bench.size(640, 8)
    setting = Setting("distmult", dim, batch, n_negative)
    model, sampler, optimizer = parts(bench, partitioned(graph), graph.n_relation_type, setting)
    runtime = ResidentRuntime(model, str(bench.device))
    step, epoch = runtime.training_step(optimizer), [0]
    turns = iter(runtime.dataloader(sampler, 0))

    def take() -> None:
        nonlocal turns
        turn = next(turns, None)
        if turn is None:
            epoch[0] += 1
            turns = iter(runtime.dataloader(sampler, epoch[0]))
            turn = next(turns)
        step(turn)

    return take, lambda: model.score_fn, f"{n_negative} shared"


def _ranked(graph: KGDataset, entity: Tensor, relation: Tensor) -> BaseScoreFunction:
    """DistMult with the tables (n_entity, D) and (n_relation, D) of a peer."""
    sharding = partitioned(graph).sharding
    score_fn = SCORE_FUNCTIONS["distmult"](
        negative_sample_sharing=True, sharding=sharding, n_relation_type=graph.n_relation_type,
        embedding_size=entity.shape[1],
    ).to(entity.device)  # fmt: skip
    rows = torch.from_numpy(np.asarray(sharding.flat_row)).to(entity.device)
    with torch.no_grad():
        score_fn.entity_embedding.flatten(end_dim=1)[rows] = entity
        score_fn.relation_embedding[: len(relation)] = relation
    return score_fn


def _batches(bench: Bench, graph: KGDataset, batch: int) -> Callable[[], Tuple[Tensor, ...]]:
    """Random triples, drawn on the device."""
    triples = torch.from_numpy(graph.triples["train"]).long().to(bench.device)
    return lambda: triples[torch.randint(len(triples), (batch,), device=bench.device)].unbind(1)


def _pyg(bench: Bench, graph: KGDataset, dim: int, batch: int) -> Any:
    from torch_geometric.nn import DistMult

    model = DistMult(graph.n_entity, graph.n_relation_type, hidden_channels=dim).to(bench.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    draw = _batches(bench, graph, batch)

    def step() -> None:
        head, relation, tail = draw()
        optimizer.zero_grad()
        model.loss(head, relation, tail).backward()
        optimizer.step()

    def tables() -> BaseScoreFunction:
        return _ranked(graph, model.node_emb.weight.detach(), model.rel_emb.weight.detach())

    return step, tables, "1 a triple"


def _pykeen(bench: Bench, graph: KGDataset, dim: int, batch: int) -> Any:
    from pykeen.losses import NSSALoss
    from pykeen.models import DistMult
    from pykeen.sampling import BasicNegativeSampler
    from pykeen.triples import CoreTriplesFactory

    triples = torch.from_numpy(graph.triples["train"]).long()
    factory = CoreTriplesFactory(triples, graph.n_entity, graph.n_relation_type)
    model = DistMult(triples_factory=factory, embedding_dim=dim, random_seed=0).to(bench.device)
    sampler = BasicNegativeSampler(mapped_triples=triples, num_negs_per_pos=bench.size(64, 2))
    loss, draw = NSSALoss(), _batches(bench, graph, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        positive = torch.stack(draw(), dim=1)
        negative, _ = sampler.sample(positive)
        optimizer.zero_grad()
        scores = model.score_hrt(negative.flatten(0, -2)).view(*negative.shape[:-1])
        value: Tensor = loss.process_slcwa_scores(model.score_hrt(positive), scores)
        value.backward()
        optimizer.step()
        model.post_parameter_update()

    def tables() -> BaseScoreFunction:
        entity, relation = (
            x[0](indices=None).detach()
            for x in (model.entity_representations, model.relation_representations)
        )
        return _ranked(graph, entity, relation)

    return step, tables, f"{sampler.num_negs_per_pos} a triple"


def as_markdown(found: Dict[str, Any]) -> List[str]:
    lines = [
        f"DistMult on {found['graph']}, d = {found['dim']}, batches of {found['batch']},"
        f" {found['seconds']} s each; the MRR is that of the test triples after them, filtered, without"
        " any tuning.",
        "", "| system | negatives | triples/s | besskge_core is faster by | MRR |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        if "error" in row:
            lines.append(f"| {row['name']} | not measured: {row['error']} | | | |")
            continue
        mrr: Optional[float] = row.get("mrr")
        lines.append(
            f"| {row['name']} | {row['negatives']} | {row['triples_per_second']:.3g} |"
            f" {row['ratio']:.1f} | {'' if mrr is None else f'{mrr:.4f}'} |"
        )
    return lines
