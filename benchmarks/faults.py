"""Ranks killed at random: how soon the others notice, how soon the run goes on, and how it ends.

    python benchmarks/faults.py [--runs 12] [--kills 5]

Each run takes 200 steps. At random steps, and a random moment later, a random rank gets SIGKILL; one
kill in six comes soon after a start. The others must end by themselves. One run in six is one of
`torchrun --max-restarts`, which starts the ranks again; the others have no launcher, and are
resumed by `--resume`. In the end tables, optimiser state, log and metrics must be those of a run of as
many ranks that was left alone. Results go to `benchmarks/results/faults.md`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

RESULT = Path(__file__).parent / "results" / "faults.md"
#: Ranks, and whether under torchrun; runs take turns.
KINDS = ((2, False), (4, False), (2, True), (2, False), (4, False), (2, False))
N_STEP, N_EPOCH = 200, 10
FLAGS = [
    "--n-shard=4", "--dim=16", "--batch-size=528", "--n-negative=256", f"--epochs={N_EPOCH}",
    "--evaluate-every=2", "--max-valid=64", "--threads=1", "--checkpoint-seconds=0.3",
]  # fmt: skip
GRAPH = '[data]\ndataset = "family"\n[data.dataset_options]\nn_person = 256\n'
#: What a rank tells of itself, in a file that the killer reads: process, start, step, what it does.
STATE = struct.Struct("qqq96s")


# -- a rank ----------------------------------------------------------------------------------------


class Told:
    """Keeps in a file what the main thread of this rank does."""

    def __init__(self, folder: Path, start: int) -> None:
        self._start, path = start, folder / os.environ["RANK"]
        path.write_bytes(bytes(STATE.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), STATE.size)
        self._doing: List[str] = []
        self.step = -1
        self._tell()

    def around(self, owner: Any, name: str, doing: str) -> None:
        """Tell that a function is under way while it is."""
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return original(*arguments, **named)
            self._doing.append(doing)
            self._tell()
            try:
                return original(*arguments, **named)
            finally:
                self._doing.pop()
                self._tell()

        setattr(owner, name, wrapped)

    def _tell(self) -> None:
        what = ", ".join(self._doing) or ("starting" if self.step < 0 else "between steps")
        STATE.pack_into(self._memory, 0, os.getpid(), self._start, self.step, what.encode())


def rank(folder: Path, start: int) -> None:
    """The command `besskge`, telling what it does."""
    told = Told(folder, start)
    import torch.distributed as dist

    from besskge_core import cli
    from besskge_core.runtime import base
    from besskge_core.training import checkpoint, trainer

    told.around(cli, "join", "joining")
    told.around(trainer, "load_on_all", "loading")
    told.around(base.Runtime, "_train", "step")
    for name in ("all_to_all_single", "all_reduce", "all_gather"):
        told.around(dist, name, "exchange")
    told.around(trainer, "rank_triples", "evaluation")
    told.around(trainer, "save_checkpoint", "checkpoint")
    told.around(checkpoint, "save_file", "file")
    told.around(trainer, "load_checkpoint", "resuming")
    before_step = trainer.Trainer._set_learning_rate

    def count(self: Any) -> None:
        told.step = self.state.epoch * self.parts.sampler.n_step + self.state.step
        before_step(self)

    trainer.Trainer._set_learning_rate = count  # type: ignore[method-assign]
    cli.main()


def forked_rank(
    folder: Path, start: int, log: Path, variables: Dict[str, str], flags: List[str]
) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.update(variables)
    sys.argv = ["besskge", *flags]
    rank(folder, start)


# -- the killer ------------------------------------------------------------------------------------


@dataclass
class Kill:
    rank: int
    step: int
    doing: str
    noticed: float = 0.0  # seconds until no rank of this start lived
    named: bool = False  # by another rank, or by torchrun, before a step was taken again
    resumed: float = 0.0  # seconds until a step was taken again; 0: none was left


@dataclass
class Run:
    n_rank: int
    kills: List[Kill] = field(default_factory=list)
    same: bool = False
    torchrun: bool = False


class Ranks:
    """The ranks of a run, whoever starts them, and what they tell."""

    def __init__(self, n_rank: int, folder: Path) -> None:
        self.n_rank, self.told, self.log = n_rank, folder / "told", folder / "log"
        self.told.mkdir(parents=True)
        self.log.write_text("")
        graph = folder / "graph.toml"
        graph.write_text(GRAPH)
        self.flags = ["train", "--config", str(graph), *FLAGS, "--out", str(folder / "run")]
        self.start_again()

    def start_again(self) -> None:
        """After a rank was lost and the others have ended."""

    def ended(self) -> bool:
        """Whether no rank will take a step any more."""
        raise NotImplementedError

    def look(self, start: int) -> List[Optional[Tuple[int, int, str]]]:
        """(process, step, what it does) of the ranks of this start that have come so far."""
        found: List[Optional[Tuple[int, int, str]]] = []
        for i in range(self.n_rank):
            path = self.told / str(i)
            content = path.read_bytes() if path.exists() else b""
            state = STATE.unpack(content) if len(content) == STATE.size else (0, -1, -1, b"")
            doing = state[3].rstrip(b"\0").decode()
            found.append((state[0], state[2], doing) if state[1] == start and state[0] else None)
        return found

    def wait(self, start: int, step: int) -> bool:
        """Until all ranks of a start have come to a step; False if the run ended."""
        while not self.ended():
            if all(found is not None and found[1] >= step for found in self.look(start)):
                return True
            time.sleep(0.005)
        return False


class Torchrun(Ranks):
    def start_again(self) -> None:
        if hasattr(self, "process"):
            return  # torchrun does
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={self.n_rank}",
             "--max-restarts=99", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{_port()}",
             __file__, "--rank", str(self.told), *self.flags],
            stdout=subprocess.DEVNULL, stderr=self.log.open("w"), env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ended(self) -> bool:
        return self.process.poll() is not None


class Forked(Ranks):
    """Of a process that has imported everything, so that a start takes no time."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["besskge_core.cli", "torch._dynamo"])

    def start_again(self) -> None:
        start, port = getattr(self, "_start", -1) + 1, str(_port())
        self._start, self._processes = start, []
        began = Path(self.flags[-1], "config.toml").exists()
        for i in range(self.n_rank):
            variables = dict(
                RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE=str(self.n_rank), MASTER_PORT=port,
                MASTER_ADDR="127.0.0.1",
            )  # fmt: skip
            flags = ["train", "--resume", *self.flags[1:]] if began else self.flags
            process = self.context.Process(
                target=forked_rank, args=(self.told, start, self.log, variables, flags)
            )
            process.start()
            self._processes.append(process)

    def ended(self) -> bool:
        return all(process.exitcode is not None for process in self._processes)


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def killed_run(kind: Tuple[int, bool], n_kill: int, folder: Path, moments: random.Random) -> Run:
    n_rank, torchrun = kind
    run = Run(n_rank, torchrun=torchrun)
    ranks = (Torchrun if torchrun else Forked)(n_rank, folder)
    steps = sorted(moments.randrange(N_STEP - 5) for _ in range(n_kill))
    for start, step in enumerate(steps):
        starting = moments.random() < 1 / 6
        if not ranks.wait(start, -1 if starting else step):
            break
        time.sleep(moments.uniform(0.0, (4.0 if torchrun else 1.5) if starting else 0.4))
        kill = _kill(ranks, start, moments.randrange(n_rank))
        if kill is None:
            break
        run.kills.append(kill)
    while not ranks.ended():
        time.sleep(0.05)
    return run


def _kill(ranks: Ranks, start: int, victim: int) -> Optional[Kill]:
    before = ranks.look(start)
    found = before[victim]
    if found is None or ranks.ended():
        return None
    try:
        os.kill(found[0], signal.SIGKILL)
    except ProcessLookupError:
        return None
    began, n_before = time.monotonic(), len(ranks.log.read_bytes())
    kill = Kill(victim, found[1], found[2])
    while any(other is not None and _lives(other[0]) for other in before):
        time.sleep(0.005)
    kill.noticed = time.monotonic() - began
    while isinstance(ranks, Forked) and not ranks.ended():
        time.sleep(0.005)
    ranks.start_again()
    if ranks.wait(start + 1, 0):
        kill.resumed = time.monotonic() - began
    told = ranks.log.read_bytes()[n_before:].decode(errors="replace")
    by_name = rf"^Error: rank {victim}\W|local_rank: {victim} |^Error: not all of"
    kill.named = re.search(by_name, told, re.MULTILINE) is not None
    return kill


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def outcome(run: Path) -> Dict[str, Any]:
    """Digests of all files of the last checkpoint and of the best weights, log and metrics."""
    found: Dict[str, Any] = {"metrics": json.loads((run / "metrics.json").read_text())}
    for kind in ("checkpoints", "best"):
        last = sorted((run / kind).glob("epoch-*"))[-1]
        found[kind] = last.name, json.loads((last / "manifest.json").read_text())["files"]
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    timed = ("seconds", "triples_per_second")
    found["log"] = [{k: x for k, x in record.items() if k not in timed} for record in records]
    return found


# -- the report ------------------------------------------------------------------------------------


def report(runs: List[Run], seconds: Dict[int, float], done: str) -> str:
    from besskge_core.environment import describe

    machine = describe()
    kills = [kill for run in runs for kill in run.kills]
    doing = Counter(kill.doing for kill in kills)
    same = sum(run.same for run in runs)
    lines = [
        "# Ranks killed at random",
        "",
        f"`{done}`: torch {machine['torch']}, Python {machine['python']},"
        f" {os.cpu_count()} CPUs, besides other work. `family` of 256, {' '.join(FLAGS)}; {N_STEP} steps.",
        "",
        f"**{len(kills)} kills in {len(runs)} runs; {same} of {len(runs)} runs ended with the bits of"
        " the run that was left alone**: every file of the last checkpoint and of the best weights"
        f" has the same sha256, log and metrics are equal. {sum(kill.named for kill in kills)} of"
        f" {len(kills)} lost ranks were named in the output. Left alone a run took"
        f" {', '.join(f'{s:.0f} s with {n} ranks' for n, s in sorted(seconds.items()))}.",
        "",
        "*Noticed*: seconds from the kill until all other ranks of that start had ended, having told"
        " who was lost; 3.5 of them are to find out who is silent. *Resumed*: until all ranks had"
        " come to a step again; under torchrun most of it is torch being imported.",
        "",
        "| run | ranks | started again by | killed at step | noticed, median and most | resumed, median and most | same bits |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, run in enumerate(runs, start=1):
        at = ", ".join("start" if kill.step < 0 else str(kill.step) for kill in run.kills)
        spans = [
            f"{statistics.median(found):.1f}, {max(found):.1f}" if found else "-"
            for found in (
                [kill.noticed for kill in run.kills],
                [kill.resumed for kill in run.kills if kill.resumed],
            )
        ]
        by = "torchrun" if run.torchrun else "--resume"
        verdict = "yes" if run.same else "NO"
        lines.append(f"| {number} | {run.n_rank} | {by} | {at} | {' | '.join(spans)} | {verdict} |")
    lines += ["", "What the killed rank was doing:", "", "| doing | kills |", "|---|---|"]
    lines += [f"| {what} | {n} |" for what, n in doing.most_common()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--kills", type=int, default=5, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    chosen = parser.parse_args()
    moments, runs = random.Random(chosen.seed), []
    expected: Dict[int, Any] = {}
    seconds: Dict[int, float] = {}
    with tempfile.TemporaryDirectory() as place:
        for number in range(chosen.runs):
            kind, folder = KINDS[number % len(KINDS)], Path(place, f"run-{number}")
            if kind[0] not in expected:
                alone, began = Path(place, f"alone-{kind[0]}"), time.monotonic()
                killed_run((kind[0], False), 0, alone, moments)
                seconds[kind[0]] = time.monotonic() - began
                expected[kind[0]] = outcome(alone / "run")
            run = killed_run(kind, chosen.kills, folder, moments)
            try:
                run.same = outcome(folder / "run") == expected[kind[0]]
            except (OSError, IndexError) as error:
                print(f"run {number + 1}: {error}", file=sys.stderr)
            print(number + 1, run, flush=True)
            runs.append(run)
            if not run.same:
                print((folder / "log").read_text()[-8000:], file=sys.stderr)
            shutil.rmtree(folder)
            done = f"python benchmarks/faults.py --runs {chosen.runs} --kills {chosen.kills}"
            RESULT.write_text(report(runs, seconds, done))
    print(RESULT.read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        where = Path(sys.argv[2])
        sys.argv = ["besskge", *sys.argv[3:]]
        rank(where, int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    else:
        main()
