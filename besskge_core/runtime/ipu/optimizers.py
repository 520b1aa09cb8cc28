"""The optimisers that PopTorch has, by name, and what is said of others."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from besskge_core.errors import ConfigError
from besskge_core.optim import LazyAdam, RowOptimizer
from besskge_core.runtime.ipu.emulated_optimizers import emulated_optimizer
from besskge_core.runtime.ipu.settings import chosen_target


class _Choice(NamedTuple):
    """An optimiser of PopTorch, and what it calls the dtypes of its state."""

    name: str
    state_dtypes: Tuple[str, ...]


_MOMENTS = ("first_order_momentum_accum_type", "second_order_momentum_accum_type")
OPTIMIZERS: Dict[str, _Choice] = {
    "sgd": _Choice("SGD", ("velocity_accum_type",)),
    "adam": _Choice("Adam", _MOMENTS),
    "adamw": _Choice("AdamW", _MOMENTS),
    "rmsprop": _Choice("RMSprop", _MOMENTS),
    "lamb": _Choice("LAMB", _MOMENTS),
}

_HAS = "PopTorch has SGD, Adam, AdamW, RMSprop and LAMB"
#: What others have that PopTorch has not, and what comes near.
INSTEAD = {
    "adagrad": "use 'rmsprop', whose mean of squares forgets, or 'adam'",
    "rowwise_adagrad": "use 'rmsprop' with float16 state, or 'adam'",
    "rowwise_adam": "use 'adam', with float16 for the first moment",
    "sparse_adam": "use 'adam', which updates all rows in every step",
}


def make_optimizer(
    name: str,
    parameters: Sequence[nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
    accumulator_dtype: torch.dtype = torch.float32,
    state_dtypes: Sequence[torch.dtype] = (),
    target: Optional[str] = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimiser of PopTorch; in emulation one of torch that does the same.

    Args:
        name: "sgd", "adam", "adamw", "rmsprop" or "lamb". Of weight decay Adam makes an L2 term in
            the gradient; AdamW's is decoupled.
        parameters: of the model.
        lr: learning rate; may be changed between steps, as by torch's schedulers.
        weight_decay: its factor.
        accumulator_dtype: of gradients that are accumulated.
        state_dtypes: float32 or float16 for each moment: the velocity of SGD; the first and the
            second moment of the others. Those left out are float32.
        target: where the program runs; see :class:`IPUSettings`.
        options: more of the optimiser, such as `momentum` or `betas`.

    Raises:
        ConfigError: PopTorch has no such optimiser, or no such dtypes.
    """
    key = name.lower().replace("-", "_")
    if key not in OPTIMIZERS:
        raise ConfigError(f"no optimiser {name!r} on IPUs; {_instead(key)}")
    choice = OPTIMIZERS[key]
    dtypes = (accumulator_dtype, *state_dtypes)
    if len(state_dtypes) > len(choice.state_dtypes) or {*dtypes} - {torch.float32, torch.float16}:
        raise ConfigError(
            f"dtypes {tuple(map(str, dtypes))} of {choice.name}'s accumulator and state, expected"
            f" torch.float32 or torch.float16 for 1 and at most {len(choice.state_dtypes)}"
        )
    if chosen_target(target) == "emulate":
        options.update(lr=lr, weight_decay=weight_decay)
        return emulated_optimizer(choice.name, parameters, state_dtypes, **options)
    import poptorch

    named = dict(zip(choice.state_dtypes, state_dtypes))
    made: torch.optim.Optimizer = getattr(poptorch.optim, choice.name)(
        parameters,
        lr=lr,
        weight_decay=weight_decay,
        accum_type=accumulator_dtype,
        **named,
        **options,
    )
    return made


def _instead(key: str) -> str:
    return f"{_HAS}; {INSTEAD[key]}" if key in INSTEAD else _HAS


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse what PopTorch has not."""
    kind, known = type(optimizer).__name__, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    if isinstance(optimizer, RowOptimizer):
        key = str(getattr(optimizer, "name", "sgd"))
        near = "'adam', whose moments decay in every step, " if type(optimizer) is LazyAdam else ""
        near = near or ("'sgd' " if key == "sgd" else "")
        advice = f"{_HAS}; use {near}of make_optimizer" if near else _instead(key)
        raise ConfigError(f"{kind} updates rows apart, which IPUs do not; {advice}")
    if not isinstance(optimizer, (*known, torch.optim.RMSprop)) and kind != "LAMB":
        key = {"SparseAdam": "sparse_adam"}.get(kind, kind.lower())
        raise ConfigError(f"no optimiser {kind} on IPUs; {_instead(key)}")
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise ConfigError(f"no amsgrad on IPUs; use {kind} without it")
    held = {id(x) for group in optimizer.param_groups for x in group["params"]}
    missing = [
        name for name, x in model.named_parameters() if x.requires_grad and id(x) not in held
    ]
    if missing:
        raise ConfigError(f"the optimiser lacks {missing}; make it of model.parameters()")


def hyper_parameters(optimizer: torch.optim.Optimizer) -> List[Dict[str, Any]]:
    return [{k: x for k, x in group.items() if k != "params"} for group in optimizer.param_groups]
