"""DGL-KE: its own sampler, model and update, as its training loop calls them."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from argparse import Namespace
from types import SimpleNamespace
from typing import Any, Callable, Tuple

import numpy as np
import torch

from .common import (
    Answer,
    Graph,
    Snapshots,
    StepRequest,
    serve,
    split_names,
    time_hogwild,
    time_once,
)

os.environ.setdefault("DGLBACKEND", "pytorch")
warnings.filterwarnings("ignore")
import dgl  # noqa: E402

dgl.DGLGraph = (
    dgl.DGLGraphStale
)  # the class that DGL-KE means, which newer versions keep by that name
from dglke.dataloader import NewBidirectionalOneShotIterator, TrainDataset, get_dataset  # noqa: E402
from dglke.models import KEModel  # noqa: E402
from dglke.train import ArgParser  # noqa: E402

NAMES = {"transe": "TransE", "distmult": "DistMult", "complex": "ComplEx", "rotate": "RotatE"}


def arguments(request: StepRequest, **options: Any) -> Namespace:
    """Those of `dglke_train`, and what it derives from them."""
    names = split_names(request.model)
    rotate = names["name"] == "rotate"
    args = ArgParser().parse_args([])
    found = dict(
        model_name=NAMES[names["name"]] + (f"_l{names['p']}" if names["p"] else ""),
        batch_size=request.batch,
        neg_sample_size=request.n_negative,
        hidden_dim=request.dim // 2 if rotate else request.dim,
        double_ent=rotate,
        num_proc=request.processes,
        num_thread=max(request.threads // request.processes, 1),
        num_workers=8,
        soft_rel_part=False,
        strict_rel_part=False,
        **{"regularization_coef": 0.0, **options},
    )
    vars(args).update(found)
    return args


def make_parts(
    request: StepRequest, triples: np.ndarray, **options: Any
) -> Tuple[KEModel, Callable[[int], Callable[[], float]]]:
    """Its model, and what makes the step of a process."""
    args = arguments(request, **options)
    graph = SimpleNamespace(
        train=tuple(np.ascontiguousarray(column) for column in triples.T),
        n_entities=request.n_entity,
        n_relations=request.n_relation,
    )
    with contextlib.redirect_stdout(None):
        data = TrainDataset(graph, args, ranks=args.num_proc)
    model = KEModel(args, args.model_name, request.n_entity, request.n_relation, args.hidden_dim,
                    args.gamma, double_entity_emb=args.double_ent)  # fmt: skip
    if args.num_proc > 1:
        model.share_memory()

    def make_step(rank: int) -> Callable[[], float]:
        size = args.neg_sample_size
        samplers = [
            data.create_sampler(args.batch_size, size, size, mode=mode, shuffle=True, rank=rank,
                                num_workers=args.num_workers)
            for mode in ("head", "tail")
        ]  # fmt: skip
        batches = NewBidirectionalOneShotIterator(*samplers, size, size, True, request.n_entity)

        def step() -> float:
            positive, negative = next(batches)
            loss, log = model.forward(positive, negative, -1)
            loss.backward()
            model.update(-1)
            return float(log["loss"])

        return step

    return model, make_step


def step(**fields: Any) -> Answer:
    request = StepRequest(**fields)
    request.only(optimizer=["adagrad"], layout=["shared"])
    if request.processes > 1:
        torch.set_num_threads(1)  # until the processes are there
    _, make_step = make_parts(request, request.triples())
    note = f"row-wise Adagrad; {request.n_negative} negatives shared by as many positives; heads"
    note += " and tails in turn"
    return time_hogwild(request, make_step, loss="log-sigmoid", note=note)


def train(graph: str, dim: int, budget: float, folder: str, threads: int, n3: float) -> Answer:
    stored = Graph.read(graph)
    request = StepRequest("complex", dim=dim, n_negative=1024, threads=threads)
    request = request._replace(n_entity=stored.n_entity, n_relation=stored.n_relation)
    recipe = dict(lr=0.1, gamma=200.0, neg_adversarial_sampling=True, regularization_coef=1e-5)
    model, make_step = make_parts(request, stored.triples["train"], **recipe)
    step_fn, snapshots = make_step(0), Snapshots(folder, budget)

    def loop() -> None:
        while True:
            step_fn()
            snapshots.tick(lambda: (model.entity_emb.emb, model.relation_emb.emb))

    note = "1,024 negatives shared by 1,024 positives, self-adversarial, row-wise Adagrad, lr 0.1"
    return snapshots.run(loop, note=f"{note}, its recipe for WN18RR at another dimension")


def prepare(path: str, threads: int) -> Answer:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        os.symlink(os.path.abspath(path), os.path.join(folder, "train.tsv"))
        return time_once(lambda: get_dataset(folder, "triples", "raw_udd_hrt", "\t", ["train.tsv"]))


if __name__ == "__main__":
    serve(["dglke", "dgl"], step=step, prepare=prepare, train=train)
