"""Axis letters are bound once, and a shape that does not fit is named."""

from __future__ import annotations

import pytest
import torch

from besskge_core.errors import ShapeError
from besskge_core.shapes import match_shapes


def test_letters_are_bound_to_sizes():
    head, negative = torch.zeros(4, 12), torch.zeros(4, 1, 250)
    found = match_shapes(head=(head, "S P"), negative=(negative, "S 1 N"))
    assert found == {"S": 4, "P": 12, "N": 250}


def test_a_number_has_no_axes():
    assert match_shapes(loss=(torch.zeros(()), "")) == {}


@pytest.mark.parametrize(
    "shape, message",
    [
        ((3, 1, 250), r"negative has shape \(3, 1, 250\), expected \(S, 1, N\) with S=4, P=12$"),
        ((4, 2, 250), r"negative has shape \(4, 2, 250\), expected \(S, 1, N\) with S=4, P=12$"),
        ((4, 1), r"negative has shape \(4, 1\), expected \(S, 1, N\) with S=4, P=12$"),
    ],
)
def test_an_error_names_tensor_shape_and_bound_axes(shape, message):
    with pytest.raises(ShapeError, match=message):
        match_shapes(head=(torch.zeros(4, 12), "S P"), negative=(torch.zeros(shape), "S 1 N"))


def test_the_first_tensor_binds_nothing_yet():
    with pytest.raises(
        ShapeError, match=r"head has shape \(4,\), expected \(S, P\) with no axis bound"
    ):
        match_shapes(head=(torch.zeros(4), "S P"))


def test_a_letter_may_not_differ_within_a_tensor():
    with pytest.raises(ShapeError, match=r"x has shape \(2, 3\), expected \(S, S\)"):
        match_shapes(x=(torch.zeros(2, 3), "S S"))
