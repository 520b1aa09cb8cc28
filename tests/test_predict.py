"""Predictions are those of a sorted list of all scores, whatever the tiles, shards and ties."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support import SHARDS, by_entity, make_score, random_triples

from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.predict import Predictor
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import Sharding
from besskge_core.vocabulary import Vocabulary

N_ENTITY, N_RELATION = 37, 4


def model(graph, n_shard=4, name="complex", inverse=False, **options):
    sharding = Sharding.create(graph.n_entity, n_shard, seed=7)
    return make_score(name, sharding, graph.n_relation_type, inverse=inverse, **options)


def all_scores(score_fn, side, entity, relation):
    """(n_entity,), one triple at a time."""
    table = by_entity(score_fn)
    given = table[entity].expand_as(table)
    if side == "head" and score_fn.inverse_relations:
        side, relation = "tail", relation + score_fn.n_relation_type
    r = torch.full((len(table),), relation)
    h, t = (given, table) if side == "tail" else (table, given)
    with torch.no_grad():
        return score_fn.score_triple(h, r, t).double().numpy()


def best(scores, k, without=()):
    scores = np.where(np.isnan(scores), -np.inf, scores)
    scores[list(without)] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return np.where(scores[order] == -np.inf, -1, order)


def known_answers(graph, side, entity, relation):
    triples = np.concatenate(list(graph.triples.values()))
    given, answer = (0, 2) if side == "tail" else (2, 0)
    hit = (triples[:, given] == entity) & (triples[:, 1] == relation)
    return triples[hit, answer]


@pytest.fixture
def queries(rng):
    return rng.integers(N_ENTITY, size=90), rng.integers(N_RELATION, size=90)


# -- the best k ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["head", "tail"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", sorted(SCORE_FUNCTIONS))
def test_answers_are_the_best_of_all_entities(graph, queries, name, inverse, side):
    inverse = inverse or name == "conve"  # which answers for tails only
    score_fn = model(graph, name=name, inverse=inverse)
    found = Predictor(score_fn, graph).top_k(side, *queries, k=5)
    for entity, relation, ids, scores in zip(*queries, found.id, found.score):
        expected = all_scores(score_fn, side, entity, relation)
        np.testing.assert_array_equal(ids, best(expected, 5))
        np.testing.assert_allclose(scores, expected[ids], rtol=1e-5)


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("max_scores", [1, 64 * 3, 10**6])
def test_neither_tiles_nor_shards_change_an_answer(graph, queries, n_shard, max_scores):
    reference = Predictor(model(graph, 1), graph).top_k("tail", *queries, k=7)
    score_fn = model(graph, n_shard)
    found = Predictor(score_fn, graph, max_scores=max_scores).top_k("tail", *queries, k=7)
    np.testing.assert_array_equal(found.id, reference.id)
    np.testing.assert_allclose(found.score, reference.score, rtol=1e-6)


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("max_scores", [1, 64 * 3, 10**6])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_equal_scores_are_ordered_by_entity_id(graph, n_shard, max_scores, level):
    score_fn = model(graph, n_shard, "distmult")
    with torch.no_grad():
        table = torch.full((N_ENTITY, 6), level, dtype=torch.float64)
        table[[20, 30]] += 1.0  # two that stand out, and are equal
        score_fn.relation_embedding.fill_(1.0)
        sharding = score_fn.sharding
        score_fn.entity_embedding.flatten(end_dim=1)[sharding.flat_row] = table
    predictor = Predictor(score_fn, graph, max_scores=max_scores)
    assert predictor.top_k("tail", [20], [0], k=6).id.tolist() == [[20, 30, 0, 1, 2, 3]]
    assert predictor.top_relations([3], [4], k=3).id.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("side", ["head", "tail"])
@pytest.mark.parametrize("max_scores", [200, 10**6])
def test_known_answers_are_left_out(graph, queries, side, max_scores):
    score_fn = model(graph)
    predictor = Predictor(score_fn, graph, max_scores=max_scores)
    found = predictor.top_k(side, *queries, k=5, filter_known=True)
    for entity, relation, ids in zip(*queries, found.id):
        known = known_answers(graph, side, entity, relation)
        np.testing.assert_array_equal(
            ids, best(all_scores(score_fn, side, entity, relation), 5, known)
        )


def test_only_the_triples_given_as_known_are_left_out(graph):
    score_fn = model(graph)
    known = KnownTriples([np.array([[3, 1, 5]])], N_ENTITY, N_RELATION)
    found = Predictor(score_fn, graph, known).top_k("tail", [3], [1], N_ENTITY, filter_known=True)
    assert sorted(found.id[0]) == [-1, *(i for i in range(N_ENTITY) if i != 5)]


def test_candidates_restrict_the_answers(graph, queries):
    score_fn, allowed = model(graph), [2, 30, 9]
    found = Predictor(score_fn, graph).top_k("tail", *queries, k=5, candidates=allowed)
    for entity, relation, ids in zip(*queries, found.id):
        others = np.setdiff1d(np.arange(N_ENTITY), allowed)
        expected = best(all_scores(score_fn, "tail", entity, relation), 5, others)
        np.testing.assert_array_equal(ids, expected)
        assert ids[3:].tolist() == [-1, -1]


@pytest.mark.parametrize("n_shard", SHARDS)
def test_more_answers_than_entities_are_all_entities_and_no_padding(graph, n_shard):
    found = Predictor(model(graph, n_shard), graph).top_k("head", [1], [2], k=1000)
    assert sorted(found.id[0]) == list(range(N_ENTITY))


def test_what_is_no_number_is_no_answer(graph):
    score_fn = model(graph, 2)
    with torch.no_grad():
        rows = torch.from_numpy(score_fn.sharding.flat_row[[4, 6]])
        score_fn.entity_embedding.flatten(end_dim=1)[rows] = torch.nan
    predictor = Predictor(score_fn, graph)
    found = predictor.top_k("tail", [0], [0], k=N_ENTITY)
    assert sorted(found.id[0]) == [-1, -1, *(i for i in range(N_ENTITY) if i not in (4, 6))]
    assert predictor.tails(4, 0) == []
    assert predictor.relations(4, 0) == []


def test_no_queries_have_no_answers(graph):
    predictor = Predictor(model(graph), graph)
    assert predictor.top_k("tail", [], [], k=3).id.shape == (0, 3)
    assert predictor.top_relations([], [], k=3).id.shape == (0, 3)
    assert predictor.answers([]) == []


@pytest.mark.parametrize("filter_known", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_relations_are_the_best_of_all_without_inverse_ones(graph, inverse, filter_known):
    score_fn = model(graph, inverse=inverse)
    table, triples = by_entity(score_fn), np.concatenate(list(graph.triples.values()))
    found = Predictor(score_fn, graph).top_relations(
        triples[:20, 0], triples[:20, 2], k=9, filter_known=filter_known
    )
    assert found.id.shape == (20, N_RELATION)
    for (h, _, t), ids in zip(triples[:20], found.id):
        rows = table[[h]].expand(N_RELATION, -1), table[[t]].expand(N_RELATION, -1)
        with torch.no_grad():
            scores = score_fn.score_triple(rows[0], torch.arange(N_RELATION), rows[1]).numpy()
        known = triples[(triples[:, 0] == h) & (triples[:, 2] == t), 1] if filter_known else ()
        np.testing.assert_array_equal(ids, best(scores, 9, known))


def test_the_model_is_left_as_it_was(graph):
    score_fn = model(graph).train()
    before = score_fn.entity_embedding.clone()
    Predictor(score_fn, graph).tails("e1", "r1", filter_known=True)
    assert score_fn.training
    assert torch.equal(before, score_fn.entity_embedding)
    assert score_fn.entity_embedding.grad is None


# -- by label --------------------------------------------------------------------------------------


def test_answers_have_labels_ranks_and_marks(graph):
    h, r, t = graph.triples["valid"][0].tolist()
    score_fn = model(graph)
    answers = Predictor(score_fn, graph).tails(f"e{h}", f"r{r}", k=N_ENTITY)
    scores = all_scores(score_fn, "tail", h, r)
    assert [a.id for a in answers] == best(scores, N_ENTITY).tolist()
    assert [a.rank for a in answers] == list(range(1, N_ENTITY + 1))
    assert [a.label for a in answers] == [f"e{a.id}" for a in answers]
    np.testing.assert_allclose([a.score for a in answers], [scores[a.id] for a in answers], 1e-5)
    for answer in answers:
        parts = [p for p, rows in graph.triples.items() if [h, r, answer.id] in rows.tolist()]
        assert answer.known == next(iter(parts), None)
    assert "valid" in [a.known for a in answers]
    with pytest.raises(dataclasses.FrozenInstanceError):
        answers[0].rank = 2


def test_each_side_can_be_asked_for_at_once(graph):
    predictor = Predictor(model(graph), graph)
    asked = [("e1", "r2", None), (None, "r0", "e5"), ("e4", None, "e5"), ("e3", 1, None)]
    tails, heads, relations, other = predictor.answers(asked, k=3)
    assert tails == predictor.tails("e1", "r2", 3)
    assert heads == predictor.heads("r0", "e5", 3)
    assert relations == predictor.relations("e4", "e5", 3)
    assert other == predictor.tails(3, "r1", 3)
    assert {a.label for a in relations} < {"r0", "r1", "r2", "r3"}


def test_known_answers_can_be_left_out_by_label(graph):
    h, r, t = graph.triples["train"][0].tolist()
    predictor = Predictor(model(graph), graph)
    answers = [
        *predictor.tails(h, r, N_ENTITY, filter_known=True),
        *predictor.heads(r, t, N_ENTITY, filter_known=True),
        *predictor.relations(h, t, N_ENTITY, filter_known=True),
    ]
    assert {answer.known for answer in answers} == {None}


def test_marks_work_where_ids_do_not_fit_one_number():
    n_entity = 2**31 - 1
    graph = KGDataset(n_entity, 9, {"train": [[n_entity - 1, 8, 0]], "test": [[0, 0, 1]]},
                      {"train": [0], "test": [0]})  # fmt: skip
    predictor = Predictor.__new__(Predictor)
    predictor.dataset = graph
    triples = np.array([[0, 0, 1], [n_entity - 1, 8, 0], [0, 8, 0], [n_entity - 1, 8, 1]])
    assert predictor.known_part(triples) == ["test", "train", None, None]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: p.tails("e1", "r1", k=0), "k must be at least 1, got 0"),
        (lambda p: p.top_k("both", [0], [0]), r"unknown side 'both'; expected one of \('head'"),
        (
            lambda p: p.top_k("tail", [37], [0]),
            r"entity IDs run from 37 to 37, expected .* \[0, 37",
        ),
        (lambda p: p.top_k("tail", [0], [-1]), r"relation IDs run from -1 to -1, .* \[0, 4\)"),
        (lambda p: p.top_k("tail", [0, 1], [0]), "got 2 entity IDs and 1 relation IDs"),
        (lambda p: p.top_relations([0], [99]), r"tail IDs run from 99 to 99"),
        (lambda p: p.top_k("tail", [0], [0], candidates=[40]), "candidate IDs run from 40 to 40"),
        (lambda p: p.answers([("e1", None, None)]), "two of head, relation and tail, got 1"),
        (lambda p: p.answers([("e1", "r1", "e2")]), "two of head, relation and tail, got 3"),
        (lambda p: p.tails("e99", "r1"), r"unknown entity 'e99'; did you mean 'e9' or"),
        (lambda p: p.tails("e9", "likes"), "unknown relation 'likes'$"),
    ],
)
def test_a_bad_query_is_refused(graph, ask, message):
    with pytest.raises(ConfigError, match=message):
        ask(Predictor(model(graph), graph))


def test_the_graph_must_be_the_models(graph):
    other = KGDataset.from_triples(random_triples(9, 2, 20, seed=0))
    with pytest.raises(ConfigError, match="37 entities and 4 relations, the data set 9 and 2"):
        Predictor(model(graph), other)


# -- labels ----------------------------------------------------------------------------------------

NAMES = Vocabulary("entity", 4, ["Q1", "Q2", "Q3", "Berlin"], ["Berlin", "Bonn", "Bonn", "Kiel"])


@pytest.mark.parametrize(
    ("label", "expected"), [("Q1", 0), ("Kiel", 3), ("Berlin", 3), (2, 2)],
    ids=["identifier", "name", "identifier before name", "ID"],
)  # fmt: skip
def test_an_identifier_comes_before_a_name(label, expected):
    assert NAMES.id(label) == expected


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("Bonn", "entity 'Bonn' is the name of 2: Q2, Q3; use one of these identifiers"),
        ("berlin", "unknown entity 'berlin'; did you mean 'Berlin'"),
        ("Bon", "unknown entity 'Bon'; did you mean 'Bonn'"),
        ("iel", "unknown entity 'iel'; did you mean 'Kiel'"),
        ("", "unknown entity ''$"),
        ("0", "unknown entity '0'$"),
        (4, r"entity ID 4 is not in \[0, 4\)"),
        (-1, r"entity ID -1 is not in \[0, 4\)"),
    ],
)
def test_a_label_that_means_nobody_or_several_is_refused(label, message):
    with pytest.raises(ConfigError, match=message):
        NAMES.id(label)


def test_many_of_one_name_are_not_all_listed():
    crowd = Vocabulary("entity", 13, [f"p{i}" for i in range(13)], ["Smith"] * 13)
    with pytest.raises(ConfigError, match=r"name of 13: p0, .*, p9 and 3 more; use one"):
        crowd.id("Smith")


def test_without_labels_an_id_is_its_own():
    plain = Vocabulary("relation", 3)
    assert (plain.id("2"), plain.label(2), plain.name(2)) == (2, "2", None)
    with pytest.raises(ConfigError, match=r"unknown relation '3'; expected an ID in \[0, 3\)"):
        plain.id("3")


def test_a_large_vocabulary_is_searched_among_what_begins_alike():
    large = Vocabulary("entity", 30_000, [f"{'ab'[i % 2]}{i}x" for i in range(30_000)])
    with pytest.raises(ConfigError, match="did you mean 'b12345x'"):
        large.id("B12345X")
    with pytest.raises(ConfigError, match="did you mean 'b123x'"):
        large.id("b123xx")
