"""Graphs as plain arrays and files that every contender can read, under `benchmarks/data/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List, Tuple

import numpy as np

from benchmarks.peers import ROOT
from besskge_core.catalogue import load_dataset
from besskge_core.errors import DownloadError

DATA = Path("benchmarks/data")


def stored(names: List[str]) -> Tuple[List[str], str]:
    """The graphs that there are, stored; and a sentence on those that there are not."""
    there = [name for name in names if _store(name)]
    missing = [name for name in names if name not in there]
    return there, f" Not found, so left out: {', '.join(missing)}." if missing else ""


def _store(name: str) -> bool:
    """Write train, valid and test as int64 (n, 3), and the sizes."""
    folder = ROOT / DATA / name
    if (folder / "sizes.json").exists():
        return True
    try:
        graph = load_dataset(name)
    except DownloadError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "valid", "test"):
        np.save(folder / f"{part}.npy", graph.triples[part].astype(np.int64))
    (folder / "sizes.json").write_text(json.dumps([graph.n_entity, graph.n_relation_type]))
    return True


def stored_tsv(n_triple: int, n_entity: int, n_relation: int = 1_000) -> str:
    """A file of random labelled triples, path relative to the repository's root."""
    path = DATA / f"triples-{n_triple}-{n_entity}.tsv"
    (ROOT / DATA).mkdir(parents=True, exist_ok=True)
    if not (ROOT / path).exists():
        rng = np.random.default_rng(0)
        part = ROOT / f"{path}.part"
        with part.open("w", encoding="utf-8") as file:
            for first in range(0, n_triple, 2**20):
                n = min(2**20, n_triple - first)
                columns = [
                    rng.integers(x, size=n).tolist() for x in (n_entity, n_relation, n_entity)
                ]
                file.writelines(
                    f"entity/{h}\trelation/{r}\tentity/{t}\n" for h, r, t in zip(*columns)
                )
        part.rename(ROOT / path)
    return str(path)
