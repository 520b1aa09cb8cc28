"""Training: runs with a configuration, and loops in PyKEEN's manner."""

from __future__ import annotations

from besskge_core.training.callbacks import EarlyStopper, NopStopper, TrainingCallback
from besskge_core.training.config import TrainingConfig
from besskge_core.training.loaded import LoadedRun, load_run
from besskge_core.training.loop import TrainingLoop
from besskge_core.training.loops import (
    LCWATrainingLoop,
    SLCWATrainingLoop,
    SymmetricLCWATrainingLoop,
)
from besskge_core.training.trainer import TrainingResult, train

__all__ = [
    "EarlyStopper",
    "LCWATrainingLoop",
    "LoadedRun",
    "NopStopper",
    "SLCWATrainingLoop",
    "SymmetricLCWATrainingLoop",
    "TrainingCallback",
    "TrainingConfig",
    "TrainingLoop",
    "TrainingResult",
    "load_run",
    "train",
]
