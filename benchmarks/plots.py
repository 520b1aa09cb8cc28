"""Charts of the tables, by matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional

from benchmarks.table import Table, unique


def draw_table(table: Table, found: Dict[str, Any], path: Path) -> Optional[str]:
    """Write a chart of the medians; its name, or None if there is nothing to draw with."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    (_lines if table.chart == "lines" else _bars)(axes, found["cases"])
    axes.set_yscale("log")
    axes.set_ylabel({"ms": "ms a step", "seconds": "seconds"}.get(table.key, table.key))
    axes.set_xlabel(table.rows_are)
    axes.set_title(table.title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path.name


def draw_curves(curves: Dict[str, List[List[float]]], title: str, path: Path) -> Optional[str]:
    """Write a chart of (seconds, MRR) points by name."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points), marker="o", markersize=3, label=name)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="MRR (valid)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path.name


def _bars(axes: Any, cases: List[Dict[str, Any]]) -> None:
    rows, columns = (unique(case[k] for case in cases) for k in ("row", "column"))
    width = 0.8 / len(columns)
    for i, column in enumerate(columns):
        here = [case for case in cases if case["column"] == column and "median" in case]
        places = [rows.index(case["row"]) + (i + 0.5) * width - 0.4 for case in here]
        axes.bar(places, [case["median"] for case in here], width, label=column)
    axes.set_xticks(range(len(rows)), rows)


def _lines(axes: Any, cases: List[Dict[str, Any]]) -> None:
    for column in unique(case["column"] for case in cases):
        here = [case for case in cases if case["column"] == column and "median" in case]
        sizes = [int(case["row"].replace(",", "")) for case in here]
        axes.plot(sizes, [case["median"] for case in here], marker="o", label=column)
    axes.set_xscale("log")
