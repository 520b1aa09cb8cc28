"""Every score function: one triple scored three ways is one number, whatever holds its rows.

What the number is, `test_formulas` says.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from support import EXTRA, SHARDS, by_entity, make_score
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from besskge_core.embedding import initialize_entity_embedding, initialize_relation_embedding
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.regularizer import LpRegularizer
from besskge_core.scoring import (
    SCORE_FUNCTIONS,
    BoxE,
    ConvE,
    DistanceBasedScoreFunction,
    MatrixDecompositionScoreFunction,
    RotatE,
    TransE,
    TransR,
)
from besskge_core.scoring.comparators import ModulusDistance, distance_matrix
from besskge_core.scoring.initializers import init_identity, init_matrix
from besskge_core.scoring.operators import complex_multiplication, complex_rotation
from besskge_core.sharding import Sharding

B, N, DIM, N_ENTITY, N_RELATION = 5, 7, 6, 23, 4
SHARDING = Sharding.create(N_ENTITY, 3, seed=0)
NO_HEADS = {"conve"}
OWN_PARAMETERS = {"conve", "hake", "tucker"}


class OwnDistance(DistanceBasedScoreFunction):
    """TransE as someone may write it who knows upstream BESS-KGE."""

    def __init__(self, sharing, p, sharding, entity_table, relation_table):
        super().__init__(sharing, p)
        self.sharding = sharding
        self.entity_embedding = initialize_entity_embedding(sharding, entity_table)
        self.relation_embedding = initialize_relation_embedding(N_RELATION, False, relation_table)

    def score_triple(self, head_emb, relation_id, tail_emb):
        return -self.reduce_embedding(head_emb + self.relation(relation_id) - tail_emb)

    def score_heads(self, head_emb, relation_id, tail_emb):
        query = tail_emb - self.relation(relation_id)
        return -self.broadcasted_distance(query, head_emb)

    def score_tails(self, head_emb, relation_id, tail_emb):
        query = head_emb + self.relation(relation_id)
        return -self.broadcasted_distance(query, tail_emb)


class OwnProduct(MatrixDecompositionScoreFunction):
    """<h^2, r, t>, in the same manner."""

    def __init__(self, sharing, sharding, entity_table, relation_table):
        super().__init__(sharing)
        self.sharding = sharding
        self.entity_embedding = initialize_entity_embedding(sharding, entity_table)
        self.relation_embedding = initialize_relation_embedding(N_RELATION, False, relation_table)

    def score_triple(self, head_emb, relation_id, tail_emb):
        return self.reduce_embedding(head_emb**2 * self.relation(relation_id) * tail_emb)

    def score_heads(self, head_emb, relation_id, tail_emb):
        return self.broadcasted_dot_product(self.relation(relation_id) * tail_emb, head_emb**2)

    def score_tails(self, head_emb, relation_id, tail_emb):
        return self.broadcasted_dot_product(head_emb**2 * self.relation(relation_id), tail_emb)


def with_norms():
    for name in SCORE_FUNCTIONS:
        measured = "scoring_norm" in inspect.signature(SCORE_FUNCTIONS[name].__init__).parameters
        for p in (1, 2) if measured else (None,):
            yield pytest.param((name, p), id=name if p is None else f"{name}-p{p}")


OWN = [
    pytest.param(("own distance", 1), id="own-distance-p1"),
    pytest.param(("own distance", 2), id="own-distance-p2"),
    pytest.param(("own product", None), id="own-product"),
]


@pytest.fixture(params=with_norms())
def kind(request):
    return request.param


@pytest.fixture(params=[*with_norms(), *OWN])
def any_kind(request):
    """Registered score functions, and those that users write out."""
    return request.param


def make(kind, sharding=SHARDING, sharing=False, **options):
    name, p = kind
    if name in SCORE_FUNCTIONS:
        return make_score(name, sharding, N_RELATION, dim=DIM, p=p, sharing=sharing, **options)
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(n, DIM, generator=generator).double() for n in (N_ENTITY, N_RELATION)]
    if name == "own distance":
        return OwnDistance(sharing, p, sharding, *tables)
    return OwnProduct(sharing, sharding, *tables)


def fresh(kind, sharding=SHARDING, **options):
    """With the tables that it starts with."""
    name, p = kind
    if p is not None:
        options["scoring_norm"] = p
    return SCORE_FUNCTIONS[name](
        negative_sample_sharing=False, sharding=sharding, n_relation_type=4, embedding_size=DIM,
        inverse_relations=True, **EXTRA.get(name, lambda dim: {})(DIM), **options,
    )  # fmt: skip


def batch(score, dtype=torch.float64, seed=0, scale=1.0):
    """Entity rows (B, D), relation IDs (B,), entity rows (B, D)."""
    generator, width = torch.Generator().manual_seed(seed), score.entity_embedding.shape[-1]
    h, t = (scale * torch.randn(B, width, generator=generator).to(dtype) for _ in "ht")
    return h, torch.randint(N_RELATION, (B,), generator=generator), t


def candidates(score, n_block, dtype=torch.float64):
    generator, width = torch.Generator().manual_seed(7), score.entity_embedding.shape[-1]
    return torch.randn(n_block, N, width, generator=generator).to(dtype)


def sides(score):
    """Sides that it answers for, as `heads`; that it refuses the other one has a test."""
    return (False, True) if score.scores_heads else (False,)


def answers(score, heads, h, r, t, rows):
    """Scores of candidates in the place of heads, or of tails."""
    return score.score_heads(rows, r, t) if heads else score.score_tails(h, r, rows)


# -- one number --------------------------------------------------------------------------------


def test_heads_tails_and_triples_agree(any_kind):
    score = make(any_kind)
    h, r, t = batch(score)
    triples = score.score_triple(h, r, t)
    for heads in sides(score):
        rows = (h if heads else t)[None]
        assert_close(answers(score, heads, h, r, t, rows).diagonal(), triples)
    assert_close(score(h, r, t), triples)


def test_every_candidate_scores_as_its_triple_does(any_kind):
    score = make(any_kind)
    h, r, t = batch(score)
    own = candidates(score, B)
    for heads in sides(score):
        found = answers(score, heads, h, r, t, own)
        for i in range(N):
            triple = (own[:, i], r, t) if heads else (h, r, own[:, i])
            assert_close(found[:, i], score.score_triple(*triple))


def test_shared_candidates_agree_with_own_ones(any_kind):
    score = make(any_kind)
    batch_, shared = batch(score), candidates(score, 1)
    own = shared.expand(B, -1, -1)
    for heads in sides(score):
        assert_close(answers(score, heads, *batch_, shared), answers(score, heads, *batch_, own))


def test_sharing_scores_every_query_against_every_block(any_kind):
    score, alone = make(any_kind, sharing=True), make(any_kind)
    batch_, blocks = batch(score), candidates(score, B)
    for heads in sides(score):
        found = answers(score, heads, *batch_, blocks)
        assert_close(found, answers(alone, heads, *batch_, blocks.view(1, B * N, -1)))
        assert found.shape == (B, B * N)


@pytest.mark.parametrize("n_block", [1, B])
def test_each_query_may_ask_for_a_side_of_its_own(any_kind, n_block):
    score, heads = make(any_kind), torch.tensor([True, False, False, True, True])
    if not score.scores_heads:
        return  # it refuses, see below
    h, r, t = batch(score)
    entity, rows = candidates(score, B)[:, 0], candidates(score, n_block)
    known = torch.where(heads[:, None], t, h)
    mixed = score.query(known, r, heads)
    one, many = score.score_query(mixed, entity, heads), score.score_candidates(mixed, rows, heads)
    for side in (True, False):
        query = score.query(known, r, side)
        of_side = heads == side
        assert_close(one[of_side], score.score_query(query, entity, side)[of_side])
        assert_close(many[of_side], score.score_candidates(query, rows, side)[of_side])
    triples = score.score_triple(
        torch.where(heads[:, None], entity, h), r, torch.where(heads[:, None], t, entity)
    )
    assert_close(one, triples)


def test_a_query_is_scored_as_heads_and_tails_are(any_kind):
    score = make(any_kind)
    h, r, t = batch(score)
    rows = candidates(score, B)
    for heads in sides(score):
        query = score.query(t if heads else h, r, heads)
        expected = answers(score, heads, h, r, t, rows)
        assert all(len(x) == B for x in query)
        assert_close(score.score_candidates(query, rows, heads), expected)
        assert_close(score.score_query(query, rows[:, 2], heads), expected[:, 2])


@pytest.mark.parametrize(
    "n_query, n_block, n", [(0, 1, N), (0, 0, N), (B, 1, 0), (B, B, 0), (1, 1, 1)]
)
def test_no_queries_and_no_candidates_have_no_scores(any_kind, n_query, n_block, n):
    score = make(any_kind)
    h, r, t = (x[:n_query] for x in batch(score))
    rows = candidates(score, max(n_block, 1))[:n_block, :n]
    for heads in sides(score):
        assert answers(score, heads, h, r, t, rows).shape == (n_query, n)


def test_who_has_no_query_for_heads_says_so(kind):
    score = make(kind)
    assert score.scores_heads == (kind[0] not in NO_HEADS)
    if score.scores_heads:
        return
    _, r, t = batch(score)
    message = "has no query for heads; add inverse triples and corrupt tails only"
    for heads in (True, r > 1):
        with pytest.raises(NotImplementedError, match=message):
            score.query(t, r, heads)
    with pytest.raises(NotImplementedError, match=f"ConvE {message}"):
        score.score_heads(candidates(score, 1), r, t)


def test_batch_normalization_leaves_tucker_no_query_for_heads():
    score = make(("tucker", None), batch_normalization=True)
    h, r, t = batch(score)
    assert not score.scores_heads
    assert_close(score.score_tails(h, r, t[None]).diagonal(), score(h, r, t))
    with pytest.raises(NotImplementedError, match="TuckER with batch normalization has no query"):
        score.score_heads(h[None], r, t)


def test_a_subclass_that_writes_one_score_anew_is_asked_for_it():
    class Doubled(TransE):
        def score_tails(self, head_emb, relation_id, tail_emb):
            return 2 * super().score_tails(head_emb, relation_id, tail_emb)

    tables = [nn.init.normal_(torch.empty(n, DIM)).double() for n in (N_ENTITY, N_RELATION)]
    doubled, plain = (
        cls(False, 1, SHARDING, N_RELATION, DIM, *tables) for cls in (Doubled, TransE)
    )
    h, r, t = batch(plain)
    rows, heads = candidates(plain, 1), torch.tensor([True, False, False, True, False])
    for known, side, factor in ((h, False, 2), (t, True, 1)):
        found = doubled.score_candidates(doubled.query(known, r, side), rows, side)
        assert_close(
            found, factor * plain.score_candidates(plain.query(known, r, side), rows, side)
        )
    known = torch.where(heads[:, None], t, h)
    found = doubled.score_candidates(doubled.query(known, r, heads), rows, heads)
    both = doubled.score_heads(rows, r, t), doubled.score_tails(h, r, rows)
    assert_close(found, torch.where(heads[:, None], *both))


# -- tiles -------------------------------------------------------------------------------------


def with_gradients(score, heads, h, r, t, rows):
    """Scores of shared candidates, and the gradients of a sum of their squares."""
    known, rows = (x.clone().requires_grad_() for x in (t if heads is True else h, rows))
    score.zero_grad()
    found = score.score_candidates(score.query(known, r, heads), rows, heads)
    found.square().sum().backward()
    parameters = [x.grad for name, x in score.named_parameters() if name != "entity_embedding"]
    return [found.detach(), known.grad, rows.grad, *parameters]


def every_heads(score):
    return (False, True, torch.tensor([True, False] * 16)[:B]) if score.scores_heads else (False,)


@pytest.mark.parametrize("size", [1, 2 * B * DIM, 7 * B * DIM])
def test_tiles_change_neither_scores_nor_gradients(kind, size, monkeypatch):
    score = make(kind)
    batch_, rows = batch(score), candidates(score, 1)
    for heads in every_heads(score):
        whole = with_gradients(score, heads, *batch_, rows)
        monkeypatch.setattr("besskge_core.scoring.tiles.TILE_SIZE", size)
        tiled = with_gradients(score, heads, *batch_, rows)
        with torch.no_grad():
            known = batch_[2 if heads is True else 0]
            query = score.query(known, batch_[1], heads)
            assert_close(score.score_candidates(query, rows, heads), whole[0])
        monkeypatch.undo()
        assert_close(tiled, whole)


class Made(TorchDispatchMode):
    """The most numbers that a tensor holds which was made meanwhile, and all their dtypes."""

    def __init__(self):
        super().__init__()
        self.numel, self.dtypes = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in tree_flatten(made)[0]:
            if isinstance(x, torch.Tensor):
                held = x.untyped_storage().nbytes() // x.element_size()
                self.numel = max(self.numel, held)
                self.dtypes.add(x.dtype)
        return made


def largest(score, heads, n_query=32, n=400):
    generator, width = torch.Generator().manual_seed(1), score.entity_embedding.shape[-1]
    h, t, rows = (
        torch.randn(n, width, generator=generator).double() for n in (n_query, n_query, n)
    )
    if isinstance(heads, torch.Tensor):
        heads = torch.arange(n_query) % 2 == 0
    with Made() as found:
        with_gradients(score, heads, h, torch.arange(n_query) % N_RELATION, t, rows[None])
    return found.numel


def test_shared_candidates_are_never_held_once_a_query(kind, monkeypatch):
    # Upstream BESS-KGE holds B x N x D, 76800 here or more. Scores are B x N, and so is a tile.
    monkeypatch.setattr("besskge_core.scoring.tiles.TILE_SIZE", 32 * 400)
    score = make(kind)
    for heads in every_heads(score):
        assert largest(score, heads) <= 32 * 400


def test_wide_projections_are_not_held_once_a_query_either(monkeypatch):
    monkeypatch.setattr("besskge_core.scoring.tiles.TILE_SIZE", 32 * 400)
    score = make(("transr", 2), relation_size=4 * DIM)
    for heads in every_heads(score):
        assert largest(score, heads) <= 32 * 400


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nothing_is_wider_than_it_need_be(kind, dtype):
    score = make(kind, dtype=dtype)
    batch_, rows = batch(score, dtype), candidates(score, 1, dtype)
    with Made() as found:
        for heads in every_heads(score):
            allowed(lambda side=heads: with_gradients(score, side, *batch_, rows), dtype)
    assert not found.dtypes & {torch.float64, torch.complex128}


def test_the_largest_tensor_is_seen(monkeypatch):
    assert largest(make(("pairre", 1)), False) == 32 * 400 * DIM


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["triples", "shared", "own"])
def test_gradients_are_those_of_the_value(any_kind, way):
    score = make(any_kind).requires_grad_(False)
    h, r, t = (x[:2] for x in batch(score))
    relation = score.relation_embedding[r]
    learned = list(score.formula.requires_grad_().parameters()) if hasattr(score, "formula") else []
    rows = candidates(score, 1 if way == "shared" else 2)[:, :3]
    inputs = [x.clone().requires_grad_() for x in (h, relation, t, rows)]

    def value(h, relation, t, rows, *learned):
        score.relation = lambda r: relation
        if way == "triples":
            return score.score_triple(h, r, t)
        return tuple(answers(score, heads, h, r, t, rows) for heads in sides(score))

    assert torch.autograd.gradcheck(value, [*inputs, *learned])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["triples", "tails", "heads"])
@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_rows_that_are_all_alike_have_finite_gradients(kind, dtype, way, value):
    score = make(kind, fill=lambda table: table.fill_(value)).to(dtype)
    if way == "heads" and not score.scores_heads:
        return  # it refuses
    width = score.entity_embedding.shape[-1]
    h, t = (torch.full((B, width), value, dtype=dtype, requires_grad=True) for _ in "ht")
    r = torch.zeros(B, dtype=torch.long)
    ways = {
        "triples": lambda: score.score_triple(h, r, t),
        "tails": lambda: score.score_tails(h, r, t[None]),
        "heads": lambda: score.score_heads(h[None], r, t),
    }
    allowed(ways[way], dtype).sum().backward()
    found = [h.grad, t.grad, score.relation_embedding.grad]
    found += [x.grad for x in score.formula.parameters()]
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

    def values(score, h, t, rows):
        if way == "triples":
            return [score.score_triple(h, r, t)]
        return [answers(score, heads, h, r, t, rows) for heads in sides(score)]

    found = allowed(lambda: values(score, h, t, rows), dtype)
    expected = values(exact, h.double(), t.double(), rows.double())
    tolerance = 0.2 if dtype != torch.float32 else 1e-4
    for ours, exactly in zip(found, expected):
        assert ours.dtype == dtype
        assert_close(ours.double(), exactly, rtol=tolerance / 4, atol=tolerance)


# -- numbers -----------------------------------------------------------------------------------


def as_complex(x):
    re, im = np.split(x.numpy(), 2, axis=-1)
    return re + 1j * im


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


def test_sharding_changes_no_score(any_kind):
    ids = torch.arange(N_ENTITY)
    h, r, t = ids[:B], torch.arange(B) % N_RELATION, ids[-B:]
    expected = None
    for n_shard in SHARDS:
        sharding = Sharding.create(N_ENTITY, n_shard, seed=n_shard)
        moved = make(any_kind)
        moved.update_sharding(sharding)
        for score in (make(any_kind, sharding), moved):
            rows = by_entity(score)
            found = [score(rows[h], r, rows[t])]
            found += [answers(score, x, rows[h], r, rows[t], rows[None]) for x in sides(score)]
            expected = expected or found
            assert all(map(torch.equal, found, expected))


def test_a_seed_gives_the_same_tables_for_any_number_of_shards(kind):
    made = []
    for n_shard in SHARDS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            score = fresh(kind, Sharding.create(N_ENTITY, n_shard, seed=n_shard))
        learned = [x.detach() for x in score.formula.parameters()]
        made.append([by_entity(score), score.relation_embedding.detach(), *learned])
    assert all(all(map(torch.equal, other, made[0])) for other in made[1:])
    assert len(made[0][0].unique()) > N_ENTITY
    assert {x.dtype for x in made[0]} == {torch.float32}


def test_default_tables_have_the_width_that_the_score_needs(kind):
    score = fresh(kind)
    formula = score.formula
    assert score.entity_embedding.shape == (3, 8, sum(formula.widths(formula.entity_parts)))
    assert score.relation_embedding.shape == (8, sum(formula.widths(formula.relation_parts)))


def test_fresh_tables_give_scores_that_differ_and_can_be_learned(kind):
    score = fresh(kind)
    rows, r = score.entity_embedding[0, :B], torch.arange(B) % 8
    found = score.score_tails(rows, r, score.entity_embedding[1, :B][None])
    found.sum().backward()
    assert len(found.unique()) == B * B
    assert score.relation_embedding.grad[r].any(-1).all()
    assert score.entity_embedding.grad[0, :B].any(-1).all()


def test_a_stored_state_gives_the_same_scores(kind):
    score, other = make(kind), make(kind, fill=nn.init.zeros_)
    with torch.no_grad():
        for x in score.formula.state_dict().values():
            if x.is_floating_point():
                x.uniform_(0.5, 1.5)
    stored = {name: x.clone() for name, x in score.state_dict().items()}
    of_formula = {f"formula.{name}" for name in score.formula.state_dict()}
    assert set(stored) == {"entity_embedding", "relation_embedding"} | of_formula
    assert bool(of_formula) == (kind[0] in OWN_PARAMETERS)
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


def test_one_initializer_serves_all_parts(kind):
    score = fresh(kind, entity_initializer=[nn.init.ones_], relation_initializer=[nn.init.zeros_])
    assert (by_entity(score) == 1).all() and (score.relation_embedding == 0).all()


def test_one_initializer_sees_both_halves_of_complex_rows():
    # So that dividing by the width gives the scale that it gives upstream.
    widths = []

    def record(table):
        widths.append(table.shape[1])
        return nn.init.zeros_(table)

    for name in ("rotate", "complex", "pairre"):
        fresh((name, 1 if name != "complex" else None), entity_initializer=[record],
              relation_initializer=[record])  # fmt: skip
    assert widths == [2 * DIM, DIM, 2 * DIM, 2 * DIM, DIM, DIM, DIM]


def test_boxes_start_as_published_and_not_all_of_one_size():
    # Upstream BESS-KGE normalises rows that hold one size, so that all are 1.
    score = fresh(("boxe", 1))
    parts = score.formula.split(score.relation_embedding, score.formula.relation_parts)
    for part in parts[:4]:
        assert_close(part.norm(dim=-1), torch.ones(8))
    sizes = torch.cat(parts[4:])
    assert ((sizes >= 0) & (sizes < 1)).all() and len(sizes.unique()) == 16


def test_boxes_take_two_initializers_as_upstream_does():
    score = fresh(("boxe", 1), relation_initializer=[nn.init.zeros_, nn.init.ones_])
    assert (score.relation_embedding[:, : 4 * DIM] == 0).all()
    assert (score.relation_embedding[:, 4 * DIM :] == 1).all()


def test_maps_start_as_glorots():
    table = init_matrix(torch.empty(50, 400))  # of 20 x 20 matrices
    assert table.std().item() == pytest.approx(20**-0.5, rel=0.05)


def test_matrices_start_as_the_identity():
    score = TransR(False, 2, SHARDING, N_RELATION, DIM, relation_size=4)
    _, matrix = score.formula.split(score.relation_embedding, score.formula.relation_parts)
    assert torch.equal(matrix[1].view(DIM, 4), torch.eye(DIM, 4))


def test_the_table_that_was_given_is_copied():
    given = torch.randn(N_ENTITY, 4, generator=torch.Generator().manual_seed(0))
    before = given.clone()
    score = TransE(False, 1, SHARDING, 2, 4, entity_initializer=given)
    with torch.no_grad():
        score.entity_embedding.zero_()
    assert torch.equal(given, before)


# -- errors ------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones():
    message = r"unknown score function 'transf'; expected one of \['boxe', 'complex'.*did you mean 'trans'"
    with pytest.raises(ValueError, match=message):
        SCORE_FUNCTIONS["transf"]


def test_candidates_of_another_number_of_queries_are_refused(any_kind):
    score = make(any_kind)
    h, r, t = batch(score)
    for rows in (candidates(score, 2), t):
        shape = str(tuple(rows.shape)).replace("(", r"\(").replace(")", r"\)")
        message = rf"candidates have shape {shape}, expected \(1 or B, N, D\) with B=5"
        for heads in sides(score):
            with pytest.raises(ShapeError, match=message):
                answers(score, heads, h, r, t, rows)


def test_a_sharding_of_other_entities_is_refused(kind):
    with pytest.raises(ConfigError, match="new sharding is of 22 entities, the table of 23"):
        make(kind).update_sharding(Sharding.create(22, 2, seed=0))


def test_as_many_initializers_as_parts():
    zeros = nn.init.zeros_
    with pytest.raises(ConfigError, match="3 initializers for the entity table, whose row has 2 p"):
        RotatE(False, 1, SHARDING, 2, 4, entity_initializer=[zeros] * 3)
    with pytest.raises(ConfigError, match="3 initializers for the relation table, whose row has 6"):
        BoxE(False, 1, SHARDING, 2, 4, relation_initializer=[zeros] * 3)


def test_an_image_of_another_size_than_the_row_is_refused():
    message = r"embedding_size is 6, expected 1 \* 2 \* 4 = 8: input_channels \* embedding_height"
    with pytest.raises(ConfigError, match=message):
        ConvE(False, SHARDING, 2, 6, 2, 4)


def test_a_kernel_larger_than_the_image_is_refused():
    message = "kernel of 3 x 4 is larger than the image of head and relation, 4 x 3"
    with pytest.raises(ConfigError, match=message):
        ConvE(False, SHARDING, 2, 6, 2, 3, kernel_width=4)


def test_rows_that_are_no_matrices_are_refused():
    with pytest.raises(ConfigError, match="rows 7 wide are no matrices with 2 rows; give n_row"):
        init_identity(torch.empty(3, 7))
