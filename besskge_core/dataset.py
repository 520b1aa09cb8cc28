"""A knowledge graph as arrays of IDs: triples of each part, what the IDs mean, given negatives.

The idea: labels are met once, at the door. Every constructor turns its input into int32 triples,
checks them in one place (:meth:`KGDataset.validate`), and all that follows sees numbers only.

* A *part* is a named set of triples: usually "train", "valid", "test".
* IDs are global and run over all parts: an entity met only in "test" has an ID, and its triples
  stay. :meth:`KGDataset.summary` counts them.
* Entities of one type have consecutive IDs; `type_offsets` says where each type begins.

n below is the number of triples of a part, k of negatives.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from besskge_core import reading
from besskge_core.counting import triple_keys
from besskge_core.errors import ConfigError, DataError, ShapeError

__all__ = ["KGDataset"]

Path = Union[str, "os.PathLike[str]"]

MAX_ENTITY = 2**31 - 1  # IDs are int32, on the host and on every device
DEFAULT_SPLIT = (0.7, 0.15, 0.15)


@dataclass(eq=False, repr=False)
class KGDataset:
    """Triples of a knowledge graph, by part, with the meaning of their IDs.

    Attributes:
        n_entity: number of entities, over all parts.
        n_relation_type: number of relations.
        triples: part to int32 (n, 3): head, relation, tail.
        original_triple_ids: part to int64 (n,): row of each triple in the source.
        entity_dict: entity ID to its identifier in the source.
        relation_dict: relation ID to its identifier in the source.
        type_offsets: entity type to its first entity ID, by rising ID.
        neg_heads: part to int32 (n, k) heads that corrupt each triple, or (1, k) for all of them.
        neg_tails: the same for tails.
        entity_names: entity ID to a name for people to read; need not be unique.
    """

    n_entity: int
    n_relation_type: int
    triples: Dict[str, NDArray[np.int32]]
    original_triple_ids: Mapping[str, NDArray[np.int64]]
    entity_dict: Optional[Sequence[str]] = None
    relation_dict: Optional[Sequence[str]] = None
    type_offsets: Optional[Dict[str, int]] = None
    neg_heads: Optional[Dict[str, NDArray[np.int32]]] = None
    neg_tails: Optional[Dict[str, NDArray[np.int32]]] = None
    entity_names: Optional[List[str]] = None

    def __post_init__(self) -> None:
        self.n_entity, self.n_relation_type = int(self.n_entity), int(self.n_relation_type)
        if self.type_offsets is not None:
            offsets = {str(name): int(first) for name, first in self.type_offsets.items()}
            self.type_offsets = dict(sorted(offsets.items(), key=lambda item: item[1]))
        self.validate()

    def __repr__(self) -> str:
        sizes = {part: len(rows) for part, rows in self.triples.items()}
        return (
            f"KGDataset(n_entity={self.n_entity}, n_relation_type={self.n_relation_type},"
            f" triples={sizes})"
        )

    @classmethod
    def of_checked(cls, **fields: Any) -> KGDataset:
        """As the constructor, of fields that were checked when they were stored: none is read.

        Labels may be any sequence, and `original_triple_ids` any mapping.
        """
        dataset = cls.__new__(cls)
        vars(dataset).update(dict.fromkeys(cls.__dataclass_fields__), **fields)
        return dataset

    # -- what it is made from ----------------------------------------------------------------------

    @classmethod
    def from_triples(
        cls,
        data: ArrayLike,
        split: Sequence[float] = DEFAULT_SPLIT,
        seed: int = 1234,
        entity_dict: Optional[List[str]] = None,
        relation_dict: Optional[List[str]] = None,
        type_offsets: Optional[Dict[str, int]] = None,
    ) -> KGDataset:
        """One array of IDs, split at random into train, valid and test.

        Args:
            data: integers (n, 3): head, relation, tail.
            split: shares of train, valid and test, which add up to 1.
            seed: of the split.
            entity_dict: entity ID to identifier; its length is the number of entities.
            relation_dict: relation ID to identifier; its length is the number of relations.
            type_offsets: entity type to its first entity ID.
        """
        triples = np.asarray(data)
        if triples.ndim != 2 or triples.shape[1] != 3 or not len(triples):
            raise ShapeError(
                f"data has shape {triples.shape}, expected (n, 3) with n > 0: columns head,"
                " relation, tail"
            )
        rows = _split(len(triples), split, seed)
        return cls(
            n_entity=_size(entity_dict, triples[:, [0, 2]]),
            n_relation_type=_size(relation_dict, triples[:, 1]),
            triples={part: triples[i] for part, i in rows.items()},
            original_triple_ids=rows,
            entity_dict=entity_dict,
            relation_dict=relation_dict,
            type_offsets=type_offsets,
        )

    @classmethod
    def from_dataframe(
        cls,
        df: Any,
        head_column: Union[int, str],
        relation_column: Union[int, str],
        tail_column: Union[int, str],
        entity_types: Optional[Mapping[str, str]] = None,
        split: Sequence[float] = DEFAULT_SPLIT,
        seed: int = 1234,
        deduplicate: bool = False,
    ) -> KGDataset:
        """A data frame, split at random, or one data frame for each part.

        Args:
            df: anything whose columns, `df[name]`, are array-like, or a dict of part to such.
                A dict keeps its parts and the order of their rows.
            head_column: name of the column of heads; likewise the next two.
            relation_column: of relations.
            tail_column: of tails.
            entity_types: label to type (dict or series): entities get their IDs type by type,
                types in alphabetical order. By default, IDs are given by first appearance: the
                heads of a part, then its tails.
            split: shares of train, valid and test, if `df` is one data frame.
            seed: of the split.
            deduplicate: keep the first of repeated triples of a part only. By default they stay,
                and a warning counts them.
        """
        is_parts = isinstance(df, Mapping) and head_column not in df
        frames = dict(df) if is_parts else {"train": df}
        names = (head_column, relation_column, tail_column)
        parts = {p: reading.labelling.from_frame(frame, names, p) for p, frame in frames.items()}
        fields = reading.labelling.to_ids(parts, entity_types=entity_types, deduplicate=deduplicate)
        return cls(**(fields if is_parts else _split_train(fields, split, seed)))

    @classmethod
    def from_files(
        cls,
        files: Union[Path, Mapping[str, Path]],
        columns: Optional[Sequence[Union[int, str]]] = None,
        delimiter: Optional[str] = None,
        entity_dict: Optional[Sequence[str]] = None,
        relation_dict: Optional[Sequence[str]] = None,
        entity_types: Optional[Mapping[str, str]] = None,
        split: Sequence[float] = DEFAULT_SPLIT,
        seed: int = 1234,
        deduplicate: bool = False,
    ) -> KGDataset:
        """Files of labelled triples; see :mod:`besskge_core.reading.files` for their kinds.

        Args:
            files: part to path, or the path of one file that is split at random.
            columns: positions or names of head, relation and tail; names stand in the first
                line. By default there are just these three columns and no header.
            delimiter: another separator than the tab, or the comma of .csv.
            entity_dict: the known entities, ID to label; any other label is an error.
            relation_dict: the known relations, likewise.
            entity_types: as for :meth:`from_dataframe`.
            split: as for :meth:`from_dataframe`.
            seed: as for :meth:`from_dataframe`.
            deduplicate: as for :meth:`from_dataframe`.
        """
        is_parts = isinstance(files, Mapping)
        paths = dict(files) if isinstance(files, Mapping) else {"train": files}
        wanted = None if columns is None else tuple(columns)
        parts = {
            part: reading.labelling.from_file(
                reading.files.TableFile(os.fspath(path), 3, wanted, delimiter)
            )
            for part, path in paths.items()
        }
        fields = reading.labelling.to_ids(
            parts, entity_dict, relation_dict, entity_types, deduplicate
        )
        return cls(**(fields if is_parts else _split_train(fields, split, seed)))

    @classmethod
    def from_folder(cls, path: Path, types: bool = False, **options: Any) -> KGDataset:
        """A folder in one of the layouts of :mod:`besskge_core.reading.folders`.

        Args:
            path: the folder.
            types: give IDs type by type, by the folder's file of entity types.
            options: of :meth:`from_files`, for a folder of labels.
        """
        return cls(**reading.folders.read_folder(os.fspath(path), types, **options))

    @classmethod
    def build_ogbl_biokg(cls, root: Path) -> KGDataset:
        """The data set ogbl-biokg: 5 entity types, and 500 negatives a side in valid and test.

        Args:
            root: holds ``ogbl_biokg``, as the ogb library leaves it; if not, that is downloaded.

        Raises:
            DataError: a file is missing, damaged, or refers to an unknown ID.
            DownloadError: it cannot be had, or its counts are not the published ones.
        """
        return cls(**reading.archives.load("ogbl-biokg", os.fspath(root)))

    @classmethod
    def build_ogbl_wikikg2(cls, root: Path) -> KGDataset:
        """The data set ogbl-wikikg2, in ``root/ogbl_wikikg2``; as :meth:`build_ogbl_biokg`."""
        return cls(**reading.archives.load("ogbl-wikikg2", os.fspath(root)))

    @classmethod
    def build_yago310(cls, root: Path) -> KGDataset:
        """The data set YAGO3-10, in ``root/train.txt`` etc.; as :meth:`build_ogbl_biokg`."""
        return cls(**reading.archives.load("yago3-10", os.fspath(root)))

    @classmethod
    def build_openbiolink(cls, root: Path) -> KGDataset:
        """OpenBioLink2020, directed and of high quality, in ``root/HQ_DIR``, with entity types."""
        return cls(**reading.archives.load("openbiolink", os.fspath(root)))

    def save(self, out_file: Path) -> None:
        """Write everything to one file, which replaces an older one only when it is complete."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        reading.storage.write(os.fspath(out_file), fields)

    @classmethod
    def load(cls, path: Path) -> KGDataset:
        """Read what :meth:`save` wrote. No pickle is ever read.

        Raises:
            DatasetNotFoundError: no such file.
            DataError: the file is damaged, of another make, or of a later format.
        """
        return cls(**reading.storage.read(os.fspath(path)))

    # -- what can be asked of it -------------------------------------------------------------------

    @cached_property
    def ht_types(self) -> Optional[Dict[str, NDArray[np.int32]]]:
        """Part to int32 (n, 2): types of head and tail, numbered in the order of `type_offsets`."""
        if self.type_offsets is None:
            return None
        offsets = np.array(list(self.type_offsets.values()))
        return {
            part: np.searchsorted(offsets, rows[:, [0, 2]], side="right").astype(np.int32) - 1
            for part, rows in self.triples.items()
        }

    def summary(self) -> Dict[str, Any]:
        """Counts: sizes, repeated triples, and how the other parts relate to "train".

        Returns:
            n_entity, n_relation_type, and by part: n_triple, n_repeated; by part other than
            train: n_also_in_train, n_unseen_entity and n_unseen_relation, the triples with an
            entity or a relation that train lacks.
        """
        sizes = self.n_entity, self.n_relation_type
        keys = {p: triple_keys(t, *sizes) for p, t in self.triples.items()}
        counts: Dict[str, Any] = {
            "n_entity": self.n_entity,
            "n_relation_type": self.n_relation_type,
            "n_triple": {p: len(rows) for p, rows in self.triples.items()},
            "n_repeated": {p: len(key) - len(np.unique(key)) for p, key in keys.items()},
        }
        if "train" not in self.triples:
            return counts
        others = {p: rows for p, rows in self.triples.items() if p != "train"}
        entities, relations = np.zeros(sizes[0], bool), np.zeros(sizes[1], bool)
        entities[self.triples["train"][:, [0, 2]]] = True
        relations[self.triples["train"][:, 1]] = True
        return {
            **counts,
            "n_also_in_train": {p: int(np.isin(keys[p], keys["train"]).sum()) for p in others},
            "n_unseen_entity": {
                p: int((~entities[rows[:, [0, 2]]]).any(axis=1).sum()) for p, rows in others.items()
            },
            "n_unseen_relation": {
                p: int((~relations[rows[:, 1]]).sum()) for p, rows in others.items()
            },
        }

    # -- what must be true of it -------------------------------------------------------------------

    def validate(self) -> None:
        """Check all fields, and bring the arrays to their dtypes; runs at construction.

        Raises:
            ShapeError: an array of the wrong shape.
            DataError: an ID out of range, labels that do not fit, types that do not.
        """
        if not 0 < self.n_entity <= MAX_ENTITY:
            raise DataError(
                f"n_entity is {self.n_entity}, expected 1 to {MAX_ENTITY}: entity IDs are int32"
            )
        self.triples = {p: self._checked_triples(p, rows) for p, rows in self.triples.items()}
        self._check_original_ids()
        _check_labels("entity_dict", self.entity_dict, self.n_entity, unique=True)
        _check_labels("relation_dict", self.relation_dict, self.n_relation_type, unique=True)
        _check_labels("entity_names", self.entity_names, self.n_entity, unique=False)
        self._check_types()
        self.neg_heads = self._checked_negatives("neg_heads", self.neg_heads)
        self.neg_tails = self._checked_negatives("neg_tails", self.neg_tails)

    def _checked_triples(self, part: str, triples: ArrayLike) -> NDArray[np.int32]:
        name, rows = f"triples[{part!r}]", np.asarray(triples)
        if rows.ndim != 2 or rows.shape[1] != 3:
            raise ShapeError(
                f"{name} has shape {rows.shape}, expected (n, 3): columns head, relation, tail"
            )
        limits = (self.n_entity, self.n_relation_type, self.n_entity)
        for column, limit in enumerate(limits):
            _check_ids(f"{name}[:, {column}]", rows[:, column], limit)
        return np.ascontiguousarray(rows, dtype=np.int32)

    def _check_original_ids(self) -> None:
        if set(self.original_triple_ids) != set(self.triples):
            raise DataError(
                f"original_triple_ids has the parts {sorted(self.original_triple_ids)}, expected"
                f" those of triples, {sorted(self.triples)}"
            )
        checked = {}
        for part, rows in self.triples.items():
            ids = np.asarray(self.original_triple_ids[part])
            if ids.shape != (len(rows),):
                raise ShapeError(
                    f"original_triple_ids[{part!r}] has shape {ids.shape}, expected"
                    f" ({len(rows)},): one for each triple"
                )
            checked[part] = ids.astype(np.int64, copy=False)
        self.original_triple_ids = checked

    def _check_types(self) -> None:
        offsets = list((self.type_offsets or {"": 0}).values())
        if offsets[0] != 0 or offsets[-1] >= self.n_entity or not all(np.diff(offsets) > 0):
            raise DataError(
                f"type_offsets is {self.type_offsets}, expected 0 first, then rising values below"
                f" n_entity={self.n_entity}; leave out types that have no entity"
            )

    def _checked_negatives(
        self, name: str, negatives: Optional[Dict[str, NDArray[np.int32]]]
    ) -> Optional[Dict[str, NDArray[np.int32]]]:
        if negatives is None:
            return None
        checked = {}
        for part, given in negatives.items():
            ids = np.asarray(given)
            if part not in self.triples:
                raise DataError(f"{name} has a part {part!r}; the parts are {sorted(self.triples)}")
            n = len(self.triples[part])
            if ids.ndim != 2 or ids.shape[0] not in (1, n):
                raise ShapeError(
                    f"{name}[{part!r}] has shape {ids.shape}, expected ({n}, k), or (1, k) to share"
                    " them"
                )
            _check_ids(f"{name}[{part!r}]", ids, self.n_entity)
            checked[part] = np.ascontiguousarray(ids, dtype=np.int32)
        return checked


def _check_ids(name: str, ids: NDArray[Any], limit: int) -> None:
    if ids.size and ids.dtype.kind not in "iu":
        raise DataError(
            f"{name} has dtype {ids.dtype}, expected integer IDs; labels are read by"
            " KGDataset.from_dataframe"
        )
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= limit):
        row = int(np.flatnonzero((ids < 0) | (ids >= limit))[0])
        raise DataError(
            f"{name} has the ID {ids.flat[row]} at position {row}, expected 0 to {limit - 1};"
            " n_entity and n_relation_type count all parts"
        )


def _check_labels(name: str, labels: Optional[Sequence[str]], n: int, unique: bool) -> None:
    if labels is None:
        return
    if len(labels) != n:
        raise DataError(f"{name} has {len(labels)} labels, expected {n}, one for each ID")
    if unique and len(set(labels)) != n:
        repeated = Counter(labels).most_common(1)[0][0]
        raise DataError(f"{name} has {repeated!r} more than once; two IDs cannot share a label")


def _size(labels: Optional[Sequence[str]], ids: NDArray[Any]) -> int:
    return int(ids.max()) + 1 if labels is None else len(labels)


def _split(n: int, split: Sequence[float], seed: int) -> Dict[str, NDArray[np.int64]]:
    """Rows of train, valid and test."""
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ConfigError(f"split is {tuple(split)}, expected 3 shares >= 0 that add up to 1")
    n_train, n_valid = int(n * split[0]), int(n * split[1])
    rows = np.random.default_rng(seed).permutation(n)
    return dict(zip(("train", "valid", "test"), np.split(rows, [n_train, n_train + n_valid])))


def _split_train(fields: Dict[str, Any], split: Sequence[float], seed: int) -> Dict[str, Any]:
    triples, ids = fields["triples"]["train"], fields["original_triple_ids"]["train"]
    rows = _split(len(triples), split, seed)
    return {
        **fields,
        "triples": {part: triples[i] for part, i in rows.items()},
        "original_triple_ids": {part: ids[i] for part, i in rows.items()},
    }
