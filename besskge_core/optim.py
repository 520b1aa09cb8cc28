"""Optimisers that touch only the rows of a batch.

A parameter whose gradient is sparse (a table read by :func:`besskge_core.ops.gather`) is updated
in its touched rows alone: the gradients of a row's look-ups are summed once, in a fixed order,
and then weights and state of those rows change. A step's cost therefore does not grow with the
table. A dense gradient updates the whole parameter by the same rule.

Each optimiser is one function of blocks of rows:

    update(weight (U, ...), grad (U, ...), state {name: (U, ...)}, step, group)   in place

Those of this module apply a rule of :mod:`besskge_core.ops.rules`, natively where they can.

Axes:
    U: distinct rows of a step
"""

from __future__ import annotations

import abc
import math
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Protocol, Tuple

import torch
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.ops import (
    Rounding,
    RowPlan,
    Rule,
    plan_rows,
    prefer_huge_pages,
    scatter_update,
    sparse_rows,
)
from besskge_core.ops.rules import PER_ROW, STATES, Step, apply_rule
from besskge_core.ops.scatter_update import change_rows
from besskge_core.registry import Registry

OPTIMIZERS: Registry[type] = Registry("optimizer")

Plans = Mapping[nn.Parameter, RowPlan]

#: Arguments unique_rows, run_offsets and order of :func:`scatter_update`.
Rows = Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]


class Clock(Protocol):
    """Where a captured step reads what changes from one step to the next."""

    def tick(
        self, parameter: Tensor, step: int, group: Dict[str, Any]
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """The next step of a parameter, int64 (), and its group with the learning rate ().

        Args:
            parameter: that is to be updated.
            step: how many steps it has had.
            group: that it is of.
        """


class RowOptimizer(torch.optim.Optimizer, abc.ABC):
    """Base of the row-wise optimisers.

    Weight decay is decoupled (Loshchilov and Hutter, ICLR 2019) and falls on touched rows only.

    Args:
        params: parameters or groups of them, as in torch.
        lr: learning rate.
        weight_decay: share of the weight, times lr, taken off a row when it is touched.
        stochastic_rounding: round weights of bfloat16 up or down at random, so that updates below
            their precision count on average (see :mod:`besskge_core.ops.rounding`). Off, they are
            rounded to the nearest, and updates below it are lost.
        seed: of that rounding, in [0, 2**63).
        defaults: further hyper-parameters of the subclass.

    Attributes:
        clock: where learning rates and step counts are read; None: they are numbers of the host.
    """

    clock: Optional[Clock] = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        *,
        stochastic_rounding: bool = True,
        seed: int = 0,
        **defaults: float,
    ) -> None:
        if not (lr >= 0.0 and math.isfinite(lr)):
            raise ConfigError(f"lr must be finite and not negative, got {lr}")
        if weight_decay < 0.0:
            raise ConfigError(f"weight_decay must not be negative, got {weight_decay}")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2**63), got {seed}")
        self.stochastic_rounding, self.seed = stochastic_rounding, seed
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, **defaults))

    @classmethod
    def __subclasses__(cls) -> List[type]:
        # class_resolver, which PyKEEN begins with, takes subclasses of subclasses of torch's
        # optimisers for torch's own, and stops where two have one name: keep ours from it.
        return []

    @abc.abstractmethod
    def init_state(self, parameter: Tensor, group: Mapping[str, float]) -> Dict[str, Tensor]:
        """State of a parameter (..., D): each (..., D), or (..., 1) if kept a row."""

    @abc.abstractmethod
    def update(
        self,
        weight: Tensor,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: Step,
        group: Mapping[str, float],
    ) -> None:
        """Change a block of rows and their state in place; `step` counts from 1.

        With a clock, `step` and the group's "lr" are tensors ().
        """

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Optional[Callable[[], Tensor]] = None,
        plans: Optional[Plans] = None,
    ) -> None:
        """Update all parameters that have a gradient.

        Args:
            closure: not supported, must be None.
            plans: for parameters with a sparse gradient, the look-ups grouped by row; made here
                where it is missing.
        """
        if closure is not None:
            raise NotImplementedError("row-wise optimisers take one gradient, not a closure")
        stream = -1
        for group in self.param_groups:
            for parameter in group["params"]:
                stream += 1
                if parameter.grad is not None:
                    plan = plans.get(parameter) if plans is not None else None
                    self._update_parameter(parameter, parameter.grad, plan, group, stream)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """As in torch, but the state keeps its dtype: torch casts it to that of the parameter."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for parameter, key in zip(parameters, keys):
            for name, x in state_dict["state"].get(key, {}).items():
                if isinstance(x, Tensor):
                    self.state[parameter][name] = x.to(parameter.device, copy=True)

    def __getstate__(self) -> Dict[str, Any]:
        own = dict(stochastic_rounding=self.stochastic_rounding, seed=self.seed)
        return {**super().__getstate__(), **own}

    def _update_parameter(
        self,
        parameter: nn.Parameter,
        grad: Tensor,
        plan: Optional[RowPlan],
        group: Dict[str, Any],
        stream: int,
    ) -> None:
        kept: Dict[str, Any] = self.state[parameter]
        if not kept:
            kept.update(self.init_state(parameter, group), step=0)
        step: Step = kept["step"] + 1
        if self.clock is None:
            kept["step"] = step
        else:
            step, group = self.clock.tick(parameter, kept["step"], group)
        rows: Rows = (None, None, None)
        values = grad
        if grad.is_sparse:
            values = grad._values()
            if plan is not None:
                # What is summed already has a value for each distinct row.
                summed = len(values) != len(plan.order)
                rows = (plan.unique_rows, None, None) if summed else plan
            elif grad.is_coalesced():
                rows = (sparse_rows(grad), None, None)
            else:
                rows = plan_rows(sparse_rows(grad), parameter[..., 0].numel())
        rounding = Rounding(self.seed, stream) if self.stochastic_rounding else None
        self._change(parameter, kept, values, step, rows, rounding, group)

    def _change(
        self,
        parameter: nn.Parameter,
        kept: Dict[str, Any],
        values: Tensor,
        step: Step,
        rows: Rows,
        rounding: Optional[Rounding],
        group: Dict[str, Any],
    ) -> None:
        """Change rows of a parameter by :meth:`update`."""
        tensors = {name: x for name, x in kept.items() if isinstance(x, Tensor)}

        def change(weight: Tensor, grad: Tensor, state: List[Tensor]) -> None:
            if group["weight_decay"]:
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
            self.update(weight, grad, dict(zip(tensors, state)), step, group)

        table = parameter.detach()
        change_rows(table, list(tensors.values()), values, change, step, *rows, rounding)


class RuleOptimizer(RowOptimizer):
    """Base of those that apply a rule of :mod:`besskge_core.ops.rules`."""

    @abc.abstractmethod
    def rule(self, group: Mapping[str, float]) -> Rule:
        """The rule and its hyper-parameters, of a group."""

    def bytes_of_state(self) -> int:
        """What the state of all parameters takes, whether it is made already or not."""
        total = 0
        for group in self.param_groups:
            name = self.rule(group).name
            for parameter in group["params"]:
                n, width = parameter.numel(), max(parameter.shape[-1:].numel(), 1)
                per_row = int(name in PER_ROW)
                numbers = n * (len(STATES[name]) - per_row) + n // width * per_row
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                total += numbers * (torch.finfo(dtype).bits // 8)
        return total

    def init_state(self, parameter: Tensor, group: Mapping[str, float]) -> Dict[str, Tensor]:
        """What the rule keeps, in float32 or wider, at the start."""
        name, kept = self.rule(group).name, {}
        for i, part in enumerate(STATES[name]):
            per_row = name in PER_ROW and i + 1 == len(STATES[name]) and parameter.dim() > 0
            shape = (*parameter.shape[:-1], 1) if per_row else tuple(parameter.shape)
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            start = group.get("initial_accumulator_value", 0.0)
            kept[part] = torch.empty(shape, dtype=dtype, device=parameter.device)
            prefer_huge_pages(kept[part])
            kept[part].fill_(start)
        return kept

    def update(
        self,
        weight: Tensor,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: Step,
        group: Mapping[str, float],
    ) -> None:
        rule = self.rule(group)
        apply_rule(rule, weight, grad, [state[part] for part in STATES[rule.name]], step)

    def _change(
        self,
        parameter: nn.Parameter,
        kept: Dict[str, Any],
        values: Tensor,
        step: Step,
        rows: Rows,
        rounding: Optional[Rounding],
        group: Dict[str, Any],
    ) -> None:
        if type(self).update is not RuleOptimizer.update:  # a subclass has a rule of its own
            super()._change(parameter, kept, values, step, rows, rounding, group)
            return
        rule = self.rule(group)
        state = [kept[part] for part in STATES[rule.name]]
        scatter_update(parameter.detach(), state, values, rule, step, *rows, rounding)


@OPTIMIZERS.register("sgd")
class SGD(RuleOptimizer):
    """w -= lr g; with momentum b <- momentum b + g, w -= lr b, b moving when its row is touched.

    Args:
        params, lr, weight_decay, options: see :class:`RowOptimizer`.
        momentum: see the formula.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        **options: Any,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"momentum must be in [0, 1), got {momentum}")
        super().__init__(params, lr, weight_decay, momentum=momentum, **options)

    def rule(self, group: Mapping[str, float]) -> Rule:
        name = "momentum" if group["momentum"] else "sgd"
        return Rule(name, group["lr"], group["weight_decay"], group["momentum"])


@OPTIMIZERS.register("adagrad")
class Adagrad(RuleOptimizer):
    """G += g^2, w -= lr g / (sqrt(G) + eps). Duchi et al., JMLR 2011.

    Args:
        params, lr, weight_decay, options: see :class:`RowOptimizer`.
        initial_accumulator_value: G before the first step.
        eps: see the formula.
    """

    name = "adagrad"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-1,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            **options,
        )

    def rule(self, group: Mapping[str, float]) -> Rule:
        return Rule(self.name, group["lr"], group["weight_decay"], eps=group["eps"])


@OPTIMIZERS.register("rowwise_adagrad")
class RowWiseAdagrad(Adagrad):
    """Adagrad with one accumulator a row, the mean of g^2 over it: state is 1 / D as large."""

    name = "rowwise_adagrad"


@OPTIMIZERS.register("adam")
class LazyAdam(RuleOptimizer):
    """Adam (Kingma and Ba, ICLR 2015) whose moments of a row decay only when it is touched.

    The correction of the bias counts steps of the parameter, as torch's SparseAdam does.

    Args:
        params, lr, weight_decay, options: see :class:`RowOptimizer`.
        beta1, beta2: decay of the first and second moment.
        eps: added to the root of the second moment.
        betas: both, as torch has them.
    """

    name = "adam"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        betas: Optional[Tuple[float, float]] = None,
        **options: Any,
    ) -> None:
        beta1, beta2 = (beta1, beta2) if betas is None else betas
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            raise ConfigError(f"betas must be in [0, 1), got {beta1} and {beta2}")
        super().__init__(params, lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps, **options)

    def rule(self, group: Mapping[str, float]) -> Rule:
        return Rule(
            self.name, group["lr"], group["weight_decay"], group["beta1"], group["beta2"],
            group["eps"],
        )  # fmt: skip


@OPTIMIZERS.register("rowwise_adam")
class RowWiseAdam(LazyAdam):
    """Lazy Adam with one second moment a row, of the mean of g^2 over it: state is half as large."""

    name = "rowwise_adam"
