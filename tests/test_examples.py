"""What the examples and their configurations promise."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from besskge_core.catalogue import BENCHMARKS, GENERATORS
from besskge_core.config import load
from besskge_core.training import TrainingConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_first_page_to_read_runs_and_learns(capsys):
    spec = importlib.util.spec_from_file_location("train_example", EXAMPLES / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(epochs=8, n_person=128) > 0.3  # chance is 0.04
    assert "epoch 8  loss" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("configs/*.toml")), ids=lambda p: p.stem)
def test_every_configuration_is_one_of_a_known_data_set(path):
    config = load(TrainingConfig, path)
    assert config.data.dataset in {*BENCHMARKS, *GENERATORS}
    assert path.stem == f"{config.data.dataset}-{config.model.score_function}"
