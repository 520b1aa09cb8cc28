"""A section of the report that is a table: cases, run in turn, their medians and ratios.

A row is what is measured, a column who is measured. Rounds go through all cases in turn (A B C,
A B C), so that a change of the machine's speed falls on all alike.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Optional

from benchmarks.peers import NAMES, Peers

Found = Dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One cell: a contender and what it is asked."""

    row: str
    column: str
    contender: str
    request: Dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A section.

    Attributes:
        name: on the command line and in the results.
        title, text: above the table.
        key: of the answers, what is shown: "ms" or "seconds".
        cases: of all rows and columns.
        base: column that the ratios compare with.
        rounds: how often each case is run; None: as often as the whole run is told.
        chart: "bars", or "lines" where rows are numbers.
        rows_are: heading of the first column.
        with_memory: also show peak memory.
    """

    name: str
    title: str
    text: str
    key: str
    cases: List[Case]
    base: str = NAMES["besskge"]
    rounds: Optional[int] = None
    chart: str = "bars"
    rows_are: str = ""
    with_memory: bool = False

    def measure(self, peers: Peers, rounds: int, between: Callable[[], None]) -> Found:
        """Run all rounds.

        Args:
            between: called after each round: the noise check.
        """
        answers: List[List[Dict[str, Any]]] = [[] for _ in self.cases]
        for turn in range(self.rounds or rounds):
            for case, of_case in zip(self.cases, answers):
                if of_case and self.key not in of_case[-1]:
                    continue  # what is missing or failed stays so
                of_case.append(peers.ask(case.contender, case.request))
                shown = of_case[-1].get(self.key, of_case[-1])
                print(f"{self.name} {turn + 1}: {case.row}, {case.column}: {shown}", flush=True)
            between()
        return {
            "cases": [dict(asdict(c), **summary(a, self.key)) for c, a in zip(self.cases, answers)]
        }

    def as_markdown(self, found: Found) -> List[str]:
        """The table, then what the contenders say about themselves."""
        rows = unique(case["row"] for case in found["cases"])
        columns = unique(case["column"] for case in found["cases"])
        by_place = {(case["row"], case["column"]): case for case in found["cases"]}
        lines = [f"## {self.title}", "", self.text, ""]
        lines += [f"| {self.rows_are} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            base = by_place.get((row, self.base), {}).get("median")
            cells = [self.cell(by_place.get((row, column)), base) for column in columns]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        return [*lines, "", *notes(found["cases"]), ""]

    def cell(self, case: Optional[Found], base: Optional[float]) -> str:
        """Median, ratio to the base, and peak memory where memory is what matters."""
        if case is None or "median" not in case:
            return "-" if case is None else case["why"]
        text = number(case["median"])
        if self.with_memory:
            text += f" ({case['peak_mb']:.0f} MB)"
        if base is None or case["column"] == self.base:
            return text
        return f"{text}, **{number(case['median'] / base)} x**"


def summary(answers: List[Dict[str, Any]], key: str) -> Found:
    """Median of the rounds that answered, or why there is none."""
    values = [answer[key] for answer in answers if key in answer]
    if not values:
        last = answers[-1]
        why = next((last[k] for k in ("missing", "unsupported", "failed") if k in last), "?")
        return {"why": f"no {why}" if "unsupported" in last else why, "answers": answers}
    return {
        "median": statistics.median(values),
        "spread": max(values) / min(values) - 1,
        "peak_mb": max(answer.get("peak_mb", 0.0) for answer in answers),
        "answers": answers,
    }


def notes(cases: List[Found]) -> List[str]:
    """Versions, loss and remarks of each column, once."""
    lines = []
    for column in unique(case["column"] for case in cases):
        told = [a for case in cases if case["column"] == column for a in case["answers"]]
        versions = next((a["versions"] for a in told if "versions" in a), {})
        names = [f"{k} {v}" for k, v in versions.items()]
        remarks = unique(a[k] for a in told for k in ("loss", "note") if k in a)
        if names:
            lines.append(f"* {column}: {'; '.join([*remarks, ', '.join(names)])}.")
    return lines


def number(x: float) -> str:
    """With two or three digits that mean something: 0.12, 3.4, 56.7, 1,234."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 2 else f"{x:.2f}"


def unique(values: Any) -> List[str]:
    """In order of first appearance."""
    return list(dict.fromkeys(values))
