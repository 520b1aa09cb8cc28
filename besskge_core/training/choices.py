"""Optimisers, courses of the learning rate and trackers, by name, class or as they are."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Protocol, Type, Union

import torch
from torch import nn
from torch.optim import lr_scheduler

from besskge_core.errors import ConfigError
from besskge_core.optim import OPTIMIZERS
from besskge_core.registry import nearest, squeezed
from besskge_core.training.tracker import TRACKERS, Tracker

Options = Optional[Mapping[str, Any]]
OptimizerChoice = Union[str, Type[torch.optim.Optimizer], torch.optim.Optimizer, None]
SchedulerChoice = Union[str, type, Any, None]

#: Schedulers that count steps, not epochs.
PER_BATCH = ("OneCycleLR", "CyclicLR")

#: Optimisers of torch that cannot be used here, and why.
REFUSED = {
    "lbfgs": "it takes several losses a step",
    "muon": "it is for matrices of layers",
    "sparseadam": "it takes no dense gradients, which relations have; 'adam' touches only the rows"
    " of a batch, too",
}


class ResultTracker(Protocol):
    """Takes the metrics of a run, in PyKEEN's manner."""

    def log_metrics(
        self, metrics: Mapping[str, float], step: Optional[int] = None, prefix: Optional[str] = None
    ) -> None:
        """Keep what is known after an epoch, `step`."""


class _RecordTracker:
    """A tracker of records, of which `prefix` becomes part of the names."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def log_metrics(
        self, metrics: Mapping[str, float], step: Optional[int] = None, prefix: Optional[str] = None
    ) -> None:
        named = {f"{prefix}_{k}" if prefix else k: x for k, x in metrics.items()}
        self.tracker.log(named, epoch=step or 0)


class PythonResultTracker:
    """Keeps everything in a list of (step, metrics), `history`."""

    def __init__(self) -> None:
        self.history: list[tuple[Optional[int], Dict[str, float]]] = []

    def log_metrics(
        self, metrics: Mapping[str, float], step: Optional[int] = None, prefix: Optional[str] = None
    ) -> None:
        named = {f"{prefix}.{k}" if prefix else k: x for k, x in metrics.items()}
        self.history.append((step, named))


def make_optimizer(
    choice: OptimizerChoice, options: Options, model: nn.Module
) -> torch.optim.Optimizer:
    """An optimiser of a model's parameters.

    Names are those of :data:`~besskge_core.optim.OPTIMIZERS`, which touch only the rows of a batch
    (so "adam" is lazy for sampled negatives) and decay weights apart from the gradient, with rates of
    their own as default; and else of torch.optim. None: "adam". A class of torch is what it is there.

    Raises:
        ConfigError: unknown, made already and given options, or of other parameters.
    """
    if isinstance(choice, torch.optim.Optimizer):
        if options:
            raise ConfigError(f"the optimizer is made already, options {sorted(options)} are late")
        _check_parameters(choice, model)
        return choice
    make: Any = "adam" if choice is None else choice
    if isinstance(make, str):
        make = _optimizer_class(make)
    if not (isinstance(make, type) and issubclass(make, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer is {choice!r}, expected a name, a class or an optimizer")
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer: torch.optim.Optimizer = make(trained, **(options or {}))
    return optimizer


def _optimizer_class(name: str) -> Any:
    wanted = squeezed(name)
    own = {squeezed(key): key for key in OPTIMIZERS}
    if wanted in own:
        return OPTIMIZERS[own[wanted]]
    of_torch = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer and key.lower() not in REFUSED
    }  # fmt: skip
    if wanted in REFUSED:
        raise ConfigError(f"optimizer {name!r} cannot be used here: {REFUSED[wanted]}")
    if wanted not in of_torch:
        known = sorted({*OPTIMIZERS, *of_torch})
        raise ConfigError(
            f"unknown optimizer {name!r}{nearest(wanted, known)}; expected one of {known}"
        )
    return of_torch[wanted]


def _check_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    own = {id(x) for x in model.parameters()}
    held = [x for group in optimizer.param_groups for x in group["params"]]
    if not any(id(x) in own for x in held):
        raise ConfigError(
            "the optimizer holds none of the model's parameters; make it of this model"
        )


class Schedule:
    """A course of the learning rate, told after each batch and each epoch.

    Args:
        choice: name ("exponential" or "ExponentialLR"), class or instance of a scheduler of torch.
        options: of the scheduler.
        optimizer: whose rate it is.
        n_epoch, n_batch: of the run; OneCycleLR needs them.
        start: see :func:`scheduler_state`.

    Raises:
        ConfigError: unknown, or made of another optimiser.
    """

    def __init__(
        self,
        choice: SchedulerChoice,
        options: Options,
        optimizer: torch.optim.Optimizer,
        n_epoch: int,
        n_batch: int,
        start: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self.scheduler: Any = None
        if choice is None:
            if options:
                raise ConfigError(f"lr_scheduler_kwargs {sorted(options)} of no lr_scheduler")
            return
        make = _scheduler_class(choice) if isinstance(choice, str) else choice
        if isinstance(make, type):
            given = dict(options or {})
            if make.__name__ == "OneCycleLR" and not {"total_steps", "epochs"} & set(given):
                given["total_steps"] = n_epoch * n_batch
            if make.__name__ in PER_BATCH and not {"momentum", "betas"} & set(optimizer.defaults):
                given.setdefault("cycle_momentum", False)
            make = make(optimizer, **given)
        elif options:
            raise ConfigError(
                f"the lr_scheduler is made already, options {sorted(options)} are late"
            )
        if getattr(make, "optimizer", optimizer) is not optimizer:
            raise ConfigError("the lr_scheduler is of another optimizer; make it of this one")
        self.scheduler = make
        if start:
            make.load_state_dict(copy.deepcopy(dict(start)))

    def after_batch(self) -> None:
        """One more batch has been learnt."""
        if type(self.scheduler).__name__ in PER_BATCH:
            self.scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """One more epoch is over, with this loss, which is what a plateau is of."""
        if self.scheduler is None or type(self.scheduler).__name__ in PER_BATCH:
            return
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()

    def state(self) -> Dict[str, Any]:
        """What JSON can hold."""
        if self.scheduler is None:
            return {}
        kept = (int, float, str, bool, list, type(None))
        return {k: x for k, x in self.scheduler.state_dict().items() if isinstance(x, kept)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        if self.scheduler is not None and state:
            self.scheduler.load_state_dict({**self.scheduler.state_dict(), **state})


def scheduler_state(choice: SchedulerChoice) -> Optional[Dict[str, Any]]:
    """The state of a scheduler that is made already, to begin anew with; None of others."""
    if choice is None or isinstance(choice, (str, type)):
        return None
    return copy.deepcopy(choice.state_dict())


def _scheduler_class(name: str) -> Any:
    wanted = squeezed(name)
    bases = (lr_scheduler._LRScheduler, lr_scheduler.ReduceLROnPlateau, lr_scheduler.StepLR)
    kinds = (*bases, getattr(lr_scheduler, "LRScheduler", lr_scheduler._LRScheduler))
    found = {
        key.lower(): value
        for key, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, kinds) and not key.startswith("_")
        and key != "LRScheduler"
    }  # fmt: skip
    for candidate in (wanted, f"{wanted}lr"):
        if candidate in found:
            return found[candidate]
    known = sorted(key[:-2] if key.endswith("lr") else key for key in found)
    raise ConfigError(f"unknown lr_scheduler {name!r}; expected one of {known}")


def make_result_tracker(choice: Any, options: Options) -> Optional[ResultTracker]:
    """A tracker by name ("python", or of :data:`TRACKERS`), class, or as it is; None: none.

    Raises:
        ConfigError: unknown, or it takes no metrics.
    """
    given = dict(options or {})
    if choice is None:
        if given:
            raise ConfigError(f"result_tracker_kwargs {sorted(given)} of no result_tracker")
        return None
    if isinstance(choice, str):
        name = choice.lower()
        if name == "python":
            return PythonResultTracker(**given)
        name = "jsonl" if name == "json" else name
        if name not in TRACKERS:
            raise ConfigError(
                f"unknown result_tracker {choice!r}; expected one of {sorted([*TRACKERS, 'python'])}"
            )
        folder = Path(given.pop("folder", "."))
        if given:
            raise ConfigError(f"result_tracker_kwargs has {sorted(given)}; expected folder")
        folder.mkdir(parents=True, exist_ok=True)
        return _RecordTracker(TRACKERS[name](folder, 0))
    made: Any = choice(**given) if inspect.isclass(choice) else choice
    if hasattr(made, "log_metrics"):
        tracker: ResultTracker = made
        return tracker
    if hasattr(made, "log"):
        return _RecordTracker(made)
    raise ConfigError(f"result_tracker is {choice!r}, which has neither log_metrics nor log")
