"""Checkpoints: directories of safetensors files that a kill at any moment cannot tear.

::

    checkpoints/epoch-00003-step-000120/
        shard-00000.safetensors     rows of the entities of shard 0: IDs, weights, optimiser state
        ...
        replicated.safetensors      relations and whatever else every shard holds
        manifest.json               format, position, state of the run, sha256 of each file

A checkpoint is written beside its place and renamed, so that a directory with its final name is
complete. Rows are stored with their entity IDs, so that any number of shards can load them. No
pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from besskge_core.embedding import shard_rows
from besskge_core.errors import CheckpointError
from besskge_core.optim import RowOptimizer
from besskge_core.philox import Position
from besskge_core.scoring import BaseScoreFunction

FORMAT = 1
MANIFEST = "manifest.json"
REPLICATED = "replicated.safetensors"
STATE = "optimizer"

State = Dict[str, Any]


def checkpoint_path(folder: Path, position: Position) -> Path:
    """Where the checkpoint of a position is kept."""
    return folder / f"epoch-{position.epoch:05d}-step-{position.step:06d}"


def find_checkpoints(folder: Path) -> List[Path]:
    """Complete checkpoints, oldest position first."""
    return sorted(path for path in folder.glob("epoch-*") if (path / MANIFEST).is_file())


def save_checkpoint(
    path: Path,
    score_fn: BaseScoreFunction,
    optimizer: Optional[torch.optim.Optimizer] = None,
    state: Optional[State] = None,
) -> None:
    """Write a checkpoint; one that is there already is kept, for it holds the same.

    Args:
        path: directory to make.
        score_fn: its tables and modules.
        optimizer: its state, if the run is to go on.
        state: anything JSON can hold.

    Raises:
        OSError: no space, no permission; nothing is left behind.
    """
    if path.exists():
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _write(beside, score_fn, optimizer, state or {})
        os.rename(beside, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(
    folder: Path,
    score_fn: BaseScoreFunction,
    optimizer: Optional[torch.optim.Optimizer],
    state: State,
) -> None:
    tensors = {name: x.detach() for name, x in score_fn.state_dict().items()}
    steps: Dict[str, float] = {}
    for name, kind, value in _optimizer_state(score_fn, optimizer):
        if isinstance(value, Tensor) and value.dim():
            tensors[f"{STATE}/{name}/{kind}"] = value
        elif value is not None:  # as torch 2.0 says that there is no momentum
            number = float(value)
            steps[f"{name}/{kind}"] = int(number) if number.is_integer() else number
    sharded = _sharded(score_fn, tensors)
    files: Dict[str, Dict[str, Tensor]] = {
        # Copies, for a module that two others share has two names, which safetensors refuses.
        REPLICATED: {name: x.clone() for name, x in tensors.items() if name not in sharded}
    }
    sharding = score_fn.sharding
    for shard, count in enumerate(sharding.shard_counts.tolist()):
        entity = torch.from_numpy(sharding.shard_and_idx_to_entity[shard, :count].copy())
        rows = {name: x[shard, :count] for name, x in sharded.items()}
        files[f"shard-{shard:05d}.safetensors"] = {"entity_id": entity, **rows}
    digests = {}
    for file_name, content in files.items():
        save_file({k: x.contiguous() for k, x in content.items()}, folder / file_name)
        _sync(folder / file_name)
        digests[file_name] = _sha256(folder / file_name)
    manifest = {
        "format": FORMAT,
        "n_entity": sharding.n_entity,
        "n_shard": sharding.n_shard,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "optimizer_steps": steps,
        "files": digests,
        "state": state,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    _sync(folder / MANIFEST)
    _sync(folder)


def load_checkpoint(
    path: Path, score_fn: BaseScoreFunction, optimizer: Optional[torch.optim.Optimizer] = None
) -> State:
    """Read a checkpoint into a model, whatever its number of shards.

    Args:
        path: the directory.
        score_fn: of the same graph and shape of rows; its tensors are overwritten.
        optimizer: of its parameters; its state is replaced.

    Returns:
        The state it was saved with.

    Raises:
        CheckpointError: it is incomplete, damaged, or of another model; the model is untouched.
    """
    manifest = read_manifest(path)
    files = {name: _read(path / name, digest) for name, digest in manifest["files"].items()}
    tensors = dict(files.pop(REPLICATED))
    tensors.update(_by_shard(path, score_fn, list(files.values())))
    stored_state = {k: tensors.pop(k) for k in list(tensors) if k.startswith(f"{STATE}/")}
    _check_like(path, score_fn, tensors)
    if optimizer is not None:
        steps = manifest["optimizer_steps"]
        if not manifest.get("optimizer", stored_state or steps):
            raise CheckpointError(
                f"{path}: holds no optimiser state, so training cannot go on from it"
            )
        _load_optimizer(score_fn, optimizer, stored_state, steps)
    with torch.no_grad():
        for name, own in score_fn.state_dict(keep_vars=True).items():
            own.copy_(tensors[name])
    return dict(manifest["state"])


def prune(paths: Iterable[Path]) -> None:
    """Remove checkpoints."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(path: Path) -> Dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, or of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST}, so this is not a checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{path / MANIFEST}: not JSON ({error}); it is damaged") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(
            f"{path / MANIFEST}: format {found!r}, this version reads format {FORMAT}"
        )
    return manifest


def _by_shard(
    path: Path, score_fn: BaseScoreFunction, shards: List[Dict[str, Tensor]]
) -> Dict[str, Tensor]:
    """Rows of all shards, laid out as the model's sharding wants them."""
    n_entity = score_fn.sharding.n_entity
    entity = torch.cat([shard.pop("entity_id").long() for shard in shards])
    if not np.array_equal(np.sort(entity.numpy()), np.arange(n_entity)):
        raise CheckpointError(
            f"{path}: holds {len(entity)} entities, the model has {n_entity}:"
            " it belongs to another graph"
        )
    rows = {}
    for name in shards[0]:
        stored = torch.cat([shard[name] for shard in shards])
        by_entity = torch.empty_like(stored).index_copy_(0, entity, stored)
        rows[name] = shard_rows(by_entity, score_fn.sharding)
    return rows


def _check_like(path: Path, score_fn: BaseScoreFunction, tensors: Mapping[str, Tensor]) -> None:
    own = {name: tuple(x.shape) for name, x in score_fn.state_dict().items()}
    stored = {name: tuple(x.shape) for name, x in tensors.items()}
    if own != stored:
        different = {
            name: f"{stored.get(name, 'nothing')} stored, {own.get(name, 'nothing')} in the model"
            for name in sorted({*own, *stored})
            if own.get(name) != stored.get(name)
        }
        raise CheckpointError(f"{path}: of another model: {different}")


def _optimizer_state(
    score_fn: BaseScoreFunction, optimizer: Optional[torch.optim.Optimizer]
) -> Iterator[Tuple[str, str, Any]]:
    """(parameter, kind of state, value)"""
    for name, parameter in score_fn.named_parameters():
        if optimizer is not None:
            for kind, value in sorted(optimizer.state.get(parameter, {}).items()):
                yield name, kind, value


def _load_optimizer(
    score_fn: BaseScoreFunction,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    steps: Mapping[str, float],
) -> None:
    parameters = dict(score_fn.named_parameters())
    for parameter in parameters.values():
        optimizer.state[parameter].clear()
    for key, value in tensors.items():
        _, name, kind = key.split("/")
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)
    as_tensor = not isinstance(optimizer, RowOptimizer)  # as torch's own count
    for key, step in steps.items():
        name, kind = key.split("/")
        count: Any = torch.tensor(float(step)) if as_tensor else step
        optimizer.state[parameters[name]][kind] = count


def _sharded(score_fn: BaseScoreFunction, tensors: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """The tensors whose rows belong to shards: the entity table, and its optimiser state."""
    named, table = score_fn.state_dict(keep_vars=True).items(), score_fn.entity_embedding
    own = next(name for name, x in named if x is table)
    return {
        name: x
        for name, x in tensors.items()
        if name == own or (name.startswith(f"{STATE}/{own}/") and x.shape[:2] == table.shape[:2])
    }


def _read(path: Path, digest: str) -> Dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete")
    if _sha256(path) != digest:
        raise CheckpointError(f"{path}: its sha256 is not the manifest's; the file is damaged")
    try:
        tensors: Dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    return tensors


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the file or directory on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
