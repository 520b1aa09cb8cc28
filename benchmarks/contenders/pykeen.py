"""PyKEEN: its models and training loops, through its own training callbacks."""

from __future__ import annotations

from typing import Any, Tuple

import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import ComplEx, ERModel, RotatE
from pykeen.training import (
    LCWATrainingLoop,
    SLCWATrainingLoop,
    SymmetricLCWATrainingLoop,
    TrainingCallback,
)
from pykeen.triples import CoreTriplesFactory, TriplesFactory

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


def make_model(model: str, dim: int, factory: CoreTriplesFactory, **options: Any) -> ERModel:
    """A model with `dim` real numbers an entity, without constraints or regularisers on its tables."""
    names = split_names(model)
    if names["name"] in ("complex", "rotate"):
        kind = {"complex": ComplEx, "rotate": RotatE}[names["name"]]
        options = {**options, "regularizer": None}
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


class Stores(TrainingCallback):
    """Stores snapshots; inverse relations, every second row of PyKEEN's table, come last."""

    def __init__(self, snapshots: Snapshots) -> None:
        super().__init__()
        self.snapshots = snapshots

    def tables(self) -> Tuple[torch.Tensor, torch.Tensor]:
        entity, relation = (
            table[0]().detach()
            for table in (self.model.entity_representations, self.model.relation_representations)
        )
        return entity, torch.cat([relation[::2], relation[1::2]])

    def post_batch(self, epoch: int, batch: Any, **kwargs: Any) -> None:
        self.snapshots.tick(self.tables)


def train(graph: str, dim: int, budget: float, folder: str, threads: int, n3: float) -> Answer:
    stored = Graph.read(graph)
    triples = torch.from_numpy(stored.triples["train"])
    sizes = stored.n_entity, stored.n_relation
    factory = CoreTriplesFactory(triples, *sizes, create_inverse_triples=True)
    model = make_model(
        "complex", dim, factory, loss="crossentropy", entity_initializer="xavier_uniform",
        relation_initializer="xavier_uniform",
    )  # fmt: skip
    loop = LCWATrainingLoop(
        model=model, triples_factory=factory, optimizer="adagrad", optimizer_kwargs=dict(lr=0.1)
    )
    snapshots = Snapshots(folder, budget)

    def run() -> None:
        loop.train(
            triples_factory=factory, num_epochs=100_000, batch_size=512, use_tqdm=False,
            callbacks=[Stores(snapshots)],
        )  # fmt: skip

    return snapshots.run(run, note="LCWA, batch 512, cross-entropy, inverse triples, Adagrad 0.1")


if __name__ == "__main__":
    serve(
        ["pykeen"],
        step=step,
        evaluate=evaluate,
        prepare=prepare,
        all_entities=all_entities,
        train=train,
    )
