"""The small functions that users of BESS-KGE know."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.utils import gather_indices, get_entity_filter

TRIPLES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 4)), max_size=25
).map(lambda rows: torch.tensor(rows, dtype=torch.int32).reshape(-1, 3))


@pytest.mark.parametrize("n_row, n_list", [(3, 3), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_are_taken_row_by_row(n_row, n_list, dtype):
    x, index = torch.arange(5 * n_row).view(n_row, 5), torch.tensor([[4, 0], [1, 1], [2, 3]])
    found = gather_indices(x, index[:n_list].to(dtype))
    n = max(n_row, n_list)
    expected = [[x[i % n_row, j] for j in index[i % n_list]] for i in range(n)]
    assert found.tolist() == expected


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"x has shape \(2, 5\) and index \(3, 2\), expected"):
        gather_indices(torch.zeros(2, 5), torch.zeros(3, 2, dtype=torch.int64))


@given(triples=TRIPLES, known=TRIPLES, mode=st.sampled_from(["h", "t"]))
def test_the_filter_lists_the_entities_that_complete_a_query(triples, known, mode):
    found = get_entity_filter(triples, known, mode)
    expected = sorted(
        {
            (i, kh if mode == "h" else kt)
            for i, (h, r, t) in enumerate(triples.tolist())
            for kh, kr, kt in known.tolist()
            if kr == r and (kt == t if mode == "h" else kh == h)
        }
    )
    assert found.dtype == torch.int64 and found.shape == (len(expected), 2)
    assert sorted(map(tuple, found.tolist())) == expected
    assert (found[1:, 0] >= found[:-1, 0]).all()


def test_a_filter_has_a_side():
    rows = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ConfigError, match="filter_mode must be 'h' or 't', got 'ht'"):
        get_entity_filter(rows, rows, "ht")
