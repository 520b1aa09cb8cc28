"""Time to equal accuracy: the same evaluation of the tables that each system has at given times."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch

from benchmarks import plots
from benchmarks.contenders.besskge import in_memory
from benchmarks.contenders.common import Graph
from benchmarks.graphs import DATA, stored
from benchmarks.peers import ROOT, Peers
from besskge_core.dataset import KGDataset
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.scoring import ComplEx
from besskge_core.sharding import Sharding

CONTENDERS: List[Tuple[str, str, Dict[str, Any]]] = [
    ("besskge_core, all entities", "besskge", {"recipe": "all"}),
    ("besskge_core, sampled", "besskge", {"recipe": "sampled"}),
    ("LibKGE 1vsAll", "libkge", {}),
    ("PyKEEN LCWA", "pykeen", {}),
    ("DGL-KE", "dglke", {}),
]
DIM = 200
#: Weight of N3 in the recipes that have it, as in `examples/configs/`; 0.1 for other graphs.
N3 = {"fb15k-237": 0.05}
#: Shares of the best MRR of any contender whose times are compared.
SHARES = (0.5, 0.8, 0.9, 0.95)


def measure(peers: Peers, quick: bool, out: Path, budget: float) -> Dict[str, Any]:
    """Points (seconds of training, MRR) of each contender, by graph."""
    graphs, missing = stored(["umls"] if quick else ["wn18rr", "fb15k-237"])
    found: Dict[str, Any] = {"graphs": {}, "missing": missing, "budget_s": budget}
    for name in graphs:
        graph = in_memory(*Graph.read(str(ROOT / DATA / name)))
        found["graphs"][name] = curves = {}
        for column, contender, options in CONTENDERS:
            folder = DATA / "snapshots" / f"{name}-{contender}"
            request = dict(
                what="train", graph=str(DATA / name), dim=DIM, budget=budget, n3=N3.get(name, 0.1)
            )
            answer = peers.ask(contender, {**request, "folder": str(folder), **options})
            marks = answer.pop("marks", [])
            points = [[seconds, mrr(graph, ROOT / folder, i)] for i, seconds in enumerate(marks)]
            curves[column] = {**answer, "points": points}
            print(f"training: {name}, {column}: {points or answer}", flush=True)
        lines = {k: x["points"] for k, x in curves.items() if x["points"]}
        plots.draw_curves(lines, f"ComplEx on {name}", out / f"bench-training-{name}.png")
    return found


def mrr(graph: KGDataset, folder: Path, i: int) -> float:
    """Filtered, realistic, of the valid triples: ComplEx from stored tables, (n, DIM) real | imaginary.

    Twice as many relations as the graph has: the second half are the inverse ones.
    """
    entity, relation = (
        torch.from_numpy(np.load(folder / f"{name}-{i}.npy")) for name in ("entity", "relation")
    )
    score_fn = ComplEx(
        negative_sample_sharing=False,
        sharding=Sharding.create(graph.n_entity, n_shard=1, seed=0),
        n_relation_type=graph.n_relation_type,
        embedding_size=DIM // 2,
        entity_initializer=entity,
        relation_initializer=relation,
        inverse_relations=len(relation) == 2 * graph.n_relation_type,
    )
    return float(
        rank_triples(score_fn, graph.triples["valid"], KnownTriples.of(graph)).metrics()["mrr"]
    )


def seconds_to(points: List[List[float]], target: float) -> Optional[float]:
    """Of training, to the first snapshot that is as good; None if none is."""
    return next((seconds for seconds, value in points if value >= target), None)


def as_markdown(found: Dict[str, Any]) -> List[str]:
    lines = ["## Time to equal accuracy", ""]
    lines += [
        f"Seconds of training (validation, saving and loading not counted) until the MRR of the valid"
        f" triples reaches a share of the best that any contender reached in {found['budget_s']:.0f} s:"
        f" filtered, realistic, both sides, by besskge_core's evaluation for all. ComplEx, {DIM} real"
        f" numbers an entity, each system by its own recipe.{found['missing']}",
        "",
    ]
    for graph, curves in found["graphs"].items():
        best = max((p[1] for curve in curves.values() for p in curve["points"]), default=0.0)
        titles = " | ".join(f"{share:.0%}: {share * best:.3f}" for share in SHARES)
        lines += [f"| {graph} | best MRR | {titles} |", "|---" * (len(SHARES) + 2) + "|"]
        for column, curve in curves.items():
            points = curve["points"]
            reached = f"{max(p[1] for p in points):.3f}" if points else why(curve)
            times = (seconds_to(points, share * best) for share in SHARES)
            cells = ["-" if x is None else f"{x:.0f}" for x in times]
            lines.append(f"| {column} | {reached} | {' | '.join(cells)} |")
        lines += ["", f"![ComplEx on {graph}](bench-training-{graph}.png)", ""]
        lines += [f"* {k}: {x['note']}." for k, x in curves.items() if "note" in x] + [""]
    return lines


def why(curve: Dict[str, Any]) -> str:
    return next((curve[k] for k in ("missing", "unsupported", "failed") if k in curve), "-")
