"""Files of labelled triples to prepared folders: time, memory, and the loaders of others beside it.

    python benchmarks/preparation.py [--peers FOLDER] [--rounds N] [--quick]

Everything runs in a process of its own, contenders in turn, so that a machine that is busy for a
while is busy for all. Results go to `benchmarks/results/preparation.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

from benchmarks.graphs import stored_tsv
from benchmarks.peers import NAMES, ROOT, Peers
from besskge_core.environment import describe

RESULT = ROOT / "benchmarks" / "results" / "preparation.md"
GIB = 2**30

#: What a process of our own runs; torch is not imported, and neither is it needed.
PROGRAM = """
import json, sys, time
from pathlib import Path
from besskge_core.preparation import prepare

path, folder, n_shard, memory = json.loads(sys.argv[1])
stages, cpu = {}, time.process_time()
begin = last = time.perf_counter()

def told(stage, n):
    global last
    now = time.perf_counter()
    stages[stage.split()[0]] = stages.get(stage.split()[0], 0) + now - last
    last = now

prepare(path, folder, n_shard, memory_limit=memory, progress=told)
seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
stages["finishing"] = begin + seconds - last
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(x.split()[1]) / 1024 for x in status if x.startswith("VmHWM"))
disk = sum(x.stat().st_size for x in Path(folder).rglob("*") if x.is_file()) / 2**20
found = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "disk_mb": disk}
print(json.dumps({**found, "stages": stages}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, help="environments of PyKEEN and DGL-KE")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--note", default="", help="of what else the machine does, for the report")
    parser.add_argument("--quick", action="store_true", help="small graphs, to try the script")
    options = parser.parse_args()
    peers, machine = Peers(options.peers), describe()
    scale = 100 if options.quick else 1
    lines = [
        "# Preparation of labelled triples",
        "",
        f"`python benchmarks/preparation.py`, Python {machine['python']}, pyarrow"
        f" {machine['pyarrow']}, NumPy {machine['numpy']}, {machine['cpu']}, {machine['n_cpu']}"
        " processors. Random triples, so that no label is near another like it: the worst case for"
        f" a dictionary. Medians of rounds ({options.rounds}) in each of which all take their turn;"
        " memory is the largest resident size of the process, its libraries included."
        f" {options.note}",
        "",
        *beside_others(peers, options.rounds, 10_000_000 // scale, 1_000_000 // scale),
        "",
        *out_of_core(options.rounds, 20_000_000 // scale, 2_000_000 // scale),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def beside_others(peers: Peers, rounds: int, n_triple: int, n_entity: int) -> List[str]:
    path = stored_tsv(n_triple, n_entity)
    ours = "besskge prepare, 8 shards"
    cases = {ours: None, "besskge prepare, no buckets": None}
    answers: Dict[str, List[Dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, n_shard in zip(cases, (8, None)):
            answers.setdefault(name, []).append(ask_prepare(path, n_shard, GIB))
        for contender in ("besskge", "pykeen", "dglke"):
            title = (
                "KGDataset.from_files, in memory" if contender == "besskge" else NAMES[contender]
            )
            answer = peers.ask(contender, {"what": "prepare", "path": path})
            answers.setdefault(title, []).append(answer)
            print(title, answer, file=sys.stderr)
    columns = ("seconds", "cpu_seconds", "peak_mb")
    own = [median(answers[ours], key) for key in columns]
    lines = [
        f"## {n_triple:,} triples, {n_entity:,} entities, 1,000 relations, beside others",
        "",
        "DGL-KE writes dictionaries and IDs, PyKEEN and from_files nothing; `besskge prepare` writes"
        " labels, IDs, checksums and, for 8 shards, the buckets of triples and inverse triples.",
        "",
        "| | seconds | rows/s | processor seconds | peak MiB | seconds | processor | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in answers.items():
        values = [median(found, key) for key in columns]
        if None in values:
            lines.append(f"| {name} | {found[0]} | | | | | | |")
            continue
        seconds, cpu, peak = values
        ratios = " | ".join(f"{x / y:.1f} x" for x, y in zip(values, own))
        lines.append(
            f"| {name} | {seconds:.1f} | {n_triple / seconds:,.0f} | {cpu:.1f} | {peak:,.0f} | {ratios} |"
        )
    return lines


def out_of_core(rounds: int, n_triple: int, n_entity: int) -> List[str]:
    path = stored_tsv(n_triple, n_entity)
    budgets = (GIB, GIB // 16)
    answers: Dict[int, List[Dict[str, Any]]] = {memory: [] for memory in budgets}
    for _ in range(rounds):
        for memory in budgets:
            answers[memory].append(ask_prepare(path, 8, memory))
    stages = list(answers[budgets[0]][0]["stages"])
    lines = [
        f"## {n_triple:,} triples, {n_entity:,} entities, 8 shards, with inverse triples",
        "",
        f"The source has {(ROOT / path).stat().st_size / 2**20:,.0f} MiB, the folder"
        f" {answers[budgets[0]][0]['disk_mb']:,.0f} MiB. What each stage took is in seconds.",
        "",
        f"| `--memory` | seconds | rows/s | processor seconds | peak MiB | {' | '.join(stages)} |",
        f"|---|---|---|---|---|{'---|' * len(stages)}",
    ]
    for memory, found in answers.items():
        seconds, cpu, peak = (median(found, x) for x in ("seconds", "cpu_seconds", "peak_mb"))
        took = [statistics.median(x["stages"].get(stage, 0) for x in found) for stage in stages]
        lines.append(
            f"| {memory / 2**20:,.0f} MiB | {seconds:.1f} | {n_triple / seconds:,.0f} | {cpu:.1f} |"
            f" {peak:,.0f} | {' | '.join(f'{x:.1f}' for x in took)} |"
        )
    return lines


def ask_prepare(path: str, n_shard: Optional[int], memory: int) -> Dict[str, Any]:
    """Time and memory of a process that prepares a file."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = json.dumps([path, f"{folder}/out", n_shard, memory])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, arguments],
            cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True,
        )  # fmt: skip
    answer: Dict[str, Any] = json.loads(done.stdout)
    return answer


def median(answers: List[Dict[str, Any]], key: str) -> Optional[float]:
    found = [answer[key] for answer in answers if key in answer]
    return statistics.median(found) if found else None


if __name__ == "__main__":
    main()
