"""Folders of triples, recognised by the names of their files.

=========== ================================================================= ======
layout      files                                                             holds
=========== ================================================================= ======
labels      ``train.tsv.xz``, ``valid.tsv``, ``test.csv.gz``, ...: see below  labels
PyKEEN      ``training/numeric_triples.tsv.gz``, ``entity_to_id.tsv.gz``, ... IDs
LibKGE      ``train.del``, ``entity_ids.del``, ...; ``dataset.yaml`` may      IDs
            name others
=========== ================================================================= ======

In a folder of labels any kind of file that :mod:`besskge_core.reading.files` knows will do, and the parts
may also be called training, validation, val, dev and testing. Two more files may be there, each of
two columns: ``entity_labels`` (identifier, name) gives `entity_names`; ``entity_types``
(identifier, type) gives IDs type by type. Of several types of an entity the one counts that most
entities have; of equally frequent ones the first by the alphabet.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from besskge_core.errors import ConfigError, DataError, DatasetNotFoundError
from besskge_core.reading import labelling
from besskge_core.reading.files import (
    COMPRESSIONS,
    KINDS,
    TableFile,
    locate,
    read_integers,
    read_strings,
)

__all__ = ["find_table", "one_type_each", "read_folder", "read_map"]

PARTS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
ENDINGS = tuple(f".{kind}{end}" for kind in KINDS for end in ("", *(f".{c}" for c in COMPRESSIONS)))


def read_folder(path: str, types: bool = False, **options: Any) -> Dict[str, Any]:
    """Fields of a KGDataset.

    Args:
        path: the folder.
        types: give IDs type by type.
        options: `columns`, `delimiter` and `deduplicate`, as for KGDataset.from_files.

    Raises:
        DatasetNotFoundError: no such folder.
        DataError: no layout that is known, or a bad file in it.
    """
    if not os.path.isdir(path):
        raise DatasetNotFoundError(f"{path}: no such folder")
    is_pykeen = os.path.isfile(os.path.join(path, "training", "numeric_triples.tsv.gz"))
    is_libkge = any(os.path.isfile(os.path.join(path, n)) for n in ("dataset.yaml", "train.del"))
    if (is_pykeen or is_libkge) and types:
        raise ConfigError(f"{path}: types=True needs a folder of labels with entity_types")
    if is_pykeen:
        return _read_pykeen(path, **options)
    return _read_libkge(path, **options) if is_libkge else _read_labels(path, types, **options)


def find_table(folder: str, *stems: str) -> Optional[str]:
    """The one file in the folder that has one of these names and a known ending."""
    found = [
        name
        for name in sorted(os.listdir(folder))
        if any(name.lower() == stem + ending for stem in stems for ending in ENDINGS)
    ]
    if len(found) > 1:
        raise DataError(f"{folder}: {found} are the same table; keep one of them")
    return os.path.join(folder, found[0]) if found else None


def one_type_each(entities: List[str], types: List[str]) -> Dict[str, str]:
    """Entity to the one of its types that most entities have."""
    n_entity = Counter(types)
    chosen: Dict[str, str] = {}
    for entity, name in sorted(
        zip(entities, types), key=lambda pair: (-n_entity[pair[1]], pair[1])
    ):
        chosen.setdefault(entity, name)
    return chosen


def _read_labels(
    path: str,
    types: bool,
    columns: Optional[Any] = None,
    delimiter: Optional[str] = None,
    deduplicate: bool = False,
) -> Dict[str, Any]:
    files = {part: find_table(path, *stems) for part, stems in PARTS.items()}
    if files["train"] is None:
        raise DataError(
            f"{path}: no file of training triples, such as train.tsv or train.csv.gz; it has"
            f" {sorted(os.listdir(path))[:20]}"
        )
    wanted = None if columns is None else tuple(columns)
    parts = {
        part: labelling.from_file(TableFile(file, 3, wanted, delimiter))
        for part, file in files.items()
        if file is not None
    }
    entity_types = None
    if types:
        entity_types = one_type_each(*_pairs(path, "entity_types"))
    fields = labelling.to_ids(parts, entity_types=entity_types, deduplicate=deduplicate)
    if find_table(path, "entity_labels"):
        names = dict(zip(*_pairs(path, "entity_labels")))
        fields["entity_names"] = [names.get(label, label) for label in fields["entity_dict"]]
    return fields


def _pairs(folder: str, stem: str) -> List[List[str]]:
    path = find_table(folder, stem)
    if path is None:
        raise DataError(
            f"{folder}: no {stem} file; expected {stem}.tsv with two columns, or types=False"
        )
    return [column.to_pylist() for column in read_strings(TableFile(path, 2))]


def _read_pykeen(path: str, deduplicate: bool = False) -> Dict[str, Any]:
    files = {}
    for part, stems in PARTS.items():
        for stem in stems:
            file = os.path.join(path, stem, "numeric_triples.tsv.gz")
            if os.path.isfile(file):
                files[part] = TableFile(file, 3, ("head", "relation", "tail"))
    maps = {
        kind: TableFile(os.path.join(path, "training", f"{kind}_to_id.tsv.gz"), 2, ("id", "label"))
        for kind in ("entity", "relation")
    }
    return _from_ids(files, maps, deduplicate)


def _read_libkge(path: str, deduplicate: bool = False) -> Dict[str, Any]:
    names = {name: f"{name}.del" for name in (*PARTS, "entity_ids", "relation_ids")}
    if os.path.isfile(os.path.join(path, "dataset.yaml")):
        with open(os.path.join(path, "dataset.yaml"), encoding="utf-8") as file:
            chosen = re.findall(
                r"^\s*files\.(\w+)\.filename:\s*['\"]?([^'\"\s#]+)", file.read(), re.MULTILINE
            )
        names.update((key, name) for key, name in chosen if key in names)
    paths = {key: os.path.join(path, name) for key, name in names.items()}
    files = {part: TableFile(paths[part], 3) for part in PARTS if os.path.isfile(paths[part])}
    maps = {kind: TableFile(paths[f"{kind}_ids"], 2) for kind in ("entity", "relation")}
    return _from_ids(files, maps, deduplicate)


def _from_ids(
    files: Mapping[str, TableFile], maps: Mapping[str, TableFile], deduplicate: bool
) -> Dict[str, Any]:
    entity_dict, relation_dict = (read_map(maps[kind]) for kind in ("entity", "relation"))
    sizes = len(entity_dict), len(relation_dict)
    triples, rows = {}, {}
    for part, table in files.items():
        ids = read_integers(table)
        bad = np.argwhere((ids < 0) | (ids >= np.array([sizes[0], sizes[1], sizes[0]])))
        if len(bad):
            row, column = bad[0].tolist()
            kind = "relation" if column == 1 else "entity"
            raise DataError(
                f"{locate(table, row)}: {kind} ID {ids[row, column]}, but {maps[kind].path} lists 0"
                f" to {sizes[column % 2] - 1}; add it there, or remove the row"
            )
        rows[part] = labelling.first_rows(part, ids, sizes, deduplicate)
        triples[part] = ids[rows[part]]
    return {
        "n_entity": sizes[0],
        "n_relation_type": sizes[1],
        "triples": triples,
        "original_triple_ids": rows,
        "entity_dict": entity_dict,
        "relation_dict": relation_dict,
    }


def read_map(table: TableFile) -> List[str]:
    """ID to label, of a file with the columns ID and label."""
    keys, labels = (column.to_pylist() for column in read_strings(table))
    of_id = dict(zip(keys, labels))
    missing = [i for i in range(len(keys)) if str(i) not in of_id]
    if missing:
        raise DataError(
            f"{table.path}: the ID {missing[0]} is missing; expected 0 to {len(keys) - 1}, each once"
        )
    return [of_id[str(i)] for i in range(len(keys))]
