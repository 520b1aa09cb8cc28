"""How far a run is, for people to see: one bar on a terminal, one line an epoch anywhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Mapping, Optional, Type

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Epoch, loss, triples a second and time left.

    Args:
        console: where to; a bar only if it is a terminal.
        epochs: of the run.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self._console, self._epochs = console, epochs
        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} triples/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(
            "", total=None, epoch=0, epochs=epochs, loss=float("nan"), speed=0.0
        )
        self._n_step, self._first, self._triples, self._began = 0, 0, 0.0, 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._bar.stop()

    def epoch_begins(self, epoch: int, n_step: int, first_step: int, epoch_size: int) -> None:
        """Before the first step that is taken of an epoch."""
        self._n_step, self._first, self._began = n_step, first_step, time.monotonic()
        self._triples = epoch_size / n_step
        done = epoch * n_step + first_step
        self._bar.update(self._task, total=self._epochs * n_step, completed=done, epoch=epoch + 1)

    def step_done(self, loss: float) -> None:
        """After each step."""
        self._bar.advance(self._task)
        done = self._bar.tasks[self._task].completed % self._n_step - self._first
        if done > 0:
            speed = done * self._triples / (time.monotonic() - self._began)
            self._bar.update(self._task, loss=loss, speed=speed)

    def epoch_done(self, record: Mapping[str, Any]) -> None:
        """After each epoch, with its record: one line."""
        valid = "".join(
            f"  {name[len('valid_') :]} {value:.4f}"
            for name, value in record.items()
            if name in ("valid_mrr", "valid_hits@10")
        )
        self._console.print(
            f"epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.4f}"
            f"  {record['triples_per_second']:,} triples/s{f'  valid{valid}' if valid else ''}",
            highlight=False,
        )
