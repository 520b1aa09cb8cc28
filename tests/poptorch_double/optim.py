"""Torch's optimisers, with dtypes of their state; and LAMB."""

from __future__ import annotations

from typing import Any, Dict, Iterable

import torch

FLOATS = (torch.float32, torch.float16)
#: State by the name of its dtype.
VELOCITY = {"velocity_accum_type": "momentum_buffer"}
MOMENTS = {
    "first_order_momentum_accum_type": "exp_avg",
    "second_order_momentum_accum_type": "exp_avg_sq",
}


class Optimizer:
    """What all of them keep besides torch's groups."""

    names: Dict[str, str] = MOMENTS
    #: The program that trains with it, and the state that it is to begin with.
    executor: Any = None
    given: Any = None
    ipu_state_is_dirty = False

    def state_dict(self) -> Dict[str, Any]:
        """With the state of the device, by names of its own."""
        parts = {"ipu_state": None, "ipu_param": None}
        if self.given is not None:
            parts = {name: self.given[name] for name in parts}
        if self.executor is not None and self.executor.isCompiled():
            parts = self.executor.optimizer_state()
        return {**parts, **torch.optim.Optimizer.state_dict(self)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if not ("ipu_state" in state and "ipu_param" in state):
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        torch.optim.Optimizer.load_state_dict(
            self, {k: x for k, x in state.items() if not k.startswith("ipu_")}
        )
        self.given = state

    def _keep(self, dtypes: Dict[str, Any]) -> None:
        unknown = set(dtypes) - {"accum_type", *self.names}
        if unknown:
            raise TypeError(f"unexpected arguments {sorted(unknown)}")
        for name, dtype in dtypes.items():
            if dtype is not None and dtype not in FLOATS:
                raise ValueError(f"{name} must be torch.float32 or torch.float16")
        self.state_dtypes = {
            state: dtypes[name] for name, state in self.names.items() if dtypes.get(name)
        }


def _split(options: Dict[str, Any]) -> Dict[str, Any]:
    return {name: options.pop(name) for name in list(options) if name.endswith("accum_type")}


class SGD(Optimizer, torch.optim.SGD):
    names = VELOCITY

    def __init__(self, params: Iterable[Any], lr: float, loss_scaling: float = 1.0, **options: Any):
        self._keep(_split(options))
        torch.optim.SGD.__init__(self, params, lr=lr, **options)


class Adam(Optimizer, torch.optim.Adam):
    def __init__(self, params: Iterable[Any], lr: float = 1e-3, **options: Any):
        self._keep(_split(options))
        torch.optim.Adam.__init__(self, params, lr=lr, **options)


class AdamW(Optimizer, torch.optim.AdamW):
    def __init__(self, params: Iterable[Any], lr: float = 1e-3, **options: Any):
        self._keep(_split(options))
        torch.optim.AdamW.__init__(self, params, lr=lr, **options)


class RMSprop(Optimizer, torch.optim.RMSprop):
    names = {
        "first_order_momentum_accum_type": "momentum_buffer",
        "second_order_momentum_accum_type": "square_avg",
    }

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, **options: Any):
        self._keep(_split(options))
        torch.optim.RMSprop.__init__(self, params, lr=lr, **options)


class LAMB(Optimizer, torch.optim.Optimizer):
    """Adam's direction, scaled to the norm of each variable (You et al., ICLR 2020)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ):
        self._keep(_split(options))
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        torch.optim.Optimizer.__init__(self, params, {**defaults, **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(
                        step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                    )
                state["step"] = int(state["step"]) + 1
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2)
                first = state["exp_avg"] / (1 - beta1 ** state["step"])
                second = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
                way = first / (second.sqrt() + group["eps"]) + group["weight_decay"] * p
                sizes = p.norm(), way.norm()
                ratio = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
                p -= group["lr"] * ratio * way


def twin(optimizer: torch.optim.Optimizer, groups: Any) -> torch.optim.Optimizer:
    """The same optimiser of other parameters, as torch's own class."""
    kinds = (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam, torch.optim.RMSprop)
    if isinstance(optimizer, LAMB):
        return LAMB(groups)
    for kind in kinds:
        if isinstance(optimizer, kind):
            return kind(groups, lr=1.0)
    raise TypeError(f"no optimiser {type(optimizer).__name__} on IPUs")
