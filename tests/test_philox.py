"""A random number is addressed: the same address gives the same number, in any process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besskge_core.philox import BLOCK, Position, Purpose, below, permutation, random_bits

PLACE = Position(epoch=3, step=5)


def bits(seed=1, purpose=Purpose.TRIPLES, position=PLACE, n=64, start=0):
    return random_bits(seed, purpose, position, n, start)


def test_the_same_address_gives_the_same_numbers():
    first = bits()
    bits(seed=9)  # a draw in between
    assert bits().dtype == np.uint64 and (bits() == first).all()


def test_numbers_are_those_that_were_drawn_in_the_past():
    # Pinned: a stored run must find its batches again.
    expected = [15224735449413829813, 12846930484203017388, 13659130342373716792]
    assert bits(n=3).tolist() == expected


def test_another_process_draws_the_same_numbers():
    program = (
        "from besskge_core.philox import *;"
        "print(random_bits(1, Purpose.TRIPLES, Position(3, 5), 9).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert out.stdout.decode().strip() == str(bits(n=9).tolist())


@pytest.mark.parametrize(
    "other",
    [
        dict(seed=2), dict(seed=2**64 - 1), dict(purpose=Purpose.NEGATIVES),
        dict(position=Position(4, 5)), dict(position=Position(3, 6)), dict(position=Position(5, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_other_addresses_give_other_numbers(other):
    assert not np.isin(bits(n=1000), bits(**{"n": 1000, **other})).any()


def test_purposes_differ_from_each_other():
    rows = np.concatenate([bits(purpose=purpose) for purpose in Purpose])
    assert len(np.unique(rows)) == len(rows) == 64 * len(Purpose)


@given(st.integers(0, 50), st.integers(0, 50))
def test_a_row_can_be_entered_in_the_middle(block, n):
    start = BLOCK * block
    assert (bits(n=n, start=start) == bits(n=start + n)[start:]).all()


@given(st.integers(0, 2**40))
def test_integers_are_below_their_bound(bound):
    drawn = below(bits(), bound)
    assert drawn.dtype == np.int64 and (drawn >= 0).all() and (drawn < max(bound, 1)).all()


def test_bounds_broadcast():
    bound = np.array([[1], [2], [1000], [0]])
    drawn = below(bits(n=400).reshape(4, 100), bound)
    assert (drawn < np.maximum(bound, 1)).all()
    assert [len(np.unique(row)) > 1 for row in drawn] == [False, True, True, False]


def test_integers_are_uniform():
    counts = np.bincount(below(bits(n=60_000), 6), minlength=6)
    assert abs(counts - 10_000).max() < 5 * np.sqrt(10_000)


@given(st.integers(0, 300), st.integers(0, 2**63))
def test_a_permutation_is_one(n, seed):
    order = permutation(seed, Purpose.SHUFFLE, PLACE, n)
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_of_other_places_differ():
    a, b = (permutation(0, Purpose.SHUFFLE, Position(0, step), 50) for step in (0, 1))
    assert (a != b).any() and (a != np.arange(50)).any()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}"):
        bits(seed=seed)


def test_a_start_inside_a_block_is_refused():
    with pytest.raises(ValueError, match="start must be a multiple of 4, got 6"):
        bits(start=6)
