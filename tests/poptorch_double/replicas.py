"""Replicas as threads in lockstep, and what functions of a model ask of them.

Also, before they run, one trace of the model on tensors without values, in which whatever would
need a value, a size that depends on values, or an operation that PopTorch does not lower, fails.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from besskge_core.runtime.ipu.operators import (
    ABOUT_TYPES,
    HANDLED,
    PARTS,
    base_name,
    with_wide_indices,
)

from .enums import Error

_LOCAL = threading.local()
MOVED = (torch.float32, torch.float16, torch.int32)


class Lockstep:
    """So many replicas, each of which sees what the others put down at the same point."""

    def __init__(self, n: int) -> None:
        self.n, self.slots = n, [None] * n  # type: Tuple[int, List[Any]]
        self.barrier = threading.Barrier(n, timeout=60)

    def exchanged(self, rank: int, name: str, x: Tensor) -> List[Tensor]:
        """Of all replicas, in order; they must all ask for the same."""
        self.slots[rank] = (name, x)
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        if len({(other, y.shape, y.dtype) for other, y in found}) > 1:
            raise Error(f"replicas run different programs: {[(o, y.shape) for o, y in found]}")
        return [y for _, y in found]

    def run(self, program: Callable[[int], Any]) -> List[Any]:
        """What a program of a replica's number gives on each of them."""

        def one(rank: int) -> Any:
            with replica(rank, self), Device():
                try:
                    return program(rank)
                except BaseException:
                    self.barrier.abort()
                    raise

        with ThreadPoolExecutor(self.n) as pool:
            futures = [pool.submit(one, rank) for rank in range(self.n)]
            errors = [future.exception() for future in futures]
        for error in sorted(filter(None, errors), key=_is_echo):
            raise error
        return [future.result() for future in futures]


class Device(TorchDispatchMode):
    """Gathers by int32, which a CPU's kernels do not in all versions of torch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*with_wide_indices(func, args), **(kwargs or {}))


def _is_echo(error: BaseException) -> bool:
    return isinstance(error, threading.BrokenBarrierError)


@contextmanager
def replica(rank: int, lockstep: Optional[Lockstep]) -> Iterator[None]:
    """While this lasts, this thread is a replica; without others, a tracer."""
    _LOCAL.rank, _LOCAL.lockstep, _LOCAL.losses = rank, lockstep, []
    try:
        yield
    finally:
        del _LOCAL.rank


def isRunningOnIpu() -> bool:
    return hasattr(_LOCAL, "rank")


def losses() -> List[Tensor]:
    """What this replica has marked as losses."""
    return _LOCAL.losses


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction {reduction!r}")
    out = x if reduction == "none" else getattr(x, reduction)()
    if isRunningOnIpu():
        _LOCAL.losses.append(out)
    return out


def all_to_all(x: Tensor) -> Tensor:
    if x.dtype not in MOVED:
        raise Error(f"all-to-all of {x.dtype}, expected one of {MOVED}")
    if _LOCAL.lockstep is None:
        return x.clone()
    if x.shape[0] != _LOCAL.lockstep.n:
        raise Error(f"all-to-all of {tuple(x.shape)}, expected {_LOCAL.lockstep.n} blocks")
    sent = _LOCAL.lockstep.exchanged(_LOCAL.rank, "all-to-all", x)
    return torch.stack([y[_LOCAL.rank] for y in sent])


#: Operations of libraries that are loaded: (domain, name) -> function of the inputs.
OPERATIONS: Dict[Tuple[str, str], Callable[..., List[Tensor]]] = {}


def custom_op(
    inputs: Sequence[Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Sequence[Tensor],
    attributes: Optional[Dict[str, Any]] = None,
) -> List[Tensor]:
    if not isRunningOnIpu():  # silently, as PopTorch
        return [torch.zeros_like(x) for x in example_outputs]
    if (domain, name) not in OPERATIONS:
        raise Error(f"no op {domain}.{name}:{domain_version} is registered; load its library first")
    found = OPERATIONS[domain, name](*inputs, **(attributes or {}))
    for got, example in zip(found, example_outputs):
        if got.shape != example.shape or got.dtype != example.dtype:
            raise Error(f"{name} gives {got.shape}, the example is {example.shape}")
    return found


# -- the trace -------------------------------------------------------------------------------------


class _Rules(TorchDispatchMode):
    """Refuses what the compiler does not know, or what has no fixed shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        base = base_name(func)
        if base in ("_local_scalar_dense", "item"):
            raise Error(
                "_local_scalar_dense: a tensor's value is asked for on the host, where a trace has"
                " none (Meta backend)"
            )
        if base in ABOUT_TYPES:
            return func(*args, **(kwargs or {}))
        if func.namespace != "aten" or base not in HANDLED | PARTS:
            raise Error(f"Unsupported ops found in compiled model: [{func.name()}]")
        if base == "index" and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        ):
            raise Error("index: reading through a mask has no fixed shape")
        out = func(*with_wide_indices(func, args), **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor) and (x.is_complex() or x.is_sparse):
                raise Error(f"{func.name()} makes {x.dtype}, {x.layout}: not a type of IPUs")
        return out


def _refuse_function(*_: Any, **__: Any) -> Any:
    raise Error("the backward pass of a torch.autograd.Function is not seen by PopTorch")


def trace(program: Callable[[], Any]) -> int:
    """Run on meta tensors, under the rules of the compiler; how many losses it marked."""
    with ExitStack() as stack:
        stack.enter_context(replica(0, None))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", _refuse_function))
        stack.enter_context(_Rules())
        try:
            program()
        except NotImplementedError as error:
            raise Error(f"Type inference failed: {error}") from error
        return len(losses())
