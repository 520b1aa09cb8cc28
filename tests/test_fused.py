"""A step computed in one operation is the step that is computed in several."""

from __future__ import annotations

import pytest
import torch
from fused_support import (
    FORMS,
    MOVERS,
    NO_RULE,
    check,
    drawn,
    outcome,
    step,
    triples,
)
from support import make_score
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import fused
from besskge_core.loss import LOSSES, LogSigmoidLoss
from besskge_core.negative_sampler import (
    TypeBasedShardedNegativeSampler,
)
from besskge_core.ops import plan_rows, sparse_rows
from besskge_core.ops.native import NATIVE
from besskge_core.optim import OPTIMIZERS
from besskge_core.runtime import LocalRuntime, Planned

SCORES = [
    ("transe", 1),
    ("transe", 2),
    ("distmult", 2),
    ("complex", 2),
    ("rotate", 1),
    ("rotate", 2),
]
LOSS_OPTIONS = {
    "logsigmoid": dict(margin=2.0, negative_adversarial_sampling=True),
    "marginranking": dict(margin=2.0, negative_adversarial_sampling=True),
    "sampledsoftmax": dict(n_entity=37),
}  # fmt: skip


@pytest.fixture(params=MOVERS)
def mover(request):
    return request.param


@pytest.fixture
def one_operation(monkeypatch):
    """Counts the steps that are computed in one operation."""
    calls, loss = [], fused.sampled_loss
    monkeypatch.setattr(fused, "sampled_loss", lambda *x: calls.append(x) or loss(*x))
    return calls


# -- it is the same step -------------------------------------------------------------------------


@pytest.mark.parametrize("n_shard", [1, 2, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", ["h", "t"])
def test_loss_and_gradients_are_those_of_the_general_step(graph, mover, scheme, form, n_shard):
    losses = [LOSSES[x](**LOSS_OPTIONS.get(x, {})) for x in ("marginranking", "crossentropy")]
    for i, (score, p) in enumerate(SCORES):
        loss_fn = losses[i % 2]
        check(*step(graph, mover, scheme, form, n_shard, score, p, loss_fn))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - NO_RULE))
def test_every_loss_with_a_rule_is_computed_with_the_scores(graph, name):
    for mover, form in zip(2 * MOVERS, [*FORMS, "flat"]):
        for reduction in ("mean", "sum"):
            options = LOSS_OPTIONS.get(name, dict(reduction=reduction))
            model, batch = step(
                graph, mover, "t", form, loss_fn=LOSSES[name](**options, loss_scale=0.3)
            )
            batch["triple_weight"] = torch.rand(2, 8, generator=torch.manual_seed(0))
            check(model, batch)


WEIGHTS = {
    "neither": (False, None),
    "mask": (True, None),
    "weights": (False, (2, 8)),
    "both": (True, (2, 8)),
    "one a shard": (True, (2,)),
}


@pytest.mark.parametrize("masked, weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masks_and_weights_count_as_they_do_in_the_general_step(
    graph, mover, masked, weight, reduction
):
    for form in FORMS:
        model, batch = step(graph, mover, "h", form, loss_fn=LOSSES["nssa"](reduction=reduction))
        assert not batch["triple_mask"].all()
        if not masked:
            del batch["triple_mask"]
        if weight is not None:
            batch["triple_weight"] = torch.rand(weight, generator=torch.manual_seed(0))
        check(model, batch)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_shards_without_any_triple_cost_nothing(graph, mover, reduction):
    model, batch = step(graph, mover, loss_fn=LOSSES["softplus"](reduction=reduction))
    batch["triple_mask"][0], batch["triple_mask"][1] = True, False
    check(model, batch)
    batch["triple_mask"][0] = False
    found = outcome(model, batch)
    assert not any(x.any() for x in found.values())


@pytest.mark.parametrize("form", FORMS)
def test_negatives_may_be_of_the_own_shard(graph, form):
    for n_shard in (1, 4):
        check(*step(graph, form=form, n_shard=n_shard, local=True))


@pytest.mark.parametrize("form", ["per triple", "shared"])
def test_typed_negatives_are_served(graph, mover, form):
    check(*step(graph, mover, form=form, negatives=lambda x: TypeBasedShardedNegativeSampler(
        x.types, 3, x.sharding, "h", False, seed=0)))  # fmt: skip


def test_inference_computes_the_loss_alone(graph, mover, one_operation):
    for form in FORMS:
        model, batch = step(graph, mover, form=form)
        with torch.no_grad():
            loss = model(**batch)["loss"]
        assert torch.equal(loss, outcome(model, batch)["loss"]) and not loss.requires_grad
    assert len(one_operation) == 2 * len(FORMS) * NATIVE


@pytest.mark.parametrize("frozen", ["entity_embedding", "relation_embedding"])
def test_frozen_tables_have_no_gradient(graph, mover, frozen):
    for form in FORMS:
        model, batch = step(graph, mover, form=form)
        expected = outcome(model, batch)
        getattr(model.score_fn, frozen).requires_grad_(False)
        found = outcome(model, batch)
        del expected[f"score_fn.{frozen}"]
        assert_close(found, expected)


def test_a_subclass_that_computes_the_same_is_served(graph, mover, one_operation):
    class Named(mover):
        def describe(self):
            return "its own"

    check(*step(graph, Named))
    assert len(one_operation) == NATIVE


# -- rows and plans ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_in_the_order_of_the_gradients(graph, mover, form):
    for n_shard in (1, 4):
        model, batch = step(graph, mover, form=form, n_shard=n_shard)
        model(**batch)["loss"].backward()
        rows, entries = model.rows_read(batch), sparse_rows(model.entity_embedding.grad)
        assert rows.dtype == torch.int64
        one_each = NATIVE and form == "per triple"
        assert torch.equal(rows.unique() if one_each else rows, entries)


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_plans_that_are_given_are_used(graph, mover, form):
    model, batch = step(graph, mover, form=form)
    expected = outcome(model, batch)
    rows = model.rows_read(batch)
    found = outcome(
        model, dict(batch, rows=rows, plan=plan_rows(rows, 2 * model.entity_embedding.shape[1]))
    )
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    if NATIVE:
        with pytest.raises(IndexError, match="sampled_loss: rows run from 0 to"):
            model(**batch, rows=torch.full_like(rows, 10_000), plan=plan_rows(rows, 10_000))


@pytest.mark.parametrize("name", ["sgd", "rowwise_adam"])
@pytest.mark.parametrize("form", FORMS)
def test_planned_training_has_the_bits_of_training_without_plans(graph, mover, form, name):
    tables = []
    for planned in (True, False):
        triple_set = triples(graph, 2)
        sampler = drawn(triple_set, "h", form)
        score_fn = make_score(
            "complex", triple_set.sharding, 4, sharing=form == "shared", dtype=torch.float32
        )
        runtime = LocalRuntime(mover(sampler, score_fn, LogSigmoidLoss(2.0, True)))
        run = runtime.training_step(OPTIMIZERS[name](runtime.model.parameters(), lr=0.05))
        batches = RigidShardedBatchSampler(triple_set, sampler, 8, 2, seed=0)
        for micros in runtime.dataloader(batches):
            assert all(x.rows is not None and x.plan is not None for x in micros)
            loss = run(micros if planned else [Planned(x.columns) for x in micros])["loss"]
        tables.append([loss, score_fn.entity_embedding, score_fn.relation_embedding])
    assert all(torch.equal(a, b) for a, b in zip(*tables))
