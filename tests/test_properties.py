"""Whatever the graph: triples are where they must be, and padding reaches nothing.

Loss, ranks and best answers over shards are compared with those of plain loops over triples.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import by_entity, global_triples, make_score
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE, TopKQueryBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.loss import MarginRankingLoss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
)
from besskge_core.philox import Position
from besskge_core.sharding import PartitionedTripleSet, Sharding

N_RELATION = 2


@st.composite
def graphs(draw):
    """A graph of few entities, its sharding, and some hubs or none."""
    n_entity = draw(st.integers(2, 9))
    entity = st.integers(0, n_entity - 1)
    triple = st.tuples(entity, st.integers(0, N_RELATION - 1), entity)
    rows = np.array(draw(st.lists(triple, min_size=1, max_size=12)))
    graph = KGDataset(n_entity, N_RELATION, {"train": rows}, {"train": np.arange(len(rows))})
    hubs = np.array(draw(st.lists(entity, max_size=3)), dtype=np.int64)
    n_shard = draw(st.integers(1, n_entity))
    return graph, Sharding.create(n_entity, n_shard, draw(st.integers(0, 3)), hubs=hubs)


def epoch(graph, sharding, sampler, **options):
    """The micro-batches (S, ...) of an epoch."""
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    batches = RigidShardedBatchSampler(triple_set, sampler, 2 * sharding.n_shard, 1, 0, **options)
    for step in range(batches.n_step):
        yield {name: x[0] for name, x in batches.batch(Position(0, step)).items()}


@given(found=graphs())
def test_an_epoch_shows_every_triple_once_on_the_shards_of_its_ends(found):
    graph, sharding = found
    sampler = RandomShardedNegativeSampler(2, sharding, 0, "t")
    seen, hubs = [], sharding.hubs
    for batch in epoch(graph, sharding, sampler):
        ids, kept = global_triples(batch, sharding), batch["triple_mask"]
        seen += ids[kept].tolist()
        head_shard, tail_shard, _ = kept.nonzero(as_tuple=True)
        for column, shard in ((0, head_shard), (2, tail_shard)):
            entity = ids[kept][:, column].numpy()
            settled = ~np.isin(entity, hubs)
            home = sharding.entity_to_shard[entity]
            assert (home[settled] == shard.numpy()[settled]).all()
        rows = batch["negative"].numpy()
        counts = sharding.shard_counts[:, None, None, None]
        assert (rows >= 0).all() and (rows < counts).all()
    assert sorted(seen) == sorted(graph.triples["train"].tolist())


@settings(max_examples=25)
@given(found=graphs(), data=st.data())
@pytest.mark.parametrize("mover", [EmbeddingMovingBessKGE, ScoreMovingBessKGE])
def test_padding_reaches_neither_loss_nor_rank(mover, found, data):
    graph, sharding = found
    triples = graph.triples["train"]
    lists = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, graph.n_entity - 1), min_size=3, max_size=3),
                min_size=len(triples), max_size=len(triples),
            )
        )
    )  # fmt: skip
    graph.neg_tails = {"train": lists}
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    sampler = TripleBasedShardedNegativeSampler(None, triple_set.neg_tails, sharding, "t", 0)
    score_fn = make_score("rotate", sharding, N_RELATION)
    evaluation = Evaluation(["mrr"], return_ranks=True, reduction="sum")
    model = mover(sampler, score_fn, MarginRankingLoss(1.0, False), evaluation)
    batches = RigidShardedBatchSampler(triple_set, sampler, 2 * sharding.n_shard, 1, 0)
    total, reciprocal = torch.zeros(()).double(), torch.zeros(())
    for step in range(batches.n_step):
        batch = {name: x[0] for name, x in batches.batch(Position(0, step)).items()}
        out = model(**batch)
        total += sharding.n_shard * out["loss"].detach()
        reciprocal += out["metrics"].sum()
    table = by_entity(score_fn)
    h, r, t = torch.from_numpy(triples).long().T
    positive = score_fn.score_triple(table[h], r, table[t]).detach()
    negative = score_fn.score_tails(table[h], r, table[torch.from_numpy(lists)]).detach()
    assert_close(total, (negative - positive[:, None] + 1.0).relu().mean(1).sum())
    # Scores of one candidate differ in the last bit between batches, so a tie counts as equal.
    close = torch.isclose(negative, positive[:, None], atol=1e-9)
    better = ((negative > positive[:, None]) & ~close).sum(1)
    ranks = 1 + better + close.sum(1) / 2
    if not close.any():
        assert_close(reciprocal, ranks.reciprocal().sum())


@settings(max_examples=25)
@given(found=graphs(), k=st.integers(1, 12), window=st.integers(1, 4))
def test_padding_never_gets_into_a_top_k_list(found, k, window):
    graph, sharding = found
    queries = graph.triples["train"][:, :2]
    triple_set = PartitionedTripleSet.create_from_queries(graph, sharding, queries, "hr")
    sampler = PlaceholderNegativeSampler("t")
    size = int(triple_set.triple_counts.max())
    batches = RigidShardedBatchSampler(triple_set, sampler, size, 1, 0, return_triple_idx=True)
    (batch,) = ({n: x[0] for n, x in batches[s].items()} for s in range(batches.n_step))
    # All scores are below that of a row of zeros, which padding is.
    score_fn = make_score("transe", sharding, N_RELATION, fill=lambda x: x.uniform_(5, 9))
    model = TopKQueryBessKGE(k, sampler, score_fn, window_size=window, return_scores=True)
    out = model(relation=batch["relation"], head=batch["head"])
    ids = triple_set.entity_ids()[batch["triple_idx"].flatten().numpy()]
    table = by_entity(score_fn)
    for (h, r, _), best, real in zip(
        ids.tolist(), out["topk_global_id"], batch["triple_mask"].flatten()
    ):
        if not real:
            continue
        rows = table[h].expand_as(table)
        scores = score_fn.score_triple(rows, torch.full((len(table),), r), table)
        expected = scores.sort(descending=True, stable=True)[1][:k].tolist()
        assert best.tolist() == expected + [-1] * (k - len(expected))
