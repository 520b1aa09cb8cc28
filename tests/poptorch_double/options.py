"""How a program is run; frozen by whoever takes it."""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, Optional

import torch

from .enums import CommGroupType, OutputMode, ReductionType


class _Settings:
    """Attributes that can be set until they are frozen."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values, _frozen=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__["_frozen"]:
            raise AttributeError("Can't modify frozen Options")
        if name not in self.__dict__:
            raise AttributeError(f"Options has no attribute {name!r}")
        self.__dict__[name] = value

    def _freeze(self) -> None:
        for name, value in self.__dict__.items():
            if isinstance(value, _Settings) and name != "_owner":
                value._freeze()
        self.__dict__["_frozen"] = True

    def _set(self, name: str, value: Any) -> Any:
        setattr(self, name, value)
        return self.__dict__.get("_owner") or self


class _Training(_Settings):
    def gradientAccumulation(self, n: int) -> Any:
        return self._set("gradient_accumulation", _positive(n))

    def accumulationAndReplicationReductionType(self, reduction: ReductionType) -> Any:
        return self._set("reduction", ReductionType(reduction))


class _Precision(_Settings):
    def enableStochasticRounding(self, enabled: bool) -> Any:
        return self._set("stochastic_rounding", bool(enabled))

    def enableFloatingPointExceptions(self, enabled: bool) -> Any:
        return self._set("floating_point_exceptions", bool(enabled))

    def setPartialsType(self, dtype: torch.dtype) -> Any:
        if dtype not in (torch.half, torch.float):
            raise ValueError("partials are torch.half or torch.float")
        return self._set("partials", dtype)


class _Popart(_Settings):
    def set(self, key: str, value: Any) -> Any:
        return self._set("values", {**self.values, key: value})

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> Any:
        return self._set("patterns", dict(patterns))

    def setEngineOptions(self, values: Dict[str, Any]) -> Any:
        return self._set("engine", dict(values))


class _Distributed(_Settings):
    def disable(self) -> Any:
        return self.configureProcessId(0, 1)

    def configureProcessId(self, process: int, n: int) -> Any:
        self.processId = process
        return self._set("numProcesses", n)


def _positive(n: int) -> int:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"expected a positive integer, got {n!r}")
    return n


class Options(_Settings):
    def __init__(self) -> None:
        super().__init__(
            replication_factor=1, device_iterations=1, output_mode=OutputMode.Default,
            output_return_period=1, input_group_size=1, use_ipu_model=False, random_seed=None,
            executable_cache=None, broadcast_buffers=True, memory_proportion={},
            auto_round_num_ipus=False, progress_bar=True, log_dir=".", model_name="",
            Training=_Training(gradient_accumulation=1, reduction=ReductionType.Mean),
            Precision=_Precision(
                stochastic_rounding=None, floating_point_exceptions=None, partials=torch.float
            ),
            _Popart=_Popart(values={}, patterns={}, engine={}),
            Distributed=_Distributed(
                numProcesses=int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")),
                processId=int(os.environ.get("OMPI_COMM_WORLD_RANK", "0")),
            ),
        )  # fmt: skip
        for part in (self.Training, self.Precision, self._Popart):
            part.__dict__["_owner"] = self

    @property
    def _popart(self) -> _Popart:
        return self.__dict__["_Popart"]

    def clone(self) -> Options:
        """A copy that is not frozen."""
        made = Options()
        for name, value in self.__dict__.items():
            if isinstance(value, _Settings):
                kept = {k: copy.copy(x) for k, x in value.__dict__.items() if k[0] != "_"}
                made.__dict__[name].__dict__.update(kept)
            elif name != "_frozen":
                made.__dict__[name] = copy.copy(value)
        return made

    def replicationFactor(self, n: int) -> Options:
        return self._set("replication_factor", _positive(n))

    def deviceIterations(self, n: int) -> Options:
        return self._set("device_iterations", _positive(n))

    def inputReplicaGrouping(self, size: int, kind: CommGroupType) -> Options:
        if kind is CommGroupType.All or self.replication_factor % size:
            raise ValueError("a group size that divides the replicas, and not CommGroupType.All")
        return self._set("input_group_size", _positive(size))

    def outputMode(self, mode: OutputMode, output_return_period: Optional[int] = None) -> Options:
        if (output_return_period is not None) != (mode is OutputMode.EveryN):
            raise ValueError("a period goes with OutputMode.EveryN")
        self.output_return_period = output_return_period or 1
        return self._set("output_mode", mode)

    def useIpuModel(self, use: bool) -> Options:
        return self._set("use_ipu_model", bool(use))

    def randomSeed(self, seed: int) -> Options:
        return self._set("random_seed", int(seed))

    def enableExecutableCaching(self, path: str) -> Options:
        return self._set("executable_cache", path)

    def broadcastBuffers(self, broadcast: bool) -> Options:
        return self._set("broadcast_buffers", bool(broadcast))

    def autoRoundNumIPUs(self, enabled: bool) -> Options:
        return self._set("auto_round_num_ipus", bool(enabled))

    def showCompilationProgressBar(self, show: bool) -> Options:
        return self._set("progress_bar", bool(show))

    def setAvailableMemoryProportion(self, proportion: Dict[str, float]) -> Options:
        wrong = [ipu for ipu in proportion if ipu[:3] != "IPU" or not ipu[3:].isdigit()]
        if wrong or any(not 0.0 < x <= 1.0 for x in proportion.values()):
            raise ValueError(f"expected IPU numbers and shares of (0, 1], got {proportion}")
        return self._set("memory_proportion", dict(proportion))

    @property
    def n_micro(self) -> int:
        """Device iterations times accumulated micro-batches; this double's own."""
        return self.device_iterations * self.Training.gradient_accumulation
