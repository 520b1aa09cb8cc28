"""The training loops do what PyKEEN's do: stored batches and whole trajectories."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support import by_entity
from torch.testing import assert_close

from besskge_core.model import KGEModel
from besskge_core.philox import Position
from besskge_core.runtime import Planned
from besskge_core.scoring.comparators import Distance
from besskge_core.scoring.formula import QueryScore
from besskge_core.scoring.operators import ComplexScaling
from besskge_core.training import (
    LCWATrainingLoop,
    SymmetricLCWATrainingLoop,
    TrainingCallback,
)
from besskge_core.triples_factory import TriplesFactory

GOLDEN = os.environ.get("BESSKGE_GOLDEN")
pytestmark = pytest.mark.skipif(not GOLDEN, reason="BESSKGE_GOLDEN is not set: no golden values")


def read():
    if not GOLDEN:
        return {"single": [], "train": []}, {}
    folder = Path(GOLDEN) / "pykeen"
    with np.load(folder / "oracle_training.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return json.loads((folder / "oracle_training.json").read_text()), arrays


CASES, ARRAYS = read()


def interaction(name):
    """RotatE as PyKEEN has it: relations are any complex numbers, not phases."""
    if name == "rotate":
        return QueryScore(ComplexScaling(), Distance(2.0), 5)
    return name


def make_model(case):
    graph = TriplesFactory(ARRAYS["triples"], CASES["num_entities"], CASES["num_relations"])
    tables = {}
    for kind, letter in (("entity", "e"), ("relation", "r")):
        start = ARRAYS[f"W/{case['interaction']}/{letter}"]
        options = case.get(f"{kind}_kwargs", {})
        tables[f"{kind}_representations_kwargs"] = dict(
            embedding_dim=start.shape[1], dtype=start.dtype, initializer=start, **options
        )
    name = case["interaction"]
    return KGEModel(
        triples_factory=graph,
        interaction=interaction(name),
        interaction_kwargs=dict(scoring_norm=2) if name == "transe" else None,
        loss=case["loss"],
        loss_kwargs=case["loss_kwargs"],
        **tables,
    )


def columns_of(model, triples):
    rows = torch.from_numpy(model.score_fn.sharding.flat_row)
    h, r, t = triples.T
    return {"head": rows[h][None, None], "relation": r[None, None], "tail": rows[t][None, None]}


def weights(model, grad=False):
    """Entities by ID and relations, (N, W), as real numbers."""
    score_fn = model.score_fn
    entity, relation = score_fn.entity_embedding, score_fn.relation_embedding
    if grad:
        return by_entity(score_fn, entity.grad), relation.grad
    return by_entity(score_fn, entity.detach()), relation.detach()


def as_real(x):
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(len(x), -1)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES["single"]])
def test_loss_and_gradients_of_a_batch(case):
    model = make_model(case)
    loop_class = {
        "SymmetricLCWATrainingLoop": SymmetricLCWATrainingLoop, "LCWATrainingLoop": LCWATrainingLoop
    }[case["loop"]]  # fmt: skip
    loop = loop_class(model, model.triples_factory)
    if case.get("error"):
        with pytest.raises(RuntimeError) as raised:
            loop.make_module(model.triples_factory, case["label_smoothing"])
        assert type(raised.value).__name__ == case["error"]
        return
    module = loop.make_module(model.triples_factory, case["label_smoothing"])
    if loop_class is LCWATrainingLoop:
        head, relation = ARRAYS["lcwa/pairs"].T
        rows = torch.from_numpy(model.score_fn.sharding.flat_row)
        loss = module(head=rows[head][None], relation=relation[None])["loss"]
    else:
        loss = module(**columns_of(model, ARRAYS["triples"][:16]))["loss"]
    # With PyKEEN labels that are grouped or smoothed are in float32.
    rounded = loop_class is LCWATrainingLoop or case["label_smoothing"]
    tolerance = dict(rtol=1e-6, atol=1e-7 if rounded else 1e-9)
    assert_close(loss.item(), case["value"], **tolerance)
    loss.backward()
    for found, name in zip(weights(model, grad=True), ("ge", "gr")):
        expected = ARRAYS[f"{case['id']}/{name}"]
        assert_close(found, expected.reshape(found.shape), **tolerance)


class Losses(TrainingCallback):
    def __init__(self):
        self.of_batches, self.rates = [], []

    def post_batch(self, loop, epoch, loss):
        self.of_batches.append((epoch, loss))

    def post_epoch(self, loop, epoch, loss):
        self.rates.append(loop.optimizer.param_groups[0]["lr"])


def stored_batches(case):
    """The batches of a run, whose parts were stored one by one."""
    triples, size = ARRAYS["triples"], case["batch_size"]
    parts = ARRAYS[f"t/{case['name']}/batches"].reshape(-1, 3)
    per_epoch = len(triples)
    if case["train_kwargs"].get("drop_last"):
        per_epoch -= per_epoch % size
    return [epoch.split(size) for epoch in parts.split(per_epoch)]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES["train"]])
def test_a_whole_training(case, monkeypatch):
    model, losses = make_model(case), Losses()
    loop = SymmetricLCWATrainingLoop(
        model, model.triples_factory, case["optimizer"], case["optimizer_kwargs"],
        **case["loop_kwargs"],
    )  # fmt: skip
    batches = stored_batches(case)

    def drawn(runtime, sampler, epoch):
        for triples in batches[epoch - 1]:
            yield [Planned(columns_of(model, triples))]

    monkeypatch.setattr(loop, "batches", drawn)
    loop.train(
        num_epochs=case["num_epochs"], batch_size=case["batch_size"], callbacks=[losses],
        use_tqdm=False, **case["train_kwargs"],
    )  # fmt: skip
    for found, name in zip(weights(model), ("e", "r")):
        expected = ARRAYS[f"t/{case['name']}/{name}"]
        assert_close(found, as_real(expected), rtol=1e-6, atol=1e-8)
    # PyKEEN's loss of an epoch is the mean over batches, in which a small last one weighs too much.
    per_epoch = [
        np.mean([loss for epoch, loss in losses.of_batches if epoch == i + 1])
        for i in range(case["num_epochs"])
    ]
    assert_close(
        torch.tensor(per_epoch), ARRAYS[f"t/{case['name']}/epoch_losses"], rtol=1e-6, atol=0
    )


def test_all_stored_records_are_replayed():
    assert len(CASES["single"]) == 288 and len(CASES["train"]) == 19


def test_batches_in_stored_order_are_what_the_sampler_draws():
    model = make_model(CASES["single"][0])
    loop = SymmetricLCWATrainingLoop(model, model.triples_factory)
    module = loop.make_module(model.triples_factory, 0.0)
    batch = loop.make_sampler(model.triples_factory, module, 16).batch(
        Position(0, 0), shuffle=False
    )
    expected = columns_of(model, ARRAYS["triples"][:16])
    assert_close(
        {k: batch[k][0, 0].long() for k in expected}, {k: x[0] for k, x in expected.items()}
    )
