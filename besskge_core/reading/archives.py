"""Data sets that are published as one archive: used where they are, else downloaded and unpacked.

The idea: an archive is unpacked in a folder beside the goal, read there and its counts compared
with the published ones; only then do its files take their place. A kill or a failure before leaves
nothing that looks like the data set.

No SHA-256 of these archives is known to us. That of YAGO3-10 is compared with the ID that git gives
it in its repository. OGB and OpenBioLink publish no checksum: there the archive's own checksums of
its files, and the counts, are what is checked. Files that were already there are read as they are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from besskge_core.errors import DataError, DataWarning, DownloadError
from besskge_core.reading import labelling, ogb, remote
from besskge_core.reading.files import TableFile, read_strings

__all__ = ["ARCHIVES", "Archive", "difference", "load"]

Fields = Dict[str, Any]  # of a KGDataset
PARTS = ("train", "valid", "test")
HQ_DIR = "HQ_DIR/train_test_data"


@dataclass(frozen=True)
class Archive:
    """A published data set.

    Attributes:
        name: how users call it, in lower case.
        home: the folder below ``$BESSKGE_DATA`` or the cache that is its root.
        url: of a .zip or .tar.gz.
        entries: what it has at its top to what this is called below the root.
        files: what must be there, below the root.
        read: root to fields of a KGDataset.
        counts: entities, relations, and triples of train, valid and test; None where published
            numbers disagree.
        licence: terms of the data.
        git_id: the ID of the archive in a git repository, its SHA-1 with a header.
    """

    name: str
    home: str
    url: str
    entries: Mapping[str, str]
    files: Tuple[str, ...]
    read: Callable[[str], Fields]
    counts: Tuple[Optional[int], ...]
    licence: str
    git_id: Optional[str] = None

    def is_in(self, root: str) -> bool:
        """Whether anything of it is below `root`."""
        return any(os.path.exists(os.path.join(root, entry)) for entry in self.entries.values())

    def missing(self, root: str) -> Tuple[str, ...]:
        """The files that `root` lacks."""
        return tuple(f for f in self.files if not os.path.isfile(os.path.join(root, f)))


def load(name: str, root: str) -> Fields:
    """Fields of a KGDataset, from the files below `root`, or from a download that is put there.

    Args:
        name: of one of :data:`ARCHIVES`.
        root: a folder; need not exist yet.

    Raises:
        DataError: a file is damaged, or some are there and others are not.
        DownloadError: not reachable, damaged, or not what was published.
    """
    archive = ARCHIVES[name]
    missing = archive.missing(root)
    if not missing:
        return archive.read(root)
    if archive.is_in(root):
        raise DataError(
            f"{root}: {archive.name} is not complete, {missing[0]} is missing; add it, or remove"
            f" {' and '.join(archive.entries.values())} to have all of it downloaded"
        )
    return _fetch(archive, root)


def difference(archive: Archive, fields: Fields) -> str:
    """How the counts differ from the published ones; empty where they do not."""
    sizes = [len(fields["triples"].get(part, ())) for part in PARTS]
    counted = (fields["n_entity"], fields["n_relation_type"], *sizes)
    if all(published in (None, n) for published, n in zip(archive.counts, counted)):
        return ""
    return (
        f"not {archive.name}: it has {counted} entities, relations, train, valid and test triples,"
        f" expected {archive.counts}"
    )


# -- downloads -------------------------------------------------------------------------------------


def _fetch(archive: Archive, root: str) -> Fields:
    os.makedirs(root, exist_ok=True)
    place = f"{root}, as {archive.files[0]} and so on"
    print(f"fetching {archive.name} (licence: {archive.licence})", file=sys.stderr)
    unfinished = tempfile.mkdtemp(dir=root, prefix=f".{archive.name}.")
    try:
        packed = os.path.join(unfinished, os.path.basename(archive.url))
        with open(packed, "wb") as sink:
            remote.download(archive.url, sink, archive.name, place)
        unpacked = os.path.join(unfinished, "content")
        try:
            fields = _unpack(archive, packed, unpacked)
        except (DataError, *remote.DAMAGE) as error:
            raise DownloadError(
                f"{remote.address(archive.url)}: {archive.name} cannot be read from it ({error});"
                " the download was cut short, or the source has changed: try again, or put the"
                f" files into {place}"
            ) from error
        _move(archive, unpacked, root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return fields


def _unpack(archive: Archive, packed: str, folder: str) -> Fields:
    if archive.git_id is not None and _git_id(packed) != archive.git_id:
        raise ValueError(f"its git ID is {_git_id(packed)}, expected {archive.git_id}")
    remote.unpack(packed, folder)
    os.remove(packed)  # room for reading
    for published, ours in archive.entries.items():
        if published != ours:
            os.rename(os.path.join(folder, published), os.path.join(folder, ours))
    if archive.missing(folder):
        raise ValueError(f"{archive.missing(folder)[0]} is missing")
    fields = archive.read(folder)
    if difference(archive, fields):
        raise ValueError(difference(archive, fields))
    return fields


def _move(archive: Archive, unpacked: str, root: str) -> None:
    for entry in archive.entries.values():
        try:
            os.rename(os.path.join(unpacked, entry), os.path.join(root, entry))
        except OSError:
            if archive.missing(root):  # else another process was faster, with the same files
                raise


def _git_id(path: str) -> str:
    digest = hashlib.sha1(f"blob {os.path.getsize(path)}\0".encode())
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    return digest.hexdigest()


# -- data sets of labels ---------------------------------------------------------------------------


def _read_yago(root: str) -> Fields:
    return _from_labels({part: TableFile(os.path.join(root, f"{part}.txt")) for part in PARTS})


def _read_openbiolink(root: str) -> Fields:
    folder = os.path.join(root, HQ_DIR)
    files = dict(zip(PARTS, ("train_sample.csv", "val_sample.csv", "test_sample.csv")))
    types = _types(folder, "train_val_nodes.csv")
    if os.path.isfile(os.path.join(folder, "test_nodes.csv")):
        types = {**_types(folder, "test_nodes.csv"), **types}
    tables = {part: _tabbed(folder, file, 3) for part, file in files.items()}
    try:
        return _from_labels(tables, types)
    except DataError as error:
        raise DataError(f"{folder}, types from train_val_nodes.csv: {error}") from None


def _from_labels(
    tables: Mapping[str, TableFile], types: Optional[Mapping[str, str]] = None
) -> Fields:
    parts = {part: labelling.from_file(table) for part, table in tables.items()}
    with warnings.catch_warnings():  # repeated triples, if any, are part of the data set
        warnings.simplefilter("ignore", DataWarning)
        return labelling.to_ids(parts, entity_types=types)


def _tabbed(folder: str, name: str, n_column: int) -> TableFile:
    """The first columns of a .csv file without a header; written by pandas, with tabs."""
    return TableFile(os.path.join(folder, name), n_column, tuple(range(n_column)), "\t")


def _types(folder: str, name: str) -> Dict[str, str]:
    """Entity to type."""
    entities, types = (column.to_pylist() for column in read_strings(_tabbed(folder, name, 2)))
    of_entity: Dict[str, str] = {}
    for entity, kind in zip(entities, types):
        if of_entity.setdefault(entity, kind) != kind:
            raise DataError(
                f"{os.path.join(folder, name)}: {entity!r} has two types, {of_entity[entity]!r} and"
                f" {kind!r}; keep one of them"
            )
    return of_entity


def _ogb(name: str, published: str, split: str, mapping: Tuple[str, ...], **more: Any) -> Archive:
    """An archive of OGB, whose folder is called after the data set once it is unpacked."""
    folder = name.replace("-", "_")
    files = (*(f"split/{split}/{part}.pt" for part in PARTS), *(f"mapping/{m}" for m in mapping))
    return Archive(
        name=name,
        home="",
        url=f"https://snap.stanford.edu/ogb/data/linkproppred/{published}.zip",
        entries={published: folder},
        files=tuple(f"{folder}/{file}" for file in files),
        licence="CC-0",
        **more,
    )


ARCHIVES: Dict[str, Archive] = {
    archive.name: archive
    for archive in (
        _ogb(
            "ogbl-biokg",
            "biokg",
            "random",
            (
                *(f"{kind}_entidx2name.csv.gz" for kind in ogb.BIOKG_TYPES),
                "relidx2relname.csv.gz",
            ),
            read=lambda root: ogb.read_biokg(os.path.join(root, "ogbl_biokg")),
            counts=(93_773, 51, 4_762_678, 162_886, 162_870),
        ),
        _ogb(
            "ogbl-wikikg2",
            "wikikg-v2",
            "time",
            ("nodeidx2entityid.csv.gz", "reltype2relid.csv.gz"),
            read=lambda root: ogb.read_wikikg2(os.path.join(root, "ogbl_wikikg2")),
            counts=(2_500_604, 535, 16_109_182, 429_456, 598_543),
        ),
        Archive(
            name="yago3-10",
            home="YAGO3-10",
            url="https://raw.githubusercontent.com/TimDettmers/ConvE/"
            "f3c0eb286025410fa5b4c04696c918264163d0ca/YAGO3-10.tar.gz",
            entries={f"{part}.txt": f"{part}.txt" for part in PARTS},
            files=tuple(f"{part}.txt" for part in PARTS),
            read=_read_yago,
            counts=(123_182, 37, 1_079_040, 5_000, 5_000),
            licence="CC BY 3.0",
            git_id="be63d16955e1951cb6539710204af43cb38da7d9",
        ),
        Archive(
            name="openbiolink",
            home="OpenBioLink",
            url="https://zenodo.org/record/3834052/files/HQ_DIR.zip",
            entries={"HQ_DIR": "HQ_DIR"},
            files=tuple(
                f"{HQ_DIR}/{name}.csv"
                for name in ("train_sample", "val_sample", "test_sample", "train_val_nodes")
            ),
            read=_read_openbiolink,
            counts=(184_635, 28, 4_192_002, None, None),
            licence="CC 0; parts under the licences of their sources, see"
            " https://github.com/openbiolink/openbiolink#Source-databases-and-their-licenses",
        ),
    )
}
