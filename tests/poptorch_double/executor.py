"""Wrapped models: weights on a device of their own, and programs of fixed shapes."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from . import optim
from .enums import (
    CommGroupType,
    Error,
    OutputMode,
    ReductionType,
    VariableRetrievalMode,
)
from .options import Options
from .replicas import Device, Lockstep, losses, trace

#: IPUs of the machine; those that programs hold are counted.
MACHINE = {"ipus": 64, "held": 0}
#: Programs that train a parameter, by its identity.
TRAINED_BY: Dict[int, Any] = {}


class _Grouped:
    """A parameter as the wrapper shows it."""

    def __init__(self, executor: Any, name: str) -> None:
        self._executor, self._name = executor, name

    def replicaGrouping(
        self, kind: CommGroupType, shards: int, mode: VariableRetrievalMode
    ) -> None:
        self._executor.per_replica_params[self._name] = (kind, shards, mode)


class Executor:
    def __init__(
        self,
        model: nn.Module,
        options: Optional[Options],
        training: bool,
        optimizer: Optional[torch.optim.Optimizer] = None,
    ) -> None:
        given = Options() if options is None else options
        given._freeze()
        self._options, self._training, self._model = given.clone(), training, model
        self._optimizer, self._user_class = optimizer, type(model)
        self.per_replica_params: Dict[str, Tuple[Any, int, Any]] = {}
        self._replicas: List[nn.Module] = []
        self._leaves: Dict[str, List[Tensor]] = {}
        self._attached, self._detached, self._dirty, self._signature = False, False, False, None
        self.n_step = 0
        if not training and self._options.Training.gradient_accumulation != 1:
            raise Error("You must set Training.gradientAccumulation to 1 for inference")
        if training:
            if "PopTorchModel" in type(model).__name__:
                raise Error("model has already been wrapped in 'poptorch.trainingModel'")
            if optimizer is None:
                self._optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            optim.twin(self._optimizer, [nn.Parameter(torch.zeros(1))])
            model.__class__ = type(f"PopTorchModel{type(model).__name__}", (type(model),), {})
            for x in model.parameters():
                TRAINED_BY[id(x)] = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "per_replica_params":
            raise AttributeError(name)
        found = getattr(self._model, name)
        return _Grouped(self, name) if isinstance(found, nn.Parameter) else found

    # -- weights -----------------------------------------------------------------------------------

    def copyWeightsToHost(self) -> None:
        self._must_be_compiled()
        with torch.no_grad():
            for name, x in self._model.named_parameters():
                leaves = self._leaves[name]
                x.copy_(torch.stack(leaves) if name in self.per_replica_params else leaves[0])
        self._dirty = False

    def copyWeightsToHostIfNeeded(self) -> None:
        if self._dirty:
            self.copyWeightsToHost()

    def copyWeightsToDevice(self) -> None:
        self._must_be_compiled()
        with torch.no_grad():
            for name, x in self._model.named_parameters():
                for rank, leaf in enumerate(self._leaves[name]):
                    leaf.copy_(x[rank] if name in self.per_replica_params else x)
        self._dirty = False

    def _must_be_compiled(self) -> None:
        if not self.isCompiled():
            raise Error("the model has not been compiled")
        if not self._attached:
            raise Error("the model is not attached to a device")

    def isCompiled(self) -> bool:
        return bool(self._replicas)

    def isAttachedToDevice(self) -> bool:
        return self._attached

    def attachToDevice(self) -> None:
        if self._attached:
            raise Error("the model is attached already")
        n = self._options.replication_factor
        if n & (n - 1) and not self._options.auto_round_num_ipus:
            raise Error(f"{n} IPUs, which is no power of two; see autoRoundNumIPUs")
        if MACHINE["held"] + n > MACHINE["ipus"]:
            raise Error(f"Failed to acquire {n} IPU(s)")
        MACHINE["held"] += n
        self._attached = True
        self.copyWeightsToDevice()

    def detachFromDevice(self) -> None:
        if not self._attached:
            raise Error("the model is not attached to a device")
        if self._training:
            self.copyWeightsToHost()
        MACHINE["held"] -= self._options.replication_factor
        self._attached, self._detached = False, True

    def destroy(self) -> None:
        if self._attached:
            MACHINE["held"] -= self._options.replication_factor
        self._attached, self._replicas = False, []
        self._model.__class__ = self._user_class
        for x in self._model.parameters() if self._training else ():
            TRAINED_BY.pop(id(x), None)

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if type(optimizer) is not type(self._optimizer):
            raise Error("the optimiser must be of the type that was compiled")
        self._optimizer = optimizer
        if self.isCompiled():
            self._adopt_values()

    # -- compilation -------------------------------------------------------------------------------

    def _compile(self, leaves: List[Tensor], spec: Any) -> None:
        options, named = self._options, dict(self._model.named_parameters())
        unknown = set(self.per_replica_params) - set(named)
        if unknown:
            raise Error(f"no parameters {sorted(unknown)}; they have {sorted(named)}")
        for name, x in named.items():
            if name not in self.per_replica_params:
                self._leaves[name] = [self._leaf(x, x)]
                continue
            kind, _, _ = self.per_replica_params[name]
            if kind is not CommGroupType.NoGrouping:
                raise NotImplementedError("this double knows a group a replica")
            if x.dim() == 0 or x.shape[0] != options.replication_factor:
                raise Error(
                    f"{name} has shape {tuple(x.shape)}, expected a first axis of"
                    f" {options.replication_factor} groups"
                )
            self._leaves[name] = [self._leaf(row, x) for row in x]
        n_row = options.replication_factor * options.n_micro
        meta = [
            torch.empty(
                (x.shape[0] // n_row, *x.shape[1:]), dtype=_on_device(x.dtype), device="meta"
            )
            if isinstance(x, Tensor)
            else x
            for x in leaves
        ]
        traced = self._copy(0, meta=True)
        arguments = tree_unflatten(meta, spec)
        n_loss = trace(lambda: traced(**arguments))
        if self._training and n_loss != 1:
            raise Error(f"a training graph needs one final loss, found {n_loss}")
        self._replicas = [self._copy(rank) for rank in range(options.replication_factor)]
        if self._training:
            self._make_twin(named)

    def _leaf(self, x: Tensor, parameter: Tensor) -> Tensor:
        leaf = x.detach().clone().to(_on_device(x.dtype))
        return leaf.requires_grad_(parameter.requires_grad and self._training)

    def _copy(self, rank: int, meta: bool = False) -> nn.Module:
        """The module as a replica has it: all its own, but for the weights of the device."""
        memo: Dict[int, Any] = {}
        for name, x in self._model.named_parameters():
            own = self._leaves[name]
            leaf = own[rank if name in self.per_replica_params else 0]
            memo[id(x)] = leaf.to("meta").requires_grad_(leaf.requires_grad) if meta else leaf
        for x in self._model.buffers() if meta else ():
            memo[id(x)] = x.to("meta")
        user, self._model.__class__ = type(self._model), self._user_class
        try:
            return copy.deepcopy(self._model, memo)
        finally:
            self._model.__class__ = user

    def _make_twin(self, named: Dict[str, nn.Parameter]) -> None:
        names = {id(x): name for name, x in named.items()}
        groups = []
        for group in self._optimizer.param_groups:
            leaves = [y for x in group["params"] for y in self._leaves[names[id(x)]]]
            groups.append({"params": leaves})
        self._twin = optim.twin(self._optimizer, groups)
        self._adopt_values()
        if isinstance(self._optimizer, optim.Optimizer):
            self._optimizer.executor = self
            if self._optimizer.given is not None:
                self._take_state(self._optimizer.given["ipu_state"])

    def optimizer_state(self) -> Dict[str, Any]:
        """By kind and parameter, of a grouped one with an axis of replicas; and hyper-parameters."""
        found: Dict[str, Any] = {}
        for name, leaves in self._leaves.items():
            for kind, x in sorted(self._twin.state.get(leaves[0], {}).items()):
                if x is None:  # how torch 2.0 says that there is no momentum
                    continue
                of_replicas = [torch.as_tensor(self._twin.state[leaf][kind]) for leaf in leaves]
                grouped = name in self.per_replica_params
                found[f"{kind}___{name}"] = torch.stack(of_replicas) if grouped else of_replicas[0]
        return {"ipu_state": found, "ipu_param": {"lr": self._twin.param_groups[0]["lr"]}}

    def _take_state(self, given: Dict[str, Any]) -> None:
        for key, x in given.items():
            kind, _, name = key.partition("___")
            for rank, leaf in enumerate(self._leaves[name]):
                own = x[rank] if name in self.per_replica_params else x
                self._twin.state[leaf][kind] = own.clone()

    def _adopt_values(self) -> None:
        for own, group in zip(self._twin.param_groups, self._optimizer.param_groups):
            own.update({k: x for k, x in group.items() if k != "params"})

    # -- calls -------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(self._user_class.forward)
        try:
            arguments = signature.bind(self._model, *args, **kwargs).arguments
        except TypeError as error:
            raise Error(f"{self._user_class.__name__}.forward: {error}") from None
        arguments = {k: x for k, x in list(arguments.items())[1:] if x is not None}
        leaves, spec = tree_flatten(arguments)
        self._check_inputs(leaves)
        seen = (str(spec), [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves])
        if not self.isCompiled():
            self._compile(leaves, spec)
            self._signature = seen
        elif seen != self._signature:
            raise Error(
                f"inputs {seen} do not match those that the program was compiled for,"
                f" {self._signature}"
            )
        if not self._attached and not self._detached:
            self.attachToDevice()
        if not self._attached:
            raise Error("the model is not attached to a device")
        if not self._training:
            self._upload_newer()
        n, options = self._options.replication_factor, self._options
        shards = [[x.chunk(n * options.n_micro) if isinstance(x, Tensor) else x for x in leaves]]
        outputs = []
        for micro in range(options.n_micro):
            parts = [
                tree_unflatten(
                    [
                        x[micro * n + rank].to(_on_device(x[0].dtype), copy=True)
                        if isinstance(x, tuple)
                        else x
                        for x in shards[0]
                    ],
                    spec,
                )
                for rank in range(n)
            ]
            outputs.append(self._micro_batch(parts))
            if self._training and (micro + 1) % options.Training.gradient_accumulation == 0:
                self._update()
        return self._joined(outputs)

    def _check_inputs(self, leaves: List[Any]) -> None:
        n_row = self._options.replication_factor * self._options.n_micro
        for x in leaves:
            if not isinstance(x, Tensor):
                continue
            if x.dim() == 0 or x.shape[0] % n_row:
                raise Error(
                    f"an input has shape {tuple(x.shape)}, expected a first axis that is a multiple"
                    f" of device iterations * accumulation * replicas = {n_row}"
                )
            if x.is_complex() or x.is_sparse or x.dtype == torch.bfloat16:
                raise Error(f"unsupported input: {x.dtype}, {x.layout}")
            if x.dtype == torch.int64:
                warnings.warn("an input of int64 is converted in every call", stacklevel=3)
            if not x.is_contiguous():
                warnings.warn("an input that is not contiguous is copied", stacklevel=3)

    def _upload_newer(self) -> None:
        """An inference program sees what was trained since."""
        for x in self._model.parameters():
            other = TRAINED_BY.get(id(x))
            if other is not None and other.isAttachedToDevice():
                other.copyWeightsToHostIfNeeded()
        self.copyWeightsToDevice()

    def _micro_batch(self, parts: List[Dict[str, Any]]) -> List[Any]:
        def program(rank: int) -> Any:
            with torch.set_grad_enabled(self._training):
                out = self._replicas[rank](**parts[rank])
                return out, losses()

        found = Lockstep(len(parts)).run(program)
        if self._training:
            scale = 1.0
            if self._options.Training.reduction is ReductionType.Mean:
                scale = 1.0 / (len(parts) * self._options.Training.gradient_accumulation)
            with Device():
                torch.stack([own[0] for _, own in found]).sum().mul(scale).backward()
        return [out for out, _ in found]

    def _update(self) -> None:
        for group in self._twin.param_groups:
            for x in group["params"]:
                if x.grad is not None and x.grad.is_sparse:
                    raise Error("a sparse gradient")
        self._twin.step()
        self._twin.zero_grad(set_to_none=True)
        for state in self._twin.state.values():
            for name, dtype in getattr(self._optimizer, "state_dtypes", {}).items():
                if isinstance(state.get(name), Tensor):
                    state[name].copy_(state[name].to(dtype))
        self.n_step += 1
        self._dirty = True

    def _joined(self, outputs: List[List[Any]]) -> Any:
        mode = self._options.output_mode
        if mode is OutputMode.Default:
            mode = OutputMode.Final if self._training else OutputMode.All
        flat = [[tree_flatten(out) for out in of_micro] for of_micro in outputs]
        spec, joined = flat[0][0][1], []
        for place in range(len(flat[0][0][0])):
            of_micros = [[leaves[place].detach() for leaves, _ in x] for x in flat]
            if mode is OutputMode.Final:
                of_micros = of_micros[-1:]
            elif mode is OutputMode.Sum:
                of_micros = [[torch.stack(x).sum(0) for x in zip(*of_micros)]]
            elif mode is OutputMode.EveryN:
                n = self._options.output_return_period
                of_micros = of_micros[n - 1 :: n]
            every = [x for of_micro in of_micros for x in of_micro]
            if every[0].dim() == 0:
                out = torch.stack(every) if len(every) > 1 else every[0]
            else:
                out = torch.cat(every)
            joined.append(out.to(_on_device(out.dtype)))
        return tree_unflatten(joined, spec)


def _on_device(dtype: torch.dtype) -> torch.dtype:
    return {torch.int64: torch.int32, torch.float64: torch.float32}.get(dtype, dtype)


def trainingModel(
    model: nn.Module,
    options: Optional[Options] = None,
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> Executor:
    return Executor(model, options, True, optimizer)


def inferenceModel(model: nn.Module, options: Optional[Options] = None) -> Executor:
    return Executor(model, options, False)
