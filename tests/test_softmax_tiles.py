"""The softmax of tiles, and of products a tile at a time, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from support import needs_opcheck
from torch.testing import assert_close

from besskge_core.errors import ShapeError
from besskge_core.ops import (
    Logits,
    Slope,
    buffer,
    inner_products,
    softmax_gradient,
    softmax_gradients,
    softmax_log_sum,
    softmax_scores,
)
from besskge_core.ops.native import NATIVE

needs_native = pytest.mark.skipif(not NATIVE, reason="the native operations are not built")
INF = float("inf")

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
TOLERANCE = {  # of what has the dtype of the scores
    torch.float32: dict(rtol=2e-5, atol=2e-6),
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.bfloat16: dict(rtol=8e-3, atol=1e-6),
}
SHAPES = {  # name -> queries, columns, labels
    "some": (5, 70, 9),
    "one row": (1, 33, 1),
    "one column": (3, 1, 2),
    "no rows": (0, 8, 0),
    "longer than a block": (3, 5000, 7),
}
OPTIONS = {"plain": {}, "margin and temperature": dict(margin=0.7, temperature=0.3)}


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


def make_logits(n_query, n_column, n_label, generator, excluded=False, **options):
    """Labels at distinct places, some of them in one row; none in an excluded column."""
    place = torch.randperm(n_query * max(n_column - 1, 1), generator=generator)[:n_label]
    mask = torch.zeros(n_column, dtype=torch.bool)
    mask[-1:] = excluded
    return Logits(
        place % max(n_query, 1), place // max(n_query, 1), mask if excluded else None, **options
    )


def make_slope(n_query, n_label, log_total, generator):
    weight, of_label = (torch.rand(n, generator=generator) for n in (n_query, n_label))
    return Slope(log_total, weight.to(log_total.dtype), of_label.to(log_total.dtype))


def formula(scores, logits, slope=None):
    """log_sum, own, gradient of the scores in float64, entry by entry."""
    logit = scores.double().clone()
    for q, c in zip(logits.row.tolist(), logits.column.tolist()):
        logit[q, c] -= logits.margin
    logit /= logits.temperature
    own = logit[logits.row, logits.column]
    if logits.excluded is not None:
        logit[:, logits.excluded] = -INF
    if slope is None:
        return logit.logsumexp(1), own
    grad = slope.weight.double()[:, None] * (logit - slope.log_total.double()[:, None]).exp()
    for k, (q, c) in enumerate(zip(logits.row.tolist(), logits.column.tolist())):
        grad[q, c] -= slope.of_label[k].double()
    return grad


def check(scores, logits, generator):
    before = scores.clone()
    log_sum, own = softmax_log_sum(scores, logits)
    wide = torch.promote_types(scores.dtype, torch.float32)
    assert log_sum.dtype == own.dtype == wide
    expected = formula(scores, logits)
    tolerance = TOLERANCE[wide]
    assert_close(log_sum.double(), expected[0], **tolerance)
    assert_close(own.double(), expected[1], **tolerance)
    slope = make_slope(len(scores), len(logits.row), log_sum, generator)
    grad = softmax_gradient(scores, logits, slope)
    assert grad.dtype == scores.dtype and grad.shape == scores.shape
    assert_close(grad.double(), formula(scores, logits, slope), **TOLERANCE[scores.dtype])
    assert torch.equal(scores, before)


# -- tiles of scores ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_log_sum_and_gradient_are_those_of_the_formula(shape, options, dtype, generator):
    scores = (4 * torch.randn(shape[:2], generator=generator)).to(dtype)
    check(scores, make_logits(*shape, generator, **options), generator)


def test_excluded_columns_take_no_part(dtype, generator):
    scores = torch.randn(4, 37, generator=generator).to(dtype)
    scores[:, -1] = 90.0
    check(scores, make_logits(4, 37, 5, generator, excluded=True, margin=0.2), generator)


def test_a_label_given_twice_counts_twice(dtype, generator):
    scores = torch.randn(2, 20, generator=generator).to(dtype)
    place = torch.tensor([1, 1, 0]), torch.tensor([7, 7, 19])
    check(scores, Logits(*place, margin=0.5), generator)


def test_rows_may_lie_apart_and_so_may_columns(dtype, generator):
    wide = torch.randn(6, 90, generator=generator).to(dtype)
    logits = make_logits(6, 45, 4, generator, margin=0.1)
    for scores in (wide[:, 20:65], wide[:, ::2], wide.T[:45].T):
        check(scores, logits, generator)


def test_huge_scores_lose_nothing(dtype):
    scores = torch.tensor([[1e30, -1e30, 5e29, 1e30], [-1e30, -1e30, -INF, 0.0]]).to(dtype)
    for temperature in (1.0, 0.3, 0.7):
        logits = Logits(torch.tensor([0]), torch.tensor([2]), temperature=temperature)
        log_sum, _ = softmax_log_sum(scores, logits)
        assert log_sum[0] == scores[0, 0].to(log_sum.dtype) / temperature and log_sum[1] == 0.0
        slope = Slope(log_sum, log_sum.new_ones(2), log_sum.new_full((1,), 0.5))
        grad = softmax_gradient(scores, logits, slope)
        assert grad.tolist() == [[1.0, 0.0, -0.5, 1.0], [0.0, 0.0, 0.0, 1.0]]


def test_a_row_that_is_all_excluded_sums_up_to_minus_infinity_and_has_no_gradient(dtype):
    scores = torch.full((2, 40), -INF).to(dtype)
    none = torch.empty(0, dtype=torch.int64)
    excluded = torch.ones(40, dtype=torch.bool)
    for x, logits in ((scores, Logits(none, none)), (scores + 3, Logits(none, none, excluded))):
        log_sum, _ = softmax_log_sum(x, logits)
        assert log_sum.tolist() == [-INF, -INF]
        slope = Slope(log_sum, log_sum.new_ones(2), log_sum.new_ones(0))
        assert softmax_gradient(x, logits, slope).tolist() == [[0.0] * 40] * 2


@pytest.mark.parametrize("place", [0, 16, 39])
def test_nan_stays_in_its_row(dtype, place):
    scores = torch.zeros(2, 40).to(dtype)
    scores[1, place] = float("nan")
    none = torch.empty(0, dtype=torch.int64)
    log_sum, _ = softmax_log_sum(scores, Logits(none, none))
    assert log_sum.isnan().tolist() == [False, True]
    slope = Slope(log_sum.new_zeros(2), log_sum.new_ones(2), log_sum.new_ones(0))
    grad = softmax_gradient(scores, Logits(none, none), slope)
    assert grad.isnan().nonzero().tolist() == [[1, place]]


def test_the_margin_of_a_label_is_not_lost_in_bfloat16():
    scores = torch.full((1, 2), 32.0, dtype=torch.bfloat16)  # where 0.02 has no room
    logits = Logits(torch.tensor([0]), torch.tensor([0]), margin=0.02)
    log_sum, own = softmax_log_sum(scores, logits)
    assert_close(own, torch.tensor([31.98]))
    assert_close(log_sum, torch.tensor([31.98, 32.0]).logsumexp(0, keepdim=True), rtol=1e-7, atol=0)


# -- products ----------------------------------------------------------------------------------


def make_products(generator, n_query=6, n_row=2100, width=8, dtype=torch.float32):
    query, rows = (torch.randn(n, width, generator=generator) for n in (n_query, n_row))
    return query.to(dtype), rows.to(dtype)


def gradients(query, rows, logits, dtype, keep, tile=1024, add_to=None):
    """log_sum, own, and the gradients of queries and rows."""
    scored = softmax_scores(query, rows, logits, dtype, keep, tile)
    generator = torch.Generator().manual_seed(1)
    slope = make_slope(len(query), len(logits.row), scored.log_sum, generator)
    of_query = torch.full_like(query, 7.0)
    of_rows = torch.full_like(rows, float("nan")) if add_to is None else add_to.clone()
    softmax_gradients(
        scored, query, rows, logits, slope, dtype, of_query, of_rows, add_to is not None, tile
    )
    return scored.log_sum, scored.own, of_query, of_rows, slope


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("options", [dict(), dict(excluded=True, margin=0.3, temperature=0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_their_gradients_are_those_of_the_formula(generator, dtype, options, keep):
    tile = 1024 if keep else 300
    query, rows = make_products(generator, dtype=dtype)
    logits = make_logits(6, 2100, 9, generator, **options)
    log_sum, own, of_query, of_rows, slope = gradients(query, rows, logits, dtype, keep, tile)
    scores = query.double() @ rows.double().T
    tolerance = dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else {}
    assert_close(log_sum.double(), formula(scores, logits)[0], **tolerance)
    assert_close(own.double(), formula(scores, logits)[1], **tolerance)
    grad = formula(scores, logits, slope)
    assert_close(of_query.double(), grad @ rows.double(), **tolerance)
    assert_close(of_rows.double(), grad.T @ query.double(), **tolerance)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
def test_products_in_bfloat16_are_close_and_their_sums_in_float32(generator, keep):
    query, rows = make_products(generator)
    logits = make_logits(6, 2100, 9, generator)
    exact = gradients(query, rows, logits, torch.float32, keep)
    half = gradients(query, rows, logits, torch.bfloat16, keep)
    assert all(x.dtype == torch.float32 for x in half[:4])
    assert_close(half[0], exact[0], rtol=0, atol=0.05)
    for x, y in zip(half[2:4], exact[2:4]):
        assert not torch.equal(x, y)
        assert torch.cosine_similarity(x.flatten(), y.flatten(), dim=0) > 0.9995


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_rows_are_added_to_what_is_there(generator, dtype):
    query, rows = make_products(generator)
    logits, before = make_logits(6, 2100, 9, generator), torch.randn(2100, 8, generator=generator)
    alone = gradients(query, rows, logits, dtype, True)[3]
    assert_close(gradients(query, rows, logits, dtype, True, add_to=before)[3], before + alone)


@pytest.mark.parametrize("n_query, n_row", [(0, 5), (3, 0), (1, 1)])
def test_few_queries_or_rows_have_products_too(generator, n_query, n_row):
    query, rows = make_products(generator, n_query, n_row)
    logits = make_logits(n_query, n_row, 0, generator)
    log_sum, _, of_query, of_rows, _ = gradients(query, rows, logits, torch.float32, True)
    assert_close(log_sum, (query @ rows.T).logsumexp(1))
    assert of_query.shape == query.shape and of_rows.shape == rows.shape
    if n_row == 0:
        assert of_query.tolist() == [[0.0] * 8] * 3


@pytest.mark.parametrize("n_row", [0, 1, 1024, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_are_those_of_torch(generator, dtype, n_row):
    query, rows = make_products(generator, 5, n_row, dtype=dtype)
    assert_close(inner_products(query, rows), query @ rows.T, rtol=1e-5, atol=1e-5)


# -- manners of the native operations ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set_computes_the_same(instruction_set, dtype, generator):
    for n_column in (1, 7, 16, 61, 2300):
        scores = (5 * torch.randn(4, n_column, generator=generator)).to(dtype)
        check(scores, make_logits(4, n_column, 3, generator, margin=0.2), generator)
    test_huge_scores_lose_nothing(dtype)
    test_nan_stays_in_its_row(dtype, 39)


def test_every_instruction_set_rounds_to_bfloat16_as_torch_does(instruction_set):
    values = torch.linspace(-80.0, 0.0, 4001)[None]
    none = torch.empty(0, dtype=torch.int64)
    slope = Slope(torch.zeros(1), torch.ones(1), torch.ones(0))
    exact = softmax_gradient(values.bfloat16().float(), Logits(none, none), slope)
    found = softmax_gradient(values.bfloat16(), Logits(none, none), slope)
    assert torch.equal(found, exact.bfloat16())


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(threads, generator, dtype):
    query, rows = make_products(generator, 33, 5000)
    logits, found = make_logits(33, 5000, 40, generator, margin=0.1), []
    scores = (query @ rows.T).to(dtype)
    for n_thread in (1, 2, 4):
        threads(n_thread)
        log_sum, own = softmax_log_sum(scores, logits)
        slope = make_slope(33, 40, log_sum, torch.Generator().manual_seed(2))
        grad = softmax_gradient(scores, logits, slope)
        found.append((log_sum, own, grad, *gradients(query, rows, logits, dtype, True)[:4]))
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other))


@needs_native
def test_a_buffer_is_of_the_shape_and_type_asked_for():
    for like in (torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)):
        made = buffer((3, 4), like)
        assert made.shape == (3, 4) and made.dtype == like.dtype and made.is_contiguous()


@needs_native
@needs_opcheck
def test_the_registrations_are_right(generator):
    query, rows = make_products(generator, 4, 32)  # whole tiles: the rest of one is undefined
    logits, ops = make_logits(4, 32, 3, generator), torch.ops.besskge
    places = (logits.excluded, logits.row, logits.column)
    scores, check_op = query @ rows.T, torch.library.opcheck
    slope = make_slope(4, 3, torch.zeros(4), generator)
    scored = softmax_scores(query, rows, logits, torch.float32, True, 16)
    check_op(ops.buffer, ([2, 3], torch.float32), test_utils=["test_schema"])
    check_op(ops.inner_products, (query, rows))
    check_op(ops.softmax_log_sum, (scores, *places, 0.1, 2.0))
    check_op(ops.softmax_gradient, (scores, *places, *slope, 0.1, 2.0))
    check_op(ops.softmax_scores, (query, rows, *places, 0.1, 2.0, torch.float32, True, 16))
    check_op(
        ops.softmax_gradients,
        (scored.scores, query, rows, *places, *slope, 0.0, 1.0, torch.float32,
         torch.empty_like(query), torch.empty_like(rows), False, 16),
    )  # fmt: skip


# -- errors ------------------------------------------------------------------------------------


def test_other_shapes_are_refused():
    none, scores = torch.empty(0, dtype=torch.int64), torch.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"scores has shape \(3,\), expected \(Q, T\)"):
        softmax_log_sum(scores[0], Logits(none, none))
    with pytest.raises(ShapeError, match=r"column has shape \(1,\), expected \(K\) with .*K=0"):
        softmax_log_sum(scores, Logits(none, torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(ShapeError, match=r"excluded has shape \(4,\), expected \(T\)"):
        softmax_log_sum(scores, Logits(none, none, torch.zeros(4, dtype=torch.bool)))
    with pytest.raises(ShapeError, match=r"log_total has shape \(3,\), expected \(Q\)"):
        softmax_gradient(scores, Logits(none, none), Slope(*torch.zeros(2, 3), torch.zeros(0)))
    with pytest.raises(
        ShapeError, match=r"rows has shape \(4, 2\), expected \(M, D\) with Q=2, D=3"
    ):
        softmax_scores(scores, torch.zeros(4, 2), Logits(none, none), torch.float32, True)
    with pytest.raises(ShapeError, match=r"rows has shape \(4, 2\), expected \(M, D\)"):
        inner_products(scores, torch.zeros(4, 2))


@needs_native
def test_labels_outside_of_the_scores_are_refused():
    for row, column in ((2, 0), (-1, 0), (0, 3), (0, -1)):
        logits = Logits(torch.tensor([row]), torch.tensor([column]))
        with pytest.raises(
            IndexError, match=rf"a label at \({row}, {column}\), outside of \(2, 3\)"
        ):
            softmax_log_sum(torch.zeros(2, 3), logits)
    with pytest.raises(TypeError, match="softmax_log_sum expects labels in int64"):
        softmax_log_sum(torch.zeros(2, 3), Logits(*torch.zeros(2, 1, dtype=torch.int32)))


@needs_native
def test_tiles_of_no_rows_and_other_scores_are_refused():
    none, query, rows = torch.empty(0, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(5, 3)
    logits = Logits(none, none)
    with pytest.raises(ValueError, match="expects tiles of at least 1 row, got 0"):
        softmax_scores(query, rows, logits, torch.float32, True, 0)
    scored = softmax_scores(query, rows, logits, torch.float32, True, 4)
    slope = Slope(torch.zeros(2), torch.zeros(2), torch.zeros(0))
    with pytest.raises(ValueError, match="expects the scores that softmax_scores gave, got"):
        softmax_gradients(
            scored, query, rows, logits, slope, torch.float32, query, rows.clone(), False, 2
        )
