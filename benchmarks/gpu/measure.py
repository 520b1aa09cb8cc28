"""Time on a device, and what the device can do."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

import torch

Row = Dict[str, Any]

#: Calls before the first that is timed, and groups of calls of which the median counts.
N_WARM_UP, N_GROUP = 3, 5


@dataclass(frozen=True)
class Bench:
    """Where and how long is measured.

    Attributes:
        device: that is measured.
        rehearsal: tiny sizes, whose times mean nothing.
        ends: on the clock `time.monotonic`, when all must be done.
    """

    device: torch.device
    rehearsal: bool
    ends: float

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.rehearsal else full

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give back what was measured."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, function: Callable[[], object], budget: float = 0.5) -> float:
        """Of a call, the median of some groups of calls, by the clock of the device."""
        for _ in range(N_WARM_UP):
            function()
        self.wait()
        one = self._group(function, 1)
        if self.rehearsal:
            return one
        n = max(min(int(budget / N_GROUP / max(one, 1e-6)), 1000), 1)
        return statistics.median(self._group(function, n) for _ in range(N_GROUP))

    def _group(self, function: Callable[[], object], n: int) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            for _ in range(n):
                function()
            return (time.perf_counter() - started) / n
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(n):
            function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000.0 / n


def roofs(bench: Bench) -> Dict[str, float]:
    """What the device reaches: bytes a second of a copy (read and written), FLOP a second."""
    found = {"copy": _copy(bench, bench.size(2**30, 2**16))}
    side = bench.size(8192, 128)
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False), ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):  # fmt: skip
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            found[name] = 2.0 * side**3 / bench.seconds(lambda a=a, b=b: a @ b)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return found


def _copy(bench: Bench, n: int) -> float:
    """Bytes a second, of n numbers."""
    source = torch.ones(n, dtype=torch.float32, device=bench.device)
    goal = torch.empty_like(source)
    return 8.0 * n / bench.seconds(lambda: goal.copy_(source))


def measured(
    bench: Bench,
    name: str,
    make: Callable[[], Callable[[], object]],
    amount: float,
    unit: str,
    roof: Optional[float] = None,
    goal: str = "",
) -> Row:
    """A row of a table; one that says why, if it cannot be measured.

    Args:
        bench: see there.
        name: of what is measured, with its sizes.
        make: gives the function; what that holds is freed afterwards.
        amount: that a call moves or computes.
        unit: of the amount.
        roof: of the device, in the unit a second.
        goal: that the row is held against.
    """
    row: Row = {"name": name, "unit": unit, "goal": goal}
    try:
        row["seconds"] = bench.seconds(make())
    except Exception as error:  # a kernel that fails must not hide the others
        row["error"] = in_a_line(error)
        return row
    finally:
        bench.free()
    row["rate"] = amount / row["seconds"]
    row["share"] = None if roof is None else row["rate"] / roof
    return row


def in_a_line(error: Exception) -> str:
    """What went wrong, for a table."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"


def prefixed(x: float) -> str:
    """With a prefix of thousands: 4.31e12 -> '4.31 T'."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= factor:
            return f"{x / factor:.3g} {prefix}"
    return f"{x:.3g} "


def table(rows: List[Row]) -> List[str]:
    """Rows of :func:`measured`, in Markdown."""
    lines = [
        "| what | microseconds | rate | share of the roof | goal |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | failed: {row['error']} | | | {row['goal']} |")
            continue
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        rate = f"{prefixed(row['rate'])}{row['unit']}/s"
        lines.append(
            f"| {row['name']} | {row['seconds'] * 1e6:.1f} | {rate} | {share} | {row['goal']} |"
        )
    return lines
