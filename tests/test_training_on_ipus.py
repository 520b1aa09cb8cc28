"""Whole runs with device ipu: emulated, and through the double of PopTorch; none ran on an IPU."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import poptorch_double
import pytest
import torch
from rich.console import Console
from support import needs_half
from test_training import last, load_family, losses, quiet, same_bits, small, weights

from besskge_core.errors import CheckpointError, ConfigError
from besskge_core.runtime import Ranks
from besskge_core.training import TrainingConfig, load_run, train
from besskge_core.training.checkpoint import load_checkpoint, save_checkpoint
from besskge_core.training.trainer import Trainer

TARGETS = ["emulate", "hardware"]


def on_ipus(target: str, **flags: Any) -> TrainingConfig:
    return small(
        **{
            "device": "ipu", "ipu_target": target, "n_shard": 2, "optimizer": "adam", "lr": 0.02,
            "batch_size": 256, "n_negative": 16,
            **flags,
        }
    )  # fmt: skip


def run(config: TrainingConfig, folder: Path, **options: Any) -> Any:
    with ExitStack() as stack:
        if config.ipu.ipu_target == "hardware":
            stack.enter_context(poptorch_double.installed(n_ipu=2))
        return train(config, folder, **options)


def test_a_run_is_the_same_emulated_and_on_ipus(tmp_path):
    options = dict(device_iterations=2, gradient_accumulation=2)
    for target in TARGETS:
        result = run(on_ipus(target, **options), tmp_path / target)
        assert result.metrics["test"]["mrr"] > 0.1  # untrained, it is below 0.01
        assert json.loads((tmp_path / target / "metrics.json").read_text())["best_epoch"] >= 0
    found = [torch.tensor(losses(tmp_path / target)) for target in TARGETS]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    assert load_run(tmp_path / "hardware").score_fn.entity_embedding.isfinite().all()


@pytest.mark.parametrize(
    "target,optimizer",
    [
        *(("emulate", name) for name in ("sgd", "adam", "adamw", "rmsprop", "lamb")),
        ("hardware", "sgd"),
        ("hardware", "lamb"),
    ],
)
def test_a_run_that_is_resumed_ends_with_the_same_bits(tmp_path, target, optimizer):
    config = on_ipus(target, optimizer=optimizer, epochs=2)
    run(config, tmp_path / "whole")
    run(on_ipus(target, optimizer=optimizer, epochs=1), tmp_path / "parts")
    stored = weights(tmp_path / "parts")
    assert any("/ipu_state/" in name for name in stored) is (
        target == "hardware" and optimizer != "sgd"
    )
    run(config, tmp_path / "parts", resume=True)
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_run_that_is_stopped_within_an_epoch_goes_on_there(tmp_path, monkeypatch):
    config = on_ipus("hardware", epochs=2, checkpoint_seconds=0.0)
    run(config, tmp_path / "whole")
    saved = Trainer._save

    def saved_once(self: Trainer) -> None:
        saved(self)
        if self.state.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", saved_once)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts")
    monkeypatch.setattr(Trainer, "_save", saved)
    assert "step-000003" in last(tmp_path / "parts").name
    run(config, tmp_path / "parts", resume=True)
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_state_of_ipus_fits_nothing_else(tmp_path):
    config = on_ipus("hardware", epochs=1)
    run(config, tmp_path / "ipu")
    run(on_ipus("emulate", epochs=1), tmp_path / "emulated")
    cases = [
        ("emulate", {}, "ipu", "is that of IPUs; go on there"),
        ("hardware", {}, "emulated", "holds no optimiser state of IPUs; go on where it was"),
        ("hardware", {"n_shard": 4}, "ipu", "of another number of shards; go on with as many"),
    ]
    for target, flags, folder, message in cases:
        other = on_ipus(target, **flags)
        with poptorch_double.installed():
            trainer = Trainer(other, load_family(other), tmp_path / "none", quiet())
            table = trainer.score_fn.entity_embedding
            before = table.detach().clone()
            with pytest.raises(CheckpointError, match=message):
                load_checkpoint(last(tmp_path / folder), trainer.score_fn, trainer.parts.optimizer)
            assert torch.equal(table, before)
            load_checkpoint(last(tmp_path / folder), trainer.score_fn)  # weights fit all
            assert not torch.equal(table, before)


def test_a_checkpoint_before_the_first_step_has_no_state(tmp_path):
    config = on_ipus("hardware")
    with poptorch_double.installed(n_ipu=2):
        trainer = Trainer(config, load_family(config), tmp_path / "run", quiet())
        save_checkpoint(tmp_path / "first", trainer.score_fn, trainer.parts.optimizer)
        load_checkpoint(tmp_path / "first", trainer.score_fn, trainer.parts.optimizer)


def test_the_run_says_what_its_program_needs(tmp_path):
    with open(os.devnull, "w") as file:
        console = Console(file=file, record=True, width=200)
        train(on_ipus("emulate", epochs=1), tmp_path / "run", console=console)
    assert "2 IPUs (POD4), predicted memory of each:" in console.export_text()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=needs_half)])
def test_narrow_tables_are_trained_and_stored(tmp_path, dtype):
    flags: Any = dict(table_dtype=dtype, epochs=2)
    if dtype == "float16":
        config = on_ipus("emulate", state_dtype="float16", **flags)
    else:
        config = small(**flags)
    result = train(config, tmp_path / "run")
    table = load_run(tmp_path / "run").score_fn.entity_embedding
    assert table.dtype == getattr(torch, dtype) and table.isfinite().all()
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize(
    "flags,message",
    [
        (dict(device="cpu", optimizer="adamw"), "optimizer 'adamw' is for device 'ipu', got 'cpu'"),
        (dict(device="cpu", device_iterations=2), "are for device 'ipu'"),
        (dict(gradient_accumulation=0), "gradient_accumulation must be at least 1, got 0"),
        (dict(weight_decay=0.1), "adds weight decay to gradients: give adamw"),
        (dict(optimizer="adagrad"), "no optimiser 'adagrad' on IPUs; .*'rmsprop'"),
        (dict(scheme="all", loss="crossentropy"), "makes its gradients a tile at a time"),
        (dict(table_dtype="bfloat16"), "bfloat16, .* which IPUs have not"),
        (dict(available_memory=2.0), r"available_memory must be in \(0, 1\]"),
        (dict(n_shard=3), "IPUs come in powers of two"),
    ],
)
def test_what_ipus_cannot_do_is_refused(tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        train(on_ipus("emulate", **flags), tmp_path / "run")


def test_several_processes_are_refused(tmp_path):
    config = on_ipus("emulate")
    ranks = Ranks(0, 2, torch.device("ipu"))
    with pytest.raises(ConfigError, match="2 processes with device 'ipu'"):
        Trainer(config, load_family(config), tmp_path / "run", quiet(), ranks)
