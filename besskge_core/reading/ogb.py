"""Knowledge graphs of the Open Graph Benchmark, from OGB's own files; neither ogb nor torch needed.

======================================== =======================================================
below the folder                         holds
======================================== =======================================================
``split/*/train.pt``, valid.pt, test.pt  of torch.save: head, relation and tail; in valid and
                                         test also head_neg and tail_neg; in biokg also the lists
                                         head_type and tail_type
``mapping/*.csv.gz``                     what the IDs mean, and so how many there are
======================================== =======================================================

IDs of biokg are local to the type of the entity, those of negatives to the type of the entity that
they replace. Here they become global: types follow each other by the alphabet, and `type_offsets`
says where each begins. As one name may stand for entities of two types (a disease can also be a
side effect), `entity_dict` has "disease:C0000737" and `entity_names` the bare "C0000737".

n below is the number of triples of a part, k of negatives.
"""

from __future__ import annotations

import os
from itertools import accumulate
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from besskge_core.errors import DataError
from besskge_core.reading import torch_files
from besskge_core.reading.files import TableFile
from besskge_core.reading.folders import read_map

__all__ = ["BIOKG_TYPES", "read_biokg", "read_wikikg2"]

PARTS = ("train", "valid", "test")
BIOKG_TYPES = ("disease", "drug", "function", "protein", "sideeffect")

Ints = NDArray[np.int32]
Sizes = Dict[Optional[str], int]  # type to number of entities, by rising ID; {None: n} without


def read_biokg(folder: str) -> Dict[str, Any]:
    """Fields of a KGDataset, of a folder ``ogbl_biokg``."""
    names = {
        kind: _labels(folder, f"{kind}_entidx2name.csv.gz", "ent idx", "ent name")
        for kind in BIOKG_TYPES
    }
    sizes: Sizes = {kind: len(labels) for kind, labels in names.items()}
    relations = _labels(folder, "relidx2relname.csv.gz", "rel idx", "rel name")
    return {
        **_fields(os.path.join(folder, "split", "random"), sizes, len(relations)),
        "entity_dict": [f"{kind}:{label}" for kind, labels in names.items() for label in labels],
        "entity_names": [label for labels in names.values() for label in labels],
        "relation_dict": relations,
        "type_offsets": _firsts(sizes),
    }


def read_wikikg2(folder: str) -> Dict[str, Any]:
    """Fields of a KGDataset, of a folder ``ogbl_wikikg2``."""
    entities = _labels(folder, "nodeidx2entityid.csv.gz", "node idx", "entity id")
    relations = _labels(folder, "reltype2relid.csv.gz", "reltype", "rel id")
    return {
        **_fields(os.path.join(folder, "split", "time"), {None: len(entities)}, len(relations)),
        "entity_dict": entities,
        "relation_dict": relations,
    }


def _labels(folder: str, file: str, *columns: str) -> List[str]:
    return read_map(TableFile(os.path.join(folder, "mapping", file), 2, columns))


def _firsts(sizes: Sizes) -> Dict[Optional[str], int]:
    """Type to its first global ID."""
    return dict(zip(sizes, accumulate([0, *sizes.values()])))


def _fields(folder: str, sizes: Sizes, n_relation: int) -> Dict[str, Any]:
    fields: Dict[str, Any] = {
        "n_entity": sum(sizes.values()),
        "n_relation_type": n_relation,
        "triples": {},
        "original_triple_ids": {},
        "neg_heads": {},
        "neg_tails": {},
    }
    for part in PARTS:
        table = _Table(os.path.join(folder, f"{part}.pt"))
        relation = table.ids("relation", 0, n_relation, 1)
        n = len(relation)
        columns = {"relation": relation}
        for side in ("head", "tail"):
            first, size = table.ranges(f"{side}_type", sizes, n)
            columns[side] = table.ids(side, first, size, 1, n)
            if part != "train":
                ids = table.ids(f"{side}_neg", _row(first), _row(size), 2, n)
                fields[f"neg_{side}s"][part] = ids
        fields["triples"][part] = np.stack([columns[c] for c in ("head", "relation", "tail")], 1)
        fields["original_triple_ids"][part] = np.arange(n)
    return fields


def _row(per_triple: Union[int, Ints]) -> Union[int, Ints]:
    """(n,) becomes (n, 1), to meet negatives (n, k)."""
    return per_triple if isinstance(per_triple, int) else per_triple[:, None]


class _Table:
    """A file of torch.save with named columns; each can be taken once, for they are large."""

    def __init__(self, path: str) -> None:
        self.path, columns = path, torch_files.read(path)
        if not isinstance(columns, dict):
            raise DataError(f"{path}: holds a {type(columns).__name__}, expected a dict of columns")
        self.columns, self.names = columns, list(columns)

    def take(self, name: str) -> Any:
        if name not in self.columns:
            raise DataError(f"{self.path}: no {name!r}; it has {self.names}")
        return self.columns.pop(name)

    def ids(
        self,
        name: str,
        first: Union[int, Ints],
        size: Union[int, Ints],
        n_axis: int,
        n: Optional[int] = None,
    ) -> Ints:
        """Global IDs, int32 (n,) or (n, k).

        Args:
            name: of the column of local IDs.
            first: global ID of the local ID 0: one for all, or for each triple.
            size: number of local IDs, likewise.
            n_axis: 1 for (n,), 2 for (n, k).
            n: number of triples, once it is known.
        """
        local = np.asarray(self.take(name))
        is_shaped = local.ndim == n_axis and n in (None, len(local))
        if local.dtype.kind not in "iu" or not is_shaped:
            shape = f"({'n' if n is None else n},{' k' * (n_axis - 1)})"
            raise DataError(
                f"{self.path}: {name} is {local.dtype} of shape {local.shape}, expected integer IDs"
                f" of shape {shape}"
            )
        wrong = np.argwhere((local < 0) | (local >= size))
        if len(wrong):
            row = int(wrong[0, 0])
            limit = int(np.broadcast_to(size, local.shape)[tuple(wrong[0])])
            raise DataError(
                f"{self.path}: {name} has the ID {local[tuple(wrong[0])]} in row {row}, expected 0"
                f" to {limit - 1}, the IDs in the folder mapping"
            )
        ids = local.astype(np.int32)
        ids += first
        return ids

    def ranges(self, name: str, sizes: Sizes, n: int) -> Tuple[Union[int, Ints], Union[int, Ints]]:
        """First global ID and number of entities of the type that each triple has here, int32 (n,).

        Without types, of all entities.
        """
        if None in sizes:
            return 0, sizes[None]
        types = self.take(name)
        unknown = sorted({str(kind) for kind in types if kind not in sizes})
        if unknown or len(types) != n:
            raise DataError(
                f"{self.path}: {name} has {len(types)} rows and the unknown types {unknown}, expected"
                f" {n} rows and the types in the folder mapping, {list(sizes)}"
            )
        codes = {kind: code for code, kind in enumerate(sizes)}
        code = np.fromiter((codes[kind] for kind in types), np.intp, n)
        first, size = (np.array(list(d.values()), np.int32) for d in (_firsts(sizes), sizes))
        return first[code], size[code]
