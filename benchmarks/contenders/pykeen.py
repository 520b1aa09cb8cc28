"""PyKEEN: its models and training loops, through its own training callbacks."""

from __future__ import annotations

from typing import Any

import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import ComplEx, ERModel, RotatE
from pykeen.training import SLCWATrainingLoop, SymmetricLCWATrainingLoop, TrainingCallback
from pykeen.triples import CoreTriplesFactory, TriplesFactory

from .common import (
    Answer,
    Clock,
    Graph,
    StepRequest,
    seconds_an_epoch,
    serve,
    split_names,
    time_once,
)


def make_model(model: str, dim: int, factory: CoreTriplesFactory, **options: Any) -> ERModel:
    """A model with `dim` real numbers an entity, without constraints on its tables."""
    names = split_names(model)
    if names["name"] in ("complex", "rotate"):
        kind = {"complex": ComplEx, "rotate": RotatE}[names["name"]]
        return kind(triples_factory=factory, embedding_dim=dim // 2, random_seed=0, **options)
    return ERModel(
        triples_factory=factory,
        interaction=names["name"],
        interaction_kwargs={"p": names["p"]} if names["p"] else None,
        entity_representations_kwargs=dict(embedding_dim=dim),
        relation_representations_kwargs=dict(embedding_dim=dim),
        random_seed=0,
        **options,
    )


class Ticks(TrainingCallback):
    """Ticks the clock at the end of each batch, when the model has been updated."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.batch_loss = clock, float("nan")

    def on_batch(self, epoch: int, batch: Any, batch_loss: float, **kwargs: Any) -> None:
        self.batch_loss = float(batch_loss)

    def post_batch(self, epoch: int, batch: Any, **kwargs: Any) -> None:
        self.clock.tick(self.batch_loss)


def step(**fields: Any) -> Answer:
    request = StepRequest(**fields)
    request.only(optimizer=["adagrad", "adam"], layout=["per_triple"])
    factory = CoreTriplesFactory(
        torch.from_numpy(request.triples()), request.n_entity, request.n_relation
    )
    model = make_model(request.model, request.dim, factory, loss="softplus")
    loop = SLCWATrainingLoop(
        model=model,
        triples_factory=factory,
        optimizer=request.optimizer,
        negative_sampler="basic",
        negative_sampler_kwargs=dict(num_negs_per_pos=request.n_negative),
    )

    def run(clock: Clock) -> None:
        loop.train(
            triples_factory=factory, num_epochs=1_000, batch_size=request.batch, use_tqdm=False,
            callbacks=[Ticks(clock)],
        )  # fmt: skip

    note = f"torch's {request.optimizer}, dense; half of the negatives corrupt heads"
    return request.clock().run(run).answer(loss="softplus", note=note)


def evaluate(graph: str, dim: int, threads: int) -> Answer:
    stored = Graph.read(graph)
    triples = {part: torch.from_numpy(x) for part, x in stored.triples.items()}
    factory = CoreTriplesFactory(triples["train"], stored.n_entity, stored.n_relation)
    model = make_model("complex", dim, factory)
    found = {}

    def run() -> None:
        metrics = RankBasedEvaluator(filtered=True).evaluate(
            model, triples["test"], use_tqdm=False,
            additional_filter_triples=[triples["train"], triples["valid"]],
        )  # fmt: skip
        found["mrr"] = metrics.get_metric("both.realistic.inverse_harmonic_mean_rank")

    return {**time_once(run), **found}


def prepare(path: str, threads: int) -> Answer:
    return time_once(lambda: TriplesFactory.from_path(path))


def all_entities(graph: str, dim: int, batch: int, steps: int, warmup: int, threads: int) -> Answer:
    stored = Graph.read(graph)
    n_timed = batch * (steps + warmup)
    few = torch.from_numpy(stored.triples["train"][:n_timed])
    factory = CoreTriplesFactory(few, stored.n_entity, stored.n_relation)
    model = make_model("complex", dim, factory, loss="crossentropy")
    loop = SymmetricLCWATrainingLoop(model=model, triples_factory=factory, optimizer="adagrad")

    def run(clock: Clock) -> None:
        loop.train(
            triples_factory=factory, num_epochs=1_000, batch_size=batch, use_tqdm=False,
            callbacks=[Ticks(clock)],
        )  # fmt: skip

    answer = Clock(warmup, steps, 600.0).run(run).answer(note=f"torch's Adagrad, batch {batch}")
    return seconds_an_epoch(answer, len(stored.triples["train"]), batch)


if __name__ == "__main__":
    serve(["pykeen"], step=step, evaluate=evaluate, prepare=prepare, all_entities=all_entities)
