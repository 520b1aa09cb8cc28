"""All completions: ranks, best answers and scores are those of sorting a score matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import SHARDS, by_entity, make_score, needs_half
from torch.testing import assert_close

import besskge_core.pipeline as pipeline_module
from besskge_core.batch_sampler import RandomShardedBatchSampler, RigidShardedBatchSampler
from besskge_core.errors import ConfigError
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import PlaceholderNegativeSampler
from besskge_core.pipeline import AllScoresPipeline
from besskge_core.sharding import PartitionedTripleSet, Sharding

CANDIDATES = np.arange(0, 37, 3)


def few_integers(table):
    return table.copy_(torch.randint(-1, 2, table.shape, generator=torch.manual_seed(3)))


class Case:
    """A pipeline over the test triples, and what it must find, from a matrix of all scores."""

    def __init__(self, graph, scheme, n_shard=4, score="distmult", fill=few_integers, answers=True,
                 filtered=True, candidates=None, sampler=RigidShardedBatchSampler, n_hub=0,
                 dtype=torch.float64, **options):  # fmt: skip
        sharding = Sharding.create(
            graph.n_entity, n_shard, 2, hubs=graph.triples["train"][:n_hub, 0]
        )
        triples = graph.triples["test"]
        asks_tails = scheme == "t"
        self.triple_set = PartitionedTripleSet.create_from_queries(
            graph, sharding, triples[:, :2] if asks_tails else triples[:, 1:],
            "hr" if asks_tails else "rt",
            (triples[:, 2] if asks_tails else triples[:, 0]) if answers else None,
        )  # fmt: skip
        self.score_fn = make_score(score, sharding, graph.n_relation_type, fill=fill, dtype=dtype)
        batches = sampler(
            self.triple_set, PlaceholderNegativeSampler(scheme), 3, 2, 0, return_triple_idx=True
        )
        known = list(graph.triples.values()) if filtered else None
        self.pipeline = AllScoresPipeline(
            batches, scheme, self.score_fn, filter_triples=known, candidate_ents=candidates,
            **options,
        )  # fmt: skip
        self.scheme, self.candidates = scheme, candidates
        self.known = set() if known is None else set(map(tuple, np.concatenate(known).tolist()))
        self.answered = answers

    def matrix(self, places):
        """(Q, n_entity), -inf where excluded, and the answers (Q,)."""
        table, ids = by_entity(self.score_fn), self.triple_set.entity_ids()
        rows, column = [], 2 if self.scheme == "t" else 0
        for h, r, t in ids[places].tolist():
            every = torch.arange(len(table))
            many = torch.full_like(every, r)
            if self.scheme == "t":
                scores = self.score_fn.score_triple(table[h].expand_as(table), many, table)
                made = [(h, r, e) for e in every.tolist()]
            else:
                scores = self.score_fn.score_triple(table, many, table[t].expand_as(table))
                made = [(e, r, t) for e in every.tolist()]
            answer = (t if column == 2 else h) if self.answered else None
            out = [x in self.known and e != answer for e, x in enumerate(made)]
            if self.candidates is not None:
                out = [x or e not in self.candidates for e, x in enumerate(out)]
            rows.append(scores.detach().masked_fill(torch.tensor(out), -torch.inf))
        return torch.stack(rows), torch.from_numpy(ids[places, column])


@pytest.fixture(params=["h", "t"])
def scheme(request):
    return request.param


@pytest.fixture(params=["kept", "computed again"])
def memory(request, monkeypatch):
    if request.param != "kept":
        monkeypatch.setattr(pipeline_module, "MAX_SCORES", 0)


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("candidates", [None, CANDIDATES], ids=["all", "some"])
def test_ranks_scores_and_answers_are_those_of_the_matrix(
    graph, scheme, n_shard, window, candidates, memory
):
    evaluation = Evaluation(["mrr", "hits@3"], return_ranks=True)
    case = Case(
        graph, scheme, n_shard, candidates=candidates, evaluation=evaluation, return_scores=True,
        return_topk=True, k=6, window_size=window,
    )  # fmt: skip
    out = case.pipeline()
    assert sorted(out["triple_idx"].tolist()) == list(range(30))
    scores, answer = case.matrix(out["triple_idx"].numpy())
    assert torch.equal(out["scores"], scores)
    true_score = scores.gather(1, answer[:, None])
    rivals = scores.scatter(1, answer[:, None], -torch.inf)
    better = (rivals > true_score).sum(1)
    equal = ((rivals == true_score) & ~rivals.isneginf()).sum(1)
    assert_close(out["ranks"], 1 + better + equal / 2.0, check_dtype=False)
    assert (equal > 0).any()
    assert_close(out["metrics"]["mrr"], out["ranks"].reciprocal())
    assert_close(out["metrics_avg"]["hits@3"], (out["ranks"] <= 3).float().mean())
    best, order = scores.sort(descending=True, stable=True)
    assert torch.equal(out["topk_global_id"], order[:, :6].masked_fill(best[:, :6].isneginf(), -1))
    assert_close(out["topk_scores"], best[:, :6].float())


@pytest.mark.parametrize("score", ["rotate", "pairre", "boxe", "complex"])
def test_scores_are_those_of_every_triple(graph, scheme, score):
    case = Case(graph, scheme, score=score, fill=None, filtered=False, return_scores=True)
    out = case.pipeline()
    assert_close(out["scores"], case.matrix(out["triple_idx"].numpy())[0])


def test_hubs_are_answers_like_others(graph, scheme):
    case = Case(graph, scheme, n_hub=6, return_scores=True)
    out = case.pipeline()
    assert torch.equal(out["scores"], case.matrix(out["triple_idx"].numpy())[0])


def test_an_answer_that_is_no_candidate_is_behind_them_all(graph, scheme):
    case = Case(
        graph, scheme, candidates=CANDIDATES, return_scores=True,
        evaluation=Evaluation(["mrr"], return_ranks=True),
    )  # fmt: skip
    out = case.pipeline()
    scores, answer = case.matrix(out["triple_idx"].numpy())
    excluded = ~torch.isin(answer, torch.from_numpy(CANDIDATES))
    assert excluded.any() and not excluded.all()
    n_rival = scores.isfinite().sum(1)[excluded]
    assert out["ranks"][excluded].tolist() == (n_rival + 1).tolist()
    assert out["scores"].gather(1, answer[:, None])[excluded].isneginf().all()
    case.pipeline.evaluation.worst_rank_infty = True
    assert case.pipeline()["ranks"][excluded].isinf().all()


def test_a_true_score_that_is_no_number_is_behind_them_all(graph, scheme):
    case = Case(graph, scheme, evaluation=Evaluation(["mrr"], return_ranks=True))
    with torch.no_grad():
        case.score_fn.relation_embedding.fill_(torch.nan)
    out = case.pipeline()
    n_rival = case.matrix(out["triple_idx"].numpy())[0].isnan().sum(1) - 1
    assert out["ranks"].tolist() == (n_rival + 1).tolist()


def test_queries_without_answers_have_all_known_ones_filtered(graph, scheme):
    case = Case(graph, scheme, answers=False, return_scores=True, return_topk=True, k=4)
    out = case.pipeline()
    scores, _ = case.matrix(out["triple_idx"].numpy())
    assert torch.equal(out["scores"], scores) and scores.isneginf().any()
    assert "metrics" not in out


def test_the_random_sampler_gives_queries_too(graph, scheme):
    case = Case(graph, scheme, sampler=RandomShardedBatchSampler, return_scores=True)
    out = case.pipeline()
    assert torch.equal(out["scores"], case.matrix(out["triple_idx"].numpy())[0])


def test_a_reduced_metric_is_the_sum_over_all_queries(graph, scheme):
    each = Case(graph, scheme, evaluation=Evaluation(["mrr"])).pipeline()
    summed = Case(graph, scheme, evaluation=Evaluation(["mrr"], reduction="sum")).pipeline()
    assert_close(summed["metrics"]["mrr"], each["metrics"]["mrr"].sum())
    assert_close(summed["metrics_avg"]["mrr"], each["metrics"]["mrr"].mean())
    assert "ranks" not in summed and each["metrics"]["mrr"].shape == (30,)


@needs_half
def test_half_precision_ranks_are_exact(graph, scheme):
    def large(table):
        return table.copy_(
            48 * torch.randint(0, 2, table.shape, generator=torch.manual_seed(1)) - 24
        )

    evaluation = Evaluation(["mrr"], return_ranks=True)
    options = dict(evaluation=evaluation, fill=large, return_scores=True)
    half = Case(graph, scheme, dtype=torch.float16, **options).pipeline()
    double = Case(graph, scheme, **options).pipeline()
    finite = half["scores"].isfinite()
    assert half["scores"].dtype == torch.float16 and half["scores"][finite].min() < -50000
    assert torch.equal(half["ranks"], double["ranks"])


def test_dropout_is_off_and_the_mode_is_put_back(graph):
    case = Case(graph, "t", score="conve", fill=None, return_scores=True, filtered=False)
    case.score_fn.train()
    once, again = case.pipeline()["scores"], case.pipeline()["scores"]
    assert torch.equal(once, again) and case.score_fn.training


def test_errors_say_what_is_missing(graph):
    with pytest.raises(ConfigError, match="nothing to return"):
        Case(graph, "t")
    with pytest.raises(ConfigError, match="needs the answers.*ground_truth"):
        Case(graph, "t", answers=False, evaluation=Evaluation(["mrr"]))
    with pytest.raises(ConfigError, match="use_ipu_model is not supported"):
        Case(graph, "t", return_scores=True, use_ipu_model=True)
    with pytest.raises(
        ConfigError, match=r"candidate_ents has 2 IDs up to 37, expected .*\[0, 37\)"
    ):
        Case(graph, "t", return_scores=True, candidates=[1, 37])
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        Case(graph, "t", return_topk=True, k=0)
    case = Case(graph, "t", return_scores=True)
    with pytest.raises(ConfigError, match="'h' needs triples partitioned by 't_shard', not 'h_sh"):
        AllScoresPipeline(case.pipeline.batch_sampler, "h", case.score_fn, return_scores=True)
    with pytest.raises(ConfigError, match=r"filter_triples has an array \(2, 2\), expected \(n, 3"):
        AllScoresPipeline(
            case.pipeline.batch_sampler, "t", case.score_fn, return_scores=True,
            filter_triples=[np.zeros((2, 2), int)],
        )  # fmt: skip
