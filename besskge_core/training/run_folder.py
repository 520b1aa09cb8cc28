"""The folder of a run: whose it is, and what says how it was made."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Callable

from besskge_core import config as configuration
from besskge_core.environment import describe
from besskge_core.errors import ConfigError
from besskge_core.training.config import TrainingConfig


def check_folder(folder: Path, config: TrainingConfig, resume: bool) -> None:
    """The folder must be empty, or hold the run to resume; what a kill left half-written goes."""
    begun = folder / _beside("config.toml")  # a kill while the first file was written
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


def write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda beside: beside.write_text(text))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file and rename, so that a kill leaves the old one, the new one or none."""
    beside = path.with_name(_beside(path.name))
    write(beside)
    os.replace(beside, path)


def _beside(name: str) -> str:
    return f".{name}.partial"


def _check_same(before: TrainingConfig, now: TrainingConfig, folder: Path) -> None:
    """Only what does not touch the numbers may change on resuming; the epochs may, too."""
    free = {"epochs", "device", "threads", "workers", "checkpoint_seconds", "trackers",
            "timeout"}  # fmt: skip
    for section in asdict(now):
        old, new = asdict(before)[section], asdict(now)[section]
        for name in sorted(set(new) - free):
            if old[name] != new[name]:
                raise ConfigError(
                    f"{folder} was trained with {name}={old[name]!r}, now it is {new[name]!r};"
                    " resume with the same value, or start a new folder"
                )
