"""The random integers of :mod:`besskge_core.philox`, drawn where a model is trained.

They are the same integers, computed in plain torch on any device: 64-bit products wrap, and the
sign is masked off where a word must be unsigned. Nothing here waits for the device, shapes do not
depend on what is drawn, and where a row begins (epoch and step) is a tensor, so that a captured
graph draws anew at each replay.

Axes:
    W: steps drawn together      G: bounds      K: integers below each bound      T: triples
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from besskge_core.philox import BLOCK, Purpose

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)

#: Bounds must be below this, so that a remainder can be taken with signed 64-bit integers.
BOUND_LIMIT = 2**31


class Address(NamedTuple):
    """Where the rows of numbers of several steps begin.

    Attributes:
        seed: any integer in [0, 2**64).
        purpose: what is drawn for.
        epoch, step: int64, of shapes that broadcast to (W,).
    """

    seed: int
    purpose: Purpose
    epoch: Tensor
    step: Tensor


def random_blocks(address: Address, block: Tensor) -> Tensor:
    """Numbers 4 i to 4 i + 3 of a row, for each block i.

    Args:
        address: its epoch and step of shapes that broadcast with `block`.
        block: int64 (...).

    Returns:
        int64 (..., 4), the bits of unsigned 64-bit numbers.
    """
    c0, c1, c2 = torch.broadcast_tensors(block + 1, address.step, address.epoch)  # as NumPy counts
    c3 = torch.zeros_like(c0)
    for i in range(10):
        key = [
            _signed(first + i * weyl) for first, weyl in zip((address.seed, address.purpose), _WEYL)
        ]
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0
    return torch.stack([c0, c1, c2, c3], dim=-1)


def random_bits(address: Address, n: int) -> Tensor:
    """int64 (W, n): the first numbers of the row of each step; see :func:`random_blocks`."""
    block = torch.arange(-(-n // BLOCK), device=address.step.device)
    columns = address._replace(epoch=address.epoch[..., None], step=address.step[..., None])
    return random_blocks(columns, block).flatten(-2)[..., :n]


def random_below(address: Address, bounds: Tensor, width: int) -> Tensor:
    """The integers of :func:`besskge_core.philox.random_below`.

    Args:
        address: of the steps.
        bounds: int64 (G,), each below :data:`BOUND_LIMIT`.
        width: K.

    Returns:
        int64 (W, G, K).
    """
    padded = -(-width // BLOCK) * BLOCK
    bits = random_bits(address, len(bounds) * padded)
    return below(bits.unflatten(-1, (len(bounds), padded))[..., :width], bounds[:, None])


def below(bits: Tensor, bounds: Tensor) -> Tensor:
    """Remainders of unsigned 64-bit numbers, int64 (...); a bound of 0 gives 0."""
    divisor = bounds.clamp(min=1)
    high = ((bits >> 32) & _WORD) % divisor
    return ((high << 32) | (bits & _WORD)) % divisor


def uniform(bits: Tensor) -> Tensor:
    """float64 (...) in [0, 1), of the upper 53 bits."""
    return ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53


class Shuffles:
    """Permutations of the triples of each bucket, of one epoch after the other.

    Args:
        counts: triples of each bucket.
        seed: of the draws.
        device: where they are made.
    """

    def __init__(self, counts: Sequence[int], seed: int, device: torch.device) -> None:
        self.seed = seed
        sizes = np.asarray(counts, dtype=np.int64)
        n_block = -(-sizes // BLOCK)
        bucket = np.arange(len(sizes))
        first, first_block = (np.cumsum(x) - x for x in (sizes, n_block))
        place = np.arange(sizes.sum()) - first.repeat(sizes)
        block = np.arange(n_block.sum()) - first_block.repeat(n_block)

        def kept(x: NDArray[np.int64]) -> Tensor:
            return torch.tensor(x, device=device)

        #: of each block, its bucket and its place; of each triple, its number and its bucket
        self._bucket_of_block, self._block = kept(bucket.repeat(n_block)), kept(block)
        self._number = kept(BLOCK * first_block.repeat(sizes) + place)
        self._bucket = kept(bucket.repeat(sizes))

    def order(self, epoch: Tensor) -> Tensor:
        """int64 (T,): places of the triples, bucket by bucket, in the order of an epoch ().

        That of :func:`besskge_core.philox.permutation` of each bucket, with its first place added.
        """
        address = Address(self.seed, Purpose.SHUFFLE, epoch, self._bucket_of_block)
        bits = random_blocks(address, self._block).flatten()[self._number]
        # Signed integers sort as unsigned ones with the highest bit turned over.
        by_bits = torch.sort(bits ^ -(2**63), stable=True).indices
        by_bucket = torch.sort(self._bucket[by_bits], stable=True).indices
        return by_bits[by_bucket]


def _signed(x: int) -> int:
    """The signed 64-bit integer with the lowest 64 bits of x."""
    return (x + 2**63) % 2**64 - 2**63


def _product(constant: int, x: Tensor) -> Tuple[Tensor, Tensor]:
    """The upper and lower 64 bits of the unsigned 128-bit product."""
    a1, a0 = constant >> 32, constant & _WORD
    x1, x0 = (x >> 32) & _WORD, x & _WORD
    cross = x0 * a1 + ((x0 * a0 >> 32) & _WORD)
    other = x1 * a0 + (cross & _WORD)
    high = x1 * a1 + ((cross >> 32) & _WORD) + ((other >> 32) & _WORD)
    return high, x * _signed(constant)
