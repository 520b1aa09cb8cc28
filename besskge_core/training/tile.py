"""How much of a batch is scored at once: as the user says, or as much as fits into memory."""

from __future__ import annotations

from typing import Optional, Union

import torch

from besskge_core.batch_sampler import ShardedBatchSampler
from besskge_core.bess import AllEntitiesBessKGE, BessKGE
from besskge_core.bess.tiled import TileShape
from besskge_core.errors import ConfigError, SubBatchingNotSupportedError
from besskge_core.runtime import LocalRuntime
from besskge_core.runtime.memory import largest_that_fits

#: More scores at a time than these make nothing faster.
ENOUGH_SCORES = 2**25


def choose_tile(
    module: Union[BessKGE, AllEntitiesBessKGE],
    runtime: LocalRuntime,
    sampler: ShardedBatchSampler,
    sub_batch_size: Optional[int],
    slice_size: Optional[int],
    search: bool,
) -> None:
    """Set the tile of a module; the numbers do not depend on it.

    Args:
        module: what computes the loss.
        runtime: that it runs in.
        sampler: of its batches.
        sub_batch_size: queries scored at once, or None.
        slice_size: entities scored at once, or None.
        search: if neither is given, look for the largest tile that fits.

    Raises:
        ConfigError: sizes below 1.
        SubBatchingNotSupportedError: the module has no tiles.
    """
    given = {"sub_batch_size": sub_batch_size, "slice_size": slice_size}
    wrong = {name: x for name, x in given.items() if x is not None and x < 1}
    if wrong:
        raise ConfigError(f"sizes start at 1, got {wrong}")
    is_given = sub_batch_size is not None or slice_size is not None
    if not isinstance(module, AllEntitiesBessKGE):
        if is_given:
            raise SubBatchingNotSupportedError(
                "no more than the batch's negatives are scored at once; lower batch_size or the"
                " number of negatives instead of sub_batch_size or slice_size"
            )
        return
    n_query, n_row = sampler.shard_bs * module.sharding.n_shard, module.entity_embedding.shape[1]
    if is_given:
        module.tile_shape = TileShape(
            min(sub_batch_size or n_query, n_query), min(slice_size or n_row, n_row)
        )
    elif search:
        module.max_scores = _largest_tile(module, runtime, sampler)


def _largest_tile(
    module: AllEntitiesBessKGE, runtime: LocalRuntime, sampler: ShardedBatchSampler
) -> int:
    """Scores held at a time with which a step fits; leaves module and random state as they were."""
    batch = next(iter(runtime.dataloader(sampler)))
    n_query = sampler.shard_bs * module.sharding.n_shard
    every = n_query * module.entity_embedding[..., 0].numel()

    def probe(max_scores: int) -> None:
        module.max_scores = max_scores
        module.train()
        for micro in batch:
            module(**micro.columns)["loss"].backward()

    buffers = {name: x.clone() for name, x in module.named_buffers()}
    try:
        with torch.random.fork_rng():
            return largest_that_fits(min(every, ENOUGH_SCORES), probe, runtime.device)
    finally:
        module.score_fn.pop_regularization_term()  # of a probe that failed half-way
        for parameter in module.parameters():
            parameter.grad = None
        for name, x in module.named_buffers():
            x.copy_(buffers[name])
