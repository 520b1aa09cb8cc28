"""Entities to shards and rows, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from besskge_core.counting import counting_argsort
from besskge_core.errors import ConfigError
from besskge_core.philox import Position, Purpose, permutation
from besskge_core.sharding.stored import load_arrays, save_arrays


@dataclass
class Sharding:
    """Entities to shards and rows, and back.

    Attributes:
        n_shard: number of shards.
        entity_to_shard: int32 (n_entity,).
        entity_to_idx: int32 (n_entity,), row of each entity on its shard.
        shard_and_idx_to_entity: int32 (n_shard, max_entity_per_shard); padding rows, at the end
            of a shard, hold IDs from `n_entity` on.
        shard_counts: int32 (n_shard,), entities of each shard; they differ by at most one.
        entity_type_counts: int32 (n_shard, n_type), if entities are typed.
        entity_type_offsets: int32 (n_shard, n_type), first row of each type on a shard.
        hub_rows: int32 (n_shard, n_hub_per_shard), rows of the hubs that live on each shard, or
            None. A hub is an entity so frequent that every shard knows its embedding in each step;
            see :meth:`create`.
    """

    n_shard: int
    entity_to_shard: NDArray[np.int32]
    entity_to_idx: NDArray[np.int32]
    shard_and_idx_to_entity: NDArray[np.int32]
    shard_counts: NDArray[np.int32]
    entity_type_counts: Optional[NDArray[np.int32]] = None
    entity_type_offsets: Optional[NDArray[np.int32]] = None
    hub_rows: Optional[NDArray[np.int32]] = None

    @property
    def n_entity(self) -> int:
        return len(self.entity_to_shard)

    @property
    def max_entity_per_shard(self) -> int:
        """Rows of a shard's table, padding included."""
        return int(self.shard_and_idx_to_entity.shape[1])

    @property
    def flat_row(self) -> NDArray[np.int64]:
        """int64 (n_entity,): place of each entity when the shards' tables are laid end to end."""
        rows: NDArray[np.int64] = (
            self.entity_to_shard.astype(np.int64) * self.max_entity_per_shard + self.entity_to_idx
        )
        return rows

    def same_rows(self, other: Sharding) -> bool:
        """Whether all entities have the same places."""
        return self is other or np.array_equal(
            self.shard_and_idx_to_entity, other.shard_and_idx_to_entity
        )

    @property
    def hubs(self) -> NDArray[np.int32]:
        """int32 (n_hub,): IDs of the hubs, those of the first shard first."""
        ids = self._hub_places
        return ids[ids < self.n_entity]

    @property
    def _hub_places(self) -> NDArray[np.int32]:
        """int32 (n_shard * n_hub_per_shard,): IDs, from `n_entity` on where there is no hub."""
        if self.hub_rows is None:
            return np.empty(0, dtype=np.int32)
        return np.take_along_axis(self.shard_and_idx_to_entity, self.hub_rows, axis=1).ravel()

    def entity_of(self, shard: NDArray[np.integer], row: NDArray[np.integer]) -> NDArray[np.int32]:
        """Entity IDs of rows, of the same or a broadcasting shape.

        A row from `max_entity_per_shard` on is a place in the list of all hubs.
        """
        n_row = self.max_entity_per_shard
        ids = self.shard_and_idx_to_entity[shard, np.minimum(row, n_row - 1)]
        if self.hub_rows is None:
            return ids
        return np.where(row >= n_row, self._hub_places[np.maximum(row - n_row, 0)], ids)

    @property
    def row_on_any_shard(self) -> NDArray[np.int32]:
        """int32 (n_entity,): row of each entity, for hubs the one that holds on every shard."""
        row = self.entity_to_idx.copy()
        ids = self._hub_places
        place = np.flatnonzero(ids < self.n_entity)
        row[ids[place]] = self.max_entity_per_shard + place
        return row

    @classmethod
    def create(
        cls,
        n_entity: int,
        n_shard: int,
        seed: int,
        type_offsets: Optional[NDArray[np.integer]] = None,
        hubs: Optional[NDArray[np.integer]] = None,
    ) -> Sharding:
        """Split the entities at random into shards of equal size.

        IDs rise with the row within a shard, so that entities of one type stay together.

        Triples with a hub may be scored on any shard, which lets partitioning balance the buckets
        (see :mod:`besskge_core.sharding.balance`). A hub lives on one shard like any entity; its row
        is sent to all shards at the beginning of a step, and its gradients come back summed: as
        much traffic as the all-reduce of a replica's gradient, and no replica can drift.

        Args:
            n_entity: number of entities.
            n_shard: number of shards, at most `n_entity`.
            seed: for the split.
            type_offsets: (n_type,), first entity ID of each type, rising.
            hubs: IDs of the entities that every shard knows, such as those of
                :func:`~besskge_core.sharding.most_frequent_entities`; dealt evenly to the shards.

        Raises:
            ConfigError: `n_shard` is not in [1, n_entity].
        """
        if not 1 <= n_shard <= n_entity:
            raise ConfigError(
                f"n_shard must be in [1, {n_entity}] for {n_entity} entities, got {n_shard}"
            )
        hub_ids = np.unique(np.asarray([] if hubs is None else hubs, dtype=np.int64))
        # Where there are hubs, each shard has a row of padding, to be read in the place of theirs.
        capacity = -(-n_entity // n_shard) + (len(hub_ids) > 0)
        # Deal the shuffled entities like cards: shard s gets the places s, s + n_shard, ...
        entity_to_shard = np.empty(n_entity, dtype=np.int32)
        shuffled = _hubs_first(permutation(seed, Purpose.SHARDING, Position(), n_entity), hub_ids)
        entity_to_shard[shuffled] = np.arange(n_entity, dtype=np.int32) % n_shard
        shard_counts = np.bincount(entity_to_shard, minlength=n_shard).astype(np.int32)
        by_shard = counting_argsort(entity_to_shard, n_shard)
        row = np.arange(n_entity) - np.repeat(np.cumsum(shard_counts) - shard_counts, shard_counts)
        entity_to_idx = np.empty(n_entity, dtype=np.int32)
        entity_to_idx[by_shard] = row
        to_entity = np.empty((n_shard, capacity), dtype=np.int32)
        padding = np.arange(capacity) >= shard_counts[:, None]
        to_entity[~padding] = by_shard
        to_entity[padding] = n_entity + np.arange(padding.sum())
        counts, offsets = _type_rows(to_entity, type_offsets, n_entity)
        hub_rows = _rows_of_hubs(hub_ids, entity_to_shard, entity_to_idx, n_shard, capacity - 1)
        return cls(
            n_shard, entity_to_shard, entity_to_idx, to_entity, shard_counts, counts, offsets,
            hub_rows,
        )  # fmt: skip

    def save(self, out_file: Union[str, Path]) -> None:
        """Write to a file (NumPy's npz) that :meth:`load` reads without pickle."""
        save_arrays(out_file, vars(self))

    @classmethod
    def load(cls, path: Union[str, Path]) -> Sharding:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is damaged, or something else.
        """
        return load_arrays(path, "sharding", cls._of_arrays)

    @classmethod
    def _of_arrays(cls, fields: Dict[str, Any]) -> Sharding:
        return cls(n_shard=int(fields.pop("n_shard")), **fields)


def _hubs_first(shuffled: NDArray[np.int64], hub_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order in which entities are dealt: hubs before others, so that they spread evenly."""
    if len(hub_ids) == 0:
        return shuffled
    if hub_ids[0] < 0 or hub_ids[-1] >= len(shuffled):
        raise ConfigError(
            f"hubs has IDs from {hub_ids[0]} to {hub_ids[-1]}, expected some of"
            f" [0, {len(shuffled)})"
        )
    is_hub = np.isin(shuffled, hub_ids)
    return np.concatenate([shuffled[is_hub], shuffled[~is_hub]])


def _rows_of_hubs(
    hub_ids: NDArray[np.int64],
    entity_to_shard: NDArray[np.int32],
    entity_to_idx: NDArray[np.int32],
    n_shard: int,
    padding_row: int,
) -> Optional[NDArray[np.int32]]:
    """int32 (n_shard, H), the last row, which is padding, where a shard has fewer hubs."""
    if len(hub_ids) == 0:
        return None
    rows = np.full((n_shard, -(-len(hub_ids) // n_shard)), padding_row, dtype=np.int32)
    for shard in range(n_shard):
        own = hub_ids[entity_to_shard[hub_ids] == shard]
        rows[shard, : len(own)] = entity_to_idx[own]
    return rows


def _type_rows(
    to_entity: NDArray[np.int32], type_offsets: Optional[NDArray[np.integer]], n_entity: int
) -> Tuple[Optional[NDArray[np.int32]], Optional[NDArray[np.int32]]]:
    """Counts and first rows (n_shard, n_type) of each type; rows of a shard are sorted by ID."""
    if type_offsets is None:
        return None, None
    bounds = np.append(np.asarray(type_offsets), n_entity)
    first = np.stack([np.searchsorted(row, bounds) for row in to_entity]).astype(np.int32)
    return np.diff(first, axis=1).astype(np.int32), first[:, :-1]
