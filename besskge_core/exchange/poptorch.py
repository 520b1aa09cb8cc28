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
from typing import Any, List, Optional, Protocol, Tuple, Union

import torch
from torch import Tensor

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.ops.tracing import is_traced

#: What the library of native operations is asked by.
DOMAIN, VERSION = "besskge_core", 1

#: What an all-to-all moves; bool and other integers travel as int32, other floating numbers as float32.
MOVED = (torch.float32, torch.float16, torch.int32)

#: Comparisons that the library of native operations has, and what poptorch_experimental_addons calls
#: those that it has.
COMPARED, ADDED = ("l1", "l2", "modulus"), {"l1": 1, "l2": 2}


class ReplicaLibrary(Protocol):
    """What replicas have beside torch's operators; see :class:`besskge_core.ops.tracing.DeviceLibrary`."""

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """(S, ...) to -> (S, ...) from, of a dtype of :data:`MOVED`."""

    def gather(self, table: Tensor, index: Tensor) -> Optional[Tensor]:
        """table (E, D), index (K,) -> (K, D)"""

    def pairwise(self, q: Tensor, e: Tensor, comparison: str) -> Optional[Tensor]:
        """q (B, D), e (N, D) -> (B, N), negated distances."""


class NativeLibrary:
    """The native operations of this project, built with the SDK.

    Args:
        path: of the library.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        try:
            ctypes.cdll.LoadLibrary(str(path))
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be loaded ({error}); build it with the SDK enabled, or give no"
                " library, with poptorch_experimental_addons installed"
            ) from error

    def all_to_all(self, blocks: Tensor) -> Tensor:
        return self._call("AllToAll", [blocks], blocks)

    def gather(self, table: Tensor, index: Tensor) -> Optional[Tensor]:
        return self._call("Gather", [table, index], table.new_empty(len(index), table.shape[1]))

    def pairwise(self, q: Tensor, e: Tensor, comparison: str) -> Optional[Tensor]:
        if comparison not in COMPARED:
            return None
        return self._call("Pairwise", [q, e], q.new_empty(len(q), len(e)), comparison=comparison)

    def _call(self, name: str, inputs: List[Tensor], example: Tensor, **attributes: Any) -> Tensor:
        import poptorch

        found: Tensor
        (found,) = poptorch.custom_op(
            inputs,
            name=name,
            domain=DOMAIN,
            domain_version=VERSION,
            example_outputs=[example],
            attributes=attributes or None,
        )
        return found


class AddonsLibrary:
    """What the package poptorch_experimental_addons has.

    Args:
        n_shard: S.
    """

    def __init__(self, n_shard: int) -> None:
        self.n_shard = n_shard

    def all_to_all(self, blocks: Tensor) -> Tensor:
        from poptorch_experimental_addons import collectives

        found: Tensor = collectives.all_to_all_single_cross_replica(blocks, self.n_shard)
        return found

    def gather(self, table: Tensor, index: Tensor) -> Optional[Tensor]:
        return None

    def pairwise(self, q: Tensor, e: Tensor, comparison: str) -> Optional[Tensor]:
        if comparison not in ADDED:
            return None
        import poptorch_experimental_addons as addons

        # torch.cdist would hold a row for each pair.
        return -addons.distance_matrix(q, e, p=ADDED[comparison])


class PopTorchExchange:
    """The collectives where each replica of one PopTorch program hosts one shard.

    Its tensors are those of a traced step. On the host, this process is the only one and has all
    shards.

    Args:
        n_shard: S, the number of replicas.
        library: what replicas have beside torch's operators; None: poptorch_experimental_addons.
    """

    rank, n_rank = 0, 1

    def __init__(self, n_shard: int, library: Optional[ReplicaLibrary] = None) -> None:
        self.n_shard, self.hosted = n_shard, range(n_shard)
        self.library: ReplicaLibrary = library or AddonsLibrary(n_shard)

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
        if not is_traced():
            raise ConfigError(
                "replicas exchange in a step that PopTorch traces; run this model with IPURuntime,"
                " or give it the exchange of another runtime"
            )
        other = torch.float32 if x.is_floating_point() else torch.int32
        sent = (x if x.dtype in MOVED else x.to(other)).contiguous()
        return self.library.all_to_all(sent).to(x.dtype)

    def _check(self, x: Tensor, name: str, leading: Tuple[int, ...]) -> None:
        if tuple(x.shape[: len(leading)]) != leading:
            axes = ", ".join(f"{axis}={n}" for axis, n in zip("LS", leading))
            raise ShapeError(
                f"{name} expects leading axes {axes} on a replica, got {tuple(x.shape)}"
            )
