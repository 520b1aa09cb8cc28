"""How a program for IPUs is compiled."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Tuple, Union

import torch

from besskge_core.errors import ConfigError

#: Says where the program runs, unless the settings do.
TARGET = "BESSKGE_IPU"
TARGETS = ("hardware", "model", "emulate")

#: Says how many instances poprun has started; set by the MPI that it starts them with.
N_INSTANCE = "OMPI_COMM_WORLD_SIZE"


def chosen_target(target: Optional[str] = None) -> str:
    """Where programs run: "hardware", "model" or "emulate".

    Args:
        target: one of them; None: what the environment variable BESSKGE_IPU says, or else the best
            that is there.

    Raises:
        ConfigError: it is none of them.
    """
    chosen = target or os.environ.get(TARGET)
    if chosen is None:
        if importlib.util.find_spec("poptorch") is None:
            return "emulate"
        import poptorch

        return "hardware" if poptorch.ipuHardwareIsAvailable() else "model"
    if chosen not in TARGETS:
        raise ConfigError(
            f"the target is {chosen!r}, expected one of {TARGETS}, from the settings or from {TARGET}"
        )
    return chosen


@dataclass(frozen=True)
class IPUSettings:
    """How a program is compiled.

    Attributes:
        gradient_accumulation: micro-batches whose gradients make one update; needs one more tensor
            as large as each parameter.
        half_partials: sum matrix products up in float16, which is faster and less exact.
        stochastic_rounding: round float16 weights at random; for hardware.
        available_memory: share of an IPU's memory that products and gathers may take for a while,
            in (0, 1]; None: PopTorch's, which is 0.6.
        executable_cache: a folder for compiled programs, for hardware; it grows without bound.
        target: "hardware"; "model", the SDK's model of an IPU in software; or "emulate", this CPU
            under an IPU's rules, without SDK. None: what the environment variable BESSKGE_IPU says,
            or the best that is there.
        seed: of the device's random numbers.
        library: of native operations for PopART; None: those of poptorch_experimental_addons.
        patterns: names of compiler patterns to switch on besides the default ones in training, such
            as one of the library that removes sums over a single replica.
        independent: under poprun each of several instances runs a model of its own, on IPUs of its
            own. Without it they are refused: one model is one instance.

    Raises:
        ConfigError: values that cannot work.
    """

    gradient_accumulation: int = 1
    half_partials: bool = False
    stochastic_rounding: bool = False
    available_memory: Optional[float] = None
    executable_cache: Optional[Union[str, Path]] = None
    target: Optional[str] = None
    seed: Optional[int] = None
    library: Optional[Union[str, Path]] = None
    patterns: Tuple[str, ...] = ()
    independent: bool = False

    def __post_init__(self) -> None:
        if self.gradient_accumulation < 1:
            raise ConfigError(
                f"gradient_accumulation must be at least 1, got {self.gradient_accumulation}"
            )
        if self.available_memory is not None and not 0.0 < self.available_memory <= 1.0:
            raise ConfigError(f"available_memory must be in (0, 1], got {self.available_memory}")
        if self.target is not None or TARGET in os.environ:
            chosen_target(self.target)

    @property
    def where(self) -> str:
        """The target that is chosen."""
        return chosen_target(self.target)


def check_instances(settings: IPUSettings, n_instance: int) -> None:
    """Refuse a model over several instances of poprun.

    PopART 3.4 uploads a table that differs between replicas as the shards of this process, and
    brings it back as those of all processes (Devicex, `numReplicasReturningVariable`), so that
    weights of several instances cannot be trusted.

    Raises:
        ConfigError: there are several, and they are not independent.
    """
    if n_instance > 1 and not settings.independent:
        raise ConfigError(
            f"poprun started {n_instance} instances, but PopART keeps the shards of a table right in"
            " one process only: start one with all IPUs, --num-instances=1, or let each train a"
            " model of its own, independent=True"
        )


def updates_of(settings: IPUSettings, n_micro: int, training: bool = True) -> int:
    """Updates that a call of `n_micro` micro-batches makes; of inference, its micro-batches.

    Raises:
        ConfigError: they cannot be accumulated.
    """
    accumulated = settings.gradient_accumulation if training else 1
    if n_micro % accumulated:
        raise ConfigError(
            f"batches_per_step is {n_micro}, expected a multiple of gradient_accumulation ="
            f" {accumulated}"
        )
    return n_micro // accumulated


def make_options(settings: IPUSettings, n_shard: int, n_micro: int, training: bool) -> Any:
    """PopTorch's options of a program.

    Args:
        settings: of its compilation.
        n_shard: S, replicas.
        n_micro: M, micro-batches of a call.
        training: or else inference, which accumulates nothing.

    Returns:
        poptorch.Options, not frozen.

    Raises:
        ConfigError: micro-batches that cannot be accumulated, or several instances of poprun that
            are not independent.
    """
    import poptorch

    n_update = updates_of(settings, n_micro, training)
    options = poptorch.Options()
    check_instances(settings, options.Distributed.numProcesses)
    if settings.independent:
        options.Distributed.disable()
    options.replicationFactor(n_shard)
    options.deviceIterations(n_update)
    options.outputMode(poptorch.OutputMode.All)
    options.showCompilationProgressBar(False)
    options.Training.gradientAccumulation(n_micro // n_update)
    # Losses of replicas are means over shards: the whole is their mean.
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.Precision.setPartialsType(torch.half if settings.half_partials else torch.float)
    options.Precision.enableStochasticRounding(settings.stochastic_rounding)
    if settings.available_memory is not None:
        options.setAvailableMemoryProportion({"IPU0": settings.available_memory})
    if settings.seed is not None:
        options.randomSeed(settings.seed)
    if settings.where == "model":
        options.useIpuModel(True)
    elif settings.executable_cache is not None:  # on the model it only warns
        options.enableExecutableCaching(str(settings.executable_cache))
    if training and settings.patterns:
        options._Popart.setPatterns(dict.fromkeys(settings.patterns, True))
    return options
