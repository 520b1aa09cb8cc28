"""What a program needs of an IPU's memory, all of which is SRAM beside the tiles.

Gradients and updates are of whole tables, as PopTorch knows no others. The share of code and
temporary memory is fitted to the entities that BESS-KGE is published to hold
(:data:`PUBLISHED_CAPACITIES`), which the rest then gives within 11 %.
"""

from __future__ import annotations

import math
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.runtime.ipu.emulated_optimizers import state_bytes
from besskge_core.runtime.ipu.rules import Trace

#: Of a GC200 and of a Bow: tiles, and bytes beside each.
N_TILE, TILE = 1472, 624 * 1024

#: Bytes of an IPU.
SRAM = N_TILE * TILE

#: Bytes that code, vertices and temporary memory take, fitted.
PROGRAM = 230_600_000


class Capacity(NamedTuple):
    """Entities that fit, as published for BESS-KGE on IPUs, with weights of 16 bits.

    Attributes:
        width: numbers of an entity.
        state: bytes of the optimiser's state a number: 4 of SGD's momentum, or of Adam 2 of the
            first and 4 of the second moment.
        accumulator: bytes of the sum of gradients a number; 0 without gradient accumulation.
        entities: chips to entities.
    """

    width: int
    state: int
    accumulator: int
    entities: Dict[int, float]


#: From the README of BESS-KGE: estimates, which shrink with batch and negatives.
PUBLISHED_CAPACITIES: Tuple[Capacity, ...] = (
    Capacity(100, 4, 0, {4: 3.2e6, 16: 13e6}),
    Capacity(128, 6, 0, {4: 2.4e6, 16: 9.9e6}),
    Capacity(256, 4, 4, {4: 0.9e6, 16: 3.5e6}),
    Capacity(256, 6, 0, {4: 1.2e6, 16: 4.8e6}),
    Capacity(512, 6, 4, {4: 0.375e6, 16: 1.5e6}),
)


def sram_capacity(n_chip: int, width: int, state: int, accumulator: int) -> int:
    """Entities whose table, state, gradient and accumulator fill the SRAM of so many chips.

    A number of the table takes 2 bytes, and so does that of its gradient.

    Args:
        n_chip: shards, one a chip.
        width, state, accumulator: see :class:`Capacity`.
    """
    return n_chip * math.floor((SRAM - PROGRAM) / (width * (2 + 2 + state + accumulator)))


def memory_of_program(
    table: Tensor,
    others: List[Tensor],
    trace: Trace,
    optimizer: Optional[torch.optim.Optimizer],
    accumulator: int,
) -> Dict[str, float]:
    """Bytes of an IPU by kind.

    Args:
        table: (E, D), of a shard.
        others: weights that every replica has.
        trace: of the step.
        optimizer: in training.
        accumulator: bytes of a number of accumulated gradients; 0: none are accumulated.

    Returns:
        Bytes of the "entity table", "other weights", "gradients" with what accumulates them,
        "optimizer state", "activations": what the backward pass needs and the largest operator;
        "exchange buffers": what is sent and received; "program".
    """
    needed = {
        "entity table": float(table.numel() * table.element_size()),
        "other weights": float(sum(x.numel() * x.element_size() for x in others)),
    }
    if optimizer is not None:
        numbers = [x for x in (table, *others) if x.requires_grad]
        needed["gradients"] = float(
            sum(x.numel() * (x.element_size() + accumulator) for x in numbers)
        )
        of_number = max(state_bytes(optimizer, group) for group in optimizer.param_groups)
        needed["optimizer state"] = float(sum(x.numel() for x in numbers) * of_number)
    needed["activations"] = float(trace.kept + trace.largest)
    needed["exchange buffers"] = 2.0 * trace.exchanged
    needed["program"] = float(PROGRAM)
    return needed
