"""Launches of every kernel at sizes of real training, of tensors without memory."""

from __future__ import annotations

import functools

import torch

from besskge_core.ops.gpu.gather import gather
from besskge_core.ops.gpu.pairwise import pairwise, pairwise_backward
from besskge_core.ops.gpu.scatter_update import FORMS, scatter_update
from besskge_core.ops.gpu.segments import sum_runs
from besskge_core.ops.pairwise import COMPARISONS

meta = functools.partial(torch.empty, device="meta")


def integers(*shape, dtype=torch.int64):
    return meta(*shape, dtype=dtype)


def update(rule, dtype, width, n_row=2_500_604, n_value=50_000, n_unique=40_000):
    """A planned update, of a table as large as wikikg2's."""
    momentum, divisor, per_row = FORMS[rule]
    state = [meta(n_row, width)] * bool(momentum)
    state += [meta(n_row, 1 if per_row else width)] * bool(divisor)
    scatter_update(
        meta(n_row, width, dtype=dtype), state, meta(n_value, width), integers(n_unique),
        integers(n_unique), integers(n_value), rule, 0.1, 0.0, 0.9, 0.99, 1e-8, 3, 7, 1,
    )  # fmt: skip


def pairs(comparison, weighted=False, n_query=2048, n_candidate=640, width=100):
    """Scores and gradients, as in a step of wikikg2."""
    q, e = meta(n_query, width), meta(n_candidate, width)
    weight, scores = meta(n_query, width) if weighted else None, meta(n_query, n_candidate)
    pairwise(q, e, comparison, weight)
    pairwise_backward(scores, scores, q, e, comparison, weight)


CASES = {
    "gather float32": lambda: gather(meta(1, 2_500_604, 100), integers(1, 50_000)),
    "gather bfloat16": lambda: gather(
        meta(2, 9_000, 256, dtype=torch.bfloat16), integers(2, 999, dtype=torch.int32)
    ),
    "sum of runs": lambda: sum_runs(meta(50_000, 256), integers(1_000), integers(50_000)),
}
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
