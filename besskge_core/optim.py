"""Optimisers that touch only the rows of a batch.

A parameter whose gradient is sparse (a table read by :func:`besskge_core.ops.gather`) is updated
in its touched rows alone: the gradients of a row's look-ups are summed once, in a fixed order,
and then weights and state of those rows change. A step's cost therefore does not grow with the
table. A dense gradient updates the whole parameter by the same rule.

Each optimiser is one function of blocks of rows:

    update(weight (U, ...), grad (U, ...), state {name: (U, ...)}, step, group)   in place

Axes:
    U: distinct rows of a step
"""

from __future__ import annotations

import abc
import math
from typing import Any, Callable, Dict, Iterable, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.ops import RowPlan, plan_rows, sparse_rows, sum_rows
from besskge_core.registry import Registry

OPTIMIZERS: Registry[type] = Registry("optimizer")

Plans = Mapping[nn.Parameter, RowPlan]

#: Numbers of a parameter that are updated at once where all of it is: a block, its gradient and
#: its state fit in a core's cache.
BLOCK = 2**16


class RowOptimizer(torch.optim.Optimizer, abc.ABC):
    """Base of the row-wise optimisers.

    Weight decay is decoupled (Loshchilov and Hutter, ICLR 2019) and falls on touched rows only.

    Args:
        params: parameters or groups of them, as in torch.
        lr: learning rate.
        weight_decay: share of the weight, times lr, taken off a row when it is touched.
        defaults: further hyper-parameters of the subclass.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, **defaults: float
    ) -> None:
        if not (lr >= 0.0 and math.isfinite(lr)):
            raise ConfigError(f"lr must be finite and not negative, got {lr}")
        if weight_decay < 0.0:
            raise ConfigError(f"weight_decay must not be negative, got {weight_decay}")
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, **defaults))

    @abc.abstractmethod
    def init_state(self, parameter: Tensor, group: Mapping[str, float]) -> Dict[str, Tensor]:
        """State of a parameter (..., D): each (..., D), or (..., 1) if kept a row."""

    @abc.abstractmethod
    def update(
        self,
        weight: Tensor,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: int,
        group: Mapping[str, float],
    ) -> None:
        """Change a block of rows and their state in place; `step` counts from 1."""

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
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    plan = plans.get(parameter) if plans is not None else None
                    self._update_parameter(parameter, parameter.grad, plan, group)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """As in torch, but the state keeps its dtype: torch casts it to that of the parameter."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for parameter, key in zip(parameters, keys):
            for name, x in state_dict["state"].get(key, {}).items():
                if isinstance(x, Tensor):
                    self.state[parameter][name] = x.to(parameter.device, copy=True)

    def _update_parameter(
        self, parameter: nn.Parameter, grad: Tensor, plan: Optional[RowPlan], group: Dict[str, Any]
    ) -> None:
        kept: Dict[str, Any] = self.state[parameter]
        if not kept:
            kept.update(self.init_state(parameter, group), step=0)
        kept["step"] += 1
        tensors = {name: x for name, x in kept.items() if isinstance(x, Tensor)}
        wide = torch.promote_types(parameter.dtype, torch.float32)
        if not grad.is_sparse:
            self._update_whole(parameter, grad, tensors, kept["step"], group)
            return
        values, rows = grad._values(), sparse_rows(grad)
        if plan is None:
            plan = plan_rows(rows, parameter[..., 0].numel())
        grad_rows = sum_rows(values.to(wide), plan)
        table = parameter.view(-1, parameter.shape[-1])
        tables = {name: x.view(-1, x.shape[-1]) for name, x in tensors.items()}
        touched = plan.unique_rows
        weight = table.index_select(0, touched).to(wide)
        state = {name: x.index_select(0, touched) for name, x in tables.items()}
        self._decay_and_update(weight, grad_rows, state, kept["step"], group)
        table.index_copy_(0, touched, weight.to(table.dtype))
        for name, rows_of_state in state.items():
            tables[name].index_copy_(0, touched, rows_of_state)

    def _update_whole(
        self,
        parameter: nn.Parameter,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: int,
        group: Mapping[str, float],
    ) -> None:
        """Update all rows, some at a time: what is computed on the way stays in the cache."""
        wide = torch.promote_types(parameter.dtype, torch.float32)
        tensors, n_row = [parameter, grad, *state.values()], 0
        if parameter.dim() and parameter.is_contiguous():
            rows = parameter.shape[:-1].numel()
            tensors = [x.reshape(rows, x.shape[-1]) for x in tensors]
            n_row = max(BLOCK // max(parameter.shape[-1], 1), 1)
        for block in zip(*(x.split(n_row) if n_row else (x,) for x in tensors)):
            own, of_grad, of_state = block[0], block[1], dict(zip(state, block[2:]))
            weight = own.to(wide)  # the rows themselves, unless they are of half precision
            self._decay_and_update(weight, of_grad.to(wide), of_state, step, group)
            if weight is not own:
                own.copy_(weight)

    def _decay_and_update(
        self,
        weight: Tensor,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: int,
        group: Mapping[str, float],
    ) -> None:
        if group["weight_decay"]:
            weight.mul_(1.0 - group["lr"] * group["weight_decay"])
        self.update(weight, grad, state, step, group)


def _zeros_like(parameter: Tensor, per_row: bool = False, fill: float = 0.0) -> Tensor:
    """State in float32 (or wider), of the shape of the parameter, or one number a row."""
    shape = tuple(parameter.shape)
    if per_row and shape:
        shape = (*shape[:-1], 1)
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.full(shape, fill, dtype=dtype, device=parameter.device)


@OPTIMIZERS.register("sgd")
class SGD(RowOptimizer):
    """w -= lr g; with momentum b <- momentum b + g, w -= lr b, b moving when its row is touched.

    Args:
        params, lr, weight_decay: see the base class.
        momentum: see the formula.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"momentum must be in [0, 1), got {momentum}")
        super().__init__(params, lr, weight_decay, momentum=momentum)

    def init_state(self, parameter: Tensor, group: Mapping[str, float]) -> Dict[str, Tensor]:
        if not group["momentum"]:
            return {}
        return {"momentum": _zeros_like(parameter)}

    def update(
        self,
        weight: Tensor,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: int,
        group: Mapping[str, float],
    ) -> None:
        if group["momentum"]:
            grad = state["momentum"].mul_(group["momentum"]).add_(grad)
        weight.add_(grad, alpha=-group["lr"])


@OPTIMIZERS.register("adagrad")
class Adagrad(RowOptimizer):
    """G += g^2, w -= lr g / (sqrt(G) + eps). Duchi et al., JMLR 2011.

    Args:
        params, lr, weight_decay: see the base class.
        initial_accumulator_value: G before the first step.
        eps: see the formula.
    """

    per_row = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-1,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )

    def init_state(self, parameter: Tensor, group: Mapping[str, float]) -> Dict[str, Tensor]:
        start = group["initial_accumulator_value"]
        return {"sum": _zeros_like(parameter, self.per_row, fill=start)}

    def update(
        self,
        weight: Tensor,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: int,
        group: Mapping[str, float],
    ) -> None:
        if self.per_row:
            state["sum"].add_(grad.square().mean(-1, keepdim=True))
        else:
            state["sum"].addcmul_(grad, grad)
        weight.addcdiv_(grad, state["sum"].sqrt().add_(group["eps"]), value=-group["lr"])


@OPTIMIZERS.register("rowwise_adagrad")
class RowWiseAdagrad(Adagrad):
    """Adagrad with one accumulator a row, the mean of g^2 over it: state is 1 / D as large."""

    per_row = True


@OPTIMIZERS.register("adam")
class LazyAdam(RowOptimizer):
    """Adam (Kingma and Ba, ICLR 2015) whose moments of a row decay only when it is touched.

    The correction of the bias counts steps of the parameter, as torch's SparseAdam does.

    Args:
        params, lr, weight_decay: see the base class.
        beta1, beta2: decay of the first and second moment.
        eps: added to the root of the second moment.
        betas: both, as torch has them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        betas: Optional[Tuple[float, float]] = None,
    ) -> None:
        beta1, beta2 = (beta1, beta2) if betas is None else betas
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            raise ConfigError(f"betas must be in [0, 1), got {beta1} and {beta2}")
        super().__init__(params, lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps)

    def init_state(self, parameter: Tensor, group: Mapping[str, float]) -> Dict[str, Tensor]:
        return {"exp_avg": _zeros_like(parameter), "exp_avg_sq": _zeros_like(parameter)}

    def update(
        self,
        weight: Tensor,
        grad: Tensor,
        state: Dict[str, Tensor],
        step: int,
        group: Mapping[str, float],
    ) -> None:
        beta1, beta2 = group["beta1"], group["beta2"]
        first = state["exp_avg"].lerp_(grad, 1.0 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        root = (second / (1.0 - beta2**step)).sqrt_().add_(group["eps"])
        weight.addcdiv_(first, root, value=-group["lr"] / (1.0 - beta1**step))
