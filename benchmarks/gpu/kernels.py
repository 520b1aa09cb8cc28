"""Each operation by itself, as :mod:`besskge_core.ops` serves it on this device."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor

from benchmarks.gpu.measure import Bench, Row, measured, prefixed, table
from besskge_core import ops
from besskge_core.ops.draws import Address, random_below
from besskge_core.ops.rows import plan_rows_padded
from besskge_core.ops.rules import STATES
from besskge_core.philox import Purpose

TITLE = "Operations"
GOAL_ROWS, GOAL_GEMM, GOAL_L1 = "70 % of a copy", "40 % of bf16 GEMM", "1.5 T pair-dims/s"


def measure(bench: Bench, roofs: Dict[str, float]) -> Dict[str, Any]:
    rows: List[Row] = []
    for part in (_moves, _updates, _pairs, _losses, _lists, _all_entities, _drawing):
        rows += part(bench, roofs)
    return {"rows": rows}


def as_markdown(found: Dict[str, Any]) -> List[str]:
    return table(found["rows"])


def _look_ups(bench: Bench, n_row: int, n_look_up: int) -> Tensor:
    """(K,), a tenth of them the same hundred rows, as hubs are."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(n_row, (n_look_up,), generator=generator)
    n_hub = n_look_up // 10
    rows[:n_hub] = torch.randint(min(100, n_row), (n_hub,), generator=generator)
    return rows[torch.randperm(n_look_up, generator=generator)].to(bench.device)


def _sizes(bench: Bench) -> Tuple[int, int]:
    """Rows of a table, and look-ups."""
    return bench.size(2_500_000, 500), bench.size(200_000, 300)


def _moves(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    (n_row, n), rows = _sizes(bench), []
    for width, dtype in ((100, torch.float32), (256, torch.float32), (256, torch.bfloat16)):

        def make(width: int = width, dtype: torch.dtype = dtype) -> Callable[[], object]:
            table = torch.zeros(1, n_row, width, dtype=dtype, device=bench.device)
            index = _look_ups(bench, n_row, n).unsqueeze(0)
            return lambda: ops.gather(table, index)

        n_byte = n * (2 * width * torch.finfo(dtype).bits // 8 + 8)
        name = f"gather {n} rows of {width}, {_short(dtype)}"
        rows.append(measured(bench, name, make, n_byte, "B", roofs["copy"], GOAL_ROWS))
    return rows


def _updates(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    (n_row, n), rows = _sizes(bench), []
    look_ups = _look_ups(bench, n_row, n)
    n_distinct = int(look_ups.unique().numel())
    for name, width, dtype in (
        ("sgd", 256, torch.float32), ("adagrad", 256, torch.float32),
        ("adagrad", 100, torch.float32), ("rowwise_adagrad", 256, torch.float32),
        ("adam", 256, torch.float32), ("adagrad", 256, torch.bfloat16),
    ):  # fmt: skip
        widths = [width] * len(STATES[name])
        if name.startswith("rowwise"):
            widths[-1] = 1

        def make(
            name: str = name, width: int = width, dtype: torch.dtype = dtype,
            widths: List[int] = widths,
        ) -> Callable[[], object]:  # fmt: skip
            weight = torch.zeros(n_row, width, dtype=dtype, device=bench.device)
            state = [torch.zeros(n_row, x, device=bench.device) for x in widths]
            values = torch.randn(n, width, device=bench.device)
            plan = plan_rows_padded(look_ups, n_row)
            rule = ops.Rule(name, 0.1, 0.0, 0.9, 0.99, 1e-8)
            rounding = ops.Rounding(0) if dtype == torch.bfloat16 else None
            return lambda: ops.scatter_update(weight, state, values, rule, 3, *plan, rounding)

        n_byte = n * (4 * width + 8) + n_distinct * (
            16 + 2 * width * torch.finfo(dtype).bits // 8 + 8 * sum(widths)
        )
        what = f"sum {n} gradients of {width}, {name} of {n_distinct} rows, {_short(dtype)}"
        rows.append(measured(bench, what, make, n_byte, "B", roofs["copy"], GOAL_ROWS))
    return rows


def _leaves(bench: Bench, *shapes: Tuple[int, ...]) -> List[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*x, generator=generator).to(bench.device).requires_grad_() for x in shapes]


def _pairs(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    n_query, n_entity, rows = bench.size(8192, 24), bench.size(4096, 16), []
    width = bench.size(200, 16)
    for comparison in ("l1", "modulus", "l2", "dot"):
        for backward in (False, True):

            def make(
                comparison: str = comparison, backward: bool = backward
            ) -> Callable[[], object]:
                q, e = _leaves(bench, (n_query, width), (n_entity, width))
                grad = torch.ones(n_query, n_entity, device=bench.device)

                def run() -> None:
                    with torch.set_grad_enabled(backward):
                        scores = ops.pairwise(q, e, comparison)
                    if backward:
                        torch.autograd.grad(scores, (q, e), grad)

                return run

            # A pair of the modulus has two numbers, of which the formula makes one.
            amount = n_query * n_entity * width * (1 + backward)
            name = f"{comparison} {n_query} x {n_entity} x {width}"
            name += ", with gradients" if backward else ""
            goal = GOAL_L1 if comparison in ("l1", "modulus") else ""
            rows.append(measured(bench, name, make, amount, " pair-dims", None, goal))
    return rows


def _losses(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    n, rows = bench.size(8192, 24), []
    wide, narrow = bench.size(512, 300), bench.size(256, 16)  # scores are stored, or made again
    rules = {
        "log-sigmoid, self-adversarial": ops.LossRule("pointwise", "softplus", True, 1.0, 1.0),
        "softmax": ops.LossRule("softmax"),
    }
    single, half = torch.float32, torch.bfloat16
    for comparison, width, dtype in (
        ("dot", wide, half), ("dot", narrow, half), ("dot", wide, single), ("l2", wide, half),
        ("l2", narrow, half), ("l2", wide, single), ("l1", wide, single),
    ):  # fmt: skip
        for loss, rule in rules.items():

            def make(
                comparison: str = comparison, width: int = width, dtype: torch.dtype = dtype,
                rule: Any = rule,
            ) -> Callable[[], object]:  # fmt: skip
                n_row = 4 * n
                leaves = _leaves(bench, (1, n_row, width), (16, width))
                entities, relations = (x.detach().to(dtype).requires_grad_() for x in leaves)
                index = _look_ups(bench, n_row, 3 * n).unsqueeze(0)
                ids = torch.zeros(1, n, dtype=torch.int64, device=bench.device)
                pairing = ops.Pairing(n, False, False, "scaling", comparison)

                def run() -> None:
                    value = ops.sampled_loss(entities, index, relations, ids, pairing, rule)
                    torch.autograd.grad(value, (entities, relations))

                return run

            name = f"{comparison} with {loss}, {n} x {n} x {width}, {_short(dtype)}, with gradients"
            if comparison == "l1":
                row = measured(bench, name, make, 2.0 * n * n * width, " pair-dims", None, GOAL_L1)
            else:
                amount = 6.0 * n * n * width
                row = measured(bench, name, make, amount, "FLOP", roofs["bf16"], GOAL_GEMM)
            rows.append(row)
    return rows


def _lists(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    """The loss of candidates that each positive has of its own."""
    n, n_each, width, rows = bench.size(8192, 24), bench.size(64, 4), bench.size(256, 16), []
    n_row, n_look_up = _sizes(bench)[0], n * (2 + n_each)
    for comparison in ("l1", "dot"):

        def make(comparison: str = comparison) -> Callable[[], object]:
            entities, relations = _leaves(bench, (1, n_row, width), (16, width))
            index = _look_ups(bench, n_row, n_look_up)
            plan = plan_rows_padded(index, n_row)
            ids = torch.zeros(1, n, dtype=torch.int64, device=bench.device)
            pairing = ops.Pairing(n_each, True, False, "scaling", comparison)
            rule = ops.LossRule("pointwise", "softplus", True, 1.0, 1.0)

            def run() -> None:
                value = ops.sampled_loss(
                    entities, index.unsqueeze(0), relations, ids, pairing, rule, None, plan
                )
                torch.autograd.grad(value, (entities, relations))

            return run

        # Candidates are read for scores, and for gradients of queries; gradients of rows are written,
        # and scaled in place.
        n_byte = 2 * n * n_each * (4 * width + 8) + 3 * 4 * width * n_look_up
        name = f"{comparison} of candidates of each, {n} x {n_each} x {width}, with gradients"
        rows.append(measured(bench, name, make, n_byte, "B", roofs["copy"]))
    return rows


def _all_entities(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    n_query, rows = bench.size(1024, 24), []
    for n_row, width in (
        (bench.size(14_541, 40), bench.size(2000, 16)),
        (bench.size(40_943, 64), bench.size(200, 16)),
    ):

        def make(n_row: int = n_row, width: int = width) -> Callable[[], object]:
            query, table = (x.detach() for x in _leaves(bench, (n_query, width), (n_row, width)))
            places = torch.arange(n_query, device=bench.device)
            logits = ops.Logits(places, places % n_row)
            weight = torch.ones(n_query, device=bench.device)

            def run() -> None:
                scored = ops.softmax_scores(query, table, logits, torch.bfloat16, True, n_row)
                slope = ops.Slope(scored.log_sum, weight, weight)
                of_query, of_rows = torch.empty_like(query), torch.empty_like(table)
                ops.softmax_gradients(
                    scored, query, table, logits, slope, torch.bfloat16, of_query, of_rows, False,
                    n_row,
                )  # fmt: skip

            return run

        name = f"softmax over {n_row} entities of {n_query} queries of {width}, with gradients"
        amount = 6.0 * n_query * n_row * width
        rows.append(measured(bench, name, make, amount, "FLOP", roofs["bf16"]))

    def ranking() -> Callable[[], object]:
        n_row = bench.size(40_943, 64)
        scores = torch.randn(n_query, n_row, device=bench.device)
        answer = scores[:, 0].contiguous()
        return lambda: ops.rank_counts(scores, answer)

    n_byte = 4.0 * n_query * bench.size(40_943, 64)
    name = f"rank counts of {n_query} queries"
    rows.append(measured(bench, name, ranking, n_byte, "B", roofs["copy"]))
    return rows + _best(bench, roofs)


def _best(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    n_query, n_known, rows = bench.size(1024, 24), bench.size(50, 3), []
    for n_row in (bench.size(14_541, 40), bench.size(100_000, 1500)):
        for k in (10, 100):

            def make(n_row: int = n_row, k: int = k) -> Callable[[], object]:
                scores = torch.randn(n_query, n_row, device=bench.device)
                start = n_known * torch.arange(n_query + 1, device=bench.device)
                known = ops.Filter(
                    start, torch.arange(n_known, device=bench.device).repeat(n_query)
                )
                return lambda: ops.best_k(scores, k, known)

            n_byte = 4.0 * n_query * n_row
            name = (
                f"best {k} of {n_row}, of {n_query} queries, filtered, {n_byte / 1e6:.3g} MB read"
            )
            rows.append(measured(bench, name, make, n_byte, "B", roofs["copy"]))
    return rows


def _drawing(bench: Bench, roofs: Dict[str, float]) -> List[Row]:
    (n_row, n), n_step = _sizes(bench), bench.size(32, 2)

    def numbers() -> Callable[[], object]:
        step = torch.arange(n_step, device=bench.device)
        address = Address(0, Purpose.NEGATIVES, torch.zeros_like(step), step)
        bound = torch.tensor([n_row], device=bench.device)
        return lambda: random_below(address, bound, n // 10)

    def plans() -> Callable[[], object]:
        look_ups = _look_ups(bench, n_row, n * 4).view(4, n)
        return lambda: plan_rows_padded(look_ups, n_row)

    return [
        measured(bench, f"draw {n_step} x {n // 10} rows", numbers, n_step * (n // 10), " numbers"),
        measured(bench, f"plan 4 lists of {n} look-ups", plans, 4 * n, " look-ups"),
    ]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).replace("torch.", "")


def roofs_as_markdown(roofs: Dict[str, float]) -> List[str]:
    names = {
        "copy": "copy, read and written", "bf16": "GEMM, bf16", "tf32": "GEMM, TF32",
        "fp32": "GEMM, float32",
    }  # fmt: skip
    lines = ["| roof, measured | rate |", "|---|---|"]
    for name, rate in roofs.items():
        lines.append(f"| {names[name]} | {prefixed(rate)}{'B' if name == 'copy' else 'FLOP'}/s |")
    return lines
