"""PyTorch-BigGraph: its model, batches and trainer, one partition in shared memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Callable

import torch
from torch import nn
from torchbiggraph.batching import batch_edges_mix_relation_types
from torchbiggraph.config import EntitySchema, RelationSchema, parse_config
from torchbiggraph.converters.import_from_tsv import convert_input_data
from torchbiggraph.edgelist import EdgeList
from torchbiggraph.entitylist import EntityList
from torchbiggraph.model import make_model
from torchbiggraph.row_adagrad import RowAdagrad
from torchbiggraph.train import Trainer
from torchbiggraph.types import Side

from .common import Answer, StepRequest, serve, time_hogwild, time_once

#: operator and comparator of each model
MODELS = {
    "transe_l2": ("translation", "l2"),
    "distmult": ("diagonal", "dot"),
    "complex": ("complex_diagonal", "dot"),
}


def make_config(request: StepRequest, folder: str) -> Any:
    """One entity type and one dynamic relation; half of the negatives are heads, half tails."""
    operator, comparator = MODELS[request.model]
    (Path(folder) / "dynamic_rel_count.txt").write_text(str(request.n_relation))
    return parse_config(
        dict(
            entities={"all": {"num_partitions": 1}},
            relations=[{"name": "all", "lhs": "all", "rhs": "all", "operator": operator}],
            dynamic_relations=True,
            dimension=request.dim,
            comparator=comparator,
            global_emb=False,
            loss_fn="logistic",
            batch_size=request.batch,
            num_batch_negs=0,
            num_uniform_negs=request.n_negative // 2,
            lr=0.1,
            entity_path=folder,
            edge_paths=[folder],
            checkpoint_path=folder,
        )
    )


def step(**fields: Any) -> Answer:
    request = StepRequest(**fields)
    request.only(optimizer=["adagrad"], layout=["shared"], model=list(MODELS))
    if request.processes > 1:
        torch.set_num_threads(1)  # until the processes are there
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(request, folder)
        model = make_model(config)
    table = torch.empty(request.n_entity, request.dim).share_memory_()
    weights = nn.Parameter(table.normal_(std=config.init_scale))
    for side in (Side.LHS, Side.RHS):
        model.set_embeddings("all", weights, side)
    model.share_memory()
    others = [p for name, p in model.named_parameters() if "operators" in name]
    global_optimizer = RowAdagrad(others, lr=config.lr)
    trainer = Trainer(global_optimizer, config.loss_fn, config.margin, config.relations)
    trainer.entity_optimizers = {("all", 0): RowAdagrad([weights], lr=config.lr)}
    for optimizer in (global_optimizer, *trainer.entity_optimizers.values()):
        optimizer.share_memory()
    triples = torch.from_numpy(request.triples())

    def make_step(rank: int) -> Callable[[], float]:
        part = triples[rank :: request.processes]

        def forever() -> Any:
            while True:
                head, relation, tail = part[torch.randperm(len(part))].T.contiguous()
                ends = (EntityList.from_tensor(x) for x in (head, tail))
                edges = EdgeList(*ends, relation)
                yield from batch_edges_mix_relation_types(edges, batch_size=config.batch_size)

        batches = forever()

        def one() -> float:
            stats = trainer.process_one_batch(model, next(batches))
            return stats.metrics["loss"] / stats.count

        return one

    half = request.n_negative // 2
    note = f"row-wise Adagrad; {half} heads and {half} tails shared by {half} positives"
    return time_hogwild(request, make_step, loss="logistic", note=note)


def prepare(path: str, threads: int) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        relation = RelationSchema(name="all", lhs="all", rhs="all")
        edges = str(Path(folder) / "edges")
        return time_once(
            lambda: convert_input_data(
                {"all": EntitySchema(num_partitions=4)}, [relation], folder, [edges], [Path(path)],
                lhs_col=0, rel_col=1, rhs_col=2, dynamic_relations=True,
            ),
            note="4 partitions",
        )  # fmt: skip


if __name__ == "__main__":
    serve(["torchbiggraph"], step=step, prepare=prepare)
