"""Courses of the learning rate, as pure functions of how far the run is.

A schedule has no state, so a resumed run has nothing to restore.
"""

from __future__ import annotations

import math
from typing import Callable

from besskge_core.registry import Registry

Schedule = Callable[[float], float]

#: Share of the run that is done, in [0, 1), to the factor of the learning rate.
SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("constant")
def constant(done: float) -> float:
    """1."""
    return 1.0


@SCHEDULES.register("linear")
def linear(done: float) -> float:
    """From 1 to 0."""
    return 1.0 - done


@SCHEDULES.register("cosine")
def cosine(done: float) -> float:
    """From 1 to 0 along half a cosine. Loshchilov and Hutter, ICLR 2017, without restarts."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


@SCHEDULES.register("exponential")
def exponential(done: float) -> float:
    """From 1 to 1/100, by equal factors."""
    return float(0.01**done)


def factor(schedule: str, warmup: float, done: float) -> float:
    """Factor of the learning rate: the schedule, under a line that rises during the warm-up."""
    rising = done / warmup if warmup > 0.0 else 1.0
    return SCHEDULES[schedule](done) * min(rising, 1.0)
