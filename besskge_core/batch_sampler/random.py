"""Triples with replacement."""

from __future__ import annotations

from typing import Optional

import numpy as np
from numpy.typing import NDArray

from besskge_core.batch_sampler.base import Batch, Sampled, ShardedBatchSampler
from besskge_core.philox import Position, Purpose, random_below


class RandomShardedBatchSampler(ShardedBatchSampler):
    """Triples drawn with replacement, equally many of each bucket.

    A large bucket's triples would be drawn too rarely, so each triple weighs by the size of its
    bucket over the mean: in expectation all triples count the same, and the weights of a step
    sum to its number of triples. Empty buckets weigh nothing.

    Args:
        bucket_weighting: False gives the unweighted batches of upstream BESS-KGE.
    """

    def __init__(self, *args: object, bucket_weighting: bool = True, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.bucket_weighting = bucket_weighting
        counts = self.triple_set.triple_counts.ravel()
        self._has_empty_bucket, self._bucket_weight = not counts.all(), counts / counts.mean()

    @property
    def epoch_size(self) -> int:
        return self.n_step * self.partition_sample_size * self.n_bucket

    def _at_places(self, places: NDArray[np.int64]) -> Batch:
        """A list of one number is a step; other lists are places within each bucket."""
        if len(places) == 1:
            return self[int(places[0])]
        return super()._at_places(places)

    @property
    def n_step(self) -> int:
        per_step = self.partition_sample_size * self.n_bucket
        return int(-(-len(self.triple_set.triples) // per_step))

    def sample_triples(self, position: Position, shuffle: bool) -> Sampled:
        return self._sample(position, slice(0, self.n_bucket))

    def _hosted_triples(
        self, position: Position, shuffle: bool, hosted: range
    ) -> Optional[Sampled]:
        if type(self).sample_triples is not RandomShardedBatchSampler.sample_triples:
            return None
        return self._sample(position, self._buckets(hosted))

    def _sample(self, position: Position, buckets: slice) -> Sampled:
        width, counts = self.partition_sample_size, self.triple_set.triple_counts.ravel()
        places = random_below(
            self.seed, Purpose.TRIPLES, position, counts[buckets], width, first=buckets.start
        )
        first = self.triple_set.triple_offsets.reshape(-1, 1)[buckets]
        if self._has_empty_bucket:
            triples, mask = self._at(places, buckets)
        else:
            triples, mask = first + places, None
        if not self.bucket_weighting or len(counts) == 1:
            return triples, mask, None
        weight = self._bucket_weight[buckets].repeat(width).reshape(triples.shape)
        return triples, mask, weight
