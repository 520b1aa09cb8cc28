"""What all negative samplers share."""

from __future__ import annotations

import abc
import math
from typing import Dict, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.philox import BLOCK, Position, Purpose, random_below, random_bits


class ShardedNegativeSampler(abc.ABC):
    """Base of all samplers of negative entities.

    Attributes:
        corruption_scheme: "h", "t", "ht" (heads for the first half of every bucket's triples,
            tails for the second), or "either" (each triple has its own side, which the column
            "heads_replaced" tells).
        local_sampling: a shard scores negatives of its own and none is exchanged; axis T then
            merely numbers its lists.
        flat_negative_format: one list of negatives for all triples of a shard.
        given: negatives are lists given for the triples, not random draws.
        known: true triples, to be left out of the negatives of each step; the model finds them
            and takes them out of the scores by a sparse list.
    """

    schemes: Tuple[str, ...] = ("h", "t", "ht")
    corruption_scheme: str
    local_sampling: bool = False
    flat_negative_format: bool = False
    given: bool = False
    known: Optional[KnownTriples] = None

    def __init__(self, corruption_scheme: str, seed: int) -> None:
        if corruption_scheme not in self.schemes:
            raise ConfigError(
                f"unknown corruption scheme {corruption_scheme!r}; expected one of {self.schemes}"
            )
        self.corruption_scheme = corruption_scheme
        self.seed = seed
        self._n_call = 0

    def __call__(
        self, sample_idx: NDArray[np.integer], position: Optional[Position] = None
    ) -> Dict[str, NDArray[np.generic]]:
        """Negatives of one step.

        Args:
            sample_idx: triples of the step, (M, S, S, P) or (M, S, P).
            position: where the step stands; None counts the calls of this object.

        Returns:
            "negative_entities" int32 (M, S, T, B, N), and what else the sampler gives.
        """
        if type(self).draw is ShardedNegativeSampler.draw:
            raise NotImplementedError(f"{type(self).__name__} defines neither draw nor __call__")
        if position is None:
            position = Position(0, self._n_call)
            self._n_call += 1
        return self.draw(np.asarray(sample_idx), position)

    def draw(
        self, sample_idx: NDArray[np.integer], position: Position
    ) -> Dict[str, NDArray[np.generic]]:
        """See :meth:`__call__`; a pure function of its arguments.

        A subclass defines this; one that defines `__call__(sample_idx)` alone, as in upstream
        BESS-KGE, is asked that way, and its batches are as repeatable as its own generator.
        """
        return self(sample_idx)

    def draw_hosted(
        self, sample_idx: NDArray[np.integer], position: Position, hosted: range
    ) -> Optional[Dict[str, NDArray[np.generic]]]:
        """What :meth:`draw` gives for some of the shards, on axis 1 of each array.

        Args:
            sample_idx: triples of these shards, (M, L, S, P) or (M, L, P).
            position: where the step stands.
            hosted: these shards.

        Returns:
            None where that depends on the triples of the other shards.
        """
        return None

    def n_block(self, sample_idx: NDArray[np.integer]) -> int:
        """B: blocks of negatives of one shard and micro-batch."""
        if self.flat_negative_format:
            return 2 if self.corruption_scheme == "ht" else 1
        return math.prod(sample_idx.shape[2:])

    def corrupts_heads(self, sample_idx: NDArray[np.integer]) -> NDArray[np.bool_]:
        """bool (P,): whether the p-th triple of a bucket gets its head replaced."""
        n_positive = sample_idx.shape[-1]
        if self.corruption_scheme == "ht":
            return np.arange(n_positive) < n_positive // 2
        return np.full(n_positive, self.corruption_scheme == "h")

    def _bits(
        self, shape: Tuple[int, ...], position: Position, first: int = 0
    ) -> NDArray[np.uint64]:
        """Random (M, S, ...) numbers of the source shards from `first` on; those of one lie
        together, so that a worker can draw its own alone."""
        n_micro, n_shard, *rest = shape
        width = n_micro * math.prod(rest)
        padded = -(-width // BLOCK) * BLOCK
        bits = random_bits(self.seed, Purpose.NEGATIVES, position, n_shard * padded, first * padded)
        rows = bits.reshape(n_shard, padded)[:, :width].reshape(n_shard, n_micro, *rest)
        return rows.swapaxes(0, 1)

    def _below(
        self,
        bounds: NDArray[np.integer],
        shape: Tuple[int, ...],
        position: Position,
        first: int = 0,
    ) -> NDArray[np.integer]:
        """int32 (M, S, ...): what these numbers are below the bound (S,) of each source shard."""
        n_micro, n_shard, *rest = shape
        width = n_micro * math.prod(rest)
        drawn = random_below(self.seed, Purpose.NEGATIVES, position, bounds, width, np.int32, first)
        return drawn.reshape(n_shard, n_micro, *rest).swapaxes(0, 1)


class PlaceholderNegativeSampler(ShardedNegativeSampler):
    """No negatives: for scoring against all entities."""

    flat_negative_format = True

    def __init__(self, corruption_scheme: str, seed: int = 0) -> None:
        super().__init__(corruption_scheme, seed)

    def draw(
        self, sample_idx: NDArray[np.integer], position: Position
    ) -> Dict[str, NDArray[np.generic]]:
        return {}

    def draw_hosted(
        self, sample_idx: NDArray[np.integer], position: Position, hosted: range
    ) -> Optional[Dict[str, NDArray[np.generic]]]:
        return {}
