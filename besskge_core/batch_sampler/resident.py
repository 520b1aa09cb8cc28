"""Batches drawn where a model is trained, from triples that lie there.

They are those of the sampler, integer for integer: :mod:`besskge_core.ops.draws` gives the host's
random numbers. Several steps are drawn together, which costs hardly more than one. Nothing waits
for the device and no shape depends on what is drawn; the position is a tensor, so that drawing can
be captured in a CUDA graph.

Axes, besides those of the package's docstring:
    W: steps drawn together      T: triples
"""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Optional, Union

import numpy as np
import torch
from torch import Tensor

from besskge_core.batch_sampler.base import Batch, ShardedBatchSampler
from besskge_core.batch_sampler.random import RandomShardedBatchSampler
from besskge_core.batch_sampler.resident_negatives import negatives_of, why_no_negatives
from besskge_core.batch_sampler.rigid import RigidShardedBatchSampler
from besskge_core.errors import ConfigError
from besskge_core.ops.draws import BOUND_LIMIT, Address, Shuffles, random_below
from besskge_core.philox import Purpose


class _Sampled(NamedTuple):
    """What the sampler's `sample_triples` gives, for W steps: (W, n_bucket, K)."""

    triples: Tensor
    kept: Optional[Tensor] = None
    weight: Optional[Tensor] = None


def why_not_resident(sampler: ShardedBatchSampler) -> str:
    """Why batches of a sampler are made on the host; empty if they can be drawn on a device."""
    if type(sampler) not in (RandomShardedBatchSampler, RigidShardedBatchSampler):
        return f"{type(sampler).__name__} draws triples in a way of its own"
    if len(sampler.triple_set.triples) >= BOUND_LIMIT:
        return f"there are {len(sampler.triple_set.triples)} triples, 2**31 or more"
    return why_no_negatives(sampler.negative_sampler)


def bytes_on_device(sampler: ShardedBatchSampler) -> int:
    """Bytes that the triples of a sampler take there, with what shuffling them needs at its peak."""
    n_byte = 12  # a triple is three int32
    if isinstance(sampler, RigidShardedBatchSampler):
        n_byte += 8 + 16 + 8 * 6  # order; number and bucket; bits, and two sorts with their copies
    return n_byte * len(sampler.triple_set.triples)


class ResidentBatches:
    """The batches of a sampler, on a device.

    Args:
        sampler: of the batches.
        device: where they are drawn.
        n_step: W.
        shuffle: False takes the triples in their stored order.

    Raises:
        ConfigError: the sampler can draw on the host alone; see :func:`why_not_resident`.
    """

    def __init__(
        self,
        sampler: ShardedBatchSampler,
        device: Union[str, torch.device],
        n_step: int,
        shuffle: bool = True,
    ) -> None:
        reason = why_not_resident(sampler)
        if reason:
            raise ConfigError(f"batches cannot be drawn on the device: {reason}")
        self.sampler, self.device, self.n_step = sampler, torch.device(device), n_step
        triple_set = sampler.triple_set
        self._triples = self._kept(triple_set.triples.T, torch.int32)
        self._counts = self._kept(triple_set.triple_counts.ravel(), torch.int64)
        self._offsets = self._kept(triple_set.triple_offsets.ravel(), torch.int64)
        self._frequency = self._optional(sampler._frequency_weight, torch.float64)
        self._hubs = self._optional(
            triple_set.sharding.hub_rows if sampler.paired else None, torch.int32
        )
        self._negatives = negatives_of(sampler.negative_sampler, self.device)
        self._sample: Callable[[Tensor, Tensor], _Sampled] = self._sample_random
        self._shuffles: Optional[Shuffles] = None
        if isinstance(sampler, RandomShardedBatchSampler):
            self._bucket_weight = self._kept(sampler._bucket_weight, torch.float64)
        else:
            self._sample = self._sample_rigid
            self._order = torch.arange(len(triple_set.triples), device=self.device)
            if shuffle:
                counts = triple_set.triple_counts.ravel().tolist()
                self._shuffles = Shuffles(counts, sampler.seed, self.device)

    def begin(self, epoch: int) -> None:
        """Shuffle the triples for an epoch, in place of the one before."""
        if self._shuffles is not None:
            now = torch.full((), epoch, dtype=torch.int64, device=self.device)
            self._order.copy_(self._shuffles.order(now))

    def draw(self, epoch: Tensor, first_step: Tensor) -> Batch:
        """The batches of the steps from `first_step` on; those behind the epoch's end are padding.

        Args:
            epoch: int64 (), that which :meth:`begin` was called for.
            first_step: int64 ().

        Returns:
            The columns of the sampler's `batch`, each (W, M, S, ...).
        """
        step = first_step + torch.arange(self.n_step, device=self.device)
        sampled = self._sample(epoch, step)
        sample_idx = self._by_micro_batch(sampled.triples)
        head, relation, tail = (x[sample_idx] for x in self._triples.unbind())
        if self.sampler.paired:  # tails as their owners see them
            tail = tail.transpose(2, 3).contiguous()
        columns: Dict[str, Tensor] = {"head": head, "relation": relation, "tail": tail}
        columns.pop(self.sampler.triple_set.dummy, None)
        columns.update(self._negatives(sample_idx, epoch.expand(self.n_step), step))
        if self._hubs is not None:
            shape = (self.n_step, self.sampler.batches_per_step, *self._hubs.shape)
            columns["hub"] = self._hubs.expand(shape)
        if sampled.kept is not None:
            columns["triple_mask"] = self._by_micro_batch(sampled.kept)
        weight = self._weights(sample_idx, sampled)
        if weight is not None:
            columns["triple_weight"] = weight
        if self.sampler.return_triple_idx:
            columns["triple_idx"] = sample_idx
        return columns

    # -- triples -----------------------------------------------------------------------------------

    def _sample_random(self, epoch: Tensor, step: Tensor) -> _Sampled:
        sampler, width = self.sampler, self.sampler.partition_sample_size
        assert isinstance(sampler, RandomShardedBatchSampler)
        address = Address(sampler.seed, Purpose.TRIPLES, epoch.expand_as(step), step)
        places = random_below(address, self._counts, width)
        if sampler._has_empty_bucket:
            found = self._at(places)
        else:
            found = _Sampled(self._offsets[:, None] + places)
        if not sampler.bucket_weighting or len(self._counts) == 1:
            return found
        return found._replace(weight=self._bucket_weight[:, None].expand_as(places))

    def _sample_rigid(self, epoch: Tensor, step: Tensor) -> _Sampled:
        width = self.sampler.partition_sample_size
        places = step[:, None] * width + torch.arange(width, device=self.device)
        found = self._at(places[:, None].expand(-1, len(self._counts), -1))
        # Triple 0 stands in for those of empty buckets, whatever the order.
        shuffled = torch.where((self._counts > 0)[:, None], self._order[found.triples], 0)
        return found._replace(triples=shuffled)

    def _at(self, places: Tensor) -> _Sampled:
        """Triples at places (W, n_bucket, K) of their buckets, which repeat; False where repeated."""
        counts = self._counts[:, None]
        within = self._offsets[:, None] + places % counts.clamp(min=1)
        return _Sampled(torch.where(counts > 0, within, 0), places < counts)

    def _by_micro_batch(self, per_bucket: Tensor) -> Tensor:
        """(W, S [S], M * drawn) -> (W, M, S, [S,] P)."""
        sampler = self.sampler
        shape = sampler.triple_set.triple_counts.shape
        split = per_bucket.reshape(-1, *shape, sampler.batches_per_step, sampler._drawn)
        split = split.movedim(-2, 1)
        return torch.cat([split, split], dim=-1) if sampler.duplicate_batch else split.contiguous()

    def _weights(self, sample_idx: Tensor, sampled: _Sampled) -> Optional[Tensor]:
        """float32 (W, M, S, B), or None when every triple weighs one."""
        kept = sampled.kept if self.sampler.paired else None
        factors: List[Tensor] = [
            self._by_micro_batch(x).double() for x in (kept, sampled.weight) if x is not None
        ]
        if self._frequency is not None:
            factors.append(self._frequency[sample_idx])
        if not factors:
            return None
        product = factors[0]
        for factor in factors[1:]:
            product = product * factor
        return product.flatten(3).float()

    # -- what lies on the device -------------------------------------------------------------------

    def _kept(self, x: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.tensor(x, dtype=dtype, device=self.device)

    def _optional(self, x: Optional[np.ndarray], dtype: torch.dtype) -> Optional[Tensor]:
        return None if x is None else self._kept(x, dtype)
