"""Whole training steps, and how they grow with the graph."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from benchmarks.peers import NAMES
from benchmarks.table import Case, Table

Column = Tuple[str, str, Dict[str, Any]]

MODELS = {
    "TransE-L1": "transe_l1",
    "TransE-L2": "transe_l2",
    "DistMult": "distmult",
    "ComplEx": "complex",
    "RotatE": "rotate",
}
OURS: Column = (NAMES["besskge"], "besskge", {})
SHARED: List[Column] = [
    OURS,
    ("DGL-KE", "dglke", {}),
    ("DGL-KE, 2 processes", "dglke", {"processes": 2}),
    ("PyTorch-BigGraph, 2 processes", "biggraph", {"processes": 2}),
    ("LibKGE", "libkge", {}),
    ("LibKGE, tuned", "libkge", {"tuned": True}),
]
PER_TRIPLE: List[Column] = [
    OURS,
    *(
        (NAMES[name] + suffix, name, options)
        for name in ("pykeen", "libkge", "pyg")
        for suffix, options in (("", {}), (", tuned", {"tuned": True}))
    ),
]
GROWTH: List[Column] = [
    OURS,
    ("PyKEEN, Adam", "pykeen", {"optimizer": "adam", "layout": "per_triple"}),
    ("LibKGE, Adam", "libkge", {"optimizer": "adam", "sparse": False}),
    ("LibKGE, sparse Adagrad", "libkge", {}),
    ("DGL-KE", "dglke", {}),
    ("PyTorch-BigGraph, 2 processes", "biggraph", {"processes": 2}),
]
TUNED = (
    "`tuned`: its process keeps freed memory, as besskge_core does, and so takes fewer page faults."
)


def tables(quick: bool) -> List[Table]:
    sizes = dict(steps=3, warmup=1, n_triple=20_000, seconds=1.0) if quick else {}
    return [
        _layout("shared", SHARED, sizes),
        _layout("per_triple", PER_TRIPLE, sizes),
        _growth(quick),
    ]


def _layout(layout: str, columns: List[Column], sizes: Dict[str, Any]) -> Table:
    each = "one list for all positives, or for a chunk of them where the system has chunks"
    if layout == "per_triple":
        each = "a list of its own for each positive"
    return Table(
        name=f"steps-{layout}",
        title=f"A training step, negatives {layout.replace('_', ' ')}",
        text="Milliseconds a step, sampling to update: a graph of the size of FB15k-237, batch 1024,"
        f" 256 negatives a positive ({each}), 200 real numbers an entity, Adagrad. {TUNED}",
        key="ms",
        rows_are="model",
        cases=[
            Case(
                row, column, name, dict(what="step", model=model, layout=layout, **sizes, **options)
            )
            for row, model in MODELS.items()
            for column, name, options in columns
        ],
    )


def _growth(quick: bool) -> Table:
    entities = [1_000, 10_000] if quick else [10_000, 100_000, 1_000_000, 3_000_000]
    sizes = dict(steps=3, warmup=1, seconds=1.0) if quick else {}
    request = dict(what="step", model="distmult", dim=100, **sizes)
    return Table(
        name="growth",
        title="A training step on growing graphs",
        text="Milliseconds a step of DistMult, 100 wide, 256 negatives, batch 1024. Negatives are"
        " shared, but for PyKEEN, which draws them for each positive. Adam in PyKEEN and LibKGE goes"
        " over the whole table; the others touch the rows of the batch.",
        key="ms",
        rows_are="entities",
        chart="lines",
        cases=[
            Case(f"{n:,}", column, name, {**request, "n_entity": n, **options})
            for n in entities
            for column, name, options in GROWTH
        ],
    )
