"""Columns of labels become triples of IDs.

IDs run over all parts, in the order of first appearance: heads of a part, then its tails. With
entity types they are given type by type, so that a type is a range of IDs.
"""

from __future__ import annotations

import warnings
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from besskge_core.counting import triple_keys
from besskge_core.errors import ConfigError, DataError, DataWarning
from besskge_core.reading.files import TableFile, as_strings, encode, locate, read_strings

__all__ = ["LabelledTriples", "first_rows", "from_file", "from_frame", "to_ids"]


class LabelledTriples(NamedTuple):
    """Heads, relations and tails as strings, and where a row came from."""

    columns: List[pa.ChunkedArray]
    where: Callable[[int], str]


def from_file(table: TableFile) -> LabelledTriples:
    """The triples of one file."""
    return LabelledTriples(read_strings(table), lambda row: locate(table, row))


def from_frame(frame: Any, names: Tuple[Union[int, str], ...], part: str) -> LabelledTriples:
    """The triples of one data frame."""
    columns = []
    for name in names:
        try:
            values = frame[name]
        except (KeyError, IndexError, ValueError):
            present = list(getattr(frame, "columns", frame))
            raise DataError(f"{part}: no column {name!r}; the columns are {present[:20]}") from None
        columns.append(as_strings(values, f"{part}, column {name!r}"))
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise DataError(f"{part}: the columns {names} have {lengths} rows, expected equal and > 0")
    return LabelledTriples(columns, lambda row: f"{part}, row {row}")


def to_ids(
    parts: Mapping[str, LabelledTriples],
    entity_dict: Optional[Sequence[str]] = None,
    relation_dict: Optional[Sequence[str]] = None,
    entity_types: Optional[Mapping[str, str]] = None,
    deduplicate: bool = False,
) -> Dict[str, Any]:
    """Fields of a KGDataset.

    Args:
        parts: part to triples.
        entity_dict: the known entities; any other is an error.
        relation_dict: the known relations; any other is an error.
        entity_types: label to type; IDs are then given type by type.
        deduplicate: keep only the first of repeated triples.
    """
    if not parts:
        raise DataError("no part given; expected at least one, for example 'train'")
    sides = [part.columns[column] for part in parts.values() for column in (0, 2)]
    entities, entity_labels = encode(sides, entity_dict)
    relations, relation_labels = encode([p.columns[1] for p in parts.values()], relation_dict)
    type_offsets = None
    if entity_types is not None:
        if entity_dict is not None:
            raise ConfigError(
                "entity_dict fixes the IDs and entity_types would change them; pass one of them"
            )
        order, type_offsets = _order_by_type(entity_labels, entity_types)
        new_id = np.empty(len(order), np.int32)
        new_id[order] = np.arange(len(order), dtype=np.int32)
        entities = [new_id[ids] for ids in entities]
        entity_labels = [entity_labels[i] for i in order]
    triples, rows = {}, {}
    for i, (name, part) in enumerate(parts.items()):
        part_triples = np.stack([entities[2 * i], relations[i], entities[2 * i + 1]], axis=1)
        _refuse_unknown(part, part_triples, entity_dict, relation_dict)
        sizes = len(entity_labels), len(relation_labels)
        rows[name] = first_rows(name, part_triples, sizes, deduplicate)
        triples[name] = part_triples[rows[name]]
    return {
        "n_entity": len(entity_labels),
        "n_relation_type": len(relation_labels),
        "triples": triples,
        "original_triple_ids": rows,
        "entity_dict": entity_labels,
        "relation_dict": relation_labels,
        "type_offsets": type_offsets,
    }


def _order_by_type(
    labels: Sequence[str], entity_types: Mapping[str, str]
) -> Tuple[NDArray[np.int64], Dict[str, int]]:
    """Entities type by type, types by the alphabet; and the first of each."""
    of_label = dict(entity_types.items())
    untyped = [label for label in labels if label not in of_label]
    if untyped:
        raise DataError(
            f"{len(untyped)} of {len(labels)} entities have no type, for example {untyped[:3]}; add"
            " them to entity_types"
        )
    types = [str(of_label[label]) for label in labels]
    names, codes = np.unique(np.array(types, dtype=object), return_inverse=True)
    order = np.argsort(codes.reshape(-1), kind="stable")
    first = np.searchsorted(codes[order], np.arange(len(names)))
    return order, dict(zip(names.tolist(), first.tolist()))


def _refuse_unknown(
    part: LabelledTriples,
    triples: NDArray[np.int32],
    entity_dict: Optional[Sequence[str]],
    relation_dict: Optional[Sequence[str]],
) -> None:
    unknown = np.argwhere(triples < 0)
    if not len(unknown):
        return
    row, column = unknown[0].tolist()
    label = part.columns[column][row].as_py()
    known, name = (relation_dict, "relation") if column == 1 else (entity_dict, "entity")
    n_row = len(np.unique(unknown[:, 0]))
    raise DataError(
        f"{part.where(row)}: unknown {name} {label!r}; {name}_dict has {len(known or ())} labels and"
        f" {n_row} such rows are here: add the label, or remove the rows"
    )


def first_rows(
    part: str, triples: NDArray[np.integer], sizes: Tuple[int, int], deduplicate: bool
) -> NDArray[np.int64]:
    """Rows (n,) to keep: all, with a warning that counts repeated triples, or the first of each."""
    every = np.arange(len(triples))
    first = np.unique(triple_keys(triples, *sizes), return_index=True)[1]
    if len(first) == len(every):
        return every
    if deduplicate:
        return np.sort(first)
    warnings.warn(
        f"{part}: {len(every) - len(first)} of {len(every)} triples are repeated; pass"
        " deduplicate=True to keep the first of each only",
        DataWarning,
        stacklevel=4,
    )
    return every
