"""Files that are either whole or not there, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**22), b""):
            digest.update(block)
    return digest.hexdigest()


def beside(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the file and rename, so that a kill leaves the old one, the new one or none."""
    write(beside(path))
    os.replace(beside(path), path)


def write_json(path: Path, value: Any) -> None:
    """What JSON can hold, indented; see :func:`write_whole`."""
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
