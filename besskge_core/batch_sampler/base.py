"""What all batch samplers share: from the triples of a step to its columns."""

from __future__ import annotations

import abc
from functools import reduce
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from besskge_core.batch_sampler.weighting import frequency_weight
from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange
from besskge_core.negative_sampler import ShardedNegativeSampler
from besskge_core.ops import take_columns
from besskge_core.philox import Position
from besskge_core.sharding import PartitionedTripleSet

Batch = Dict[str, Tensor]
#: See :meth:`ShardedBatchSampler.sample_triples`.
Sampled = Tuple[NDArray[np.int64], Optional[NDArray[np.bool_]], Optional[NDArray[np.float64]]]
Scalar = TypeVar("Scalar", bound=np.generic)


class Draw(NamedTuple):
    """Which batch to draw, and whether its triples come in shuffled order."""

    epoch: int
    step: int
    shuffle: bool


class ShardedBatchSampler(Dataset[Batch], abc.ABC):
    """Equally many triples of each bucket, with their negatives.

    Indexing draws a batch: `sampler[step]` of the current :attr:`epoch`, or `sampler[positions]`
    for a list of places within a bucket, in the manner of a map-style data set.

    Args:
        partitioned_triple_set: the triples.
        negative_sampler: of their negatives.
        shard_bs: positives that one shard scores in a micro-batch; rounded up to a multiple of
            the number of buckets of a shard, see :attr:`positive_per_partition`.
        batches_per_step: M, micro-batches drawn together.
        seed: for all draws.
        hrt_freq_weighting: weight triples by 1 / sqrt(n(h, r) + n(r, t) + weight_smoothing),
            n counted in this set (the subsampling weight of Sun et al., ICLR 2019).
        weight_smoothing: see above.
        duplicate_batch: draw half as many triples, each twice, once for either side ("ht").
        return_triple_idx: also give the places of the triples in the partitioned set.

    Raises:
        ConfigError: no triples, or a `shard_bs` too small for one triple of each bucket.
    """

    def __init__(
        self,
        partitioned_triple_set: PartitionedTripleSet,
        negative_sampler: ShardedNegativeSampler,
        shard_bs: int,
        batches_per_step: int,
        seed: int,
        hrt_freq_weighting: bool = False,
        weight_smoothing: float = 0.0,
        duplicate_batch: bool = False,
        return_triple_idx: bool = False,
    ) -> None:
        if len(partitioned_triple_set.triples) == 0:
            raise ConfigError("there are no triples to sample from")
        self.triple_set = partitioned_triple_set
        self.negative_sampler = negative_sampler
        self.n_shard = partitioned_triple_set.sharding.n_shard
        self.batches_per_step, self.seed, self.epoch = batches_per_step, seed, 0
        self.duplicate_batch, self.return_triple_idx = duplicate_batch, return_triple_idx
        self.paired = partitioned_triple_set.partition_mode == "ht_shardpair"
        buckets_per_shard = self.n_shard if self.paired else 1
        drawn = -(-shard_bs // buckets_per_shard)
        even = negative_sampler.corruption_scheme == "ht"
        if duplicate_batch:
            drawn //= 2
        elif even:
            drawn -= drawn % 2
        if drawn < 1:
            least = buckets_per_shard * (1 + (even or duplicate_batch))
            raise ConfigError(f"shard_bs must be at least {least} here, got {shard_bs}")
        self._drawn = drawn  # triples drawn of each bucket and micro-batch
        #: P: triples of each bucket in a micro-batch
        self.positive_per_partition = drawn * (2 if duplicate_batch else 1)
        #: B: positives that a shard really scores in a micro-batch
        self.shard_bs = self.positive_per_partition * buckets_per_shard
        #: triples that a step takes from each bucket
        self.partition_sample_size = batches_per_step * drawn
        self.hrt_freq_weighting = hrt_freq_weighting
        self._frequency_weight: Optional[NDArray[np.float64]] = None
        if hrt_freq_weighting:
            self._frequency_weight = frequency_weight(partitioned_triple_set, weight_smoothing)

    @property
    @abc.abstractmethod
    def n_step(self) -> int:
        """Steps of an epoch."""

    @abc.abstractmethod
    def sample_triples(self, position: Position, shuffle: bool) -> Sampled:
        """The triples of a step.

        Returns:
            Per bucket (n_bucket, partition_sample_size): places in the partitioned set; which of
            them count (None: all); their weights (None: one each).
        """

    def batch(self, position: Position, shuffle: bool = True) -> Batch:
        """The batch of a step.

        Args:
            position: epoch and step.
            shuffle: False takes the triples in their stored order.

        Returns:
            "head", "relation", "tail" int32 (M, S, [S,] P): rows or IDs as partitioned; a tail is
            listed by the shard that owns it, [m, owner, processing, p], others by the shard that
            processes the triple. "negative" int32 (M, S, S, B', N) and "negative_mask" as the
            negative sampler gives them. "triple_mask" bool like "head", False for padding.
            "triple_weight" float32 (M, S, B). "triple_idx" int64 like "head". A column of made-up
            answers is left out.
        """
        return self._assemble(position, *self.sample_triples(position, shuffle))

    def hosted_batch(self, position: Position, exchange: Exchange, shuffle: bool = True) -> Batch:
        """The part of :meth:`batch` that belongs to the shards of a worker, on axis 1.

        A worker draws the triples of its own buckets, and their negatives, and is told the rows of
        the tails that it owns: 4 bytes a triple. Where negatives depend on the triples of others
        (typed or given ones), and in samplers of other make, all is drawn and a part kept.

        Args:
            position: epoch and step.
            exchange: of the workers; all of them make the same calls in the same order.
            shuffle: see :meth:`batch`.
        """
        hosted = exchange.hosted
        drawn = self._hosted_triples(position, shuffle, hosted)
        if drawn is not None:
            sample_idx = self._by_micro_batch(drawn[0], len(hosted))
            found = self.negative_sampler.draw_hosted(sample_idx, position, hosted)
            if found is not None:
                part = self._columns(sample_idx, found, *drawn[1:], hosted)
                if self.paired and "tail" in part:
                    # From the owners' point of view, micro-batches one after another.
                    of_micros = [exchange.all_to_all(tail) for tail in part["tail"]]
                    part["tail"] = torch.stack(of_micros).contiguous()
                return part
        whole = self.batch(position, shuffle)
        return {name: x[:, hosted.start : hosted.stop] for name, x in whole.items()}

    def _hosted_triples(
        self, position: Position, shuffle: bool, hosted: range
    ) -> Optional[Sampled]:
        """What :meth:`sample_triples` gives for the buckets of some shards; None: ask for all."""
        return None

    def __len__(self) -> int:
        return self.n_step

    def __getitem__(self, index: Union[int, Draw, Sequence[int]]) -> Batch:
        if isinstance(index, Draw):
            return self.batch(Position(index.epoch, index.step), index.shuffle)
        if isinstance(index, (int, np.integer)):
            if not 0 <= index < self.n_step:
                raise IndexError(f"step {index} of an epoch of {self.n_step}")
            return self.batch(Position(self.epoch, int(index)))
        return self._at_places(np.asarray(index, dtype=np.int64))

    def _at_places(self, places: NDArray[np.int64]) -> Batch:
        """The batch of a list of places within each bucket."""
        triples, kept = self._at(np.broadcast_to(places, (self.n_bucket, len(places))))
        return self._assemble(Position(self.epoch, int(places[0])), triples, kept, None)

    def get_dataloader_sampler(self, shuffle: bool = True) -> Sampler[Draw]:
        """What to index this sampler with: the steps of an epoch, of the next one each time."""
        return _Steps(self, shuffle)

    def get_dataloader(
        self,
        options: object = None,
        shuffle: bool = True,
        num_workers: int = 0,
        persistent_workers: bool = False,
        buffer_size: int = 16,
    ) -> DataLoader[Batch]:
        """Batches of an epoch, of the next one each time it is walked through.

        Which worker makes a batch does not matter, nor whether workers live on: a batch depends on
        seed, epoch and step alone.

        Args:
            options: PopTorch's options, which are not needed here.
            shuffle: False takes the triples in their stored order.
            num_workers: processes that make batches; 0: this one.
            persistent_workers: keep them from one epoch to the next.
            buffer_size: batches made ahead, by all workers.
        """
        ahead = None if num_workers == 0 else max(buffer_size // num_workers, 1)
        return DataLoader(
            self, batch_size=None, sampler=self.get_dataloader_sampler(shuffle),
            num_workers=num_workers, persistent_workers=persistent_workers and num_workers > 0,
            prefetch_factor=ahead, worker_init_fn=self.worker_init_fn,
        )  # fmt: skip

    @staticmethod
    def worker_init_fn(worker_id: int) -> None:
        """Nothing: there is no generator whose state workers would share."""

    # What upstream BESS-KGE's samplers are asked for; all of it belongs to the triple set.
    triples = property(lambda self: self.triple_set.triples)
    triple_counts = property(lambda self: self.triple_set.triple_counts)
    triple_offsets = property(lambda self: self.triple_set.triple_offsets)
    triple_partition_mode = property(lambda self: self.triple_set.partition_mode)
    dummy = property(lambda self: self.triple_set.dummy)

    @property
    def n_bucket(self) -> int:
        """Buckets of all shards."""
        return int(self.triple_set.triple_counts.size)

    @property
    @abc.abstractmethod
    def epoch_size(self) -> int:
        """Triples that an epoch counts, padding left out."""

    def _at(
        self, places: NDArray[np.integer], buckets: slice = slice(None)
    ) -> Tuple[NDArray[np.int64], Optional[NDArray[np.bool_]]]:
        """Triples at places (G, K) of their buckets, which repeat; False where repeated."""
        counts = self.triple_set.triple_counts.reshape(-1, 1)[buckets]
        offsets = self.triple_set.triple_offsets.reshape(-1, 1)[buckets]
        within = offsets + places % np.maximum(counts, 1)
        # An empty bucket has nothing to show; triple 0 stands in, masked.
        return np.where(counts > 0, within, 0), places < counts

    def _buckets(self, hosted: range) -> slice:
        """The buckets of some shards, among all laid end to end."""
        each = self.n_shard if self.paired else 1
        return slice(hosted.start * each, hosted.stop * each)

    def _assemble(
        self,
        position: Position,
        triples: NDArray[np.int64],
        kept: Optional[NDArray[np.bool_]],
        weight: Optional[NDArray[np.float64]],
    ) -> Batch:
        sample_idx = self._by_micro_batch(triples, self.n_shard)
        found = self.negative_sampler.draw(sample_idx, position)
        batch = self._columns(sample_idx, found, kept, weight, range(self.n_shard))
        if self.paired and "tail" in batch:
            batch["tail"] = batch["tail"].transpose(1, 2).contiguous()
        return batch

    def _columns(
        self,
        sample_idx: NDArray[np.int64],
        drawn: Mapping[str, NDArray[np.generic]],
        kept: Optional[NDArray[np.bool_]],
        weight: Optional[NDArray[np.float64]],
        hosted: range,
    ) -> Batch:
        """The columns of a batch; tails as the others, by the shard that processes the triple."""
        found = dict(drawn)
        head, relation, tail = take_columns(self.triple_set.triples, sample_idx).unbind()
        columns: Dict[str, Any] = {"head": head, "relation": relation, "tail": tail}
        columns.pop(self.triple_set.dummy, None)
        if "negative_entities" in found:
            columns["negative"] = found.pop("negative_entities")
        columns.update(found)
        hub_rows = self.triple_set.sharding.hub_rows
        if self.paired and hub_rows is not None:
            own = hub_rows[hosted.start : hosted.stop]
            columns["hub"] = np.stack([own] * self.batches_per_step)
        if kept is not None:
            columns["triple_mask"] = self._by_micro_batch(kept, len(hosted))
        weights = self._weights(sample_idx, weight, kept)
        if weights is not None:
            columns["triple_weight"] = weights
        if self.return_triple_idx:
            columns["triple_idx"] = sample_idx
        return {
            name: x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
            for name, x in columns.items()
        }

    def _by_micro_batch(self, per_bucket: NDArray[Scalar], n_host: int) -> NDArray[Scalar]:
        """(L [S], M * drawn) -> (M, L, [S,] P)."""
        shape = (n_host, *self.triple_set.triple_counts.shape[1:])
        split = per_bucket.reshape(*shape, self.batches_per_step, self._drawn)
        split = split.transpose(len(shape), *range(len(shape)), -1)
        return np.concatenate([split, split], axis=-1) if self.duplicate_batch else split

    def _weights(
        self,
        sample_idx: NDArray[np.integer],
        weight: Optional[NDArray[np.float64]],
        kept: Optional[NDArray[np.bool_]],
    ) -> Optional[NDArray[np.float32]]:
        """float32 (M, S, B), or None when every triple weighs one.

        Padding of shard pairs weighs nothing, so that it is not trained on though callers drop the
        mask, as those of upstream BESS-KGE do.
        """
        if not self.paired:
            kept = None
        per_bucket: List[Optional[NDArray[Any]]] = [kept, weight]
        n_host = sample_idx.shape[1]
        factors = [self._by_micro_batch(x, n_host) for x in per_bucket if x is not None]
        if self._frequency_weight is not None:
            factors.append(self._frequency_weight[sample_idx])
        if not factors:
            return None
        shape = (self.batches_per_step, n_host, self.shard_bs)
        product: NDArray[Any] = reduce(np.multiply, factors)
        return product.reshape(shape).astype(np.float32)


class _Steps(Sampler[Draw]):
    """The steps of an epoch; of the next one each time."""

    def __init__(self, sampler: ShardedBatchSampler, shuffle: bool) -> None:
        self._sampler, self._shuffle, self._epoch = sampler, shuffle, sampler.epoch

    def __len__(self) -> int:
        return self._sampler.n_step

    def __iter__(self) -> Iterator[Draw]:
        # A generator begins with its first step: torch's loaders make some that they never use.
        epoch, self._epoch = self._epoch, self._epoch + 1
        for step in range(len(self)):
            yield Draw(epoch, step, self._shuffle)
