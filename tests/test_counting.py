"""A counting sort is a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besskge_core.counting import counting_argsort, run_starts

#: Around the borders of the 16-bit digits.
BOUNDS = [1, 2, 255, 256, 65_535, 65_536, 65_537, 1_000_000, 2**31 - 1, 2**32 + 7, 2**40]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("n_key", BOUNDS)
def test_order_is_that_of_a_stable_sort(rng, n_key, dtype):
    if n_key > np.iinfo(dtype).max:
        pytest.skip("keys do not fit")
    keys = rng.integers(n_key, size=5000).astype(dtype)
    keys[:3] = n_key - 1  # the largest key takes part
    assert (counting_argsort(keys, n_key) == keys.argsort(kind="stable")).all()


@given(st.lists(st.integers(0, 200_000), max_size=30))
def test_order_is_that_of_a_stable_sort_for_any_keys(keys):
    keys = np.array(keys, dtype=np.int64)
    assert counting_argsort(keys, 200_001).tolist() == keys.argsort(kind="stable").tolist()


def test_no_keys_have_no_order():
    assert counting_argsort(np.empty(0, np.int64), 5).tolist() == []
    assert run_starts(np.empty(0, np.int64)).tolist() == []


@given(st.lists(st.integers(0, 5), max_size=30))
def test_runs_start_where_the_key_changes(keys):
    keys = sorted(keys)
    starts = run_starts(np.array(keys, dtype=np.int64)).tolist()
    assert starts == [keys.index(key) for key in sorted(set(keys))]
