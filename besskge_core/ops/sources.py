"""What the native library is built from. `setup.py` runs this file alone, so it imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sources_digest(folder: Path) -> str:
    """SHA-256 of the C++ of `custom_ops`; nothing if there is none, as beside a wheel."""
    digest = hashlib.sha256()
    files = sorted([*folder.glob("*.cpp"), *folder.glob("cpu/*.cpp"), *folder.glob("cpu/*.h")])
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest() if files else ""
