"""Every score function: one triple scored three ways is one number, and that of the paper."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from support import SHARDS, by_entity, make_score
from torch.testing import assert_close

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.regularizer import LpRegularizer
from besskge_core.scoring import SCORE_FUNCTIONS, RotatE, TransE
from besskge_core.scoring.comparators import ModulusDistance, distance_matrix
from besskge_core.scoring.operators import complex_multiplication, complex_rotation
from besskge_core.sharding import Sharding

B, N, DIM, N_ENTITY, N_RELATION = 5, 7, 6, 23, 4
SHARDING = Sharding.create(N_ENTITY, 3, seed=0)


def with_norms():
    for name in SCORE_FUNCTIONS:
        measured = "scoring_norm" in inspect.signature(SCORE_FUNCTIONS[name].__init__).parameters
        for p in (1, 2) if measured else (None,):
            yield pytest.param((name, p), id=name if p is None else f"{name}-p{p}")


@pytest.fixture(params=with_norms())
def kind(request):
    return request.param


def make(kind, **options):
    name, p = kind
    return make_score(name, SHARDING, N_RELATION, dim=DIM, p=p, **options)


def batch(score, dtype=torch.float64, seed=0, scale=1.0):
    """Entity rows (B, D), relation IDs (B,), entity rows (B, D)."""
    generator, width = torch.Generator().manual_seed(seed), score.entity_embedding.shape[-1]
    h, t = (scale * torch.randn(B, width, generator=generator).to(dtype) for _ in "ht")
    return h, torch.randint(N_RELATION, (B,), generator=generator), t


def candidates(score, n_block, dtype=torch.float64):
    generator, width = torch.Generator().manual_seed(7), score.entity_embedding.shape[-1]
    return torch.randn(n_block, N, width, generator=generator).to(dtype)


# -- one number --------------------------------------------------------------------------------


def test_heads_tails_and_triples_agree(kind):
    score = make(kind)
    h, r, t = batch(score)
    triples = score.score_triple(h, r, t)
    assert_close(score.score_tails(h, r, t[None]).diagonal(), triples)
    assert_close(score.score_heads(h[None], r, t).diagonal(), triples)
    assert_close(score(h, r, t), triples)


def test_every_candidate_scores_as_its_triple_does(kind):
    score = make(kind)
    h, r, t = batch(score)
    own = candidates(score, B)
    for i in range(N):
        assert_close(score.score_tails(h, r, own)[:, i], score.score_triple(h, r, own[:, i]))
        assert_close(score.score_heads(own, r, t)[:, i], score.score_triple(own[:, i], r, t))


def test_shared_candidates_agree_with_own_ones(kind):
    score = make(kind)
    h, r, t = batch(score)
    shared = candidates(score, 1)
    own = shared.expand(B, -1, -1)
    assert_close(score.score_tails(h, r, shared), score.score_tails(h, r, own))
    assert_close(score.score_heads(shared, r, t), score.score_heads(own, r, t))


def test_sharing_scores_every_query_against_every_block(kind):
    score, blocks = make(kind, sharing=True), candidates(make(kind), B)
    h, r, t = batch(score)
    pooled = blocks.view(1, B * N, -1)
    assert_close(score.score_tails(h, r, blocks), make(kind).score_tails(h, r, pooled))
    assert_close(score.score_heads(blocks, r, t), make(kind).score_heads(pooled, r, t))
    assert score.score_tails(h, r, blocks).shape == (B, B * N)


@pytest.mark.parametrize(
    "n_query, n_block, n", [(0, 1, N), (0, 0, N), (B, 1, 0), (B, B, 0), (1, 1, 1)]
)
def test_no_queries_and_no_candidates_have_no_scores(kind, n_query, n_block, n):
    score = make(kind)
    h, r, t = (x[:n_query] for x in batch(score))
    rows = candidates(score, max(n_block, 1))[:n_block, :n]
    assert score.score_tails(h, r, rows).shape == (n_query, n)
    assert score.score_heads(rows, r, t).shape == (n_query, n)


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["triples", "shared", "own"])
def test_gradients_are_those_of_the_value(kind, way):
    score = make(kind).requires_grad_(False)
    h, r, t = (x[:2] for x in batch(score))
    rows = candidates(score, 1 if way == "shared" else 2)[:, :3]
    relation = score.relation_embedding[r]
    inputs = [x.clone().requires_grad_() for x in (h, relation, t, rows)]

    def value(h, relation, t, rows):
        score.relation = lambda r: relation
        if way == "triples":
            return score.score_triple(h, r, t)
        return score.score_tails(h, r, rows), score.score_heads(rows, r, t)

    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["triples", "tails"])
@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_rows_that_are_all_alike_have_finite_gradients(kind, dtype, way, value):
    score = make(kind, fill=lambda table: table.fill_(value)).to(dtype)
    width = score.entity_embedding.shape[-1]
    h, t = (torch.full((B, width), value, dtype=dtype, requires_grad=True) for _ in "ht")
    r = torch.zeros(B, dtype=torch.long)
    ways = {
        "triples": lambda: score.score_triple(h, r, t),
        "tails": lambda: score.score_tails(h, r, t[None]),
    }
    allowed(ways[way], dtype).sum().backward()
    found = [h.grad, t.grad, score.relation_embedding.grad]
    assert all(torch.isfinite(x).all() for x in found)


def allowed(compute, dtype):
    """What `compute` gives; the CPU of some torch has no kernel for half precision."""
    try:
        return compute()
    except RuntimeError as error:
        if dtype not in (torch.float16, torch.bfloat16) or "not implemented for" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("way", ["triples", "shared", "own"])
def test_scores_come_in_the_dtype_of_the_tables(kind, way, dtype):
    score, exact = make(kind, dtype=dtype), make(kind)
    h, r, t = batch(score, dtype)
    rows = candidates(score, B if way == "own" else 1, dtype)

    def value(score, h, t, rows):
        return score.score_triple(h, r, t) if way == "triples" else score.score_tails(h, r, rows)

    found = allowed(lambda: value(score, h, t, rows), dtype)
    expected = value(exact, h.double(), t.double(), rows.double())
    tolerance = 0.2 if dtype != torch.float32 else 1e-4
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=tolerance / 4, atol=tolerance)


# -- the formulas of the papers ----------------------------------------------------------------


def as_complex(x):
    re, im = np.split(x.numpy(), 2, axis=-1)
    return re + 1j * im


FORMULAS = {
    "transe": lambda h, r, t, p: -np.linalg.norm(h.numpy() + r.numpy() - t.numpy(), p, axis=-1),
    "rotate": lambda h, r, t, p: (
        -np.linalg.norm(np.abs(as_complex(h) * np.exp(1j * r.numpy()) - as_complex(t)), p, axis=-1)
    ),
    "distmult": lambda h, r, t, p: (h * r * t).sum(-1).numpy(),
    "complex": lambda h, r, t, p: (
        (as_complex(h) * as_complex(r) * as_complex(t).conj()).sum(-1).real
    ),
}


def test_scores_are_the_published_formula(kind):
    assert kind[0] in FORMULAS, f"give the formula of {kind[0]} in FORMULAS"
    score = make(kind)
    h, r, t = batch(score)
    expected = FORMULAS[kind[0]](h, score.relation(r).detach(), t, kind[1])
    np.testing.assert_allclose(score(h, r, t).detach().numpy(), expected, rtol=1e-12)


def test_rotate_with_the_first_norm_adds_moduli():
    # Upstream BESS-KGE adds real and imaginary parts, so that a head and a triple score differently.
    score = make(("rotate", 1))
    h, r, t = batch(score)
    turned = complex_rotation(h, score.relation(r))
    by_parts = -(turned - t).abs().sum(-1)
    assert (score(h, r, t) > by_parts).all()
    assert_close(score.score_heads(h[None], r, t).diagonal(), score(h, r, t))


def test_rotations_and_complex_products_are_those_of_complex_numbers(generator):
    v, w = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    phase = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(
        as_complex(complex_multiplication(v, w)), as_complex(v) * as_complex(w)
    )
    turned = complex_rotation(v, phase)
    np.testing.assert_allclose(as_complex(turned), as_complex(v) * np.exp(1j * phase.numpy()))
    assert_close(complex_rotation(turned, -phase), v)


@pytest.mark.parametrize("p", [1, 2])
def test_near_points_keep_their_distance(p):
    # Not by |a|^2 - 2 a b + |b|^2, which is exact to the square root of the precision.
    a = torch.full((30, 64), 100.0)
    b = a + 0.001
    expected = (b - a).double().norm(p=p, dim=-1)
    assert_close(distance_matrix(a, b, p).diagonal().double(), expected, rtol=1e-5, atol=0)
    assert_close(distance_matrix(a, b, p)[0].double(), expected, rtol=1e-5, atol=0)


def test_a_vanishing_modulus_costs_next_to_nothing():
    same = torch.ones(1, 8, dtype=torch.float64)
    assert abs(ModulusDistance(1).rowwise(same, same).item()) < 1e-12


# -- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("trainable", [True, False])
def test_another_sharding_keeps_what_an_entity_has(kind, dtype, trainable):
    score = make(kind, dtype=dtype)
    score.entity_embedding.requires_grad_(trainable)
    before = by_entity(score)
    for n_shard in SHARDS:
        score.update_sharding(Sharding.create(N_ENTITY, n_shard, seed=n_shard))
        assert torch.equal(by_entity(score), before)
        assert score.entity_embedding.dtype == dtype
        assert score.entity_embedding.requires_grad == trainable
        assert score.entity_embedding.shape[0] == score.sharding.n_shard == n_shard


def test_a_seed_gives_the_same_tables_for_any_number_of_shards(kind):
    tables = []
    for n_shard in SHARDS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            options = dict(negative_sample_sharing=False, n_relation_type=4, embedding_size=DIM)
            if kind[1] is not None:
                options["scoring_norm"] = kind[1]
            sharding = Sharding.create(N_ENTITY, n_shard, seed=n_shard)
            score = SCORE_FUNCTIONS[kind[0]](sharding=sharding, **options)
        tables.append((by_entity(score), score.relation_embedding.detach()))
    for entities, relations in tables[1:]:
        assert torch.equal(entities, tables[0][0]) and torch.equal(relations, tables[0][1])
    assert len(tables[0][0].unique()) > N_ENTITY and tables[0][0].dtype == torch.float32


def test_default_tables_have_the_width_that_the_score_needs(kind):
    options = dict(negative_sample_sharing=False, n_relation_type=4, embedding_size=DIM)
    if kind[1] is not None:
        options["scoring_norm"] = kind[1]
    score = SCORE_FUNCTIONS[kind[0]](sharding=SHARDING, inverse_relations=True, **options)
    formula = score.formula
    assert score.entity_embedding.shape == (3, 8, sum(formula.widths(formula.entity_parts)))
    assert score.relation_embedding.shape == (8, sum(formula.widths(formula.relation_parts)))


def test_a_stored_state_gives_the_same_scores(kind):
    score, other = make(kind), make(kind, fill=torch.nn.init.zeros_)
    stored = {name: x.clone() for name, x in score.state_dict().items()}
    assert sorted(stored) == ["entity_embedding", "relation_embedding"]
    other.load_state_dict(stored)
    h, r, t = batch(score)
    assert torch.equal(other(h, r, t), score(h, r, t))
    assert torch.equal(by_entity(other), by_entity(score))


def test_relations_are_looked_up_by_any_integers():
    score = make(("transe", 1))
    ids = torch.tensor([[3, 0], [1, 1]])
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(score.relation(ids.to(dtype)), score.relation_embedding[ids])


def test_squared_moduli_count_a_complex_entry_once(kind):
    score = make(kind)
    h, r, t = batch(score)
    heads, relations, tails = score.squared_moduli(h, r, t)
    expected = np.abs(as_complex(h)) ** 2 if kind[0] in ("complex", "rotate") else h.numpy() ** 2
    np.testing.assert_allclose(heads.numpy(), expected)
    row = score.relation(r).detach()
    expected = np.abs(as_complex(row)) ** 2 if kind[0] == "complex" else row.numpy() ** 2
    np.testing.assert_allclose(relations.detach().numpy(), expected)
    assert LpRegularizer(1.0)((heads, relations, tails)).shape == (B,)


def test_the_table_that_was_given_is_copied():
    given = torch.randn(N_ENTITY, 4, generator=torch.Generator().manual_seed(0))
    before = given.clone()
    score = TransE(False, 1, SHARDING, 2, 4, entity_initializer=given)
    with torch.no_grad():
        score.entity_embedding.zero_()
    assert torch.equal(given, before)


# -- errors ------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones():
    message = r"unknown score function 'transx'; expected one of \['complex'.*did you mean 'transe'"
    with pytest.raises(ValueError, match=message):
        SCORE_FUNCTIONS["transx"]


def test_candidates_of_another_number_of_queries_are_refused(kind):
    score = make(kind)
    h, r, t = batch(score)
    for rows in (candidates(score, 2), t):
        shape = str(tuple(rows.shape)).replace("(", r"\(").replace(")", r"\)")
        message = rf"candidates have shape {shape}, expected \(1 or B, N, D\) with B=5"
        with pytest.raises(ShapeError, match=message):
            score.score_tails(h, r, rows)
        with pytest.raises(ShapeError, match=message):
            score.score_heads(rows, r, t)


def test_a_sharding_of_other_entities_is_refused(kind):
    with pytest.raises(ConfigError, match="new sharding is of 22 entities, the table of 23"):
        make(kind).update_sharding(Sharding.create(22, 2, seed=0))


def test_as_many_initializers_as_parts():
    with pytest.raises(ConfigError, match="1 initializers for the entity table, whose row has 2 p"):
        RotatE(False, 1, SHARDING, 2, 4, entity_initializer=[torch.nn.init.zeros_])
