"""Batches; of the asynchronous mode, in memory that is overwritten."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional

import torch
from torch import Tensor

from .enums import DataLoaderMode, Error
from .options import Options

ASYNC_OPTIONS = {
    "buffer_size", "miss_sleep_time_in_ms", "load_indefinitely", "early_preload",
    "sharing_strategy", "rebatched_size",
}  # fmt: skip


class DataLoader(torch.utils.data.DataLoader):
    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: Optional[int] = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        options._freeze()
        unknown = set(async_options or {}) - ASYNC_OPTIONS
        if unknown:
            raise TypeError(f"unknown async_options {sorted(unknown)}")
        if async_options and mode is DataLoaderMode.Sync:
            raise Error("async_options need an asynchronous mode")
        self._mode, self._ended, self.options = mode, False, options
        if batch_size is not None:
            n_row = options.replication_factor // options.input_group_size
            batch_size *= n_row * options.n_micro
            if not drop_last and batch_size > 1:
                raise Error("a last batch that is smaller has no program; drop it")
            kwargs["drop_last"] = True
        super().__init__(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=0, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        before: Optional[Dict[str, Tensor]] = None
        for batch in super().__iter__():
            if self._ended:
                raise Error("the loader has been terminated")
            if self._mode is not DataLoaderMode.Sync:
                for x in (before or {}).values():
                    x.zero_()
                before = batch
            yield batch

    def terminate(self) -> None:
        if self._mode is DataLoaderMode.Sync:
            raise Error("only an asynchronous loader can be terminated")
        self._ended = True
