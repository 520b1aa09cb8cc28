"""Negatives drawn where a model is trained; see :mod:`besskge_core.batch_sampler.resident`."""

from __future__ import annotations

import math
from typing import Callable, Dict, Tuple

import numpy as np
import torch
from torch import Tensor

from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    DegreeWeightedShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    ShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.ops.draws import Address, below, random_below, random_bits, uniform
from besskge_core.philox import BLOCK, Purpose

#: From triples (W, M, S, [S,] P), epochs (W,) and steps (W,) to columns (W, M, S, ...).
Negatives = Callable[[Tensor, Tensor, Tensor], Dict[str, Tensor]]

RESIDENT = (
    RandomShardedNegativeSampler,
    BernoulliShardedNegativeSampler,
    DegreeWeightedShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
    PlaceholderNegativeSampler,
)


def why_no_negatives(sampler: ShardedNegativeSampler) -> str:
    """Why a sampler draws on the host alone; empty if it can draw on a device."""
    if sampler.given:
        return "negatives are given, not drawn"
    if type(sampler) not in RESIDENT:
        return f"{type(sampler).__name__} draws negatives in a way of its own"
    return ""


def negatives_of(sampler: ShardedNegativeSampler, device: torch.device) -> Negatives:
    """What draws the negatives of a sampler on a device."""
    if isinstance(sampler, PlaceholderNegativeSampler):
        return lambda sample_idx, epoch, step: {}
    if isinstance(sampler, TypeBasedShardedNegativeSampler):
        return _Typed(sampler, device)
    if isinstance(sampler, DegreeWeightedShardedNegativeSampler):
        return _Weighted(sampler, device)
    assert isinstance(sampler, RandomShardedNegativeSampler)
    if isinstance(sampler, BernoulliShardedNegativeSampler):
        return _Either(sampler, device)
    return _Uniform(sampler, device)


def _bits(seed: int, epoch: Tensor, step: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """Bits (W, M, S, ...), as `ShardedNegativeSampler._bits` draws those of each step."""
    n_micro, n_shard, *rest = shape
    width = n_micro * math.prod(rest)
    padded = -(-width // BLOCK) * BLOCK
    bits = random_bits(Address(seed, Purpose.NEGATIVES, epoch, step), n_shard * padded)
    rows = bits.unflatten(-1, (n_shard, padded))[..., :width]
    return rows.unflatten(-1, (n_micro, *rest)).transpose(1, 2)


class _Uniform:
    def __init__(self, sampler: RandomShardedNegativeSampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        self.counts = _kept(sampler.sharding.shard_counts, device)

    def __call__(self, sample_idx: Tensor, epoch: Tensor, step: Tensor) -> Dict[str, Tensor]:
        sampler, n_shard = self.sampler, len(self.counts)
        of_step = np.broadcast_to(0, tuple(sample_idx.shape[1:]))
        shape = (len(of_step), n_shard, n_shard, sampler.n_block(of_step), sampler.n_negative)
        rows = self.rows(epoch, step, shape)
        return {"negative": rows.int().contiguous()}

    def rows(self, epoch: Tensor, step: Tensor, shape: Tuple[int, ...]) -> Tensor:
        """int64 (W, M, S, T, B, N)."""
        n_micro, _, *rest = shape
        address = Address(self.sampler.seed, Purpose.NEGATIVES, epoch, step)
        drawn = random_below(address, self.counts, n_micro * math.prod(rest))
        return drawn.unflatten(-1, (n_micro, *rest)).transpose(1, 2)


class _Weighted(_Uniform):
    def __init__(self, sampler: DegreeWeightedShardedNegativeSampler, device: torch.device) -> None:
        super().__init__(sampler, device)
        self.cumulative = [_kept(x, device) for x in sampler._cumulative]

    def rows(self, epoch: Tensor, step: Tensor, shape: Tuple[int, ...]) -> Tensor:
        chance = uniform(_bits(self.sampler.seed, epoch, step, shape)).unbind(2)
        found = [
            torch.searchsorted(share, of_shard.contiguous(), right=True)
            for share, of_shard in zip(self.cumulative, chance)
        ]
        return torch.stack(found, dim=2)


class _Either(_Uniform):
    def __init__(self, sampler: BernoulliShardedNegativeSampler, device: torch.device) -> None:
        super().__init__(sampler, device)
        self.head_probability = _kept(sampler.head_probability, device)

    def __call__(self, sample_idx: Tensor, epoch: Tensor, step: Tensor) -> Dict[str, Tensor]:
        found = super().__call__(sample_idx, epoch, step)
        n_micro, of_micro = sample_idx.shape[1], sample_idx.shape[2:]
        padded = -(-of_micro.numel() // BLOCK) * BLOCK
        address = Address(self.sampler.seed, Purpose.SIDES, epoch, step)
        bits = random_bits(address, n_micro * padded).unflatten(-1, (n_micro, padded))
        chance = uniform(bits[..., : of_micro.numel()].reshape(sample_idx.shape))
        return {**found, "heads_replaced": chance < self.head_probability[sample_idx]}


class _Typed:
    def __init__(self, sampler: TypeBasedShardedNegativeSampler, device: torch.device) -> None:
        self.sampler = sampler
        self.types = _kept(sampler.triple_types, device).long()
        self.counts = _kept(sampler.type_counts, device).long()  # (S, n_type)
        self.offsets = _kept(sampler.type_offsets, device).long()
        self.shard_counts = _kept(sampler.sharding.shard_counts, device)
        self.has_empty_type = not (sampler.type_counts > 0).all()

    def __call__(self, sample_idx: Tensor, epoch: Tensor, step: Tensor) -> Dict[str, Tensor]:
        sampler, (n_window, n_micro, n_shard) = self.sampler, sample_idx.shape[:3]
        half = sample_idx.shape[-1] // 2 if sampler.corruption_scheme == "ht" else None
        of_triple = self.types[sample_idx]  # (W, M, S, [S,] P, 2)
        if half is None:
            wanted = of_triple[..., 0 if sampler.corruption_scheme == "h" else 1]
        else:
            wanted = torch.cat([of_triple[..., :half, 0], of_triple[..., half:, 1]], dim=-1)
        wanted = wanted.flatten(3)  # (W, M, T, B)
        asker = wanted[:, :, :, None] if sampler.local_sampling else wanted[:, :, None]
        wanted = asker.expand(n_window, n_micro, n_shard, n_shard, wanted.shape[-1])
        source = torch.arange(n_shard, device=wanted.device)[:, None, None]
        counts = self.counts[source, wanted].unsqueeze(-1)  # (W, M, S, T, B, 1)
        first = self.offsets[source, wanted].unsqueeze(-1)
        bits = _bits(sampler.seed, epoch, step, (*wanted.shape[1:], sampler.n_negative))
        of_type = first + below(bits, counts)
        any_type = below(bits, self.shard_counts[source].unsqueeze(-1))
        found = {"negative": torch.where(counts > 0, of_type, any_type).int().contiguous()}
        if self.has_empty_type:
            kept = (counts > 0).expand(bits.shape)
            # As the scoring shard sees it; see the sampler.
            axes = (0, 1, 2, 4, 3, 5) if sampler.local_sampling else (0, 1, 3, 4, 2, 5)
            found["negative_mask"] = kept.permute(axes).contiguous()
        return found


def _kept(x: np.ndarray, device: torch.device) -> Tensor:
    return torch.tensor(np.asarray(x), device=device)
