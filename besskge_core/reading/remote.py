"""Files come from servers, and out of archives, without leaving the folder meant for them.

``$BESSKGE_MIRROR`` is fetched from in place of the public server, if set: the path of an address
stays, its scheme and host are replaced.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from typing import IO, Iterator, Tuple
from urllib.parse import urlsplit

from besskge_core.errors import DownloadError

__all__ = ["DAMAGE", "address", "download", "unpack"]

TIMEOUT = 60  # seconds without a byte
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError)


def address(url: str) -> str:
    """Where `url` is fetched from."""
    mirror = os.environ.get("BESSKGE_MIRROR")
    return f"{mirror.rstrip('/')}{urlsplit(url).path}" if mirror else url


def download(url: str, sink: IO[bytes], name: str, place: str) -> None:
    """Write what is at `url` into `sink`.

    Args:
        url: of the public server.
        sink: a file open for writing.
        name: what the data set is called, for messages.
        place: where its files may be put by hand, for messages.

    Raises:
        DownloadError: not reachable, or pooch is not installed.
    """
    try:
        import pooch
    except ImportError:
        raise DownloadError(
            f"{name} is not on this machine and pooch is needed to download it; run"
            f" `pip install pooch`, or put its files into {place}"
        ) from None
    progress = _Progress(url.rsplit("/", 1)[-1])
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT)
    try:
        downloader(address(url), sink, None)
    except (OSError, ValueError) as error:  # what requests raises
        raise DownloadError(
            f"{address(url)}: cannot be downloaded ({error}); try again, or put the files of {name}"
            f" into {place}"
        ) from error


def unpack(path: str, folder: str) -> None:
    """Unpack a .zip or .tar.gz: plain files and folders only, and none outside `folder`.

    Raises:
        ValueError: a member that is a link or a device, or whose name leads out of `folder`.
        other errors of :data:`DAMAGE`: the archive is damaged.
    """
    folder = os.path.abspath(folder)
    for name, member in _members(path):
        goal = os.path.abspath(os.path.join(folder, name))
        if os.path.commonpath([folder, goal]) != folder:
            raise ValueError(f"the name {name!r} leads out of the folder")
        os.makedirs(os.path.dirname(goal), exist_ok=True)
        with open(goal, "wb") as out:
            shutil.copyfileobj(member, out, 2**20)


def _members(path: str) -> Iterator[Tuple[str, IO[bytes]]]:
    """Names and contents of the files in an archive."""
    if path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as file:
                        yield info.filename, file
        return
    with tarfile.open(path) as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isfile() else None
            if content is not None:
                yield entry.name, content
            elif not entry.isdir():
                raise ValueError(f"{entry.name!r} is neither a file nor a folder")


class _Progress:
    """A line on standard error, as pooch drives it: total is set, update and close are called."""

    total = 0.0

    def __init__(self, name: str) -> None:
        self.name, self.done, self.shown = name, 0, -1

    def update(self, n: int) -> None:
        self.done += n
        percent = int(100 * min(self.done / self.total, 1)) if self.total else 0
        if sys.stderr.isatty() and percent != self.shown:
            print(f"\r{self.name}: {self.done / 1e6:.1f} MB, {percent} %", end="", file=sys.stderr)
            self.shown = percent

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)
