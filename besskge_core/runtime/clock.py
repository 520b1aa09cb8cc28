"""What changes from step to step, where a step that is captured and run again can read it."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from besskge_core.optim import RowOptimizer


class DeviceClock:
    """The learning rates and step counts of an optimiser, on a device.

    Args:
        optimizer: whose learning rates and step counts these are.
        device: where they lie.
    """

    def __init__(self, optimizer: RowOptimizer, device: torch.device) -> None:
        self._optimizer, self._device = optimizer, device
        self._lr = [self._number(0.0) for _ in optimizer.param_groups]
        self._rate = [self._number(0.0) for _ in optimizer.param_groups]
        #: what the device has been told of each group, and of each parameter
        self._told_rate: List[float] = [0.0] * len(self._lr)
        self._told_step: Dict[Tensor, int] = {}
        self._steps: Dict[Tensor, Tensor] = {}

    def _number(self, x: float) -> Tensor:
        return torch.full((), x, dtype=torch.float64, device=self._device)

    def set(self) -> None:
        """Tell the device of learning rates and step counts that are others than it thinks."""
        for i, group in enumerate(self._optimizer.param_groups):
            if group["lr"] != self._told_rate[i]:
                self._lr[i].fill_(group["lr"])
                self._told_rate[i] = group["lr"]
        for parameter, told in self._told_step.items():
            step = self._optimizer.state[parameter]["step"]
            if step != told:
                self._steps[parameter].fill_(step)
                self._told_step[parameter] = step

    def hold(self, goes_on: Tensor) -> None:
        """Learn at a rate of 0 unless `goes_on`, bool ()."""
        for rate, lr in zip(self._rate, self._lr):
            rate.copy_(torch.where(goes_on, lr, torch.zeros_like(lr)))

    def tick(
        self, parameter: Tensor, step: int, group: Dict[str, Any]
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """See :class:`besskge_core.optim.Clock`."""
        if parameter not in self._steps:
            self._steps[parameter] = torch.full((), step, device=self._device)
            self._told_step[parameter] = step
        i = next(i for i, x in enumerate(self._optimizer.param_groups) if x is group)
        return self._steps[parameter].add_(1), {**group, "lr": self._rate[i]}

    def count(self) -> None:
        """Tell the optimiser that there was a step."""
        for parameter in self._steps:
            self._optimizer.state[parameter]["step"] += 1
            self._told_step[parameter] += 1
