"""What ranks do together is what one process does alone."""

from __future__ import annotations

import time
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from ranks import WORLDS, small_graph
from support import make_score
from torch.testing import assert_close

from besskge_core.batch_sampler import RandomShardedBatchSampler, RigidShardedBatchSampler
from besskge_core.bess import (
    EmbeddingMovingBessKGE,
    LCWABessKGE,
    OneVsAllBessKGE,
    ScoreMovingBessKGE,
)
from besskge_core.embedding import Embedding, hosting
from besskge_core.errors import ConfigError, WorkerLostError
from besskge_core.exchange import DistributedExchange, LocalExchange
from besskge_core.known import KnownTriples
from besskge_core.loss import LOSSES, BCEWithLogitsLoss, CrossEntropyLoss, LogSigmoidLoss
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    DegreeWeightedShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.optim import OPTIMIZERS
from besskge_core.philox import Position
from besskge_core.regularizer import REGULARIZERS
from besskge_core.runtime import join, make_runtime
from besskge_core.scoring import ComplEx
from besskge_core.sharding import PartitionedTripleSet, Sharding

# -- collectives -----------------------------------------------------------------------------------

MOVED = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64,
    torch.bool, torch.complex64,
]  # fmt: skip


def exchanged(n_shard: int) -> Dict[str, Any]:
    """Results and gradients of the collectives, of a tensor that all ranks can make."""
    ranks = join()
    exchange = LocalExchange(n_shard) if ranks.n_rank == 1 else DistributedExchange(n_shard)
    own, found = list(exchange.hosted), {}
    for name in ("all_to_all", "all_gather", "all_reduce"):
        for dtype in MOVED:
            if name != "all_reduce" or dtype not in (torch.bool, torch.complex64):
                x = given(n_shard).to(dtype)
                found[f"{name} {dtype}"] = getattr(exchange, name)(x[own])
        x = given(n_shard).double().requires_grad_()
        out = getattr(exchange, name)(x[own])
        weight = torch.arange(1.0, 12 * n_shard**3 + 1, dtype=torch.float64)
        weight = weight[: n_shard * out[0].numel()].view(n_shard, *out.shape[1:])[own]
        found[f"gradient of {name}"] = torch.autograd.grad((out * weight).sum(), x)[0][own]
    return found


def given(n_shard: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_shard)
    return torch.randint(0, 7, (n_shard, n_shard, 3, 2), generator=generator)


@pytest.mark.parametrize("n_rank,n_shard", WORLDS[1:])
def test_collectives_are_those_of_one_process(pools, n_rank, n_shard):
    expected = exchanged(n_shard)
    found = pools(n_rank).run(exchanged, n_shard)
    for name, x in expected.items():
        assert_close(torch.cat([of_rank[name] for of_rank in found]), x, msg=name)


def compiled() -> bool:
    join()
    exchange = DistributedExchange(2)

    def twice(x: torch.Tensor) -> torch.Tensor:
        received = exchange.all_to_all(x * 2).sin()
        return (received + exchange.all_gather(x.sum(1))).sum() + exchange.all_reduce(x).cos().sum()

    x = torch.arange(6.0).view(1, 2, 3).requires_grad_()
    found = [
        torch.autograd.grad(f(x), x)[0] for f in (twice, torch.compile(twice, backend="eager"))
    ]
    return torch.allclose(*found)


@pytest.mark.skipif(torch.__version__.startswith("2.0"), reason="torch 2.0 does not trace them")
def test_collectives_may_stand_in_compiled_code(pools):
    assert pools(2).run(compiled) == [True, True]


# -- batches ---------------------------------------------------------------------------------------

NEGATIVES = {
    "uniform": lambda t: RandomShardedNegativeSampler(3, t.sharding, 1, "ht"),
    "flat": lambda t: RandomShardedNegativeSampler(
        5, t.sharding, 1, "t", flat_negative_format=True
    ),
    "degree": lambda t: DegreeWeightedShardedNegativeSampler(np.arange(37), 3, t.sharding, 1, "h"),
    "bernoulli": lambda t: BernoulliShardedNegativeSampler(t, 3, 1),
    "typed": lambda t: TypeBasedShardedNegativeSampler(t.types, 3, t.sharding, "t", False, 1),
    "none": lambda t: PlaceholderNegativeSampler("t"),
}


def sampler_of(n_shard: int, negatives: str = "flat", rigid: bool = True, **options: Any):
    graph = small_graph()
    hubs = np.array([5, 7]) if options.pop("hubs", False) else None
    types = np.array(list(graph.type_offsets.values()))
    sharding = Sharding.create(graph.n_entity, n_shard, 0, types, hubs)
    mode = options.pop("mode", "ht_shardpair")
    triples = PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode)
    make = RigidShardedBatchSampler if rigid else RandomShardedBatchSampler
    return make(triples, NEGATIVES[negatives](triples), 16, 2, seed=3, **options)


def drawn(n_shard: int, *arguments: Any) -> List[Dict[str, torch.Tensor]]:
    sampler, options = sampler_of(n_shard, *arguments[:2], **arguments[2]), join()
    exchange = LocalExchange(n_shard) if options.n_rank == 1 else DistributedExchange(n_shard)
    return [sampler.hosted_batch(Position(1, step), exchange) for step in range(2)]


@pytest.mark.parametrize("rigid", [True, False])
@pytest.mark.parametrize("negatives", sorted(NEGATIVES))
@pytest.mark.parametrize(
    "options",
    [dict(), dict(hubs=True, hrt_freq_weighting=True, return_triple_idx=True)],
    ids=["plain", "all columns"],
)
def test_each_rank_draws_its_part_of_the_batch(pools, negatives, rigid, options):
    n_rank, n_shard = 2, 4
    sampler = sampler_of(n_shard, negatives, rigid, **options)
    found = pools(n_rank).run(drawn, n_shard, negatives, rigid, options)
    for step in range(2):
        whole = sampler.batch(Position(1, step))
        parts = [of_rank[step] for of_rank in found]
        assert {frozenset(part) for part in parts} == {frozenset(whole)}
        for name, x in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts], dim=1), x), name


# -- steps -----------------------------------------------------------------------------------------


def trained(n_shard: int, settings: Dict[str, Any]) -> Dict[str, Any]:
    """A few steps; losses, own rows, and what all ranks have."""
    settings = dict(settings)
    ranks = join()
    scheme, score = settings.pop("scheme"), settings.pop("score", "complex")
    loss, optimizer = settings.pop("loss", "logsigmoid"), settings.pop("optimizer", "adagrad")
    representation, penalty = settings.pop("embedding", None), settings.pop("regularizer", None)
    known, augment = settings.pop("known", False), settings.pop("augment", False)
    sampler = sampler_of(n_shard, settings.pop("negatives", "flat"), **settings)
    graph, sharding = small_graph(), sampler.triple_set.sharding
    heads = sampler.negative_sampler.corruption_scheme != "t" or scheme in ("all", "lcwa")
    entities: Dict[str, Any] = {}
    if representation is not None:
        torch.manual_seed(0)
        entities["entity_initializer"] = Embedding(
            shape=12, sharding=sharding, dtype=torch.float64, **representation
        )
    score_fn = make_score(score, sharding, 4, **entities)
    if known:
        sampler.negative_sampler.known = KnownTriples.of(graph)
    regularizer = None if penalty is None else REGULARIZERS[penalty](weight=0.1)
    if scheme == "all":
        model = OneVsAllBessKGE(
            score_fn, loss, ("head", "tail") if heads else ("tail",), 0.0, regularizer,
            relation_weight=0.5,
        )  # fmt: skip
    elif scheme == "lcwa":
        model = LCWABessKGE(score_fn, KnownTriples.of(graph), loss)
    else:
        mover = EmbeddingMovingBessKGE if scheme == "embedding" else ScoreMovingBessKGE
        model = mover(
            sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True), regularizer=regularizer,
            **({"augment_negative": True} if augment else {}),
        )  # fmt: skip
    runtime = make_runtime(model, ranks)
    made = OPTIMIZERS[optimizer](list(model.parameters()), lr=0.05)
    step = runtime.training_step(made)
    losses = [step(batch)["loss"] for batch in runtime.dataloader(sampler)]
    others = {
        name: x.detach()
        for name, x in score_fn.state_dict(keep_vars=True).items()
        if x is not score_fn.entity_embedding
    }
    return dict(
        losses=torch.cat(losses), table=score_fn.entity_embedding.detach(), others=others,
        state=[x.detach() for x in made.state[score_fn.entity_embedding].values()
               if isinstance(x, torch.Tensor)],
    )  # fmt: skip


CASES = {
    "embedding": dict(scheme="embedding"),
    "score": dict(scheme="score"),
    "embedding, random": dict(scheme="embedding", rigid=False),
    "embedding, per triple": dict(scheme="embedding", negatives="uniform", score="transe"),
    "score, per triple": dict(scheme="score", negatives="uniform", score="rotate"),
    "typed": dict(scheme="embedding", negatives="typed"),
    "either side": dict(scheme="score", negatives="bernoulli"),
    "hubs": dict(scheme="embedding", hubs=True),
    "hubs, score": dict(scheme="score", hubs=True),
    "filtered": dict(scheme="embedding", known=True),
    "filtered, score": dict(scheme="score", known=True),
    "augmented": dict(scheme="embedding", augment=True),
    "regularized": dict(scheme="score", regularizer="lp"),
    "mean of norms": dict(scheme="embedding", embedding=dict(regularizer="lp")),
    "sum of norms": dict(
        scheme="embedding", embedding=dict(regularizer="normlimit", constrainer="normalize")
    ),
    "all entities": dict(scheme="all", negatives="none", loss=CrossEntropyLoss()),
    "all entities, regularized": dict(
        scheme="all", negatives="none", loss=CrossEntropyLoss(), regularizer="lp",
        embedding=dict(regularizer="powersum"),
    ),
    "all entities, distances": dict(
        scheme="all", negatives="none", loss=BCEWithLogitsLoss(), score="transe"
    ),
    "all pairs": dict(
        scheme="all", negatives="none", loss=LOSSES["infonce"](0.1), score="distmult"
    ),
    "all answers": dict(scheme="lcwa", negatives="none", mode="h_shard", loss=BCEWithLogitsLoss()),
    "a network": dict(scheme="embedding", score="conve"),
    "adam": dict(scheme="embedding", optimizer="adam"),
    "rowwise": dict(scheme="score", optimizer="rowwise_adagrad"),
}  # fmt: skip


@pytest.mark.parametrize("n_rank,n_shard", WORLDS[1:])
@pytest.mark.parametrize("case", sorted(CASES))
def test_ranks_take_the_steps_of_one_process(pools, case, n_rank, n_shard):
    expected = trained(n_shard, CASES[case])
    found = pools(n_rank).run(trained, n_shard, CASES[case])
    assert len(expected["losses"]) > 1
    for of_rank in found:
        assert_close(of_rank["losses"], expected["losses"])
        assert_close(of_rank["others"], expected["others"])
        for name, x in of_rank["others"].items():  # the very same bits on all ranks
            assert torch.equal(x, found[0]["others"][name]), name
    assert_close(torch.cat([of_rank["table"] for of_rank in found]), expected["table"])
    assert all(len(of_rank["table"]) == n_shard // n_rank for of_rank in found)
    for parts, whole in zip(zip(*(x["state"] for x in found)), expected["state"]):
        assert_close(torch.cat(parts), whole)


# -- what is sent, held and refused ----------------------------------------------------------------


def sent_in_a_step(n_shard: int, score: str) -> Dict[str, Any]:
    sampler = sampler_of(n_shard)
    score_fn = make_score(score, sampler.triple_set.sharding, 4, dim=8, dtype=torch.float32)
    runtime = make_runtime(
        EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True)),
        join(),
    )
    step = runtime.training_step(OPTIMIZERS["sgd"](list(runtime.model.parameters()), lr=0.1))
    (batch,) = list(runtime.dataloader(sampler))[:1]
    before = dict(runtime.exchange.sent)
    step(batch)
    columns = batch[0].columns
    return dict(
        sent={k: x - before[k] for k, x in runtime.exchange.sent.items()},
        n_micro=len(batch),
        n_row=columns["tail"][0].numel() + columns["negative"][0].numel(),  # B + N of a shard
        width=score_fn.entity_embedding.shape[-1],
        relation=score_fn.relation_embedding.numel(),
    )


@pytest.mark.parametrize("n_rank", [2, 4])
@pytest.mark.parametrize("score", ["complex", "transe"])
def test_a_step_sends_what_the_formula_says(pools, score, n_rank):
    # 2 (B + N) d s (n - 1) / n bytes of embeddings, there and back, with s = 4; of relations as many
    # as a ring all-reduce of their gradients and the loss.
    found = pools(n_rank).run(sent_in_a_step, n_rank, score)
    assert all(x == found[0] for x in found)
    (x, n) = (found[0], n_rank)
    rows = 2 * x["n_row"] * x["width"] * 4 * (n - 1) // n
    assert x["sent"]["all_to_all"] == x["n_micro"] * rows
    assert x["sent"]["all_reduce"] == x["n_micro"] * (2 * 4 * (x["relation"] + 1) * (n - 1) // n)
    assert x["sent"]["all_gather"] == 0


def made_where_hosted(n_shard: int) -> torch.Tensor:
    torch.manual_seed(3)
    with hosting(join().hosted(n_shard)):
        score_fn = ComplEx(False, Sharding.create(1001, n_shard, 0), 3, 8)
    return score_fn.entity_embedding.detach()


@pytest.mark.parametrize("n_rank,n_shard", WORLDS[1:])
def test_tables_begin_as_in_one_process(pools, n_rank, n_shard):
    parts = pools(n_rank).run(made_where_hosted, n_shard)
    assert torch.equal(torch.cat(parts), made_where_hosted(n_shard))


def error_of(make: Any) -> str:
    try:
        make()
    except ConfigError as error:
        return str(error)
    return "no error"


def refused() -> List[str]:
    sampler = sampler_of(4)

    def runtime(n_shard: int, **options: Any) -> Any:
        sharding = Sharding.create(37, n_shard, 0)
        embedding = Embedding(shape=12, sharding=sharding, **options)
        score_fn = ComplEx(False, sharding, 4, 6, entity_initializer=embedding)
        return make_runtime(OneVsAllBessKGE(score_fn), join())

    return [
        error_of(lambda: runtime(3)),
        error_of(lambda: runtime(4, regularizer=lambda x: x.sum())),
        error_of(lambda: DistributedExchange(5)),
        error_of(lambda: sampler.hosted_batch(Position(), DistributedExchange(4)) and None),
    ]


def test_what_ranks_cannot_do_is_said(pools):
    for found in pools(2).run(refused):
        assert "3 shards cannot be dealt evenly to 2 ranks; give n_shard = 4" in found[0]
        assert "write a subclass of EmbeddingRegularizer with its `mean`" in found[1]
        assert "5 shards cannot be dealt evenly to 2 ranks; give n_shard = 6" in found[2]
        assert found[3] == "no error"


def agreed(failing: int) -> Dict[str, Any]:
    ranks = join()

    def act() -> int:
        if ranks.rank == failing:
            raise OSError("no space")
        return ranks.rank

    found: Dict[str, Any] = {"flags": list(ranks.any(ranks.rank == 1, False))}
    for name in ("each", "first"):
        try:
            found[name] = getattr(ranks, name)(act)
        except (OSError, WorkerLostError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return {**found, "gathered": ranks.gather({"rank": ranks.rank, "text": "ä" * ranks.rank})}


def test_ranks_agree_on_what_one_of_them_met(pools):
    found = pools(2).run(agreed, 1)
    assert found[0]["each"] == "WorkerLostError: rank 1: OSError: no space"
    assert found[1]["each"] == "OSError: no space" and found[1]["first"] == 0
    assert all(x["flags"] == [True, False] for x in found)
    assert found[0]["gathered"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ä"}]
    found = pools(2).run(agreed, 0)
    assert found[0]["first"] == "OSError: no space"
    assert found[1]["first"] == "WorkerLostError: rank 0: OSError: no space"


def left_early(n_shard: int) -> float:
    """Leave a loader after a batch, while others are made."""
    sampler = sampler_of(n_shard)
    score_fn = make_score("complex", sampler.triple_set.sharding, 4)
    model = EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True))
    runtime, ranks = make_runtime(model, join()), join()
    step = runtime.training_step(OPTIMIZERS["sgd"](list(model.parameters()), lr=0.1))
    for _ in range(3):
        batch = next(runtime.dataloader(sampler))
        if ranks.rank == 1:
            time.sleep(0.05)  # the other has made more of its batches by now
    return float(step(batch)["loss"].mean())


def test_a_loader_may_be_left_early(pools):
    assert len(set(pools(2).run(left_early, 2))) == 1
