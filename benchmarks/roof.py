"""What the machine can do, measured: copies, matrix products, and L1 distances from registers.

An op cannot beat these; how near it comes is what its time means.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

import torch

SOURCE = Path(__file__).parent / "roof_l1.cpp"
#: Queries, entities, width: the product of a batch with a table.
B, N, D = 1024, 40_960, 200

#: Where seconds come from; `time.process_time` counts those of the processor.
clock: Callable[[], float] = time.perf_counter


def measure(threads: List[int], quick: bool = False) -> Dict[str, Dict[str, Optional[float]]]:
    """By number of threads: GB/s (read and written), GFLOP/s, and 1e9 L1 terms a second."""
    found, before = {}, torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        found[str(count)] = {
            "copy GB/s": copy_rate(quick),
            "GEMM fp32 GFLOP/s": gemm_rate(torch.float32, quick),
            "GEMM fp32 by oneDNN GFLOP/s": onednn_rate(quick),
            "GEMM bf16 GFLOP/s": gemm_rate(torch.bfloat16, quick),
            "L1 1e9 terms/s": l1_rate(count, quick),
        }
    torch.set_num_threads(before)
    return found


def best_seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """The fastest of some calls, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        begin = clock()
        run()
        times.append(clock() - begin)
    return min(times)


def copy_rate(quick: bool) -> float:
    source = torch.ones(2**20 if quick else 2**26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source)) / 1e9


def gemm_rate(dtype: torch.dtype, quick: bool) -> float:
    """Queries times the table, into memory that is there."""
    query, table = (torch.randn(n, D).to(dtype) for n in (B, N // 16 if quick else N))
    out = torch.empty(len(query), len(table), dtype=dtype)
    seconds = best_seconds(lambda: torch.mm(query, table.T, out=out))
    return 2 * out.numel() * D / seconds / 1e9


def onednn_rate(quick: bool) -> Optional[float]:
    """The same by torch's other library for products, which no torch.mm asks; None without it."""
    query, table = (torch.randn(n, D) for n in (B, N // 16 if quick else N))
    try:
        product = torch.ops.mkldnn._linear_pointwise
        seconds = best_seconds(lambda: product(query, table, None, "none", [], ""))
    except (AttributeError, RuntimeError):
        return None
    return 2 * B * len(table) * D / seconds / 1e9


def l1_rate(threads: int, quick: bool) -> Optional[float]:
    """Terms |a - b| added up, from registers; None without a C++ compiler."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "roof.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC", "-Wno-psabi"]
        try:
            command = [os.environ.get("CXX", "c++"), *flags, str(SOURCE), "-o", str(library)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            return None
        code = ctypes.CDLL(str(library))
    code.run.argtypes, code.run.restype = [ctypes.c_long], ctypes.c_float
    turns = 10**6 if quick else 2 * 10**7

    def together() -> None:
        workers = [threading.Thread(target=code.run, args=(turns,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return threads * turns * code.terms_a_turn() / best_seconds(together, 3) / 1e9


def noise_check() -> Dict[str, float]:
    """Milliseconds of a fixed product and a fixed copy: how fast the machine is just now."""
    a, source = torch.ones(1024, 1024), torch.ones(2**24)
    target = torch.empty_like(source)
    times = {
        "gemm_ms": best_seconds(lambda: torch.mm(a, a), 5),
        "copy_ms": best_seconds(lambda: target.copy_(source), 5),
    }
    return {name: 1e3 * seconds for name, seconds in times.items()}


def as_markdown(found: Dict[str, Dict[str, Optional[float]]]) -> List[str]:
    counts = list(found)
    lines = ["## What the machine can do", "", f"Products of {B} x {D} with {D} x {N}.", ""]
    lines += [
        f"| | {' | '.join(f'threads: {n}' for n in counts)} |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for name in found[counts[0]]:
        values = [found[n][name] for n in counts]
        cells = ["not available" if x is None else f"{x:.0f}" for x in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]
