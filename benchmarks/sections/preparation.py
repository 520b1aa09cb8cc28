"""From a file of labelled triples to numbers."""

from __future__ import annotations

from typing import List

from benchmarks.graphs import stored_tsv
from benchmarks.peers import NAMES
from benchmarks.table import Case, Table


def tables(quick: bool) -> List[Table]:
    n_triple, n_entity = (50_000, 5_000) if quick else (10_000_000, 1_000_000)
    path = stored_tsv(n_triple, n_entity)
    return [
        Table(
            name="preparation",
            title="Preparation of labelled triples",
            text=f"Seconds (peak memory of the process) to read {n_triple:,} triples of strings,"
            f" {n_entity:,} entities, from a TSV and number them; one round. DGL-KE also writes its"
            " dictionaries, PyTorch-BigGraph dictionaries and partitions: the others need not.",
            key="seconds",
            rounds=1,
            rows_are="file",
            with_memory=True,
            cases=[
                Case(f"{n_triple:,} triples", NAMES[name], name, dict(what="prepare", path=path))
                for name in ("besskge", "pykeen", "dglke", "biggraph")
            ],
        )
    ]
