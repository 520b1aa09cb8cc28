"""Negatives drawn at random: uniformly, by degree, on either side, or of the same type."""

from __future__ import annotations

import math
from typing import Dict, Optional

import numpy as np
from numpy.typing import NDArray

from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.negative_sampler.base import ShardedNegativeSampler
from besskge_core.philox import BLOCK, Position, Purpose, below, random_bits, uniform
from besskge_core.sharding import PartitionedTripleSet, Sharding


class RandomShardedNegativeSampler(ShardedNegativeSampler):
    """Entities drawn uniformly, with replacement, from each shard.

    Args:
        n_negative: N, negatives that each source shard gives to each target shard, per block.
        sharding: of the entities.
        seed: for the draws.
        corruption_scheme: "h", "t" or "ht".
        local_sampling: see the base class.
        flat_negative_format: see the base class.
        known: see the base class.
    """

    def __init__(
        self,
        n_negative: int,
        sharding: Sharding,
        seed: int,
        corruption_scheme: str,
        local_sampling: bool = False,
        flat_negative_format: bool = False,
        known: Optional[KnownTriples] = None,
    ) -> None:
        super().__init__(corruption_scheme, seed)
        self.n_negative, self.sharding = _at_least_one(n_negative), sharding
        self.local_sampling, self.known = local_sampling, known
        self.flat_negative_format = flat_negative_format

    def draw(
        self, sample_idx: NDArray[np.integer], position: Position
    ) -> Dict[str, NDArray[np.generic]]:
        return self._draw(sample_idx, position, range(self.sharding.n_shard))

    def draw_hosted(
        self, sample_idx: NDArray[np.integer], position: Position, hosted: range
    ) -> Optional[Dict[str, NDArray[np.generic]]]:
        # A subclass with negatives of its own is asked for all of them.
        if type(self).draw is not RandomShardedNegativeSampler.draw:
            return None
        return self._draw(sample_idx, position, hosted)

    def _draw(
        self, sample_idx: NDArray[np.integer], position: Position, hosted: range
    ) -> Dict[str, NDArray[np.generic]]:
        n_micro, n_host = sample_idx.shape[:2]
        n_block, n_target = self.n_block(sample_idx), self.sharding.n_shard
        shape = (n_micro, n_host, n_target, n_block, self.n_negative)
        if type(self).rows is RandomShardedNegativeSampler.rows:  # in one pass, without the bits
            bounds = self.sharding.shard_counts[hosted.start : hosted.stop]
            return {"negative_entities": self._below(bounds, shape, position, hosted.start)}
        rows = self.rows(self._bits(shape, position, hosted.start), hosted)
        return {"negative_entities": rows.astype(np.int32)}

    def rows(self, bits: NDArray[np.uint64], hosted: range) -> NDArray[np.int64]:
        """Rows of entities from random bits (M, L, T, B, N), axis L their shard."""
        counts = self.sharding.shard_counts[hosted.start : hosted.stop]
        return below(bits, counts[:, None, None, None])


class DegreeWeightedShardedNegativeSampler(RandomShardedNegativeSampler):
    """Entities drawn in proportion to a power of how often they occur.

    Frequent entities are harder negatives; 3/4 is the exponent of word2vec (Mikolov et al.,
    NeurIPS 2013). Every shard gives equally many, so that the chance of an entity is its share of
    its shard's weight: shards are random and of equal size, so these weights are nearly equal.
    :class:`~besskge_core.loss.SampledSoftmaxCrossEntropyLoss` assumes uniform negatives.

    Args:
        degree: (n_entity,), how often each entity occurs, such as
            :func:`~besskge_core.sharding.entity_degree` counts it.
        exponent: of the degree; 0 is uniform.
        others: see :class:`RandomShardedNegativeSampler`.
    """

    def __init__(
        self,
        degree: NDArray[np.integer],
        n_negative: int,
        sharding: Sharding,
        seed: int,
        corruption_scheme: str,
        local_sampling: bool = False,
        flat_negative_format: bool = False,
        known: Optional[KnownTriples] = None,
        exponent: float = 0.75,
    ) -> None:
        super().__init__(
            n_negative, sharding, seed, corruption_scheme, local_sampling, flat_negative_format,
            known,
        )  # fmt: skip
        if np.shape(degree) != (sharding.n_entity,) or np.min(degree) < 0:
            raise ConfigError(
                f"degree has shape {np.shape(degree)}, expected one number of at least 0 for each"
                f" of the {sharding.n_entity} entities"
            )
        # An entity that never occurs is drawn as one that occurs once.
        weight = np.maximum(degree, 1).astype(np.float64) ** exponent
        #: of each shard, the sum of the weights up to each row, as a share of the whole
        self._cumulative = [
            _cumulative_share(weight[ids[:count]])
            for ids, count in zip(sharding.shard_and_idx_to_entity, sharding.shard_counts)
        ]

    def rows(self, bits: NDArray[np.uint64], hosted: range) -> NDArray[np.int64]:
        rows = np.empty(bits.shape, dtype=np.int64)
        for i, shard in enumerate(hosted):
            chance = uniform(bits[:, i])
            rows[:, i] = np.searchsorted(self._cumulative[shard], chance, side="right")
        return rows


def _cumulative_share(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.cumsum(weight)
    share: NDArray[np.float64] = total / total[-1]
    return share


class BernoulliShardedNegativeSampler(RandomShardedNegativeSampler):
    """Uniform entities; which side they replace is drawn for each triple, by its relation.

    The head is replaced with the probability tph / (tph + hpt), where tph is the mean number of
    tails of a head of the relation, and hpt of heads of a tail: in a relation of many tails to a
    head, a random head is less likely to be true (Wang et al., AAAI 2014, section 4.1). The scheme
    is called "either"; batches have a column "heads_replaced".

    Args:
        triple_set: the partitioned triples that batches are drawn from.
        others: see :class:`RandomShardedNegativeSampler`.
    """

    schemes = ("either",)

    def __init__(
        self,
        triple_set: PartitionedTripleSet,
        n_negative: int,
        seed: int,
        local_sampling: bool = False,
        flat_negative_format: bool = False,
        known: Optional[KnownTriples] = None,
    ) -> None:
        super().__init__(
            n_negative, triple_set.sharding, seed, "either", local_sampling, flat_negative_format,
            known,
        )  # fmt: skip
        triples = triple_set.entity_ids()
        #: (n_triple,), in the partitioned order
        self.head_probability = head_probability(triples)[triples[:, 1]]

    def _draw(
        self, sample_idx: NDArray[np.integer], position: Position, hosted: range
    ) -> Dict[str, NDArray[np.generic]]:
        found = super()._draw(sample_idx, position, hosted)
        n_micro, n_shard, of_shard = len(sample_idx), self.sharding.n_shard, sample_idx.shape[2:]
        n_draw = n_shard * math.prod(of_shard)
        padded = -(-n_draw // BLOCK) * BLOCK
        bits = random_bits(self.seed, Purpose.SIDES, position, n_micro * padded)
        bits = bits.reshape(-1, padded)[:, :n_draw].reshape(n_micro, n_shard, *of_shard)
        chance = uniform(bits[:, hosted.start : hosted.stop])
        return {**found, "heads_replaced": chance < self.head_probability[sample_idx]}


def head_probability(triples: NDArray[np.integer]) -> NDArray[np.float64]:
    """tph / (tph + hpt) of each relation, of triples (n, 3); 1/2 where a relation has none."""
    head, relation, tail = np.asarray(triples, dtype=np.int64).T
    n_relation = int(relation.max(initial=-1)) + 1
    n_entity = int(max(head.max(initial=0), tail.max(initial=0))) + 1
    pairs = [
        np.bincount(np.unique(relation * n_entity + e) // n_entity, minlength=n_relation)
        for e in (head, tail)
    ]  # distinct heads, distinct tails of each relation
    # tph = n / heads and hpt = n / tails, so that n falls out.
    heads, tails = (np.maximum(x, 1) for x in pairs)
    share: NDArray[np.float64] = tails / (heads + tails)
    return share


class TypeBasedShardedNegativeSampler(ShardedNegativeSampler):
    """Entities of the same type as the one they replace.

    A shard without any entity of the type gives negatives of any type, masked out.

    Args:
        triple_types: (n_triple, 2), types of heads and tails, in the partitioned order.
        n_negative: as in :class:`RandomShardedNegativeSampler`.
        sharding: with types.
        corruption_scheme: "h", "t" or "ht".
        local_sampling: see the base class.
        seed: for the draws.
        known: see the base class.
    """

    def __init__(
        self,
        triple_types: NDArray[np.integer],
        n_negative: int,
        sharding: Sharding,
        corruption_scheme: str,
        local_sampling: bool,
        seed: int,
        known: Optional[KnownTriples] = None,
    ) -> None:
        super().__init__(corruption_scheme, seed)
        self.known = known
        if sharding.entity_type_counts is None or sharding.entity_type_offsets is None:
            raise ConfigError(
                "type-based negatives need a typed sharding;"
                " create it with Sharding.create(..., type_offsets=...)"
            )
        self.triple_types = triple_types
        self.n_negative, self.sharding = _at_least_one(n_negative), sharding
        self.type_counts, self.type_offsets = (
            sharding.entity_type_counts,
            sharding.entity_type_offsets,
        )
        self.local_sampling = local_sampling

    def draw(
        self, sample_idx: NDArray[np.integer], position: Position
    ) -> Dict[str, NDArray[np.generic]]:
        n_micro, n_shard = sample_idx.shape[:2]
        side = np.where(self.corrupts_heads(sample_idx), 0, 1)
        wanted = self.triple_types[sample_idx, side].reshape(n_micro, n_shard, -1)  # (M, T, B)
        source = np.arange(n_shard)[:, None, None]
        asker = wanted[:, :, None] if self.local_sampling else wanted[:, None]
        wanted = np.broadcast_to(asker, (n_micro, n_shard, n_shard, wanted.shape[2]))
        counts = self.type_counts[source, wanted][..., None]  # (M, S, T, B, 1)
        first = self.type_offsets[source, wanted][..., None]
        bits = self._bits((*wanted.shape, self.n_negative), position)
        of_type = first + below(bits, counts)
        any_type = below(bits, self.sharding.shard_counts[source][..., None])
        found: Dict[str, NDArray[np.generic]] = {
            "negative_entities": np.where(counts > 0, of_type, any_type).astype(np.int32)
        }
        if not (self.type_counts > 0).all():
            kept = np.broadcast_to(counts > 0, bits.shape)  # (M, S, T, B, N)
            # As the scoring shard sees it: it scores its own lists, or those that come from all.
            axes = (0, 1, 3, 2, 4) if self.local_sampling else (0, 2, 3, 1, 4)
            found["negative_mask"] = kept.transpose(axes)
        return found


def _at_least_one(n_negative: int) -> int:
    if n_negative < 1:
        raise ConfigError(f"n_negative must be at least 1, got {n_negative}")
    return n_negative
