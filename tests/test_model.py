"""A model of parts by name: its scores are those of its score function, whatever the shards."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from besskge_core.errors import ConfigError
from besskge_core.loss import BCEWithLogitsLoss, InfoNCELoss, PairwiseMarginLoss
from besskge_core.model import KGEModel
from besskge_core.regularizer import DuraRegularizer
from besskge_core.scoring import SCORE_FUNCTIONS, DistMult
from besskge_core.sharding import Sharding
from besskge_core.triples_factory import TriplesFactory


@pytest.fixture(params=[False, True], ids=["", "inverse"])
def graph(request):
    rows = torch.randint(7, (40, 3), generator=torch.manual_seed(0))
    rows[:, 1] %= 3
    return TriplesFactory(rows, 7, 3, request.param)


OPTIONS = {
    "conve": dict(embedding_height=2, embedding_width=3, output_channels=2, kernel_height=2,
                  kernel_width=2),
}  # fmt: skip


def make(graph, name="complex", n_shard=1, **options):
    return KGEModel(
        triples_factory=graph, interaction=name, interaction_kwargs=OPTIONS.get(name),
        entity_representations_kwargs=dict(embedding_dim=6), n_shard=n_shard, random_seed=0,
        **options,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", sorted(SCORE_FUNCTIONS))
def test_all_scores_are_those_of_triples(graph, name):
    model, triples = make(graph, name), graph.mapped_triples[:5]
    every = torch.arange(7)
    tails = model.score_t(triples[:, :2])
    for i, (h, r, _) in enumerate(triples):
        rows = torch.stack([h.expand(7), r.expand(7), every], 1)
        assert_close(tails[i], model.score_hrt(rows)[:, 0], rtol=1e-4, atol=1e-4)
    relations = model.score_r(triples[:, [0, 2]])
    assert relations.shape == (5, 3)
    own = relations.gather(1, triples[:, 1:2])
    assert_close(own, model.score_hrt(triples), rtol=1e-4, atol=1e-4)
    if name == "conve" and not graph.create_inverse_triples:
        with pytest.raises(NotImplementedError):
            model.score_h(triples[:, 1:])
        return
    heads = model.score_h(triples[:, 1:])
    if graph.create_inverse_triples:
        asked = torch.stack([triples[:, 2], triples[:, 1] + 3], 1)
        assert_close(heads, model.score_t(asked))
    else:
        own = heads.gather(1, triples[:, :1])
        assert_close(own, model.score_hrt(triples), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["complex", "rotate", "boxe", "rescal", "tucker"])
def test_one_seed_gives_one_model_for_any_number_of_shards(graph, name):
    whole, batch = make(graph, name), graph.mapped_triples
    for n_shard in (2, 4, 7):
        assert_close(make(graph, name, n_shard).score_hrt(batch), whole.score_hrt(batch))


def test_a_reset_draws_anew_and_constrains(graph):
    options = dict(embedding_dim=6, constrainer="normalize")
    model = KGEModel(triples_factory=graph, entity_representations_kwargs=options, random_seed=0)
    before = model.score_fn.entity_embedding.clone()
    parameter = model.score_fn.entity_embedding
    after = model.reset_parameters_().score_fn.entity_embedding
    assert after is parameter and not torch.equal(after, before)
    assert_close(after.norm(dim=-1), torch.ones(1, 7))


def test_a_score_function_that_is_made_already_is_taken_as_it_is(graph):
    inverse = graph.create_inverse_triples
    made = DistMult(False, Sharding.create(7, 2, 0), 3, 4, inverse_relations=inverse)
    model = KGEModel(triples_factory=graph, interaction=made)
    assert model.score_fn is made
    with pytest.raises(ConfigError, match="cannot be drawn anew"):
        model.reset_parameters_()
    other = DistMult(False, Sharding.create(8, 2, 0), 3, 4)
    with pytest.raises(ConfigError, match="the score function is of 8 entities"):
        KGEModel(triples_factory=graph, interaction=other)
    with pytest.raises(ConfigError, match="DistMult comes with its tables"):
        KGEModel(triples_factory=graph, interaction=made, interaction_kwargs=dict(x=1))


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, PairwiseMarginLoss), ("MarginRanking", PairwiseMarginLoss),
        ("InfoNCELoss", InfoNCELoss), ("bce_with_logits", BCEWithLogitsLoss),
        (BCEWithLogitsLoss, BCEWithLogitsLoss),
    ],
)  # fmt: skip
def test_losses_by_name_and_class(graph, given, expected):
    assert type(make(graph, loss=given).loss) is expected


def test_parts_that_do_not_fit_are_refused(graph):
    with pytest.raises(ConfigError, match="the loss is made already"):
        make(graph, loss=InfoNCELoss(), loss_kwargs=dict(margin=1.0))
    with pytest.raises(ConfigError, match="loss 'logsigmoid' is of sampled negatives alone"):
        make(graph, loss="logsigmoid")
    with pytest.raises(ConfigError, match="relation rows of this interaction are 12 wide"):
        make(graph, "simple", relation_representations_kwargs=dict(embedding_dim=6))
    with pytest.raises(ConfigError, match="entity rows of this interaction are real"):
        KGEModel(triples_factory=graph, entity_representations_kwargs=dict(dtype=torch.complex64))
    with pytest.raises(ConfigError, match=r"interaction_kwargs has \['gamma'\]"):
        KGEModel(triples_factory=graph, interaction="transe", interaction_kwargs=dict(gamma=1))
    with pytest.raises(ConfigError, match=r"\['max_id'\] of representations follow from the graph"):
        KGEModel(triples_factory=graph, entity_representations_kwargs=dict(max_id=7))
    with pytest.raises(ConfigError, match="shape 4 and embedding_dim 5 are different widths"):
        KGEModel(
            triples_factory=graph, entity_representations_kwargs=dict(shape=4, embedding_dim=5)
        )
    with pytest.raises(IndexError, match=r"entity IDs run from -1 to 0, expected \[0, 7\)"):
        make(graph).score_hrt(torch.tensor([[0, 0, 2], [-1, 0, 2]]))
    with pytest.raises(ConfigError, match="regularizer_kwargs .* are for a regularizer by name"):
        make(graph, regularizer=DuraRegularizer(0.1), regularizer_kwargs=dict(weight=1))


@pytest.mark.parametrize("shape", [6, (6,), (2, 3)])
def test_the_width_may_be_given_as_a_shape(graph, shape):
    model = KGEModel(triples_factory=graph, entity_representations_kwargs=dict(shape=shape))
    assert model.score_fn.entity_embedding.shape[-1] == 6
    assert model.score_hrt(graph.mapped_triples).shape == (40, 1)


def test_relations_are_of_the_entities_type(graph):
    options = dict(embedding_dim=6, dtype=torch.bfloat16)
    model = KGEModel(triples_factory=graph, entity_representations_kwargs=options)
    assert model.score_fn.relation_embedding.dtype == torch.bfloat16
    assert model.score_t(graph.mapped_triples[:, :2]).dtype == torch.bfloat16


def test_predictions_are_scores_in_evaluation_mode(graph):
    model = KGEModel(
        triples_factory=graph, entity_representations_kwargs=dict(embedding_dim=6, dropout=0.5)
    )
    batch = graph.mapped_triples[:4]
    assert model.training and not torch.equal(model.score_hrt(batch), model.score_hrt(batch))
    first = model.predict("hrt", batch)
    assert torch.equal(first, model.predict("hrt", batch)) and not first.requires_grad
    assert model.training
