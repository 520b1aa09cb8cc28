"""The formulas of the papers, stated again a triple and an entry at a time in plain Python.

What all score functions have in common, `test_scoring` says.
"""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from support import EXTRA, make_score
from torch.testing import assert_close

from besskge_core.scoring import SCORE_FUNCTIONS, QuatE
from besskge_core.scoring.operators import complex_rotation
from besskge_core.sharding import Sharding

B, DIM, N_RELATION = 5, 6, 4
SHARDING = Sharding.create(23, 3, seed=0)
D = range(DIM)


def p_norm(xs, p):
    return sum(abs(x) ** p for x in xs) ** (1 / p)


def parts(row, n):
    """n parts, and what is left of the row."""
    assert len(row) >= n * DIM
    return [row[i * DIM : (i + 1) * DIM] for i in range(n)] + [row[n * DIM :]]


def unit(x):
    return x / math.sqrt(sum(x * x))


def shortened(x, p):
    return x / max(1.0, p_norm(x, p))


def complex_numbers(row):
    re, im, _ = parts(row, 2)
    return [complex(re[i], im[i]) for i in D]


# Each is given rows h, r, t of one triple, the p of the norm, and what else the test set.


def transe(h, r, t, p, **_):
    return -p_norm([h[i] + r[i] - t[i] for i in D], p)


def rotate(h, r, t, p, **_):
    h, t = complex_numbers(h), complex_numbers(t)
    return -p_norm([abs(h[i] * complex(math.cos(r[i]), math.sin(r[i])) - t[i]) for i in D], p)


def toruse(h, r, t, p, **_):
    ways = [(h[i] + r[i] - t[i]) % 1.0 for i in D]
    return -p_norm([min(x, 1.0 - x) for x in ways], p)


def pairre(h, r, t, p, normalize_entities=True, **_):
    r_h, r_t, _ = parts(r, 2)
    h, t = (unit(h), unit(t)) if normalize_entities else (h, t)
    return -p_norm(h * r_h - t * r_t, p)


def triplere(h, r, t, p, normalize_entities=True, u=0.0, **_):
    r_h, r_m, r_t, _ = parts(r, 3)
    h, t = (unit(h), unit(t)) if normalize_entities else (h, t)
    return -p_norm([h[i] * (r_h[i] + u) - t[i] * (r_t[i] + u) + r_m[i] for i in D], p)


def lineare(h, r, t, p, **_):
    w_h, b, w_t, _ = parts(r, 3)
    return -p_norm([w_h[i] * h[i] + b[i] - w_t[i] * t[i] for i in D], p)


def mure(h, r, t, **_):
    diagonal, moved, _ = parts(r, 2)
    square = sum((diagonal[i] * h[i] - (t[i] + moved[i])) ** 2 for i in D)
    return -square + h[DIM] + t[DIM + 1]


def interht(h, r, t, p, normalize_entities=True, offset=1.0, **_):
    (h, h_aux, _), (t, t_aux, _) = parts(h, 2), parts(t, 2)
    if normalize_entities:
        h, h_aux, t, t_aux = map(unit, (h, h_aux, t, t_aux))
    return -p_norm(h * (t_aux + offset) - t * (h_aux + offset) + r, p)


def trans(h, r, t, p, normalize_entities=True, offset=1.0, **_):
    (h, h_tilde, _), (t, t_tilde, _), (r, bar, hat, _) = parts(h, 2), parts(t, 2), parts(r, 3)
    if normalize_entities:
        h, h_tilde, t, t_tilde = map(unit, (h, h_tilde, t, t_tilde))
    moved = [
        h[i] * (t_tilde[i] + offset) + bar[i] * h[i]
        + r[i]
        - t[i] * (h_tilde[i] + offset) + hat[i] * t[i]
        for i in D
    ]  # fmt: skip
    return -p_norm(moved, p)


def transh(h, r, t, p, **_):
    w, d, _ = parts(r, 2)
    w = unit(w)
    on_plane = [x - sum(w * x) * w for x in (h, t)]
    return -p_norm(on_plane[0] + d - on_plane[1], p)


def transr(h, r, t, p, relation_size=DIM, **_):
    moved, matrix = r[:relation_size], r[relation_size:].reshape(DIM, relation_size)
    mapped = []
    for x in (h, t):
        row = [sum(x[i] * matrix[i, j] for i in D) for j in range(relation_size)]
        mapped.append(shortened(np.array(row), p))
    return -p_norm(mapped[0] + moved - mapped[1], p)


def transd(h, r, t, p, relation_size=DIM, **_):
    moved, r_p = r[:relation_size], r[relation_size:]
    mapped = []
    for row in (h, t):
        x, x_p, _ = parts(row, 2)
        matrix = np.outer(r_p, x_p) + np.eye(relation_size, DIM)
        mapped.append(shortened(matrix @ x, 2))
    return -p_norm(mapped[0] + moved - mapped[1], p)


def boxe(h, r, t, p, apply_tanh=True, dist_func_per_dim=True, **_):
    (h, bump_of_h, _), (t, bump_of_t, _) = parts(h, 2), parts(t, 2)
    *boxes, sizes = parts(r, 4)
    total = 0.0
    for x, c, w, s in zip((h + bump_of_t, t + bump_of_h), boxes[:2], boxes[2:], sizes):
        mean = np.prod(np.abs(w)) ** (1 / DIM)
        w = np.abs(w) / mean * (s + 1 if s > 0 else math.exp(s))
        low, high = c - w / 2, c + w / 2
        if apply_tanh:
            x, low, high = np.tanh(x), np.tanh(low), np.tanh(high)
        inside = [low[i] <= x[i] <= high[i] for i in D]
        if not dist_func_per_dim:
            inside = [all(inside)] * DIM
        distance = []
        for i in D:
            off, wide = abs(x[i] - (low[i] + high[i]) / 2), high[i] - low[i] + 1
            kappa = 0.5 * (wide - 1) * (wide - 1 / wide)
            distance.append(off / wide if inside[i] else off * wide - kappa)
        total += p_norm(distance, p)
    return -total


def hake(h, r, t, modulus_weight=1.0, phase_weight=0.5, **_):
    (h_p, h_m, _), (t_p, t_m, _), (r_p, r_m, bias, _) = parts(h, 2), parts(t, 2), parts(r, 3)
    modulus = []
    for i in D:
        m = abs(r_m[i])
        b = min(max(bias[i], -m), 1.0)
        modulus.append(h_m[i] * m + (h_m[i] + t_m[i]) * b - t_m[i])
    phase = [math.sin((h_p[i] + r_p[i] - t_p[i]) / 2) for i in D]
    return -modulus_weight * p_norm(modulus, 2) - phase_weight * p_norm(phase, 1)


def distmult(h, r, t, **_):
    return sum(h[i] * r[i] * t[i] for i in D)


def complex_(h, r, t, **_):
    h, r, t = map(complex_numbers, (h, r, t))
    return sum(h[i] * r[i] * t[i].conjugate() for i in D).real


def cp(h, r, t, **_):
    return sum(h[i] * r[i] * t[DIM + i] for i in D)


def simple(h, r, t, **_):
    forth = sum(h[i] * r[i] * t[DIM + i] for i in D)
    back = sum(t[i] * r[DIM + i] * h[DIM + i] for i in D)
    return (forth + back) / 2


def hole(h, r, t, **_):
    return sum(r[k] * sum(h[i] * t[(i + k) % DIM] for i in D) for k in D)


def times(a, b):
    """Of quaternions, as (1, i, j, k)."""
    table = [[(0, 1), (1, 1), (2, 1), (3, 1)], [(1, 1), (0, -1), (3, 1), (2, -1)],
             [(2, 1), (3, -1), (0, -1), (1, 1)], [(3, 1), (2, 1), (1, -1), (0, -1)]]  # fmt: skip
    product = [0.0] * 4
    for m in range(4):
        for n in range(4):
            where, sign = table[m][n]
            product[where] += sign * a[m] * b[n]
    return np.array(product)


def quate(h, r, t, **_):
    h, r, t = (np.array(parts(x, 4)[:4]).T for x in (h, r, t))
    return sum(times(h[i], unit(r[i])) @ t[i] for i in D)


def rescal(h, r, t, **_):
    return sum(h[i] * r[i * DIM + j] * t[j] for i in D for j in D)


def tucker(h, r, t, state, **_):
    core = state["operator.core"]
    return sum(
        core[k, i, j] * r[k] * h[i] * t[j] for k in range(len(r)) for i in D for j in D
    )  # fmt: skip


def conve(h, r, t, state, embedding_height, embedding_width, input_channels=1, **_):
    weights = list(state.items())

    def layer():
        return weights.pop(0)[1]

    def normalized(x):  # over axis 0
        if len(state) == 4:
            return x
        scale, shift, mean, variance, _ = (layer() for _ in range(5))
        by_channel = [
            (x[c] - mean[c]) / math.sqrt(variance[c] + 1e-5) * scale[c] + shift[c]
            for c in range(len(x))
        ]
        return np.array(by_channel)

    shape = (input_channels, embedding_height, embedding_width)
    image = normalized(np.concatenate([h[:DIM].reshape(shape), r.reshape(shape)], axis=1))
    kernel, bias = layer(), layer()
    _, _, high, wide = kernel.shape
    maps = [
        [
            [
                sum((image[:, y : y + high, x : x + wide] * one).ravel()) + bias[i]
                for x in range(image.shape[2] - wide + 1)
            ]
            for y in range(image.shape[1] - high + 1)
        ]
        for i, one in enumerate(kernel)
    ]
    features = np.maximum(normalized(np.array(maps)), 0.0).ravel()
    matrix, bias = layer(), layer()
    query = np.maximum(normalized(matrix @ features + bias), 0.0)
    assert not weights
    return sum(query[i] * t[i] for i in D) + t[DIM]


FORMULAS = {name: globals()[name if name != "complex" else "complex_"] for name in SCORE_FUNCTIONS}
OPTIONS = [
    *((name, {}) for name in SCORE_FUNCTIONS),
    ("pairre", dict(normalize_entities=False)),
    ("triplere", dict(normalize_entities=False, u=1.5)),
    ("interht", dict(normalize_entities=False, offset=0.3)),
    ("trans", dict(normalize_entities=False, offset=0.3)),
    ("transr", dict(relation_size=4)),
    ("transr", dict(relation_size=9)),
    ("transd", dict(relation_size=4)),
    ("transd", dict(relation_size=9)),
    ("boxe", dict(apply_tanh=False)),
    ("boxe", dict(dist_func_per_dim=False)),
    ("hake", dict(modulus_weight=0.25, phase_weight=2.0)),
    ("tucker", dict(relation_size=3)),
    ("conve", dict(batch_normalization=False)),
    ("conve", dict(input_channels=3, embedding_height=1, embedding_width=2)),
]


def with_norms():
    for name, options in OPTIONS:
        measured = "scoring_norm" in inspect.signature(SCORE_FUNCTIONS[name]).parameters
        for p in (1, 2, 3) if measured else (0,):
            yield name, options, p


@pytest.mark.parametrize("name, options, p", list(with_norms()), ids=lambda x: str(x).strip("{}"))
def test_scores_are_the_published_formula(name, options, p):
    options = {**EXTRA.get(name, lambda dim: {})(DIM), **options}
    score = make_score(name, SHARDING, N_RELATION, dim=DIM, p=p, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for x in score.formula.buffers():
            if x.is_floating_point():  # of batch normalization
                x.uniform_(0.5, 1.5, generator=generator)
    width = score.entity_embedding.shape[-1]
    # Small rows are inside of boxes and of unit spheres, large ones outside.
    size = torch.tensor([[0.1], [0.5], [1.0], [1.0], [3.0]])
    h, t = (size * torch.randn(B, width, generator=generator).double() for _ in "ht")
    r = torch.arange(B) % N_RELATION
    state = {key: x.detach().numpy() for key, x in score.formula.state_dict().items()}
    rows = [h.numpy(), score.relation(r).detach().numpy(), t.numpy()]
    expected = [FORMULAS[name](*row, p=p, state=state, **options) for row in zip(*rows)]
    np.testing.assert_allclose(score(h, r, t).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_every_paper_has_a_statement_here():
    assert len(list(SCORE_FUNCTIONS)) == len(FORMULAS) == 23


# -- where others differ -----------------------------------------------------------------------


def of_rows(name, h, r, t, dim, **options):
    """The score of one triple whose rows are given."""
    score = make_score(name, SHARDING, 1, dim=dim, relation_initializer=row(r), **options)
    return score(row(h), torch.tensor([0]), row(t)).item()


def row(values):
    return torch.tensor([values], dtype=torch.float64)


def test_rotate_with_the_first_norm_adds_moduli():
    # Upstream BESS-KGE adds real and imaginary parts, so that a head and a triple score differently.
    score = make_score("rotate", SHARDING, N_RELATION, dim=DIM, p=1)
    generator = torch.Generator().manual_seed(0)
    h, t = (torch.randn(B, 2 * DIM, generator=generator).double() for _ in "ht")
    r = torch.arange(B) % N_RELATION
    turned = complex_rotation(h, score.relation(r))
    by_parts = -(turned - t).abs().sum(-1)
    assert (score(h, r, t) > by_parts).all()
    assert_close(score.score_heads(h[None], r, t).diagonal(), score(h, r, t))


def test_turning_both_entities_changes_no_score_of_rotate():
    h, t, angle = [1.0, 0.0], [0.0, 2.0], 0.7
    turn = complex(math.cos(angle), math.sin(angle))
    turned = [[(complex(*x) * turn).real, (complex(*x) * turn).imag] for x in (h, t)]
    for p in (1, 2):
        before = of_rows("rotate", h, [0.3], t, 1, p=p)
        assert of_rows("rotate", turned[0], [0.3], turned[1], 1, p=p) == pytest.approx(before)


def test_the_upper_edge_of_a_box_is_the_image_of_its_upper_edge():
    # Both boxes are [1.5, 2.5], and 2.4 is inside; upstream BESS-KGE ends them at 1.90.
    centre, width = (math.tanh(1.5) + math.tanh(2.5)) / 2, math.tanh(2.5) - math.tanh(1.5)
    expected = -2 * abs(math.tanh(2.4) - centre) / (width + 1)
    relation = [2.0, 2.0, 0.3, 5.0, 0.0, 0.0]  # a single width is its own mean
    found = of_rows("boxe", [2.4, 0.0], relation, [2.4, 0.0], 1)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(-0.070, abs=5e-4)
    outside = of_rows("boxe", [2.6, 0.0], relation, [2.4, 0.0], 1)
    off = (math.tanh(2.6) - centre) * (width + 1) - width / 2 * (width + 1 - 1 / (width + 1))
    assert outside == pytest.approx(expected / 2 - off, rel=1e-12)


def test_quaternions_score_high_where_the_product_is_near():
    # PyKEEN's QuatE has the opposite sign.
    one, i, j, k = np.eye(4).tolist()
    long = [0.0, 0.0, 7.0, 0.0]
    assert of_rows("quate", i, one, i, 1) == 1.0
    assert of_rows("quate", i, j, k, 1) == 1.0
    assert of_rows("quate", j, i, k, 1) == -1.0
    assert of_rows("quate", i, long, k, 1) == pytest.approx(1.0)
    assert "minus sign" in QuatE.__doc__


def test_a_torus_has_no_far_side():
    assert of_rows("toruse", [0.95], [0.0], [0.05], 1) == pytest.approx(-0.1)
    assert of_rows("toruse", [0.95], [3.1], [0.05], 1) == pytest.approx(0.0, abs=1e-12)


def test_phases_meet_after_a_full_turn():
    h, t, relation = [0.1, 1.0], [0.1 + 2 * math.pi, 1.0], [0.0, 1.0, 0.0]
    assert of_rows("hake", h, relation, t, 1) == pytest.approx(0.0, abs=1e-12)


# -- networks in formulas ----------------------------------------------------------------------


DROPOUTS = [
    ("conve", dict(feature_map_dropout=0.0, hidden_dropout=0.0)),
    ("conve", dict(input_dropout=0.0, hidden_dropout=0.0, output_channels=16)),
    ("conve", dict(input_dropout=0.0, feature_map_dropout=0.0)),
    ("tucker", dict(input_dropout=0.4)),
    ("tucker", dict(relation_dropout=0.4)),
    ("tucker", dict(hidden_dropout=0.4)),
    ("tucker", dict(hidden_dropout=0.4, batch_normalization=True)),
]


@pytest.mark.parametrize("name, options", DROPOUTS, ids=lambda x: str(x).strip("{}"))
def test_dropout_is_for_training_only(name, options):
    options = {**EXTRA.get(name, lambda dim: {})(DIM), **options}
    score = make_score(name, SHARDING, N_RELATION, dim=DIM, dtype=torch.float32, **options)
    rows = score.entity_embedding.detach().flatten(end_dim=1)
    h, r, t = rows[:B], torch.arange(B) % N_RELATION, rows[B : 2 * B]
    assert torch.equal(score(h, r, t), score(h, r, t))
    score.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(score(h, r, t), score(h, r, t))
        score(h, r, t).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in score.formula.parameters())
    assert any(x.grad.any() for x in score.formula.parameters())


def test_tucker_has_neither_dropout_nor_batch_normalization_unless_asked_for():
    score = make_score("tucker", SHARDING, N_RELATION, dim=DIM).train()
    h, r, t = score.entity_embedding[0, :B], torch.arange(B) % N_RELATION, torch.ones(B, DIM)
    assert torch.equal(score(h, r, t.double()), score.eval()(h, r, t.double()))


# -- constructors ------------------------------------------------------------------------------

FIRST = ["negative_sample_sharing", "scoring_norm", "sharding", "n_relation_type", "embedding_size"]
TABLES = ["entity_initializer", "relation_initializer"]
UPSTREAM = {
    "transe": [],
    "rotate": [],
    "pairre": [("normalize_entities", True)],
    "triplere": [("normalize_entities", True), ("u", 0.0)],
    "distmult": [],
    "complex": [],
    "boxe": [("apply_tanh", True), ("dist_func_per_dim", True), ("eps", 1e-6)],
    "interht": [("normalize_entities", True), ("offset", 1.0)],
    "trans": [("normalize_entities", True), ("offset", 1.0)],
}


@pytest.mark.parametrize("name", sorted(UPSTREAM))
def test_constructors_take_what_upstreams_take_in_its_order(name):
    parameters = inspect.signature(SCORE_FUNCTIONS[name]).parameters
    first = [x for x in FIRST if x != "scoring_norm" or name not in ("distmult", "complex")]
    extras = [*UPSTREAM[name], ("inverse_relations", False)]
    assert list(parameters) == first + TABLES + [x for x, _ in extras]
    assert all(parameters[x].default == default for x, default in extras)


def test_conve_takes_what_upstreams_takes_in_its_order():
    parameters = inspect.signature(SCORE_FUNCTIONS["conve"]).parameters
    extras = dict(
        inverse_relations=True, input_channels=1, output_channels=32, kernel_height=3,
        kernel_width=3, input_dropout=0.2, feature_map_dropout=0.2, hidden_dropout=0.3,
        batch_normalization=True,
    )  # fmt: skip
    image = ["embedding_height", "embedding_width"]
    first = [x for x in FIRST if x != "scoring_norm"]
    assert list(parameters) == first + image + TABLES + list(extras)
    assert {x: parameters[x].default for x in extras} == extras
    assert parameters["embedding_height"].default is inspect.Parameter.empty
