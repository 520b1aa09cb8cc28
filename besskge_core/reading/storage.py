"""A data set in one file: arrays and labels in a zip archive, no pickle.

The file is NumPy's .npz without object arrays, so that reading it never runs code. It holds

* `manifest`: UTF-8 JSON: format, version, sizes, parts, type offsets;
* `triples_0`, `original_triple_ids_0`, `neg_heads_0`, ...: arrays of the 0th part, and so on;
* `entity_dict_text` and `entity_dict_ends`, ...: labels, joined as UTF-8 bytes, and where each
  ends. Any string comes back as it was: with tabs, newlines, trailing NULs or lone surrogates.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
from numpy.typing import NDArray

from besskge_core.errors import DataError, DatasetNotFoundError

__all__ = ["read", "write"]

FORMAT = "besskge_core.KGDataset"
VERSION = 1

SIZES = ("n_entity", "n_relation_type")
BY_PART = ("triples", "original_triple_ids", "neg_heads", "neg_tails")
LABELS = ("entity_dict", "relation_dict", "entity_names")
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)


def write(path: str, fields: Mapping[str, Any]) -> None:
    """Write the fields of a KGDataset beside `path` and rename, so that no half file is left."""
    parts = {name: list(fields[name]) for name in BY_PART if fields[name] is not None}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **{name: fields[name] for name in SIZES},
        "parts": parts,
        "labels": [name for name in LABELS if fields[name] is not None],
        "type_offsets": fields["type_offsets"],
    }
    arrays = {"manifest": np.frombuffer(json.dumps(manifest).encode(), np.uint8)}
    for name, names in parts.items():
        arrays.update((f"{name}_{i}", fields[name][part]) for i, part in enumerate(names))
    for name in manifest["labels"]:
        arrays.update(_packed(name, fields[name]))
    unfinished = f"{path}.unfinished-{os.getpid()}"
    try:
        with open(unfinished, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def read(path: str) -> Dict[str, Any]:
    """The fields that :func:`write` wrote."""
    if not os.path.isfile(path):
        raise DatasetNotFoundError(f"{path}: no such file; expected one of KGDataset.save")
    manifest: Optional[Dict[str, Any]] = None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            manifest = json.loads(archive["manifest"].tobytes().decode())
            _check(path, manifest)
            return _fields(manifest, {name: archive[name] for name in archive.files})
    except DataError:
        raise
    except DAMAGE as error:
        what = "not a file of KGDataset.save" if manifest is None else "damaged"
        raise DataError(
            f"{path}: {what}, or cut short ({error}); save it again from its source. Pickles are"
            " never read"
        ) from error


def _fields(manifest: Dict[str, Any], arrays: Dict[str, NDArray[Any]]) -> Dict[str, Any]:
    return {
        **{name: manifest[name] for name in (*SIZES, "type_offsets")},
        **{
            name: {part: arrays[f"{name}_{i}"] for i, part in enumerate(parts)}
            for name, parts in manifest["parts"].items()
        },
        **{name: _unpacked(name, arrays) for name in manifest["labels"]},
    }


def _check(path: str, manifest: Dict[str, Any]) -> None:
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: format {manifest.get('format')!r}, expected {FORMAT!r}")
    if manifest["version"] > VERSION:
        raise DataError(
            f"{path}: written as version {manifest['version']} of the format, this besskge_core"
            f" reads up to {VERSION}; upgrade besskge_core"
        )


def _packed(name: str, labels: List[str]) -> Dict[str, NDArray[Any]]:
    text = [label.encode("utf-8", "surrogatepass") for label in labels]
    return {
        f"{name}_text": np.frombuffer(b"".join(text), np.uint8),
        f"{name}_ends": np.cumsum([len(label) for label in text], dtype=np.int64),
    }


def _unpacked(name: str, arrays: Dict[str, NDArray[Any]]) -> List[str]:
    text, ends = arrays[f"{name}_text"].tobytes(), arrays[f"{name}_ends"].tolist()
    starts = [0, *ends[:-1]]
    return [text[a:b].decode("utf-8", "surrogatepass") for a, b in zip(starts, ends)]
