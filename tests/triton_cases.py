"""Launches of every kernel at sizes of real training, of tensors without memory."""

from __future__ import annotations

import functools

import torch
from sampled_loss_support import RULES

from besskge_core.ops.gpu.best_k import best_k
from besskge_core.ops.gpu.gather import gather
from besskge_core.ops.gpu.indexed import indexed, indexed_backward
from besskge_core.ops.gpu.pairwise import pairwise, pairwise_backward
from besskge_core.ops.gpu.rank_counts import rank_counts
from besskge_core.ops.gpu.sampled_loss import sampled_loss
from besskge_core.ops.gpu.scatter_update import FORMS, scatter_update, update_rows
from besskge_core.ops.gpu.segments import sum_runs
from besskge_core.ops.gpu.softmax_tiles import softmax_gradient, softmax_log_sum
from besskge_core.ops.gpu.tile_products import softmax_gradients, softmax_scores
from besskge_core.ops.pairwise import COMPARISONS
from besskge_core.ops.rules import Rule
from besskge_core.ops.sampled_loss import MOVES

meta = functools.partial(torch.empty, device="meta")


def integers(*shape, dtype=torch.int64):
    return meta(shape, dtype=dtype)


def update(rule, dtype, width, n_row=2_500_604, n_value=50_000, n_unique=40_000):
    """A planned update, of a table as large as wikikg2's."""
    momentum, divisor, per_row = FORMS[rule]
    state = [meta(n_row, width)] * bool(momentum)
    state += [meta(n_row, 1 if per_row else width)] * bool(divisor)
    scatter_update(
        meta(n_row, width, dtype=dtype), state, meta(n_value, width), integers(n_unique),
        integers(n_unique), integers(n_value), rule, 0.1, 0.0, 0.9, 0.99, 1e-8, 3, 7, 1,
    )  # fmt: skip


def captured_update(rule, width=100, n_row=2_500_604, n_value=50_000):
    """An update whose step and learning rate lie on the device."""
    state = [meta(n_row, width)] * 2
    update_rows(
        meta(n_row, width), state, meta(n_value, width),
        padded_plan(n_value),
        Rule(rule, meta((), dtype=torch.float64), 0.1, 0.9, 0.99, 1e-8), integers(), None, 0,
    )  # fmt: skip


def pairs(comparison, weighted=False, n_query=2048, n_candidate=640, width=100):
    """Scores and gradients, as in a step of wikikg2."""
    q, e = meta(n_query, width), meta(n_candidate, width)
    weight, scores = meta(n_query, width) if weighted else None, meta(n_query, n_candidate)
    pairwise(q, e, comparison, weight)
    pairwise_backward(scores, scores, q, e, comparison, weight)


def padded_plan(n_value):
    return integers(n_value + 1), integers(n_value + 1), integers(n_value)


def lists(comparison, width, n_query=2048, n_each=64):
    """Scores of queries with rows of their own, and gradients."""
    q, table, index = meta(n_query, width), meta(2_500_604, width), integers(n_query, n_each)
    scores, plan = indexed(q, table, index, comparison), padded_plan(n_query * n_each)
    indexed_backward(scores, scores, q, table, index, comparison, *plan)


def loss_of_lists(rule, comparison, width, dtype, n_positive=8192, n_candidate=64):
    """Loss and gradients of a step whose positives have candidates of their own."""
    table, relation = meta(2_500_604, width, dtype=dtype), meta(535, width, dtype=dtype)
    n_read = n_positive * (2 + n_candidate)
    sampled_loss(
        table, integers(n_read), relation, integers(n_positive), None, n_candidate, True, True,
        "scaling", comparison, *rule[:3], rule[3:9], rule.scale, True, *padded_plan(n_read),
    )  # fmt: skip


def loss(rule, comparison, move, width, dtype=torch.float32, n_positive=2048, n_candidate=640):
    """Loss and gradients of a step of wikikg2."""
    table, relation = meta(2_500_604, width, dtype=dtype), meta(535, width, dtype=dtype)
    sampled_loss(
        table, integers(2 * n_positive + n_candidate), relation,
        integers(n_positive), None, n_candidate, False, False, move, comparison, *rule[:3],
        rule[3:9], rule.scale, True, None, None, None,
    )  # fmt: skip


def ranks(dtype, n_query=1000, n_column=14_541, n_filtered=60_000):
    rank_counts(
        meta(n_query, n_column, dtype=dtype), meta(n_query, dtype=dtype), integers(n_query),
        integers(n_query + 1), integers(n_filtered), 0,
    )  # fmt: skip


def best(dtype, k, n_query=1000, n_column=14_541, n_filtered=60_000):
    best_k(
        meta(n_query, n_column, dtype=dtype), integers(n_query + 1), integers(n_filtered), k, 0
    )  # fmt: skip


def softmax(dtype, margin, excludes=True, n_query=1000, n_column=14_541):
    """Cross-entropy of scores with all entities of FB15k-237."""
    scores, excluded = meta(n_query, n_column, dtype=dtype), integers(n_column, dtype=torch.bool)
    places = (excluded if excludes else None, integers(n_query), integers(n_query))
    softmax_log_sum(scores, *places, margin, 1.0)
    slope = meta(n_query), meta(n_query), meta(n_query)
    softmax_gradient(scores, *places, *slope, margin, 1.0)


def on_tensor_cores(launch):
    """With float32 rounded for them."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        launch()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def all_products(dtype, width, n_row, add, excludes, n_query=1000):
    """Cross-entropy of inner products with all entities."""
    query, rows = meta(n_query, width), meta(n_row, width)
    excluded = integers(n_row, dtype=torch.bool) if excludes else None
    places = excluded, integers(n_query), integers(n_query)
    scores, *_ = softmax_scores(query, rows, *places, 0.0, 1.0, dtype, True, n_row)
    slope = meta(n_query), meta(n_query), meta(n_query)
    softmax_gradients(
        scores, query, rows, *places, *slope, 0.0, 1.0, dtype, query, rows, add, n_row
    )


CASES = {
    "gather float32": lambda: gather(meta(1, 2_500_604, 100), integers(1, 50_000)),
    "best 1": functools.partial(best, torch.float32, 1),
    "best 10, parts": functools.partial(best, torch.float32, 10, 1, 2_500_604, 0),
    "captured update": functools.partial(captured_update, "adam"),
    "gather bfloat16": lambda: gather(
        meta(2, 9_000, 256, dtype=torch.bfloat16), integers(2, 999, dtype=torch.int32)
    ),
    "sum of runs": lambda: sum_runs(meta(50_000, 256), integers(1_000), integers(50_000)),
}
for _dtype in (torch.float32, torch.bfloat16):
    CASES[f"ranks {_dtype}"] = functools.partial(ranks, _dtype)
    for _k in (10, 128):
        CASES[f"best {_k} {_dtype}"] = functools.partial(best, _dtype, _k)
    for _margin in (0.0, 0.3):
        CASES[f"softmax {_dtype}, margin {_margin}"] = functools.partial(
            softmax, _dtype, _margin, _margin > 0.0
        )
for _dtype in (torch.float32, torch.bfloat16):
    for _width, _n_row in ((100, 2_500_604), (256, 40_943), (2000, 14_541)):
        CASES[f"products {_dtype} {_width}"] = functools.partial(
            on_tensor_cores,
            functools.partial(all_products, _dtype, _width, _n_row, _width == 100, _width == 256),
        )
for _i, _rule in enumerate(RULES):
    _move, _comparison = MOVES[_i % len(MOVES)], COMPARISONS[_i % len(COMPARISONS)]
    CASES[f"loss {_i}, {_move}, {_comparison}"] = functools.partial(
        loss, _rule, _comparison, _move, (100, 256, 2000)[_i % 5 % 3]
    )
for _comparison in COMPARISONS:
    for _width in (100, 2000):
        CASES[f"loss of bfloat16, {_comparison} {_width}"] = functools.partial(
            loss, RULES[3], _comparison, "complex_scaling", _width, torch.bfloat16
        )
for _comparison in ("dot", "l2"):
    for _rule in (RULES[3], RULES[8], RULES[12]):
        CASES[f"loss of narrow bfloat16, {_comparison}, {_rule.kind}"] = functools.partial(
            loss, _rule, _comparison, "scaling", 256, torch.bfloat16, 8192, 8192
        )
CASES["loss of narrow rows on tensor cores"] = functools.partial(
    on_tensor_cores, functools.partial(loss, RULES[3], "dot", "scaling", 100)
)
for _comparison in COMPARISONS:
    CASES[f"lists {_comparison}"] = functools.partial(lists, _comparison, 100)
    for _dtype, _width in ((torch.bfloat16, 256), (torch.float32, 2000)):
        CASES[f"loss of lists of {_dtype}, {_comparison}"] = functools.partial(
            loss_of_lists, RULES[3], _comparison, _width, _dtype
        )
for _comparison in COMPARISONS[1:]:
    CASES[f"pairs {_comparison}"] = functools.partial(pairs, _comparison)
for _comparison in ("l1", "l2"):
    CASES[f"pairs weighted {_comparison}"] = functools.partial(pairs, _comparison, True)
for _rule in FORMS:
    for _dtype, _width in ((torch.float32, 100), (torch.bfloat16, 256)):
        CASES[f"update {_rule} {_dtype}"] = functools.partial(update, _rule, _dtype, _width)
for _dtype in (torch.float32, torch.bfloat16):
    for _rule in ("adam", "rowwise_adagrad"):
        _wide = functools.partial(update, _rule, _dtype, 2000, n_row=14_541)
        CASES[f"update {_rule} {_dtype}, wide"] = _wide
