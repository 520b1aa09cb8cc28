"""What the examples and their configurations promise."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from besskge_core.catalogue import BENCHMARKS, GENERATORS
from besskge_core.config import load
from besskge_core.training import TrainingConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_page_to_read_runs_and_learns(capsys):
    assert load_example("train").main(epochs=8, n_person=128) > 0.3  # chance is 0.04
    assert "epoch 8  loss" in capsys.readouterr().out


def test_a_program_in_upstreams_manner_runs_and_learns(capsys):
    mrr = load_example("besskge_style").main(
        epochs=12, n_person=128, embedding_size=16, shard_bs=32, seed=0
    )
    assert mrr["after"] > 3 * mrr["before"] > 0
    out = capsys.readouterr().out
    assert "epoch 12  loss" in out and "valid, given negatives: hits@1" in out
    assert out.count(" parent_of: ") > 0 and "one more epoch  loss" in out


def test_a_program_in_the_manner_of_pykeen_runs_and_learns(capsys):
    assert load_example("pykeen_style").main(epochs=10, n_person=128) > 0.3  # chance is 0.04
    assert "epoch 10  loss" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("configs/*.toml")), ids=lambda p: p.stem)
def test_every_configuration_is_one_of_a_known_data_set(path):
    config = load(TrainingConfig, path)
    assert config.data.dataset in {*BENCHMARKS, *GENERATORS}
    assert path.stem.startswith(f"{config.data.dataset}-{config.model.score_function}")
