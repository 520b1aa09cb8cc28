"""Modules of which one operation cannot compute the step compute it as before."""

from __future__ import annotations

import pytest
import torch
from fused_support import (
    MOVERS,
    general,
    is_fused,
    outcome,
    step,
)
from support import Shards, make_score
from torch import nn
from torch.testing import assert_close

from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE, fused
from besskge_core.embedding import Embedding
from besskge_core.known import KnownTriples
from besskge_core.loss import LOSSES
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
)
from besskge_core.ops import sparse_rows
from besskge_core.regularizer import LpRegularizer
from besskge_core.scoring import TransE
from besskge_core.scoring.comparators import Distance
from besskge_core.scoring.formula import QueryScore
from besskge_core.scoring.operators import Translation


@pytest.fixture(params=MOVERS)
def mover(request):
    return request.param


@pytest.fixture
def one_operation(monkeypatch):
    """Counts the steps that are computed in one operation."""
    calls, loss = [], fused.sampled_loss
    monkeypatch.setattr(fused, "sampled_loss", lambda *x: calls.append(x) or loss(*x))
    return calls


# -- modules that are not plain ------------------------------------------------------------------


class OtherTranslation(Translation):
    """Might do anything."""


class OtherDistance(Distance):
    """Might do anything."""


class OwnQuery(TransE):
    def query(self, known_emb, relation_id, heads):
        return tuple(2.0 * x for x in super().query(known_emb, relation_id, heads))


class OwnTails(TransE):
    def score_tails(self, *arguments):
        return 2.0 * super().score_tails(*arguments)


class OwnCandidates(TransE):
    def score_candidates(self, *arguments):
        return 2.0 * super().score_candidates(*arguments)


class OwnAnswers(TransE):
    def score_query(self, *arguments):
        return 2.0 * super().score_query(*arguments)


class OwnEntities(TransE):
    def entities(self, rows, counted=True):
        return 2.0 * super().entities(rows, counted)


class OwnRelations(TransE):
    def relation(self, relation_id):
        return 2.0 * super().relation(relation_id)


class OtherOperator(TransE):
    @staticmethod
    def make_formula(dim, p):
        return QueryScore(OtherTranslation(), Distance(p), dim)


class OtherComparator(TransE):
    @staticmethod
    def make_formula(dim, p):
        return QueryScore(Translation(), OtherDistance(p), dim)


def bernoulli(triple_set):
    return BernoulliShardedNegativeSampler(triple_set, 3, 0, False, True)


def given(triple_set):
    lists = [torch.randint(37, (len(triple_set.triples), 9)).numpy() for _ in "ht"]
    return TripleBasedShardedNegativeSampler(*lists, triple_set.sharding, "t", seed=0)


class OwnScores(EmbeddingMovingBessKGE):
    def score_batch(self, *arguments):
        positive, negative = super().score_batch(*arguments)
        return 2.0 * positive, 2.0 * negative


class OwnScored(EmbeddingMovingBessKGE):
    def _score(self, batch):
        return super()._score(batch)


class OwnLookups(ScoreMovingBessKGE):
    def lookups(self, *arguments):
        return super().lookups(*arguments)


class OwnLoss(ScoreMovingBessKGE):
    def _loss(self, *arguments):
        return 2.0 * super()._loss(*arguments)


NOT_PLAIN = {
    "scores are returned": dict(return_scores=True),
    "ranks are computed": dict(evaluation=Evaluation(["mrr"])),
    "a regularizer": dict(regularizer=LpRegularizer(0.1, 2.0)),
    "augmentation": dict(augment_negative=True),
    "both sides": dict(scheme="ht"),
    "a side of its own each": dict(negatives=bernoulli),
    "given negatives": dict(negatives=given),
    "hubs": dict(n_hub=5),
    "an embedding with a normaliser": dict(
        table=lambda sharding: Embedding(
            embedding_dim=12, sharding=sharding, initializer=nn.init.normal_, normalizer="normalize"
        )
    ),
    "another score function": dict(score="pairre"),
    "another norm": dict(score="transe", p=3),
    "another loss": dict(loss_fn=LOSSES["focal"]()),
    "queries of its own": dict(make=OwnQuery),
    "scores of tails of its own": dict(make=OwnTails),
    "scores of candidates of its own": dict(make=OwnCandidates),
    "scores of answers of its own": dict(make=OwnAnswers),
    "entities of its own": dict(make=OwnEntities),
    "relations of its own": dict(make=OwnRelations),
    "an operator of its own": dict(make=OtherOperator),
    "a comparator of its own": dict(make=OtherComparator),
    "scores of its own": dict(mover=OwnScores),
    "scored by itself": dict(mover=OwnScored),
    "look-ups of its own": dict(mover=OwnLookups),
    "a loss of its own": dict(mover=OwnLoss),
    "double precision": dict(dtype=torch.float64),
}
KNOWN = "known triples left out"


@pytest.mark.parametrize("what", [*NOT_PLAIN, KNOWN])
def test_whatever_is_not_plain_is_computed_as_before(graph, what, one_operation):
    options = {}
    if what == KNOWN:
        known = KnownTriples.of(graph)
        options["negatives"] = lambda x: RandomShardedNegativeSampler(
            3, x.sharding, 0, "t", False, True, known
        )
    model, batch = step(
        graph, **{"loss_fn": LOSSES["nssa"](), **options, **NOT_PLAIN.get(what, {})}
    )
    found = outcome(model, batch)
    expected = outcome(general(model), batch)
    assert not one_operation and len(found) == 3
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    rows = model.rows_read(batch)
    if "heads_replaced" not in batch:  # the rows are those of the general step
        outcome(model, batch)
        assert torch.equal(rows, sparse_rows(model.entity_embedding.grad))


@pytest.mark.parametrize("what", ["negative_mask", "negative_filter"])
def test_excluded_negatives_are_left_out_as_before(graph, mover, what, one_operation):
    model, batch = step(graph, mover, form="per triple")
    plain = outcome(model, batch)["loss"]
    if what == "negative_mask":
        batch[what] = torch.arange(3).expand(2, 8, 2, 3) > 0
    else:
        real = batch["triple_mask"].flatten(1).int().argmax(1)  # the first triple of each shard
        pairs = [[[int(i), 0], [int(i), 2], [-1, -1]] for i in real]
        batch[what] = torch.tensor(pairs, dtype=torch.int32)
    del one_operation[:]
    assert not is_fused(model, batch) or what == "negative_filter"
    found, expected = outcome(model, batch), outcome(general(model), batch)
    assert not one_operation
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert not torch.isclose(found["loss"], plain)
    rows = model.rows_read(batch)
    assert torch.equal(rows, sparse_rows(model.entity_embedding.grad))


def test_a_shard_alone_takes_the_general_step(graph, mover, one_operation):
    model, batch = step(graph, mover)
    together = model(**batch)["loss"]
    del one_operation[:]

    def run(rank, exchange):
        score_fn = make_score("rotate", model.sharding, 4, dtype=torch.float32)
        score_fn.entity_embedding = nn.Parameter(model.entity_embedding.detach()[rank : rank + 1])
        own = mover(model.negative_sampler, score_fn, model.loss_fn)
        own.exchange = exchange
        return own(**{name: x[rank : rank + 1] for name, x in batch.items()})["loss"]

    assert_close(torch.stack(Shards(2).run(run)).mean(), together)
    assert not one_operation


def test_training_finds_that_a_loss_is_no_number(graph, mover):
    model, batch = step(graph, mover, "t", loss_fn=LOSSES["marginranking"](1.0, False))
    with torch.no_grad():
        model.entity_embedding[0] = float("nan")
    assert model(**batch)["loss"].isnan()
