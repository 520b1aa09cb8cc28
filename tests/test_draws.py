"""What is drawn on a device are the integers of the host, for any address."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from besskge_core import philox
from besskge_core.ops import draws
from besskge_core.ops.draws import Address, Shuffles
from besskge_core.philox import Position, Purpose

SEEDS = [0, 7, 2**63 + 12345, 2**64 - 1]


def address_of(seed, purpose, positions):
    epoch, step = torch.tensor(positions, dtype=torch.int64).T
    return Address(seed, purpose, epoch, step)


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_are_those_of_numpy(seed):
    positions = [(0, 0), (3, 1), (2**33, 2**31 + 5)]
    found = draws.random_bits(address_of(seed, Purpose.NEGATIVES, positions), 11)
    for of_step, position in zip(found, positions):
        own = philox.random_bits(seed, Purpose.NEGATIVES, Position(*position), 11)
        assert np.array_equal(of_step.numpy().view(np.uint64), own)


@pytest.mark.parametrize("width", [0, 1, 4, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_integers_below_bounds_are_those_of_the_host(seed, width):
    bounds = np.array([5, 0, 1, 2**31 - 1, 64])
    positions = [(0, 9), (2, 4)]
    found = draws.random_below(
        address_of(seed, Purpose.TRIPLES, positions), torch.from_numpy(bounds), width
    )
    own = [
        philox.random_below(seed, Purpose.TRIPLES, Position(*x), bounds, width) for x in positions
    ]
    assert np.array_equal(found.numpy(), np.stack(own))


def test_uniform_numbers_are_those_of_the_host():
    bits = draws.random_bits(address_of(3, Purpose.SIDES, [(1, 2)]), 1000)[0]
    own = philox.uniform(philox.random_bits(3, Purpose.SIDES, Position(1, 2), 1000))
    assert np.array_equal(draws.uniform(bits).numpy(), own)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("counts", [[1], [10, 0, 3, 1000, 1], [0, 0]], ids=str)
def test_shuffles_are_those_of_the_host(seed, counts):
    shuffles = Shuffles(counts, seed, torch.device("cpu"))
    first = np.cumsum(counts) - counts
    for epoch in (0, 5):
        own = [
            first[i] + philox.permutation(seed, Purpose.SHUFFLE, Position(epoch, i), n)
            for i, n in enumerate(counts)
        ]
        assert np.array_equal(shuffles.order(torch.tensor(epoch)).numpy(), np.concatenate(own))
