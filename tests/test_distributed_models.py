"""Ranks rank, answer, store and load as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from ranks import WORLDS, small_graph
from support import make_score
from torch.testing import assert_close

from besskge_core.errors import CheckpointError, ConfigError, WorkerLostError
from besskge_core.evaluation import rank_candidates, rank_triples
from besskge_core.exchange import DistributedExchange
from besskge_core.known import KnownTriples
from besskge_core.optim import OPTIMIZERS
from besskge_core.predict import Predictor
from besskge_core.runtime import join
from besskge_core.sharding import Sharding
from besskge_core.training.checkpoint import load_checkpoint, save_checkpoint

# -- rankings and answers --------------------------------------------------------------------------


def ranked(n_shard: int, score: str, mode: str) -> Dict[str, Any]:
    ranks, graph = join(), small_graph()
    score_fn = make_score(score, Sharding.create(graph.n_entity, n_shard, 0), 4, dim=4)
    with torch.no_grad():  # so that many scores are the same
        score_fn.entity_embedding.round_()
        if mode == "not a number":
            score_fn.entity_embedding[0, 0] = torch.nan
    score_fn.keep_shards(ranks.hosted(n_shard))
    exchange = None if ranks.n_rank == 1 else DistributedExchange(n_shard)
    known, test = KnownTriples.of(graph), graph.triples["test"]
    found = {
        "filtered": rank_triples(score_fn, test, known, max_scores=200, exchange=exchange),
        "raw": rank_triples(score_fn, test, exchange=exchange),
        "given": rank_candidates(
            score_fn, test, {"tail": np.arange(5, 25)[None], "head": test[:, [2]]}, 300, exchange
        ),
    }
    rankings = {f"{k} {field}": vars(x)[field] for k, x in found.items() for field in vars(x)}
    predictor = Predictor(score_fn, graph, known, 200, exchange)
    answers = {
        f"{k} {filter_known}": predictor.answers(
            [(3, 1, None), (None, 2, 5), (7, None, 8)], k, filter_known
        )
        for k in (1, 4, 50)
        for filter_known in (False, True)
    }
    return dict(rankings=rankings, answers=answers)


@pytest.mark.parametrize("n_rank,n_shard", WORLDS[1:])
@pytest.mark.parametrize("mode", ["plain", "not a number"])
@pytest.mark.parametrize("score", ["distmult", "transe"])
def test_ranks_and_answers_are_those_of_one_process(pools, score, mode, n_rank, n_shard):
    expected = ranked(n_shard, score, mode)
    for found in pools(n_rank).run(ranked, n_shard, score, mode):
        np.testing.assert_equal(found["rankings"], expected["rankings"])
        assert found["answers"] == expected["answers"]


def test_rows_that_are_elsewhere_are_missed(pools):
    score_fn = make_score("distmult", Sharding.create(37, 4, 0), 4)
    score_fn.keep_shards([1, 2])
    with pytest.raises(ConfigError, match=r"rows of shards \(1, 2\).*exchange of the ranks"):
        rank_triples(score_fn, small_graph().triples["test"])


# -- checkpoints -----------------------------------------------------------------------------------


def stored(path: Path, n_shard: int, n_save: int, act: str) -> Dict[str, torch.Tensor]:
    """Save or load a model with optimiser state, of `n_shard` shards on these ranks."""
    ranks, graph = join(), small_graph()
    sharding = Sharding.create(graph.n_entity, n_shard, 0)
    score_fn = make_score("complex", sharding, 4, dtype=torch.float32)
    score_fn.keep_shards(ranks.hosted(n_shard))
    optimizer = OPTIMIZERS["adam"](list(score_fn.parameters()), lr=0.1)
    if act == "save":
        for parameter in score_fn.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        save_checkpoint(path, score_fn, optimizer, {"saved": n_save}, ranks)
    else:
        with torch.no_grad():
            for parameter in score_fn.parameters():
                parameter.zero_()
        assert load_checkpoint(path, score_fn, optimizer, ranks) == {"saved": n_save}
    found = {"entity": score_fn.entity_embedding, **optimizer.state[score_fn.entity_embedding]}
    ids = sharding.shard_and_idx_to_entity[list(score_fn.hosted)]
    real = torch.from_numpy(ids < graph.n_entity)
    by_id = {
        k: torch.zeros(graph.n_entity, *x.shape[2:]).index_put_(
            (torch.from_numpy(ids)[real].long(),), x.detach()[real]
        )
        for k, x in found.items() if isinstance(x, torch.Tensor)
    }  # fmt: skip
    return {**by_id, "relation": score_fn.relation_embedding.detach() / ranks.n_rank}


def summed(parts: List[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@pytest.mark.parametrize("writers", WORLDS)
@pytest.mark.parametrize("readers", [*WORLDS, (1, 1), (1, 7)])
def test_a_checkpoint_loads_on_any_ranks_and_shards(pools, tmp_path, writers, readers):
    def on(n_rank: int, *arguments: Any) -> List[Dict[str, torch.Tensor]]:
        return [stored(*arguments)] if n_rank == 1 else pools(n_rank).run(stored, *arguments)

    path = tmp_path / "checkpoint"
    saved = summed(on(writers[0], path, writers[1], 7, "save"))
    assert saved["entity"].abs().min() > 0 and set(saved) == {
        "entity",
        "relation",
        "exp_avg",
        "exp_avg_sq",
    }
    loaded = summed(on(readers[0], path, readers[1], 7, "load"))
    assert_close(loaded, saved, rtol=0, atol=0)
    assert len(list(path.glob("shard-*.safetensors"))) == writers[1]


def refused_checkpoint(path: Path) -> List[str]:
    ranks, found = join(), []
    for damage in ("", "foreign"):
        score_fn = make_score("complex", Sharding.create(36 if damage else 37, 2, 0), 4)
        score_fn = score_fn.float()
        score_fn.keep_shards(ranks.hosted(2))
        before = score_fn.entity_embedding.detach().clone()
        try:
            load_checkpoint(path, score_fn, ranks=ranks)
            found.append("loaded")
        except (CheckpointError, WorkerLostError) as error:
            found.append(f"{type(error).__name__}: {error}")
            assert torch.equal(score_fn.entity_embedding, before)
    return found


def test_a_damaged_part_is_refused_by_all(pools, tmp_path):
    path = tmp_path / "checkpoint"
    pools(2).run(stored, path, 2, 1, "save")
    file = path / "shard-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    first, second = pools(2).run(refused_checkpoint, path)
    assert "WorkerLostError: rank 1: CheckpointError:" in first[0] and "sha256" in first[0]
    assert "CheckpointError" in second[0] and "shard-00001" in second[0]
    assert all("another graph" in x[1] or "sha256" in x[1] for x in (first, second))
