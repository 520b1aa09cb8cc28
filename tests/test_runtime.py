"""A runtime applies the batches it is given, in order, whoever made them."""

from __future__ import annotations

import pytest
import torch
from support import make_score

from besskge_core.batch_sampler import RandomShardedBatchSampler, RigidShardedBatchSampler
from besskge_core.bess import BessKGE, EmbeddingMovingBessKGE, ScoreMovingBessKGE
from besskge_core.errors import NonFiniteLossError, ShapeError
from besskge_core.loss import LogSigmoidLoss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    RandomShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.optim import OPTIMIZERS, SGD, Adagrad
from besskge_core.philox import Position
from besskge_core.runtime import LocalRuntime
from besskge_core.sharding import PartitionedTripleSet, Sharding


def prepare(graph, mover=EmbeddingMovingBessKGE, n_shard=4, rigid=True, typed=False, **options):
    """A runtime and its sampler; each call starts from the same weights."""
    sharding = Sharding.create(
        graph.n_entity, n_shard, seed=0, type_offsets=list(graph.type_offsets.values())
    )
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    negatives = RandomShardedNegativeSampler(3, sharding, 0, "ht", flat_negative_format=True)
    if typed:
        negatives = TypeBasedShardedNegativeSampler(triple_set.types, 3, sharding, "ht", False, 0)
    make = RigidShardedBatchSampler if rigid else RandomShardedBatchSampler
    sampler = make(triple_set, negatives, 8, 3, seed=0, hrt_freq_weighting=rigid)
    score_fn = make_score("rotate", sharding, 4, dtype=torch.float32)
    options.setdefault("loss_fn", LogSigmoidLoss(1.0, True))
    worker = {k: options.pop(k) for k in ("n_worker",) if k in options}
    return LocalRuntime(mover(negatives, score_fn, **options), **worker), sampler


def weights(runtime):
    score_fn = runtime.model.score_fn
    return torch.cat([score_fn.entity_embedding.flatten(), score_fn.relation_embedding.flatten()])


def parameters(runtime):
    return list(runtime.model.parameters())


def same_planned(a, b):
    """Whether two planned micro-batches have the same columns and plan."""
    return all(
        x.columns.keys() == y.columns.keys()
        and all(torch.equal(x.columns[k], y.columns[k]) for k in x.columns)
        and all(torch.equal(p, q) for p, q in zip(x.plan, y.plan))
        for x, y in zip(a, b)
    )


# -- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(rigid=False), dict(typed=True)])
def test_flattened_batches_are_those_that_are_not(graph, options):
    (a, sampler), (b, _) = prepare(graph, **options), prepare(graph, **options)
    batch = sampler[0]
    flat = {name: x.flatten(end_dim=1) for name, x in batch.items()}
    found = [r.training_step(SGD(parameters(r)))(x) for r, x in ((a, batch), (b, flat))]
    assert torch.equal(found[0]["loss"], found[1]["loss"]) and found[0]["loss"].shape == (3,)
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("mover", [EmbeddingMovingBessKGE, ScoreMovingBessKGE])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_planned_steps_have_the_same_bits(graph, name, mover):
    (a, sampler), (b, _) = prepare(graph, mover), prepare(graph, mover)
    before = weights(a).clone()
    step_a, step_b = (r.training_step(OPTIMIZERS[name](parameters(r), lr=0.1)) for r in (a, b))
    losses = [step_a(planned)["loss"] for planned in a.dataloader(sampler)]
    plain = [step_b(sampler[i])["loss"] for i in range(len(sampler))]
    assert torch.equal(torch.stack(losses), torch.stack(plain))
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), before)


def test_a_step_is_forward_backward_and_update_of_each_micro_batch(graph):
    runtime, sampler = prepare(graph)
    other, _ = prepare(graph)
    runtime.training_step(torch.optim.SGD(parameters(runtime), lr=0.1))(sampler[0])
    for m in range(3):
        loss = other.model(**{k: x[m] for k, x in sampler[0].items()})["loss"]
        grads = torch.autograd.grad(loss, parameters(other))
        with torch.no_grad():
            for parameter, grad in zip(parameters(other), grads):
                parameter -= 0.1 * grad.to_dense()
    torch.testing.assert_close(weights(runtime), weights(other), rtol=1e-6, atol=1e-6)


def test_training_lowers_the_loss(graph):
    runtime, sampler = prepare(graph)
    step = runtime.training_step(Adagrad(parameters(runtime), lr=0.3))
    epochs = [
        torch.cat([step(batch)["loss"] for batch in runtime.dataloader(sampler, epoch)]).mean()
        for epoch in range(8)
    ]
    assert epochs[-1] < 0.7 * epochs[0]


def test_inference_changes_nothing_and_needs_no_gradient(graph):
    options = dict(evaluation=Evaluation(["mrr"]), return_scores=True)
    runtime, sampler = prepare(graph, **options)
    before = weights(runtime).clone()
    out = runtime.inference_step()(sampler[0])
    assert not any(x.requires_grad for x in out.values())
    assert torch.equal(weights(runtime), before)
    expected = runtime.model(**{k: x[1] for k, x in sampler[0].items()})
    assert torch.equal(out["positive_score"][1], expected["positive_score"])
    assert out["metrics"].shape == (3, 1, 1, 32)


def test_steps_set_the_mode_of_the_model(graph):
    runtime, sampler = prepare(graph)
    runtime.inference_step()(sampler[0])
    assert not runtime.model.training
    out = runtime.training_step(SGD(parameters(runtime)))(sampler[0])
    assert runtime.model.training and not out["loss"].requires_grad


def test_columns_for_the_host_are_left_behind(graph):
    runtime, sampler = prepare(graph)
    sampler.return_triple_idx = True
    runtime.inference_step()(sampler[0])
    assert "triple_idx" not in next(runtime.dataloader(sampler))[0].columns


# -- the dataloader ----------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("n_worker", [0, 1, 3])
def test_the_loader_gives_the_batches_of_the_sampler_in_order(graph, n_worker, shuffle):
    runtime, sampler = prepare(graph, n_worker=n_worker)
    loaded = list(runtime.dataloader(sampler, epoch=2, shuffle=shuffle))
    assert len(loaded) == sampler.n_step > 2
    for step, planned in enumerate(loaded):
        batch = sampler.batch(Position(2, step), shuffle)
        assert len(planned) == 3
        for m, micro in enumerate(planned):
            assert all(torch.equal(micro.columns[k], x[m]) for k, x in batch.items())


def test_the_loader_may_begin_in_the_middle(graph):
    runtime, sampler = prepare(graph)
    whole = list(runtime.dataloader(sampler))
    rest = list(runtime.dataloader(sampler, first_step=2))
    assert len(rest) == len(whole) - 2 > 0
    assert all(same_planned(a, b) for a, b in zip(whole[2:], rest))


def test_a_loader_may_be_left_early(graph):
    runtime, sampler = prepare(graph)
    loader = runtime.dataloader(sampler)
    first = next(loader)
    loader.close()
    assert same_planned(first, next(runtime.dataloader(sampler)))


def test_an_error_of_a_worker_reaches_the_caller(graph):
    runtime, sampler = prepare(graph)
    sampler.negative_sampler.sharding = None
    with pytest.raises(AttributeError, match="n_shard"):
        next(runtime.dataloader(sampler))


class HeadsOnly(BessKGE):
    def score_batch(self, head, relation, tail, negative):
        rows = self.entity_embedding[torch.arange(len(head))[:, None], head.flatten(1).long()]
        return rows.sum(-1).flatten(), rows.new_zeros(rows[..., 0].numel(), 12)


def test_a_model_that_names_no_rows_is_loaded_without_a_plan(graph):
    runtime, sampler = prepare(graph, HeadsOnly)
    step = runtime.training_step(SGD(parameters(runtime), lr=0.1))
    planned = next(runtime.dataloader(sampler))
    assert [micro.plan for micro in planned] == [None, None, None]
    assert torch.isfinite(step(planned)["loss"]).all()


# -- divergence --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_weights_untouched(graph, value):
    runtime, sampler = prepare(graph)
    optimizer = Adagrad(parameters(runtime))
    step = runtime.training_step(optimizer)
    step(sampler[0])
    with torch.no_grad():
        runtime.model.score_fn.relation_embedding[0, 0] = value
    before, state = weights(runtime).clone(), optimizer.state[runtime.model.entity_embedding]
    accumulated = state["sum"].clone()
    with pytest.raises(NonFiniteLossError, match="the loss is nan; lower the learning rate"):
        step(sampler[1])
    assert torch.equal(weights(runtime).nan_to_num(7.0), before.nan_to_num(7.0))
    assert torch.equal(state["sum"], accumulated)


def test_a_flat_batch_of_another_number_of_shards_is_refused(graph):
    runtime, sampler = prepare(graph)
    flat = {name: x.flatten(end_dim=1)[:-1] for name, x in sampler[0].items()}
    message = r"relation has shape \(11, 4, 2\), expected \(M \* S, ...\) with S=4"
    with pytest.raises(ShapeError, match=message):
        runtime.inference_step()(flat)
