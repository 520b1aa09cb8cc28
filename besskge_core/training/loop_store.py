"""The checkpoints of a training loop: the last state, and the best weights."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Optional, Union

import torch
from torch import Tensor

from besskge_core.errors import CheckpointError, ConfigError
from besskge_core.model import KGEModel
from besskge_core.philox import Position
from besskge_core.training.callbacks import EarlyStopper, copy_of
from besskge_core.training.checkpoint import (
    checkpoint_path,
    find_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)

if TYPE_CHECKING:
    from besskge_core.training.loop import TrainingLoop


class LoopStore:
    """A folder with a checkpoint to go on from, `last`, and one of the best weights, `best`.

    Args:
        folder: where they go.
        minutes: between checkpoints; 0: after each epoch.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        self._saved_at = time.monotonic()

    @classmethod
    def of(
        cls,
        name: Optional[str],
        directory: Union[str, Path, None],
        minutes: Optional[int],
        on_failure: bool,
    ) -> Optional[LoopStore]:
        """The store of this name; None if there is no name.

        Raises:
            ConfigError: checkpoints without a name.
        """
        if name is None:
            if directory is not None or minutes is not None or on_failure:
                raise ConfigError("checkpoints need a checkpoint_name, the folder that they go to")
            return None
        folder = Path("checkpoints" if directory is None else directory) / name
        return cls(folder, 0 if on_failure else 30 if minutes is None else minutes)

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    def save(self, loop: TrainingLoop, stopper: Any) -> None:
        """Write the checkpoint of the epochs so far, and drop those before."""
        epoch = len(loop.losses_per_epochs)
        assert loop.schedule is not None
        state = {
            "losses": loop.losses_per_epochs,
            "schedule": loop.schedule.state(),
            "lr": [group["lr"] for group in loop.optimizer.param_groups],
            "torch_rng": torch.get_rng_state().tolist(),
        }
        if isinstance(stopper, EarlyStopper):
            state["stopper"] = stopper.summary()
            if stopper.best_state is not None:
                assert stopper.best_epoch is not None
                self._write("best", loop.model, stopper.best_epoch, stopper.best_state)
        self._write("last", loop.model, epoch, {}, loop.optimizer, state)
        self._saved_at = time.monotonic()

    def resume(self, loop: TrainingLoop, stopper: Any) -> None:
        """Go on from the last checkpoint, if there is one.

        Raises:
            CheckpointError: it is damaged, or was written without the stopper there is now.
        """
        found = find_checkpoints(self.folder / "last")
        if not found:
            return
        state = load_checkpoint(found[-1], loop.model.score_fn, loop.optimizer)
        loop.losses_per_epochs = list(state["losses"])
        assert loop.schedule is not None
        loop.schedule.restore(state["schedule"])
        for group, lr in zip(loop.optimizer.param_groups, state["lr"]):
            group["lr"] = lr
        torch.set_rng_state(torch.tensor(state["torch_rng"], dtype=torch.uint8))
        if isinstance(stopper, EarlyStopper):
            if "stopper" not in state:
                raise CheckpointError(f"{self.folder} was written without a stopper; train without")
            stopper.load_summary(state["stopper"])
            stopper.best_state = self._best(loop.model)

    def _write(
        self,
        kind: str,
        model: KGEModel,
        epoch: int,
        weights: Mapping[str, Tensor],
        optimizer: Optional[torch.optim.Optimizer] = None,
        state: Optional[Dict[str, Any]] = None,
    ) -> None:
        path = checkpoint_path(self.folder / kind, Position(epoch))
        with _weights(model, weights):
            save_checkpoint(path, model.score_fn, optimizer, state)
        prune([x for x in find_checkpoints(self.folder / kind) if x != path])

    def _best(self, model: KGEModel) -> Optional[Dict[str, Tensor]]:
        """The best weights, if there are any; the model's stay."""
        found = find_checkpoints(self.folder / "best")
        if not found:
            return None
        with _weights(model, copy_of(model)):
            load_checkpoint(found[-1], model.score_fn)
            return copy_of(model)


@contextmanager
def _weights(model: KGEModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while, a model has other weights; none: its own."""
    own = copy_of(model) if weights else {}
    if weights:
        model.score_fn.load_state_dict(weights)
    try:
        yield
    finally:
        if weights:
            model.score_fn.load_state_dict(own)
