"""A regulariser penalises the rows of a batch, by the moduli of their entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from besskge_core.regularizer import REGULARIZERS, LpRegularizer


@pytest.fixture(params=sorted(REGULARIZERS))
def regularizer(request):
    return REGULARIZERS[request.param](0.3)


@pytest.fixture
def rows(generator):
    """Three rows (B, D) of a triple; the relation has another width."""
    return [torch.randn(4, d, generator=generator, dtype=torch.float64) for d in (5, 3, 5)]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.0])
def test_the_penalty_is_the_power_of_the_norm(rows, p):
    found = LpRegularizer(0.3, p)([x.square() for x in rows])
    expected = 0.3 * sum((np.abs(x.numpy()) ** p).sum(1) for x in rows)
    np.testing.assert_allclose(found.numpy(), expected)


def test_n3_of_complex_rows_takes_moduli(rows):
    re, im = rows[0], rows[2]
    found = LpRegularizer(1.0, 3.0)([re.square() + im.square()])
    expected = (np.abs(re.numpy() + 1j * im.numpy()) ** 3).sum(1)
    np.testing.assert_allclose(found.numpy(), expected)


def test_gradients_are_those_of_the_value(regularizer, rows):
    inputs = [x.requires_grad_() for x in rows]
    assert torch.autograd.gradcheck(lambda *x: regularizer([e.square() for e in x]), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_have_no_gradient(regularizer, dtype):
    rows = [torch.zeros(2, 3, dtype=dtype, requires_grad=True) for _ in range(3)]
    regularizer([x.square() for x in rows]).sum().backward()
    assert all((x.grad == 0).all() for x in rows)


def test_every_triple_has_its_own_penalty(regularizer, rows):
    whole = regularizer([x.square() for x in rows])
    each = [regularizer([x[i : i + 1].square() for x in rows]) for i in range(4)]
    torch.testing.assert_close(torch.cat(each), whole)
    assert whole.shape == (4,) and (whole > 0).all()


def test_the_weight_is_a_factor(rows):
    one, two = (LpRegularizer(w)([x.square() for x in rows]) for w in (1.0, 2.0))
    torch.testing.assert_close(two, 2 * one)


def test_an_unknown_regularizer_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown regularizer 'l2'; expected one of \['lp'\]"):
        REGULARIZERS["l2"]
