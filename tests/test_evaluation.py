"""Streamed ranks are those of sorting all scores, whatever the tiles and the shards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import SHARDS, by_entity, make_score

from besskge_core.all_entities import AllEntityScorer
from besskge_core.errors import ConfigError
from besskge_core.evaluation import METRICS, Ranking, rank_candidates, rank_triples
from besskge_core.known import KnownTriples
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import Sharding

#: Score functions that are exact on small integers; others, with their cosines, roots and norms,
#: make no exact ties.
EXACT = ["complex", "cp", "distmult", "lineare", "rescal", "simple", "transe"]

#: Scores held at a time: one entity a tile, three, and everything at once.
TILES = [1, 200, 2**25]


def integer_model(graph, n_shard=4, name="distmult", **options):
    """Few distinct entries, so that many entities tie, and sums are exact."""
    generator = torch.Generator().manual_seed(1)

    def integers(table):
        return table.copy_(torch.randint(-2, 3, table.shape, generator=generator))

    sharding = Sharding.create(graph.n_entity, n_shard, seed=5)
    return make_score(name, sharding, graph.n_relation_type, dim=3, fill=integers, **options)


def all_scores(model, triples, side):
    """numpy (n_triple, n_entity), one triple at a time."""
    table, n_entity = by_entity(model), model.sharding.n_entity
    h, r, t = (torch.from_numpy(x).long() for x in triples.T)
    every = torch.arange(n_entity).repeat(len(triples))
    h, r, t = (x.repeat_interleave(n_entity) for x in (h, r, t))
    if side == "tail":
        scores = model.score_triple(table[h], r, table[every])
    elif model.inverse_relations:
        scores = model.score_triple(table[t], r + model.n_relation_type, table[every])
    else:
        scores = model.score_triple(table[every], r, table[t])
    return scores.detach().view(-1, n_entity).numpy()


def brute_force(model, triples, known, side):
    """better, equal, n_candidate of each triple, by comparing with every entity."""
    rows = []
    known = set() if known is None else set(map(tuple, known.tolist()))
    for (h, r, t), scores in zip(triples.tolist(), all_scores(model, triples, side)):
        answer = t if side == "tail" else h
        rivals = [
            e for e in range(len(scores))
            if e != answer and ((h, r, e) if side == "tail" else (e, r, t)) not in known
        ]  # fmt: skip
        better = (scores[rivals] > scores[answer]).sum()
        rows.append((better, (scores[rivals] == scores[answer]).sum(), len(rivals) + 1))
    return np.array(rows).T


def check(graph, model, max_scores, filtered=True):
    triples = np.concatenate([graph.triples["test"], graph.triples["train"][:60]])
    known = np.concatenate(list(graph.triples.values())) if filtered else None
    found = rank_triples(
        model, triples, KnownTriples.of(graph) if filtered else None, max_scores=max_scores
    )
    for side in ("head", "tail"):
        better, equal, n_candidate = brute_force(model, triples, known, side)
        assert found.better[side].tolist() == better.tolist()
        assert found.equal[side].tolist() == equal.tolist()
        assert found.n_candidate[side].tolist() == n_candidate.tolist()
        assert (equal > 0).any() and (better > 0).any()
    assert not filtered or (n_candidate < graph.n_entity).any()


# -- ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_scores", TILES)
@pytest.mark.parametrize("n_shard", SHARDS)
def test_filtered_ranks_are_those_of_comparing_with_every_entity(graph, n_shard, max_scores):
    check(graph, integer_model(graph, n_shard), max_scores)


@pytest.mark.parametrize("max_scores", TILES)
@pytest.mark.parametrize("name", EXACT)
def test_ranks_are_exact_to_the_last_tie(graph, name, max_scores):
    check(graph, integer_model(graph, name=name), max_scores)


@pytest.mark.parametrize("name", sorted(SCORE_FUNCTIONS))
def test_every_score_function_ranks_in_the_order_of_its_scores(graph, name):
    one_sided = name == "conve"
    sharding = Sharding.create(graph.n_entity, 4, seed=5)
    model = make_score(name, sharding, graph.n_relation_type, inverse=one_sided).eval()
    triples = graph.triples["test"]
    found = rank_triples(model, triples, max_scores=300)
    for side in ("head", "tail"):
        better, _, _ = brute_force(model, triples, None, side)
        assert found.better[side].tolist() == better.tolist()


def test_a_model_without_queries_for_heads_says_what_it_needs(graph):
    sharding = Sharding.create(graph.n_entity, 4, seed=5)
    model = make_score("conve", sharding, graph.n_relation_type, inverse=False)
    with pytest.raises(ConfigError, match="ConvE cannot score heads.*with inverse relations"):
        rank_triples(model, graph.triples["test"])
    with pytest.raises(ConfigError, match="ConvE cannot score heads.*with inverse relations"):
        rank_candidates(model, graph.triples["test"], {"head": np.zeros((1, 3), int)})


def test_raw_ranks_take_all_entities(graph):
    check(graph, integer_model(graph), 200, filtered=False)


@pytest.mark.parametrize("max_scores", TILES)
def test_inverse_relations_answer_for_heads(graph, max_scores):
    check(graph, integer_model(graph, inverse=True), max_scores)


@pytest.mark.parametrize("name", EXACT)
def test_tiles_do_not_change_a_rank(graph, name):
    model = integer_model(graph, name=name)
    known, triples = KnownTriples.of(graph), graph.triples["test"]
    few, many, whole = (rank_triples(model, triples, known, max_scores=n) for n in TILES)
    for side in ("head", "tail"):
        assert (few.better[side] == whole.better[side]).all()
        assert (many.equal[side] == whole.equal[side]).all()


def test_duplicated_known_triples_filter_once(graph):
    model, triples = integer_model(graph), graph.triples["test"]
    once = rank_triples(model, triples, KnownTriples([triples], 37, 4))
    twice = rank_triples(model, triples, KnownTriples([triples, triples], 37, 4))
    assert (once.ranks() == twice.ranks()).all()
    assert (once.n_candidate["tail"] == twice.n_candidate["tail"]).all()


def test_one_side_alone_may_be_ranked(graph):
    model, triples = integer_model(graph), graph.triples["test"]
    both, tails = rank_triples(model, triples), rank_triples(model, triples, sides=["tail"])
    assert (tails.ranks() == both.ranks(side="tail")).all()
    with pytest.raises(
        ConfigError, match=r"side 'head' was not ranked; expected 'both' or \['tail"
    ):
        tails.ranks(side="head")


def test_heads_come_before_tails(graph):
    found = rank_triples(integer_model(graph), graph.triples["test"])
    joined = np.concatenate([found.ranks(side="head"), found.ranks(side="tail")])
    assert (found.ranks(side="both") == joined).all() and len(joined) == 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_true_entity_ties_with_itself_in_low_precision(graph, dtype):
    model = integer_model(graph, name="complex").to(dtype)
    known, triples = KnownTriples.of(graph), graph.triples["test"]
    expected = rank_triples(integer_model(graph, name="complex").to(dtype), triples, known)
    found = rank_triples(model, triples, known, max_scores=1)
    for side in ("head", "tail"):
        assert (found.better[side] >= 0).all() and (found.equal[side] >= 0).all()
        assert (found.better[side] == expected.better[side]).all()


# -- models without merit ----------------------------------------------------------------------


@pytest.mark.parametrize("n_shard", SHARDS)
def test_a_constant_model_has_the_rank_of_chance(graph, n_shard):
    model = integer_model(graph, n_shard, entity_initializer=[torch.nn.init.zeros_])
    known = KnownTriples.of(graph)
    found = rank_triples(model, graph.triples["test"], known, max_scores=200)
    n_candidate = np.concatenate([found.n_candidate["head"], found.n_candidate["tail"]])
    assert (found.ranks() == (n_candidate + 1) / 2).all()
    assert found.metrics()["amri"] == pytest.approx(0.0, abs=1e-12)
    assert (found.ranks("optimistic") == 1).all()
    assert (found.ranks("pessimistic") == n_candidate).all()


@pytest.mark.parametrize("mode", ["optimistic", "realistic", "pessimistic"])
@pytest.mark.parametrize("max_scores", TILES)
def test_a_diverged_model_ranks_last(graph, mode, max_scores):
    model = integer_model(graph, entity_initializer=[lambda t: t.fill_(float("nan"))])
    known = KnownTriples.of(graph)
    found = rank_triples(model, graph.triples["test"], known, max_scores=max_scores)
    n_candidate = np.concatenate([found.n_candidate["head"], found.n_candidate["tail"]])
    assert (found.ranks(mode) == n_candidate).all()


def test_an_entity_that_diverged_ranks_last_and_beats_none(graph):
    model, answer = integer_model(graph), 5
    row = model.sharding.flat_row[answer]
    with torch.no_grad():
        model.entity_embedding.flatten(end_dim=1)[row] = float("nan")
    triples = graph.triples["train"]
    triples = triples[triples[:, 0] != answer]
    found = rank_triples(model, triples, sides=["tail"])
    lost = triples[:, 2] == answer
    assert (found.ranks()[lost] == 37).all() and (found.ranks()[~lost] < 37).any()
    better, equal, _ = brute_force(model, triples[~lost], None, "tail")
    assert (found.better["tail"][~lost] == better).all()


# -- metrics -----------------------------------------------------------------------------------


def ranking():
    counts = dict(head=np.array([0, 3]), tail=np.array([1, 9]))
    ties = dict(head=np.array([0, 2]), tail=np.array([0, 0]))
    sizes = dict(head=np.array([10, 10]), tail=np.array([20, 20]))
    return Ranking(np.array([0, 1]), counts, ties, sizes)  # realistic ranks 1, 5, 2, 10


def test_metrics_are_means_over_queries():
    found = ranking().metrics()
    expected = {
        "mrr": (1 + 1 / 5 + 1 / 2 + 1 / 10) / 4, "hits@1": 1 / 4, "hits@3": 2 / 4, "hits@10": 1.0,
        "mean_rank": 18 / 4, "amri": 1 - (18 / 4 - 1) / ((5.5 + 10.5) / 2 - 1),
    }  # fmt: skip
    assert list(found) == list(METRICS)
    assert found == pytest.approx(expected)


def test_metrics_may_be_of_a_side_a_mode_a_relation_or_some_names():
    found = ranking()
    assert found.metrics(side="head", names=["mean_rank"]) == {"mean_rank": 3.0}
    assert found.metrics("optimistic", "head", names=["mean_rank"]) == {"mean_rank": 2.5}
    assert found.metrics(relation=1, names=["mean_rank"]) == {"mean_rank": 7.5}
    assert found.metrics(names=["hits@5"]) == {"hits@5": 0.75}


def test_metrics_by_relation_are_those_of_its_triples(graph):
    model, triples = integer_model(graph), graph.triples["test"]
    found = rank_triples(model, triples)
    assert sorted(found.by_relation()) == np.unique(triples[:, 1]).tolist()
    for relation, metrics in found.by_relation("pessimistic", "tail").items():
        alone = rank_triples(model, triples[triples[:, 1] == relation])
        assert metrics == pytest.approx(alone.metrics("pessimistic", "tail"))


def test_a_perfect_model_has_an_amri_of_one():
    zero = {side: np.zeros(2, int) for side in ("head", "tail")}
    found = Ranking(np.zeros(2, int), zero, zero, {side: np.full(2, 9) for side in zero})
    assert found.metrics()["amri"] == found.metrics()["mrr"] == 1.0


def test_one_candidate_has_no_amri():
    zero, one = dict(tail=np.zeros(1, int)), dict(tail=np.ones(1, int))
    assert np.isnan(Ranking(np.zeros(1, int), zero, zero, one).metrics()["amri"])


def test_no_triples_have_no_metrics(graph):
    found = rank_triples(integer_model(graph), np.empty((0, 3), dtype=np.int32))
    assert len(found.ranks()) == 0 and found.by_relation() == {}
    assert all(np.isnan(x) for x in found.metrics().values())


# -- manners -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_put_back(graph, training):
    model = integer_model(graph).train(training)
    rank_triples(model, graph.triples["test"])
    assert model.training == training and model.entity_embedding.grad is None


def test_progress_counts_the_queries(graph):
    done = []
    rank_triples(integer_model(graph), graph.triples["train"], progress=done.append, max_scores=1)
    assert done == 2 * [64, 64, 64, 8]


def test_tiles_hold_no_more_scores_than_allowed(graph):
    model = integer_model(graph)
    scorer = AllEntityScorer(model, max_scores=50)
    known, relation = torch.arange(10), torch.zeros(10, dtype=torch.long)
    tiles = list(scorer.tiles("tail", known, relation))
    assert max(tile.scores.numel() for tile in tiles) <= 50
    rows = [tile.first + i for tile in tiles for i in range(tile.scores.shape[1])]
    assert rows == sorted(model.sharding.flat_row.tolist())  # each entity once, no padding


def test_tiles_walked_twice_have_the_same_bits(graph):
    known, relation = torch.arange(10), torch.zeros(10, dtype=torch.long)
    for max_scores in TILES:
        tiles = AllEntityScorer(integer_model(graph, name="rotate"), max_scores).tiles_twice(
            "head", known, relation
        )
        for a, b in zip(tiles, tiles):
            assert a.first == b.first and torch.equal(a.scores, b.scores)
        assert torch.cat([tile.scores for tile in tiles], dim=1).shape == (10, 37)


# -- given candidates --------------------------------------------------------------------------


def ogb_ranks(positive, negative):
    """OGB's evaluator: the mean of the optimistic and the pessimistic rank."""
    optimistic = (negative > positive[:, None]).sum(1)
    pessimistic = (negative >= positive[:, None]).sum(1)
    return 0.5 * (optimistic + pessimistic) + 1


@pytest.mark.parametrize("one_list", [False, True])
@pytest.mark.parametrize("max_scores", [1, 40, 2**25])
@pytest.mark.parametrize("inverse", [False, True])
def test_ranks_among_given_candidates_are_those_of_ogb(graph, inverse, max_scores, one_list):
    model, triples = integer_model(graph, inverse=inverse), graph.triples["test"]
    rng, n_list = np.random.default_rng(0), 1 if one_list else len(triples)
    lists = {side: rng.integers(graph.n_entity, size=(n_list, 9)) for side in ("head", "tail")}
    found = rank_candidates(model, triples, lists, max_scores)
    for side, column in (("head", 0), ("tail", 2)):
        scores = all_scores(model, triples, side)
        positive = np.take_along_axis(scores, triples[:, [column]], 1)[:, 0]
        negative = np.take_along_axis(scores, np.broadcast_to(lists[side], (30, 9)), 1)
        expected = ogb_ranks(positive, negative)
        assert (expected % 1 == 0.5).any()
        assert found.ranks(side=side).tolist() == expected.tolist()
        assert (found.n_candidate[side] == 10).all()
    both = np.concatenate([found.ranks(side=side) for side in ("head", "tail")])
    assert found.metrics(names=["mrr"])["mrr"] == pytest.approx((1 / both).mean(), rel=1e-6)


def test_a_score_that_is_no_number_is_last_among_given_candidates(graph):
    model, triples = integer_model(graph), graph.triples["test"]
    with torch.no_grad():
        model.relation_embedding.fill_(torch.nan)
    found = rank_candidates(model, triples, {"tail": np.arange(5)[None]})
    assert (found.ranks(side="tail") == 6).all()


def test_negative_sharing_does_not_pool_given_candidates(graph):
    lists = {"tail": np.random.default_rng(0).integers(37, size=(30, 4))}
    ranks = [
        rank_candidates(integer_model(graph, sharing=x), graph.triples["test"], lists).ranks(
            side="tail"
        )
        for x in (False, True)
    ]
    assert (ranks[0] == ranks[1]).all()


def test_candidates_of_another_shape_or_graph_are_refused(graph):
    model, triples = integer_model(graph), graph.triples["test"]
    with pytest.raises(ConfigError, match=r"'tail' have shape \(7, 3\), expected \(30, K\) or \(1"):
        rank_candidates(model, triples, {"tail": np.zeros((7, 3), int)})
    with pytest.raises(ConfigError, match=r"'head' run from 0 to 37, expected .* \[0, 37\)"):
        rank_candidates(model, triples, {"head": np.array([[0, 37]])})
    with pytest.raises(ConfigError, match=r"unknown sides \['left'\]"):
        rank_candidates(model, triples, {"left": np.zeros((1, 3), int)})


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [["tails"], []])
def test_unknown_sides_are_refused(graph, sides):
    with pytest.raises(
        ConfigError, match=r"unknown sides \[.*\]; expected some of \('head', 'tail"
    ):
        rank_triples(integer_model(graph), graph.triples["test"], sides=sides)


@pytest.mark.parametrize("triple", [[37, 0, 0], [0, 4, 0], [0, 0, 37], [-1, 0, 0]])
def test_triples_of_another_graph_are_refused(graph, triple):
    with pytest.raises(ConfigError, match="the model has 37 entities and 4 relations"):
        rank_triples(integer_model(graph), np.array([triple]))


def test_triples_of_another_shape_are_refused(graph):
    with pytest.raises(ConfigError, match=r"triples have shape \(5, 2\), expected \(n_triple, 3\)"):
        rank_triples(integer_model(graph), np.zeros((5, 2), int))


def test_no_scores_at_a_time_are_refused(graph):
    with pytest.raises(ConfigError, match="max_scores must be at least 1, got 0"):
        rank_triples(integer_model(graph), graph.triples["test"], max_scores=0)
