"""Codelets of the IPU, compiled for this machine and run under AddressSanitizer: numpy's values.

Axes:
    B: queries      N: candidates      D: width of a row
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HOST = Path(__file__).parent.parent / "custom_ops" / "ipu" / "host"
COMPARISONS = ("l1", "l2", "l2_squared", "modulus")  # in the order of comparisons.h
SCORES, GRADIENTS, COEFFICIENTS, TILING = range(4)

# Fewer pairs than workers; widths that are odd, that fill lanes and that do not; long rows.
SIZES = [(1, 1, 2), (1, 6, 1), (3, 5, 7), (7, 13, 10), (2, 9, 12), (5, 1, 33), (11, 4, 66)]

compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
pytestmark = pytest.mark.skipif(compiler is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Calls a vertex: its case and its inputs to its outputs, one after the other."""
    program = tmp_path_factory.mktemp("codelets") / "pairwise"
    sanitize = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        [*compiler.split(), "-std=c++17", "-Wall", "-Wextra", "-Werror", *sanitize]
        + [f"-I{HOST}", str(HOST / "pairwise_on_host.cpp"), "-o", str(program)],
        check=True,
    )

    log = (program.parent / "log").open("w+")
    running = []

    def run(vertex, comparison, sizes, *inputs, reverse=False):
        if not running:
            log.seek(0)
            log.truncate()
            options = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
            running.append(subprocess.Popen([str(program)], env=options, **pipes))
        (process,) = running
        is_half = bool(inputs) and inputs[0].dtype == np.float16
        case = np.array([vertex, comparison, is_half, *sizes, reverse], np.int32)
        try:
            process.stdin.write(b"".join(x.tobytes() for x in (case, *inputs)))
            process.stdin.flush()
            (n_number,) = np.frombuffer(process.stdout.read(4), np.int32)
            return np.frombuffer(process.stdout.read(4 * n_number), np.float32)
        except (ValueError, BrokenPipeError):  # it has stopped, and said why
            running.clear()
            process.communicate()
            log.seek(0)
            pytest.fail(f"exit status {process.returncode}: {log.read()}")

    yield run
    for process in running:
        process.communicate()
        assert process.returncode == 0
    log.close()


@pytest.fixture(params=["float32", "float16"])
def dtype(request):
    return request.param


@pytest.fixture(params=COMPARISONS)
def comparison(request):
    return request.param


def rows(sizes, dtype, comparison, seed=0):
    """q (B, D), e (N, D), with entries that agree and rows that do; D is twice that if complex."""
    n_query, n_candidate, width = sizes
    width *= 2 if comparison == "modulus" else 1
    random = np.random.default_rng(seed)
    q = random.normal(size=(n_query, width)).astype(dtype)
    e = random.normal(size=(n_candidate, width)).astype(dtype)
    e[:, ::3] = q[0, ::3]
    e[-1] = q[-1]
    return q, e


def wide(*tensors):
    return tuple(x.astype(np.float64) for x in tensors)


def parts(difference):
    return np.split(difference, 2, axis=-1)


def scores(q, e, comparison):
    """(B, N), in float64."""
    q, e = wide(q, e)
    d = q[:, None] - e
    if comparison == "l1":
        return -np.abs(d).sum(-1)
    if comparison == "modulus":
        return -np.hypot(*parts(d)).sum(-1)
    return -((d**2).sum(-1) ** (0.5 if comparison == "l2" else 1.0))


def gradients(q, e, slope, comparison):
    """(B, D), (N, D), of sum(slope * scores), in float64; that of a norm is 0 at 0."""
    q, e, slope = wide(q, e, slope)
    d = q[:, None] - e
    with np.errstate(invalid="ignore", divide="ignore"):
        if comparison == "l1":
            by_q = -np.sign(d)
        elif comparison == "l2_squared":
            by_q = -2 * d
        elif comparison == "l2":
            norm = np.sqrt((d**2).sum(-1, keepdims=True))
            by_q = np.where(norm == 0, 0, -d / norm)
        else:
            modulus = np.tile(np.hypot(*parts(d)), 2)
            by_q = np.where(modulus == 0, 0, -d / modulus)
    by_q *= slope[..., None]
    return by_q.sum(1), -by_q.sum(0)


def host_scores(host, q, e, comparison, **how):
    sizes = (len(q), len(e), q.shape[1])
    out = host(SCORES, COMPARISONS.index(comparison), sizes, q, e, **how)
    return out.reshape(len(q), len(e))


def host_gradients(host, q, e, slope, comparison, **how):
    """As pairwise.cpp calls them: slopes by a norm go through NormCoefficients first."""
    if comparison == "l2":
        # Scores in float32, as of rows in float32: what halves round is no matter of this vertex.
        score = scores(q, e, comparison).astype(np.float32)
        slope = host(COEFFICIENTS, 0, (slope.size, 0, 0), slope, score, **how)
    sizes = (len(q), len(e), q.shape[1])
    out = host(GRADIENTS, COMPARISONS.index(comparison), sizes, q, e, slope, **how)
    return out[: q.size].reshape(q.shape), out[q.size :].reshape(e.shape)


def assert_near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scores_are_numpys(host, sizes, dtype, comparison):
    q, e = rows(sizes, dtype, comparison)
    assert_near(host_scores(host, q, e, comparison), scores(q, e, comparison))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_are_numpys(host, sizes, dtype, comparison):
    q, e = rows(sizes, dtype, comparison)
    slope = np.random.default_rng(1).normal(size=(len(q), len(e))).astype(np.float32)
    got = host_gradients(host, q, e, slope, comparison)
    for x, expected in zip(got, gradients(q, e, slope, comparison)):
        assert_near(x, expected)


def test_the_order_of_workers_changes_no_bit(host, dtype, comparison):
    q, e = rows((7, 13, 10), dtype, comparison)
    slope = np.random.default_rng(1).normal(size=(len(q), len(e))).astype(np.float32)
    for run in (
        host_scores,
        lambda *a, **k: np.concatenate(host_gradients(*a[:-1], slope, a[-1], **k)),
    ):
        there, back = (run(host, q, e, comparison, reverse=reverse) for reverse in (False, True))
        assert there.tobytes() == back.tobytes()


def test_the_gradient_of_equal_rows_is_zero(host, dtype, comparison):
    q = np.random.default_rng(2).normal(size=(1, 6)).astype(dtype)
    slope = np.ones((1, 1), np.float32)
    assert host_scores(host, q, q, comparison) == 0
    for gradient in host_gradients(host, q, q, slope, comparison):
        assert (gradient == 0).all()


def test_rows_of_zeros_are_like_any(host, dtype, comparison):
    q, e = rows((2, 3, 4), dtype, comparison)
    q[0], e[1] = 0, 0
    slope = np.ones((2, 3), np.float32)
    assert_near(host_scores(host, q, e, comparison), scores(q, e, comparison))
    for x, expected in zip(
        host_gradients(host, q, e, slope, comparison), gradients(q, e, slope, comparison)
    ):
        assert_near(x, expected)


def test_what_is_not_a_number_stays_with_its_pairs(host, dtype, comparison):
    q, e = rows((3, 4, 5), dtype, comparison)
    q[1, 2] = np.nan
    slope = np.ones((3, 4), np.float32)
    assert np.isnan(scores(q, e, comparison)[1]).all()
    assert_near(host_scores(host, q, e, comparison), scores(q, e, comparison))
    dq, de = host_gradients(host, q, e, slope, comparison)
    assert np.isnan(dq[1]).any() and not np.isnan(dq[[0, 2]]).any()
    for x, expected in zip((dq, de), gradients(q, e, slope, comparison)):
        assert_near(x, expected)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (3, 0, 4)], ids=["no queries", "no candidates"])
def test_nothing_to_compare_is_no_error(host, sizes, comparison):
    q, e = (np.ones((n, sizes[2]), np.float32) for n in sizes[:2])
    slope = np.ones((len(q), len(e)), np.float32)
    assert host_scores(host, q, e, comparison).size == 0
    for gradient in host_gradients(host, q, e, slope, comparison):
        assert (gradient == 0).all()


def test_every_half_is_read(host):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    ones = np.ones_like(halves)
    got = host(COEFFICIENTS, 0, (halves.size, 0, 0), halves, ones)
    np.testing.assert_array_equal(got, halves.astype(np.float32))


def test_the_coefficient_of_a_norm(host, dtype):
    slope, score = np.array([[2, 3, 0], [-4, 0, np.nan]], dtype)
    got = host(COEFFICIENTS, 0, (3, 0, 0), slope, score)
    np.testing.assert_array_equal(got, np.array([-0.5, 0, np.nan], np.float32))


def parts_of(host, sizes, n_tile):
    """Of each tile: its slices of the queries and of the candidates, its place down and across."""
    for row, row_end, column, column_end, *place in (
        host(TILING, n_tile, sizes).reshape(-1, 6).astype(int)
    ):
        yield slice(row, row_end), slice(column, column_end), place


@pytest.mark.parametrize("n_tile", [1, 4, 1472])
@pytest.mark.parametrize("sizes", [(1, 1, 8), (1, 5000, 256), (512, 3, 100), (300, 2000, 128)])
def test_every_pair_is_on_one_tile_and_nearly_all_tiles_work(host, sizes, n_tile):
    n_query, n_candidate, _ = sizes
    times = np.zeros((n_query, n_candidate), int)
    largest = n_used = 0
    for own_q, own_e, _ in parts_of(host, sizes, n_tile):
        assert own_q.stop <= n_query and own_e.stop <= n_candidate
        times[own_q, own_e] += 1
        largest = max(largest, times[own_q, own_e].size)
        n_used += 1
    assert (times == 1).all() and n_used <= n_tile
    assert largest <= 2 * max(n_query * n_candidate / n_tile, 1)


def test_what_tiles_compute_adds_up(host, comparison):
    """As pairwise.cpp does it: scores side by side; gradients of tiles in layers, then summed."""
    q, e = rows((5, 9, 6), "float32", comparison)
    slope = np.random.default_rng(1).normal(size=(5, 9)).astype(np.float32)
    parts = list(parts_of(host, (5, 9, q.shape[1]), 7))
    assert len(parts) > 4
    got = np.full((5, 9), np.nan)
    dq, de = (
        np.full((1 + max(p[-1][k] for p in parts), *x.shape), np.nan) for k, x in ((1, q), (0, e))
    )
    for own_q, own_e, (down, across) in parts:
        got[own_q, own_e] = host_scores(host, q[own_q], e[own_e], comparison)
        dq[across, own_q], de[down, own_e] = host_gradients(
            host, q[own_q], e[own_e], slope[own_q, own_e], comparison
        )
    assert_near(got, scores(q, e, comparison))
    for x, expected in zip((dq, de), gradients(q, e, slope, comparison)):
        assert_near(x.sum(0), expected)
