"""Training loops in PyKEEN's manner: a model, its triples, and `train`.

The loops differ in what a batch asks for: :class:`SLCWATrainingLoop` scores sampled negatives,
:class:`LCWATrainingLoop` all entities with all known answers of a query at once, and
:class:`SymmetricLCWATrainingLoop` all entities for each triple, both ways. What runs is a module of
:mod:`besskge_core.bess`, on any number of shards. For runs that are a folder, with a configuration
and bit-for-bit resumption, see :func:`besskge_core.training.train`.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

import torch
from rich.progress import track
from torch import nn

from besskge_core.batch_sampler import ShardedBatchSampler
from besskge_core.bess import AllEntitiesBessKGE, BessKGE
from besskge_core.errors import ConfigError, NoTrainingBatchError
from besskge_core.model import KGEModel
from besskge_core.runtime import LocalRuntime, Planned, runtime_alone
from besskge_core.runtime.base import nothing
from besskge_core.runtime.memory import keep_freed_memory
from besskge_core.training.callbacks import (
    EarlyStopper,
    NopStopper,
    TrainingCallback,
    clipping,
    make_callbacks,
)
from besskge_core.training.choices import (
    OptimizerChoice,
    Options,
    Schedule,
    SchedulerChoice,
    make_optimizer,
    make_result_tracker,
    scheduler_state,
)
from besskge_core.training.loop_store import LoopStore
from besskge_core.training.tile import choose_tile
from besskge_core.triples_factory import TriplesFactory

Module = Union[BessKGE, AllEntitiesBessKGE]

#: Triples or queries of a batch, unless told otherwise.
BATCH_SIZE = 256
#: Modes of PyKEEN's inductive models.
MODES = ("training", "validation", "testing")


class _Steps(NamedTuple):
    """The batches of an epoch: which there are, and how many."""

    sampler: ShardedBatchSampler
    n_step: int


class TrainingLoop(abc.ABC):
    """Base of the training loops.

    Args:
        model: what to train; or its interaction, by name, with default options.
        triples_factory: the graph, see :meth:`TriplesFactory.of`.
        optimizer: name, class or instance, see :func:`make_optimizer`; None: Adam.
        optimizer_kwargs: options of the optimiser, such as `lr`.
        lr_scheduler: name, class or instance of a scheduler of torch, told after each epoch (a
            plateau is one of the loss), or after each batch if it is OneCycleLR or CyclicLR.
        lr_scheduler_kwargs: options of the scheduler.
        automatic_memory_optimization: look for the largest tile of scores that fits; what is given
            to :meth:`train` wins, and numbers never depend on it.
        mode: for inductive models, of which there are none here: None.
        result_tracker: name, class or instance, see :func:`make_result_tracker`.
        result_tracker_kwargs: options of the tracker.
        device: where to train.

    Attributes:
        optimizer: the optimiser, a new one when training begins anew.
        schedule: the course of the learning rate, once training has begun.
        losses_per_epochs: mean loss of each epoch so far, over its triples or queries; of losses
            that are sums, the mean over batches.

    Raises:
        ConfigError: something that cannot work; the message says what would.
    """

    def __init__(
        self,
        model: Union[KGEModel, str],
        triples_factory: Any,
        optimizer: OptimizerChoice = None,
        optimizer_kwargs: Options = None,
        lr_scheduler: SchedulerChoice = None,
        lr_scheduler_kwargs: Options = None,
        automatic_memory_optimization: bool = True,
        mode: Optional[str] = None,
        result_tracker: Any = None,
        result_tracker_kwargs: Options = None,
        *,
        device: str = "cpu",
    ) -> None:
        self.triples_factory = TriplesFactory.of(triples_factory)
        if isinstance(model, str):
            model = KGEModel(triples_factory=self.triples_factory, interaction=model)
        if not isinstance(model, KGEModel):
            raise ConfigError(
                f"model is {type(model).__name__}, expected a KGEModel or the name of a score"
                " function; KGEModel(interaction=...) takes a score function that is made already"
            )
        if mode is not None:
            raise ConfigError(_about_mode(mode))
        self.model, self.device = model, device
        self.automatic_memory_optimization = automatic_memory_optimization
        self._optimizer_choice, self._optimizer_kwargs = optimizer, optimizer_kwargs
        self._scheduler_choice, self._scheduler_kwargs = lr_scheduler, lr_scheduler_kwargs
        self.optimizer = make_optimizer(optimizer, optimizer_kwargs, model)
        self._first_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._scheduler_start = scheduler_state(lr_scheduler)
        self._checked(self.triples_factory)
        self.result_tracker = make_result_tracker(result_tracker, result_tracker_kwargs)
        self.losses_per_epochs: List[float] = []
        self.schedule: Optional[Schedule] = None

    # -- what a subclass says ------------------------------------------------------------------------

    @abc.abstractmethod
    def make_module(self, triples: TriplesFactory, label_smoothing: float) -> Module:
        """What computes the loss of a batch."""

    @abc.abstractmethod
    def make_sampler(
        self, triples: TriplesFactory, module: Module, batch_size: int
    ) -> ShardedBatchSampler:
        """What draws the batches."""

    # -- training ------------------------------------------------------------------------------------

    def train(
        self,
        triples_factory: Any = None,
        num_epochs: int = 1,
        batch_size: Optional[int] = None,
        slice_size: Optional[int] = None,
        label_smoothing: float = 0.0,
        sampler: Optional[str] = None,
        continue_training: bool = False,
        only_size_probing: bool = False,
        use_tqdm: bool = True,
        use_tqdm_batch: bool = True,
        tqdm_kwargs: Options = None,
        stopper: Union[EarlyStopper, NopStopper, None] = None,
        sub_batch_size: Optional[int] = None,
        num_workers: Optional[int] = None,
        clear_optimizer: bool = False,
        checkpoint_directory: Union[str, Path, None] = None,
        checkpoint_name: Optional[str] = None,
        checkpoint_frequency: Optional[int] = None,
        checkpoint_on_failure: bool = False,
        drop_last: Optional[bool] = None,
        callbacks: Any = None,
        callback_kwargs: Options = None,
        gradient_clipping_max_norm: Optional[float] = None,
        gradient_clipping_norm_type: Optional[float] = None,
        gradient_clipping_max_abs_value: Optional[float] = None,
        pin_memory: bool = True,
    ) -> List[float]:
        """Train for some epochs.

        The C library is told to keep freed memory for the next step, for the rest of the process.

        Trained before by this loop and not told to continue, it begins anew: with fresh parameters,
        optimiser and course of the learning rate. Weights that a model has when it is first trained
        stay, unlike with PyKEEN.

        Args:
            triples_factory: the triples; None: those of the constructor.
            num_epochs: epochs in all, those continued from counted.
            batch_size: triples, or queries, of an update; None: 256.
            slice_size: entities scored at once.
            label_smoothing: share of a label that goes to the others.
            sampler: None; PyKEEN's "schlichtkrull" is for graph networks.
            continue_training: go on from where training stopped.
            only_size_probing: only look for the tile that fits.
            use_tqdm: show progress.
            use_tqdm_batch, tqdm_kwargs: accepted; progress is one bar.
            stopper: an :class:`EarlyStopper`; the best weights are put back at the end.
            sub_batch_size: queries scored at once. The loss, regularised once, is that of the
                whole batch.
            num_workers: threads that make batches ahead; None: 1.
            clear_optimizer: forget the optimiser's state at the end.
            checkpoint_directory: folder of the checkpoints; None: "checkpoints".
            checkpoint_name: folder there, to which checkpoints go and from which training resumes;
                None: none are written.
            checkpoint_frequency: minutes between checkpoints; None: 30, 0: after each epoch.
            checkpoint_on_failure: write one after each epoch, so that failing loses none.
            drop_last: leave out a last batch that is not full; None: as a batch normalisation
                needs it.
            callbacks: classes or instances of :class:`TrainingCallback`.
            callback_kwargs: options of the classes.
            gradient_clipping_max_norm, gradient_clipping_norm_type: see
                :class:`GradientNormClipping`.
            gradient_clipping_max_abs_value: see :class:`GradientAbsClipping`.
            pin_memory: accepted; batches are a few numbers a triple.

        Returns:
            The mean loss of each epoch.

        Raises:
            ConfigError: something that cannot work.
            NoTrainingBatchError: no batch is left.
            NonFiniteLossError: training diverged.
            CheckpointError: the checkpoint to resume from is of another model or damaged.
        """
        if sampler is not None:
            raise ConfigError(f"sampler {sampler!r} is for graph networks, of which there are none")
        keep_freed_memory()
        triples = self.triples_factory
        if triples_factory is not None:
            triples = self._checked(TriplesFactory.of(triples_factory))
        if continue_training and not self.losses_per_epochs:
            raise ConfigError("cannot continue_training that has not begun; train without it first")
        module = self.make_module(triples, label_smoothing)
        size = BATCH_SIZE if batch_size is None else batch_size
        steps = self._steps(triples, module, size, drop_last)
        runtime = runtime_alone(module, self.device, 1 if num_workers is None else num_workers)
        search = self.automatic_memory_optimization
        module.score_fn.pop_regularization_term()  # of look-ups before the training
        choose_tile(module, runtime, steps.sampler, sub_batch_size, slice_size, search)
        if only_size_probing:
            return []
        hooks = make_callbacks(callbacks, callback_kwargs)
        hooks += clipping(
            gradient_clipping_max_norm, gradient_clipping_norm_type, gradient_clipping_max_abs_value
        )
        store = LoopStore.of(
            checkpoint_name, checkpoint_directory, checkpoint_frequency, checkpoint_on_failure
        )
        stopper = NopStopper() if stopper is None else stopper
        self._begin(triples, num_epochs, steps.n_step, stopper, continue_training)
        if store is not None:
            store.resume(self, stopper)
        if not stopper.has_stopped:
            self._run(runtime, steps, num_epochs, stopper, hooks, store, use_tqdm)
        if isinstance(stopper, EarlyStopper):
            stopper.restore_best(self.model)
        for hook in hooks:
            hook.post_train(self, self.losses_per_epochs)
        if clear_optimizer:
            self.optimizer.state.clear()
        return list(self.losses_per_epochs)

    def _run(
        self,
        runtime: LocalRuntime,
        steps: _Steps,
        num_epochs: int,
        stopper: Any,
        hooks: List[TrainingCallback],
        store: Optional[LoopStore],
        visible: bool,
    ) -> None:
        def before_update() -> None:
            for hook in hooks:
                hook.pre_step(self)

        step_fn = runtime.training_step(self.optimizer, before_update if hooks else nothing)
        epochs = range(len(self.losses_per_epochs) + 1, num_epochs + 1)
        for epoch in track(epochs, "training", disable=not visible, transient=True):
            loss = self._train_epoch(runtime, steps, step_fn, epoch, hooks)
            self.losses_per_epochs.append(loss)
            assert self.schedule is not None
            self.schedule.after_epoch(loss)
            if self.result_tracker is not None:
                self.result_tracker.log_metrics({"loss": loss}, step=epoch)
            for hook in hooks:
                hook.post_epoch(self, epoch, loss)
            stopping = stopper.should_evaluate(epoch) and stopper.should_stop(self.model, epoch)
            if stopper.should_evaluate(epoch) and self.result_tracker is not None:
                self.result_tracker.log_metrics(
                    {stopper.metric: stopper.results[-1]}, step=epoch, prefix="validation"
                )
            if store is not None and (stopping or epoch == num_epochs or store.is_due()):
                store.save(self, stopper)
            if stopping:
                return

    def _train_epoch(
        self,
        runtime: LocalRuntime,
        steps: _Steps,
        step_fn: Callable[..., Dict[str, torch.Tensor]],
        epoch: int,
        hooks: List[TrainingCallback],
    ) -> float:
        """The mean loss over the triples, or queries, of an epoch; of sums, the mean over batches."""
        total = n_total = 0.0
        is_mean = self.model.loss.reduction == "mean"
        assert self.schedule is not None
        for i, batch in enumerate(self.batches(runtime, steps.sampler, epoch)):
            if i >= steps.n_step:
                break
            loss = float(step_fn(batch)["loss"].double().mean())
            n = float(sum(_n_real(x) for x in batch)) if is_mean else 1.0
            total, n_total = total + n * loss, n_total + n
            self.schedule.after_batch()
            for hook in hooks:
                hook.post_batch(self, epoch, loss)
        return total / n_total

    def batches(self, runtime: LocalRuntime, sampler: ShardedBatchSampler, epoch: int) -> Any:
        """The batches of an epoch, counted from 1."""
        return runtime.dataloader(sampler, epoch - 1)

    # -- beginnings ----------------------------------------------------------------------------------

    def _steps(
        self, triples: TriplesFactory, module: Module, batch_size: int, drop_last: Optional[bool]
    ) -> _Steps:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if not len(triples.mapped_triples):
            raise NoTrainingBatchError("there are no triples to train on")
        normalises = any(isinstance(x, nn.modules.batchnorm._BatchNorm) for x in module.modules())
        if normalises and batch_size == 1:
            raise ConfigError("batch normalisation needs a batch_size above 1")
        sampler = self.make_sampler(triples, module, batch_size)
        n_step = sampler.n_step
        if normalises if drop_last is None else drop_last:
            # Of the largest bucket; others are padded in any case.
            n_step = int(sampler.triple_set.triple_counts.max() // sampler.partition_sample_size)
        if not n_step:
            raise NoTrainingBatchError(
                f"drop_last leaves no batch: {sampler.epoch_size} triples or queries make none of"
                f" {batch_size}; use a smaller batch_size, or keep the last"
            )
        return _Steps(sampler, n_step)

    def _begin(
        self,
        triples: TriplesFactory,
        n_epoch: int,
        n_step: int,
        stopper: Any,
        continue_training: bool,
    ) -> None:
        if isinstance(stopper, EarlyStopper):
            stopper.filter_with(triples)
        if continue_training:
            return
        if self.schedule is not None:
            self.model.reset_parameters_()
            self.losses_per_epochs = []
            if isinstance(self._optimizer_choice, torch.optim.Optimizer):
                self.optimizer.state.clear()
                for group, lr in zip(self.optimizer.param_groups, self._first_rates):
                    group["lr"] = lr
            else:
                self.optimizer = make_optimizer(
                    self._optimizer_choice, self._optimizer_kwargs, self.model
                )
        self.model.post_parameter_update()
        if isinstance(stopper, EarlyStopper):
            stopper.reset()
        self.schedule = Schedule(
            self._scheduler_choice, self._scheduler_kwargs, self.optimizer, n_epoch, n_step,
            self._scheduler_start,
        )  # fmt: skip

    def _checked(self, triples: TriplesFactory) -> TriplesFactory:
        """Triples of the model's graph."""
        model = self.model
        own, found = (model.num_entities, model.num_relations), triples.sizes
        if found != own:
            raise ConfigError(
                f"triples are of {found[0]} entities and {found[1]} relations, the model of {own[0]}"
                f" and {own[1]}; give both the numbers of the whole graph"
            )
        return triples


def _n_real(micro: Planned) -> int:
    """Triples, or queries, of a micro-batch, without padding."""
    mask = micro.columns.get("triple_mask")
    return micro.columns["relation"].numel() if mask is None else int(mask.sum())


def _about_mode(mode: str) -> str:
    if mode not in MODES:
        return f"mode {mode!r} is none of {MODES}, which are for inductive models; leave it out"
    return (
        f"mode {mode!r} is for inductive models, whose entities are represented by relations or"
        " features; an Embedding knows only the entities that it was made for. Leave mode out"
    )
