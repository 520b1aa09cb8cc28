"""Every triple once an epoch."""

from __future__ import annotations

from typing import Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.batch_sampler.base import Sampled, ShardedBatchSampler
from besskge_core.philox import Position, Purpose, permutation


class RigidShardedBatchSampler(ShardedBatchSampler):
    """Every triple once an epoch; shorter buckets are padded, and the mask says where.

    The order within each bucket is shuffled anew for every epoch.
    """

    _order: Tuple[int, slice, NDArray[np.int64]] = (-1, slice(0), np.empty(0, dtype=np.int64))

    @property
    def epoch_size(self) -> int:
        return len(self.triple_set.triples)

    @property
    def n_step(self) -> int:
        return int(-(-self.triple_set.triple_counts.max() // self.partition_sample_size))

    def sample_triples(self, position: Position, shuffle: bool) -> Sampled:
        return self._sample(position, shuffle, slice(0, self.n_bucket))

    def _hosted_triples(
        self, position: Position, shuffle: bool, hosted: range
    ) -> Optional[Sampled]:
        if type(self).sample_triples is not RigidShardedBatchSampler.sample_triples:
            return None
        return self._sample(position, shuffle, self._buckets(hosted))

    def _sample(self, position: Position, shuffle: bool, buckets: slice) -> Sampled:
        first = position.step * self.partition_sample_size
        places = np.arange(first, first + self.partition_sample_size)
        n_bucket = buckets.stop - buckets.start
        triples, kept = self._at(np.broadcast_to(places, (n_bucket, len(places))), buckets)
        if not shuffle:
            return triples, kept, None
        order = self._shuffled(position.epoch, buckets)
        start = int(self.triple_set.triple_offsets.ravel()[buckets.start])
        is_empty = self.triple_set.triple_counts.ravel()[buckets] == 0
        if not is_empty.any():
            return order[triples - start], kept, None
        shuffled = np.zeros_like(triples)  # triple 0 stands in for those of empty buckets
        shuffled[~is_empty] = order[triples[~is_empty] - start]
        return shuffled, kept, None

    def _shuffled(self, epoch: int, buckets: slice) -> NDArray[np.int64]:
        """int64 (n,): places of the triples of these buckets, in the order of this epoch."""
        known, of_buckets, order = self._order
        if known != epoch or of_buckets != buckets:
            counts = self.triple_set.triple_counts.ravel()
            offsets = self.triple_set.triple_offsets.ravel()
            order = np.concatenate(
                [
                    offsets[i] + permutation(self.seed, Purpose.SHUFFLE, Position(epoch, i), n)
                    for i, n in enumerate(counts.tolist())
                    if buckets.start <= i < buckets.stop
                ]
            )
            self._order = (epoch, buckets, order)
        return order
