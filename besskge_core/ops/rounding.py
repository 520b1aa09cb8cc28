"""Stochastic rounding to bfloat16, by random numbers that have an address.

A weight in bfloat16 has 8 bits; most updates are smaller than half the last of them, and rounding
to the nearest would drop them all. Rounded up with the probability of what is cut off, the weight
moves by the update on average.

The numbers are Philox4x32-10 (Salmon et al., SC 2011) of

    key (seed, seed >> 32)      counter (16 (c // 128) + c % 16, row, step, stream)

for column c of a row: of the four words that this gives for 8 columns, number h = c // 16 % 8 is
the lower half of word h, or the upper half of word h - 4.

Axes:
    U: rows      D: width of a row
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

import torch
from torch import Tensor

from besskge_core.ops.rules import Step

_FACTORS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


class Rounding(NamedTuple):
    """Where the random numbers of a table begin.

    Attributes:
        seed: in [0, 2**63).
        stream: which of the tables, in [0, 2**32); two streams share no numbers.
    """

    seed: int
    stream: int = 0


def narrow(
    weight: Tensor, dtype: torch.dtype, rows: Tensor, step: Step, rounding: Optional[Rounding]
) -> Tensor:
    """Weights in the dtype of their table.

    Args:
        weight: (..., D).
        dtype: bfloat16 is rounded stochastically if `rounding` is given, all others to the nearest.
        rows: int64 (U,), the rows of the table that these are; U is the product of the other axes.
        step: in [0, 2**32), as `rows` are.
        rounding: the random numbers.
    """
    if dtype != torch.bfloat16 or rounding is None:
        return weight.to(dtype)
    flat = weight.reshape(len(rows), weight.shape[-1] if weight.dim() else 1).float()
    bits = flat.view(torch.int32).long() & _WORD
    rounded = (bits + random_halves(rows, flat.shape[-1], step, rounding)) >> 16
    # The sign goes around as int16 has it.
    narrowed = ((rounded & 0x7FFF) - (rounded & 0x8000)).to(torch.int16).view(torch.bfloat16)
    narrowed = torch.where(flat.isnan(), flat.to(torch.bfloat16).abs(), narrowed)
    return narrowed.view(weight.shape)


def random_halves(rows: Tensor, width: int, step: Step, rounding: Rounding) -> Tensor:
    """int64 (U, width) in [0, 2**16): the numbers of some rows (U,)."""
    n_group = -(-width // 128)
    counter = torch.arange(16 * n_group, device=rows.device)
    # Filled where the rows are: a number of the host would be copied, which waits for the device.
    at, stream = (
        x if isinstance(x, Tensor) else torch.full((), x, device=rows.device)
        for x in (step, rounding.stream)
    )
    words = philox_4x32(
        [counter, rows[:, None], at, stream],
        [rounding.seed & _WORD, rounding.seed >> 32],
    )
    of_group = torch.stack(words, dim=1).view(len(rows), 4, n_group, 16)
    halves = torch.cat([of_group & 0xFFFF, of_group >> 16], dim=1)
    return halves.transpose(1, 2).reshape(len(rows), 128 * n_group)[:, :width]


def philox_4x32(counter: List[Tensor], key: List[int]) -> List[Tensor]:
    """The four words of each counter: int64 tensors of numbers in [0, 2**32), that broadcast."""
    counter = list(torch.broadcast_tensors(*counter))
    for i in range(10):
        keys = [(key[j] + i * _KEY_STEPS[j]) & _WORD for j in range(2)]
        # 64-bit products wrap into the sign, which the mask takes off.
        first, second = (counter[2 * j] * _FACTORS[j] for j in range(2))
        counter = [
            ((second >> 32) & _WORD) ^ counter[1] ^ keys[0],
            second & _WORD,
            ((first >> 32) & _WORD) ^ counter[3] ^ keys[1],
            first & _WORD,
        ]
    return counter
