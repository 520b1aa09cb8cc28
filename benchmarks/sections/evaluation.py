"""Filtered ranking of a whole test set."""

from __future__ import annotations

from typing import List

from benchmarks.graphs import DATA, stored
from benchmarks.peers import NAMES
from benchmarks.table import Case, Table


def tables(quick: bool) -> List[Table]:
    graphs, missing = stored(["umls"] if quick else ["wn18rr", "fb15k-237"])
    request = dict(what="evaluate", dim=200)
    return [
        Table(
            name="evaluation",
            title="Filtered evaluation",
            text="Seconds (peak memory of the process) to rank both sides of the whole test set"
            " among all entities, other true triples left out, what is looked up included; ComplEx,"
            f" 200 real numbers an entity, random weights; each with its own batch size.{missing}",
            key="seconds",
            rows_are="graph",
            with_memory=True,
            cases=[
                Case(graph, NAMES[name], name, {**request, "graph": str(DATA / graph)})
                for graph in graphs
                for name in ("besskge", "libkge", "pykeen")
            ],
        )
    ]
