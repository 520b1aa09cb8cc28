"""An Embedding does what PyKEEN's does, but for its traps, and the same on any number of shards."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support import SHARDS
from torch.testing import assert_close

from besskge_core.embedding import (
    CONSTRAINERS,
    EMBEDDING_REGULARIZERS,
    INITIALIZERS,
    NORMALIZERS,
    TABLE_INITIALIZERS,
    Combined,
    Embedding,
    LpNorm,
    NormLimit,
    Orthogonality,
    PowerSum,
    PretrainedInitializer,
    unshard_rows,
)
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.ops import gather, plan_rows
from besskge_core.optim import OPTIMIZERS
from besskge_core.sharding import Sharding

# torch says so once of complex32, which is one of the dtypes that are promised.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

N = 23
REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex32, torch.complex64, torch.complex128]
#: What the names need to be called at all.
INITIALIZER_OPTIONS = {"constant": dict(val=0.5), "sparse": dict(sparsity=0.5)}
INITIALIZER_SHAPES = {"init_quaternions": (3, 4), "dirac": (3, 2), "init_phases": (6,)}
CONSTRAINER_OPTIONS = {"clamp": dict(min=-0.4, max=0.3), "clamp_norm": dict(maxnorm=0.5)}


def seeded(*arguments, seed=0, make=Embedding, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*arguments, **options)


def sharding_of(n_shard, n=N):
    return Sharding.create(n, n_shard, seed=n_shard)


def by_id(embedding):
    """The weight, (N, W), by ID."""
    if embedding.sharding is None:
        return embedding.weight.detach()
    return unshard_rows(embedding.weight.detach(), embedding.sharding)


def put(embedding, x):
    """Set the representations of all IDs."""
    embedding._embeddings.fill(embedding.layout.rows(x))
    return embedding


def exact(x):
    """In a dtype that has all operations, without rounding."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def padding_of(embedding):
    return torch.from_numpy(embedding.sharding.shard_and_idx_to_entity) >= embedding.max_id


@pytest.fixture(params=sorted(TABLE_INITIALIZERS))
def initializer(request):
    return request.param


@pytest.fixture(params=sorted(CONSTRAINERS))
def constrainer(request):
    return request.param


@pytest.fixture(params=sorted(NORMALIZERS))
def normalizer(request):
    return request.param


def initialized(name, n=N, **changes):
    options = dict(
        shape=INITIALIZER_SHAPES.get(name, (6,)),
        initializer=name,
        initializer_kwargs=INITIALIZER_OPTIONS.get(name),
    )
    if name == "pretrained":
        dtype = changes.get("dtype", torch.float32)
        options["initializer_kwargs"] = dict(tensor=torch.arange(6.0 * n).view(n, 6).to(dtype))
    return seeded(n, **{**options, **changes})


def constrained(name, seed=0, **changes):
    options = dict(embedding_dim=4, constrainer=name)
    options["constrainer_kwargs"] = CONSTRAINER_OPTIONS.get(name)
    return seeded(N, seed=seed, **{**options, **changes})


# -- golden values -------------------------------------------------------------------------------

GOLDEN = Path(os.environ.get("BESSKGE_GOLDEN", "/nowhere")) / "pykeen"
#: Records that PyKEEN is not followed in, and why.
DEVIATIONS = {
    "e0003": "the norm of a matrix is that of all its entries",
    "e0006": "clamp_norm bounds rows, not the table",
    "e0015": "normalize with (B, K) indices acts on the representation, not on K",
    "e0068": "the norm of a matrix is that of all its entries",
    "e0072": "a complex row has norm 1, not each of its parts",
}
if torch.__version__.startswith("2.0."):
    DEVIATIONS["e0063"] = "torch's own trunc_normal_ drew other numbers then"


def golden_cases():
    if not GOLDEN.is_dir():
        why = "BESSKGE_GOLDEN does not name the folder of golden values"
        return [pytest.param(None, marks=pytest.mark.skip(reason=why), id="none")]
    cases = json.loads((GOLDEN / "oracle_embedding.json").read_text())["cases"]
    return [pytest.param(case, id=f"{case['id']}-{case['kind']}") for case in cases]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "oracle_embedding.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def replay(case, golden):
    """Pairs (ours, PyKEEN's) of all that a record holds."""
    stored = {k.split("/")[1]: x for k, x in golden.items() if k.startswith(case["id"] + "/")}
    given = stored.get("w_in", stored.get("w"))
    kind, name, kwargs = case["kind"], case.get("name"), case.get("kwargs")
    size = dict(max_id=len(given), shape=given.shape[1:], dtype=given.dtype)
    if kind == "initializer":
        options = dict(initializer=name, initializer_kwargs=kwargs)
        return [(seeded(seed=case["seed"], **size, **options)(), stored["w"])]
    if kind == "constrainer":
        embedding = put(Embedding(**size, constrainer=name, constrainer_kwargs=kwargs), given)
        embedding.post_parameter_update()
        return [(embedding(), stored["w_out"])]
    options = {}
    if kind in ("normalizer", "regularizer"):
        options = {kind: name, f"{kind}_kwargs": kwargs, "unique": case.get("unique")}
    embedding = put(Embedding(**size, **options), given)
    indices = None if case["indices"] is None else torch.tensor(case["indices"])
    out = embedding(indices)
    if kind == "regularizer":
        embedding(torch.tensor(case["second_call"]))
        value = embedding.regularizer.pop_regularization_term()
        pairs = [(value.view(1).float(), stored["value"])]
        if "grad" in stored:
            value.backward()
            pairs.append((embedding.weight.grad, stored["grad"]))
        return pairs
    out.backward(stored["upstream"])
    return [(out, stored["out"]), (embedding.weight.grad.view_as(given), stored["grad"])]


@pytest.mark.parametrize("case", golden_cases())
def test_every_golden_record_is_reproduced_or_a_listed_deviation(case, golden):
    assert set(case) >= {"id", "kind"}
    close = [
        ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12)
        for ours, theirs in replay(case, golden)
    ]
    assert close and all(close) == (case["id"] not in DEVIATIONS), DEVIATIONS.get(case["id"])


def test_all_golden_records_are_looked_at():
    cases = [param.values[0] for param in golden_cases()]
    if cases == [None]:
        pytest.skip("BESSKGE_GOLDEN does not name the folder of golden values")
    assert len(cases) == len({case["id"] for case in cases}) == 78
    assert set(DEVIATIONS) < {case["id"] for case in cases}
    names = {(case["kind"], case["name"]) for case in cases if "name" in case}
    seen = {("constrainer", name) for name in CONSTRAINERS}
    seen |= {("normalizer", name) for name in NORMALIZERS}
    seen |= {("regularizer", name) for name in EMBEDDING_REGULARIZERS}
    seen |= {("initializer", name) for name in TABLE_INITIALIZERS}
    assert names <= seen


# -- what deviates is right ------------------------------------------------------------------------


def test_the_table_is_filled_when_the_constructor_returns():
    assert torch.equal(Embedding(4, embedding_dim=3, initializer="ones")(), torch.ones(4, 3))
    table = torch.arange(12.0).view(4, 3)
    assert torch.equal(Embedding.from_pretrained(table)(), table)


def test_the_first_weights_are_constrained():
    embedding = seeded(N, embedding_dim=4, constrainer="normalize")
    assert_close(embedding().norm(dim=-1), torch.ones(N))
    embedding.reset_parameters()
    assert_close(embedding().norm(dim=-1), torch.ones(N))


@pytest.mark.parametrize("trainable", [True, False])
def test_a_pretrained_tensor_is_never_written_to_and_a_reset_restores_it(trainable):
    table = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    before = table.clone()
    embedding = Embedding.from_pretrained(table, trainable=trainable)
    assert embedding.weight.requires_grad == trainable
    embedding.weight.data.mul_(2.0)
    assert torch.equal(table, before)
    embedding.reset_parameters()
    assert torch.equal(embedding(), before)


@pytest.mark.parametrize("sharding", [None, sharding_of(4)], ids=["whole", "sharded"])
@pytest.mark.parametrize("dtype", REAL + COMPLEX)
def test_a_pretrained_tensor_keeps_dtype_shape_and_imaginary_part(dtype, sharding):
    table = seeded(N, 2, 3, 2, make=torch.randn)
    table = torch.view_as_complex(table) if dtype.is_complex else table
    embedding = Embedding.from_pretrained(table.to(dtype), sharding=sharding)
    assert embedding().dtype == embedding.dtype == dtype
    assert torch.equal(exact(embedding()), exact(table.to(dtype)))


def test_complex_tables_are_given_as_they_are_or_as_pairs():
    table = seeded(N, 3, make=torch.randn, dtype=torch.complex64)
    for start in (
        table,
        torch.view_as_real(table),
        table.conj().conj(),
        PretrainedInitializer(table),
    ):
        made = Embedding(N, embedding_dim=3, dtype=torch.complex64, initializer=start)
        assert torch.equal(made(), table)
    conjugate = Embedding.from_pretrained(table.conj())
    assert torch.equal(conjugate(), table.conj())
    wide = Embedding.from_pretrained(table.real, dtype=torch.complex128)
    assert torch.equal(wide(), table.real.to(torch.complex128))


@pytest.mark.parametrize("indices", [3, [1, 2], [[0, 3, 3], [1, 2, 5]]])
@pytest.mark.parametrize("shape", [(4,), (3, 4), ()])
@pytest.mark.parametrize("unique", [True, False])
def test_normalizers_act_on_representations_whatever_the_indices(
    normalizer, indices, shape, unique
):
    embedding = seeded(N, shape=shape, normalizer=normalizer, unique=unique, dtype=torch.float64)
    x = embedding(torch.tensor(indices))
    assert_close(x, embedding()[torch.tensor(indices)])
    if normalizer == "normalize":
        flat = x.reshape(x.shape[: x.dim() - len(shape)].numel(), -1)
        assert_close(flat.norm(dim=1), torch.ones(len(flat), dtype=torch.float64))
    else:
        total = x.sum(-1) if shape else x
        assert_close(total, torch.ones_like(total))


def test_the_norm_along_another_axis_is_had_by_asking(golden_deviation):
    case, golden = golden_deviation
    for ours, theirs in replay(case, golden):
        assert_close(ours, theirs)


@pytest.fixture(params=[("e0003", dict(dim=1)), ("e0006", dict(maxnorm=1.0, dim=None))])
def golden_deviation(request):
    cases = [param.values[0] for param in golden_cases()]
    if cases == [None]:
        pytest.skip("BESSKGE_GOLDEN does not name the folder of golden values")
    (case,) = [case for case in cases if case["id"] == request.param[0]]
    return {**case, "kwargs": request.param[1]}, request.getfixturevalue("golden")


@pytest.mark.parametrize(
    "name", ["normal_norm", "uniform_norm", "xavier_normal_norm", "xavier_uniform_norm"]
)
@pytest.mark.parametrize("shape", [(4,), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_initializers_named_norm_give_rows_of_norm_one(name, shape, dtype):
    x = seeded(N, shape=shape, initializer=name, dtype=dtype)().flatten(1)
    assert_close(x.abs().square().sum(1), torch.ones(N, dtype=torch.float64))


def test_a_complex_row_is_drawn_as_pykeen_draws_it_then_normalized_at_once():
    x = seeded(N, embedding_dim=4, initializer="xavier_uniform_norm", dtype=torch.complex128)()
    drawn = seeded(
        torch.empty(N, 4, 2, dtype=torch.float64), make=torch.nn.init.xavier_uniform_
    ).flatten(1)
    assert_close(torch.view_as_real(x).flatten(1), drawn / drawn.norm(dim=1, keepdim=True))


def test_clamp_norm_bounds_each_row_or_the_table_if_asked():
    table = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    rows = Embedding.from_pretrained(
        table, constrainer="clamp_norm", constrainer_kwargs=dict(maxnorm=1.0)
    )
    assert_close(rows(), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    whole = Embedding.from_pretrained(
        table, constrainer="clamp_norm", constrainer_kwargs=dict(maxnorm=1.0, dim=None)
    )
    assert_close(whole(), table / table.norm())


@pytest.mark.parametrize("dim", [None, 0, -2, (0, 1)])
def test_a_constrainer_of_the_whole_table_is_not_fooled_by_rows(dim):
    options = dict(constrainer="clamp_norm", constrainer_kwargs=dict(maxnorm=1.0, dim=dim))
    some, all_rows = (seeded(N, embedding_dim=4, **options) for _ in range(2))
    for embedding, rows in ((some, torch.tensor([1])), (all_rows, None)):
        put(embedding, 10.0 * torch.ones(N, 4))
        embedding.post_parameter_update(rows)
    assert_close(some(), all_rows())


# -- initialisers ----------------------------------------------------------------------------------


def test_initializers_fill_with_finite_numbers_and_one_seed_gives_one_table(initializer):
    embedding, again = initialized(initializer), initialized(initializer)
    assert torch.isfinite(embedding()).all() and torch.equal(embedding(), again())
    assert embedding.weight.is_leaf and embedding.weight.requires_grad
    storage = embedding.weight.data_ptr()
    seeded(make=embedding.reset_parameters)
    assert torch.equal(embedding(), again()) and embedding.weight.data_ptr() == storage


@pytest.mark.parametrize("n_shard", SHARDS)
def test_every_number_of_shards_begins_with_the_same_table(initializer, n_shard):
    sharding = sharding_of(n_shard)
    sharded = initialized(initializer, sharding=sharding)
    assert torch.equal(sharded(), initialized(initializer)())
    assert sharded.weight.shape[:2] == (n_shard, sharding.max_entity_per_shard)
    assert (sharded.weight[padding_of(sharded)] == 0).all()


@pytest.mark.parametrize("dtype", REAL + COMPLEX)
def test_initializers_fill_tables_of_each_dtype(initializer, dtype):
    if initializer in ("eye", "sparse", "init_quaternions") and dtype.is_complex:
        with pytest.raises(ValueError):  # they know nothing of an axis for the two parts
            initialized(initializer, dtype=dtype)
        return
    x = initialized(initializer, dtype=dtype)()
    assert (
        x.dtype == dtype and torch.isfinite(torch.view_as_real(x) if dtype.is_complex else x).all()
    )


def test_an_initializer_may_be_in_place_or_not_a_function_or_a_class():
    class Fill:
        def __init__(self, value):
            self.value = value

        def __call__(self, x):
            return torch.full_like(x, self.value)

    made = [
        Embedding(N, embedding_dim=2, initializer=torch.nn.init.ones_),
        Embedding(N, embedding_dim=2, initializer=lambda x: torch.ones_like(x)),
        Embedding(N, embedding_dim=2, initializer=Fill, initializer_kwargs=dict(value=1.0)),
        Embedding(N, embedding_dim=2, initializer=Fill(1.0)),
        Embedding(N, embedding_dim=2, initializer="Ones_"),
        Embedding(
            N,
            embedding_dim=2,
            initializer="pretrained",
            initializer_kwargs=dict(tensor=torch.ones(N, 2)),
        ),
    ]
    assert all(torch.equal(embedding(), torch.ones(N, 2)) for embedding in made)


def test_initializers_of_bess_serve_by_name_and_one_name_means_one_thing():
    assert set(INITIALIZERS) <= set(TABLE_INITIALIZERS)
    for name in INITIALIZERS:
        theirs = seeded(torch.empty(N, 6), make=INITIALIZERS[name])
        assert_close(seeded(N, embedding_dim=6, initializer=name)(), theirs)


def test_names_match_without_case_and_underscores():
    assert TABLE_INITIALIZERS["XavierUniformNorm"] is TABLE_INITIALIZERS["xavier_uniform_norm_"]
    assert EMBEDDING_REGULARIZERS["LpRegularizer"] is EMBEDDING_REGULARIZERS["LP"] is LpNorm
    assert EMBEDDING_REGULARIZERS["NormLimit"] is NormLimit and "Clamp-Norm" in CONSTRAINERS


def test_phases_have_modulus_one_and_go_all_around():
    x = seeded(500, embedding_dim=4, initializer="init_phases", dtype=torch.complex128)()
    assert_close(x.abs(), torch.ones(500, 4, dtype=torch.float64))
    assert x.angle().min() < -3.1 and x.angle().max() > 3.1


# -- constrainers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shard", [None, *SHARDS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex64])
def test_constrainers_change_the_rows_told_and_no_others_in_place(constrainer, n_shard, dtype):
    if constrainer == "clamp" and dtype.is_complex:
        dtype = torch.bfloat16  # complex numbers have no order
    sharding = None if n_shard is None else sharding_of(n_shard)
    embedding = constrained(constrainer, sharding=sharding, dtype=dtype)
    assert_close(embedding(), constrained(constrainer, dtype=dtype)())
    with torch.no_grad():
        embedding.weight.mul_(3.0)
    before, storage = embedding().detach().clone(), embedding.weight.data_ptr()
    touched = torch.tensor([2, 7, 7, 19])
    rows = touched if sharding is None else torch.from_numpy(sharding.flat_row)[touched]
    embedding.post_parameter_update(rows.int())
    some = embedding().detach().clone()
    embedding.post_parameter_update()
    whole = embedding().detach()
    is_touched = torch.zeros(N, dtype=torch.bool).index_fill(0, touched, True)
    assert torch.equal(some[~is_touched], before[~is_touched])
    assert_close(some[is_touched], whole[is_touched])
    assert not torch.equal(some[is_touched], before[is_touched])
    assert not torch.equal(whole[~is_touched], before[~is_touched])
    assert embedding.weight.data_ptr() == storage and embedding.weight.is_leaf


def test_constraining_twice_is_constraining_once(constrainer):
    embedding = constrained(constrainer, dtype=torch.float64)
    once = embedding().detach().clone()
    embedding.post_parameter_update()
    assert_close(embedding().detach(), once)


def test_padding_stays_zero_whatever_the_constrainer():
    embedding = seeded(
        embedding_dim=2,
        sharding=sharding_of(4),
        constrainer="clamp",
        constrainer_kwargs=dict(min=0.5),
    )
    embedding.post_parameter_update()
    embedding.post_parameter_update(torch.arange(embedding.weight[..., 0].numel()))
    assert padding_of(embedding).any() and (embedding.weight[padding_of(embedding)] == 0).all()
    assert (embedding() >= 0.5).all()


def test_no_rows_are_constrained_and_neither_is_an_empty_table():
    embedding = constrained("normalize")
    put(embedding, 2.0 * embedding().detach())
    before = by_id(embedding).clone()
    embedding.post_parameter_update(torch.empty(0, dtype=torch.int64))
    assert torch.equal(by_id(embedding), before)
    Embedding(0, embedding_dim=3, constrainer="normalize").post_parameter_update()


def test_a_frozen_table_is_constrained_when_it_is_filled_and_not_again():
    calls = []

    def halve(x):
        calls.append(len(x))
        return x / 2

    table = torch.ones(N, 2)
    embedding = Embedding.from_pretrained(table, constrainer=halve)
    embedding.post_parameter_update()
    assert calls == [N] and torch.equal(embedding(), table / 2)


def test_complex_constrainers_see_complex_rows():
    table = torch.tensor([[3.0 + 4.0j, 0.0], [0.0, 0.5j]])
    rows = Embedding.from_pretrained(table, constrainer="normalize")
    assert_close(rows(), torch.tensor([[0.6 + 0.8j, 0.0], [0.0, 1.0j]]))
    entries = Embedding.from_pretrained(table, constrainer="complex_normalize")
    assert torch.equal(entries(), rows())
    pairs = Embedding.from_pretrained(
        torch.view_as_real(table).flatten(1), constrainer="complex_normalize"
    )
    assert_close(pairs(), torch.view_as_real(rows()).flatten(1))


def test_zero_rows_stay_zero(constrainer):
    x = CONSTRAINERS[constrainer](torch.zeros(2, 4), **CONSTRAINER_OPTIONS.get(constrainer, {}))
    assert torch.equal(x, torch.zeros(2, 4))


def test_half_precision_does_not_overflow_in_a_norm():
    table = torch.full((2, 4), 4e4, dtype=torch.float16)
    for options in (dict(constrainer="normalize"), dict(normalizer="normalize")):
        assert_close(Embedding.from_pretrained(table, **options)(), torch.full_like(table, 0.5))


# -- regularisers ----------------------------------------------------------------------------------

#: Of one tensor, with what they need.
PENALTIES = {"lp": {}, "powersum": {}, "normlimit": {}, "no": {}, "combined": dict(
    regularizers=[LpNorm(weight=1.0), PowerSum(weight=3.0)])}  # fmt: skip


@pytest.fixture(params=sorted(set(EMBEDDING_REGULARIZERS) - {"orthogonality"}))
def penalty(request):
    return request.param


def regularized(penalty, **changes):
    options = dict(embedding_dim=4, regularizer=penalty, regularizer_kwargs=PENALTIES[penalty])
    return seeded(N, **{**options, **changes})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64])
def test_terms_add_up_until_they_are_popped(penalty, dtype):
    embedding = regularized(penalty, dtype=dtype)
    first, second = torch.tensor([1, 2]), torch.tensor([[3], [3]])
    terms = []
    for calls in ([first], [second], [first, second]):
        for indices in calls:
            embedding(indices)
        terms.append(embedding.pop_regularization_term())
    assert_close(terms[0] + terms[1], terms[2])
    assert terms[2].shape == () and (terms[2] > 0) == (penalty != "no")
    assert embedding.pop_regularization_term() == 0
    if penalty != "no":
        terms[2].backward()
        touched = embedding.weight.grad.abs().sum(1) > 0
        assert touched.nonzero().flatten().tolist() == [1, 2, 3]


def test_regularizers_are_silent_in_evaluation_and_without_gradients(penalty):
    embedding = regularized(penalty).eval()
    embedding()
    with torch.no_grad():
        embedding.train()()
    assert embedding.pop_regularization_term() == 0


def test_a_regularizer_sees_normalized_rows_before_dropout():
    embedding = seeded(
        N, embedding_dim=4, normalizer="normalize", regularizer="lp", dropout=0.9, unique=True
    )
    embedding(torch.tensor([1, 1, 2]))
    assert_close(embedding.pop_regularization_term(), torch.tensor(1.0))


def test_only_the_first_call_counts_if_asked(penalty):
    once = regularized(penalty, regularizer_kwargs=dict(**PENALTIES[penalty], apply_only_once=True))
    for expected in (torch.tensor([1]), torch.tensor([2])):
        alone = regularized(penalty)
        alone(expected)
        once(expected), once(torch.tensor([4]))
        assert_close(once.pop_regularization_term(), alone.pop_regularization_term())


def test_normalized_penalties_are_the_same_for_any_width():
    for regularizer in (LpNorm(p=2.0, normalize=True), PowerSum(p=2.0, normalize=True)):
        for width in (50, 800):
            x = seeded(300, width, make=torch.randn)
            assert regularizer(x).item() == pytest.approx(1.0, abs=0.02)


def test_combined_is_a_convex_combination():
    x = seeded(5, 4, make=torch.randn)
    parts = [LpNorm(weight=1.0, p=1.0), PowerSum(weight=3.0)]
    expected = 2.0 * (1.0 * parts[0](x) + 3.0 * parts[1](x)) / 4.0
    combined = Combined(parts, total_weight=2.0)
    combined.update(x)
    assert_close(combined.pop_regularization_term(), expected)
    assert_close(Combined(["lp", PowerSum])(x), (LpNorm()(x) + PowerSum()(x)) / 2)


def test_orthogonality_is_the_squared_cosine_of_two_tensors():
    a, b = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    regularizer = Orthogonality(weight=10.0, epsilon=0.1)
    regularizer.update(a, b)
    assert regularizer.pop_regularization_term().item() == pytest.approx(10.0 * (0.5 - 0.1))
    regularizer.eval().update(a, b)
    assert regularizer.pop_regularization_term() == 0


def test_a_regularizer_may_be_a_function_a_class_or_shared():
    function = seeded(
        N, embedding_dim=4, regularizer=lambda x: x.abs().sum(), regularizer_kwargs=dict(weight=2.0)
    )
    x = function(torch.tensor([1]))
    assert_close(function.pop_regularization_term(), 2.0 * x.abs().sum())
    shared = PowerSum()
    left, right = (seeded(N, embedding_dim=4, regularizer=shared) for _ in range(2))
    left(), right()
    assert_close(left.pop_regularization_term(), 2.0 * shared(left()))
    assert isinstance(seeded(N, embedding_dim=4, regularizer=PowerSum).regularizer, PowerSum)


def test_without_a_regularizer_the_term_is_zero():
    assert Embedding(2, embedding_dim=2).pop_regularization_term() == 0


# -- look-ups --------------------------------------------------------------------------------------

INDICES = {"scalar": 4, "empty": [], "list": [3, 0, 3], "matrix": [[1, 2], [22, 2]],
           "no columns": [[], []], "all": None}  # fmt: skip


@pytest.fixture(params=sorted(INDICES))
def indices(request):
    value = INDICES[request.param]
    return None if value is None else torch.tensor(value, dtype=torch.int64)


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("sharding", [None, sharding_of(4)], ids=["whole", "sharded"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_indices_of_any_shape_give_their_rows(indices, unique, sharding, shape, dtype):
    table = seeded(N, *shape, make=torch.randn, dtype=dtype)
    embedding = Embedding.from_pretrained(table, unique=unique, sharding=sharding)
    expected = table if indices is None else table[indices]
    assert torch.equal(embedding(indices), expected)
    if indices is not None:
        assert torch.equal(embedding(indices.int()), expected)


@pytest.mark.parametrize("dtype", REAL + COMPLEX)
@pytest.mark.parametrize("options", [{}, dict(normalizer="normalize"), dict(dropout=0.5)], ids=str)
def test_each_dtype_is_looked_up_with_a_gradient(dtype, options):
    embedding = seeded(N, embedding_dim=3, dtype=dtype, unique=True, **options)
    x = embedding(torch.tensor([[1, 2], [2, 5]]))
    assert x.dtype == dtype and x.shape == (2, 2, 3)
    real = torch.view_as_real(x) if dtype.is_complex else x
    (real.float() * torch.arange(1.0, 4.0).view(3, *[1] * dtype.is_complex)).sum().backward()
    assert embedding.weight.grad.dtype == embedding.weight.dtype == real.dtype
    assert torch.isfinite(embedding.weight.grad).all()
    assert set(embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()) <= {1, 2, 5}


def test_a_complex_weight_is_real_with_the_parts_of_an_entry_side_by_side():
    embedding = Embedding.from_pretrained(torch.tensor([[1.0 + 2.0j, 3.0 + 4.0j]]))
    assert embedding.weight.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_gradients_of_normalizers_are_right(normalizer):
    for dtype in (torch.float64, torch.complex128):
        if normalizer == "softmax" and dtype.is_complex:
            continue
        embedding = seeded(4, embedding_dim=3, dtype=dtype, normalizer=normalizer)
        weight = embedding.weight.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(embedding.represent, (weight,))


# -- dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REAL + COMPLEX)
def test_dropout_zeroes_whole_entries_and_scales_the_others(dtype):
    table = torch.ones(200, 10).to(dtype) * (1.0 + 2.0j if dtype.is_complex else 1.0)
    embedding = Embedding.from_pretrained(table, dropout=0.25)
    x, again = (exact(embedding()) for _ in range(2))
    kept = x != 0
    assert 0.70 < kept.float().mean() < 0.80 and not torch.equal(x, again)
    assert_close(x[kept], (exact(table) / 0.75)[kept], rtol=1e-2, atol=1e-2)
    assert torch.equal(exact(embedding.eval()()), exact(table))


def test_occurrences_of_one_id_are_dropped_apart_even_if_looked_up_once():
    embedding = Embedding.from_pretrained(torch.ones(2, 50), dropout=0.5, unique=True)
    a, b = seeded(torch.tensor([1, 1]), make=embedding)
    assert not torch.equal(a, b)


# -- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shard", SHARDS)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_values_terms_and_gradients_do_not_depend_on_the_shards(n_shard, sparse, dtype):
    options = dict(embedding_dim=3, dtype=dtype, normalizer="normalize", regularizer="powersum")
    whole = seeded(N, **options)
    sharded = seeded(sharding=sharding_of(n_shard), sparse=sparse, **options)
    upstream = seeded(2, 4, 3, make=torch.randn, dtype=dtype)
    for embedding in (whole, sharded):
        x = embedding(torch.tensor([[0, 22, 22, 5], [7, 5, 1, 0]]))
        torch.autograd.backward(
            [x, embedding.pop_regularization_term()], [upstream, torch.tensor(1.0).double()]
        )
    assert torch.equal(sharded(), whole())
    assert sharded.weight.grad.is_sparse == sparse
    grad = sharded.weight.grad.to_dense() if sparse else sharded.weight.grad
    assert_close(unshard_rows(grad, sharded.sharding), whole.weight.grad)
    assert (grad[padding_of(sharded)] == 0).all()


def test_rows_gathered_by_shard_are_represented_like_looked_up_ones():
    embedding = seeded(
        sharding=sharding_of(4), embedding_dim=3, normalizer="normalize", regularizer="powersum"
    )
    index = torch.tensor([[0, 3], [1, 1], [2, 0], [4, 2]])
    ids = torch.from_numpy(embedding.sharding.shard_and_idx_to_entity).long().gather(1, index)
    there = embedding.represent(gather(embedding.weight, index))
    term = embedding.pop_regularization_term()
    assert torch.equal(embedding(ids), there)
    assert torch.equal(embedding.pop_regularization_term(), term)


@pytest.mark.parametrize("trainable", [True, False])
def test_another_sharding_moves_rows_and_nothing_else(trainable):
    embedding = seeded(
        sharding=sharding_of(4), embedding_dim=3, dtype=torch.float16, trainable=trainable
    )
    before = embedding().detach().clone()
    embedding.update_sharding(sharding_of(7))
    assert torch.equal(embedding(), before) and embedding.weight.shape == (7, 4, 3)
    assert embedding.weight.requires_grad == trainable and embedding.sharding.n_shard == 7
    assert list(embedding.state_dict()) == ["_embeddings.weight"]


def test_hubs_are_entities_like_others():
    sharding = Sharding.create(N, 4, seed=1, hubs=np.array([2, 3, 9]))
    options = dict(embedding_dim=3, constrainer="normalize")
    assert torch.equal(seeded(sharding=sharding, **options)(), seeded(N, **options)())


# -- sparse gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("sharding", [None, sharding_of(4)], ids=["whole", "sharded"])
def test_a_sparse_gradient_has_one_entry_for_each_look_up(sharding):
    embedding = seeded(N, embedding_dim=3, sharding=sharding, sparse=True)
    embedding(torch.tensor([[1, 5], [5, 5]])).sum().backward()
    assert embedding.weight.grad._nnz() == 4
    assert embedding.weight.grad.shape == embedding.weight.shape
    embedding().sum().backward()
    assert embedding.weight.grad.is_sparse


def test_gradients_are_sparse_with_a_sharding_and_dense_without_unless_told():
    for sharding, sparse in ((None, False), (sharding_of(2), True)):
        embedding = Embedding(N, embedding_dim=3, sharding=sharding)
        embedding(torch.tensor([1])).sum().backward()
        assert embedding.weight.grad.is_sparse == sparse


@pytest.mark.parametrize("sharding", [None, sharding_of(4)], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_of_rows_and_constrainers_of_rows_go_together(name, sharding):
    sparse, dense = (
        seeded(N, embedding_dim=3, sharding=sharding, sparse=sparse, constrainer="normalize")
        for sparse in (True, False)
    )
    ids = torch.tensor([3, 4, 4, 20])
    for embedding in (sparse, dense):
        optimizer = OPTIMIZERS[name](embedding.parameters(), lr=0.5)
        (embedding(ids) * torch.arange(3.0)).sum().backward()
        rows = ids if sharding is None else torch.from_numpy(sharding.flat_row)[ids]
        plan = plan_rows(rows, embedding.weight[..., 0].numel())
        optimizer.step(plans={embedding.weight: plan} if embedding is sparse else None)
        embedding.post_parameter_update(plan.unique_rows)
    assert_close(sparse(), dense())
    assert_close(sparse().norm(dim=-1), torch.ones(N))


def test_sparse_adam_of_torch_runs():
    embedding = seeded(N, embedding_dim=3, sparse=True)
    before = embedding().detach().clone()
    embedding.weight.grad = None
    embedding(torch.tensor([1, 1])).sum().backward()
    torch.optim.SparseAdam(list(embedding.parameters())).step()
    assert ((embedding() != before).any(1).nonzero().flatten() == 1).all()


# -- in the place of torch.nn.Embedding ------------------------------------------------------------


def test_it_takes_the_place_of_torch_nn_embedding():
    torchs = torch.nn.Embedding(N, 3)
    ours = Embedding(num_embeddings=N, embedding_dim=3)
    ours.load_state_dict(torchs.state_dict())
    ids = torch.tensor([[1, 4], [4, 0]])
    assert torch.equal(ours(ids), torchs(ids))
    assert (ours.num_embeddings, ours.embedding_dim) == (N, 3)
    assert ours.weight.shape == torchs.weight.shape
    nested = torch.nn.Sequential(ours)
    nested.load_state_dict(torch.nn.Sequential(torchs).state_dict())


def test_state_dictionaries_have_pykeens_keys_and_take_pykeens_terms():
    embedding = seeded(N, embedding_dim=3, regularizer="lp", regularizer_kwargs=dict(weight=0.5))
    state = embedding.state_dict()
    assert set(state) == {"_embeddings.weight", "regularizer.weight"}
    theirs = {**state, "regularizer.regularization_term": torch.ones(1)}
    other = seeded(N, embedding_dim=3, regularizer="lp", seed=1)
    other.load_state_dict(theirs)
    assert torch.equal(other(), embedding()) and other.regularizer.weight == 0.5


def test_a_copy_is_independent_and_another_dtype_is_followed():
    embedding = seeded(sharding=sharding_of(2), embedding_dim=3, dtype=torch.complex64, dropout=0.0)
    twin = copy.deepcopy(embedding).double()
    assert twin().dtype == twin.dtype == torch.complex128
    assert_close(twin().to(torch.complex64), embedding())
    assert "23, shape=(3,), dtype=torch.complex64, n_shard=2" in repr(embedding)


@pytest.mark.parametrize("size", [dict(max_id=0), dict(max_id=2, shape=(2, 0)), dict(max_id=2)])
@pytest.mark.parametrize("unique", [True, False])
def test_tables_without_numbers_work(size, unique):
    options = dict(normalizer="normalize", constrainer="normalize", regularizer="powersum")
    embedding = Embedding(**{"shape": (0,), **size}, unique=unique, **options)
    none = embedding(torch.empty(0, dtype=torch.int64))
    assert none.shape == (0, *embedding.shape)
    assert embedding().shape == (embedding.max_id, *embedding.shape)


@pytest.mark.parametrize("shape", [3, [3], (3,), torch.Size([3]), np.array([3])[0]], ids=repr)
def test_a_shape_may_be_given_in_many_ways(shape):
    assert Embedding(2, shape=shape).shape == (3,) == Embedding(2, embedding_dim=3).shape


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharding", [None, sharding_of(4)], ids=["whole", "sharded"])
@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("ids", [[0, 23], [-1, 3], [[40]]])
def test_ids_out_of_range_are_refused(ids, unique, sharding):
    embedding = Embedding(N, embedding_dim=2, unique=unique, sharding=sharding)
    message = r"indices are from -?\d+ to \d+, expected some of \[0, 23\) for max_id=23"
    with pytest.raises(IndexError, match=message):
        embedding(torch.tensor(ids))


def test_rows_that_do_not_exist_are_refused():
    embedding = Embedding(N, embedding_dim=2, constrainer="normalize")
    with pytest.raises(
        IndexError, match=r"rows are from 1 to 23, expected some of \[0, 23\) for a w"
    ):
        embedding.post_parameter_update(torch.tensor([1, 23]))
    with pytest.raises(ShapeError, match=r"rows have shape \(4, 3\), expected \(..., W\) with W=2"):
        embedding.represent(torch.zeros(4, 3))


@pytest.mark.parametrize("ids", [torch.tensor([1.0]), torch.tensor([True])])
def test_indices_are_integers(ids):
    with pytest.raises(TypeError, match="indices must be int32 or int64, got torch"):
        Embedding(N, embedding_dim=2)(ids)


WRONG = [
    (dict(embedding_dim=2), "max_id, the number of IDs, is missing; give it or a sharding"),
    (dict(max_id=2, num_embeddings=3, embedding_dim=2), r"given twice, as {'max_id': 2, 'num_embedd"),
    (dict(max_id=2, sharding=sharding_of(1), embedding_dim=2), r"'sharding.n_entity': 23}"),
    (dict(max_id=-1, embedding_dim=2), "max_id must not be negative, got -1"),
    (dict(max_id=2), "either embedding_dim or shape, got embedding_dim=None and shape=None"),
    (dict(max_id=2, embedding_dim=2, shape=2), "either embedding_dim or shape, got embedding_dim=2"),
    (dict(max_id=2, shape=(2, -1)), "shape must not be negative, got -1"),
    (dict(dtype=torch.int64), "dtype must be floating or complex, got torch.int64"),
    (dict(initializer="xavierr"), r"unknown initializer 'xavierr'; expected one of \['constant', 'd"),
    (dict(constrainer="clamps"), r"unknown constrainer 'clamps'.*did you mean 'clamp'"),
    (dict(normalizer="norm"), r"unknown normalizer 'norm'; expected one of \['normalize', 'softmax'\]"),
    (dict(regularizer="l2"), r"unknown embedding regularizer 'l2'; expected one of \['combined', 'lp"),
    (dict(constrainer=3), r"constrainer must be one of \['clamp', .*, a class or a function, got 3"),
    (dict(normalizer_kwargs=dict(p=1)), r"normalizer has options \['p'\], but there is no normalizer"),
    (dict(regularizer_kwargs=dict(p=1)), r"regularizer has options \['p'\], but there is no"),
    (dict(regularizer=LpNorm(), regularizer_kwargs=dict(p=1)), "is made already, options .* are late"),
    (dict(regularizer="orthogonality"), "orthogonality is of two embeddings: make it apart"),
    (dict(constrainer="clamp"), "clamp needs min, max or both in constrainer_kwargs"),
    (dict(constrainer="clamp", constrainer_kwargs=dict(min=0.0), dtype=torch.complex64),
     "clamp needs a real table; complex numbers have no order"),
    (dict(embedding_dim=3, constrainer="complex_normalize"), r"pairs of numbers.*shape of \(3,\)"),
    (dict(embedding_dim=3, initializer="init_phases"), r"init_phases needs a complex table"),
    (dict(embedding_dim=3, initializer="init_quaternions"), r"needs a shape of \(..., 4\), got \(3,\)"),
    (dict(initializer=torch.zeros(3, 2)), r"initializer made \(3, 2\) torch.float32 of \(2, 2\)"),
    (dict(initializer=torch.zeros(2, 2, dtype=torch.complex64)), "must keep the shape, and real num"),
    (dict(constrainer=lambda x: x[:1]), r"constrainer made \(1, 2\)"),
    (dict(dropout=1.5), "dropout probability has to be between 0 and 1"),
]  # fmt: skip


@pytest.mark.parametrize("options, message", WRONG, ids=[message[:30] for _, message in WRONG])
def test_what_cannot_be_is_refused(options, message):
    sizes = {} if {"max_id", "shape", "sharding"} & set(options) else dict(max_id=2)
    if "shape" not in options and "max_id" not in options and options != WRONG[0][0]:
        sizes["embedding_dim"] = 2
    if options is WRONG[0][0]:
        sizes = {}
    with pytest.raises(ValueError, match=message):
        Embedding(**{**sizes, **options})


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(embedding_dim=2.0), "embedding_dim must be made of integers, got 2.0"),
        (dict(shape=(2, 3.0)), "shape must be made of integers, got 3.0"),
        (dict(embedding_dim=2, constrainer="clamp", constrainer_kwargs=dict(maximum=1)), "maximum"),
        (dict(embedding_dim=2, normalizer="normalize", normalizer_kwargs=dict(q=1)), "'q'"),
        (dict(embedding_dim=2, padding_idx=0), "padding_idx"),
    ],
)
def test_unknown_options_and_broken_sizes_are_type_errors(options, message):
    with pytest.raises(TypeError, match=message):
        Embedding(2, **options)


def test_a_normalizer_that_changes_the_shape_is_refused():
    with pytest.raises(ShapeError, match=r"the normalizer made \(3, 1\) torch.float32 of \(3, 2\)"):
        Embedding(3, embedding_dim=2, normalizer=lambda x: x[:, :1])()


def test_an_imaginary_part_is_not_lost_silently():
    table = torch.zeros(2, 2, dtype=torch.complex64)
    with pytest.raises(ConfigError, match="would lose the imaginary part of a torch.complex64"):
        Embedding.from_pretrained(table, dtype=torch.float32)
    with pytest.raises(ShapeError, match=r"tensor has shape \(\), expected \(N, ...\)"):
        Embedding.from_pretrained(torch.tensor(1.0))


def test_a_sharding_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="this embedding is not sharded; make it with sharding="):
        Embedding(N, embedding_dim=2).update_sharding(sharding_of(2))
    with pytest.raises(ConfigError, match="new sharding is of 9 entities, the embedding of 23"):
        Embedding(sharding=sharding_of(2), embedding_dim=2).update_sharding(sharding_of(2, n=9))


def test_regularizers_that_cannot_be_are_refused():
    with pytest.raises(
        ConfigError, match=r"combined needs regularizers of one tensor each.*\['NoR"
    ):
        Combined(["no"])
    with pytest.raises(ConfigError, match="orthogonality is of two tensors, got 1"):
        Orthogonality().update(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="normalize needs a finite p"):
        LpNorm(p=float("inf"), normalize=True)


# -- some of the shards --------------------------------------------------------------------------------


@pytest.mark.parametrize("hosted", [(0,), (2,), (3, 1), (0, 1, 2, 3)], ids=str)
def test_a_worker_holds_the_rows_of_its_shards_as_one_with_all_would(hosted):
    sharding = Sharding.create(10, 4, seed=0)
    options = dict(embedding_dim=3, constrainer="normalize", sharding=sharding)
    torch.manual_seed(0)
    whole = Embedding(**options)
    torch.manual_seed(0)
    part = Embedding(hosted=hosted, **options)
    assert torch.equal(part.weight, whole.weight[list(hosted)])
    here = [i for i in range(10) if sharding.entity_to_shard[i] in hosted]
    assert torch.equal(part(torch.tensor(here)), whole(torch.tensor(here)))
    with torch.no_grad():
        part.weight.mul_(3.0)
    part.post_parameter_update()
    torch.testing.assert_close(part.weight, whole.weight[list(hosted)])
    if len(hosted) < 4:
        elsewhere = sorted(set(range(10)) - set(here))[0]
        with pytest.raises(IndexError, match="some of these IDs have their rows elsewhere"):
            part(torch.tensor([elsewhere]))
        with pytest.raises(ConfigError, match="lay out anew where all are"):
            part.update_sharding(Sharding.create(10, 2, seed=0))


def test_hosted_shards_that_there_are_not():
    sharding = Sharding.create(10, 4, seed=0)
    for wrong in ((4,), (0, 0), ()):
        with pytest.raises(ConfigError, match="expected different shards of"):
            Embedding(embedding_dim=3, sharding=sharding, hosted=wrong)
    with pytest.raises(ConfigError, match=r"hosted=\(0,\) needs a sharding"):
        Embedding(10, embedding_dim=3, hosted=[0])
