"""Batches as a device takes them."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence

from torch import Tensor
from torch.utils.data import Dataset

from besskge_core.batch_sampler import Draw, ShardedBatchSampler
from besskge_core.errors import ShapeError
from besskge_core.runtime.ipu.rules import NARROW

#: Columns of batches; what a step does not take is left behind.
COLUMNS = (
    "relation", "head", "tail", "negative", "triple_mask", "triple_weight", "negative_mask",
    "heads_replaced", "hub",
)  # fmt: skip


class DeviceBatches(Dataset[Dict[str, Tensor]]):
    """A sampler's batches, as a device takes them."""

    def __init__(self, sampler: ShardedBatchSampler, columns: Sequence[str]) -> None:
        self.sampler, self.columns = sampler, columns

    def __len__(self) -> int:
        return self.sampler.n_step

    def __getitem__(self, draw: Draw) -> Dict[str, Tensor]:
        n_shard, paired = self.sampler.n_shard, self.sampler.paired
        return flattened(self.sampler[draw], self.columns, n_shard, paired)


def flattened(
    batch: Mapping[str, Tensor], names: Sequence[str], n_shard: int, paired: bool
) -> Dict[str, Tensor]:
    """Columns (M, S, ...) or (M * S, ...) -> (M * S, ...), of dtypes that a device has.

    Raises:
        ShapeError: the axes are not those.
    """
    columns = {name: batch[name] for name in names if name in batch}
    relation = columns["relation"]
    if relation.dim() == (4 if paired else 3):  # (M, S, [S,] P)
        columns = {name: x.flatten(end_dim=1) for name, x in columns.items()}
    n_row = columns["relation"].shape[0]
    if n_row % n_shard:
        raise ShapeError(
            f"relation has shape {tuple(relation.shape)}, expected (M * S, ...) with S={n_shard}"
        )
    return {k: x.to(NARROW.get(x.dtype, x.dtype)).contiguous() for k, x in columns.items()}
