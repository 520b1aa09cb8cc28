"""Runs on the device, and what only a GPU can show: none of the latter has run on one."""

from __future__ import annotations

import pytest
import torch
from resident_support import CASES, Case, poison
from safetensors.torch import load_file

from besskge_core.errors import ConfigError, NonFiniteLossError
from besskge_core.philox import Position
from besskge_core.runtime import LocalRuntime, ResidentRuntime, runtime_alone
from besskge_core.runtime import resident as module
from besskge_core.runtime.devices import checked_device
from besskge_core.training import train
from besskge_core.training.checkpoint import find_checkpoints
from besskge_core.training.config import (
    BatchConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)


def test_a_gpu_that_is_not_there_is_refused_by_name():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"device is 'cuda', but this torch \(.*\) has no CUDA"):
        checked_device("cuda")
    with pytest.raises(ConfigError, match="expected 'cpu', 'cuda' or 'cuda:0'"):
        checked_device("gpu")


def config_of(seconds, **optimizer):
    return TrainingConfig(
        DataConfig("family", dict(n_person=60)),
        ModelConfig(score_function="distmult", dim=8),
        BatchConfig(n_shard=2, batch_size=64, n_negative=16),
        optimizer=OptimizerConfig(**optimizer),
        run=RunConfig(epochs=3, checkpoint_seconds=seconds, trackers=""),
    )


def trained(folder, monkeypatch, make, seconds=1000.0, **optimizer):
    monkeypatch.setattr("besskge_core.runtime.distributed.runtime_alone", make)
    return train(config_of(seconds, **optimizer), folder)


def on_device(model, device, n_worker):
    return ResidentRuntime(model, "cpu", n_worker)


def test_a_run_is_the_same_on_the_device(tmp_path, plain, monkeypatch):
    runs = {
        name: trained(tmp_path / name, monkeypatch, make, schedule="linear", warmup=0.2)
        for name, make in (("device", on_device), ("host", runtime_alone))
    }
    losses = {name: [x["loss"] for x in run.history] for name, run in runs.items()}
    assert losses["device"] == losses["host"]
    assert runs["device"].metrics == runs["host"].metrics


def test_a_run_that_diverges_there_keeps_a_finite_checkpoint(tmp_path, plain, monkeypatch):
    with pytest.raises(NonFiniteLossError, match="the loss of one of the last 1 steps is"):
        trained(tmp_path / "run", monkeypatch, on_device, 0.0, lr=1e30)
    for checkpoint in find_checkpoints(tmp_path / "run" / "checkpoints"):
        for part in checkpoint.glob("*.safetensors"):
            assert all(x.isfinite().all() for x in load_file(part).values())


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
