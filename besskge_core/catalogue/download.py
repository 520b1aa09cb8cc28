"""Fetch a benchmark from its public source into a folder, whole and checked, or not at all.

Sources are files of GitHub repositories at a pinned commit. Their text is unpacked, its lines end
in LF, it is brought to the two or three columns that a folder of triples has, and its SHA-256 must
be the known one. All this happens in a folder beside the goal, which then takes its name: a kill
or a failure at any moment leaves nothing that looks like the benchmark.

``$BESSKGE_MIRROR`` is fetched from in place of ``https://raw.githubusercontent.com``, if set.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Set, Tuple

from besskge_core.errors import DownloadError
from besskge_core.reading import remote

__all__ = ["Benchmark", "SourceFile", "fetch"]

SOURCE = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class SourceFile:
    """A file of a benchmark and where it comes from.

    Attributes:
        name: what it is called in the benchmark's folder.
        url: below the server: owner, repository, commit, path.
        sha256: of the file in the folder.
        member: its name in the archive, where `url` is one (.tar.gz, .zip).
        form: how its rows are made from the source; a key of :data:`FORMS`.
    """

    name: str
    url: str
    sha256: str
    member: Optional[str] = None
    form: str = "as it is"


@dataclass(frozen=True)
class Benchmark:
    """A published data set.

    Attributes:
        name: how users call it, in lower case.
        folder: how its folder is called.
        counts: entities, relations, and triples of train, valid and test.
        licence: terms of the data.
        files: train, valid and test first, for other files may need to know the entities.
    """

    name: str
    folder: str
    counts: Tuple[int, int, int, int, int]
    licence: str
    files: Tuple[SourceFile, ...]


def fetch(benchmark: Benchmark, cache: str) -> str:
    """Download into `cache` and return the folder.

    Raises:
        DownloadError: not reachable, damaged, or not the file that is expected.
    """
    os.makedirs(cache, exist_ok=True)
    goal = os.path.join(cache, benchmark.folder)
    print(f"fetching {benchmark.folder} (licence: {benchmark.licence})", file=sys.stderr)
    unfinished = tempfile.mkdtemp(dir=cache, prefix=f".{benchmark.folder}.")
    try:
        _write_files(benchmark, unfinished)
        _rename(unfinished, goal)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return goal


def _write_files(benchmark: Benchmark, folder: str) -> None:
    sources: Dict[str, bytes] = {}
    entities: Set[str] = set()
    for file in benchmark.files:
        if file.url not in sources:
            sources[file.url] = _download(benchmark, file.url)
        try:
            text = FORMS[file.form](_unpack(sources[file.url], file), entities)
        except remote.DAMAGE as error:
            raise DownloadError(
                f"{_address(file.url)}: {file.name} cannot be read from it ({error}); the download"
                " was cut short or is another file: try again"
            ) from error
        found = hashlib.sha256(text.encode()).hexdigest()
        if found != file.sha256:
            raise DownloadError(
                f"{_address(file.url)}: {file.name} has the SHA-256 {found}, expected"
                f" {file.sha256}; the source has changed or the download is damaged: try again"
            )
        if file.name in ("train.tsv", "valid.tsv", "test.tsv"):
            entities.update(row[i] for row in _rows(text) for i in (0, 2))
        with open(os.path.join(folder, file.name), "w", encoding="utf-8", newline="") as out:
            out.write(text)


def _rename(unfinished: str, goal: str) -> None:
    os.chmod(unfinished, 0o755)  # mkdtemp lets nobody else in
    try:
        os.rename(unfinished, goal)
    except OSError:
        if not os.path.isdir(goal):  # else another process was faster, with the same files
            raise


def _address(url: str) -> str:
    return remote.address(f"{SOURCE}/{url}")


def _download(benchmark: Benchmark, url: str) -> bytes:
    content = io.BytesIO()
    place = f"$BESSKGE_DATA/{benchmark.folder}"
    remote.download(f"{SOURCE}/{url}", content, benchmark.name, place)
    return content.getvalue()


# -- from what comes to what is kept ---------------------------------------------------------------


def _unpack(content: bytes, file: SourceFile) -> str:
    """The text of a file, its lines ending in LF."""
    if file.url.endswith(".tar.gz"):
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            member = tar.extractfile(str(file.member))
            content = member.read() if member else b""
    elif file.url.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(str(file.member))
    return content.decode().replace("\r\n", "\n")


def _rows(text: str) -> Iterator[Tuple[str, ...]]:
    return (tuple(line.split("\t")) for line in text.split("\n") if line)


def _column(i: int) -> Callable[[str, Set[str]], str]:
    """Columns 0 and i of a table with a header."""

    def pairs(text: str, entities: Set[str]) -> str:
        rows = list(_rows(text))[1:]
        return "".join(f"{row[0]}\t{row[i]}\n" for row in rows)

    return pairs


def _known_entities(text: str, entities: Set[str]) -> str:
    """The rows about entities of the benchmark."""
    return "".join(f"{line}\n" for line in text.split("\n") if line.split("\t")[0] in entities)


def _json_types(text: str, entities: Set[str]) -> str:
    """Of {entity: [type, ...]}, the entities of the benchmark, Wikidata's Q numbers rising."""
    types: Mapping[str, Any] = json.loads(text)
    rising = sorted(entities & set(types), key=lambda entity: int(entity[1:]))
    return "".join(f"{entity}\t{name}\n" for entity in rising for name in types[entity])


FORMS: Dict[str, Callable[[str, Set[str]], str]] = {
    "as it is": lambda text, entities: text,
    "sorted": lambda text, entities: "".join(sorted(text.splitlines(keepends=True))),
    "column 1": _column(1),
    "column 2": _column(2),
    "known entities": _known_entities,
    "json types": _json_types,
}
