"""The folder of a run: whose it is, and what says how it was made."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from besskge_core import config as configuration
from besskge_core.environment import describe
from besskge_core.errors import ConfigError
from besskge_core.training.config import TrainingConfig
from besskge_core.whole_files import beside, write_json, write_whole


def check_folder(folder: Path, config: TrainingConfig, resume: bool) -> None:
    """The folder must be empty, or hold the run to resume; what a kill left half-written goes."""
    begun = beside(folder / "config.toml")  # a kill while the first file was written
    if folder.exists() and any(path != begun for path in folder.iterdir()) and not resume:
        raise ConfigError(
            f"{folder} is not empty; give another folder, or resume the run that is in it"
        )
    if resume:
        before = folder / "config.toml"
        if not before.is_file():
            raise ConfigError(f"{folder} holds no run to resume: there is no config.toml")
        _check_same(configuration.load(TrainingConfig, before), config, folder)
        for leftover in (*folder.glob("checkpoints/.epoch-*"), *folder.glob("best/.epoch-*")):
            shutil.rmtree(leftover)


def write_settings(folder: Path, config: TrainingConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.toml", lambda path: configuration.dump(config, path))
    write_json(folder / "environment.json", describe())


def _check_same(before: TrainingConfig, now: TrainingConfig, folder: Path) -> None:
    """Only what does not touch the numbers may change on resuming; the epochs may, too."""
    free = {"epochs", "device", "threads", "workers", "checkpoint_seconds", "trackers",
            "timeout", "independent"}  # fmt: skip
    for section in asdict(now):
        old, new = asdict(before)[section], asdict(now)[section]
        for name in sorted(set(new) - free):
            if old[name] != new[name]:
                raise ConfigError(
                    f"{folder} was trained with {name}={old[name]!r}, now it is {new[name]!r};"
                    " resume with the same value, or start a new folder"
                )
