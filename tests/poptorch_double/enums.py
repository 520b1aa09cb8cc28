"""Choices that options and variables are made of."""

from __future__ import annotations

from enum import Enum


class OutputMode(Enum):
    Final, EveryN, All, Sum, Default = range(5)


class ConnectionType(Enum):
    Always, OnDemand, Never = range(3)


class ReductionType(Enum):
    Sum, Mean, NoReduction = range(3)


class MeanReductionStrategy(Enum):
    Running, Post, PostAndLoss = range(3)


class CommGroupType(Enum):
    All, Consecutive, Orthogonal, NoGrouping = range(4)


class VariableRetrievalMode(Enum):
    OnePerGroup, AllReplicas = 0, 2


class DataLoaderMode(Enum):
    Sync, Async, AsyncRebatched = range(3)


class SharingStrategy(Enum):
    SharedMemory, FileSystem, Fork, ForkServer = range(4)


class Error(RuntimeError):
    """What PopTorch refuses."""
