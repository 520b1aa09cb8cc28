"""Each native operation against torch's own, in turns, and against the machine's limits.

A limit is what the same machine reaches in the same run: bytes copied, products of matrices, or L1
distances from registers, see `roof`. The share says how much of it an operation gets out of the
bytes that it must move, or the arithmetic that it must do.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

import torch
from torch import Tensor

from benchmarks import roof
from benchmarks.peers import Peers
from benchmarks.table import number
from besskge_core.ops import (
    LossRule,
    Pairing,
    best_k,
    gather,
    indexed,
    pairwise,
    plan_rows,
    prefer_huge_pages,
    rank_counts,
    sampled_loss,
)
from besskge_core.ops.native import NATIVE
from besskge_core.ops.sampled_loss import reference as loss_in_torch
from besskge_core.ops.softmax_tiles import Logits, Slope, softmax_gradient, softmax_log_sum
from besskge_core.optim import OPTIMIZERS
from besskge_core.runtime.memory import keep_freed_memory

WIDTH, BATCH, NEGATIVES = 200, 1024, 256


class Operation(NamedTuple):
    """What is compared.

    Attributes:
        name: of the operation, and what it is given.
        ours, theirs: computes it.
        torch_name: what theirs is.
        work: bytes, FLOP or L1 terms.
        limit: of the roof, in 1e9 of these a second.
    """

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    torch_name: str
    work: float
    limit: str


def measure(peers: Peers, quick: bool, out: Path) -> Dict[str, Any]:
    """Medians of ours and of torch's, in milliseconds, in turns: as installed, and tuned.

    Tuned, the process keeps freed memory, as training with besskge_core has it.
    """
    n_thread = torch.get_num_threads()
    limits = roof.measure([n_thread], quick)[str(n_thread)]
    smaller, n = (20, 3) if quick else (1, 9)
    as_installed = [(x, medians(x, n)) for x in operations(smaller)]
    keep_freed_memory()
    tuned = [medians(x, n) for x in operations(smaller)]
    rows = []
    for (operation, before), after in zip(as_installed, tuned):
        limit = limits[operation.limit]
        share = None if limit is None else operation.work / after[0] / (1e9 * limit)
        row = dict(name=operation.name, torch_name=operation.torch_name, limit=operation.limit,
                   share=share, as_installed_ms=[1e3 * x for x in before],
                   tuned_ms=[1e3 * x for x in after])  # fmt: skip
        print(f"operations: {row}", flush=True)
        rows.append(row)
    return {"native": NATIVE, "limits": limits, "rows": rows}


def medians(operation: Operation, n: int) -> List[float]:
    """Seconds of both."""
    seconds: List[List[float]] = [[], []]
    for _ in range(n + 1):
        for run, of_run in zip((operation.ours, operation.theirs), seconds):
            begin = time.perf_counter()
            run()
            of_run.append(time.perf_counter() - begin)
    return [statistics.median(x[1:]) for x in seconds]


def operations(smaller: int) -> Iterator[Operation]:
    """All operations; sizes are divided by `smaller`."""
    yield from of_rows(1_000_000 // smaller, 262_144 // smaller, 100_000 // smaller)
    yield from of_pairs(8192 // smaller)
    yield from of_steps(14_541 // smaller)
    yield from of_tiles(40_960 // smaller)


def of_rows(n_row: int, n_read: int, n_changed: int) -> Iterator[Operation]:
    """Look-ups of rows, their grouping and their update."""
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(n_row, WIDTH, generator=generator))
    prefer_huge_pages(table.detach())  # as the runtime does
    index = torch.randint(n_row, (1, n_read), generator=generator)
    with torch.no_grad():
        yield Operation(
            f"gather, {n_read:,} rows of {n_row:,}", lambda: gather(table[None], index),
            lambda: table.index_select(0, index[0]), "index_select", 8.0 * WIDTH * n_read,
            "copy GB/s",
        )  # fmt: skip
    yield Operation(
        f"plan_rows, {n_read:,} look-ups", lambda: plan_rows(index[0], n_row),
        lambda: index[0].unique(return_inverse=True), "unique", 40.0 * n_read, "copy GB/s",
    )  # fmt: skip
    rows = torch.randperm(n_row, generator=generator)[:n_changed]
    values = torch.randn(n_changed, WIDTH, generator=generator)
    table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
    plan = plan_rows(rows, n_row)
    for name, theirs, moved in (
        ("adagrad", torch.optim.Adagrad, 4), ("adam", torch.optim.SparseAdam, 6)
    ):  # fmt: skip
        ours, other = OPTIMIZERS[name]([table]), theirs([table])
        yield Operation(
            f"scatter_update, {name}, {n_changed:,} rows of {n_row:,}",
            lambda ours=ours: ours.step(plans={table: plan}), other.step,
            f"torch.optim.{theirs.__name__}", 4.0 * WIDTH * (moved + 1) * n_changed, "copy GB/s",
        )  # fmt: skip


def of_pairs(n: int) -> Iterator[Operation]:
    """Scores of a batch of queries with n candidates, and their gradients."""
    q, e = (torch.randn(k, WIDTH, requires_grad=True) for k in (BATCH, n))
    terms = float(BATCH * n * WIDTH)

    def run(score: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(score().sum(), (q, e))

    what = f"{BATCH} x {n} x {WIDTH}, forward and backward"
    yield Operation(f"pairwise L1, {what}", run(lambda: pairwise(q, e, "l1")),
                    run(lambda: torch.cdist(q, e, p=1)), "cdist(p=1)", 2 * terms,
                    "L1 1e9 terms/s")  # fmt: skip
    yield Operation(f"pairwise L2, {what}", run(lambda: pairwise(q, e, "l2")),
                    run(lambda: torch.cdist(q, e, p=2)), "cdist(p=2), by products", 6 * terms,
                    "GEMM fp32 GFLOP/s")  # fmt: skip
    few = e[: max(n // 16, 1)]

    def moduli() -> Tensor:
        re, im = (q[:, None] - few).chunk(2, -1)
        return (re * re + im * im).clamp(min=1e-30).sqrt().sum(-1)

    yield Operation(f"pairwise modulus, {BATCH} x {len(few)} x {WIDTH}, forward and backward",
                    run(lambda: pairwise(q, few, "modulus")), run(moduli), "broadcasting",
                    terms * len(few) / n, "L1 1e9 terms/s")  # fmt: skip


def of_steps(n_row: int) -> Iterator[Operation]:
    """Losses of sampled negatives with their gradients, without the update."""
    table = torch.randn(1, n_row, WIDTH, requires_grad=True)
    relation = torch.randn(237, WIDTH, requires_grad=True)
    ids = torch.randint(237, (1, BATCH))
    rule = LossRule("pointwise", positive_margin=-1.0, margin=1.0)
    for per_triple, comparison, move in (
        (False, "dot", "scaling"), (False, "l1", "translation"), (True, "dot", "scaling")
    ):  # fmt: skip
        n_read = 2 * BATCH + NEGATIVES * (BATCH if per_triple else 1)
        index = torch.randint(n_row, (1, n_read))
        pairing = Pairing(NEGATIVES, per_triple, False, move, comparison)
        plan = plan_rows(index[0], n_row)

        def ours(index: Tensor = index, pairing: Pairing = pairing, plan: Any = plan) -> object:
            loss = sampled_loss(table, index, relation, ids, pairing, rule, None, plan)
            return torch.autograd.grad(loss, (table, relation))

        def theirs(index: Tensor = index, pairing: Pairing = pairing) -> object:
            loss = loss_in_torch(table, index, relation, ids, pairing, rule)
            return torch.autograd.grad(loss, (table, relation))

        pairs = float(BATCH * NEGATIVES * WIDTH)
        limit = {"l1": "L1 1e9 terms/s", "dot": "GEMM fp32 GFLOP/s"}[comparison]
        work = pairs * (2 if comparison == "l1" else 6)
        if per_triple:  # each row is read to score and, by distinct row, to be changed
            work, limit = 4.0 * pairs, "copy GB/s"
        kind = "negatives of each triple" if per_triple else "shared negatives"
        yield Operation(f"sampled_loss, {comparison}, {kind}", ours, theirs, "its parts", work,
                        limit)  # fmt: skip
    q = torch.randn(BATCH, WIDTH, requires_grad=True)
    lists = torch.randint(n_row, (BATCH, NEGATIVES))
    plan = plan_rows(lists.view(-1), n_row)
    yield Operation(
        f"indexed dot, {BATCH} x {NEGATIVES} x {WIDTH}, forward and backward",
        lambda: torch.autograd.grad(indexed(q, table, lists, "dot", plan).sum(), (q, table)),
        lambda: torch.autograd.grad(
            torch.bmm(table[0][lists], q.unsqueeze(-1)).sum(), (q, table)
        ),
        "index and bmm", 4.0 * BATCH * NEGATIVES * WIDTH, "copy GB/s",
    )  # fmt: skip


def of_tiles(n: int) -> Iterator[Operation]:
    """What is done with a tile of scores of all entities."""
    scores = torch.randn(512, n)
    row = torch.arange(len(scores))
    logits = Logits(row, row)
    total = scores.logsumexp(1)
    slope = Slope(total, torch.ones(len(scores)), torch.ones(len(scores)))
    yield Operation(f"softmax_log_sum, 512 x {n}", lambda: softmax_log_sum(scores, logits),
                    lambda: scores.logsumexp(1), "logsumexp", 4.0 * scores.numel(),
                    "copy GB/s")  # fmt: skip
    yield Operation(f"softmax_gradient, 512 x {n}",
                    lambda: softmax_gradient(scores, logits, slope), lambda: scores.softmax(1),
                    "softmax", 8.0 * scores.numel(), "copy GB/s")  # fmt: skip
    truth = scores[:, 0].contiguous()

    def compared() -> List[Tensor]:
        return [(scores > truth[:, None]).sum(1), (scores == truth[:, None]).sum(1)]

    yield Operation(f"rank_counts, 512 x {n}", lambda: rank_counts(scores, truth), compared,
                    "comparisons and sums", 4.0 * scores.numel(), "copy GB/s")  # fmt: skip
    yield Operation(f"best_k, 10 of 512 x {n}", lambda: best_k(scores, 10),
                    lambda: scores.topk(10, 1), "topk", 4.0 * scores.numel(),
                    "copy GB/s")  # fmt: skip


def as_markdown(found: Dict[str, Any]) -> List[str]:
    lines = [
        "## Operations", "",
        "Milliseconds, medians in turns; tuned: the process keeps freed memory, as training has it."
        " The share is that of the tuned run." + ("" if found["native"] else " **Not built.**"), "",
        "| operation | torch's | besskge_core | torch | tuned: besskge_core | torch |"
        " share of the limit |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        cells = [
            f"{number(ours)} | {number(theirs)}, **{number(theirs / ours)} x**"
            for ours, theirs in (row["as_installed_ms"], row["tuned_ms"])
        ]
        lines.append(
            f"| {row['name']} | {row['torch_name']} | {' | '.join(cells)} |"
            f" {share_of(row['share'])} of {row['limit']} |"
        )
    return [*lines, ""]


def share_of(share: Optional[float]) -> str:
    return "?" if share is None else f"{100 * share:.0f} %"
