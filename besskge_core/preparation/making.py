"""From source files to a prepared folder, in stages."""

from __future__ import annotations

import contextlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import pyarrow as pa

from besskge_core.errors import ConfigError
from besskge_core.preparation.buckets import write_buckets
from besskge_core.preparation.memory import given_back
from besskge_core.preparation.numbering import number, translate
from besskge_core.preparation.scanning import KINDS, Scan, scan
from besskge_core.preparation.sources import (
    PathLike,
    Sources,
    Tables,
    as_json,
    fingerprint,
    tables_of,
    text_bytes,
)
from besskge_core.preparation.stages import Stages
from besskge_core.preparation.writing import explained
from besskge_core.prepared import (
    MANIFEST,
    UNFINISHED,
    Buckets,
    Manifest,
    check_files,
    is_prepared,
    map_array,
)
from besskge_core.sharding import PartitionedTripleSet, Sharding
from besskge_core.whole_files import write_json

__all__ = ["add_buckets", "prepare", "prepared_triple_set"]

#: Is told the stage, and how many rows or labels more it has done.
Progress = Callable[[str, int], None]

MEMORY_LIMIT = 2**30
MAX_THREADS = 8
#: Small is as fast as large, for it stays in the caches; of a large source things are larger, so
#: that there are not too many, and of all the memory that may be used a fraction is the limit.
PIECE_SIZE = 2**20  # bytes of the labels of a piece of a source
MAX_PIECE = 2**11
PARTITION_SIZE = 2**23  # bytes of the labels of a partition
MAX_PARTITION = 2**8
LARGEST_PARTITION = 2**30  # Arrow's strings end at 2**31
MIN_SIZE = 2**16
PIECE_ROWS = (2**12, 2**17)  # rows of a piece that is sorted into buckets
ROW_BYTES = 200  # that sorting a row takes


class Resources(NamedTuple):
    """What the work may use, and whom it tells how far it is."""

    memory: int
    pool: ThreadPoolExecutor
    threads: int
    progress: Progress
    give_back: Callable[[], None]

    @property
    def share(self) -> int:
        """Bytes for one of the things that are in memory at once, some of them waiting."""
        return self.memory // (4 * (self.threads + 2))

    def telling(self, stage: str) -> Callable[[int], None]:
        def told(n: int) -> None:
            self.give_back()
            self.progress(stage, n)

        return told

    def piece_size(self, n_byte: int) -> int:
        """Bytes of labels to number at once."""
        return max(min(self.share, max(PIECE_SIZE, n_byte // MAX_PIECE)), MIN_SIZE)

    def n_partition(self, n_byte: int) -> int:
        """Into how many parts to divide the labels."""
        wanted = max(PARTITION_SIZE, n_byte // MAX_PARTITION)
        return max(-(-n_byte // max(min(self.share, wanted, LARGEST_PARTITION), 1)), 1)

    def piece_rows(self, n_shard: int) -> int:
        """Rows to sort at once; with many shards, enough for a few in each bucket."""
        low, high = PIECE_ROWS
        return min(max(self.share // (2 * ROW_BYTES), low), max(high, 16 * n_shard**2))


@contextlib.contextmanager
def _resources(
    folder: Path, memory: int, threads: Optional[int], progress: Progress
) -> Iterator[Resources]:
    n_thread = threads or min(pa.cpu_count(), MAX_THREADS)
    with explained(folder), given_back() as give_back, ThreadPoolExecutor(n_thread) as pool:
        yield Resources(memory, pool, n_thread, progress, give_back)


def prepare(
    sources: Sources,
    folder: PathLike,
    n_shard: Optional[int] = 8,
    seed: int = 0,
    add_inverse_triples: bool = True,
    memory_limit: int = MEMORY_LIMIT,
    columns: Optional[Sequence[Union[int, str]]] = None,
    delimiter: Optional[str] = None,
    threads: Optional[int] = None,
    resume: bool = False,
    progress: Progress = lambda stage, n: None,
) -> Manifest:
    """Turn files of labelled triples into a prepared folder, in bounded memory.

    IDs are those that KGDataset.from_files gives, buckets those of
    PartitionedTripleSet.create_from_dataset; the files do not depend on memory or threads.

    Args:
        sources: part to a file, to several that are read one after the other, or to a folder of
            such; or a folder of train, valid and test; or a file, which is "train". Kinds of files
            are those of :mod:`besskge_core.reading.files`; empty lines are skipped.
        folder: to write, empty or not there yet; see docs/prepared-data.md.
        n_shard: shards that the triples of "train" are sorted for; None sorts nothing.
        seed: of the sharding.
        add_inverse_triples: sort inverse triples too.
        memory_limit: bytes for labels and pieces of the sources, of which no more are used than
            help; Python, Arrow and some 50 bytes an entity come on top.
        columns: positions or names of head, relation and tail, as for KGDataset.from_files.
        delimiter: as for KGDataset.from_files.
        threads: default: as many as Arrow uses, 8 at most.
        resume: go on where an earlier call was killed; or check the checksums of a folder that is
            complete, and add the buckets that it lacks.
        progress: is told the stage, and how many rows or labels more it has done.

    Raises:
        ConfigError: `folder` is not empty or was begun with other sources, or n_shard cannot be.
        DataError: a source cannot be read as it should; names the line.
        DatasetNotFoundError: there is no such source.
        PreparationError: the disk is full.
    """
    folder = Path(folder)
    tables = tables_of(sources, columns, delimiter)
    if n_shard is not None and "train" not in tables:
        raise ConfigError(f"buckets are of the part 'train', the parts are {list(tables)}")
    _check_folder(folder, resume)
    with _resources(folder, memory_limit, threads, progress) as use:
        if (folder / MANIFEST).is_file():
            manifest = _checked(folder, tables)
        else:
            manifest = _number(folder, tables, use, resume)
        if n_shard is not None:
            manifest = _with_buckets(folder, manifest, n_shard, seed, add_inverse_triples, use)
        write_json(folder / MANIFEST, manifest.as_json())
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return manifest


def add_buckets(
    folder: PathLike,
    n_shard: int,
    seed: int = 0,
    add_inverse_triples: bool = True,
    memory_limit: int = MEMORY_LIMIT,
    threads: Optional[int] = None,
    progress: Progress = lambda stage, n: None,
) -> Manifest:
    """Sort the training triples of a prepared folder for another number of shards.

    Arguments and errors are those of :func:`prepare`. Nothing is done if they are sorted so.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    check_files(folder, manifest, [name for name in manifest.files if "/" not in name], False)
    with _resources(folder, memory_limit, threads, progress) as use:
        manifest = _with_buckets(folder, manifest, n_shard, seed, add_inverse_triples, use)
        write_json(folder / MANIFEST, manifest.as_json())
    return manifest


def prepared_triple_set(
    folder: PathLike, sharding_seed: int, n_shard: int, inverse: bool, verify: bool = False
) -> PartitionedTripleSet:
    """The training triples in their buckets, mapped into memory.

    The rows of a shard, those of the buckets (shard, ...), are contiguous: a process that draws
    from these only never touches the others. `triple_sort_idx` is None.

    Args:
        folder: made by :func:`prepare`.
        sharding_seed: seed of the sharding.
        n_shard: number of shards.
        inverse: whether inverse triples are among them.
        verify: compare checksums too; by default only sizes are compared.

    Raises:
        ConfigError: the folder has no such buckets; lists those that it has.
        DataError: a file is missing, cut short or, if `verify`, changed.
        DatasetNotFoundError: it is not a prepared folder.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    wanted = (n_shard, sharding_seed, inverse)
    found = [buckets for buckets in manifest.buckets if _key(buckets) == wanted]
    if not found:
        raise ConfigError(
            f"{folder}: no buckets for {_described(*wanted)}; it has"
            f" {[_described(*_key(buckets)) for buckets in manifest.buckets]};"
            " besskge_core.preparation.add_buckets adds some"
        )
    buckets = found[0]
    names = [name for name in manifest.files if name.startswith(f"{buckets.folder}/")]
    check_files(folder, manifest, names, verify)
    home = folder / buckets.folder
    counts = map_array(home / "counts.npy", (n_shard, n_shard), np.int64)
    return PartitionedTripleSet(
        sharding=Sharding.load(home / "sharding.npz"),
        inverse_triples=inverse,
        partition_mode=buckets.partition_mode,
        dummy="none",
        triples=map_array(home / "triples.npy", (buckets.n_triple, 3), np.int32),
        triple_counts=counts,
        triple_offsets=(np.cumsum(counts) - counts.ravel()).reshape(counts.shape),
    )


# -- stages ----------------------------------------------------------------------------------------


def _number(folder: Path, tables: Tables, use: Resources, resume: bool) -> Manifest:
    """Write labels and triples of IDs, in stages; the manifest has no buckets yet."""
    work = folder / UNFINISHED
    first = next(iter(tables.values()))[0]
    plan = {
        "sources": [list(entry) for entry in fingerprint(tables)],
        "columns": None if first.columns is None else list(first.columns),
        "delimiter": first.delimiter,
    }
    stages = Stages(work / "journal.json", folder, plan, resume)
    # Taken up with another memory limit, the work goes on with the partitions that it has.
    n_byte = text_bytes(tables)
    layout = stages.run("layout", lambda: ({"n": use.n_partition(n_byte)}, {}))
    files = [table for part in tables.values() for table in part]
    part_of = [i for i, part in enumerate(tables.values()) for _ in part]
    stems = [work / f"scan-{i:05}" for i in range(len(files))]
    for table, stem in zip(files, stems):
        told = use.telling(f"reading {os.path.basename(table.path)}")
        sizes = (layout.facts["n"], use.piece_size(n_byte))
        stages.run(stem.name, partial(scan, table, stem, *sizes, use.pool, told))
    scans = [Scan(stem) for stem in stems]
    numbered = {}
    for kind in KINDS:
        told = use.telling(f"numbering {kind} labels")
        numbered[kind] = stages.run(
            f"number {kind}", partial(number, scans, part_of, kind, work, folder, use.pool, told)
        )
    paths = [folder / f"{part}.npy" for part in tables]
    told = use.telling("translating labels to IDs")
    translated = stages.run(
        "translate", partial(translate, scans, part_of, paths, work, use.pool, told)
    )
    everything = [translated, *numbered.values()]
    return Manifest(
        n_entity=numbered["entity"].facts["n"],
        n_relation_type=numbered["relation"].facts["n"],
        parts=dict(zip(tables, translated.facts["n"])),
        sources=as_json(tables),
        files={n: x for done in everything for n, x in done.files.items() if "/" not in n},
    )


def _with_buckets(
    folder: Path, manifest: Manifest, n_shard: int, seed: int, inverse: bool, use: Resources
) -> Manifest:
    """The manifest with such buckets, which are made unless they are there."""
    for there in manifest.buckets:
        if there.n_shard == n_shard:
            if (there.seed, there.inverse_triples) == (seed, inverse):
                return manifest
            raise ConfigError(
                f"{folder / there.folder} has buckets for {_described(*_key(there))}, not for"
                f" {_described(n_shard, seed, inverse)}; prepare in another folder"
            )
    n_train = manifest.parts.get("train", 0)
    map_array(folder / "train.npy", (n_train, 3), np.int32)  # which refuses another array
    name, n_triple = f"buckets-{n_shard}", n_train * (1 + inverse)
    files = write_buckets(
        folder / "train.npy", manifest.n_relation_type, Sharding.create(manifest.n_entity, n_shard, seed),
        inverse, folder / name, use.piece_rows(n_shard), use.pool,
        use.telling(f"sorting triples for {n_shard} shards"),
    )  # fmt: skip
    return replace(
        manifest,
        files={**manifest.files, **{f"{name}/{path.name}": x for path, x in files.items()}},
        buckets=[*manifest.buckets, Buckets(name, n_shard, seed, inverse, n_triple)],
    )


def _check_folder(folder: Path, resume: bool) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    begun = is_prepared(folder)
    if not begun:
        raise ConfigError(f"{folder} is not empty; prepare in an empty folder, or a new one")
    if not resume:
        raise ConfigError(
            f"{folder} is prepared, or was begun; go on with resume=True (--resume), or remove it"
        )


def _checked(folder: Path, tables: Tables) -> Manifest:
    """The manifest of a folder that is complete, if it is whole and of these sources."""
    manifest = Manifest.read(folder)
    if manifest.sources != as_json(tables):
        raise ConfigError(
            f"{folder} was prepared from {manifest.sources}, not from {as_json(tables)}; prepare in"
            " another folder"
        )
    check_files(folder, manifest, list(manifest.files), verify=True)
    return manifest


def _key(buckets: Buckets) -> Tuple[int, int, bool]:
    return buckets.n_shard, buckets.seed, buckets.inverse_triples


def _described(n_shard: int, seed: int, inverse: bool) -> str:
    return f"{n_shard} shards, seed {seed}, {'with' if inverse else 'without'} inverse triples"
