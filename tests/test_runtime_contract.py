"""One contract of all runtimes: of the same batches the same losses, weights, outputs and checkpoints.

What they must give is written out here: forward, backward and update of one process, in plain torch.
IPUs are those of the double in `poptorch_double`, or emulated; none of this has run on an IPU.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Optional

import poptorch_double
import pytest
import torch
from ranks import small_graph
from support import by_entity, make_score
from test_distributed import sampler_of
from torch.testing import assert_close

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE, TopKQueryBessKGE
from besskge_core.embedding import Embedding, unshard_rows
from besskge_core.exchange import LocalExchange
from besskge_core.loss import LOSSES
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import PlaceholderNegativeSampler
from besskge_core.philox import Position
from besskge_core.regularizer import REGULARIZERS
from besskge_core.runtime import (
    IPURuntime,
    IPUSettings,
    LocalRuntime,
    join,
    make_ipu_runtime,
    make_runtime,
)
from besskge_core.runtime.ipu import make_optimizer
from besskge_core.sharding import PartitionedTripleSet, Sharding
from besskge_core.training.checkpoint import load_checkpoint, save_checkpoint

RUNTIMES = ["local", "distributed", "ipu", "emulated"]
#: Ranks of the distributed one.
N_RANK = 2

TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}  # fmt: skip

Settings = Dict[str, Any]

EVALUATION = Evaluation(["mrr", "hits@3"], return_ranks=True)


class Parts:
    """The model of a case, its batches, and a runtime; each begins with the same weights."""

    def __init__(self, settings: Settings, runtime: Optional[str]) -> None:
        self.settings, self.kind = dict(settings), runtime
        get = self.settings.get
        self.sampler = sampler_of(
            get("n_shard", 4), get("negatives", "flat"), get("rigid", True), hubs=get("hubs", False)
        )
        self.sharding = self.sampler.triple_set.sharding
        entities: Dict[str, Any] = {}
        if get("embedding"):
            torch.manual_seed(0)
            entities["entity_initializer"] = Embedding(
                shape=12, sharding=self.sharding, **get("embedding")
            )
        self.score_fn = make_score(
            get("score", "complex"), self.sharding, 4, dtype=torch.float32, **entities
        )
        name, arguments = get("loss", ("logsigmoid", dict(margin=1.0)))
        arguments = {"negative_adversarial_sampling": True, **arguments}
        if name == "sampledsoftmax":
            del arguments["negative_adversarial_sampling"]
        penalty = get("regularizer")
        self.model = get("mover", EmbeddingMovingBessKGE)(
            self.sampler.negative_sampler,
            self.score_fn,
            LOSSES[name](**arguments),
            EVALUATION if get("scores") else None,
            return_scores=bool(get("scores")),
            regularizer=None if penalty is None else REGULARIZERS[penalty](weight=0.1),
            **({"augment_negative": True} if get("augment") else {}),
        )
        self.runtime = None if runtime is None else self._runtime(runtime)

    def _runtime(self, kind: str) -> Any:
        if kind == "ipu":
            accumulation = self.settings.get("accumulation", 1)
            return IPURuntime(self.model, IPUSettings(accumulation), n_worker=1)
        if kind == "emulated":
            settings = IPUSettings(self.settings.get("accumulation", 1), target="emulate")
            return make_ipu_runtime(self.model, settings)
        if kind == "distributed":
            return make_runtime(self.model, join())
        return LocalRuntime(self.model)

    def optimizer(self) -> torch.optim.Optimizer:
        name, options = self.settings.get("optimizer", ("sgd", dict(lr=0.1)))
        parameters = list(self.model.parameters())
        if self.kind in ("ipu", "emulated"):
            target = {"ipu": "hardware", "emulated": "emulate"}[self.kind]
            return make_optimizer(name, parameters, target=target, **options)
        return TORCH_OPTIMIZERS[name](parameters, **options)

    def weights(self) -> Dict[str, torch.Tensor]:
        named = self.score_fn.state_dict(keep_vars=True).items()
        table = self.score_fn.entity_embedding
        others = {name: x.detach() for name, x in named if x is not table}
        return dict(table=table.detach(), **others)


def followed(kind: str, settings: Settings, n_epoch: int = 2) -> Dict[str, Any]:
    """A few epochs of a runtime, and what the model gives afterwards."""
    with ExitStack() as stack:
        if kind == "ipu":
            stack.enter_context(poptorch_double.installed(n_ipu=settings.get("n_shard", 4)))
        parts = Parts(settings, kind)
        runtime, optimizer = parts.runtime, parts.optimizer()
        step, outputs = runtime.training_step(optimizer), []
        for epoch in range(n_epoch):
            outputs += [step(batch) for batch in runtime.dataloader(parts.sampler, epoch)]
            optimizer.param_groups[0]["lr"] *= 0.5
        inferred = runtime.inference_step()(next(runtime.dataloader(parts.sampler, 7)))
        runtime.to_host()
        return dict(outputs=outputs, inferred=inferred, weights=parts.weights())


def by_hand(settings: Settings, n_epoch: int = 2) -> Dict[str, Any]:
    """The same, written out."""
    parts = Parts(settings, None)
    model, optimizer, outputs = parts.model, parts.optimizer(), []
    model.exchange = LocalExchange(parts.sharding.n_shard)
    for epoch in range(n_epoch):
        for number in range(parts.sampler.n_step):
            batch = parts.sampler.batch(Position(epoch, number))
            micros = [dict(zip(batch, x)) for x in zip(*(x.unbind() for x in batch.values()))]
            found = []
            for i, micro in enumerate(micros):
                out = model.train()(**micro)
                n_sum = settings.get("accumulation", 1)
                (out["loss"] / n_sum).backward()
                found.append({name: x.detach() for name, x in out.items()})
                if (i + 1) % n_sum == 0:
                    for x in model.parameters():
                        if x.grad is not None and x.grad.is_sparse:
                            x.grad = x.grad.to_dense()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            outputs.append(stacked(found))
        optimizer.param_groups[0]["lr"] *= 0.5
    batch = parts.sampler.batch(Position(7, 0))
    micros = [dict(zip(batch, x)) for x in zip(*(x.unbind() for x in batch.values()))]
    with torch.no_grad():
        inferred = stacked([model.eval()(**micro) for micro in micros])
    return dict(outputs=outputs, inferred=inferred, weights=parts.weights())


def stacked(outputs: List[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
    return {name: torch.stack([out[name] for out in outputs]) for name in outputs[0]}


def of_runtime(kind: str, pools: Any, settings: Settings, n_epoch: int = 2) -> Dict[str, Any]:
    """What a runtime makes of a case, of all its ranks together."""
    if kind != "distributed":
        return followed(kind, settings, n_epoch)
    found = pools(N_RANK).run(followed, kind, settings, n_epoch)
    table = torch.cat([x["weights"].pop("table") for x in found])
    weights = dict(table=table, **found[0]["weights"])
    outputs = [joined(x) for x in zip(*(x["outputs"] for x in found))]
    return dict(outputs=outputs, inferred=joined([x["inferred"] for x in found]), weights=weights)


def joined(of_ranks: Any) -> Dict[str, torch.Tensor]:
    """Outputs of ranks: the loss is the same on all, of the rest each has its queries."""
    out = dict(of_ranks[0])
    for name in set(out) - {"loss"}:
        axis = -1 if name == "metrics" else 1
        out[name] = torch.cat([x[name] for x in of_ranks], dim=axis)
    if "loss" in out and not out["loss"].equal(of_ranks[-1]["loss"]):  # inference reduces nothing
        out["loss"] = torch.stack([x["loss"] for x in of_ranks]).mean(0)
    return out


CASES: Dict[str, Settings] = {
    "embedding": dict(),
    "score": dict(mover=ScoreMovingBessKGE),
    "embedding, scores and ranks": dict(scores=True),
    "score, scores and ranks": dict(mover=ScoreMovingBessKGE, scores=True),
    "random batches": dict(rigid=False),
    "per triple": dict(negatives="uniform", score="transe", scores=True),
    "per triple, score": dict(negatives="uniform", score="rotate", mover=ScoreMovingBessKGE),
    "typed": dict(negatives="typed"),
    "either side": dict(negatives="bernoulli"),
    "either side, score": dict(negatives="bernoulli", mover=ScoreMovingBessKGE),
    "hubs": dict(hubs=True),
    "hubs, score": dict(hubs=True, mover=ScoreMovingBessKGE, scores=True),
    "augmented": dict(augment=True, scores=True),
    "regularized": dict(regularizer="lp"),
    "regularized, score": dict(regularizer="lp", mover=ScoreMovingBessKGE),
    "a normalizer": dict(embedding=dict(normalizer="normalize")),
    "margin ranking": dict(loss=("marginranking", dict(margin=1.0)), score="transe"),
    "softmax": dict(loss=("sampledsoftmax", dict(n_entity=37)), score="distmult"),
    "uniform weights": dict(
        loss=("logsigmoid", dict(margin=1.0, negative_adversarial_sampling=False))
    ),
    "momentum": dict(optimizer=("sgd", dict(lr=0.05, momentum=0.9))),
    "weight decay": dict(optimizer=("sgd", dict(lr=0.05, weight_decay=0.1))),
    "adam": dict(optimizer=("adam", dict(lr=0.05))),
    "adamw": dict(optimizer=("adamw", dict(lr=0.05, weight_decay=0.1))),
    "rmsprop": dict(optimizer=("rmsprop", dict(lr=0.01))),
    "two shards": dict(n_shard=2),
}


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize("case", list(CASES))
def test_runtimes_keep_the_contract(pools, case, kind):
    expected, found = by_hand(CASES[case]), of_runtime(kind, pools, CASES[case])
    assert len(expected["outputs"]) > 2 and expected["outputs"][0]["loss"].shape == (2,)
    positions = [
        Position(epoch, i) for epoch in range(2) for i in range(len(found["outputs"]) // 2)
    ]
    for part in (expected, found):
        named = [*zip(positions, part["outputs"]), (Position(7, 0), part["inferred"])]
        for position, out in named:
            check_ranks(CASES[case], position, out)
    assert_close(found["outputs"], expected["outputs"], check_dtype=False)
    assert_close(found["inferred"], expected["inferred"], check_dtype=False)
    assert_close(found["weights"], expected["weights"])


def check_ranks(settings: Settings, position: Position, out: Dict[str, torch.Tensor]) -> None:
    """Ranks and metrics are those of a runtime's own scores: ties hang on their last bit."""
    if not settings.get("scores"):
        assert set(out) == {"loss"}
        return
    mask, evaluation = Parts(settings, None).sampler.batch(position)["triple_mask"], EVALUATION
    ranks, metrics = out.pop("ranks"), out.pop("metrics")
    for m in range(len(ranks)):
        own = evaluation.report(out["positive_score"][m], out["negative_score"][m], mask[m])
        assert torch.equal(ranks[m], own["ranks"]) and torch.equal(metrics[m], own["metrics"])


# -- what only some do -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ipu", "emulated"])
@pytest.mark.parametrize("case", [dict(), dict(optimizer=("adam", dict(lr=0.05)))])
def test_accumulated_gradients_make_one_update(kind, case):
    settings = dict(case, accumulation=2)
    expected, found = by_hand(settings), followed(kind, settings)
    assert_close(found["outputs"], expected["outputs"])
    assert_close(found["weights"], expected["weights"])
    assert not torch.allclose(expected["weights"]["table"], by_hand(case)["weights"]["table"])


# -- checkpoints -----------------------------------------------------------------------------------


def stored(kind: str, settings: Settings, path: str) -> None:
    """Train, and write a checkpoint."""
    with ExitStack() as stack:
        if kind == "ipu":
            stack.enter_context(poptorch_double.installed())
        parts = Parts(settings, kind)
        step = parts.runtime.training_step(parts.optimizer())
        for batch in parts.runtime.dataloader(parts.sampler):
            step(batch)
        parts.runtime.to_host()
        ranks = join() if kind == "distributed" else None
        save_checkpoint(Path(path), parts.score_fn, None, {"epoch": 1}, ranks)


def gone_on(kind: str, settings: Settings, path: str) -> Dict[str, Any]:
    """Read a checkpoint after steps from other weights, and go on with it."""
    with ExitStack() as stack:
        if kind == "ipu":
            stack.enter_context(poptorch_double.installed())
        parts = Parts(settings, kind)
        runtime, sampler = parts.runtime, parts.sampler
        step = runtime.training_step(parts.optimizer())
        step(next(runtime.dataloader(sampler)))
        ranks = join() if kind == "distributed" else None
        assert load_checkpoint(Path(path), parts.score_fn, ranks=ranks) == {"epoch": 1}
        runtime.to_device()
        outputs = [step(batch) for batch in runtime.dataloader(sampler, 1)]
        runtime.to_host()
        return dict(outputs=outputs, inferred={}, weights=parts.weights())


@pytest.mark.parametrize("reader", RUNTIMES)
@pytest.mark.parametrize("writer", RUNTIMES)
def test_a_run_goes_on_elsewhere(pools, tmp_path, writer, reader):
    settings: Settings = dict(mover=ScoreMovingBessKGE)
    path, rest = str(tmp_path / "stored"), dict(settings)
    if writer == "distributed":
        pools(N_RANK).run(stored, writer, settings, path)
    else:
        stored(writer, settings, path)
    if reader == "distributed":
        parts = pools(N_RANK).run(gone_on, reader, rest, path)
        table = torch.cat([x["weights"]["table"] for x in parts])
        found = dict(parts[0], weights=dict(parts[0]["weights"], table=table))
    else:
        found = gone_on(reader, rest, path)
    expected = by_hand(settings, 1)
    again = Parts(settings, "local")
    with torch.no_grad():
        for name, x in again.weights().items():
            x.copy_(expected["weights"][name])
    step = again.runtime.training_step(again.optimizer())
    # `by_hand` of one epoch, and then another with the learning rate as it was.
    outputs = [step(again.sampler.batch(Position(1, i))) for i in range(again.sampler.n_step)]
    assert_close(found["outputs"], outputs)
    assert_close(found["weights"], again.weights())


def test_what_ipus_trained_is_asked_on_a_laptop(tmp_path):
    settings: Settings = dict(score="rotate")
    stored("ipu", settings, str(tmp_path / "stored"))
    trained = by_hand(settings, 1)["weights"]
    elsewhere = Sharding.create(37, 1, seed=5)  # one shard, and other rows
    score_fn = make_score("rotate", elsewhere, 4, dtype=torch.float32)
    load_checkpoint(tmp_path / "stored", score_fn)
    sharding = Parts(settings, None).sharding
    assert_close(by_entity(score_fn), unshard_rows(trained["table"], sharding))


# -- queries ---------------------------------------------------------------------------------------


def answered(kind: str, n_shard: int = 4) -> Dict[str, torch.Tensor]:
    graph = small_graph()
    sharding = Sharding.create(graph.n_entity, n_shard, 0)
    triples = PartitionedTripleSet.create_from_dataset(graph, "valid", sharding, "h_shard")
    candidates = PlaceholderNegativeSampler("t")
    sampler = RigidShardedBatchSampler(triples, candidates, 3, 2, seed=0)
    score_fn = make_score("complex", sharding, 4, dtype=torch.float32)
    model = TopKQueryBessKGE(3, candidates, score_fn, EVALUATION, True, window_size=4)
    with ExitStack() as stack:
        if kind == "ipu":
            stack.enter_context(poptorch_double.installed())
        runtime = IPURuntime(model) if kind == "ipu" else make_runtime(model, join())
        if kind == "emulated":
            runtime = make_ipu_runtime(model, IPUSettings(target="emulate"))
        if kind == "local":
            runtime = LocalRuntime(model)
        step = runtime.inference_step()
        outputs = [step(batch) for batch in runtime.dataloader(sampler, shuffle=False)]
    return {name: torch.cat([out[name] for out in outputs]) for name in outputs[0]}


@pytest.mark.parametrize("kind", ["distributed", "ipu", "emulated"])
def test_queries_have_the_same_answers(pools, kind):
    expected = answered("local")
    of_ranks = kind == "distributed"
    found = joined(pools(N_RANK).run(answered, kind)) if of_ranks else answered(kind)
    assert expected["topk_global_id"].shape[2] == 3
    assert_close(found, expected)
