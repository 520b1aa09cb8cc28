"""Training runs: what is learned, kept, resumed and refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from besskge_core.catalogue import load_dataset
from besskge_core.config import dump, replace_flags
from besskge_core.dataset import KGDataset
from besskge_core.errors import CheckpointError, ConfigError, DataWarning, NonFiniteLossError
from besskge_core.loss import LOSSES
from besskge_core.optim import OPTIMIZERS
from besskge_core.preparation import prepare
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.training import TrainingConfig, load_run, train
from besskge_core.training.build import build
from besskge_core.training.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint
from besskge_core.training.config import DataConfig, ModelConfig
from besskge_core.training.schedule import SCHEDULES, factor
from besskge_core.training.trainer import Trainer

SMALL: Dict[str, Any] = dict(
    dim=8, batch_size=128, n_negative=64, epochs=3, evaluate_every=1, threads=1, init_scale=0.1
)


def small(**flags: Any) -> TrainingConfig:
    config = TrainingConfig(data=DataConfig("family", {"n_person": 128}))
    return replace_flags(config, {**SMALL, **flags})


def load_family(config: TrainingConfig) -> KGDataset:
    return load_dataset(config.data.dataset, **config.data.dataset_options)


def quiet() -> Console:
    return Console(quiet=True)


def last(folder: Path) -> Path:
    return find_checkpoints(folder / "checkpoints")[-1]


def weights(folder: Path) -> Dict[str, torch.Tensor]:
    stored = {}
    for path in sorted(last(folder).glob("*.safetensors")):
        stored.update({f"{path.name}/{name}": x for name, x in load_file(path).items()})
    return stored


def same_bits(a: Dict[str, torch.Tensor], b: Dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(folder: Path) -> List[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_learns_the_graph(tmp_path):
    result = train(small(epochs=15, dim=16, evaluate_every=5), tmp_path / "run")
    assert result.metrics["test"]["mrr"] > 0.5
    assert losses(tmp_path / "run")[-1] < 0.5 * losses(tmp_path / "run")[0]


@pytest.mark.parametrize("n_shard", [1, 2, 7])
@pytest.mark.parametrize("scheme", ["embedding", "score"])
def test_every_number_of_shards_trains_with_either_scheme(tmp_path, n_shard, scheme):
    result = train(small(n_shard=n_shard, scheme=scheme, epochs=1), tmp_path / "run")
    assert result.metrics["test"]["mrr"] > 0.02  # chance is 0.01


SCORE_OPTIONS = {"conve": {"embedding_height": 2, "embedding_width": 4}}


@pytest.mark.parametrize("score_function", sorted(SCORE_FUNCTIONS))
def test_every_score_function_trains(tmp_path, score_function):
    config = small(init_scale=None, lr=0.05, regularization=0.01)
    model = replace(
        config.model, score_function=score_function,
        score_options=SCORE_OPTIONS.get(score_function, {}),
    )  # fmt: skip
    train(replace(config, model=model), tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize("score_function", ["transe", "complex"])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains(tmp_path, score_function, loss):
    config = small(
        score_function=score_function, loss=loss, init_scale=None, lr=0.05, regularization=0.01
    )
    train(config, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize(
    "score_function, options, message",
    [
        ("conve", {}, "conve needs score_options: embedding_height=..., embedding_width=..."),
        ("triplere", {"v": 1.0}, r"\['v'\], which triplere does not take; it takes.*'u'"),
        ("transe", {"embedding_size": 3}, r"\['embedding_size'\], which transe does not take"),
    ],
)
def test_a_score_function_gets_the_options_that_it_takes(score_function, options, message):
    model = ModelConfig(score_function=score_function, score_options=options)
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(model=model)


@pytest.mark.parametrize(
    "flags",
    [
        dict(corruption="either"),
        dict(corruption="either", inverse_relations=False, scheme="embedding"),
        dict(negatives="degree", degree_exponent=0.5),
        dict(negatives="typed", shared_negatives=False, inverse_relations=False),
        dict(filter_negatives=True),
        dict(replicate_hubs=20),
        dict(scheme="all"),
        dict(scheme="all", corruption="ht", inverse_relations=False, regularization=0.01),
        dict(replicate_hubs=20, scheme="embedding", corruption="ht", filter_negatives=True),
    ],
    ids=lambda flags: " ".join(flags),
)
def test_every_way_of_choosing_negatives_and_buckets_trains(tmp_path, flags):
    config = small(**flags)
    if flags.get("negatives") == "typed":
        config = replace(config, data=DataConfig("family", {"n_person": 128, "types": True}))
    train(config, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(corruption="either", negatives="degree"), "draws uniform negatives, got .*'degree'"),
        (dict(negatives="typed"), "give shared_negatives = false"),
        (dict(augment_negative=True, scheme="embedding", corruption="either"), "got 'either'"),
        (dict(replicate_hubs=-1), "replicate_hubs must be at least 0, got -1"),
        (
            dict(scheme="all", loss="logsigmoid"),
            "needs a loss of scores with labels.*got 'logsigmoid'",
        ),
        (dict(label_smoothing=0.1), "label_smoothing and relation_weight need scheme 'all'"),
        (dict(scheme="all", replicate_hubs=3), r"so that \['replicate_hubs'\] mean nothing"),
        (dict(scheme="all", augment_negative=True), "needs scheme 'embedding', got 'all'"),
    ],
)
def test_negatives_that_cannot_be_drawn_so_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        small(**flags)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("corruption, inverse", [("ht", False), ("t", True)])
def test_every_optimizer_trains_with_and_without_inverse_relations(
    tmp_path, optimizer, corruption, inverse
):
    config = small(optimizer=optimizer, corruption=corruption, inverse_relations=inverse)
    lr = 10.0 if optimizer == "sgd" else 0.05
    train(replace_flags(config, {"lr": lr, "sampler": "random"}), tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scheme", ["embedding", "score"])
def test_each_positive_is_scored_against_as_many_negatives_as_asked_for(tmp_path, shared, scheme):
    config = small(n_negative=64, n_shard=4, shared_negatives=shared, scheme=scheme)
    trainer = Trainer(config, load_family(config), tmp_path, quiet())
    trainer.parts.model.return_scores = True
    batch = next(iter(trainer.runtime.dataloader(trainer.parts.sampler)))
    out = trainer.runtime.inference_step()(batch)
    assert out["negative_score"].shape[-1] == 64


def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_bits(tmp_path):
    config = small(epochs=4)
    train(config, tmp_path / "undisturbed")
    flags = [
        f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, "epochs": 4}.items()
    ]
    (tmp_path / "c.toml").write_text(
        '[data]\ndataset = "family"\n[data.dataset_options]\nn_person = 128\n'
    )
    command = [
        sys.executable, "-m", "besskge_core", "train", "--config", str(tmp_path / "c.toml"),
        *flags, "--checkpoint-seconds=0", "--out", str(tmp_path / "killed"),
    ]  # fmt: skip
    moments = random.Random(0)
    for _ in range(3):
        resume = ["--resume"] if (tmp_path / "killed").exists() else []
        stored = len(find_checkpoints(tmp_path / "killed" / "checkpoints"))
        process = subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL)
        before = last(tmp_path / "killed") if stored else None
        while process.poll() is None and (
            not find_checkpoints(tmp_path / "killed" / "checkpoints")
            or last(tmp_path / "killed") == before
        ):
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    assert same_bits(weights(tmp_path / "killed"), weights(tmp_path / "undisturbed"))


def test_an_interrupted_run_stores_the_step_it_had_reached(tmp_path):
    config = small(epochs=500, evaluate_every=0, checkpoint_seconds=1e9)
    trainer = Trainer(config, load_family(config), tmp_path, quiet())
    steps: List[int] = []

    def interrupt_third_step(batch):
        steps.append(len(steps))
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(batch)

    original = trainer.runtime.training_step(trainer.parts.optimizer)
    trainer.runtime.training_step = lambda optimizer: interrupt_third_step
    with pytest.raises(KeyboardInterrupt, match="resume to go on"):
        trainer.run()
    assert last(tmp_path).name == "epoch-00000-step-000003"


def test_more_epochs_can_be_asked_for_when_resuming(tmp_path):
    train(small(epochs=4), tmp_path / "at_once")
    train(small(epochs=2), tmp_path / "in_two")
    result = train(small(epochs=4), tmp_path / "in_two", resume=True)
    assert same_bits(weights(tmp_path / "in_two"), weights(tmp_path / "at_once"))
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4]


def test_training_stops_early_says_why_and_keeps_the_best_weights(tmp_path):
    result = train(small(epochs=60, lr=10.0, patience=2), tmp_path / "run")
    validated = [record["valid_mrr"] for record in result.history]
    assert len(validated) < 60
    assert "mrr of the validation triples has not risen above" in result.stopped_because
    assert validated[-1] < max(validated) == result.metrics["valid"]["mrr"]
    assert load_run(tmp_path / "run").description.startswith("best weights")


def test_a_diverged_run_says_so_and_leaves_the_last_checkpoint_intact(tmp_path):
    train(small(epochs=1, lr=0.1), tmp_path / "run")
    kept = weights(tmp_path / "run")
    config = small(epochs=3, lr=1e30, loss="marginranking", optimizer="sgd", evaluate_every=0)
    with pytest.raises(NonFiniteLossError, match="the loss is (nan|inf); lower the learning rate"):
        train(config, tmp_path / "diverged")
    assert same_bits(kept, weights(tmp_path / "run"))


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty; give another folder, or resume"):
        train(small(), tmp_path)
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train(small(), tmp_path, resume=True)


def test_a_run_is_not_resumed_with_other_settings(tmp_path):
    train(small(epochs=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="was trained with lr=0.1, now it is 0.2"):
        train(small(epochs=2, lr=0.2), tmp_path / "run", resume=True)


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A configuration, its trained parts, and their checkpoint."""
    config = small(epochs=1)
    trainer = Trainer(config, load_family(config), tmp_path / "run", quiet())
    trainer.run()
    return config, trainer, last(tmp_path / "run")


@pytest.mark.parametrize("n_shard", [1, 2, 4, 7])
def test_a_checkpoint_loads_with_any_number_of_shards(stored, n_shard, tmp_path):
    config, trainer, path = stored
    other = build(replace_flags(config, {"n_shard": n_shard}), trainer.dataset)
    load_checkpoint(path, other.model.score_fn, other.optimizer)
    save_checkpoint(tmp_path / "epoch-again", other.model.score_fn, other.optimizer)
    back = build(config, trainer.dataset)
    load_checkpoint(tmp_path / "epoch-again", back.model.score_fn, back.optimizer)
    assert same_bits(trainer.score_fn.state_dict(), back.model.score_fn.state_dict())
    for name, parameter in trainer.score_fn.named_parameters():
        twin = dict(back.model.score_fn.named_parameters())[name]
        kept, restored = trainer.parts.optimizer.state[parameter], back.optimizer.state[twin]
        assert kept["step"] == restored["step"] > 0
        assert torch.equal(kept["sum"], restored["sum"])


def damage_truncate(path: Path) -> None:
    file = path / "shard-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def damage_tamper(path: Path) -> None:
    tensors = load_file(path / "replicated.safetensors")
    save_file({name: x + 1 for name, x in tensors.items()}, path / "replicated.safetensors")


def damage_remove(path: Path) -> None:
    (path / "shard-00002.safetensors").unlink()


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 1')


def damage_format(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 99}')


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_truncate, "shard-00001.safetensors: its sha256 is not the manifest's"),
        (damage_tamper, "replicated.safetensors: its sha256 is not the manifest's"),
        (damage_remove, "shard-00002.safetensors: missing; the checkpoint is incomplete"),
        (damage_manifest, "manifest.json: not JSON .* it is damaged"),
        (damage_format, "format 99, this version reads format 1"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_model_untouched(stored, damage, message):
    config, trainer, path = stored
    before = {name: x.clone() for name, x in trainer.score_fn.state_dict().items()}
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, trainer.score_fn, trainer.parts.optimizer)
    assert same_bits(before, trainer.score_fn.state_dict())


def test_a_checkpoint_of_another_model_is_refused(stored):
    config, trainer, path = stored
    other = build(replace_flags(config, {"dim": 4}), trainer.dataset).model.score_fn
    with pytest.raises(CheckpointError, match="of another model: .*entity_embedding"):
        load_checkpoint(path, other)
    larger = replace(config, data=DataConfig("family", {"n_person": 256}))
    other = build(larger, load_family(larger)).model.score_fn
    with pytest.raises(CheckpointError, match="it belongs to another graph"):
        load_checkpoint(path, other)


def test_weights_alone_are_not_enough_to_go_on_training(stored, tmp_path):
    config, trainer, _ = stored
    save_checkpoint(tmp_path / "epoch-weights", trainer.score_fn)
    with pytest.raises(CheckpointError, match="holds no optimiser state"):
        load_checkpoint(tmp_path / "epoch-weights", trainer.score_fn, trainer.parts.optimizer)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(stored, tmp_path):
    _, trainer, _ = stored
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path / "c" / "epoch-x", trainer.score_fn, state={"bad": object()})
    assert list((tmp_path / "c").iterdir()) == []


def test_only_the_last_checkpoints_are_kept(tmp_path):
    train(small(checkpoint_seconds=0), tmp_path / "run")
    assert len(find_checkpoints(tmp_path / "run" / "checkpoints")) == 2
    assert len(find_checkpoints(tmp_path / "run" / "best")) == 1


def test_a_run_without_checkpoints_cannot_be_loaded(tmp_path):
    dump(small(), tmp_path / "config.toml")
    with pytest.raises(CheckpointError, match="no last checkpoint; train first"):
        load_run(tmp_path)


# -- configuration and schedule --------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(score_function="complexx"), r"unknown score function 'complexx'.*did you mean"),
        (dict(scheme="both"), r"scheme is 'both', expected one of \['embedding', 'score', 'all'\]"),
        (dict(dim=0), "dim must be at least 1, got 0"),
        (dict(warmup=2.0), "warmup is a share of the run, got 2.0"),
        (dict(augment_negative=True, scheme="score"), "augment_negative needs scheme 'embedding'"),
        (dict(n_shard=10**6), r"n_shard must be in \[1, "),
        (dict(metric="mr"), "metric is 'mr', expected one of"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_name(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(small(**flags), tmp_path / "run")


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_begins_at_one_and_never_rises(name):
    values = [factor(name, 0.0, done / 10) for done in range(10)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)


def test_the_learning_rate_rises_during_the_warm_up():
    assert [factor("constant", 0.5, done) for done in (0.1, 0.25, 0.5, 0.9)] == [0.2, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("corruption", ["h", "t", "ht"])
def test_either_side_can_be_asked_for_among_all_entities(tmp_path, corruption, inverse):
    config = small(scheme="all", corruption=corruption, inverse_relations=inverse, epochs=4)
    train(config, tmp_path / "run")
    first, *_, last = losses(tmp_path / "run")
    assert 0.0 < last < 0.8 * first


@pytest.mark.parametrize("n_shard", [2, 4])
def test_a_prepared_folder_trains_as_its_source(tmp_path, n_shard):
    graph, source = load_family(small()), tmp_path / "source"
    source.mkdir()
    for part, triples in graph.triples.items():
        lines = ("\t".join(map(str, row)) for row in triples.tolist())
        (source / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))
    prepare(source, tmp_path / "prepared", n_shard=4)
    runs = []
    for name in ("source", "prepared"):
        config = replace(small(n_shard=n_shard), data=DataConfig(str(tmp_path / name)))
        # Of other shards than it has buckets for, it is sorted in memory, and says so.
        told = pytest.warns(DataWarning, match="no buckets for 2 shards.*it has.*4 shards")
        with told if (name, n_shard) == ("prepared", 2) else contextlib.nullcontext():
            train(config, tmp_path / f"run-{name}")
        runs.append(tmp_path / f"run-{name}")
    assert losses(runs[0]) == losses(runs[1])
    assert same_bits(weights(runs[0]), weights(runs[1]))
