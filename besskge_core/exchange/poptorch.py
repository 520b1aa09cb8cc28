"""One shard a replica, in a program that PopTorch compiles.

All replicas run the same program, so none knows its own number: L is 1, and blocks are told apart
by their place alone. One collective does everything: an all-to-all is its own adjoint, so a gather
that sends the same block to everyone, and a sum of what was gathered, have the right gradients
without an operation of their own. A sum moves S times what it needs to; it is of scalars here.

Axes:
    S: replicas, one shard each      L: 1, the shard of a replica
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from besskge_core.errors import ConfigError, ShapeError

#: The all-to-all of the library of native operations, as PopTorch is asked for it.
DOMAIN, ALL_TO_ALL, VERSION = "besskge_core", "AllToAll", 1

#: What it moves; bool and other integers travel as int32, other floating numbers as float32.
MOVED = (torch.float32, torch.float16, torch.int32)


class PopTorchExchange:
    """The collectives where each replica of one PopTorch program hosts one shard.

    Its tensors are those of a traced step. On the host, this process is the only one and has all
    shards.

    Args:
        n_shard: S, the number of replicas.
        library: of native operations that register the all-to-all with PopART; None: that of the
            package poptorch_experimental_addons.

    Raises:
        ConfigError: the library cannot be loaded.
    """

    rank, n_rank = 0, 1

    def __init__(self, n_shard: int, library: Optional[Union[str, Path]] = None) -> None:
        self.n_shard, self.hosted, self._has_library = n_shard, range(n_shard), library is not None
        if library is None:
            return
        try:
            ctypes.cdll.LoadLibrary(str(library))
        except OSError as error:
            raise ConfigError(
                f"{library} cannot be loaded ({error}); build it with the SDK enabled, or give no"
                " library, with poptorch_experimental_addons installed"
            ) from error

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """(1, S, ...) to -> (1, S, ...) from; its gradient goes the same way back.

        Raises:
            ShapeError: other leading axes.
            ConfigError: not in a traced step, where the operation would return zeros.
        """
        self._check(blocks, "all_to_all", (1, self.n_shard))
        return self._swap(blocks.squeeze(0)).unsqueeze(0)

    def all_gather(self, block: Tensor) -> Tensor:
        """(1, ...) -> (1, S, ...); errors as those of :meth:`all_to_all`."""
        self._check(block, "all_gather", (1,))
        return self._swap(block.expand(self.n_shard, *block.shape[1:])).unsqueeze(0)

    def all_reduce(self, block: Tensor) -> Tensor:
        """(1, ...) -> (1, ...); errors as those of :meth:`all_to_all`."""
        return self.all_gather(block).sum(1)

    def sum_ranks(self, x: Tensor) -> Tensor:
        """(...) -> (...), over replicas, where a rank elsewhere would be one."""
        return self.all_reduce(x.detach().unsqueeze(0)).squeeze(0)

    def gather_ranks(self, x: Tensor) -> Tensor:
        """(...) -> (S, ...)"""
        return self.all_gather(x.detach().unsqueeze(0)).squeeze(0)

    def _swap(self, x: Tensor) -> Tensor:
        """(S, ...) to -> (S, ...) from."""
        import poptorch

        if not poptorch.isRunningOnIpu():
            raise ConfigError(
                "replicas exchange in a step that PopTorch traces; run this model with IPURuntime,"
                " or give it the exchange of another runtime"
            )
        other = torch.float32 if x.is_floating_point() else torch.int32
        sent = (x if x.dtype in MOVED else x.to(other)).contiguous()
        if self._has_library:
            (received,) = poptorch.custom_op(
                [sent],
                name=ALL_TO_ALL,
                domain=DOMAIN,
                domain_version=VERSION,
                example_outputs=[sent],
            )
        else:
            from poptorch_experimental_addons import collectives

            received = collectives.all_to_all_single_cross_replica(sent, self.n_shard)
        found: Tensor = received
        return found.to(x.dtype)

    def _check(self, x: Tensor, name: str, leading: Tuple[int, ...]) -> None:
        if tuple(x.shape[: len(leading)]) != leading:
            axes = ", ".join(f"{axis}={n}" for axis, n in zip("LS", leading))
            raise ShapeError(
                f"{name} expects leading axes {axes} on a replica, got {tuple(x.shape)}"
            )
