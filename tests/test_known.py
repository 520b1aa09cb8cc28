"""Known answers are found by query, each once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besskge_core import known as known_module
from besskge_core.known import KnownTriples

TRIPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 6)), max_size=40)


def array(rows):
    return np.array(rows, dtype=np.int32).reshape(-1, 3)


@given(TRIPLES, TRIPLES, st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=9))
def test_answers_are_those_of_looking_through_all_triples(first, second, queries):
    known = KnownTriples([array(first), array(second)], 7, 3)
    entity, relation = np.array(queries, dtype=np.int64).reshape(-1, 2).T
    triples = sorted(set(first + second))
    tails = [(q, t) for q, (e, k) in enumerate(queries) for h, r, t in triples if (h, r) == (e, k)]
    heads = [(q, h) for q, (e, k) in enumerate(queries) for h, r, t in triples if (t, r) == (e, k)]
    assert list(zip(*(x.tolist() for x in known.tails(entity, relation)))) == tails
    assert list(zip(*(x.tolist() for x in known.heads(entity, relation)))) == heads


def test_all_parts_of_a_graph_are_known(graph):
    known = KnownTriples.of(graph)
    for part in ("train", "valid", "test"):
        head, relation, tail = graph.triples[part].T
        query, entity = known.tails(head, relation)
        for q, answer in enumerate(tail):
            assert answer in entity[query == q]


def test_relations_do_not_run_into_each_other():
    # Keys that a table of 5 entities would confuse, did it count 4.
    known = KnownTriples([array([(4, 0, 1), (0, 1, 2)])], 5, 2)
    assert known.tails(np.array([4]), np.array([0]))[1].tolist() == [1]
    assert known.tails(np.array([0]), np.array([1]))[1].tolist() == [2]


@pytest.mark.parametrize("n_entity", [2**31 - 1])
def test_keys_of_the_largest_graphs_do_not_overflow(n_entity):
    triples = array([(n_entity - 1, 1000, 7), (n_entity - 2, 1000, 8)])
    known = KnownTriples([triples], n_entity, 1001)
    query, entity = known.tails(triples[:, 0], triples[:, 1])
    assert query.tolist() == [0, 1] and entity.tolist() == [7, 8]


def test_no_queries_have_no_answers(graph):
    none = np.empty(0, dtype=np.int64)
    query, entity = KnownTriples.of(graph).heads(none, none)
    assert len(query) == len(entity) == 0


@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_what_answers_some_triples_is_enough_to_filter_their_ranking(graph, monkeypatch, piece):
    monkeypatch.setattr(known_module, "PIECE", piece)
    asked = graph.triples["test"][:9]
    every, enough = KnownTriples.of(graph), KnownTriples.answering(graph, [asked[:4], asked[4:]])
    head, relation, tail = asked.T
    for side, entity in (("tail", head), ("head", tail)):
        for a, b in zip(
            every.answers(side, entity, relation), enough.answers(side, entity, relation)
        ):
            assert np.array_equal(a, b)
    assert len(enough._tails[0]) < len(every._tails[0])  # but not all is kept


def test_nothing_asked_is_nothing_known(graph):
    assert len(KnownTriples.answering(graph, [])._tails[0]) == 0
