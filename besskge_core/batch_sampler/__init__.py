"""What each shard gets in one step.

A batch is a pure function of (seed, epoch, step): any process can draw any step again, which is
what makes a run resumable bit for bit and lets each worker draw only its own part.

Axes of a batch, for triples partitioned by shard pairs:
    M: micro-batches of a step          S: hosting shard, then peer shard
    P: positives of a bucket            B = S * P: positives that one shard scores
For "h_shard" and "t_shard" there is no peer axis, and B = P.
"""

from __future__ import annotations

from besskge_core.batch_sampler.base import Batch, Draw, Sampled, ShardedBatchSampler
from besskge_core.batch_sampler.random import RandomShardedBatchSampler
from besskge_core.batch_sampler.resident import (
    ResidentBatches,
    bytes_on_device,
    why_not_resident,
)
from besskge_core.batch_sampler.rigid import RigidShardedBatchSampler
from besskge_core.batch_sampler.weighting import frequency_weight

__all__ = [
    "Batch",
    "Draw",
    "RandomShardedBatchSampler",
    "ResidentBatches",
    "RigidShardedBatchSampler",
    "Sampled",
    "ShardedBatchSampler",
    "bytes_on_device",
    "frequency_weight",
    "why_not_resident",
]
