"""Training against all entities equals the dense formula, whatever the shards and the tiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import SHARDS, Shards, batch_of, by_entity, make_score
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from besskge_core.bess.one_vs_all import OneVsAllBessKGE
from besskge_core.errors import ConfigError
from besskge_core.loss import (
    LOSSES,
    InfoNCELoss,
    LogSigmoidLoss,
    NSSALoss,
    PairwiseMarginLoss,
    labelled_losses,
)
from besskge_core.loss.entries import labelled
from besskge_core.regularizer import LpRegularizer
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import Sharding


def prepare(graph, n_shard=4, score="complex", dtype=torch.float64, **options):
    """A model, and one batch of 40 triples with their weights; equal ones for any n_shard."""
    sharding = Sharding.create(graph.n_entity, n_shard, seed=3)
    triples = graph.triples["train"][:40]
    batch, place, _ = batch_of(triples, np.zeros((40, 1), int), np.zeros(40, bool), sharding, "t")
    batch = {k: batch[k] for k in ("head", "relation", "tail", "triple_mask")}
    weight = 1 + torch.rand(40, generator=torch.manual_seed(0), dtype=dtype)
    batch["triple_weight"] = weight[place].view(n_shard, -1)  # padding has some weight, too
    score_fn = make_score(score, sharding, graph.n_relation_type, dtype=dtype)
    return OneVsAllBessKGE(score_fn, **options), batch, torch.from_numpy(triples).long(), weight


def dense_loss(model, triples, weight):
    """The formula, with all scores at once."""
    score_fn, loss_fn = model.score_fn, model.loss_fn
    flat = score_fn.entity_embedding.flatten(end_dim=1)
    table = flat[torch.from_numpy(score_fn.sharding.flat_row)]
    h, r, t = triples.T
    n_entity, total = len(table), 0.0
    every = torch.arange(n_entity).repeat(len(triples))
    for side in model.sides:
        known, many = (
            x.repeat_interleave(n_entity) for x in ((t, r) if side == "head" else (h, r))
        )
        pair = (every, known) if side == "head" else (known, every)
        scores = score_fn.score_triple(table[pair[0]], many, table[pair[1]]).view(-1, n_entity)
        total = total + loss_fn._reduce(  # not `process_lcwa_scores`, whose weighted BCE is torch's
            loss_fn.of_labels(
                labelled(scores, h if side == "head" else t)._replace(row_weight=weight[:, None]),
                model.smoothing,
            ),
            in_number=False,
        )
    share = weight / weight.sum() if loss_fn.reduction == "mean" else weight
    if model.regularizer is not None:
        moduli = score_fn.squared_moduli(table[h], r, table[t])
        total = total + (share * model.regularizer(moduli)).sum()
    if model.relation_weight:
        n_relation = len(score_fn.relation_embedding)
        others = torch.arange(n_relation).repeat(len(h))
        h, t = h.repeat_interleave(n_relation), t.repeat_interleave(n_relation)
        scores = score_fn.score_triple(table[h], others, table[t]).view(-1, n_relation)
        cost = nn.functional.cross_entropy(scores, r, reduction="none")
        total = total + model.relation_weight * (share * cost).sum()
    return total


def gradients(model, loss):
    parameters = dict(model.score_fn.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found = {k: None if x is None else x.to_dense() for k, x in zip(parameters, found)}
    found["entity_embedding"] = by_entity(model.score_fn, found["entity_embedding"])
    return found


def check(model, batch, triples, weight, **tolerance):
    loss, expected = model(**batch)["loss"], dense_loss(model, triples, weight)
    assert_close(loss, expected, check_dtype=False, **tolerance)
    assert_close(gradients(model, loss), gradients(model, expected), **tolerance)


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("max_scores", [7, 300, 2**22])
@pytest.mark.parametrize("sides", [("tail",), ("head",), ("head", "tail")], ids="+".join)
def test_loss_and_gradients_are_those_of_the_dense_formula(graph, n_shard, max_scores, sides):
    check(*prepare(graph, n_shard, sides=sides, max_scores=max_scores))


@pytest.mark.parametrize("score", sorted(SCORE_FUNCTIONS))
def test_every_score_function_trains_against_all_entities(graph, score):
    sides = ("tail",) if score == "conve" else ("head", "tail")
    check(*prepare(graph, score=score, sides=sides, max_scores=500))


#: One of each kind of loss with labels, and options that are not the defaults.
LABELLED = {name: LOSSES[name] for name in labelled_losses()}


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", sorted(LABELLED))
def test_every_loss_with_labels_trains_against_all_entities(graph, name, reduction, n_shard):
    loss_fn = LABELLED[name](reduction=reduction)
    check(*prepare(graph, n_shard, loss_fn=loss_fn, max_scores=500 if n_shard > 1 else 2**22))


@pytest.mark.parametrize("max_scores", [20, 300, 2**22])
@pytest.mark.parametrize("name", sorted(LABELLED))
def test_no_loss_depends_on_the_tiles(graph, name, max_scores):
    check(*prepare(graph, 2, loss_fn=LABELLED[name](), max_scores=max_scores))


@pytest.mark.parametrize("n_shard", [1, 4])
@pytest.mark.parametrize(
    "name", sorted(name for name, kind in LABELLED.items() if kind.smooths_labels)
)
def test_labels_are_smoothed(graph, name, n_shard):
    check(*prepare(graph, n_shard, loss_fn=LABELLED[name](), label_smoothing=0.1, max_scores=500))


@pytest.mark.parametrize("n_shard", [1, 4])
@pytest.mark.parametrize("score", ["complex", "rescal", "simple", "cp", "hole", "transe", "tucker"])
def test_relations_are_predicted_too(graph, score, n_shard):
    check(*prepare(graph, n_shard, score, relation_weight=0.3, sides=("tail",)))


@pytest.mark.parametrize("n_shard", [1, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_margin_temperature_and_regularizer(graph, n_shard, reduction):
    loss_fn = InfoNCELoss(0.3, math.log(0.2), reduction)
    options = dict(loss_fn=loss_fn, regularizer=LpRegularizer(0.1, 3.0))
    check(*prepare(graph, n_shard, max_scores=500, **options))


@pytest.mark.parametrize("n_shard", SHARDS)
def test_single_precision_agrees_with_the_dense_formula(graph, n_shard):
    model, batch, triples, weight = prepare(graph, n_shard, dtype=torch.float32, max_scores=300)
    check(model, batch, triples, weight, rtol=1e-5, atol=1e-5)


def test_an_answer_that_beats_all_others_by_far_costs_nothing_and_loses_no_digits(graph):
    model, batch, *_ = prepare(graph, score="transe", loss_fn=InfoNCELoss(0.02, -7.0))
    out = model(**batch)
    out["loss"].backward()
    assert torch.isfinite(out["loss"])
    assert torch.isfinite(model.entity_embedding.grad.to_dense()).all()


class Shifted(nn.Module):
    """A score function whose scores are far from 0, all by as much."""

    def __init__(self, score_fn, by):
        super().__init__()
        self.score_fn, self.by = score_fn, by

    def __call__(self, *arguments):
        return self.score_fn(*arguments) + self.by


@pytest.mark.parametrize("by", [-3000.0, -850.0, 3000.0])
@pytest.mark.parametrize("n_shard, max_scores", [(1, 2**22), (1, 300), (4, 300), (7, 40), (7, 9)])
def test_large_scores_lose_no_digits_however_they_are_tiled(graph, n_shard, max_scores, by):
    options = dict(dtype=torch.float32, max_scores=max_scores, sides=("tail",))
    model, batch, triples, weight = prepare(graph, n_shard, **options)
    # Not by assignment: a module that is assigned does not hide a method.
    vars(model.score_fn)["score_candidates"] = Shifted(model.score_fn.score_candidates, by)
    found = model(**batch)["loss"]
    found.backward()
    assert torch.isfinite(model.entity_embedding.grad.to_dense()).all()
    score_fn = model.score_fn.double()
    table = by_entity(score_fn)
    h, r, t = triples.T
    query = score_fn.query(table[h], r, False)
    scores = score_fn.score_candidates(query, table[None], False)
    costs = nn.functional.cross_entropy(scores, t, reduction="none")
    expected = (weight * costs).sum() / weight.sum()
    # What the scores themselves have lost to rounding is 1e-4 at 3000.
    assert_close(found.double(), expected.detach(), rtol=0, atol=3e-4)


@pytest.mark.parametrize("n_shard", [1, 4])
def test_scores_in_bfloat16_give_nearly_the_same(graph, n_shard):
    options = dict(dtype=torch.float32, max_scores=300)
    model, batch, *_ = prepare(graph, n_shard, **options)
    half, *_ = prepare(graph, n_shard, score_dtype=torch.bfloat16, **options)
    losses = [x(**batch)["loss"] for x in (model, half)]
    assert losses[0] != losses[1]
    assert_close(losses[1], losses[0], rtol=0.02, atol=0.0)
    for found, expected in zip(
        *(gradients(x, y).values() for x, y in zip((half, model), losses[::-1]))
    ):
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.998


def test_a_second_backward_pass_is_refused_as_the_first_handed_its_gradients_on(graph):
    model, batch, *_ = prepare(graph)
    loss = model(**batch)["loss"]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="has one backward pass, this is another"):
        loss.backward()


def test_a_factor_of_the_loss_is_one_of_the_gradients(graph):
    model, batch, *_ = prepare(graph)
    once, twice = (gradients(model, k * model(**batch)["loss"]) for k in (1.0, 2.0))
    assert_close(twice, {name: 2 * x for name, x in once.items()})


def test_without_gradients_the_loss_is_the_same(graph):
    model, batch, *_ = prepare(graph)
    with torch.no_grad():
        found = model(**batch)["loss"]
    assert not found.requires_grad
    assert_close(found, model(**batch)["loss"])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and not x.is_sparse:
                self.size = max(self.size, x.numel())
        return out


@pytest.mark.parametrize("n_entity", [4_000, 16_000])
def test_scores_of_all_entities_never_exist(n_entity):
    sharding = Sharding.create(n_entity, 4, seed=0)
    score_fn = make_score("complex", sharding, 4, dim=2)
    model = OneVsAllBessKGE(score_fn, max_scores=4096)
    rows = torch.randint(n_entity // 4, (2, 4, 4, 16), generator=torch.manual_seed(0))
    with Largest() as made:
        out = model(head=rows[0], relation=torch.zeros(4, 4, 16, dtype=torch.int64), tail=rows[1])
        out["loss"].backward()
    table = score_fn.entity_embedding.numel()
    assert made.size <= table < 256 * n_entity  # of 256 queries


@pytest.mark.parametrize("loss_fn", [InfoNCELoss(), PairwiseMarginLoss(), NSSALoss()])
def test_a_shard_alone_computes_what_it_does_in_one_process(graph, loss_fn):
    model, batch, *_ = prepare(graph, max_scores=300, loss_fn=loss_fn)
    table = model.entity_embedding.detach()

    def run(rank, exchange):
        score_fn = make_score("complex", model.score_fn.sharding, 4)
        score_fn.entity_embedding = nn.Parameter(table[rank : rank + 1].clone())
        own = OneVsAllBessKGE(score_fn, loss_fn, max_scores=300)
        own.exchange = exchange
        return own(**{name: x[rank : rank + 1] for name, x in batch.items()})

    together, apart = model(**batch), Shards(4).run(run)
    assert_close(torch.stack([x["loss"] for x in apart]).mean(), together["loss"])


def test_what_cannot_be_trained_so_is_refused(graph):
    sharding = Sharding.create(37, 2, 0)
    with pytest.raises(ConfigError, match=r"sides are \('left',\), expected some of"):
        OneVsAllBessKGE(make_score("transe", sharding, 4), sides=("left",))
    with pytest.raises(ConfigError, match="ConvE has no query for heads.*ask for tails only"):
        OneVsAllBessKGE(make_score("conve", sharding, 4))
    with pytest.raises(ConfigError, match="create the sharding without hubs"):
        OneVsAllBessKGE(make_score("transe", Sharding.create(37, 2, 0, hubs=np.array([3])), 4))
    with pytest.raises(ConfigError, match="max_scores must be at least 1, got 0"):
        OneVsAllBessKGE(make_score("transe", sharding, 4), max_scores=0)
    with pytest.raises(ConfigError, match="LogSigmoidLoss is of sampled negatives; with all"):
        OneVsAllBessKGE(make_score("transe", sharding, 4), LogSigmoidLoss(1.0, False))
    with pytest.raises(ConfigError, match="relation_weight must be at least 0, got -1"):
        OneVsAllBessKGE(make_score("transe", sharding, 4), relation_weight=-1.0)
