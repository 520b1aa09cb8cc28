"""A regulariser penalises the rows of a batch, by the moduli of their entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import make_score

from besskge_core.errors import ConfigError
from besskge_core.regularizer import REGULARIZERS, DuraRegularizer, LpRegularizer
from besskge_core.sharding import Sharding


@pytest.fixture(params=sorted(REGULARIZERS))
def regularizer(request):
    return REGULARIZERS[request.param](0.3)


@pytest.fixture
def rows(generator):
    """Three rows (B, D) of a triple; the relation has another width."""
    return [torch.randn(4, d, generator=generator, dtype=torch.float64) for d in (5, 3, 5)]


@pytest.fixture
def score_fn():
    return make_score("complex", Sharding.create(9, 2, seed=0), 3, dim=4)


@pytest.fixture
def triples(score_fn, generator):
    """Rows of heads (B, D), relation IDs (B,) and rows of tails (B, D)."""
    head, tail = torch.randn(2, 4, 8, generator=generator, dtype=torch.float64)
    return head, torch.tensor([0, 2, 1, 0]), tail


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


def test_gradients_are_those_of_the_value(regularizer, score_fn, triples):
    head, relation, tail = triples
    inputs = head.requires_grad_(), tail.requires_grad_(), score_fn.relation_embedding
    assert torch.autograd.gradcheck(
        lambda h, t, _: regularizer.of_triples(score_fn, h, relation, t), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_have_no_gradient(regularizer, dtype):
    sharding = Sharding.create(9, 2, seed=0)
    score_fn = make_score("complex", sharding, 3, dim=4, dtype=dtype, fill=torch.zero_)
    head, tail = (torch.zeros(2, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    regularizer.of_triples(score_fn, head, torch.tensor([0, 1]), tail).sum().backward()
    found = head.grad, tail.grad, score_fn.relation_embedding.grad
    assert all((x.to_dense() == 0).all() for x in found)


def test_every_triple_has_its_own_penalty(regularizer, score_fn, triples):
    whole = regularizer.of_triples(score_fn, *triples)
    each = [regularizer.of_triples(score_fn, *(x[i : i + 1] for x in triples)) for i in range(4)]
    torch.testing.assert_close(torch.cat(each), whole)
    assert whole.shape == (4,) and (whole > 0).all()
    by_shard = [x.unflatten(0, (2, 2)) for x in triples]
    torch.testing.assert_close(regularizer.of_triples(score_fn, *by_shard), whole.view(2, 2))


def test_dura_of_complex_rows_is_the_formula_of_the_paper(score_fn, triples):
    head, relation, tail = triples
    h, t = (torch.complex(*x.chunk(2, -1)) for x in (head, tail))
    r = torch.complex(*score_fn.relation_embedding.detach()[relation].chunk(2, -1))
    expected = sum(x.abs().square().sum(-1) for x in (h * r, t, t * r.conj(), h))
    found = DuraRegularizer(0.3).of_triples(score_fn, head, relation, tail)
    torch.testing.assert_close(found, 0.3 * expected)


def test_dura_of_matrices_is_the_formula_of_the_paper():
    score_fn = make_score("rescal", Sharding.create(9, 2, seed=0), 3, dim=4)
    head, tail = torch.randn(2, 4, 4, generator=torch.manual_seed(0), dtype=torch.float64)
    relation = torch.tensor([0, 2, 1, 0])
    matrix = score_fn.relation_embedding[relation].view(4, 4, 4)
    moved = torch.einsum("bi,bij->bj", head, matrix), torch.einsum("bj,bij->bi", tail, matrix)
    expected = sum(x.square().sum(-1) for x in (head, tail, *moved))
    torch.testing.assert_close(
        DuraRegularizer(1.0).of_triples(score_fn, head, relation, tail), expected
    )


@pytest.mark.parametrize("name", ["transe", "conve"])
def test_dura_is_refused_where_scores_are_no_inner_products(name, triples):
    score_fn = make_score(name, Sharding.create(9, 2, seed=0), 3, dim=8)
    with pytest.raises(ConfigError, match="dura is for inner products of queries with entities"):
        DuraRegularizer(1.0).of_triples(score_fn, *triples)


def test_the_weight_is_a_factor(rows):
    one, two = (LpRegularizer(w)([x.square() for x in rows]) for w in (1.0, 2.0))
    torch.testing.assert_close(two, 2 * one)


def test_an_unknown_regularizer_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown regularizer 'l2'; expected one of \['dura', 'lp'\]"
    ):
        REGULARIZERS["l2"]
