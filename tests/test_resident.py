"""A step with batches drawn on the device gives what the local runtime gives, and waits for nobody.

Here the device is the CPU, in plain torch as a GPU runs it where no kernel of its own serves; what
only a GPU can show is in `test_resident_runs`.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from pairs_support import native
from resident_support import CASES, Case, poison, resident, same_bits
from torch.utils._python_dispatch import TorchDispatchMode

from besskge_core.bess import fused
from besskge_core.bess.resident_filter import ResidentFilter
from besskge_core.errors import NonFiniteLossError
from besskge_core.negative_sampler import TripleBasedShardedNegativeSampler
from besskge_core.optim import OPTIMIZERS, Adagrad
from besskge_core.philox import Position
from besskge_core.runtime import LocalRuntime, ResidentRuntime
from besskge_core.runtime import resident as module
from besskge_core.runtime import window as window_module

sampled_loss = sys.modules["besskge_core.ops.sampled_loss"]


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
        self.copied, self.shapes, self.called = [], [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[-1]
        self.called.add(name)
        out = function(*args, **(kwargs or {}))
        made = out.device if isinstance(out, torch.Tensor) else None
        read = [x.device for x in args if isinstance(x, torch.Tensor) and made is not None]
        if "lift" in name or any(device != made for device in read):
            self.copied.append(name)
        if made is not None:
            self.shapes.append((name, tuple(out.shape)))
        return out


without_contents = pytest.mark.skipif(
    not hasattr(torch.library, "register_fake"),
    reason="this torch computes too little without contents",
)


def check_static(case):
    """Steps copy nothing from another device, and compute the same shapes in each epoch; the names
    of the operations of one."""
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
    return watched.called


@without_contents
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_nothing_waits_for_the_device_and_shapes_are_static(graph, options):
    check_static(Case(graph, **options))


@without_contents
@native
@pytest.mark.parametrize("flat", [True, False])
def test_the_loss_in_one_operation_waits_for_nobody_either(graph, flat, monkeypatch):
    for holder in (fused, sampled_loss):
        monkeypatch.setattr(holder, "serves", lambda table: True)
    assert "sampled_loss" in check_static(Case(graph, flat=flat))


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
    moments = {k: x.clone() for k, x in case.optimizer.state[entities].items() if k != "step"}
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
    assert all(torch.equal(case.optimizer.state[entities][k], x) for k, x in moments.items())
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
    def given(make):
        case = Case(graph)
        sharding, lists = case.model.score_fn.sharding, np.arange(10)[None]
        negatives = TripleBasedShardedNegativeSampler(None, lists, sharding, "t", 0)
        case.sampler.negative_sampler = case.model.negative_sampler = negatives
        return case.followed(make)

    made = []

    def noted(model):
        made.append(resident(model))
        return made[-1]

    assert same_bits(given(noted), given(LocalRuntime))
    assert made[0].reason == "negatives are given, not drawn"
    assert "batches are made on the host and copied to cpu" in caplog.text


def test_too_many_entities_are_filtered_on_the_host(graph):
    case = Case(graph, known=True)
    case.model.negative_sampler.known.n_entity = 2**31
    runtime = resident(case.model)
    assert "too many to number the true triples" in runtime._why_on_host(case.sampler)


@pytest.mark.parametrize("n_hub", [0, 4])
@pytest.mark.parametrize("scheme", ["h", "t", "ht", "either"])
@pytest.mark.parametrize("flat", [False, True])
def test_true_triples_are_those_that_the_host_finds(graph, scheme, flat, n_hub):
    case = Case(graph, scheme=scheme, flat=flat, n_hub=n_hub, inverse=True, known=True)
    module, n_found = case.model, 0
    found = ResidentFilter(
        module.negative_sampler.known, module.score_fn.sharding, torch.device("cpu")
    )
    for step in range(case.sampler.n_step):
        batch = case.sampler.batch(Position(0, step))
        micro = {name: x[0] for name, x in batch.items() if name in module.inputs}
        kept = found.kept(module, micro)
        pairs = module.filter_negatives(micro)
        expected = torch.ones_like(kept)
        for shard, of_shard in enumerate(pairs):
            query, column = of_shard[of_shard[:, 0] >= 0].long().T
            expected[shard, query, column] = False
        assert torch.equal(kept, expected)
        n_found += int((~kept).sum())
    assert n_found > 10


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


def test_batches_of_the_host_may_come_between(graph, plain):
    case, other = Case(graph, optimizer="adam"), Case(graph, optimizer="adam")
    runtime, local = resident(case.model), LocalRuntime(other.model)
    step, own = runtime.training_step(case.optimizer), local.training_step(other.optimizer)
    batches = zip(runtime.dataloader(case.sampler, 0), local.dataloader(other.sampler, 0))
    for i, (turn, planned) in enumerate(batches):
        batch = planned if i % 3 == 2 else turn
        assert torch.equal(step(batch)["loss"], own(planned)["loss"])


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
