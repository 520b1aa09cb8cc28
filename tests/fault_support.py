"""Runs of the command `besskge` on ranks that are real processes, in which something goes wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import fault_injector
import torch
from ranks import environment, free_port
from safetensors.torch import load_file

from besskge_core.training.checkpoint import find_checkpoints

Faults = Dict[Any, str]

#: Ranks are forked from a process that has imported all that they need.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["besskge_core.cli", "fault_injector", "torch._dynamo"])

SETTINGS = '[data]\ndataset = "family"\n[data.dataset_options]\nn_person = 128\n'
FLAGS = [
    f"--{name}={value}"
    for name, value in {
        "n-shard": 4, "dim": 8, "batch-size": 256, "n-negative": 64, "epochs": 2,
        "evaluate-every": 1, "init-scale": 0.1, "threads": 1, "checkpoint-seconds": 0,
    }.items()
]  # fmt: skip


@dataclass
class Ended:
    """How a run ended: exit status and words of each rank, or of the launcher alone.

    Attributes:
        seconds: from the fault, if there was one, to the end of the last rank.
    """

    codes: List[int]
    errors: List[str]
    seconds: float

    def lines(self) -> List[str]:
        """The error lines."""
        return re.findall("^Error: .*$", "\n".join(self.errors), re.MULTILINE)


def command(out: Path, *more: str) -> List[str]:
    settings = out.with_suffix(".toml")
    settings.write_text(SETTINGS)
    return ["train", "--config", str(settings), *FLAGS, "--out", str(out), *more]


def forked(
    n_rank: int, arguments: Sequence[str], faults: Optional[Faults] = None, bound: float = 300.0
) -> Ended:
    """Run the command on so many ranks, with no launcher that would look after them.

    A rank that lives more than `bound` seconds after a fault fails the test; one that the fault has
    stopped is ended when all others have.
    """
    faults, port, pipes, processes = faults or {}, free_port(), [], []
    for rank in range(n_rank):
        ours, theirs = FORKSERVER.Pipe(duplex=False)
        variables = environment(rank, n_rank, port)
        process = FORKSERVER.Process(
            target=_rank, args=(theirs, variables, list(arguments), faults), daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    stuck = {rank for rank, fault in faults.items() if fault.split()[0] in ("stop", "hang")}
    deadline = time.time() + 300.0
    for rank, process in enumerate(processes):
        if rank not in stuck:
            process.join(max(0.0, deadline - time.time()))
    ended = time.time()
    late = [
        rank for rank, process in enumerate(processes) if process.is_alive() and rank not in stuck
    ]
    for process in processes:
        process.kill()
        process.join()
    errors = [_all_of(pipe.fileno()) for pipe in pipes]
    assert not late, f"ranks {late} did not end; {errors}"
    result = Ended([int(p.exitcode or 0) for p in processes], errors, ended - _moment(errors))
    assert result.seconds < bound, f"{result.seconds:.0f} s; {errors}"
    return result


def _rank(pipe, variables: Dict[str, str], arguments: List[str], faults: Faults) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(pipe.fileno(), 2)
    pipe.close()
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv = ["besskge", *arguments]
    fault_injector.run({str(rank): fault for rank, fault in faults.items()})


def _all_of(descriptor: int) -> str:
    parts = iter(lambda: os.read(descriptor, 2**16), b"")
    return b"".join(parts).decode()


def _moment(errors: Sequence[str]) -> float:
    """When the first fault happened; now if there was none."""
    found = re.findall(r"^fault at ([\d.]+)$", "\n".join(errors), re.MULTILINE)
    return min(map(float, found)) if found else time.time()


def torchrun(
    n_rank: int, arguments: Sequence[str], faults: Optional[Faults] = None, *options: str,
    signal_after: Optional[Path] = None, bound: float = 300.0,
) -> Ended:  # fmt: skip
    """Run the command under torchrun, which is told to end once the path exists, if one is given."""
    plan = json.dumps(faults or {})
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n_rank),
         "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", *options,
         fault_injector.__file__, plan, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    asked = time.time()
    while signal_after is not None and not signal_after.exists() and process.poll() is None:
        assert time.time() < asked + bound, f"{signal_after} has not come"
        time.sleep(0.01)
    if signal_after is not None:
        asked = time.time()
        process.send_signal(signal.SIGTERM)
    try:
        errors = process.communicate(timeout=bound)[1].decode()
    finally:
        process.kill()
    since = asked if signal_after is not None else _moment([errors])
    return Ended([process.returncode], [errors], time.time() - since)


# -- what a run left behind ------------------------------------------------------------------------


def stored(folder: Path) -> Dict[str, torch.Tensor]:
    """All tensors of the last checkpoint and of the best weights."""
    found = {}
    for kind in ("checkpoints", "best"):
        last = find_checkpoints(folder / kind)[-1]
        for path in sorted(last.glob("*.safetensors")):
            name = f"{kind}/{last.name}/{path.name}"
            found.update({f"{name}/{key}": x for key, x in load_file(path).items()})
    return found


def records(folder: Path) -> List[Dict[str, float]]:
    """The log, without what a clock measured; that as CSV has as many rows."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len((folder / "log.csv").read_text().splitlines()) == len(lines) + 1
    timed = ("seconds", "triples_per_second")
    return [{k: x for k, x in json.loads(line).items() if k not in timed} for line in lines]


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    """The same bits in tables and optimiser state, the same log, the same metrics; no leftovers."""
    found, expected = stored(folder), stored(undisturbed)
    assert found.keys() == expected.keys()
    different = [name for name, x in expected.items() if not torch.equal(found[name], x)]
    assert not different
    assert records(folder) == records(undisturbed)
    assert (folder / "metrics.json").read_text() == (undisturbed / "metrics.json").read_text()
    assert not list(folder.rglob(".*.partial"))
