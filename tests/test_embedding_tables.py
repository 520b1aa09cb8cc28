"""An embedding as a table of a score function: all of its options are in force, wherever it is used."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from support import SHARDS, batch_of, by_entity, global_triples, make_score, negative_ids
from torch import nn
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import (
    AllScoresBESS,
    EmbeddingMovingBessKGE,
    OneVsAllBessKGE,
    ScoreMovingBessKGE,
    TopKQueryBessKGE,
)
from besskge_core.embedding import Embedding, shard_rows, unshard_rows
from besskge_core.embedding.penalties import LpNorm
from besskge_core.errors import CheckpointError, ConfigError
from besskge_core.evaluation import rank_candidates, rank_triples
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.optim import SGD, Adagrad
from besskge_core.predict import Predictor
from besskge_core.regularizer import LpRegularizer
from besskge_core.runtime import LocalRuntime
from besskge_core.scoring import SCORE_FUNCTIONS, BaseScoreFunction, TransE
from besskge_core.sharding import PartitionedTripleSet, Sharding, most_frequent_entities
from besskge_core.training.checkpoint import load_checkpoint, save_checkpoint

N_ENTITY, N_RELATION = 37, 4
MOVERS = [EmbeddingMovingBessKGE, ScoreMovingBessKGE]

#: A score function, and the options of its tables: real ones, complex ones, one of each.
KINDS = {
    "transe": (dict(), dict()),
    "complex": (dict(dtype=torch.complex128), dict(dtype=torch.complex128)),
    "rotate": (dict(dtype=torch.complex128), dict()),
}
NORMALIZED = dict(normalizer="normalize")
LP = dict(regularizer="lp", regularizer_kwargs=dict(weight=0.7))


def halves(rows):
    """(n, W) with the two parts of an entry side by side -> (n, W), real half first."""
    return rearrange(rows, "n (d part) -> n (part d)", part=2)


def embedded(plain, name, entity=None, relation=None, extra=(), **options):
    """A score function as `plain`, with embeddings of the same numbers."""
    more, tables = ({"dtype": torch.float64, **(x or {})} for x in (entity, relation)), []
    rows = by_entity(plain), plain.relation_embedding.detach()
    for table, of_table, place in zip(rows, more, (dict(sharding=plain.sharding), {})):
        if of_table["dtype"].is_complex:
            table = torch.complex(*table.chunk(2, -1))
        n_row = {} if place else dict(max_id=len(table))
        shape = dict(shape=table.shape[1:])
        tables.append(Embedding(**{"initializer": table, **n_row, **shape, **place, **of_table}))
    return make_score(
        name, plain.sharding, plain.n_relation_type, inverse=plain.inverse_relations,
        entity_initializer=tables[0], relation_initializer=tables[1], **options,
    )  # fmt: skip


def make_pair(name="complex", n_shard=4, entity=None, relation=None, n_hub=0, **options):
    """A score function with embeddings, and one with plain tables, of the same numbers."""
    hubs = np.arange(n_hub)
    sharding = Sharding.create(N_ENTITY, n_shard, seed=n_shard, hubs=hubs)
    plain = make_score(name, sharding, N_RELATION, **options)
    options.pop("inverse", None)
    given = (entity or {}), (relation or {})
    of_entity, of_relation = ({**kind, **x} for kind, x in zip(KINDS.get(name, ({}, {})), given))
    return embedded(plain, name, of_entity, of_relation, **options), plain


def normalized_pair(name, n_shard=4, **options):
    """Embeddings with a normaliser, and plain tables that are normalised already."""
    score_fn, plain = make_pair(name, n_shard, NORMALIZED, NORMALIZED, **options)
    with torch.no_grad():
        norm = by_entity(plain).norm(dim=-1, keepdim=True)
        plain.entity_embedding.copy_(shard_rows(by_entity(plain) / norm, plain.sharding))
        relation = plain.relation_embedding
        relation.div_(relation.norm(dim=-1, keepdim=True))
    return score_fn, plain


@pytest.fixture(params=MOVERS)
def mover(request):
    return request.param


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


def fixed_batch(graph, sharding, scheme="ht"):
    """30 triples with 5 negatives each, the same for any sharding, and their entity IDs."""
    rng = np.random.default_rng(7)
    triples = graph.triples["train"][:30]
    negatives, heads = rng.integers(N_ENTITY, size=(30, 5)), rng.random(30) < 0.5
    batch, _, _ = batch_of(triples, negatives, heads, sharding, scheme)
    entities = np.concatenate([triples[:, 0], triples[:, 2], negatives.ravel()])
    return batch, torch.from_numpy(entities), torch.from_numpy(triples[:, 1]).long()


def trained_by(mover, score_fn, scheme="ht", **options):
    sampler = RandomShardedNegativeSampler(5, score_fn.sharding, 0, scheme)
    loss = LogSigmoidLoss(margin=2.0, negative_adversarial_sampling=True)
    return mover(sampler, score_fn, loss, **options)


def loss_and_gradients(graph, mover, score_fn, **options):
    """Loss, and gradients of the tables by ID, complex ones real half first."""
    batch, _, _ = fixed_batch(graph, score_fn.sharding)
    score_fn.train()
    loss = trained_by(mover, score_fn, **options)(**batch)["loss"]
    loss.backward()
    grads = [by_entity(score_fn, score_fn.entity_embedding.grad), score_fn.relation_embedding.grad]
    owners = score_fn.entity_representation, score_fn.relation_representation
    for i, owner in enumerate(owners):
        if owner is not None and owner.dtype.is_complex:
            grads[i] = halves(grads[i])
    return loss.detach(), *grads


# -- as plain tables -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shard", SHARDS)
def test_losses_and_gradients_are_those_of_plain_tables(graph, mover, kind, n_shard):
    score_fn, plain = make_pair(kind, n_shard)
    assert score_fn.entity_representation is not None and plain.entity_representation is None
    found, expected = (loss_and_gradients(graph, mover, x) for x in (score_fn, plain))
    assert_close(found, expected)


@pytest.mark.parametrize("name", sorted(SCORE_FUNCTIONS))
def test_every_score_function_takes_embeddings(graph, mover, name):
    inverse = name == "conve"
    score_fn, plain = make_pair(name, inverse=inverse)
    scheme = "ht" if plain.scores_heads else "t"
    batch, _, _ = fixed_batch(graph, plain.sharding, scheme)
    outs = [trained_by(mover, x, scheme, return_scores=True)(**batch) for x in (score_fn, plain)]
    assert_close(outs[0], outs[1])


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2)])
def test_rows_are_representations_laid_flat(shape):
    plain = make_score("complex", Sharding.create(N_ENTITY, 4, seed=0), N_RELATION)
    table = by_entity(plain).view(N_ENTITY, *shape)
    score_fn = embedded(plain, "complex", dict(shape=shape, initializer=table))
    assert torch.equal(score_fn.entities(score_fn.entity_embedding), plain.entity_embedding)
    assert score_fn.entities(score_fn.entity_embedding[:0, :0]).shape == (0, 0, 12)


def test_only_one_of_the_tables_may_be_an_embedding(graph, mover):
    _, plain = make_pair("rotate")
    expected = loss_and_gradients(graph, mover, plain)
    table = plain.relation_embedding.detach()
    entity = Embedding.from_pretrained(by_entity(plain), trainable=True, sharding=plain.sharding)
    for tables in (
        dict(entity_initializer=entity, relation_initializer=table),
        dict(
            entity_initializer=by_entity(plain),
            relation_initializer=Embedding.from_pretrained(table, trainable=True),
        ),
    ):
        mixed = make_score("rotate", plain.sharding, N_RELATION, **tables)
        assert_close(loss_and_gradients(graph, mover, mixed), expected)


def test_a_table_is_one_parameter_under_one_name(kind):
    score_fn, _ = make_pair(kind)
    names = [
        "entity_representation._embeddings.weight",
        "relation_representation._embeddings.weight",
    ]
    assert [name for name, _ in score_fn.named_parameters()] == names
    assert list(score_fn.state_dict()) == names
    assert score_fn.entity_embedding is score_fn.entity_representation.weight
    assert score_fn.relation_embedding is score_fn.relation_representation.weight
    twin = copy.deepcopy(score_fn)
    assert twin.entity_embedding is twin.entity_representation.weight
    assert twin.entity_embedding is not score_fn.entity_embedding
    with pytest.raises(AttributeError, match="no attribute 'entity_embeddings'"):
        _ = score_fn.entity_embeddings


def test_gradients_of_entities_stay_sparse(graph, mover, kind):
    score_fn, _ = make_pair(kind, entity=NORMALIZED)
    batch, _, _ = fixed_batch(graph, score_fn.sharding)
    trained_by(mover, score_fn)(**batch)["loss"].backward()
    assert score_fn.entity_embedding.grad.is_sparse


def test_a_frozen_table_gets_no_gradient_and_the_other_does(graph, mover):
    score_fn, _ = make_pair("rotate", entity=dict(trainable=False, constrainer="normalize"))
    before = score_fn.entity_embedding.clone()
    runtime = LocalRuntime(trained_by(mover, score_fn))
    batch, _, _ = fixed_batch(graph, score_fn.sharding)
    runtime.training_step(SGD([score_fn.relation_embedding], lr=0.1))(batch)
    assert score_fn.entity_embedding.grad is None
    assert score_fn.relation_embedding.grad.count_nonzero() > 0
    assert torch.equal(score_fn.entity_embedding, before)


class OwnTables(BaseScoreFunction):
    """As upstream's users write one."""

    def __init__(self, sharding):
        super().__init__()
        self.negative_sample_sharing, self.sharding = False, sharding
        shape = sharding.n_shard, sharding.max_entity_per_shard, 3
        self.entity_embedding = nn.Parameter(torch.ones(shape))
        self.relation_embedding = nn.Parameter(torch.ones(N_RELATION, 3))

    def score_triple(self, head_emb, relation_id, tail_emb):
        return (head_emb * self.relation_embedding[relation_id.long()] * tail_emb).sum(-1)

    def score_heads(self, head_emb, relation_id, tail_emb):
        return self.score_triple(head_emb, relation_id[:, None], tail_emb[:, None])

    def score_tails(self, head_emb, relation_id, tail_emb):
        return self.score_triple(head_emb[:, None], relation_id[:, None], tail_emb)


def test_a_score_function_of_ones_own_sets_its_tables_itself(graph, mover):
    score_fn = OwnTables(Sharding.create(N_ENTITY, 4, seed=0))
    assert list(dict(score_fn.named_parameters())) == ["entity_embedding", "relation_embedding"]
    assert score_fn.entities(score_fn.entity_embedding) is score_fn.entity_embedding
    runtime = LocalRuntime(trained_by(mover, score_fn))
    batch, _, _ = fixed_batch(graph, score_fn.sharding)
    runtime.training_step(SGD(score_fn.parameters(), lr=0.1))(batch)
    assert (score_fn.entity_embedding != 1).any() and score_fn.pop_regularization_term() == 0
    score_fn.update_sharding(Sharding.create(N_ENTITY, 2, seed=0))
    assert score_fn.entity_embedding.shape[0] == 2


# -- normalisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shard", SHARDS)
def test_normalizers_are_in_force_in_training(graph, mover, kind, n_shard):
    score_fn, plain = normalized_pair(kind, n_shard)
    options = dict(return_scores=True, regularizer=LpRegularizer(0.1, 3.0))
    batch, _, _ = fixed_batch(graph, plain.sharding)
    outs = [trained_by(mover, x, **options)(**batch) for x in (score_fn, plain)]
    assert_close(outs[0], outs[1])


@pytest.mark.parametrize("max_scores", [1, 200, 2**25])
@pytest.mark.parametrize("inverse", [False, True])
def test_normalizers_are_in_force_in_ranking(graph, kind, inverse, max_scores):
    score_fn, plain = normalized_pair(kind, inverse=inverse)
    triples = graph.triples["test"]
    a, b = (rank_triples(x, triples, max_scores=max_scores) for x in (score_fn, plain))
    raw = rank_triples(make_pair(kind, inverse=inverse)[0], triples)
    assert np.array_equal(a.ranks(), b.ranks()) and not np.array_equal(a.ranks(), raw.ranks())
    step = np.arange(4, N_ENTITY, 4)  # from the true one to nine others
    true = dict(head=triples[:, :1], tail=triples[:, 2:])
    lists = {side: (ids + step) % N_ENTITY for side, ids in true.items()}
    a, b = (rank_candidates(x, triples, lists, max_scores) for x in (score_fn, plain))
    assert np.array_equal(a.ranks(), b.ranks())


@pytest.mark.parametrize("candidates", ["all", "given"])
@pytest.mark.parametrize("scheme", ["h", "t"])
def test_normalizers_are_in_force_in_queries(graph, kind, scheme, candidates):
    score_fn, plain = normalized_pair(kind)
    sharding, generator = plain.sharding, torch.Generator().manual_seed(0)
    columns = {
        "relation": torch.randint(N_RELATION, (4, 6), generator=generator),
        "tail" if scheme == "h" else "head": torch.randint(9, (4, 6), generator=generator),
    }
    sampler = PlaceholderNegativeSampler(scheme)
    given = {}
    if candidates == "given":
        sampler = RandomShardedNegativeSampler(5, sharding, 0, scheme)
        given["negative"] = torch.randint(9, (4, 4, 6, 5), generator=generator)
    a, b = (
        TopKQueryBessKGE(5, sampler, x, return_scores=True, window_size=3)(**columns, **given)
        for x in (score_fn, plain)
    )
    assert_close(a, b)
    if candidates == "all":
        a, b = (
            AllScoresBESS(sampler, x, window_size=4)(torch.tensor(1), **columns)
            for x in (score_fn, plain)
        )
        assert_close(a, b)


def test_normalizers_are_in_force_in_prediction(graph, kind):
    score_fn, plain = normalized_pair(kind)
    a, b = (Predictor(x, graph) for x in (score_fn, plain))
    entities, relations = np.arange(20), np.arange(20) % N_RELATION
    for side in ("head", "tail"):
        found, expected = (x.top_k(side, entities, relations) for x in (a, b))
        assert np.array_equal(found.id, expected.id)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-5)
    found, expected = (x.top_relations(entities, entities[::-1]) for x in (a, b))
    assert np.array_equal(found.id, expected.id)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-5)


# -- dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["entity", "relation"])
def test_dropout_is_for_training_only(graph, mover, kind, table):
    score_fn, plain = make_pair(kind, **{table: dict(dropout=0.5)})
    batch, _, _ = fixed_batch(graph, plain.sharding)
    model, expected = trained_by(mover, score_fn), trained_by(mover, plain)(**batch)["loss"]
    assert len({model.train()(**batch)["loss"].item() for _ in range(3)}) == 3
    assert_close(model.eval()(**batch)["loss"], expected)
    model.train()
    triples = graph.triples["test"]
    assert np.array_equal(
        rank_triples(score_fn, triples).ranks(), rank_triples(plain, triples).ranks()
    )
    assert score_fn.training and score_fn.entity_representation.training


# -- regularisers ----------------------------------------------------------------------------------


def with_regularizers(name, n_shard=4, **options):
    return make_pair(name, n_shard, LP, LP, **options)[0]


def lp_term(score_fn, entity, relation):
    """The terms of look-ups by ID."""
    of_entity, of_relation = score_fn.entity_representation, score_fn.relation_representation
    rows = [of_entity(entity, counted=False), of_relation(relation, counted=False)]
    return 0.7 * sum(torch.linalg.vector_norm(x, dim=-1).mean() for x in rows)


def dense(grad):
    return grad.to_dense() if grad.is_sparse else grad


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("scheme", ["t", "ht"])
def test_the_term_of_a_step_is_that_of_its_real_look_ups(graph, mover, kind, n_shard, scheme):
    """Whatever the shards and the padding."""
    score_fn, plain = with_regularizers(kind, n_shard), make_pair(kind, n_shard)[0]
    batch, entity, relation = fixed_batch(graph, plain.sharding, scheme)
    assert n_shard == 1 or not batch["triple_mask"].all()
    losses = [trained_by(mover, x.train(), scheme)(**batch)["loss"] for x in (score_fn, plain)]
    term = lp_term(plain, entity, relation)
    assert_close(losses[0], losses[1] + term)
    losses[0].backward()
    (losses[1] + term).backward()
    for a, b in zip(score_fn.parameters(), plain.parameters()):
        assert_close(dense(a.grad), dense(b.grad))


@pytest.mark.parametrize("form", ["flat", "per triple", "typed", "shared"])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("n_hub", [0, 5])
def test_what_counts_is_real_whatever_the_form_of_the_negatives(graph, mover, form, local, n_hub):
    """No padding, nothing that is excluded, and each hub once."""
    if local and mover is ScoreMovingBessKGE:
        pytest.skip("negatives do not move there in any case")
    hubs = most_frequent_entities(graph.triples["train"], N_ENTITY, n_hub)
    sharding = Sharding.create(N_ENTITY, 4, 3, list(graph.type_offsets.values()), hubs)
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    if form == "typed":
        sampler = TypeBasedShardedNegativeSampler(triple_set.types, 3, sharding, "ht", local, 0)
    else:
        sampler = RandomShardedNegativeSampler(3, sharding, 0, "ht", local, form == "flat")
    batches = RigidShardedBatchSampler(triple_set, sampler, 16, 1, seed=0)
    batch = {name: x[0] for name, x in batches[range(len(batches))[-1]].items()}
    mask = batch["triple_mask"]
    assert not mask.all()
    plain = make_score("transe", sharding, N_RELATION, sharing=form == "shared")
    score_fn = embedded(plain, "transe", LP, LP, sharing=form == "shared").train()
    a, b = (trained_by(mover, x, "ht") for x in (score_fn, plain))
    a.negative_sampler = b.negative_sampler = sampler

    triples = global_triples(batch, sharding)
    tails = batch["tail"].transpose(0, 1)
    is_hub = [x >= sharding.max_entity_per_shard for x in (batch["head"], tails)]
    entity = [triples[..., i][mask & ~hub] for i, hub in zip((0, 2), is_hub)]
    kept = torch.ones_like(batch["negative"], dtype=torch.bool)
    if "negative_mask" in batch:
        pattern = "d a s n -> d s a n" if local else "d a s n -> s d a n"
        kept = rearrange(batch["negative_mask"], pattern)
    if form in ("per triple", "typed"):
        of_query = mask.flatten(1)  # (destination, B)
        kept = kept & (of_query[:, None, :, None] if local else of_query[None, :, :, None])
    ids = torch.cat([*entity, negative_ids(batch, sharding)[kept], torch.from_numpy(hubs).long()])
    loss = a(**batch)["loss"] - b(**batch)["loss"]
    assert_close(loss, lp_term(score_fn, ids, triples[..., 1][mask]))


def test_a_term_is_asked_for_once(graph, mover, kind):
    score_fn = with_regularizers(kind).train()
    batch, entity, relation = fixed_batch(graph, score_fn.sharding)
    model = trained_by(mover, score_fn)
    first = model(**batch)["loss"]
    assert score_fn.pop_regularization_term() == 0
    assert_close(model(**batch)["loss"], first)
    scores = trained_by(mover, score_fn, return_scores=True)
    scores.loss_fn = None
    scores(**batch)
    assert score_fn.entity_representation.pop_regularization_term() == 0


def test_regularizers_are_silent_in_evaluation(graph, mover, kind):
    score_fn, plain = with_regularizers(kind), make_pair(kind)[1]
    batch, _, _ = fixed_batch(graph, plain.sharding)
    outs = [trained_by(mover, x).eval()(**batch)["loss"] for x in (score_fn, plain)]
    assert_close(outs[0], outs[1])
    rank_triples(score_fn.train(), graph.triples["test"])
    assert score_fn.pop_regularization_term() == 0


def test_relations_that_were_looked_up_count_unless_told_which():
    score_fn = with_regularizers("transe").train()
    ids, more = torch.tensor([0, 1, 1]), torch.tensor([[3]])
    entity = score_fn.entity_representation(torch.tensor([4, 5]), counted=False)
    of_entity = 0.7 * entity.norm(dim=-1).mean()

    def looked_up():
        rows = score_fn.entity_embedding.flatten(end_dim=1)
        score_fn.entities(rows[score_fn.sharding.flat_row[[4, 5]]])
        score_fn.relation(ids), score_fn.relation(more)

    for given, counted in (
        ({}, torch.tensor([0, 1, 1, 3])),
        (dict(relation_id=more), torch.tensor([3])),
        (dict(relation_id=ids, counted=ids == 1), torch.tensor([1, 1])),
    ):
        looked_up()
        norms = score_fn.relation_embedding[counted].norm(dim=-1)
        assert_close(score_fn.pop_regularization_term(**given), of_entity + 0.7 * norms.mean())
    looked_up()
    assert_close(score_fn.pop_regularization_term(ids, counted=ids > 1), of_entity)


def test_tables_may_share_a_regularizer(graph, mover):
    shared = LpNorm(0.7)
    score_fn, apart = (
        make_pair("rotate", entity=x, relation=x)[0].train() for x in (dict(regularizer=shared), LP)
    )
    batch, _, _ = fixed_batch(graph, apart.sharding)
    losses = [trained_by(mover, x)(**batch)["loss"] for x in (score_fn, apart)]
    assert_close(losses[0], losses[1])


# -- constrainers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("n_hub", [0, 5])
def test_a_step_constrains_the_rows_that_it_changed(graph, mover, kind, planned, n_hub):
    constrained = dict(constrainer="normalize")
    score_fn, _ = make_pair(kind, entity=constrained, relation=constrained, n_hub=n_hub)
    sharding = score_fn.sharding
    with torch.no_grad():
        for table in score_fn.parameters():
            table.mul_(3.0)
    before = by_entity(score_fn)
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    sampler = RandomShardedNegativeSampler(1, sharding, 0, "ht", flat_negative_format=True)
    batches = RigidShardedBatchSampler(triple_set, sampler, 8, 1, seed=0)
    runtime = LocalRuntime(mover(sampler, score_fn, LogSigmoidLoss(1.0, True)))
    step = runtime.training_step(SGD(score_fn.parameters(), lr=0.1))
    micro = next(runtime.dataloader(batches)) if planned else batches[0]
    step(micro)
    grad = by_entity(score_fn, score_fn.entity_embedding.grad)
    changed, after = grad.abs().sum(-1) > 0, by_entity(score_fn)
    assert 0 < changed.sum() < N_ENTITY
    assert_close(after[changed].norm(dim=-1), torch.ones(int(changed.sum()), dtype=torch.float64))
    same = (after == before).all(-1)
    one = (after.norm(dim=-1) - 1).abs() < 1e-9  # looked up, if without a gradient
    assert (same | one).all() and same.any() and not same[changed].any()
    relation = score_fn.relation_embedding.norm(dim=-1)
    assert_close(relation, torch.ones_like(relation))
    padding = score_fn.entity_embedding.flatten(end_dim=1).abs().sum(-1) > 0
    assert int(padding.sum()) == N_ENTITY


def test_rows_that_momentum_still_moves_are_constrained(graph, mover):
    score_fn, _ = make_pair("transe", entity=dict(constrainer="normalize"))
    runtime = LocalRuntime(trained_by(mover, score_fn))
    optimizer = torch.optim.SGD(score_fn.parameters(), lr=0.1, momentum=0.9)
    batch, _, _ = fixed_batch(graph, score_fn.sharding)
    few = {name: x.clone() for name, x in batch.items()}
    for name in ("head", "tail", "negative"):
        few[name].zero_()
    for each in (batch, few):
        runtime.training_step(optimizer)(each)
        norm = by_entity(score_fn).norm(dim=-1)
        assert_close(norm, torch.ones_like(norm))


def test_a_dense_update_is_constrained_everywhere(graph, kind):
    constrained = dict(constrainer="normalize")
    score_fn, _ = make_pair(kind, entity=constrained, relation=constrained)
    batch, _, _ = fixed_batch(graph, score_fn.sharding)
    runtime = LocalRuntime(OneVsAllBessKGE(score_fn))
    runtime.training_step(SGD(score_fn.parameters(), lr=0.5))(batch)
    for table in (by_entity(score_fn), score_fn.relation_embedding.detach()):
        norm = table.norm(dim=-1)
        assert_close(norm, torch.ones_like(norm))


# -- sharding and checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize("n_shard", SHARDS)
def test_another_sharding_leaves_scores_and_training_as_they_are(graph, mover, kind, n_shard):
    score_fn, plain = normalized_pair(kind)
    sharding = Sharding.create(N_ENTITY, n_shard, seed=9)
    for x in (score_fn, plain):
        x.update_sharding(sharding)
    batch, _, _ = fixed_batch(graph, sharding)
    outs = [trained_by(mover, x, return_scores=True)(**batch) for x in (score_fn, plain)]
    assert_close(outs[0], outs[1])
    assert (
        score_fn.entity_embedding
        is dict(score_fn.named_parameters())["entity_representation._embeddings.weight"]
    )


def trained(graph, name, n_shard=4, n_step=3, **options):
    """A model with its optimiser, after some steps."""
    options = {**LP, "constrainer": "normalize", **options}
    score_fn, _ = make_pair(name, n_shard, options, options)
    optimizer = Adagrad(score_fn.parameters(), lr=0.1)
    step = LocalRuntime(trained_by(EmbeddingMovingBessKGE, score_fn)).training_step(optimizer)
    for _ in range(n_step):
        step(fixed_batch(graph, score_fn.sharding)[0])
    return score_fn, optimizer


def state_by_id(score_fn, optimizer):
    """Tables and optimiser state by ID."""
    table, relation = score_fn.entity_embedding, score_fn.relation_embedding
    entity, of_relation = optimizer.state[table], optimizer.state[relation]
    return (
        by_entity(score_fn), unshard_rows(entity["sum"], score_fn.sharding), relation.detach(),
        of_relation["sum"], entity["step"], of_relation["step"],
    )  # fmt: skip


@pytest.mark.parametrize("n_shard", SHARDS)
def test_a_checkpoint_loads_with_any_number_of_shards(graph, kind, n_shard, tmp_path):
    score_fn, optimizer = trained(graph, kind)
    save_checkpoint(tmp_path / "a", score_fn, optimizer)
    own, other = "entity_representation._embeddings.weight", trained(graph, kind, n_shard, 1)
    stored = load_file(tmp_path / "a" / "shard-00002.safetensors")
    assert set(stored) == {"entity_id", own, f"optimizer/{own}/sum"}
    load_checkpoint(tmp_path / "a", *other)
    expected = state_by_id(score_fn, optimizer)
    assert all(np.array_equal(a, b) for a, b in zip(state_by_id(*other), expected))
    save_checkpoint(tmp_path / "b", *other)
    back = trained(graph, kind, 4, 0)
    load_checkpoint(tmp_path / "b", *back)
    assert all(torch.equal(a, b) for a, b in zip(back[0].parameters(), score_fn.parameters()))
    losses = [
        LocalRuntime(trained_by(EmbeddingMovingBessKGE, x)).training_step(y)(
            fixed_batch(graph, x.sharding)[0]
        )["loss"]
        for x, y in (back, (score_fn, optimizer))
    ]
    assert torch.equal(*losses) and torch.equal(back[0].entity_embedding, score_fn.entity_embedding)


def test_a_shared_regularizer_can_be_stored(graph, tmp_path):
    model = trained(graph, "rotate", regularizer=LpNorm(0.5), regularizer_kwargs=None)
    save_checkpoint(tmp_path / "a", *model)
    other = trained(graph, "rotate", regularizer=LpNorm(0.9), regularizer_kwargs=None)
    load_checkpoint(tmp_path / "a", *other)
    assert float(other[0].entity_representation.regularizer.weight) == 0.5


def test_checkpoints_of_plain_tables_keep_their_names(graph, tmp_path):
    _, plain = make_pair("rotate")
    optimizer = Adagrad(plain.parameters(), lr=0.1)
    step = LocalRuntime(trained_by(EmbeddingMovingBessKGE, plain)).training_step(optimizer)
    step(fixed_batch(graph, plain.sharding)[0])
    save_checkpoint(tmp_path / "a", plain, optimizer)
    files = {path.name: set(load_file(path)) for path in (tmp_path / "a").glob("*.safetensors")}
    of_shard = {"entity_id", "entity_embedding", "optimizer/entity_embedding/sum"}
    of_all = {"relation_embedding", "optimizer/relation_embedding/sum"}
    shards = {f"shard-{i:05d}.safetensors": of_shard for i in range(4)}
    assert files == {"replicated.safetensors": of_all, **shards}
    with pytest.raises(CheckpointError, match="of another model.*nothing in the model"):
        load_checkpoint(tmp_path / "a", make_pair("rotate")[0])


# -- what cannot be --------------------------------------------------------------------------------


def refused(name, message, entity=None, relation=None, inverse=False):
    sharding = Sharding.create(N_ENTITY, 4, seed=0)
    given = {}
    if entity is not None:
        given["entity_initializer"] = Embedding(**{"sharding": sharding, **entity})
    if relation is not None:
        given["relation_initializer"] = Embedding(**{"max_id": N_RELATION, **relation})
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_score(name, sharding, N_RELATION, inverse=inverse, **given)


@pytest.mark.parametrize(
    "sharding, found",
    [
        (None, "no sharding"),
        (Sharding.create(N_ENTITY, 2, seed=0), "one of 37 entities on 2 shards"),
        (Sharding.create(N_ENTITY, 4, seed=1), "one of 37 entities on 4 shards"),
        (Sharding.create(8, 4, seed=0), "one of 8 entities on 4 shards"),
    ],
)
def test_an_entity_embedding_of_another_sharding_is_refused(sharding, found):
    options = dict(max_id=N_ENTITY) if sharding is None else {}
    refused(
        "transe",
        f"the entity embedding has {found}, the score function one of 37 entities on 4 shards;"
        " make it with the same: Embedding(sharding=sharding, ...)",
        dict(sharding=sharding, shape=6, **options),
    )


def test_an_equal_sharding_is_as_good_as_the_same():
    entity = Embedding(shape=6, sharding=Sharding.create(N_ENTITY, 4, seed=0))
    sharding = Sharding.create(N_ENTITY, 4, seed=0)
    score_fn = TransE(True, 1, sharding, N_RELATION, 6, entity_initializer=entity)
    assert score_fn.entity_representation is entity


@pytest.mark.parametrize(
    "options, inverse, message",
    [
        (
            dict(max_id=None, sharding=Sharding.create(N_RELATION, 2, seed=0)),
            False,
            "the relation embedding has a sharding, but every shard has all relations; make it"
            " without: Embedding(max_id=4, ...)",
        ),
        (dict(max_id=5), False, "the relation embedding has max_id=5, expected 4"),
        (
            dict(max_id=4),
            True,
            "the relation embedding has max_id=4, expected 8: 4 relations and their inverse ones",
        ),
    ],
)
def test_a_relation_embedding_of_other_ids_is_refused(options, inverse, message):
    refused("transe", message, relation=dict(shape=6, **options), inverse=inverse)


@pytest.mark.parametrize(
    "name, entity, relation, message",
    [
        (
            "transe", dict(shape=5), None,
            "the entity embedding has 5 numbers a row, shape=(5,) of torch.float32, expected 6:"
            " real ones with shape=6",
        ),
        (
            "complex", None, dict(shape=12, dtype=torch.complex64),
            "the relation embedding has 24 numbers a row, shape=(12,) of torch.complex64, expected"
            " 12: real ones with shape=12, or complex ones with shape=6",
        ),
        (
            "rotate", None, dict(shape=3, dtype=torch.complex64),
            "the relation embedding is torch.complex64, but relation rows of this score function"
            " are no complex numbers; give a real dtype, and 6 numbers a row",
        ),
        (
            "transe", dict(shape=3, dtype=torch.complex128), None,
            "the entity embedding is torch.complex128, but entity rows of this score function are"
            " no complex numbers; give a real dtype, and 6 numbers a row",
        ),
    ],
)  # fmt: skip
def test_rows_of_another_width_or_kind_are_refused(name, entity, relation, message):
    refused(name, message, entity, relation)
