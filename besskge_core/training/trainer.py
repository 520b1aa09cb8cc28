"""The training loop: steps, validations, checkpoints, early stopping.

A run is a folder. All that the loop needs to go on is in its last checkpoint, and batches are a
pure function of the position, so a run that was killed at any moment and resumed gives the same
losses and the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

import numpy as np
import torch
from rich.console import Console

from besskge_core import config as configuration
from besskge_core.catalogue import load_dataset
from besskge_core.dataset import KGDataset
from besskge_core.environment import describe
from besskge_core.errors import CheckpointError, ConfigError
from besskge_core.evaluation import Ranking, rank_triples
from besskge_core.known import KnownTriples
from besskge_core.philox import Position
from besskge_core.runtime import LocalRuntime
from besskge_core.runtime.memory import keep_freed_memory
from besskge_core.scoring import BaseScoreFunction
from besskge_core.training.build import Parts, build, build_score_function
from besskge_core.training.checkpoint import (
    checkpoint_path,
    find_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from besskge_core.training.config import TrainingConfig
from besskge_core.training.progress import Progress
from besskge_core.training.schedule import factor
from besskge_core.training.tracker import make_trackers

#: Older checkpoints are removed; one more than the last is kept, should that be damaged.
KEPT_CHECKPOINTS = 2
#: Metrics of which less is better.
LOWER_IS_BETTER = ("mean_rank",)


@dataclass
class RunState:
    """What a run knows besides weights and optimiser state; JSON can hold it.

    Attributes:
        epoch, step: the next step to take.
        loss_sum: sum over the epoch's steps of their mean loss.
        best: best value of the deciding metric so far, and in which epoch.
        worse: validations since then.
        stopped_because: why the run ended, empty while it has not.
        history: a record for each finished epoch.
        torch_rng: state of torch's generator, for dropout.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: Optional[float] = None
    best_epoch: int = -1
    worse: int = 0
    stopped_because: str = ""
    history: List[Dict[str, Any]] = field(default_factory=list)
    torch_rng: str = ""


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        metrics: part to metrics of the best weights, filtered and realistic, both sides.
        history: a record for each epoch.
        stopped_because: why it ended.
        folder: where everything is.
    """

    metrics: Dict[str, Dict[str, float]]
    history: List[Dict[str, Any]]
    stopped_because: str
    folder: Path


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with its graph.

    Attributes:
        config: of the run.
        dataset: the graph.
        score_fn: with the stored weights.
        known: triples of all parts, for filtering.
        description: which weights these are.
    """

    config: TrainingConfig
    dataset: KGDataset
    score_fn: BaseScoreFunction
    known: KnownTriples
    description: str


def train(
    config: TrainingConfig, folder: Path, resume: bool = False, console: Optional[Console] = None
) -> TrainingResult:
    """Train a model, keep the weights that validate best, and rank the test triples with them.

    Args:
        config: of the run.
        folder: of the run; must be new or empty, unless it is resumed.
        resume: go on from the last checkpoint; the configuration must be the same but for the
            number of epochs, threads and the like.
        console: where progress is shown; None: nowhere.

    Raises:
        ConfigError: the folder holds another run, or the configuration cannot work.
        CheckpointError: the checkpoint to resume from is damaged.
        NonFiniteLossError: training diverged; the last checkpoint is intact.
        KeyboardInterrupt: interrupted, after a checkpoint was written.
    """
    _check_folder(folder, config, resume)
    keep_freed_memory()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    dataset = load_dataset(config.data.dataset, **config.data.dataset_options)
    _write_settings(folder, config)
    return Trainer(config, dataset, folder, console or Console(quiet=True)).run()


def load_run(folder: Path, checkpoint: Optional[str] = None) -> LoadedRun:
    """Load what :func:`train` left behind.

    Args:
        folder: of the run.
        checkpoint: "best" or "last"; by default the best there is.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    config = configuration.load(TrainingConfig, folder / "config.toml")
    if checkpoint not in (None, "best", "last"):
        raise CheckpointError(f"checkpoint must be 'best' or 'last', got {checkpoint!r}")
    best, last = find_checkpoints(folder / "best"), find_checkpoints(folder / "checkpoints")
    kind = checkpoint or ("best" if best else "last")
    found = best if kind == "best" else last
    if not found:
        raise CheckpointError(f"{folder}: no {kind} checkpoint; train first")
    dataset = load_dataset(config.data.dataset, **config.data.dataset_options)
    score_fn = build_score_function(config, dataset)
    load_checkpoint(found[-1], score_fn)
    description = f"{kind} weights, {found[-1].name}"
    return LoadedRun(config, dataset, score_fn, KnownTriples.of(dataset), description)


class Trainer:
    """Drives one run; see :func:`train`."""

    def __init__(
        self, config: TrainingConfig, dataset: KGDataset, folder: Path, console: Console
    ) -> None:
        self.config, self.dataset, self.folder = config, dataset, folder
        self.console = console
        self.parts: Parts = build(config, dataset)
        self.score_fn = self.parts.model.score_fn
        self.runtime = LocalRuntime(self.parts.model, config.run.device, config.run.workers)
        self.known = KnownTriples.of(dataset)
        self.state = RunState()
        self._saved_at = time.monotonic()
        self._seconds = 0.0

    def run(self) -> TrainingResult:
        """Train to the end, from the last checkpoint if there is one."""
        self._restore()
        triple_set = self.parts.sampler.triple_set
        self.console.print(
            f"{self.dataset}: {triple_set.sharding.n_shard} shards, largest bucket"
            f" {triple_set.imbalance:.2f} x the mean; {self.parts.sampler.n_step} steps an epoch"
        )
        trackers = make_trackers(self.config.run.trackers, self.folder, self.state.epoch + 1)
        try:
            with _stop_signals() as stopping, Progress(self.console, self.config.run.epochs) as bar:
                while not self._finished():
                    self._train_epoch(bar, stopping)
                    record = self._finish_epoch()
                    bar.epoch_done(record)
                    for tracker in trackers:
                        tracker.log(record, epoch=self.state.epoch)
                    self._checkpoint_if_due(stopping)
        finally:
            for tracker in trackers:
                tracker.close()
        self._save()
        return self._conclude()

    # -- one epoch ---------------------------------------------------------------------------------

    def _train_epoch(self, bar: Progress, stopping: threading.Event) -> None:
        state, sampler = self.state, self.parts.sampler
        step_fn = self.runtime.training_step(self.parts.optimizer)
        started = time.monotonic()
        bar.epoch_begins(state.epoch, sampler.n_step, state.step, sampler.epoch_size)
        for batch in self.runtime.dataloader(sampler, state.epoch, state.step):
            self._set_learning_rate()
            loss = float(step_fn(batch)["loss"].double().mean())
            state.loss_sum += loss
            state.step += 1
            bar.step_done(loss)
            if state.step < sampler.n_step:
                self._checkpoint_if_due(stopping)
        self._seconds = time.monotonic() - started

    def _finish_epoch(self) -> Dict[str, Any]:
        """Close the books of an epoch: its record, validation, whether to stop."""
        state, sampler, settings = self.state, self.parts.sampler, self.config.evaluation
        # Steps are means over their places; padding makes some of those empty.
        places = sampler.n_step * sampler.partition_sample_size * sampler.n_bucket
        record: Dict[str, Any] = {
            "epoch": state.epoch + 1,
            "loss": state.loss_sum / sampler.n_step * places / sampler.epoch_size,
            "lr": self.parts.optimizer.param_groups[0]["lr"],
            "seconds": round(self._seconds, 3),
            "triples_per_second": round(sampler.epoch_size / max(self._seconds, 1e-9)),
        }
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        is_last = state.epoch == self.config.run.epochs
        due = settings.evaluate_every and state.epoch % settings.evaluate_every == 0
        if (due or is_last) and len(self.dataset.triples.get("valid", ())):
            metrics = self.rank("valid", settings.max_valid).metrics()
            record.update({f"valid_{name}": value for name, value in metrics.items()})
            self._judge(metrics)
        state.history.append(record)
        return record

    def _judge(self, metrics: Mapping[str, float]) -> None:
        """Keep the weights if they are the best so far, or stop if they have not been for long."""
        state, settings = self.state, self.config.evaluation
        if settings.metric not in metrics:
            raise ConfigError(f"metric is {settings.metric!r}, expected one of {sorted(metrics)}")
        value = metrics[settings.metric]
        sign = -1.0 if settings.metric in LOWER_IS_BETTER else 1.0
        if state.best is None or sign * value > sign * state.best:
            state.best, state.best_epoch, state.worse = value, state.epoch, 0
            best = self.folder / "best"
            path = checkpoint_path(best, Position(state.epoch))
            save_checkpoint(
                path, self.score_fn, state={"epoch": state.epoch, "metrics": dict(metrics)}
            )
            prune([old for old in find_checkpoints(best) if old != path])
            return
        state.worse += 1
        if settings.patience and state.worse >= settings.patience:
            state.stopped_because = (
                f"{settings.metric} of the validation triples has not risen above {state.best:.4f}"
                f" (epoch {state.best_epoch}) in {state.worse} validations"
            )

    def _finished(self) -> bool:
        if not self.state.stopped_because and self.state.epoch >= self.config.run.epochs:
            self.state.stopped_because = f"all {self.config.run.epochs} epochs are done"
        return bool(self.state.stopped_because)

    def _set_learning_rate(self) -> None:
        settings, n_step = self.config.optimizer, self.parts.sampler.n_step
        done = (self.state.epoch * n_step + self.state.step) / (self.config.run.epochs * n_step)
        for group in self.parts.optimizer.param_groups:
            group["lr"] = settings.lr * factor(settings.schedule, settings.warmup, done)

    # -- storing -----------------------------------------------------------------------------------

    def _checkpoint_if_due(self, stopping: threading.Event) -> None:
        if stopping.is_set():
            self._save()
            raise KeyboardInterrupt("stopped after a checkpoint; resume to go on")
        if time.monotonic() - self._saved_at >= self.config.run.checkpoint_seconds:
            self._save()

    def _save(self) -> None:
        state = self.state
        state.torch_rng = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        folder = self.folder / "checkpoints"
        path = checkpoint_path(folder, Position(state.epoch, state.step))
        save_checkpoint(path, self.score_fn, self.parts.optimizer, asdict(state))
        prune(find_checkpoints(folder)[:-KEPT_CHECKPOINTS])
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        stored = find_checkpoints(self.folder / "checkpoints")
        if not stored:
            return
        kept = load_checkpoint(stored[-1], self.score_fn, self.parts.optimizer)
        self.state = RunState(**kept)
        if self.state.epoch < self.config.run.epochs:
            self.state.stopped_because = ""  # more epochs may be asked for than before
        rng = np.frombuffer(base64.b64decode(self.state.torch_rng), dtype=np.uint8)
        torch.set_rng_state(torch.from_numpy(rng.copy()))
        self.console.print(f"resumed from {stored[-1].name}")

    # -- the end -----------------------------------------------------------------------------------

    def rank(self, part: str, at_most: int = 0) -> Ranking:
        """Rank the triples of a part, filtered; `at_most` of them, evenly spaced, unless 0."""
        triples = self.dataset.triples[part]
        if 0 < at_most < len(triples):
            triples = triples[np.linspace(0, len(triples) - 1, at_most).astype(np.int64)]
        return rank_triples(self.score_fn, triples, self.known)

    def _conclude(self) -> TrainingResult:
        best = find_checkpoints(self.folder / "best")
        if best:
            load_checkpoint(best[-1], self.score_fn)
        parts = [part for part in ("valid", "test") if len(self.dataset.triples.get(part, ()))]
        rankings = {part: self.rank(part) for part in parts}
        report = {
            "stopped_because": self.state.stopped_because,
            "best_epoch": self.state.best_epoch,
            "filtered": True,
            "mode": "realistic",
            "metrics": {
                part: {side: ranking.metrics(side=side) for side in ("both", "head", "tail")}
                for part, ranking in rankings.items()
            },
        }
        (self.folder / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
        metrics = {part: ranking.metrics() for part, ranking in rankings.items()}
        return TrainingResult(metrics, self.state.history, self.state.stopped_because, self.folder)


def _check_folder(folder: Path, config: TrainingConfig, resume: bool) -> None:
    """The folder must be empty, or hold the run to resume; what a kill left half-written goes."""
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise ConfigError(
            f"{folder} is not empty; give another folder, or resume the run that is in it"
        )
    if resume:
        before = folder / "config.toml"
        if not before.is_file():
            raise ConfigError(f"{folder} holds no run to resume: there is no config.toml")
        _check_same(configuration.load(TrainingConfig, before), config, folder)
        for leftover in (*folder.glob("checkpoints/.*"), *folder.glob("best/.*")):
            shutil.rmtree(leftover)


def _write_settings(folder: Path, config: TrainingConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    configuration.dump(config, folder / "config.toml")
    (folder / "environment.json").write_text(json.dumps(describe(), indent=1) + "\n")


def _check_same(before: TrainingConfig, now: TrainingConfig, folder: Path) -> None:
    """Only what does not touch the numbers may change on resuming; the epochs may, too."""
    free = {"epochs", "device", "threads", "workers", "checkpoint_seconds", "trackers"}
    for section in asdict(now):
        old, new = asdict(before)[section], asdict(now)[section]
        for name in sorted(set(new) - free):
            if old[name] != new[name]:
                raise ConfigError(
                    f"{folder} was trained with {name}={old[name]!r}, now it is {new[name]!r};"
                    " resume with the same value, or start a new folder"
                )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set an event on the first SIGINT or SIGTERM, so that the step under way can finish."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: Dict[int, Any] = {}

    def on_signal(number: int, frame: Any) -> None:
        stopping.set()
        _restore_signals(before)  # the second one ends the process at once

    for number in signals:
        before[number] = signal.signal(number, on_signal)
    try:
        yield stopping
    finally:
        _restore_signals(before)


def _restore_signals(before: Mapping[int, Callable[..., Any]]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
