"""The training loop: steps, validations, checkpoints, early stopping.

A run is a folder. All that the loop needs to go on is in its last checkpoint, and batches are a
pure function of the position, so a run that was killed at any moment and resumed gives the same
losses and the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import base64
import math
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import torch
from rich.console import Console

from besskge_core.dataset import KGDataset
from besskge_core.embedding import hosting
from besskge_core.errors import CheckpointError, ConfigError, NonFiniteLossError
from besskge_core.evaluation import Ranking, rank_triples
from besskge_core.known import KnownTriples
from besskge_core.philox import Position
from besskge_core.runtime import Ranks, join, leave, make_runtime
from besskge_core.runtime.base import AFTER_NO_LOSS
from besskge_core.runtime.memory import keep_freed_memory
from besskge_core.training.build import Parts, build
from besskge_core.training.checkpoint import (
    checkpoint_path,
    find_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from besskge_core.training.config import TrainingConfig
from besskge_core.training.loaded import load_on_all
from besskge_core.training.progress import Progress
from besskge_core.training.run_folder import check_folder, write_settings
from besskge_core.training.schedule import factor
from besskge_core.training.stopping import stop_signals
from besskge_core.training.tracker import make_trackers
from besskge_core.whole_files import write_json

#: Older checkpoints are removed; one more than the last is kept, should that be damaged.
KEPT_CHECKPOINTS = 2
#: Parts whose triples are ranked.
RANKED = ("valid", "test")
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
        epochs: how many it was to take.
        history: a record for each finished epoch.
        torch_rng: state of torch's generator, for dropout, of each rank.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: Optional[float] = None
    best_epoch: int = -1
    worse: int = 0
    stopped_because: str = ""
    epochs: int = 0
    history: List[Dict[str, Any]] = field(default_factory=list)
    torch_rng: List[str] = field(default_factory=list)


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


def train(
    config: TrainingConfig,
    folder: Path,
    resume: bool = False,
    console: Optional[Console] = None,
    ranks: Optional[Ranks] = None,
) -> TrainingResult:
    """Train a model, keep the weights that validate best, and rank the test triples with them.

    Under torchrun each process has its share of the shards, and all see the folder; the result is
    that of one process.

    Args:
        config: of the run.
        folder: of the run; must be new or empty, unless it is resumed.
        resume: go on from the last checkpoint; the configuration must be the same but for the
            number of epochs, threads and the like. The number of processes may be another.
        console: where progress is shown; None: nowhere.
        ranks: the processes of the run; None: joins those that torchrun started.

    Raises:
        ConfigError: the folder holds another run, or the configuration cannot work.
        CheckpointError: the checkpoint to resume from is damaged.
        StorageError: no space, no permission; the last checkpoint is intact.
        NonFiniteLossError: training diverged; the last checkpoint is intact.
        WorkerLostError: another process died, hangs or failed; likewise.
        KeyboardInterrupt: interrupted, after a checkpoint was written.
    """
    joined = join(config.run.device, config.run.timeout) if ranks is None else ranks
    try:
        result = _train(config, folder, resume, console or Console(quiet=True), joined)
    except BaseException as error:
        if joined.watch is not None:  # tell the others, who would wait
            joined.watch.fail(error)
        raise
    if ranks is None:
        leave(joined)
    return result


def _train(
    config: TrainingConfig, folder: Path, resume: bool, console: Console, ranks: Ranks
) -> TrainingResult:
    ranks.first(lambda: check_folder(folder, config, resume))
    keep_freed_memory()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    dataset = load_on_all(config, ranks)
    ranks.first(lambda: write_settings(folder, config))
    return Trainer(config, dataset, folder, console, ranks).run()


class Trainer:
    """Drives one run; see :func:`train`."""

    def __init__(
        self,
        config: TrainingConfig,
        dataset: KGDataset,
        folder: Path,
        console: Console,
        ranks: Optional[Ranks] = None,
    ) -> None:
        self.config, self.dataset, self.folder = config, dataset, folder
        self.ranks = Ranks(device=torch.device(config.run.device)) if ranks is None else ranks
        self.is_first = self.ranks.rank == 0
        self.console = console if self.is_first else Console(quiet=True)
        with hosting(self.ranks.hosted(config.batch.n_shard)):
            self.parts: Parts = build(config, dataset)
        if not self.is_first:  # other dropout than the first rank
            torch.manual_seed(config.run.seed + 2**32 * self.ranks.rank)
        self.score_fn = self.parts.model.score_fn
        self.runtime = make_runtime(
            self.parts.model, self.ranks, config.run.workers, config.ipu_settings()
        )
        ranked = [dataset.triples[part] for part in RANKED if part in dataset.triples]
        self.known = KnownTriples.answering(dataset, ranked)
        self.state = RunState(epochs=config.run.epochs)
        self._saved_at = time.monotonic()
        self._seconds = 0.0
        #: losses (M,) of steps that have not been looked at, and where they will be shown
        self._unread: List[torch.Tensor] = []
        self._bar: Optional[Progress] = None

    def run(self) -> TrainingResult:
        """Train to the end, from the last checkpoint if there is one."""
        self._restore()
        triple_set = self.parts.sampler.triple_set
        self.console.print(
            f"{self.dataset}: {triple_set.sharding.n_shard} shards, largest bucket"
            f" {triple_set.imbalance:.2f} x the mean; {self.parts.sampler.n_step} steps an epoch"
        )
        names = self.config.run.trackers if self.is_first else ""
        trackers = make_trackers(names, self.folder, self.state.epoch + 1)
        try:
            with stop_signals() as stopping, Progress(self.console, self.config.run.epochs) as bar:
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
        self.console.print(self.runtime.description(), end="", markup=False, highlight=False)
        self.runtime.close()
        return self._conclude()

    # -- one epoch ---------------------------------------------------------------------------------

    def _train_epoch(self, bar: Progress, stopping: threading.Event) -> None:
        state, sampler = self.state, self.parts.sampler
        step_fn = self.runtime.training_step(self.parts.optimizer)
        started = time.monotonic()
        bar.epoch_begins(state.epoch, sampler.n_step, state.step, sampler.epoch_size)
        self._bar = bar
        for batch in self.runtime.dataloader(sampler, state.epoch, state.step):
            self._set_learning_rate()
            self._unread.append(step_fn(batch)["loss"])
            state.step += 1
            if len(self._unread) >= self.runtime.losses_at_once:
                self._read_losses()
            if state.step < sampler.n_step:
                self._checkpoint_if_due(stopping)
        self._read_losses()
        self._seconds = time.monotonic() - started

    def _read_losses(self) -> None:
        """Look at the losses of the last steps, which on a GPU is to wait for it.

        Raises:
            NonFiniteLossError: one is not finite.
        """
        if not self._unread:
            return
        losses = torch.stack(self._unread).double().mean(-1).tolist()
        self._unread.clear()
        for loss in losses:
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss of one of the last {len(losses)} steps is {loss}; {AFTER_NO_LOSS}"
                )
            self.state.loss_sum += loss
            if self._bar is not None:
                self._bar.step_done(loss)

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
            kept = {"epoch": state.epoch, "metrics": dict(metrics)}
            save_checkpoint(path, self.score_fn, state=kept, ranks=self.ranks)
            self.ranks.first(lambda: prune(old for old in find_checkpoints(best) if old != path))
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
        # One clock decides for all; a signal may have reached but one of them.
        elapsed = time.monotonic() - self._saved_at
        due = self.is_first and elapsed >= self.config.run.checkpoint_seconds
        stop, due = self.runtime.any_rank(stopping.is_set(), due)
        if stop or due:
            self._save()
        if stop:
            raise KeyboardInterrupt("stopped after a checkpoint; resume to go on")

    def _save(self) -> None:
        self._read_losses()
        state = self.state
        self.runtime.to_host()
        rng = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        state.torch_rng = self.ranks.gather(rng)
        folder = self.folder / "checkpoints"
        path = checkpoint_path(folder, Position(state.epoch, state.step))
        save_checkpoint(path, self.score_fn, self.parts.optimizer, asdict(state), self.ranks)
        self.ranks.first(lambda: prune(find_checkpoints(folder)[:-KEPT_CHECKPOINTS]))
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        folder = self.folder / "checkpoints"
        stored = self.ranks.first(lambda: [path.name for path in find_checkpoints(folder)])
        if not stored:
            return
        last = folder / stored[-1]
        try:
            kept = load_checkpoint(last, self.score_fn, self.parts.optimizer, self.ranks)
        except CheckpointError as error:
            if len(stored) == 1:
                raise
            raise CheckpointError(f"{error}; remove {last} to go on from {stored[-2]}") from error
        self.runtime.to_device()
        self.state, epochs = RunState(**kept), self.config.run.epochs
        if self.state.epochs < epochs:
            self.state.stopped_because = ""  # more epochs are asked for than before
        self.state.epochs = epochs
        if self.ranks.rank < len(self.state.torch_rng):
            rng = base64.b64decode(self.state.torch_rng[self.ranks.rank])
            torch.set_rng_state(torch.from_numpy(np.frombuffer(rng, dtype=np.uint8).copy()))
        self.console.print(f"resumed from {last.name}")

    # -- the end -----------------------------------------------------------------------------------

    def rank(self, part: str, at_most: int = 0) -> Ranking:
        """Rank the triples of a part, filtered; `at_most` of them, evenly spaced, unless 0."""
        self.runtime.to_host()
        triples = self.dataset.triples[part]
        if 0 < at_most < len(triples):
            triples = triples[np.linspace(0, len(triples) - 1, at_most).astype(np.int64)]
        return rank_triples(self.score_fn, triples, self.known, exchange=self.runtime.host_exchange)

    def _conclude(self) -> TrainingResult:
        best = find_checkpoints(self.folder / "best")
        if best:
            load_checkpoint(best[-1], self.score_fn, ranks=self.ranks)
        parts = [part for part in RANKED if len(self.dataset.triples.get(part, ()))]
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
        if self.is_first:
            write_json(self.folder / "metrics.json", report)
        metrics = {part: ranking.metrics() for part, ranking in rankings.items()}
        return TrainingResult(metrics, self.state.history, self.state.stopped_because, self.folder)
