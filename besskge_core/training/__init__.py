"""Training runs: configuration, loop, checkpoints, trackers."""

from __future__ import annotations

from besskge_core.training.config import TrainingConfig
from besskge_core.training.trainer import LoadedRun, TrainingResult, load_run, train

__all__ = ["LoadedRun", "TrainingConfig", "TrainingResult", "load_run", "train"]
