"""A BESS step scores just the triples and negatives that its batch names, however it is sharded."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from einops import rearrange
from support import (
    SHARDS,
    Shards,
    batch_of,
    by_entity,
    columns,
    direct_scores,
    global_batch,
    make_score,
    negative_ids,
)
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import BessKGE, EmbeddingMovingBessKGE, ScoreMovingBessKGE
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.loss import LOSSES, LogSigmoidLoss, MarginRankingLoss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.regularizer import LpRegularizer
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import PartitionedTripleSet, Sharding, most_frequent_entities

MOVERS = [EmbeddingMovingBessKGE, ScoreMovingBessKGE]
SCHEMES = ["h", "t", "ht"]
FORMATS = [
    "flat", "per triple", "shared", "given", "given flat", "given shared", "typed", "typed shared",
]  # fmt: skip
#: Losses that are means by default; a mean over each shard is not one over all.
SUM = dict(reduction="sum")
LOSS_ARGUMENTS = {
    "logsigmoid": dict(margin=2.0, negative_adversarial_sampling=True),
    "marginranking": dict(margin=2.0, negative_adversarial_sampling=True),
    "sampledsoftmax": dict(n_entity=37),
}


def negative_sampler(form, triple_set, scheme, local):
    sharding, rng = triple_set.sharding, np.random.default_rng(1)
    if form.startswith("given"):
        n_list = 1 if form == "given flat" else len(triple_set.triples)
        lists = [rng.integers(sharding.n_entity, size=(n_list, 9)) for _ in "ht"]
        return TripleBasedShardedNegativeSampler(*lists, sharding, scheme, seed=0)
    if form.startswith("typed"):
        return TypeBasedShardedNegativeSampler(triple_set.types, 3, sharding, scheme, local, seed=0)
    flat = "flat" in form
    if scheme == "either":
        return BernoulliShardedNegativeSampler(triple_set, 3, 0, local, flat)
    return RandomShardedNegativeSampler(3, sharding, 0, scheme, local, flat)


def step(graph, mover, scheme="t", form="per triple", n_shard=4, score="rotate", local=False,
         dtype=torch.float64, at=-1, n_hub=0, **options):  # fmt: skip
    """A model and a batch: by default the last of an epoch, in which some triples are masked."""
    hubs = most_frequent_entities(graph.triples["train"], graph.n_entity, n_hub)
    sharding = Sharding.create(
        graph.n_entity, n_shard, seed=3, type_offsets=list(graph.type_offsets.values()), hubs=hubs
    )
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    sampler = negative_sampler(form, triple_set, scheme, local)
    batches = RigidShardedBatchSampler(triple_set, sampler, 4 * n_shard, 1, seed=0)
    score_fn = make_score(
        score, sharding, graph.n_relation_type, sharing="shared" in form, dtype=dtype
    )
    model = mover(sampler, score_fn, **{"return_scores": True, **options})
    batch = {name: x[0] for name, x in batches[range(len(batches))[at]].items()}
    del batch["triple_weight"]  # which says of padding what the mask does
    return model, batch


@pytest.fixture(params=MOVERS)
def mover(request):
    return request.param


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


def expected_scores(model, batch):
    positive, negative = direct_scores(model.score_fn, global_batch(batch, model))
    if "negative_mask" in batch:
        kept = rearrange(batch["negative_mask"], "d a s n -> s d a n")
        negative = negative.masked_fill(~columns(kept, batch, model), -torch.inf)
    return positive, negative


# -- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_scores_equal_direct_scoring_of_the_same_triples(graph, mover, scheme, form):
    model, batch = step(graph, mover, scheme, form)
    out = model(**batch)
    positive, negative = expected_scores(model, batch)
    assert_close(out["positive_score"], positive)
    assert_close(out["negative_score"], negative)


@pytest.mark.parametrize("score", sorted(SCORE_FUNCTIONS))
def test_scores_equal_direct_scoring_for_every_score_function(graph, mover, score):
    scheme = "t" if score == "conve" else "ht"
    model, batch = step(graph, mover, scheme, "shared", score=score)
    model.eval()
    out = model(**batch)
    assert_close((out["positive_score"], out["negative_score"]), expected_scores(model, batch))


@pytest.mark.parametrize("form", ["flat", "per triple", "shared"])
@pytest.mark.parametrize("score", ["rotate", "pairre", "complex"])
def test_each_triple_may_have_a_side_of_its_own(graph, mover, form, score):
    model, batch = step(graph, mover, "either", form, score=score)
    assert 0.2 < batch["heads_replaced"].float().mean() < 0.8
    out = model(**batch)
    assert_close((out["positive_score"], out["negative_score"]), expected_scores(model, batch))


@pytest.mark.parametrize("form", ["flat", "per triple", "given", "typed shared"])
def test_hubs_are_scored_on_whatever_shard_their_triples_are(graph, mover, scheme, form):
    model, batch = step(graph, mover, scheme, form, n_hub=5)
    n_row = model.entity_embedding.shape[1]
    assert (batch["head"] >= n_row).any() and (batch["tail"] >= n_row).any()
    out = model(**batch)
    assert_close((out["positive_score"], out["negative_score"]), expected_scores(model, batch))


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("form", ["flat", "per triple", "typed shared"])
def test_scores_equal_direct_scoring_for_any_number_of_shards(graph, mover, form, n_shard):
    model, batch = step(graph, mover, "ht", form, n_shard)
    out = model(**batch)
    assert_close((out["positive_score"], out["negative_score"]), expected_scores(model, batch))


@pytest.mark.parametrize("form", ["per triple", "given", "given flat", "typed"])
def test_moving_scores_and_moving_embeddings_give_the_same_columns(graph, scheme, form):
    (a, batch), (b, _) = (step(graph, mover, scheme, form) for mover in MOVERS)
    assert_close(a(**batch), b(**batch), rtol=0, atol=1e-12)


def test_columns_of_moved_embeddings_are_among_those_of_moved_scores(graph, scheme):
    (a, batch), (b, _) = (step(graph, mover, scheme, "flat") for mover in MOVERS)
    few, all_lists = a(**batch)["negative_score"], b(**batch)["negative_score"]
    lists = rearrange(all_lists, "(d q) (s t n) -> d t q s n", d=4, s=4, t=4)
    own = torch.stack([lists[d, d] for d in range(4)])
    assert_close(rearrange(own, "d q s n -> (d q) (s n)"), few)


@pytest.mark.parametrize("form", ["flat", "per triple", "shared", "typed"])
def test_local_sampling_scores_the_negatives_of_the_own_shard(graph, scheme, form):
    model, batch = step(graph, EmbeddingMovingBessKGE, scheme, form, local=True)
    mask = batch.pop("negative_mask", None)
    out = model(**batch)
    positive, negative = expected_scores(model, batch)
    assert_close((out["positive_score"], out["negative_score"]), (positive, negative))
    assert (mask is None) == (form != "typed")


@pytest.mark.parametrize("local", [False, True])
def test_just_the_negatives_of_another_type_are_excluded(graph, scheme, local):
    model, batch = step(graph, EmbeddingMovingBessKGE, scheme, "typed", local=local, at=0)
    excluded = model(**batch)["negative_score"].isneginf()
    first = torch.tensor(list(graph.type_offsets.values()))
    triples, candidates, heads = global_batch(batch, model)
    replaced = torch.where(heads, triples[:, 0], triples[:, 2])
    kind, wanted = (torch.bucketize(x, first, right=True) for x in (candidates, replaced))
    kept = batch["triple_mask"].flatten()  # a stand-in for a missing triple has no type
    assert excluded[kept].any() or (local and scheme != "t")  # a head's shard has its type
    assert torch.equal(excluded[kept], (kind != wanted[:, None])[kept])


# -- the same batch in any sharding ------------------------------------------------------------


def losses_and_gradients(graph, mover, scheme, n_shard, loss="logsigmoid", **options):
    rng = np.random.default_rng(7)
    triples = graph.triples["train"][:30]
    negatives, heads = rng.integers(graph.n_entity, size=(30, 5)), rng.random(30) < 0.5
    sharding = Sharding.create(graph.n_entity, n_shard, seed=n_shard)
    batch, place, _ = batch_of(triples, negatives, heads, sharding, scheme)
    weight = torch.linspace(0.5, 2.0, 30, dtype=torch.float64)[place].view(n_shard, -1)
    score_fn = make_score("rotate", sharding, graph.n_relation_type)
    sampler = RandomShardedNegativeSampler(5, sharding, 0, scheme)
    model = mover(sampler, score_fn, LOSSES[loss](**LOSS_ARGUMENTS.get(loss, SUM)), **options)
    total = n_shard * model(**batch, triple_weight=weight)["loss"]
    total.backward()
    return (
        total,
        by_entity(score_fn, score_fn.entity_embedding.grad),
        score_fn.relation_embedding.grad,
    )


@pytest.mark.parametrize("n_shard", SHARDS[1:])
def test_losses_and_gradients_do_not_depend_on_the_number_of_shards(graph, mover, scheme, n_shard):
    expected = losses_and_gradients(graph, EmbeddingMovingBessKGE, scheme, 1)
    assert_close(
        losses_and_gradients(graph, mover, scheme, n_shard), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_is_the_same_for_any_number_of_shards(graph, mover, loss):
    regularizer = LpRegularizer(0.1, 3.0)
    a, b = (
        losses_and_gradients(graph, mover, "ht", n, loss, regularizer=regularizer) for n in (1, 4)
    )
    assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_batch_in_global_ids_holds_each_triple_with_its_negatives(graph, scheme):
    triples, negatives = graph.triples["train"][:9], np.arange(36).reshape(9, 4)
    heads, sharding = np.arange(9) % 2 == 0, Sharding.create(graph.n_entity, 4, seed=0)
    batch, place, ids = batch_of(triples, negatives, heads, sharding, scheme)
    assert sorted(place[place >= 0].tolist()) == list(range(9))
    for i, row in zip(place.tolist(), ids):
        assert sorted(row[row >= 0].tolist()) == ([] if i < 0 else sorted(negatives[i].tolist()))
    sampler = RandomShardedNegativeSampler(1, sharding, 0, scheme)
    model = EmbeddingMovingBessKGE(sampler, make_score("transe", sharding, 4), return_scores=True)
    found = global_batch(batch, model)
    kept = place >= 0
    assert torch.equal(found.triples[kept], torch.from_numpy(triples)[place[kept]].long())
    assert torch.equal(found.candidates[ids >= 0], ids[ids >= 0])


# -- shards apart: one program a shard ---------------------------------------------------------


def on_threads(model, batch):
    """The model of each shard, with its slice of the table and of the batch alone, and its outputs."""
    table, plain = model.score_fn.entity_embedding.detach(), model.score_fn

    def run(rank, exchange):
        score_fn = make_score("rotate", plain.sharding, 4, sharing=plain.negative_sample_sharing)
        score_fn.entity_embedding = torch.nn.Parameter(table[rank : rank + 1].clone())
        own = type(model)(
            model.negative_sampler, score_fn, model.loss_fn, None, True, model.augment_negative
        )
        own.exchange = exchange
        return own, own(**{name: x[rank : rank + 1] for name, x in batch.items()})

    return zip(*Shards(len(table)).run(run))


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_alone_computes_what_it_does_in_one_process(graph, mover, scheme, form):
    model, batch = step(graph, mover, scheme, form, loss_fn=LogSigmoidLoss(2.0, True))
    together, (_, apart) = model(**batch), on_threads(model, batch)
    for name in ("positive_score", "negative_score"):
        assert_close(torch.cat([out[name] for out in apart]), together[name])
    assert_close(torch.stack([out["loss"] for out in apart]).mean(), together["loss"])


def test_gradients_travel_back_to_the_shards_they_came_from(graph, mover, scheme):
    model, batch = step(graph, mover, scheme, loss_fn=LogSigmoidLoss(2.0, True))
    model(**batch)["loss"].backward()
    own, outputs = on_threads(model, batch)
    torch.stack([out["loss"] for out in outputs]).mean().backward()
    entities = torch.cat([m.entity_embedding.grad.to_dense() for m in own])
    assert_close(entities, model.entity_embedding.grad.to_dense())
    relations = sum(m.score_fn.relation_embedding.grad for m in own)
    assert_close(relations, model.score_fn.relation_embedding.grad)


@pytest.mark.parametrize("options", [dict(augment_negative=True), dict(local=True)])
def test_augmentation_and_local_sampling_run_on_a_shard_alone(graph, scheme, options):
    model, batch = step(graph, EmbeddingMovingBessKGE, scheme, "flat", **options)
    _, apart = on_threads(model, batch)
    scores = torch.cat([out["negative_score"] for out in apart])
    assert_close(scores, model(**batch)["negative_score"])


# -- what is left out --------------------------------------------------------------------------


def test_masked_triples_change_neither_loss_nor_gradient_nor_metric(graph, mover, scheme):
    options = dict(loss_fn=LogSigmoidLoss(2.0, False), evaluation=Evaluation(["mrr"]))
    model, batch = step(graph, mover, scheme, "per triple", **options)
    batch["triple_mask"] = mask = torch.rand(4, 4, 4, generator=torch.manual_seed(0)) < 0.6
    before = model(**batch)
    (grad,) = torch.autograd.grad(before["loss"], model.score_fn.relation_embedding)
    other = batch["relation"].masked_fill(mask, 0) + 1
    batch["relation"] = torch.where(mask, batch["relation"], other % 4)
    after = model(**batch)
    (new_grad,) = torch.autograd.grad(after["loss"], model.score_fn.relation_embedding)
    assert_close(
        (after["loss"], after["metrics"], new_grad), (before["loss"], before["metrics"], grad)
    )
    assert (after["metrics"].flatten() > 0).tolist() == mask.flatten().tolist()
    assert not torch.equal(after["positive_score"], before["positive_score"])


def test_the_loss_is_that_of_the_scores_weights_and_masks(graph, mover, scheme):
    loss_fn = MarginRankingLoss(3.0, False, loss_scale=2.0)
    model, batch = step(graph, mover, scheme, "given", loss_fn=loss_fn)
    weight = torch.rand(4, 16, generator=torch.manual_seed(0))
    out = model(**batch, triple_weight=weight)
    positive, negative = expected_scores(model, batch)
    kept = ~negative.isneginf()
    cost = (negative - positive[:, None] + 3.0).relu().masked_fill(~kept, 0.0)
    per_triple = 2.0 * cost.sum(1) / kept.sum(1)
    expected = (per_triple * weight.flatten() * batch["triple_mask"].flatten()).sum() / 4
    assert_close(out["loss"].detach(), expected)


def test_one_weight_a_shard_weighs_all_its_triples(graph, mover):
    model, batch = step(graph, mover, loss_fn=LogSigmoidLoss(2.0, False))
    of_shard = torch.tensor([0.5, 1.0, 2.0, 0.0])
    each = model(**batch, triple_weight=of_shard[:, None].expand(4, 16))["loss"]
    assert_close(model(**batch, triple_weight=of_shard)["loss"], each)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_excluded_negatives_might_as_well_not_be_there(graph, mover, loss):
    loss_fn = LOSSES[loss](**LOSS_ARGUMENTS.get(loss, SUM))
    model, batch = step(graph, mover, "t", "per triple", loss_fn=loss_fn)
    mask = torch.ones(4, 16, 4, 3, dtype=torch.bool)
    mask[..., 2] = False
    masked = model(**batch, negative_mask=mask)["loss"]
    batch["negative"] = batch["negative"][..., :2]
    assert_close(masked, model(**batch)["loss"])


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_triple_without_any_negative_still_has_a_finite_loss_and_gradient(graph, mover, loss):
    loss_fn = LOSSES[loss](**LOSS_ARGUMENTS.get(loss, SUM))
    model, batch = step(graph, mover, "ht", "per triple", loss_fn=loss_fn)
    out = model(**batch, negative_mask=torch.zeros(4, 16, 4, 3, dtype=torch.bool))
    out["loss"].backward()
    assert out["negative_score"].isneginf().all()
    assert torch.isfinite(out["loss"])
    assert torch.isfinite(model.entity_embedding.grad.to_dense()).all()


# -- augmentation ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_hub", [0, 5])
@pytest.mark.parametrize("form", ["flat", "per triple", "shared", "given"])
def test_augmentation_adds_the_other_positives_of_the_shard(graph, scheme, form, n_hub):
    model, batch = step(
        graph, EmbeddingMovingBessKGE, scheme, form, augment_negative=True, n_hub=n_hub
    )
    scores = model(**batch)["negative_score"]
    _, sampled = expected_scores(model, batch)
    found = global_batch(batch, model)
    replaced = torch.where(found.heads, found.triples[:, 0], found.triples[:, 2])
    shard = torch.arange(4).repeat_interleave(16)
    same_side = (found.heads[:, None] == found.heads) & (shard[:, None] == shard)
    lists = torch.stack([replaced[row] for row in same_side])
    counted = torch.stack([batch["triple_mask"].flatten()[row] for row in same_side])
    assert not counted.all()  # what stands in for missing triples is no candidate
    _, added = direct_scores(model.score_fn, found._replace(candidates=lists))
    added = added.masked_fill((lists == replaced[:, None]) | ~counted, -torch.inf)
    assert_close(scores, torch.cat([sampled, added], dim=1))


def test_no_entity_is_its_own_negative_by_augmentation(graph):
    model, batch = step(
        graph, EmbeddingMovingBessKGE, "t", "flat", augment_negative=True,
        loss_fn=LogSigmoidLoss(0.0, False),
    )  # fmt: skip
    del batch["triple_mask"]
    tail = global_batch(batch, model).triples[:, 2].view(4, 16)
    own = (tail[:, :, None] == tail[:, None]).flatten(0, 1)
    assert (own.sum(1) > 1).any()  # hub tails: the same entity in other rows
    out = model(**batch)
    added = out["negative_score"][:, 4 * 3 :]
    assert torch.equal(added.isneginf(), own)
    expected = LogSigmoidLoss(0.0, False)(
        out["positive_score"], out["negative_score"], torch.ones(64, dtype=torch.float64),
        (~out["negative_score"].isneginf()).sum(1),
    )  # fmt: skip
    assert_close(out["loss"], expected / 4)


def test_augmentation_and_a_mask_exclude_together(graph):
    model, batch = step(
        graph, EmbeddingMovingBessKGE, "ht", "given", augment_negative=True,
        loss_fn=LogSigmoidLoss(1.0, True),
    )  # fmt: skip
    out = model(**batch)
    excluded = out["negative_score"].isneginf()
    n_given = 4 * batch["negative"].shape[-1]
    assert_close(excluded[:, :n_given], expected_scores(model, batch)[1].isneginf())
    assert excluded[:, n_given:].any() and not excluded[:, n_given:].all()
    assert torch.isfinite(out["loss"])


# -- the rest ----------------------------------------------------------------------------------


def test_the_regularizer_adds_its_weighted_penalty_to_the_loss(graph, mover):
    options = dict(loss_fn=LogSigmoidLoss(2.0, False, loss_scale=3.0))
    plain, batch = step(graph, mover, **options)
    model, _ = step(graph, mover, regularizer=LpRegularizer(0.1, 2.0), **options)
    weight = torch.rand(4, 16, generator=torch.manual_seed(0)).double()
    h, r, t = global_batch(batch, model).triples.T
    table, relation = by_entity(model.score_fn), model.score_fn.relation_embedding.detach()
    penalty = 0.1 * sum(x.square().sum(1) for x in (table[h], relation[r], table[t]))
    counted = weight.flatten() * batch["triple_mask"].flatten()
    cost = 3.0 * (penalty * counted).sum() / 4
    difference = [m(**batch, triple_weight=weight)["loss"].detach() for m in (model, plain)]
    assert_close(difference[0] - difference[1], cost)


def test_ranks_and_metrics_are_those_of_the_scores(graph, mover):
    evaluation = Evaluation(["mrr", "hits@3"], return_ranks=True, reduction="sum")
    model, batch = step(graph, mover, "ht", "given", evaluation=evaluation)
    out = model(**batch)
    ranks = evaluation.ranks_from_scores(out["positive_score"], out["negative_score"])
    assert torch.equal(out["ranks"], ranks)
    kept = ranks[batch["triple_mask"].flatten()]
    expected = torch.stack([(kept <= 3).float().sum(), (1 / kept).sum()])
    assert_close(out["metrics"], expected[None])


def test_lookups_list_the_rows_that_a_step_reads_in_that_order(graph, mover):
    model, batch = step(graph, mover, "ht", "flat", loss_fn=LogSigmoidLoss(2.0, False))
    model(**batch)["loss"].backward()
    shard, row = model.entity_embedding.grad._indices()
    listed = model.lookups(batch["head"], batch["tail"], batch["negative"])
    assert torch.equal(row.view(4, -1), listed.long())
    assert torch.equal(shard.view(4, -1), torch.arange(4)[:, None].expand_as(listed))


def test_embedding_parameters_are_counted_without_padding(graph):
    model, _ = step(graph, EmbeddingMovingBessKGE, n_shard=7)
    assert model.entity_embedding.numel() == 7 * 6 * 12
    assert model.n_embedding_parameters == 37 * 12 + 4 * 6


class HeadsOnly(BessKGE):
    """Scores a triple by the sum of its head's row, and all negatives by 0."""

    def score_batch(self, head, relation, tail, negative):
        n_host = head.shape[0]
        rows = self.entity_embedding[torch.arange(n_host)[:, None], head.flatten(1).long()]
        return rows.sum(-1).flatten(), rows.new_zeros(rows[..., 0].numel(), 12)


def test_a_subclass_needs_score_batch_alone(graph):
    model, batch = step(graph, HeadsOnly, "t", "per triple", loss_fn=LogSigmoidLoss(1.0, False))
    out = model(**batch, negative_mask=torch.arange(3).expand(4, 16, 4, 3) > 0)
    head = global_batch(batch, model).triples[:, 0]
    assert_close(out["positive_score"], by_entity(model.score_fn)[head].sum(1))
    assert out["negative_score"].isneginf()[0].tolist() == 4 * [True, False, False]
    out["loss"].backward()
    assert model.entity_embedding.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [dict(), dict(augment_negative=True)])
def test_a_mover_whose_score_batch_is_overridden_is_asked_for_its_scores(graph, mover, options):
    class Doubled(mover):
        def score_batch(self, head, relation, tail, negative):
            positive, scores = super().score_batch(head, relation, tail, negative)
            return 2 * positive, 2 * scores

    if mover is ScoreMovingBessKGE and options:
        pytest.skip("moving scores does not augment")
    options.update(loss_fn=MarginRankingLoss(1.0, False))
    (model, batch), (plain, _) = (
        step(graph, of, form="flat", **options) for of in (Doubled, mover)
    )
    del batch["triple_mask"]
    found, once = model(**batch), plain(**batch)
    assert_close(found["positive_score"], 2 * once["positive_score"])
    assert_close(found["negative_score"], 2 * once["negative_score"])
    excluded = found["negative_score"].isneginf()
    positive, negative = found["positive_score"], found["negative_score"]
    expected = MarginRankingLoss(1.0, False)(
        positive, negative, torch.ones(()).double(), (~excluded).sum(1)
    )
    assert_close(found["loss"], expected / 4)


def test_score_batch_gives_the_scores_that_forward_returns(graph, mover):
    model, batch = step(graph, mover, "ht", "shared")
    positive, negative = model.score_batch(
        *(batch[k] for k in ("head", "relation", "tail", "negative"))
    )
    out = model(**batch)
    assert torch.equal(positive, out["positive_score"])
    assert torch.equal(negative, out["negative_score"])


def test_a_model_that_returns_nothing_is_refused(graph, mover):
    with pytest.raises(ConfigError, match="nothing to return: give loss_fn or evaluation, or"):
        step(graph, mover, return_scores=False)


@pytest.mark.parametrize("options", [dict(augment_negative=True), dict(local=True)])
def test_moving_scores_refuses_what_needs_moved_negatives(graph, options):
    with pytest.raises(ConfigError, match="moves no negatives.*need EmbeddingMovingBessKGE"):
        step(graph, ScoreMovingBessKGE, **options)


def test_augmentation_needs_a_common_side(graph):
    with pytest.raises(ConfigError, match="needs a corruption scheme 'h', 't' or 'ht'"):
        step(graph, EmbeddingMovingBessKGE, "either", augment_negative=True)


def test_the_regularizer_of_a_mean_loss_is_a_mean(graph, mover):
    weight = torch.rand(4, 16, generator=torch.manual_seed(0)).double()
    found = []
    for regularizer in (None, LpRegularizer(0.1, 2.0)):
        model, batch = step(graph, mover, loss_fn=LOSSES["softplus"](), regularizer=regularizer)
        found.append(model(**batch, triple_weight=weight)["loss"].detach())
    h, r, t = global_batch(batch, model).triples.T
    table, relation = by_entity(model.score_fn), model.score_fn.relation_embedding.detach()
    penalty = 0.1 * sum(x.square().sum(1) for x in (table[h], relation[r], table[t]))
    counted = weight * batch["triple_mask"].view(4, 16)
    means = (penalty.view(4, 16) * counted).sum(1) / counted.sum(1).clamp(min=1e-9)
    assert_close(found[1] - found[0], means.mean())


def test_a_regularizer_needs_the_embeddings_of_the_step(graph):
    options = dict(loss_fn=LogSigmoidLoss(1.0, False), regularizer=LpRegularizer(0.1))
    model, batch = step(graph, HeadsOnly, **options)
    with pytest.raises(ConfigError, match="HeadsOnly gives a regularizer no embeddings"):
        model(**batch)


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("tail", (4, 4, 5), "(L, S, P)"),
        ("negative", (4, 3, 16, 3), "(L, S, A, N)"),
        ("triple_mask", (4, 16), "(L, S, P)"),
        ("negative_mask", (4, 4, 16, 3), "(L, A, S, N)"),
    ],
)
def test_a_batch_of_another_shape_is_refused(graph, mover, name, shape, expected):
    model, batch = step(graph, mover)
    batch[name] = torch.zeros(shape, dtype=torch.bool if "mask" in name else torch.int32)
    message = re.escape(f"{name} has shape {shape}, expected {expected} with L=4")
    with pytest.raises(ShapeError, match=message):
        model(**batch)


def test_negative_ids_are_entities_of_their_source_shard(graph):
    model, batch = step(graph, EmbeddingMovingBessKGE)
    sharding = model.score_fn.sharding
    ids = negative_ids(batch, sharding).numpy()
    assert (sharding.entity_to_shard[ids] == np.arange(4)[:, None, None, None]).all()
