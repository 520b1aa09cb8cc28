"""A step with batches drawn on the device gives what the local runtime gives, and waits for nobody.

Here the device is the CPU, in plain torch as a GPU runs it where no kernel of its own serves; what
only a GPU can show is marked `gpu`.
"""

from __future__ import annotations

import math

import pytest
import torch
from support import make_score
from torch.utils._python_dispatch import TorchDispatchMode

from besskge_core.batch_sampler import RandomShardedBatchSampler, RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, OneVsAllBessKGE, ScoreMovingBessKGE
from besskge_core.errors import ConfigError, NonFiniteLossError
from besskge_core.known import KnownTriples
from besskge_core.loss import LogSigmoidLoss, SampledSoftmaxCrossEntropyLoss
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
)
from besskge_core.ops import native
from besskge_core.optim import OPTIMIZERS, Adagrad
from besskge_core.philox import Position
from besskge_core.regularizer import LpRegularizer
from besskge_core.runtime import LocalRuntime, ResidentRuntime, runtime_alone
from besskge_core.runtime import resident as module
from besskge_core.runtime import window as window_module
from besskge_core.runtime.devices import checked_device
from besskge_core.sharding import PartitionedTripleSet, Sharding
from besskge_core.training import train
from besskge_core.training.config import (
    BatchConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)


@pytest.fixture
def plain(monkeypatch):
    """Operations are plain torch, as where no native library serves."""
    monkeypatch.setattr(native, "NATIVE", False)


class Case:
    """A model, its sampler and its optimiser; each begins with the same weights."""

    def __init__(
        self, graph, mover=EmbeddingMovingBessKGE, score="complex", flat=True, scheme="t",
        rigid=True, loss=None, optimizer="adagrad", n_shard=3, n_micro=2, dtype=torch.float32,
        weighted=False, **options,
    ) -> None:  # fmt: skip
        sharding = Sharding.create(graph.n_entity, n_shard, seed=0)
        triples = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
        make = RigidShardedBatchSampler if rigid else RandomShardedBatchSampler
        if mover is OneVsAllBessKGE:
            negatives = PlaceholderNegativeSampler("t")
        elif scheme == "either":
            negatives = BernoulliShardedNegativeSampler(triples, 3, 0, flat_negative_format=flat)
        else:
            negatives = RandomShardedNegativeSampler(3, sharding, 0, scheme, False, flat)
        self.sampler = make(triples, negatives, 12, n_micro, seed=3, hrt_freq_weighting=weighted)
        score_fn = make_score(score, sharding, 4, dtype=dtype)
        if mover is OneVsAllBessKGE:
            self.model = OneVsAllBessKGE(score_fn, sides=("tail",), **options)
        else:
            loss = LogSigmoidLoss(1.0, True) if loss is None else loss
            self.model = mover(negatives, score_fn, loss, **options)
        rate = dict(lr=0.1, weight_decay=0.01)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), seed=9, **rate)

    def followed(self, make, n_epoch=2, change=lambda optimizer: None):
        """Losses of some epochs, then weights and state."""
        runtime, losses = make(self.model), []
        for epoch in range(n_epoch):
            step = runtime.training_step(self.optimizer)
            for batch in runtime.dataloader(self.sampler, epoch):
                losses.append(step(batch)["loss"])
                change(self.optimizer)
        states = [self.optimizer.state[p] for p in self.model.parameters()]
        kept = [state[k] for state in states for k in sorted(state)]
        assert all(not isinstance(x, torch.Tensor) or x.is_floating_point() for x in kept)
        tensors = [torch.as_tensor(x) for x in kept]
        return [torch.stack(losses), *(p.detach() for p in self.model.parameters()), *tensors]


def resident(model):
    return ResidentRuntime(model, "cpu")


def same_bits(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


CASES = {
    "moving embeddings, rigid": dict(),
    "moving scores, random": dict(mover=ScoreMovingBessKGE, rigid=False),
    "candidates of each": dict(flat=False, scheme="ht"),
    "either side": dict(scheme="either", flat=False),
    "weights": dict(weighted=True, loss=SampledSoftmaxCrossEntropyLoss(37)),
    "distances": dict(score="rotate", scheme="h"),
    "a regularizer": dict(regularizer=LpRegularizer(0.1)),
    "augmented": dict(augment_negative=True),
    "one shard": dict(n_shard=1, flat=False),
    "half": dict(dtype=torch.bfloat16),
    "all entities": dict(mover=OneVsAllBessKGE),
    "all entities, distances": dict(mover=OneVsAllBessKGE, score="transe"),
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_steps_are_those_of_the_local_runtime(graph, plain, options, monkeypatch):
    monkeypatch.setattr(window_module, "MOST_STEPS", 2)  # several windows an epoch
    assert Case(graph, **options).sampler.n_step > 2
    local = Case(graph, **options).followed(LocalRuntime)
    assert same_bits(Case(graph, **options).followed(resident), local)
    assert len(local[0]) > 4


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimiser_reads_its_rates_and_steps_there(graph, plain, optimizer):
    def slower(optimizer):
        optimizer.param_groups[0]["lr"] *= 0.9

    options = dict(optimizer=optimizer, dtype=torch.bfloat16)
    local = Case(graph, **options).followed(LocalRuntime, change=slower)
    assert same_bits(Case(graph, **options).followed(resident, change=slower), local)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_native_operations_take_the_same_plans(graph, options):
    local = Case(graph, **options).followed(LocalRuntime)
    for x, y in zip(Case(graph, **options).followed(resident), local):
        torch.testing.assert_close(x, y)


class Watched(TorchDispatchMode):
    """Notes what is copied from another device, and the shapes of what is computed.

    Tensors of the device "meta" have no contents, so that looking at them, or a shape that depends
    on them, is an error there already.
    """

    def __init__(self):
        super().__init__()
        self.copied, self.shapes = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[-1]
        out = function(*args, **(kwargs or {}))
        made = out.device if isinstance(out, torch.Tensor) else None
        read = [x.device for x in args if isinstance(x, torch.Tensor) and made is not None]
        if "lift" in name or any(device != made for device in read):
            self.copied.append(name)
        if made is not None:
            self.shapes.append((name, tuple(out.shape)))
        return out


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_nothing_waits_for_the_device_and_shapes_are_static(graph, options):
    case = Case(graph, **options)
    runtime = ResidentRuntime(case.model, "meta")
    step = runtime.training_step(case.optimizer)
    step(next(iter(runtime.dataloader(case.sampler, 0))))  # which makes the state
    shapes = []
    for epoch in (0, 1):
        turn = list(runtime.dataloader(case.sampler, epoch))[2]
        with Watched() as watched:
            step(turn)
        assert watched.copied == []
        shapes.append(watched.shapes)
    of_epoch = shapes[1][: -len(shapes[0])]  # a shuffle, and the window
    assert shapes[1] == of_epoch + shapes[0] and min(len(of_epoch), len(shapes[0])) > 50


def test_the_watch_sees_what_waits():
    x = torch.empty(3, device="meta")
    with Watched() as watched:
        torch.ones(3).to("meta")
        x.copy_(torch.ones(3))
    assert watched.copied == ["_to_copy", "copy_"]
    for waits in (lambda: float(x[0]), lambda: x[x > 1], lambda: x.nonzero(), lambda: x.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits()


def test_turns_may_be_taken_in_any_order_and_again(graph, plain, monkeypatch):
    monkeypatch.setattr(window_module, "MOST_STEPS", 2)
    case = Case(graph)
    runtime = resident(case.model)
    turns = [*runtime.dataloader(case.sampler, 0), *runtime.dataloader(case.sampler, 1)]
    order = torch.randperm(len(turns), generator=torch.Generator().manual_seed(0)).tolist()
    for i in [*order, order[-1]]:
        own = case.sampler.batch(Position(turns[i].epoch, turns[i].step))
        for m, micro in enumerate(turns[i]):
            assert torch.equal(micro.columns["negative"], own["negative"][m])
            assert torch.equal(micro.columns["head"], own["head"][m])


def poison(case):
    with torch.no_grad():
        case.model.entity_embedding.fill_(math.nan)


def test_no_weight_changes_once_a_loss_was_not_finite(graph, plain, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 4)
    case = Case(graph, optimizer="adam")
    runtime = resident(case.model)
    step = runtime.training_step(case.optimizer)
    turns = [x for epoch in range(4) for x in runtime.dataloader(case.sampler, epoch)]
    assert step(turns.pop())["loss"].isfinite().all()
    relations = case.model.score_fn.relation_embedding
    entities = case.model.entity_embedding
    kept = [relations.detach().clone(), entities.detach().clone()]
    with torch.no_grad():
        relations.fill_(math.nan)
    assert step(turns.pop())["loss"].isnan().all()
    with torch.no_grad():
        relations.copy_(kept[0])
    n_left = len(turns)
    with pytest.raises(NonFiniteLossError, match="4 to 8 micro-batches ago"):
        while turns:
            step(turns.pop())
    assert torch.equal(relations, kept[0]) and torch.equal(entities, kept[1])
    assert 1 <= n_left - len(turns) <= 4  # of two micro-batches each
    step(turns.pop())  # after which all goes on
    assert not torch.equal(entities, kept[1])


def test_other_optimisers_and_callers_look_at_each_step(graph, plain):
    case = Case(graph)
    called = []
    runtime = resident(case.model)
    step = runtime.training_step(case.optimizer, lambda: called.append(1))
    for turn in list(runtime.dataloader(case.sampler, 0))[:2]:
        step(turn)
    assert len(called) == 4
    poison(case)
    sgd = runtime.training_step(torch.optim.SGD(case.model.parameters(), lr=0.1))
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        sgd(next(iter(runtime.dataloader(case.sampler, 0))))


def test_what_the_host_must_make_is_made_there_and_said(graph, plain, caplog):
    def filtered(make):
        case = Case(graph)
        case.model.negative_sampler.known = KnownTriples.of(graph)
        return case.followed(make)

    made = []

    def noted(model):
        made.append(resident(model))
        return made[-1]

    assert same_bits(filtered(noted), filtered(LocalRuntime))
    assert "lists made on the host" in made[0].reason
    assert "batches are made on the host and copied to cpu" in caplog.text


def test_an_optimiser_may_be_loaded_between_steps(graph, plain):
    case, other = Case(graph, optimizer="adam"), Case(graph, optimizer="adam")
    runtime, local = resident(case.model), LocalRuntime(other.model)
    for epoch in range(3):
        step, own = runtime.training_step(case.optimizer), local.training_step(other.optimizer)
        batches = zip(
            runtime.dataloader(case.sampler, epoch), local.dataloader(other.sampler, epoch)
        )
        for turn, planned in batches:
            assert torch.equal(step(turn)["loss"], own(planned)["loss"])
        for x in (case, other):
            stored = x.optimizer.state_dict()
            for state in stored["state"].values():
                state["step"] += 5
            x.optimizer.load_state_dict(stored)


def test_inference_takes_turns_too(graph, plain):
    case = Case(graph)
    runtime, local = resident(case.model), LocalRuntime(case.model)
    turn, planned = (next(iter(x.dataloader(case.sampler, 1))) for x in (runtime, local))
    found = runtime.inference_step()(turn)["loss"]
    assert torch.equal(found, local.inference_step()(planned)["loss"])


@pytest.mark.parametrize("what", ["the tables take", "the optimiser's state takes"])
def test_what_does_not_fit_is_refused_before_it_is_made(graph, what, monkeypatch):
    case = Case(graph)
    runtime = resident(case.model)
    monkeypatch.setattr(module, "available_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match=f"{what} 0.0 GiB, but 0.0 GiB are free on (cpu|meta)"):
        if what.startswith("the tables"):
            ResidentRuntime(Case(graph).model, "meta")
        else:
            runtime.training_step(Adagrad(case.model.parameters(), lr=0.1))


# -- who chooses it ------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_refused_by_name():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"device is 'cuda', but this torch \(.*\) has no CUDA"):
        checked_device("cuda")
    with pytest.raises(ConfigError, match="expected 'cpu', 'cuda' or 'cuda:0'"):
        checked_device("gpu")


def test_a_run_is_the_same_on_the_device(tmp_path, plain, monkeypatch):
    model = ModelConfig(score_function="distmult", dim=8)
    batch = BatchConfig(n_shard=2, batch_size=64, n_negative=16)
    settings = RunConfig(epochs=3, checkpoint_seconds=1000.0, trackers="")
    config = TrainingConfig(DataConfig("family", dict(n_person=60)), model, batch, run=settings)

    def followed(name, make):
        monkeypatch.setattr("besskge_core.runtime.distributed.runtime_alone", make)
        found = train(config, tmp_path / name)
        return [[x[k] for k in ("epoch", "loss")] for x in found.history], found.metrics

    def on_device(model, device, n_worker):
        return ResidentRuntime(model, "cpu", n_worker)

    assert followed("device", on_device) == followed("host", runtime_alone)


# -- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_gpu_replays_the_step_as_a_graph_and_agrees_with_the_host(graph, options):
    local = Case(graph, **options)
    local.model.to("cpu")
    expected = local.followed(LocalRuntime, n_epoch=4)
    case = Case(graph, **options)
    made = []

    def on_gpu(model):
        made.append(ResidentRuntime(model, "cuda"))
        return made[-1]

    found = case.followed(on_gpu, n_epoch=4)
    runtime = made[0]
    program, drawing = runtime._programs[0], runtime._drawing
    assert program.run.is_captured, program.run.reason
    assert not drawing.fill.reason
    half = options.get("dtype") is torch.bfloat16
    # Sums have another order there.
    tolerance = dict(rtol=5e-2, atol=5e-2) if half else dict(rtol=1e-3, atol=1e-4)
    for x, y in zip(found, expected):
        torch.testing.assert_close(x.cpu(), y.to(x.dtype), **tolerance)


@pytest.mark.gpu
def test_a_gpu_draws_the_batches_of_the_host(graph):
    case = Case(graph, n_micro=1)
    runtime = ResidentRuntime(case.model, "cuda")
    for epoch in range(2):
        for step, turn in enumerate(runtime.dataloader(case.sampler, epoch)):
            own = case.sampler.batch(Position(epoch, step))
            (micro,) = turn
            for name, x in micro.columns.items():
                assert torch.equal(x.cpu(), own[name][0])


@pytest.mark.gpu
def test_a_gpu_does_not_wait_for_the_host(graph):
    case = Case(graph)
    runtime = ResidentRuntime(case.model, "cuda")
    step = runtime.training_step(case.optimizer)
    turns = list(runtime.dataloader(case.sampler, 0))
    step(turns[0])
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(turns[1])  # launched operation by operation, before the capture
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
def test_a_gpu_stops_when_a_loss_is_not_finite(graph, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 8)
    case = Case(graph)
    runtime = ResidentRuntime(case.model, "cuda")
    step = runtime.training_step(case.optimizer)
    with pytest.raises(NonFiniteLossError, match="8 to 16 micro-batches ago"):
        for epoch in range(20):
            for turn in runtime.dataloader(case.sampler, epoch):
                step(turn)
            if epoch == 3:
                poison(case)
