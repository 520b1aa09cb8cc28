"""Queries answered over shards are answered as by scoring every candidate directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import SHARDS, Shards, by_entity, make_score, needs_half
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import AllScoresBESS, TopKQueryBessKGE
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
)
from besskge_core.runtime import LocalRuntime
from besskge_core.sharding import PartitionedTripleSet, Sharding

WINDOWS = [1, 3, 100]


def queries(graph, scheme, n_shard, candidates=None, answers=True, n_hub=0):
    """The test triples as queries, with or without answers and candidates."""
    hubs = graph.triples["train"][:n_hub, 0]
    sharding = Sharding.create(graph.n_entity, n_shard, seed=2, hubs=hubs)
    triples = graph.triples["test"]
    known, answer = (triples[:, :2], triples[:, 2]) if scheme == "t" else (
        triples[:, 1:], triples[:, 0])  # fmt: skip
    return PartitionedTripleSet.create_from_queries(
        graph, sharding, known, "hr" if scheme == "t" else "rt",
        answer if answers else None, candidates,
    )  # fmt: skip


def top_k(graph, scheme="t", n_shard=4, k=5, candidates=None, window=3, score="rotate",
          answers=True, fill=None, dtype=torch.float64, n_hub=0, sharing=False, dim=6,
          **options):  # fmt: skip
    """The module, and a batch of all queries with leading axis S."""
    triple_set = queries(graph, scheme, n_shard, candidates, answers, n_hub)
    sharding = triple_set.sharding
    sampler = PlaceholderNegativeSampler(scheme)
    if candidates is not None:
        sampler = TripleBasedShardedNegativeSampler(
            triple_set.neg_heads, triple_set.neg_tails, sharding, scheme, 0, mask_on_gather=True
        )
    size = int(triple_set.triple_counts.max())
    batches = RigidShardedBatchSampler(triple_set, sampler, size, 1, 0, return_triple_idx=True)
    score_fn = make_score(
        score, sharding, graph.n_relation_type, dim, fill=fill, dtype=dtype, sharing=sharing
    )
    options = {"return_scores": True, "window_size": window, **options}
    model = TopKQueryBessKGE(k, sampler, score_fn, **options)
    return model, {name: x[0] for name, x in batches[range(size)].items()}, triple_set


def forward(model, batch):
    return model(**{name: x for name, x in batch.items() if name in model.inputs})


def direct(model, batch, triple_set, candidates):
    """IDs and scores of all queries (Q, k), by sorting the scores of every candidate."""
    table, scheme = by_entity(model.score_fn), model.negative_sampler.corruption_scheme
    ids, scores = [], []
    for place in batch["triple_idx"].flatten().tolist():
        h, r, t = triple_set.entity_ids()[place].tolist()
        given = triple_set.triple_sort_idx[place]
        listed = (
            np.arange(len(table)) if candidates is None else candidates[given % len(candidates)]
        )
        listed = torch.from_numpy(np.sort(listed)).long()
        many = torch.full_like(listed, r)
        rows = table[t if scheme == "h" else h].expand(len(listed), -1)
        h_rows, t_rows = (table[listed], rows) if scheme == "h" else (rows, table[listed])
        found = model.score_fn.score_triple(h_rows, many, t_rows).detach()
        found = found.masked_fill(found.isnan(), -torch.inf)
        best, order = found.sort(descending=True, stable=True)
        id_row = listed[order].masked_fill(best.isneginf(), -1)
        padding = max(model.k - len(id_row), 0)
        ids.append(torch.nn.functional.pad(id_row, (0, padding), value=-1)[: model.k])
        scores.append(torch.nn.functional.pad(best, (0, padding), value=-torch.inf)[: model.k])
    return torch.stack(ids).int(), torch.stack(scores)


def few_integers(table):
    return table.copy_(torch.randint(-1, 2, table.shape, generator=torch.manual_seed(3)))


@pytest.fixture(params=["h", "t"])
def scheme(request):
    return request.param


def lists(graph, kind):
    rng = np.random.default_rng(4)
    if kind == "all":
        return None
    n_list = 1 if kind == "one list" else len(graph.triples["test"])
    return np.stack([rng.choice(graph.n_entity, 11, replace=False) for _ in range(n_list)])


@pytest.mark.parametrize("kind", ["all", "one list", "a list each"])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_best_are_those_of_sorting_all_scores(graph, scheme, kind, window):
    candidates = lists(graph, kind)
    model, batch, triple_set = top_k(graph, scheme, candidates=candidates, window=window)
    out = forward(model, batch)
    ids, scores = direct(model, batch, triple_set, candidates)
    assert torch.equal(out["topk_global_id"], ids)
    assert_close(out["topk_scores"], scores)


@pytest.mark.parametrize("kind", ["all", "a list each"])
@pytest.mark.parametrize("n_shard", SHARDS)
def test_equal_scores_are_in_the_order_of_ids_on_any_number_of_shards(graph, scheme, kind, n_shard):
    candidates = lists(graph, kind)
    model, batch, triple_set = top_k(
        graph, scheme, n_shard, 9, candidates, 4, "distmult", fill=few_integers
    )
    out = forward(model, batch)
    ids, scores = direct(model, batch, triple_set, candidates)
    assert (scores[:, 1:] == scores[:, :-1]).float().mean() > 0.5
    assert torch.equal(out["topk_global_id"], ids) and torch.equal(out["topk_scores"], scores)


@pytest.mark.parametrize("kind", ["all", "one list"])
def test_fewer_candidates_than_k_leave_no_answer(graph, scheme, kind):
    candidates = lists(graph, kind)
    n_candidate = graph.n_entity if kind == "all" else 11
    model, batch, triple_set = top_k(graph, scheme, k=n_candidate + 3, candidates=candidates)
    out = forward(model, batch)
    assert torch.equal(out["topk_global_id"], direct(model, batch, triple_set, candidates)[0])
    assert (out["topk_global_id"][:, -3:] == -1).all()
    assert out["topk_scores"][:, -3:].isneginf().all()


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_padding_never_gets_into_the_best_whatever_the_scale(graph, scheme, scale):
    # Scores are all below 0, and rows of padding, which are zero, would score best.
    model, batch, triple_set = top_k(
        graph, scheme, 7, 4, score="transe", fill=lambda table: table.uniform_(scale, 2 * scale)
    )
    counts = model.sharding.shard_counts
    assert counts.min() < counts.max()
    out = forward(model, batch)
    assert torch.equal(out["topk_global_id"], direct(model, batch, triple_set, None)[0])


@needs_half
def test_large_scores_in_half_precision_stay_in_order(graph, scheme):
    # Beyond the -50000 that upstream adds in the place of a mask.
    def large(table):
        return table.copy_(
            48 * torch.randint(0, 2, table.shape, generator=torch.manual_seed(1)) - 24
        )

    candidates = lists(graph, "a list each")
    model, batch, triple_set = top_k(
        graph, scheme, 4, 11, candidates, score="distmult", fill=large, dtype=torch.float16, dim=4
    )
    out = forward(model, batch)
    ids, scores = direct(model, batch, triple_set, candidates)
    assert scores.min() < -50000 and scores.isfinite().all()
    assert torch.equal(out["topk_global_id"], ids) and torch.equal(out["topk_scores"], scores)


def test_a_score_that_is_no_number_is_no_answer(graph, scheme):
    def broken(table):
        table.copy_(torch.randn(table.shape, generator=torch.manual_seed(0)))
        if len(table) == graph.n_entity:
            table[::2] = torch.nan
        return table

    model, batch, triple_set = top_k(graph, scheme, k=30, score="distmult", fill=broken)
    out = forward(model, batch)
    assert torch.equal(out["topk_global_id"], direct(model, batch, triple_set, None)[0])
    assert (out["topk_global_id"] % 2 != 0).all()


def test_lists_of_their_own_are_not_pooled_by_negative_sharing(graph, scheme):
    candidates = lists(graph, "a list each")
    model, batch, triple_set = top_k(graph, scheme, candidates=candidates, sharing=True)
    ids, _ = direct(model, batch, triple_set, candidates)
    assert torch.equal(forward(model, batch)["topk_global_id"], ids)
    assert model.score_fn.negative_sample_sharing


@pytest.mark.parametrize("n_shard", [2, 7])
def test_a_module_follows_its_model_to_another_sharding(graph, scheme, n_shard):
    model, batch, triple_set = top_k(graph, scheme, 4)
    expected, _ = direct(model, batch, triple_set, None)
    new, again, new_set = top_k(graph, scheme, n_shard)
    model.score_fn.update_sharding(new.sharding)
    found = forward(model, again)["topk_global_id"]
    assert torch.equal(found, direct(model, again, new_set, None)[0])
    assert sorted(map(tuple, found[again["triple_mask"].flatten()].tolist())) == sorted(
        map(tuple, expected[batch["triple_mask"].flatten()].tolist())
    )


def test_hubs_are_candidates_like_others(graph, scheme):
    model, batch, triple_set = top_k(graph, scheme, n_hub=6)
    assert len(triple_set.sharding.hubs) > 3
    ids, _ = direct(model, batch, triple_set, None)
    assert torch.equal(forward(model, batch)["topk_global_id"], ids)


def test_ranks_are_the_places_of_the_answers(graph, scheme):
    evaluation = Evaluation(["mrr", "hits@3"], return_ranks=True, reduction="sum")
    model, batch, triple_set = top_k(graph, scheme, k=6, evaluation=evaluation)
    out = forward(model, batch)
    column = 0 if scheme == "h" else 2
    truth = triple_set.entity_ids()[batch["triple_idx"].flatten(), column]
    for row, answer, rank in zip(out["topk_global_id"].tolist(), truth, out["ranks"].tolist()):
        assert rank == (row.index(answer) + 1 if answer in row else 7)
    counted = out["ranks"][batch["triple_mask"].flatten()]
    expected = torch.stack([(counted <= 3).float().sum(), (1 / counted).sum()])
    assert_close(out["metrics"][0], expected)


def test_queries_need_no_answers(graph, scheme):
    model, batch, triple_set = top_k(graph, scheme, answers=False)
    assert ("tail" if scheme == "t" else "head") not in batch
    ids, _ = direct(model, batch, triple_set, None)
    assert torch.equal(forward(model, batch)["topk_global_id"], ids)
    model.evaluation = Evaluation(["mrr"])
    with pytest.raises(ConfigError, match="needs the answers.*ground_truth"):
        forward(model, batch)


@pytest.mark.parametrize("kind", ["all", "a list each", "one list"])
def test_a_shard_alone_answers_as_in_one_process(graph, scheme, kind):
    model, batch, _ = top_k(graph, scheme, candidates=lists(graph, kind))

    def run(rank, exchange):
        score_fn = make_score("rotate", model.sharding, graph.n_relation_type)
        own = model.entity_embedding.detach()[rank : rank + 1].clone()
        score_fn.entity_embedding = torch.nn.Parameter(own)
        alone = TopKQueryBessKGE(5, model.negative_sampler, score_fn, None, True, 3)
        alone.exchange = exchange
        return forward(alone, {name: x[rank : rank + 1] for name, x in batch.items()})

    apart, together = Shards(4).run(run), forward(model, batch)
    for name in ("topk_global_id", "topk_scores"):
        assert_close(torch.cat([out[name] for out in apart]), together[name])


def test_the_runtime_takes_batches_of_queries(graph, scheme):
    triple_set = queries(graph, scheme, 4)
    sampler = PlaceholderNegativeSampler(scheme)
    batches = RigidShardedBatchSampler(triple_set, sampler, 2, 3, 0)
    score_fn = make_score("rotate", triple_set.sharding, graph.n_relation_type)
    model = TopKQueryBessKGE(4, sampler, score_fn)
    step, batch = LocalRuntime(model).inference_step(), batches[0]
    found = step(batch)["topk_global_id"]
    assert found.shape == (3, 8, 4)
    assert torch.equal(step({k: x.flatten(end_dim=1) for k, x in batch.items()})["topk_global_id"],
                       found)  # fmt: skip
    (planned,) = (x for i, x in enumerate(LocalRuntime(model).dataloader(batches)) if i == 0)
    assert step(planned)["topk_global_id"].shape == found.shape


# -- all scores --------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["rotate", "pairre", "complex"])
@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("n_shard", SHARDS)
def test_windows_hold_the_scores_of_all_entities(graph, scheme, score, window, n_shard):
    triple_set = queries(graph, scheme, n_shard, answers=False)
    sampler = PlaceholderNegativeSampler(scheme)
    size = int(triple_set.triple_counts.max())
    batches = RigidShardedBatchSampler(triple_set, sampler, size, 1, 0, return_triple_idx=True)
    batch = {name: x[0] for name, x in batches[range(size)].items()}
    sharding = triple_set.sharding
    model = AllScoresBESS(sampler, make_score(score, sharding, graph.n_relation_type), window)
    columns = {name: x for name, x in batch.items() if name in model.inputs}
    table = by_entity(model.score_fn)
    h, r, t = torch.from_numpy(triple_set.entity_ids())[batch["triple_idx"].flatten()].T
    every = torch.arange(graph.n_entity)
    pairs = [x[:, None].expand(-1, len(every)).flatten() for x in (h, r, t)]
    pairs[0 if scheme == "h" else 2] = every.repeat(len(h))
    expected = model.score_fn.score_triple(table[pairs[0]], pairs[1], table[pairs[2]])
    expected, seen = expected.view(len(h), -1), set()
    for step in range(model.n_step):
        scores = model(step=torch.tensor([[step]]), **columns).unflatten(1, (n_shard, window))
        for shard in range(n_shard):
            first = step * window
            ids = sharding.shard_and_idx_to_entity[shard, : sharding.shard_counts[shard]]
            ids = ids[first : first + window]
            assert_close(scores[:, shard, : len(ids)], expected[:, torch.from_numpy(ids).long()])
            seen.update(ids.tolist())
    assert seen == set(range(graph.n_entity))


# -- errors ------------------------------------------------------------------------------------


def test_a_module_for_queries_answers_one_side(graph):
    sharding = Sharding.create(graph.n_entity, 2, 0)
    score_fn = make_score("transe", sharding, 4)
    with pytest.raises(ConfigError, match="one side at a time.*'h' or 't', got 'ht'"):
        TopKQueryBessKGE(3, PlaceholderNegativeSampler("ht"), score_fn)
    with pytest.raises(ConfigError, match="ConvE has no query for heads.*corrupt tails only"):
        TopKQueryBessKGE(3, PlaceholderNegativeSampler("h"), make_score("conve", sharding, 4))
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        TopKQueryBessKGE(0, PlaceholderNegativeSampler("h"), score_fn)
    with pytest.raises(ConfigError, match="window_size must be at least 1, got 0"):
        AllScoresBESS(PlaceholderNegativeSampler("h"), score_fn, 0)
    random = RandomShardedNegativeSampler(3, sharding, 0, "t")
    with pytest.raises(ConfigError, match="scores all entities.*not a RandomSharded"):
        AllScoresBESS(random, score_fn)
    given = TripleBasedShardedNegativeSampler(np.zeros((1, 3), int), None, sharding, "h", 0)
    with pytest.raises(ConfigError, match="mask_on_gather=True"):
        TopKQueryBessKGE(3, given, score_fn)


def test_the_known_entity_must_be_there(graph):
    model, batch, _ = top_k(graph, "t")
    with pytest.raises(ShapeError, match="known, head .* is missing; partition.* by h_shard"):
        model(relation=batch["relation"], tail=batch["tail"])
    with pytest.raises(ShapeError, match=r"known has shape \(4, 1\), expected \(L, P\)"):
        model(relation=batch["relation"], head=batch["head"][:, :1])
