"""The row optimisers against torch's, and against copying what they read and write.

    python benchmarks/optimizers.py [--rows 1000000] [--touched 100000]

One table, float32 and 200 wide; the look-ups of a step are random, with duplicates, and its plan is
made ahead as the runtime does. Measurements take turns, medians are printed.
"""

from __future__ import annotations

import argparse
import time
from typing import Callable, Dict, List

import torch

from besskge_core.ops import plan_rows
from besskge_core.optim import OPTIMIZERS

WIDTH = 200
#: Numbers of a row that are read or written, beside one gradient for each look-up.
MOVED = {"sgd": 2, "adagrad": 4, "rowwise_adagrad": 2, "adam": 6, "rowwise_adam": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--touched", type=int, default=100_000)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(arguments.rows, WIDTH, generator=generator))
    rows = torch.randint(arguments.rows, (arguments.touched,), generator=generator)
    values = torch.randn(arguments.touched, WIDTH, generator=generator)
    table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
    plan = plan_rows(rows, arguments.rows)
    theirs = {
        "sgd": lambda: torch.optim.SGD([table], lr=0.01),
        "adagrad": lambda: torch.optim.Adagrad([table]),
        "adam": lambda: torch.optim.SparseAdam([table]),
    }
    a, b = torch.zeros(2, 50_000_000)
    print(f"{len(plan.unique_rows):,} rows, {torch.get_num_threads()} threads")
    for name, moved in MOVED.items():
        ours = OPTIMIZERS[name]([table])
        steps: Dict[str, Callable[[], object]] = {
            "ours": lambda optimizer=ours: optimizer.step(plans={table: plan}),
            "copy": lambda: b.copy_(a),
        }
        if name in theirs:
            steps["torch"] = theirs[name]().step
        found = medians(steps)
        moved_bytes = 4 * WIDTH * (moved * len(plan.unique_rows) + arguments.touched)
        share = moved_bytes / found["ours"] / (2 * a.nbytes / found["copy"])
        faster = (
            f", {found['torch'] / found['ours']:.1f} x as fast as torch" if name in theirs else ""
        )
        print(
            f"{name:16} {1e3 * found['ours']:7.2f} ms, {share:.2f} of copying{faster}", flush=True
        )


def medians(steps: Dict[str, Callable[[], object]], n: int = 9) -> Dict[str, float]:
    seconds: Dict[str, List[float]] = {name: [] for name in steps}
    for _ in range(n + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(x[1:])[n // 2] for name, x in seconds.items()}


if __name__ == "__main__":
    main()
