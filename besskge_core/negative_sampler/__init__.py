"""Who corrupts: the negative entities that each shard gives to each other one in a step.

A negative sampler is called with the triples of a step and its position, and answers with rows
on the shard that owns them, so that no shard needs to know another's table.

Axes of the arrays it returns:
    M: micro-batches of a step         S: shard that owns the negatives (source)
    T: shard that scores them          N: negatives that one source gives to one target
    B: blocks of negatives: 1 for all triples (flat; 2 for the scheme "ht": heads, tails), or one
       a triple
"""

from __future__ import annotations

from besskge_core.negative_sampler.base import PlaceholderNegativeSampler, ShardedNegativeSampler
from besskge_core.negative_sampler.given import TripleBasedShardedNegativeSampler
from besskge_core.negative_sampler.random import (
    BernoulliShardedNegativeSampler,
    DegreeWeightedShardedNegativeSampler,
    RandomShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
    head_probability,
)

__all__ = [
    "BernoulliShardedNegativeSampler",
    "DegreeWeightedShardedNegativeSampler",
    "PlaceholderNegativeSampler",
    "RandomShardedNegativeSampler",
    "ShardedNegativeSampler",
    "TripleBasedShardedNegativeSampler",
    "TypeBasedShardedNegativeSampler",
    "head_probability",
]
