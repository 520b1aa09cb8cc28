"""LibKGE: its training jobs, through its own hooks.

Its search jobs import `ax`, which no training needs, so that a stand-in is enough.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any, Dict
from unittest.mock import MagicMock

import numpy as np
import torch

from .common import (
    Answer,
    Clock,
    Graph,
    Snapshots,
    StepRequest,
    seconds_an_epoch,
    serve,
    split_names,
    time_once,
)

AX = ["ax", "ax.core", "ax.modelbridge", "ax.modelbridge.generation_strategy", "ax.service"]
sys.modules.update({name: MagicMock() for name in [*AX, "ax.service.ax_client"]})
from kge import Config, Dataset  # noqa: E402
from kge.job import EvaluationJob, TrainingJob  # noqa: E402
from kge.model import KgeModel  # noqa: E402

OPTIMIZERS = {"adagrad": "Adagrad", "adam": "Adam"}


def make_config(model: str, dim: int, sparse: bool, **options: Any) -> Config:
    """A configuration on the CPU in a folder of its own; `dim` real numbers an entity.

    Args:
        options: its keys, with two underscores for each dot.
    """
    names = split_names(model)
    config = Config(folder=tempfile.mkdtemp())
    config.init_folder()
    config.set("console.quiet", True)
    config.set("job.device", "cpu")
    config.set("dataset.pickle", False)
    config.set("model", names["name"])
    config._import(names["name"])
    if names["p"]:
        config.set(f"{names['name']}.l_norm", float(names["p"]))
    config.set("lookup_embedder.dim", dim)
    config.set("lookup_embedder.sparse", sparse)
    for key, value in options.items():
        config.set(key.replace("__", "."), value, create=True)
    return config


def make_dataset(
    config: Config, n_entity: int, n_relation: int, triples: Dict[str, np.ndarray]
) -> Dataset:
    """A data set in memory; triples int (n, 3) by split."""
    dataset = Dataset(config)
    dataset._num_entities, dataset._num_relations = n_entity, n_relation
    dataset._triples = {k: torch.from_numpy(x.astype(np.int32)) for k, x in triples.items()}
    return dataset


def run_job(job: TrainingJob, clock: Clock) -> None:
    """Run epochs until the clock has enough."""
    job._prepare()
    job.post_batch_hooks.append(lambda job: clock.tick(job.current_trace["batch"]["avg_loss"]))
    while True:
        job.epoch += 1
        job.run_epoch()


def step(**fields: Any) -> Answer:
    request = StepRequest(**fields)
    request.only(optimizer=list(OPTIMIZERS), layout=["shared", "per_triple"])
    config = make_config(
        request.model, request.dim, request.sparse,
        train__type="negative_sampling",
        train__loss="bce",
        train__batch_size=request.batch,
        train__optimizer__default__type=OPTIMIZERS[request.optimizer],
        train__optimizer__default__args__lr=0.1 if request.optimizer == "adagrad" else 0.001,
        negative_sampling__num_samples__s=0,
        negative_sampling__num_samples__o=request.n_negative,
        negative_sampling__shared=request.layout == "shared",
    )  # fmt: skip
    triples = request.triples()
    splits = {"train": triples, "valid": triples[:1], "test": triples[:1]}
    dataset = make_dataset(config, request.n_entity, request.n_relation, splits)
    job = TrainingJob.create(config, dataset)
    note = f"torch's {request.optimizer}, {'rows of the batch' if request.sparse else 'dense'};"
    note += " tails corrupted"
    clock = request.clock().run(lambda clock: run_job(job, clock))
    return clock.answer(loss="binary cross-entropy", note=note)


def evaluate(graph: str, dim: int, threads: int) -> Answer:
    stored = Graph.read(graph)
    config = make_config("complex", dim, False, eval__split="test", job__type="eval")
    dataset = make_dataset(config, stored.n_entity, stored.n_relation, stored.triples)
    model = KgeModel.create(config, dataset)
    few = {part: triples[:100] for part, triples in stored.triples.items()}
    small = make_dataset(config, stored.n_entity, stored.n_relation, few)
    EvaluationJob.create(config, small, model=model).run()  # which has numba compile
    job = EvaluationJob.create(config, dataset, model=model)
    found = {}

    def run() -> None:
        found["mrr"] = job.run()["mean_reciprocal_rank_filtered"]

    return {**time_once(run), **found}


def all_entities(graph: str, dim: int, batch: int, steps: int, warmup: int, threads: int) -> Answer:
    stored = Graph.read(graph)
    config = make_config(
        "complex", dim, False,
        train__type="1vsAll",
        train__batch_size=batch,
        train__optimizer__default__args__lr=0.1,
    )  # fmt: skip
    dataset = make_dataset(config, stored.n_entity, stored.n_relation, stored.triples)
    job = TrainingJob.create(config, dataset)
    clock = Clock(warmup, steps, 600.0).run(lambda clock: run_job(job, clock))
    answer = clock.answer(loss="cross-entropy", note="torch's Adagrad, dense")
    return seconds_an_epoch(answer, len(stored.triples["train"]), batch)


def train(graph: str, dim: int, budget: float, folder: str, threads: int, n3: float) -> Answer:
    stored = Graph.read(graph)
    config = make_config(
        "complex", dim, False,
        train__type="1vsAll",
        train__batch_size=512,
        train__optimizer__default__args__lr=0.1,
        lookup_embedder__initialize_args__std=1e-3,
        lookup_embedder__regularize="n3",
        lookup_embedder__regularize_weight=n3,
        lookup_embedder__regularize_args__weighted=True,
    )  # fmt: skip
    config.set("model", "reciprocal_relations_model")
    config._import("reciprocal_relations_model")
    config.set("reciprocal_relations_model.base_model.type", "complex")
    dataset = make_dataset(config, stored.n_entity, stored.n_relation, stored.triples)
    dataset._meta["relation_ids"] = [str(i) for i in range(stored.n_relation)]
    job, snapshots = TrainingJob.create(config, dataset), Snapshots(folder, budget)
    embedders = job.model.get_s_embedder(), job.model.get_p_embedder()
    job._prepare()
    job.post_batch_hooks.append(
        lambda job: snapshots.tick(lambda: tuple(e._embeddings.weight for e in embedders))
    )

    def loop() -> None:
        while True:
            job.epoch += 1
            job.run_epoch()

    return snapshots.run(
        loop, note=f"1vsAll, batch 512, reciprocal relations, N3 {n3}, Adagrad 0.1"
    )


if __name__ == "__main__":
    serve(["libkge"], step=step, evaluate=evaluate, all_entities=all_entities, train=train)
