"""Random numbers that any process can draw again.

A number is addressed, not consumed: (seed, purpose, epoch, step) names an endless row of 64-bit
numbers, and the i-th of them is the same in every process, however many were drawn before. The
generator is counter-based (Philox4x64-10, Salmon et al., SC 2011, as in NumPy), so that its
counter *is* the address, and a worker may begin in the middle of a row.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Optional, Protocol

import numpy as np
from numpy.typing import NDArray

#: A Philox counter step yields this many numbers; rows are cut at multiples of it.
BLOCK = 4


class Position(NamedTuple):
    """Where a run stands: the step-th batch of an epoch, both from 0."""

    epoch: int = 0
    step: int = 0


class Purpose(enum.IntEnum):
    """What numbers are drawn for; two purposes never share numbers."""

    SHARDING = 0
    SPLIT = 1
    SHUFFLE = 2
    TRIPLES = 3
    NEGATIVES = 4
    SIDES = 5
    BUCKETS = 6


class Draws(Protocol):
    """The functions of this module that native code may serve, with their names and arguments."""

    def random_below(
        self, seed: int, purpose: Purpose, position: Position, bounds: NDArray[np.integer],
        width: int, dtype: type,
    ) -> NDArray[np.integer]: ...  # fmt: skip

    def permutation(
        self, seed: int, purpose: Purpose, position: Position, n: int
    ) -> NDArray[np.int64]: ...


#: Draws the same integers in native code, or None: `besskge_core.ops.sample` puts it here, for this
#: layer knows no torch.
native: Optional[Draws] = None


def random_bits(
    seed: int, purpose: Purpose, position: Position, n: int, start: int = 0
) -> NDArray[np.uint64]:
    """Numbers `start` to `start + n` of the row.

    Args:
        seed: any non-negative integer below 2**64.
        purpose: see :class:`Purpose`.
        position: epoch and step.
        n: how many.
        start: multiple of :data:`BLOCK`.

    Returns:
        uint64 (n,), uniform.

    Raises:
        ValueError: a negative or too large seed, or a `start` inside a block.
    """
    _check_seed(seed)
    if start % BLOCK:
        raise ValueError(f"start must be a multiple of {BLOCK}, got {start}")
    key = np.array([seed, int(purpose)], dtype=np.uint64)
    counter = np.array([start // BLOCK, position.step, position.epoch, 0], dtype=np.uint64)
    bits: NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(n)
    return bits


def below(bits: NDArray[np.uint64], bound: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Integers in `[0, bound)`, of the shape that `bits` and `bound` broadcast to.

    The bias of a remainder, bound / 2**64, is far below what any run could notice. A bound of 0
    gives 0.
    """
    divisor = np.maximum(np.asarray(bound), 1).astype(np.uint64)
    return (bits % divisor).astype(np.int64)


def random_below(
    seed: int,
    purpose: Purpose,
    position: Position,
    bounds: NDArray[np.integer],
    width: int,
    dtype: type = np.int64,
    first: int = 0,
) -> NDArray[np.integer]:
    """Integers below several bounds, which follow each other in the row.

    Args:
        seed: any non-negative integer below 2**64.
        purpose: see :class:`Purpose`.
        position: epoch and step.
        bounds: integers (G,).
        width: how many integers below each bound.
        dtype: numpy.int32 or numpy.int64.
        first: number of the first of these bounds, where a worker draws for some of them alone.

    Returns:
        (G, width): :func:`below` of the numbers from `(first + g) * padded` on, where `padded` is the width
        rounded up to a multiple of :data:`BLOCK`.

    Raises:
        ValueError: a negative or too large seed.
    """
    _check_seed(seed)
    if native is not None and first == 0:
        return native.random_below(seed, purpose, position, bounds, width, dtype)
    padded = -(-width // BLOCK) * BLOCK
    bits = random_bits(seed, purpose, position, len(bounds) * padded, first * padded)
    parts = bits.reshape(len(bounds), padded)[:, :width]
    return below(parts, bounds[:, None]).astype(dtype, copy=False)


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), of the upper 53 bits, as many as a float64 holds."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, purpose: Purpose, position: Position, n: int) -> NDArray[np.int64]:
    """int64 (n,): a permutation of 0 .. n - 1, by sorting n random numbers."""
    _check_seed(seed)
    if native is not None:
        return native.permutation(seed, purpose, position, n)
    return random_bits(seed, purpose, position, n).argsort(kind="stable")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
