"""`family` obeys the table in its docstring, and what is held out follows from train."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from besskge_core.catalogue.family import CHUNK, RELATIONS, A, family
from besskge_core.errors import ConfigError

SYMMETRIC = ("spouse_of", "sibling_of", "borders")
INVERSE = (("parent_of", "child_of"), ("works_for", "employs"))
ONE_TAIL = ("spouse_of", "born_in", "lives_in", "citizen_of", "works_for", "capital_of")
ONE_HEAD = ("spouse_of", "employs", "capital_of")
TYPES = {
    **dict.fromkeys(RELATIONS[:5], ("person", "person")),
    **dict.fromkeys(("born_in", "lives_in", "citizen_of"), ("person", "place")),
    "works_for": ("person", "employer"),
    "employs": ("employer", "person"),
    "headquartered_in": ("employer", "place"),
    **dict.fromkeys(("located_in", "capital_of", "borders"), ("place", "place")),
}


@pytest.fixture(scope="module")
def graph():
    return family(1000, seed=3)


def pairs_of(triples):
    """Relation to the set of its (head, tail)."""
    pairs = {name: set() for name in RELATIONS}
    for h, r, t in triples.tolist():
        pairs[RELATIONS[r]].add((h, t))
    return pairs


def all_triples(graph):
    return np.concatenate(list(graph.triples.values()))


def joined(first, second):
    """All (a, c) with (a, b) in the first and (b, c) in the second."""
    after = {}
    for b, c in second:
        after.setdefault(b, set()).add(c)
    return {(a, c) for a, b in first for c in after.get(b, ())}


def turned(pairs):
    return {(b, a) for a, b in pairs}


def deducible(train):
    """Relation to what follows from train, by the rules of the table."""
    parents = train["parent_of"] | turned(train["child_of"])
    grandparents = joined(parents, parents)
    relatives = train["spouse_of"] | turned(train["spouse_of"]) | turned(parents)
    return {
        "parent_of": turned(train["child_of"]),
        "child_of": turned(train["parent_of"]),
        "works_for": turned(train["employs"]),
        "employs": turned(train["works_for"]),
        **{name: turned(train[name]) for name in SYMMETRIC},
        "ancestor_of": parents | grandparents | joined(grandparents, parents),
        "born_in": joined(turned(parents), train["lives_in"]),
        "lives_in": joined(relatives, train["lives_in"]),
        "citizen_of": joined(train["lives_in"], train["located_in"]),
        "located_in": joined(train["located_in"], train["located_in"]),
    }


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("n_person, seed", [(64, 0), (640, 1), (2000, 2)])
def test_each_held_out_triple_follows_from_train(n_person, seed, part):
    graph = family(n_person, seed)
    follows = deducible(pairs_of(graph.triples["train"]))
    for name, pairs in pairs_of(graph.triples[part]).items():
        assert pairs <= follows.get(name, set())


def test_train_knows_every_entity_and_relation_and_no_triple_is_repeated(graph):
    summary = graph.summary()
    triples = graph.triples["train"]
    assert set(triples[:, [0, 2]].ravel().tolist()) == set(range(graph.n_entity))
    assert set(triples[:, 1].tolist()) == set(range(len(RELATIONS)))
    assert len(np.unique(all_triples(graph), axis=0)) == sum(summary["n_triple"].values())


def test_about_a_tenth_is_held_out_and_it_has_most_relations(graph):
    sizes = graph.summary()["n_triple"]
    share = {part: n / sum(sizes.values()) for part, n in sizes.items()}
    assert 0.04 < share["valid"] < 0.07
    assert 0.04 < share["test"] < 0.07
    assert len(np.unique(graph.triples["test"][:, 1])) >= 10


def test_the_default_is_small(graph):
    sizes = family().summary()["n_triple"]
    assert 25_000 < sum(sizes.values()) < 32_000


@pytest.mark.parametrize("relation", SYMMETRIC)
def test_symmetric_relations_are(graph, relation):
    pairs = pairs_of(all_triples(graph))[relation]
    assert pairs == turned(pairs)
    assert all(a != b for a, b in pairs)


@pytest.mark.parametrize("relation, inverse", INVERSE)
def test_inverse_relations_are(graph, relation, inverse):
    pairs = pairs_of(all_triples(graph))
    assert pairs[relation] == turned(pairs[inverse])


@pytest.mark.parametrize("relation", ONE_TAIL)
def test_a_head_has_one_tail_at_most(graph, relation):
    pairs = pairs_of(all_triples(graph))[relation]
    assert len({h for h, _ in pairs}) == len(pairs) > 0


@pytest.mark.parametrize("relation", ONE_HEAD)
def test_a_tail_has_one_head_at_most(graph, relation):
    pairs = pairs_of(all_triples(graph))[relation]
    assert len({t for _, t in pairs}) == len(pairs) > 0


def test_families_are_possible(graph):
    pairs = pairs_of(all_triples(graph))
    n_parent = np.bincount([child for _, child in pairs["parent_of"]], minlength=1)
    assert set(n_parent.tolist()) <= {0, 2}
    assert not pairs["spouse_of"] & pairs["sibling_of"]
    assert not pairs["spouse_of"] & pairs["ancestor_of"]
    siblings = joined(pairs["child_of"], pairs["parent_of"])
    assert pairs["sibling_of"] == {(a, b) for a, b in siblings if a != b}
    assert pairs["ancestor_of"] == deducible(pairs)["ancestor_of"]


def test_heads_and_tails_have_the_types_of_the_table(graph):
    names = list(graph.type_offsets)
    for part, types in graph.ht_types.items():
        for (_, r, _), (head, tail) in zip(graph.triples[part].tolist(), types.tolist()):
            assert (names[head], names[tail]) == TYPES[RELATIONS[r]]


def test_every_entity_has_its_own_name_also_across_chunks():
    graph = family(A * (2 * CHUNK + 1))
    assert len(set(graph.entity_dict)) == graph.n_entity
    assert graph.type_offsets["place"] == A * (2 * CHUNK + 1)


def test_people_come_in_whole_clans():
    assert family(1).type_offsets["place"] == family(64).type_offsets["place"] == 64
    assert family(65).type_offsets["place"] == 128


def digest(graph):
    content = hashlib.sha256()
    for part, triples in graph.triples.items():
        content.update(part.encode() + triples.tobytes())
    content.update("\n".join(graph.entity_dict).encode())
    return content.hexdigest()[:16]


def test_a_graph_is_the_same_everywhere():
    assert digest(family(1000, seed=3, noise=0.1)) == "61c96a97acb90d08"


def test_another_seed_gives_another_graph():
    assert digest(family(640, 1)) == digest(family(640, 1)) != digest(family(640, 2))


@pytest.mark.parametrize("n_person", [64, 5000])
def test_noise_is_the_share_of_false_triples_in_train_and_nowhere_else(n_person):
    clean, noisy = family(n_person), family(n_person, noise=0.25)
    for part in ("valid", "test"):
        np.testing.assert_array_equal(clean.triples[part], noisy.triples[part])
    true = {tuple(row) for row in all_triples(clean).tolist()}
    train = {tuple(row) for row in noisy.triples["train"].tolist()}
    assert len(train) == len(noisy.triples["train"])
    assert {tuple(row) for row in clean.triples["train"].tolist()} == train & true
    assert len(train - true) / len(train) == pytest.approx(0.25, abs=0.01)
    types = noisy.ht_types["train"].tolist()
    names = list(noisy.type_offsets)
    for (_, r, _), (head, tail) in zip(noisy.triples["train"].tolist(), types):
        assert (names[head], names[tail]) == TYPES[RELATIONS[r]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_person": 0}, "n_person is 0, expected at least 1"),
        ({"n_person": 2**31}, "n_person is 2147483648, too many: entity IDs are int32"),
        ({"seed": -1}, r"seed is -1, expected 0 to 2\*\*64 - 1"),
        ({"noise": 0.6}, "noise is 0.6, expected 0 <= noise <= 0.5"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        family(**options)
