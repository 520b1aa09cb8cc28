"""Measure besskge_core against its peers and against the machine, in one run: `make bench`.

    python -m benchmarks.run [--sections steps growth ...] [--rounds 3] [--peers FOLDER] [--quick]

Contenders take turns, each in a process and an environment of its own; medians of the rounds and
their ratios are reported. Absolute times belong to the machine: quote the ratios. Results go to
`benchmarks/results/NAME.json`, `NAME.md`, and charts beside them; the name is `bench` unless given.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Dict, List

import torch

from benchmarks import plots, roof
from benchmarks.peers import Peers
from benchmarks.sections import all_entities, evaluation, operations, preparation, steps, training
from benchmarks.table import Table
from besskge_core.environment import describe

RESULTS = Path(__file__).parent / "results"
#: Modules whose sections are tables; the others have `measure` and `as_markdown` of their own.
TABLES = {
    "steps": steps,
    "evaluation": evaluation,
    "all_entities": all_entities,
    "preparation": preparation,
}
SECTIONS = ["roof", "operations", *TABLES, "training"]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    peers = Peers(options.peers, options.threads)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    report: Dict[str, Any] = {
        "environment": describe(), "rounds": options.rounds, "quick": options.quick,
        "missing": peers.missing(), "noise": [roof.noise_check()], "sections": {},
    }  # fmt: skip
    lines: List[str] = []

    def between() -> None:
        report["noise"].append(roof.noise_check())

    for name in options.sections:
        lines += run_section(name, options, peers, out, report["sections"], between)
        between()
        (out / f"{options.name}.json").write_text(json.dumps(report, indent=1) + "\n")
        (out / f"{options.name}.md").write_text("\n".join([*heading(report), *lines]))
    print((out / f"{options.name}.md").read_text())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of each training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=str(RESULTS), help="folder of the results")
    parser.add_argument(
        "--name", default="bench", help="of the result, so that a run of some sections has its own"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a trial")
    parser.add_argument(
        "--peers", type=Path, default=os.environ.get("BESSKGE_PEERS"),
        help="folder with an environment for each peer; default: $BESSKGE_PEERS",
    )  # fmt: skip
    options = parser.parse_args()
    options.peers = Path(options.peers) if options.peers else None
    options.rounds = 1 if options.quick else options.rounds
    return options


def run_section(
    name: str, options: argparse.Namespace, peers: Peers, out: Path, sections: Dict[str, Any],
    between: Any,
) -> List[str]:  # fmt: skip
    """Measure a section into `sections`, draw it, and return its Markdown."""
    if name == "roof":
        sections[name] = roof.measure(sorted({1, options.threads}), options.quick)
        return roof.as_markdown(sections[name])
    if name == "training":
        budget = 8.0 if options.quick else options.budget
        sections[name] = training.measure(peers, options.quick, out, budget)
        return training.as_markdown(sections[name])
    if name == "operations":
        sections[name] = operations.measure(peers, options.quick, out)
        return operations.as_markdown(sections[name])
    lines: List[str] = []
    for table in TABLES[name].tables(options.quick):
        found = table.measure(peers, options.rounds, between)
        sections[table.name] = found
        lines += [*table.as_markdown(found), *chart_of(table, found, out)]
    return lines


def chart_of(table: Table, found: Dict[str, Any], out: Path) -> List[str]:
    chart = plots.draw_table(table, found, out / f"bench-{table.name}.png")
    return [f"![{table.title}]({chart})" if chart else "No chart: matplotlib is not installed.", ""]


def heading(report: Dict[str, Any]) -> List[str]:
    """Machine, versions, who is missing, and how steady the machine was."""
    environment, noise = report["environment"], report["noise"]
    machine = ", ".join(str(environment[key]) for key in ("cpu", "platform"))
    spread = {
        name: max(x[name] for x in noise) / min(x[name] for x in noise) - 1 for name in noise[0]
    }
    missing = "; ".join(f"{name}: {why}" for name, why in report["missing"].items()) or "none"
    return [
        "# Benchmarks, one run on one machine",
        "",
        f"`make bench` on {machine}; {environment['n_cpu']} processors, {environment['threads']}"
        f" threads, torch {environment['torch']}, Python {environment['python']}; medians of"
        f" {report['rounds']} rounds, contenders in turn." + (" **A trial.**" * report["quick"]),
        "",
        "Absolute times belong to the machine; a ratio says how many times as long as besskge_core"
        " a contender takes.",
        "",
        f"Noise: between rounds the same matrix product varied by {100 * spread['gemm_ms']:.0f} %,"
        f" the same copy by {100 * spread['copy_ms']:.0f} % (largest over smallest).",
        "",
        f"Peers that could not be measured: {missing}.",
        "",
    ]


if __name__ == "__main__":
    main()
