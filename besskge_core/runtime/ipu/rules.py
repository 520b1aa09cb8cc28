"""The rules that a step must keep to be a program for an IPU, seen without Poplar's SDK.

PopTorch runs a module once on tensors that have shapes and dtypes but no values, and writes down the
operators. So does :func:`trace`, on torch's meta device; the first operator that breaks a rule ends
it, with the line that asked for it.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from besskge_core.errors import ProgramError
from besskge_core.runtime.ipu.operators import (
    ABOUT_TYPES,
    FORWARD_ONLY,
    base_name,
    why_not,
    with_wide_indices,
)

#: What an IPU has instead of the wide dtypes.
NARROW = {torch.int64: torch.int32, torch.float64: torch.float32}

#: Methods of a tensor that need its value on the host.
ASK_FOR_VALUES = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu,
    torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.__array__,
}  # fmt: skip

_TORCH, _HERE = Path(torch.__file__).parent, Path(__file__)


@dataclass
class Trace:
    """What a step is made of.

    Attributes:
        operators: how often each occurs in the forward pass, by name; the compiler makes the
            backward pass.
        kept: bytes of what is kept from the forward for the backward pass, weights left out.
        largest: bytes of what the largest operator reads and writes, weights left out.
        exchanged: bytes of blocks sent to other replicas in the forward pass.
    """

    operators: Dict[str, int] = field(default_factory=dict)
    kept: int = 0
    largest: int = 0
    exchanged: int = 0


def trace(
    program: Callable[[], Optional[Tensor]], weights: Mapping[str, Tensor], training: bool
) -> Trace:
    """Run a step on meta tensors under the rules.

    Args:
        program: the step of one replica; returns its loss, if it has one.
        weights: meta tensors by name that the step reads, which live on the device anyway.
        training: whether gradients are asked for.

    Raises:
        ProgramError: the step breaks a rule.
    """
    found, resident = Trace(), {_storage(x): name for name, x in weights.items()}
    kept = _Kept(resident)
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(training))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.add, lambda x: x))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(_Values())
        stack.enter_context(_Operators(found, training, resident))
        try:
            loss = program()
        except NotImplementedError as error:
            raise _refused("this step", f"its shapes cannot be told: {error}") from error
    found.kept = kept.bytes
    if training:
        if loss is None or loss.grad_fn is None:
            raise ProgramError("the step has no loss that depends on a weight")
        for node in _nodes(loss.grad_fn):
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                raise ProgramError(
                    f"{type(node).__name__}: PopTorch does not see the backward pass of a"
                    " torch.autograd.Function, and makes its own; write it in plain torch"
                )
    return found


class _Values(TorchFunctionMode):
    """Refuses questions for a tensor's value, which is on the device when the program runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__:
            raise _refused("bool", "control flow hangs on a tensor's value; use torch.where")
        if func in ASK_FOR_VALUES:
            name = getattr(func, "__name__", str(func))
            raise _refused(name, "a tensor's value is asked for on the host while the program runs")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Writes operators down, and refuses those that break a rule."""

    def __init__(self, found: Trace, training: bool, resident: Dict[int, str]) -> None:
        super().__init__()
        self.found, self.training, self.resident = found, training, resident

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, base_name(func)
        if name in ABOUT_TYPES:
            return func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        self._check(func, name, inputs, args, kwargs)
        out = tree_map(_narrowed, func(*with_wide_indices(func, args), **kwargs))
        outputs = _tensors(out)
        for x in outputs:
            _check_result(func, x)
        self.found.operators[name] = self.found.operators.get(name, 0) + 1
        made = {_storage(x) for x in outputs} - {_storage(x) for x in inputs}
        if made:  # else it is a view
            passing = [x for x in inputs + outputs if _storage(x) not in self.resident]
            self.found.largest = max(self.found.largest, sum(map(_bytes, passing)))
        return out

    def _check(
        self, func: Any, name: str, inputs: List[Tensor], args: Any, kwargs: Dict[str, Any]
    ) -> None:
        if name == "_local_scalar_dense":
            raise _refused(func, "a tensor's value is asked for on the host")
        reason = why_not(func)
        if reason is not None:
            raise _refused(func, reason)
        if name == "index" and any(x is not None and x.dtype in MASKS for x in args[1]):
            raise _refused(
                func, "reading through a mask has no fixed shape; use torch.where or masked_fill"
            )
        if name in FORWARD_ONLY and self.training and any(x.requires_grad for x in inputs):
            raise _refused(func, "PopART has no gradient of it")
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            raise _refused(
                func, f"a tensor on {kwargs['device']} in the program; use the device of its inputs"
            )
        host = [x for x in inputs if x.device.type != "meta" and x.dim()]
        if host:
            raise _refused(
                func,
                f"a tensor {tuple(host[0].shape)} of the host; make it a buffer or a parameter",
            )
        for x in inputs:
            if x.dtype in NARROW:
                name = self.resident.get(_storage(x), "a tensor")
                raise _refused(
                    func, f"{name} is {x.dtype}, and IPUs have {NARROW[x.dtype]}; make it so"
                )
        if kwargs.get("dtype") in NARROW:
            narrow = NARROW[kwargs["dtype"]]
            raise _refused(func, f"IPUs have no {kwargs['dtype']}; ask for {narrow}")


#: Dtypes of masks.
MASKS = (torch.bool, torch.uint8)


def note_exchange(found: Trace, x: Tensor) -> None:
    """Count blocks (S, ...) that a replica sends, its own among them."""
    found.exchanged += _bytes(x)
    found.operators["all_to_all"] = found.operators.get("all_to_all", 0) + 1


def _narrowed(x: Any) -> Any:
    """A result as the device has it: counts and places are int32, which nobody has to ask for."""
    return x.to(torch.int32) if isinstance(x, Tensor) and x.dtype == torch.int64 else x


def _check_result(func: Any, x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise _refused(func, "it makes torch.float64, and IPUs have torch.float32")
    if x.is_complex() or x.is_sparse or x.dtype == torch.bfloat16:
        raise _refused(func, f"it makes {x.dtype}, {x.layout}, which IPUs have not")
    if x.numel() == 0:
        raise _refused(func, f"it makes a tensor {tuple(x.shape)}, and IPUs have no empty ones")


class _Kept:
    """Bytes of what the backward pass needs, each storage once."""

    def __init__(self, resident: Collection[int]) -> None:
        self.held: List[Tensor] = []  # so that no storage is freed, and its number given anew
        self.seen = set(resident)
        self.bytes = 0

    def add(self, x: Tensor) -> Tensor:
        if _storage(x) not in self.seen:
            self.seen.add(_storage(x))
            self.held.append(x)
            self.bytes += _bytes(x)
        return x


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _bytes(x: Tensor) -> int:
    """Of what is read or written of its storage; a broadcast axis is there once."""
    n = 1
    for size, stride in zip(x.shape, x.stride()):
        n *= size if stride else 1
    return n * x.element_size()


def _tensors(tree: Any) -> List[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _nodes(root: Any) -> Iterator[Any]:
    """Of an autograd graph, each once."""
    seen, left = set(), [root]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [other for other, _ in node.next_functions]


def _refused(operator: Any, reason: str) -> ProgramError:
    """With the innermost line that is neither torch's nor of this file."""
    name = operator if isinstance(operator, str) else str(operator.name()).partition("::")[2]
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path != _HERE and _TORCH not in path.parents and "importlib" not in frame.filename:
            return ProgramError(f"{frame.filename}:{frame.lineno}: {name}: {reason}: {frame.line}")
    return ProgramError(f"{name}: {reason}")
