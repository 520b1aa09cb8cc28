"""Files to arrays of IDs: what :class:`~besskge_core.dataset.KGDataset` is made from.

`files` reads tables of strings and numbers, `labelling` gives labels their IDs, `folders` knows the
layouts in which data sets are shared, `storage` is a layout of our own. `archives` are data sets
with a fixed place on the web, `remote` gets and unpacks them, `ogb` and `torch_files` read those of
the Open Graph Benchmark.

They are imported when they are first asked for: who has triples as arrays needs no Arrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from besskge_core.reading import archives, files, folders, labelling, storage

__all__ = ["archives", "files", "folders", "labelling", "storage"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
