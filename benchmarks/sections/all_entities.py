"""Training against all entities."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from benchmarks.graphs import DATA, stored
from benchmarks.peers import NAMES
from benchmarks.table import Case, Table

COLUMNS: List[Tuple[str, str, Dict[str, Any]]] = [
    (NAMES["besskge"], "besskge", {}),
    ("besskge_core, bf16 products", "besskge", {"score_dtype": "bfloat16"}),
    ("LibKGE 1vsAll", "libkge", {}),
    ("LibKGE 1vsAll, tuned", "libkge", {"tuned": True}),
    ("PyKEEN symmetric LCWA", "pykeen", {"batch": 128, "steps": 3, "warmup": 1}),
]


def tables(quick: bool) -> List[Table]:
    graphs, missing = stored(["umls"] if quick else ["wn18rr", "fb15k-237"])
    sizes = dict(steps=2, warmup=1) if quick else {}
    request = {"what": "all_entities", "dim": 200, "batch": 1024, "steps": 10, "warmup": 2}
    return [
        Table(
            name="all_entities",
            title="Training against all entities",
            text="Seconds an epoch (peak memory of the process): ComplEx, 200 real numbers an"
            " entity, cross-entropy of both sides, batch 1024; a few batches, scaled to an epoch."
            " PyKEEN's loop makes the scores of all entities one triple at a time, which takes"
            f" much memory: batch 128 is what it can have.{missing}",
            key="seconds",
            rows_are="graph",
            with_memory=True,
            cases=[
                Case(
                    graph, column, name, {**request, "graph": str(DATA / graph), **options, **sizes}
                )
                for graph in graphs
                for column, name, options in COLUMNS
            ],
        )
    ]
