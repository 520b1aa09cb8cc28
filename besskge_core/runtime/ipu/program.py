"""A step as a program for an IPU: its operators, and the memory it needs, told without an IPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Dict, List, Mapping, Optional

import torch
from torch import Tensor
from torch.func import functional_call

from besskge_core.errors import ProgramError
from besskge_core.exchange import PopTorchExchange
from besskge_core.exchange.poptorch import ADDED, COMPARED
from besskge_core.ops.tracing import tracing
from besskge_core.runtime.base import Model
from besskge_core.runtime.ipu.rules import NARROW, Trace, note_exchange, trace
from besskge_core.runtime.ipu.sram import N_TILE, SRAM, TILE, memory_of_program

#: Machines that IPUs are sold in.
PODS = (4, 16, 64)


@dataclass(frozen=True)
class Program:
    """What a step is as a program of each replica.

    Attributes:
        trace: its operators.
        memory: bytes of an IPU by kind; see :func:`memory_of_program`.
        n_ipu: replicas.
    """

    trace: Trace
    memory: Dict[str, float]
    n_ipu: int

    @property
    def tile_bytes(self) -> Dict[str, int]:
        """Bytes of a tile by kind, spread evenly."""
        return {kind: -int(-n_byte // N_TILE) for kind, n_byte in self.memory.items()}

    @property
    def fits(self) -> bool:
        return sum(self.tile_bytes.values()) <= TILE

    def __str__(self) -> str:
        """A table, such as notebooks show."""
        of_tile = self.tile_bytes
        lines = [f"{self.n_ipu} IPUs ({pod_of(self.n_ipu)}), predicted memory of each:"]
        for kind, n_byte in self.memory.items():
            lines.append(
                f"  {kind:<17}{n_byte / 1e6:8.1f} MB  {of_tile[kind] / 1024:7.1f} KiB a tile"
            )
        total, share = sum(self.memory.values()), sum(of_tile.values()) / TILE
        lines.append(
            f"  {'sum':<17}{total / 1e6:8.1f} MB  {sum(of_tile.values()) / 1024:7.1f} KiB a tile,"
            f" {share:.0%} of {TILE // 1024} KiB"
        )
        names = sorted(self.trace.operators)
        lines.append(f"  {sum(self.trace.operators.values())} operators: {', '.join(names)}")
        return "\n".join(lines)


def pod_of(n_ipu: int) -> str:
    """The smallest machine that has so many IPUs."""
    return f"POD{next((n for n in PODS if n >= n_ipu), PODS[-1])}"


class _Library:
    """Stands for the operations that a device has beside torch's.

    Args:
        is_native: they are those of this project's library; else of poptorch_experimental_addons.
    """

    def __init__(self, is_native: bool) -> None:
        self.compared: Collection[str] = COMPARED if is_native else ADDED
        self.sent: List[Tensor] = []

    def all_to_all(self, blocks: Tensor) -> Tensor:
        self.sent.append(blocks)
        return blocks.clone()

    def gather(self, table: Tensor, index: Tensor) -> Optional[Tensor]:
        return None

    def pairwise(self, q: Tensor, e: Tensor, comparison: str) -> Optional[Tensor]:
        # One operator that reads rows and keeps scores; its values are not asked for.
        return -torch.cdist(q, e, p=1) if comparison in self.compared else None


def compile_program(
    model: Model,
    columns: Mapping[str, Tensor],
    optimizer: Optional[torch.optim.Optimizer] = None,
    accumulator: int = 0,
    is_native: bool = False,
) -> Program:
    """Trace the step of a replica, and plan its memory. No weights are made or changed.

    Args:
        model: its table may be on torch's meta device.
        columns: a micro-batch of one replica, (1, ...); values do not matter.
        optimizer: of the model's parameters, for training; None: the step of inference.
        accumulator: bytes of a number of accumulated gradients; 0: none.
        is_native: the device has this project's library of operations.

    Returns:
        The program, which may need more memory than there is; see :func:`check_memory`.

    Raises:
        ProgramError: the step breaks a rule of PopTorch, IPUs or static shapes.
    """
    training, table = optimizer is not None, model.score_fn.entity_embedding
    weights = {
        name: _meta(x[0] if x is table else x, training and x.requires_grad)
        for name, x in model.named_parameters()
    }
    own = next(weights[name] for name, x in model.named_parameters() if x is table)
    others = [x for x in weights.values() if x is not own]
    given = {**weights, **{name: _meta(x, False) for name, x in model.named_buffers()}}
    inputs = {
        name: torch.empty(x.shape, dtype=NARROW.get(x.dtype, x.dtype), device="meta")
        for name, x in columns.items()
    }
    library = _Library(is_native)

    def program() -> Optional[Tensor]:
        with tracing(library):
            out = functional_call(model, given, args=(), kwargs=inputs, tie_weights=True)
        loss: Optional[Tensor] = out.get("loss")
        return loss

    was_training, exchange = model.training, model.exchange
    model.train(training)
    model.exchange = PopTorchExchange(exchange.n_shard, library)
    try:
        found = trace(program, given, training)
    finally:
        model.exchange = exchange
        model.train(was_training)
    for x in library.sent:
        note_exchange(found, x)
    memory = memory_of_program(own, others, found, optimizer, accumulator)
    return Program(found, memory, exchange.n_shard)


def check_memory(program: Program) -> None:
    """Refuse a program that does not fit.

    Raises:
        ProgramError: with what takes the memory, and what would help.
    """
    if program.fits:
        return
    used = sum(program.tile_bytes.values())
    largest = max((x for x in program.memory if x != "program"), key=program.memory.__getitem__)
    fixed = ("other weights", "activations", "program")
    left = SRAM - sum(x for kind, x in program.memory.items() if kind in fixed)
    split = sum(x for kind, x in program.memory.items() if kind not in fixed) * program.n_ipu
    n_ipu = program.n_ipu
    while left > 0 and n_ipu < 2**20 and split / n_ipu > left:
        n_ipu *= 2
    more = f"{n_ipu} IPUs, " if left > 0 and n_ipu > program.n_ipu else ""
    raise ProgramError(
        f"the program needs {used / 1024:.0f} KiB a tile, and there are {TILE // 1024}; most of it"
        f" is for {largest}, {program.memory[largest] / 1e6:.0f} MB an IPU. What helps: {more}"
        "tables of float16, float16 state, an optimiser with less state, narrower rows, a smaller"
        f" batch\n{program}"
    )


def _meta(x: Tensor, requires_grad: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta", requires_grad=requires_grad)
