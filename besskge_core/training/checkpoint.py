"""Checkpoints: directories of safetensors files that a kill at any moment cannot tear.

::

    checkpoints/epoch-00003-step-000120/
        shard-00000.safetensors     rows of the entities of shard 0: IDs, weights, optimiser state
        ...
        replicated.safetensors      relations and whatever else every shard holds
        ipu-optimizer.safetensors   the optimiser state of IPUs, where the run is on them
        manifest.json               format, position, state of the run, sha256 of each file

Of several ranks each writes the files of its shards, and reads the rows that it will host. A
checkpoint is written beside its place and renamed, so that a directory with its final name is
complete. Rows are stored with their entity IDs, so that any number of shards can load them. No
pickle is read or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from besskge_core.errors import CheckpointError, StorageError
from besskge_core.optim import RowOptimizer
from besskge_core.philox import Position
from besskge_core.runtime import Ranks
from besskge_core.scoring import BaseScoreFunction
from besskge_core.sharding import Sharding
from besskge_core.training import device_state
from besskge_core.whole_files import sha256_of

#: Written, and read; 1 has no sha256 of its manifest.
FORMAT, READ = 2, (1, 2)
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
    ranks: Optional[Ranks] = None,
) -> None:
    """Write a checkpoint; one that is there already is kept, for it holds the same.

    Each rank writes the files of its own shards, and the first one the rest; all see the folder.

    Args:
        path: directory to make.
        score_fn: its tables and modules.
        optimizer: its state, if the run is to go on.
        state: anything JSON can hold; that of the first rank counts.
        ranks: who has the shards; None: all of them are here.

    Raises:
        StorageError: no space, no permission; nothing is left behind.
        WorkerLostError: so it was on another rank.
    """
    ranks = Ranks() if ranks is None else ranks
    beside = path.with_name(f".{path.name}.partial")

    def begin() -> bool:
        if (path / MANIFEST).is_file():
            return False
        for leftover in (path, beside):
            shutil.rmtree(leftover, ignore_errors=True)
        with _storing(path):
            beside.mkdir(parents=True)
        return True

    def write() -> Dict[str, str]:
        with _storing(path):
            return _write(beside, score_fn, optimizer, ranks.rank == 0)

    def finish(digests: Mapping[str, str]) -> None:
        with _storing(path):
            _write_manifest(beside, score_fn, optimizer, state or {}, digests)
            os.rename(beside, path)
            sync(path.parent)

    if not ranks.first(begin):
        return
    try:
        parts = ranks.each(write)
        digests = {name: digest for part in parts for name, digest in part.items()}
        ranks.first(lambda: finish(digests))
    finally:
        if ranks.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """What the disk refuses, in the words of its errors."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: could not be written ({error}); checkpoints before it are intact"
        ) from error


def _write(
    folder: Path,
    score_fn: BaseScoreFunction,
    optimizer: Optional[torch.optim.Optimizer],
    is_first: bool,
) -> Dict[str, str]:
    """Write the files of the hosted shards, and what all ranks have if this is the first one."""
    tensors = {name: x.detach() for name, x in score_fn.state_dict().items()}
    for name, kind, value in _optimizer_state(score_fn, optimizer):
        if isinstance(value, Tensor) and value.dim():
            tensors[f"{STATE}/{name}/{kind}"] = value
    sharded = _sharded(score_fn, tensors)
    files: Dict[str, Dict[str, Tensor]] = {}
    if is_first:  # copies, for a module that two others share has two names: safetensors refuses it
        files[REPLICATED] = {name: x.clone() for name, x in tensors.items() if name not in sharded}
    if is_first and optimizer is not None and device_state.is_on_device(optimizer):
        files[device_state.FILE] = device_state.device_state(optimizer)
    sharding = score_fn.sharding
    for i, shard in enumerate(score_fn.hosted):
        count = int(sharding.shard_counts[shard])
        entity = torch.from_numpy(sharding.shard_and_idx_to_entity[shard, :count].copy())
        rows = {name: x[i, :count] for name, x in sharded.items()}
        files[f"shard-{shard:05d}.safetensors"] = {"entity_id": entity, **rows}
    digests = {}
    for file_name, content in files.items():
        save_file({k: x.contiguous() for k, x in content.items()}, folder / file_name)
        sync(folder / file_name)
        digests[file_name] = sha256_of(folder / file_name)
    return digests


def _write_manifest(
    folder: Path,
    score_fn: BaseScoreFunction,
    optimizer: Optional[torch.optim.Optimizer],
    state: State,
    digests: Mapping[str, str],
) -> None:
    steps: Dict[str, float] = {}
    for name, kind, value in _optimizer_state(score_fn, optimizer):
        if value is not None and not (isinstance(value, Tensor) and value.dim()):
            number = float(value)  # None is how torch 2.0 says that there is no momentum
            steps[f"{name}/{kind}"] = int(number) if number.is_integer() else number
    manifest = {
        "format": FORMAT,
        "n_entity": score_fn.sharding.n_entity,
        "n_shard": score_fn.sharding.n_shard,
        "sharding": _digest_of(score_fn.sharding),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "optimizer_steps": steps,
        "files": dict(sorted(digests.items())),
        "state": state,
    }
    manifest["sha256"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    sync(folder / MANIFEST)
    sync(folder)


def load_checkpoint(
    path: Path,
    score_fn: BaseScoreFunction,
    optimizer: Optional[torch.optim.Optimizer] = None,
    ranks: Optional[Ranks] = None,
) -> State:
    """Read a checkpoint into a model, whatever its number of shards, and of those who wrote it.

    Args:
        path: the directory.
        score_fn: of the same graph and shape of rows; its tensors are overwritten.
        optimizer: of its parameters; its state is replaced.
        ranks: who else loads it; each reads the rows of its own shards.

    Returns:
        The state it was saved with.

    Raises:
        CheckpointError: it is incomplete, damaged, or of another model; the model is untouched.
        WorkerLostError: so it was on another rank.
    """
    staged: Dict[str, Tensor] = {}
    manifest: Dict[str, Any] = {}
    of_device: Dict[str, Tensor] = {}

    def stage() -> None:
        manifest.update(read_manifest(path))
        stored = manifest["files"].get(device_state.FILE)
        same = manifest.get("sharding") == _digest_of(score_fn.sharding)
        device_state.check_device_state(path, optimizer, stored is not None, same)
        staged.update(_stage(path, manifest, score_fn, optimizer is not None))
        if stored is not None and optimizer is not None:
            of_device.update(read_tensors(path / device_state.FILE, stored))

    (Ranks() if ranks is None else ranks).each(stage)
    stored_state = {k: staged.pop(k) for k in list(staged) if k.startswith(f"{STATE}/")}
    if optimizer is not None and device_state.is_on_device(optimizer):
        device_state.load_device_state(optimizer, of_device)
    elif optimizer is not None:
        _load_optimizer(score_fn, optimizer, stored_state, manifest["optimizer_steps"])
    with torch.no_grad():
        for name, own in score_fn.state_dict(keep_vars=True).items():
            own.copy_(staged[name])
    return dict(manifest["state"])


def _stage(
    path: Path, manifest: Mapping[str, Any], score_fn: BaseScoreFunction, with_optimizer: bool
) -> Dict[str, Tensor]:
    """All tensors of a checkpoint, of the rows those of the hosted shards; checked."""
    files = manifest["files"]
    if REPLICATED not in files:
        raise CheckpointError(f"{path}: the manifest names no {REPLICATED}; it is damaged")
    tensors = read_tensors(path / REPLICATED, files[REPLICATED])
    tensors.update(_hosted_rows(path, manifest, score_fn))
    stored_state = [k for k in tensors if k.startswith(f"{STATE}/")]
    _check_like(path, score_fn, {k: x for k, x in tensors.items() if k not in stored_state})
    if with_optimizer and not manifest.get(
        "optimizer", stored_state or manifest["optimizer_steps"]
    ):
        raise CheckpointError(f"{path}: holds no optimiser state, so training cannot go on from it")
    return tensors


def prune(paths: Iterable[Path]) -> None:
    """Remove checkpoints, so that a kill leaves none that looks whole."""
    for path in paths:
        hidden = path.with_name(f".{path.name}.removed")
        with contextlib.suppress(OSError):
            os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


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
    if not isinstance(manifest, dict) or manifest.get("format") not in READ:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(
            f"{path / MANIFEST}: format {found!r}, this version reads format"
            f" {' and '.join(map(str, READ))}"
        )
    digest = manifest.pop("sha256", None)
    if digest != manifest_digest(manifest) and (digest is not None or manifest["format"] > 1):
        raise CheckpointError(
            f"{path / MANIFEST}: its sha256 is not that of its content; it is damaged"
        )
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest without its own."""
    as_read = json.loads(json.dumps(manifest))  # whose keys are strings
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _hosted_rows(
    path: Path, manifest: Mapping[str, Any], score_fn: BaseScoreFunction
) -> Dict[str, Tensor]:
    """Rows (L, M, ...) of the hosted shards; one file is held at a time."""
    sharding, hosted = score_fn.sharding, list(score_fn.hosted)
    digests = {k: x for k, x in manifest["files"].items() if k.startswith("shard-")}
    if manifest.get("sharding") == _digest_of(sharding):  # the same rows in the same files
        own = [f"shard-{shard:05d}.safetensors" for shard in hosted]
        digests = {k: x for k, x in digests.items() if k in own}
    place = np.full(sharding.n_shard, -1)
    place[hosted] = np.arange(len(hosted))
    shape = (len(hosted), sharding.max_entity_per_shard)
    n_filled, n_stored, rows = np.zeros(shape, np.int64), 0, {}
    for name, digest in digests.items():
        content = read_tensors(path / name, digest)
        entity = content.pop("entity_id").numpy()
        n_stored += len(entity)
        if len(entity) and not 0 <= entity.min() <= entity.max() < sharding.n_entity:
            break
        shard = place[sharding.entity_to_shard[entity]]
        here = np.flatnonzero(shard >= 0)
        to = shard[here], sharding.entity_to_idx[entity[here]]
        np.add.at(n_filled, to, 1)
        into = tuple(torch.from_numpy(x.astype(np.int64)) for x in to)
        for key, x in content.items():
            if key not in rows:
                rows[key] = x.new_zeros((*shape, *x.shape[1:]))
            rows[key][into] = x[torch.from_numpy(here)]
    real = np.arange(shape[1]) < sharding.shard_counts[hosted][:, None]
    if not np.array_equal(n_filled, real):
        n_entity = manifest.get("n_entity", n_stored)
        raise CheckpointError(
            f"{path}: holds {n_entity} entities, the model has {sharding.n_entity}: it belongs to"
            " another graph"
        )
    return rows


def _digest_of(sharding: Sharding) -> str:
    """Two shardings with the same have the same rows in the same places."""
    places = np.ascontiguousarray(sharding.shard_and_idx_to_entity.astype("<i4"))
    return hashlib.sha256(places.tobytes() + str(places.shape).encode()).hexdigest()


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


def read_tensors(path: Path, digest: str, with_optimizer: bool = True) -> Dict[str, Tensor]:
    """The tensors of a file of a checkpoint.

    Args:
        path: the file.
        digest: its sha256, by the manifest.
        with_optimizer: also the state of the optimiser, several times the weights.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete")
    if sha256_of(path) != digest:
        raise CheckpointError(f"{path}: its sha256 is not the manifest's; the file is damaged")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if not with_optimizer:
                names = [name for name in names if not name.startswith(f"{STATE}/")]
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def sync(path: Path) -> None:
    """Have the file or directory on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
