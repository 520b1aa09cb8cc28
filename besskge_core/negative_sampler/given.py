"""Negatives given for the triples."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.counting import counting_argsort
from besskge_core.errors import ConfigError
from besskge_core.negative_sampler.base import ShardedNegativeSampler
from besskge_core.philox import Position
from besskge_core.sharding import Sharding


class TripleBasedShardedNegativeSampler(ShardedNegativeSampler):
    """Given negatives: a list for each triple, or one list for all.

    Each list is split by owner and padded to the longest part (`padded_shard_length`), cyclically;
    the mask tells padding.

    Args:
        negative_heads: int (n_triple or 1, n_negative), entity IDs in the partitioned order; needed
            by the schemes "h" and "ht".
        negative_tails: likewise, for "t" and "ht".
        sharding: of the entities.
        corruption_scheme: "h", "t" or "ht".
        seed: not used; there is nothing to draw.
        mask_on_gather: give the mask in the layout of the entities, for top-k queries.
        return_sort_idx: also give the place of each negative in its list.
    """

    given = True

    def __init__(
        self,
        negative_heads: Optional[NDArray[np.integer]],
        negative_tails: Optional[NDArray[np.integer]],
        sharding: Sharding,
        corruption_scheme: str,
        seed: int,
        mask_on_gather: bool = False,
        return_sort_idx: bool = False,
    ) -> None:
        super().__init__(corruption_scheme, seed)
        self.sharding = sharding
        self.mask_on_gather, self.return_sort_idx = mask_on_gather, return_sort_idx
        sides = {"h": [negative_heads], "t": [negative_tails]}.get(
            corruption_scheme, [negative_heads, negative_tails]
        )
        if any(side is None for side in sides):
            raise ConfigError(
                f"corruption scheme {corruption_scheme!r} needs negative_heads for 'h',"
                " negative_tails for 't', and both for 'ht'"
            )
        #: (n_side, n_triple or 1, n_negative), entity IDs
        self.negatives = np.stack([np.asarray(side) for side in sides])
        self.flat_negative_format = self.negatives.shape[1] == 1
        owner = sharding.entity_to_shard[self.negatives]
        self.padded_shard_length = max(
            int((owner == shard).sum(axis=-1).max(initial=0)) for shard in range(sharding.n_shard)
        )

    def draw(
        self, sample_idx: NDArray[np.integer], position: Position
    ) -> Dict[str, NDArray[np.generic]]:
        n_micro, n_shard = sample_idx.shape[:2]
        n_block, n_source = self.n_block(sample_idx), self.sharding.n_shard
        if self.flat_negative_format:
            listed = np.broadcast_to(
                self.negatives[:, 0], (n_micro, n_shard, n_block, self.n_negative)
            )
        else:
            side = np.where(self.corrupts_heads(sample_idx), 0, len(self.negatives) - 1)
            listed = self.negatives[side, sample_idx].reshape(
                n_micro, n_shard, n_block, self.n_negative
            )
        rows, kept, order = self._by_owner(listed.reshape(-1, self.n_negative))
        layout = (n_micro, n_shard, n_block, n_source, self.padded_shard_length)
        entities = rows.reshape(layout).transpose(0, 3, 1, 2, 4)  # (M, S, T, B, N)
        mask = kept.reshape(layout)  # (M, T, B, S, N)
        found: Dict[str, NDArray[np.generic]] = {
            "negative_entities": np.ascontiguousarray(entities),
            "negative_mask": mask.transpose(0, 3, 1, 2, 4) if self.mask_on_gather else mask,
        }
        if self.return_sort_idx:
            found["negative_sort_idx"] = order.reshape(n_micro, n_shard, n_block, self.n_negative)
        return found

    @property
    def n_negative(self) -> int:
        """Length of the lists."""
        return int(self.negatives.shape[-1])

    def _by_owner(
        self, listed: NDArray[np.integer]
    ) -> Tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]:
        """Split lists (Q, K) of IDs by shard: rows and mask (Q, S, N), and the order (Q, K)."""
        n_list, n_source, width = len(listed), self.sharding.n_shard, self.padded_shard_length
        owner = self.sharding.entity_to_shard[listed]
        bucket = np.arange(n_list)[:, None] * n_source + owner
        order = counting_argsort(bucket.ravel(), n_list * n_source)
        counts = np.bincount(bucket.ravel(), minlength=n_list * n_source)
        first = np.cumsum(counts) - counts
        place = np.arange(width) % np.maximum(counts, 1)[:, None]
        kept = np.arange(width) < counts[:, None]
        rows = self.sharding.entity_to_idx[listed].ravel()[order]
        taken = rows[np.minimum(first[:, None] + place, max(len(rows) - 1, 0))]
        # A shard that owns none of a list pads with its row 0, masked like all padding.
        taken = np.where(counts[:, None] > 0, taken, 0)
        in_list = (order.reshape(n_list, -1) % self.n_negative).astype(np.int32)
        shape = (n_list, n_source, width)
        return taken.reshape(shape).astype(np.int32), kept.reshape(shape), in_list
