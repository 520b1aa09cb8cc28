"""Symmetric LCWA against PyKEEN's own loop: seconds an epoch, and peak memory, in one run.

    python benchmarks/symmetric_lcwa.py [--quick]

Both train the same model (DistMult, 200 wide, cross-entropy, Adam) from the same tables on the same
triples with the same batch size. An epoch of PyKEEN takes hours, so a few batches are timed, after
as many to warm up, and scaled to those of an epoch; batches cost the same. Each contender and graph
has a process of its own, so that peak memory is its own; contenders take turns, and the median
of the rounds counts. Needs `pip install pykeen==1.11.1` beside besskge_core, and graphs under
BESSKGE_DATA; without it there is nothing to compare with.

Results go to `benchmarks/results/symmetric_lcwa.md`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch

from besskge_core.catalogue import load_dataset
from besskge_core.dataset import KGDataset
from besskge_core.environment import describe

RESULTS = Path(__file__).parent / "results"
GRAPHS = ("fb15k-237", "wn18rr")
CONTENDERS = ("besskge_core", "pykeen")
DIM, BATCH_SIZE, N_BATCH, ROUNDS = 200, 128, 5, 2

Train = Callable[[int], List[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small graph, to try the script")
    parser.add_argument("--contender", nargs=2, metavar=("NAME", "GRAPH"), help="for itself")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(*arguments.contender)))
        return
    if importlib.util.find_spec("pykeen") is None:
        print("symmetric_lcwa: no pykeen here, nothing to compare with")
        return
    graphs, rounds = (("umls",), 1) if arguments.quick else (GRAPHS, ROUNDS)
    found = {
        graph: [{name: run(name, graph) for name in CONTENDERS} for _ in range(rounds)]
        for graph in graphs
    }
    report = as_markdown(found)
    print(report)
    if not arguments.quick:
        (RESULTS / "symmetric_lcwa.md").write_text(report)


def run(contender: str, graph: str) -> Dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--contender", contender, graph]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: Dict[str, Any] = json.loads(out.splitlines()[-1])
    print(graph, contender, found, flush=True)
    return found


def measure(contender: str, graph: str) -> Dict[str, Any]:
    """Seconds and losses of a few batches, and the memory of this process."""
    dataset = load_dataset(graph)
    triples = dataset.triples["train"]
    rows = np.random.default_rng(0).permutation(len(triples))[: N_BATCH * BATCH_SIZE]
    few = np.ascontiguousarray(triples[rows]).astype(np.int64)
    rng = np.random.default_rng(1)
    sizes = dataset.n_entity, dataset.n_relation_type
    tables = [torch.from_numpy(rng.normal(0, 0.1, (n, DIM)).astype(np.float32)) for n in sizes]
    make = {"besskge_core": make_ours, "pykeen": make_pykeens}[contender]
    train, version = make(dataset, few, tables)
    before = peak_mb()
    losses = train(1)
    begin = time.perf_counter()
    losses += train(2)
    seconds = time.perf_counter() - begin
    n_step = math.ceil(len(triples) / BATCH_SIZE)
    return {
        "version": version,
        "ms_a_batch": 1e3 * seconds / N_BATCH,
        "s_an_epoch": seconds / N_BATCH * n_step,
        "mb_before": before,
        "mb_peak": peak_mb(),
        "losses": losses,
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_ours(
    dataset: KGDataset, triples: np.ndarray, tables: List[torch.Tensor]
) -> Tuple[Train, str]:
    from besskge_core import __version__
    from besskge_core.model import KGEModel
    from besskge_core.training import SymmetricLCWATrainingLoop
    from besskge_core.triples_factory import TriplesFactory

    factory = TriplesFactory(torch.from_numpy(triples), dataset.n_entity, dataset.n_relation_type)
    entity, relation = (dict(embedding_dim=DIM, initializer=table) for table in tables)
    model = KGEModel(
        triples_factory=factory, interaction="distmult", loss="crossentropy",
        entity_representations_kwargs=entity, relation_representations_kwargs=relation,
    )  # fmt: skip
    loop = SymmetricLCWATrainingLoop(model, factory, optimizer="adam")

    def train(n_epoch: int) -> List[float]:
        return loop.train(
            num_epochs=n_epoch, batch_size=BATCH_SIZE, continue_training=n_epoch > 1,
            use_tqdm=False,
        )[-1:]  # fmt: skip

    return train, __version__


def make_pykeens(
    dataset: KGDataset, triples: np.ndarray, tables: List[torch.Tensor]
) -> Tuple[Train, str]:
    import pykeen.version
    from pykeen.models import ERModel
    from pykeen.training import SymmetricLCWATrainingLoop
    from pykeen.triples import CoreTriplesFactory

    factory = CoreTriplesFactory(
        torch.from_numpy(triples), dataset.n_entity, dataset.n_relation_type
    )
    model = ERModel(
        triples_factory=factory, interaction="distmult", loss="crossentropy",
        entity_representations_kwargs=dict(embedding_dim=DIM),
        relation_representations_kwargs=dict(embedding_dim=DIM), random_seed=0,
    )  # fmt: skip
    representations = model.entity_representations[0], model.relation_representations[0]
    for representation, table in zip(representations, tables):
        representation._embeddings.weight.data.copy_(table)
    model.reset_parameters_ = lambda: model  # which train() calls, and would draw them anew
    loop = SymmetricLCWATrainingLoop(model=model, triples_factory=factory, optimizer="adam")

    def train(n_epoch: int) -> List[float]:
        return loop.train(
            triples_factory=factory, num_epochs=n_epoch, batch_size=BATCH_SIZE,
            continue_training=n_epoch > 1, use_tqdm=False,
        )[-1:]  # fmt: skip

    return train, pykeen.version.VERSION


def as_markdown(found: Dict[str, List[Dict[str, Dict[str, Any]]]]) -> str:
    """A table of medians, with the losses beside them."""
    lines = [
        "# Symmetric LCWA against PyKEEN",
        "",
        f"DistMult, dim {DIM}, cross-entropy, Adam, batch {BATCH_SIZE}; {N_BATCH} batches timed after"
        f" {N_BATCH} to warm up, scaled to an epoch; median of {len(next(iter(found.values())))}"
        " rounds, contenders in turn, each in its own process.",
        "",
        "| graph | | s an epoch | ms a batch | peak MB | of which before training"
        " | loss of first and second pass |",
        "|---|---|---|---|---|---|---|",
    ]
    for graph, rounds in found.items():
        median = {
            name: {
                key: statistics.median(x[name][key] for x in rounds)
                for key in ("s_an_epoch", "ms_a_batch", "mb_peak", "mb_before")
            }
            for name in CONTENDERS
        }
        for name in CONTENDERS:
            m, losses = median[name], rounds[0][name]["losses"]
            lines.append(
                f"| {graph} | {name} {rounds[0][name]['version']} | {m['s_an_epoch']:.0f} |"
                f" {m['ms_a_batch']:.0f} | {m['mb_peak']:.0f} | {m['mb_before']:.0f} |"
                f" {losses[0]:.4f}, {losses[1]:.4f} |"
            )
        ours, theirs = (median[name] for name in CONTENDERS)
        grown = [m["mb_peak"] - m["mb_before"] for m in (ours, theirs)]
        lines.append(
            f"| {graph} | **ratio** | **{theirs['s_an_epoch'] / ours['s_an_epoch']:.1f} x faster** | |"
            f" **{theirs['mb_peak'] / ours['mb_peak']:.1f} x less**;"
            f" of what training adds {grown[1] / max(grown[0], 1.0):.1f} x less | | |"
        )
    environment = ", ".join(f"{k} {v}" for k, v in describe().items())
    return "\n".join([*lines, "", f"Machine and versions: {environment}.", ""])


if __name__ == "__main__":
    main()
