"""PopTorch's optimisers where PopTorch is not: those of torch, with dtypes of their state; and LAMB.

Updates are computed in float32. What they make of a float16 weight or moment is rounded to it, weights
at random if that is asked for.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Sequence, Tuple

import torch
from torch import Tensor

#: What torch calls the state whose dtypes may be chosen, in the order of the choice.
STATE: Dict[str, Tuple[str, ...]] = {
    "SGD": ("momentum_buffer",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "RMSprop": ("momentum_buffer", "square_avg"),
    "LAMB": ("exp_avg", "exp_avg_sq"),
}

#: Arguments of PopTorch's that scale what float16 cannot hold, and change nothing here.
SCALES = ("loss_scaling", "velocity_scaling", "use_combined_accum")


class LAMB(torch.optim.Optimizer):
    """Adam's direction with decoupled weight decay, as long as the variable (You et al., ICLR 2020,
    algorithm 2).

    Args:
        params: of the model; each is a variable, of the entity table each shard's rows.
        lr: learning rate.
        betas: of the two moments.
        eps: added to the root of the second one.
        weight_decay: its factor.
        bias_correction: divide moments by what they are short of in the first steps.
        max_weight_norm: no variable counts as longer.
        shards: a parameter whose first axis are shards, each a variable of its own; None: none.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        max_weight_norm: float = 65500.0,
        shards: Optional[Tensor] = None,
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=bias_correction,
            max_weight_norm=max_weight_norm,
        )  # fmt: skip
        super().__init__(params, defaults)
        self.shards = shards

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all variables that have a gradient."""
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    self._update(x, group)

    def _update(self, x: Tensor, group: Dict[str, Any]) -> None:
        state, (first, second) = self.state[x], group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(x), exp_avg_sq=torch.zeros_like(x))
        state["step"] = int(state["step"]) + 1  # of a checkpoint it is a tensor
        state["exp_avg"].mul_(first).add_(x.grad, alpha=1.0 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(x.grad, x.grad, value=1.0 - second)
        short = [
            1.0 - beta ** state["step"] if group["bias_correction"] else 1.0
            for beta in (first, second)
        ]
        root = (state["exp_avg_sq"] / short[1]).sqrt() + group["eps"]
        way = state["exp_avg"] / short[0] / root + group["weight_decay"] * x
        axes = tuple(range(1 if x is self.shards else 0, x.dim()))
        length = x.norm(dim=axes, keepdim=True).clamp(max=group["max_weight_norm"])
        of_way = way.norm(dim=axes, keepdim=True)
        ratio = torch.where((length > 0) & (of_way > 0), length / of_way, torch.ones_like(length))
        x.sub_(group["lr"] * ratio * way)


def emulated_optimizer(
    name: str,
    parameters: Sequence[Tensor],
    state_dtypes: Sequence[torch.dtype],
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimiser of PopTorch's, of torch's make.

    Args:
        name: PopTorch's, a key of :data:`STATE`.
        parameters: of the model.
        state_dtypes: of the state, in the order of :data:`STATE`; those left out are float32.
        options: arguments of the optimiser.
    """
    taken = {key: x for key, x in options.items() if key not in SCALES}
    make: Callable[..., torch.optim.Optimizer] = (
        LAMB if name == "LAMB" else getattr(torch.optim, name)
    )
    optimizer = make(parameters, **taken)
    dtypes = dict(zip(STATE[name], state_dtypes))
    vars(optimizer)["state_dtypes"] = dtypes

    def round_state(*_: Any) -> None:
        for state in optimizer.state.values():
            for kind, dtype in dtypes.items():
                if isinstance(state.get(kind), Tensor):
                    state[kind].copy_(state[kind].to(dtype))

    optimizer.register_step_post_hook(round_state)
    return optimizer


def state_bytes(optimizer: torch.optim.Optimizer, group: Dict[str, Any]) -> int:
    """Bytes of the state of a number of a parameter of this group."""
    name = next(
        x for x in (*STATE, "Optimizer") if x in {c.__name__ for c in type(optimizer).__mro__}
    )
    kinds = list(STATE.get(name, ()))
    if "momentum_buffer" in kinds and not group.get("momentum"):
        kinds.remove("momentum_buffer")
    dtypes = getattr(optimizer, "state_dtypes", {})
    sizes = [torch.finfo(dtypes.get(kind, torch.float32)).bits // 8 for kind in kinds]
    return sum(sizes) + (4 if group.get("centered") else 0)


@contextmanager
def in_float32(parameters: Sequence[Tensor], at_random: bool) -> Iterator[None]:
    """While this lasts, float16 parameters and their gradients are float32; then they are rounded.

    Args:
        parameters: with gradients.
        at_random: round up with the probability of what is cut off, as IPUs do with stochastic
            rounding; else to the nearest.
    """
    narrow = [x for x in parameters if x.dtype == torch.float16 and x.grad is not None]
    for x in narrow:
        grad, x.grad = x.grad, None
        x.data = x.data.float()
        x.grad = grad.float() if grad is not None else None
    try:
        yield
    finally:
        for x in narrow:
            x.grad = None
            x.data = _rounded(x.data) if at_random else x.data.half()


def _rounded(x: Tensor) -> Tensor:
    """float32 to float16, up or down at random."""
    cut = 2**13  # mantissas have 23 and 10 bits
    bits = x.contiguous().view(torch.int32)
    return ((bits + torch.randint_like(bits, cut)) & -cut).view(torch.float32).half()
