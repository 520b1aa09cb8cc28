"""Triples in buckets of shards or shard pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from besskge_core.counting import counting_argsort
from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError
from besskge_core.sharding.balance import balanced_buckets
from besskge_core.sharding.entities import Sharding
from besskge_core.sharding.stored import load_arrays, save_arrays

PARTITION_MODES = ("h_shard", "t_shard", "ht_shardpair")


@dataclass
class PartitionedTripleSet:
    """Triples in buckets of shards or shard pairs.

    Attributes:
        sharding: of the entities.
        inverse_triples: whether inverse triples were added.
        partition_mode: "h_shard", "t_shard" or "ht_shardpair".
        dummy: "head" or "tail" if that column is made up (queries without an answer), or "none".
        triples: int32 (n_triple, 3), bucket after bucket; within a bucket in the original order.
            Columns that the mode partitions by hold rows on the entity's shard, others IDs.
        triple_counts: int64 (n_shard,) or (n_shard, n_shard), triples of each bucket.
        triple_offsets: the same shape, first triple of each bucket.
        triple_sort_idx: int64 (n_triple,), place of each triple before partitioning; None for
            those mapped from a prepared folder.
        types: int32 (n_triple, 2), types of head and tail, or None.
        neg_heads: int32 (n_triple or 1, n_negative), given negative heads, or None.
        neg_tails: likewise for tails.
    """

    sharding: Sharding
    inverse_triples: bool
    partition_mode: str
    dummy: str
    triples: NDArray[np.int32]
    triple_counts: NDArray[np.int64]
    triple_offsets: NDArray[np.int64]
    triple_sort_idx: Optional[NDArray[np.int64]] = None
    types: Optional[NDArray[np.int32]] = None
    neg_heads: Optional[NDArray[np.int32]] = None
    neg_tails: Optional[NDArray[np.int32]] = None

    def entity_ids(self) -> NDArray[np.int64]:
        """int64 (n_triple, 3): the triples with entity IDs in the place of rows."""
        ids = self.triples.astype(np.int64)
        bucket = np.repeat(np.arange(self.triple_counts.size), self.triple_counts.ravel())
        head_shard, tail_shard = bucket, bucket
        if self.partition_mode == "ht_shardpair":
            head_shard, tail_shard = np.divmod(bucket, self.sharding.n_shard)
        if self.partition_mode != "t_shard":
            ids[:, 0] = self.sharding.entity_of(head_shard, ids[:, 0])
        if self.partition_mode != "h_shard":
            ids[:, 2] = self.sharding.entity_of(tail_shard, ids[:, 2])
        return ids

    @property
    def imbalance(self) -> float:
        """Triples of the largest bucket, over the mean: what padding makes of an epoch's length.

        1 is even. Hubs are what makes it large; see `hubs` of :meth:`Sharding.create`.
        """
        return float(self.triple_counts.max() / self.triple_counts.mean())

    @staticmethod
    def partition_triples(
        triples: NDArray[np.integer], sharding: Sharding, partition_mode: str
    ) -> Tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Sort triples into buckets, by counting.

        Args:
            triples: (n_triple, 3) entity and relation IDs.
            sharding: of the entities.
            partition_mode: one of :data:`PARTITION_MODES`.

        Returns:
            triples, counts, offsets and order, as in the attributes of this class.

        Raises:
            ConfigError: unknown mode.
        """
        n_shard, n_row = sharding.n_shard, sharding.max_entity_per_shard
        mode = partition_mode
        if mode not in PARTITION_MODES:
            raise ConfigError(f"unknown partition mode {mode!r}; expected one of {PARTITION_MODES}")
        head_shard = sharding.entity_to_shard[triples[:, 0]]
        tail_shard = sharding.entity_to_shard[triples[:, 2]]
        row_of = sharding.entity_to_idx
        shape: Tuple[int, ...] = (n_shard,)
        bucket = head_shard if mode == "h_shard" else tail_shard
        if mode == "ht_shardpair":
            shape = (n_shard, n_shard)
            if sharding.hub_rows is not None:
                row_of = sharding.row_on_any_shard
                free_head, free_tail = (row_of[triples[:, i]] >= n_row for i in (0, 2))
                head_shard, tail_shard = balanced_buckets(
                    head_shard, tail_shard, free_head, free_tail, n_shard
                )
            bucket = head_shard.astype(np.int64) * n_shard + tail_shard
        n_bucket = int(np.prod(shape))
        counts = np.bincount(bucket, minlength=n_bucket).astype(np.int64)
        order = counting_argsort(bucket, n_bucket)
        local = np.asarray(triples)[order].astype(np.int32, copy=False)
        if mode != "t_shard":
            local[:, 0] = row_of[local[:, 0]]
        if mode != "h_shard":
            local[:, 2] = row_of[local[:, 2]]
        offsets = np.cumsum(counts) - counts
        return local, counts.reshape(shape), offsets.reshape(shape), order

    @classmethod
    def create_from_dataset(
        cls,
        dataset: KGDataset,
        part: str,
        sharding: Sharding,
        partition_mode: str = "ht_shardpair",
        add_inverse_triples: bool = False,
    ) -> PartitionedTripleSet:
        """Partition one part of a data set.

        Args:
            dataset: the graph.
            part: "train", "valid", "test" or any other part that it has.
            sharding: of its entities.
            partition_mode: see the class.
            add_inverse_triples: append (t, r + n_relation_type, h) for each (h, r, t).

        Raises:
            ConfigError: no such part, or a sharding of another number of entities.
        """
        if part not in dataset.triples:
            raise ConfigError(f"no part {part!r}; the data set has {sorted(dataset.triples)}")
        _check_sharding(dataset, sharding)
        triples = np.asarray(dataset.triples[part])
        types = dataset.ht_types[part] if dataset.ht_types is not None else None
        neg_heads = _given(dataset.neg_heads, part)
        neg_tails = _given(dataset.neg_tails, part)
        if add_inverse_triples:
            inverse = triples[:, ::-1] + np.array([0, dataset.n_relation_type, 0], triples.dtype)
            triples = np.concatenate([triples, inverse])
            types = types if types is None else np.concatenate([types, types[:, ::-1]])
            neg_heads, neg_tails = (
                _join(neg_heads, neg_tails, part),
                _join(neg_tails, neg_heads, part),
            )
        return cls._create(
            triples, sharding, partition_mode, add_inverse_triples, "none",
            types, neg_heads, neg_tails,
        )  # fmt: skip

    @classmethod
    def create_from_queries(
        cls,
        dataset: KGDataset,
        sharding: Sharding,
        queries: NDArray[np.integer],
        query_mode: str,
        ground_truth: Optional[NDArray[np.integer]] = None,
        negative: Optional[NDArray[np.integer]] = None,
        negative_type: Optional[str] = None,
    ) -> PartitionedTripleSet:
        """Partition queries (h, r, ?) or (?, r, t) by the shard of the entity that is known.

        Args:
            dataset: the graph.
            sharding: of its entities.
            queries: (n_query, 2), head and relation ("hr") or relation and tail ("rt").
            query_mode: "hr" or "rt".
            ground_truth: (n_query,), the answers, if known.
            negative: (n_query or 1, n_candidate), IDs to rank; default all entities.
            negative_type: rank the entities of this type instead.

        Raises:
            ConfigError: unknown mode or type, or both `negative` and `negative_type`.
        """
        if query_mode not in ("hr", "rt"):
            raise ConfigError(f"query_mode must be 'hr' or 'rt', got {query_mode!r}")
        if negative is not None and negative_type is not None:
            raise ConfigError("give candidates by `negative` or by `negative_type`, not by both")
        _check_sharding(dataset, sharding)
        queries = np.asarray(queries)
        tails_asked = query_mode == "hr"
        dummy = "none" if ground_truth is not None else "tail" if tails_asked else "head"
        answer = np.zeros(len(queries), queries.dtype) if ground_truth is None else ground_truth
        columns = [*queries.T, answer] if tails_asked else [answer, *queries.T]
        triples = np.stack(columns, axis=1)
        candidates = _candidates(dataset, negative, negative_type)
        types = None
        if ground_truth is not None and dataset.type_offsets is not None:
            types = _types_of(dataset, triples[:, [0, 2]])
        return cls._create(
            triples, sharding, "h_shard" if tails_asked else "t_shard", False, dummy, types,
            None if tails_asked else candidates, candidates if tails_asked else None,
        )  # fmt: skip

    @classmethod
    def _create(
        cls,
        triples: NDArray[np.integer],
        sharding: Sharding,
        mode: str,
        inverse: bool,
        dummy: str,
        types: Optional[NDArray[np.integer]],
        neg_heads: Optional[NDArray[np.integer]],
        neg_tails: Optional[NDArray[np.integer]],
    ) -> PartitionedTripleSet:
        local, counts, offsets, order = cls.partition_triples(triples, sharding, mode)

        def reorder(rows: Optional[NDArray[np.integer]]) -> Optional[NDArray[np.int32]]:
            if rows is None or (len(rows) == 1 and len(order) != 1):
                return None if rows is None else rows.astype(np.int32)
            return rows[order].astype(np.int32)

        return cls(
            sharding, inverse, mode, dummy, local, counts, offsets, order,
            reorder(types), reorder(neg_heads), reorder(neg_tails),
        )  # fmt: skip

    def save(self, path: Union[str, Path]) -> None:
        """Write to a file (NumPy's npz), the sharding included, that :meth:`load` reads."""
        arrays = dict(vars(self))
        sharding = {f"sharding.{k}": v for k, v in vars(arrays.pop("sharding")).items()}
        save_arrays(path, {**arrays, **sharding})

    @classmethod
    def load(cls, path: Union[str, Path]) -> PartitionedTripleSet:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is damaged, or something else.
        """
        return load_arrays(path, "partitioned triple set", cls._of_arrays)

    @classmethod
    def _of_arrays(cls, fields: Dict[str, Any]) -> PartitionedTripleSet:
        prefix = "sharding."
        inner = {k[len(prefix) :]: fields.pop(k) for k in list(fields) if k.startswith(prefix)}
        return cls(
            sharding=Sharding._of_arrays(inner),
            inverse_triples=bool(fields.pop("inverse_triples")),
            partition_mode=str(fields.pop("partition_mode")),
            dummy=str(fields.pop("dummy")),
            **fields,
        )


def _check_sharding(dataset: KGDataset, sharding: Sharding) -> None:
    if sharding.n_entity != dataset.n_entity:
        raise ConfigError(
            f"the sharding is of {sharding.n_entity} entities, the data set has"
            f" {dataset.n_entity}; create it with Sharding.create({dataset.n_entity}, ...)"
        )


def _given(
    negatives: Optional[Mapping[str, NDArray[np.integer]]], part: str
) -> Optional[NDArray[np.integer]]:
    return None if negatives is None else negatives.get(part)


def _join(
    own: Optional[NDArray[np.integer]], swapped: Optional[NDArray[np.integer]], part: str
) -> Optional[NDArray[np.integer]]:
    """Given negatives of one side for triples and their inverses, whose sides are swapped."""
    if own is None and swapped is None:
        return None
    if own is None or swapped is None or own.shape[1] != swapped.shape[1]:
        raise ConfigError(
            f"inverse triples of {part!r} need neg_heads and neg_tails with equally many columns"
        )
    if len(own) == len(swapped) == 1:
        raise ConfigError(
            f"inverse triples of {part!r} need given negatives per triple, not one row for all"
        )
    return np.concatenate([own, swapped])


def _types_of(dataset: KGDataset, entities: NDArray[np.integer]) -> NDArray[np.int32]:
    assert dataset.type_offsets is not None
    first = np.array(list(dataset.type_offsets.values()))
    return (np.searchsorted(first, entities, side="right") - 1).astype(np.int32)


def _candidates(
    dataset: KGDataset, negative: Optional[NDArray[np.integer]], negative_type: Optional[str]
) -> NDArray[np.integer]:
    if negative is not None:
        return np.atleast_2d(negative)
    if negative_type is None:
        return np.arange(dataset.n_entity)[None]
    offsets = dataset.type_offsets or {}
    if negative_type not in offsets:
        raise ConfigError(f"no entity type {negative_type!r}; expected one of {sorted(offsets)}")
    bounds = [*offsets.values(), dataset.n_entity]
    place = list(offsets).index(negative_type)
    return np.arange(bounds[place], bounds[place + 1])[None]
