"""The checkpoints of a training loop: the last state, and the best weights."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Union

import torch
from torch import Tensor

from besskge_core.model import KGEModel
from besskge_core.philox import Position
from besskge_core.training.checkpoint import (
    checkpoint_path,
    find_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)


class LoopStore:
    """A folder with a checkpoint to go on from, `last`, and one of the best weights, `best`.

    Args:
        folder: where they go.
        minutes: between checkpoints.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        self._saved_at = time.monotonic()

    @classmethod
    def of(
        cls, name: Optional[str], directory: Union[str, Path, None], minutes: Optional[int]
    ) -> Optional[LoopStore]:
        """The store of this name; None if there is no name."""
        if name is None:
            return None
        folder = Path("checkpoints" if directory is None else directory) / name
        return cls(folder, 30 if minutes is None else minutes)

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    def save_last(
        self,
        model: KGEModel,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        epoch: int,
    ) -> None:
        """Write the checkpoint of an epoch, and drop those before."""
        path = checkpoint_path(self.folder / "last", Position(epoch))
        save_checkpoint(path, model.score_fn, optimizer, dict(state))
        prune([x for x in find_checkpoints(self.folder / "last") if x != path])
        self._saved_at = time.monotonic()

    def load_last(
        self, model: KGEModel, optimizer: torch.optim.Optimizer
    ) -> Optional[Dict[str, Any]]:
        """Read the last checkpoint into a model and its optimiser; None if there is none.

        Returns:
            The state it was saved with.
        """
        found = find_checkpoints(self.folder / "last")
        return load_checkpoint(found[-1], model.score_fn, optimizer) if found else None

    def save_best(self, model: KGEModel, weights: Mapping[str, Tensor], epoch: int) -> None:
        """Write the best weights, which a model need not have now."""
        path = checkpoint_path(self.folder / "best", Position(epoch))
        with _weights(model, weights):
            save_checkpoint(path, model.score_fn)
        prune([x for x in find_checkpoints(self.folder / "best") if x != path])

    def load_best(self, model: KGEModel) -> Optional[Dict[str, Tensor]]:
        """The best weights, if there are any; the model's stay."""
        found = find_checkpoints(self.folder / "best")
        if not found:
            return None
        with _weights(model, {}):
            load_checkpoint(found[-1], model.score_fn)
            return copy_of(model)


def copy_of(model: KGEModel) -> Dict[str, Tensor]:
    """The weights of a model, copied."""
    return {name: x.detach().clone() for name, x in model.score_fn.state_dict().items()}


@contextmanager
def _weights(model: KGEModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while, a model has other weights."""
    own = copy_of(model)
    model.score_fn.load_state_dict({**own, **weights})
    try:
        yield
    finally:
        model.score_fn.load_state_dict(own)
