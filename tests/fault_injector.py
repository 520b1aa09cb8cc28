"""The command `besskge` in which something goes wrong at a known moment; for torchrun, and by hand.

    torchrun --nproc-per-node 2 tests/fault_injector.py '{"1": "kill write 3"}' train --out R ...

The first argument says, for the ranks concerned, what happens at which call of what, counted from 1
in each process; "1 2" is rank 1 after torchrun has started the ranks again for the second time. What
the command does is otherwise untouched.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Tuple


def _hang() -> None:
    while True:  # in Python: other threads go on
        time.sleep(0.001)


def _fill_files() -> None:
    """No file of this process grows any more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))


def _flood() -> None:
    """Fill the disk that the run is on."""
    with contextlib.suppress(OSError), (_folder() / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _read_only() -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(_folder().parent)], check=True)


def _folder() -> Path:
    return Path(sys.argv[sys.argv.index("--out") + 1])


FAULTS: Dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
    "hang": _hang,
    "fill": _fill_files,
    "flood": _flood,
    "read-only": _read_only,
}


def moments() -> Dict[str, Tuple[Any, str, bool]]:
    """Name -> (owner, function, whether the fault comes before it rather than after)."""
    import torch.distributed as dist

    from besskge_core.runtime import base, distributed
    from besskge_core.training import checkpoint, run_folder, trainer

    return {
        "join": (dist, "init_process_group", True),
        "settings": (run_folder.configuration, "dump", False),
        "step": (base.Runtime, "_train", True),
        "exchange": (dist, "all_to_all_single", True),
        "sum": (dist, "all_reduce", True),
        "draw": (distributed.DistributedRuntime, "_draw", True),  # in the loader's thread
        "evaluate": (trainer, "rank_triples", True),
        "write": (checkpoint, "save_file", True),  # the file's beginning ...
        "written": (checkpoint, "_write", False),  # ... after all files of this rank
        "rename": (os, "rename", True),
        "renamed": (os, "rename", False),
        "prune": (trainer, "prune", False),
        "conclude": (trainer.Trainer, "_conclude", True),
        "end": (trainer.Trainer, "_conclude", False),
    }


def inject(fault: str, moment: str, count: int) -> None:
    """Let the fault happen around the `count`-th call of a moment."""
    owner, name, before = moments()[moment]
    original, lock, calls = getattr(owner, name), threading.Lock(), [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        with lock:
            calls[0] += 1
            now = calls[0] == count
        if now and before:
            _happen(fault)
        found = original(*arguments, **named)
        if now and not before:
            _happen(fault)
        return found

    setattr(owner, name, wrapped)


def _happen(fault: str) -> None:
    print(f"fault at {time.time()}", file=sys.stderr, flush=True)
    FAULTS[fault]()


def run(faults: Dict[str, str]) -> None:
    """The command, with the faults of this rank and of this start of it."""
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    rank = os.environ.get("RANK", "0")
    planned = faults.get(f"{rank} {start}" if start != "0" else rank)
    if planned is not None:
        fault, moment, count = planned.split()
        inject(fault, moment, int(count))
    from besskge_core.cli import main

    main()


if __name__ == "__main__":
    plan = json.loads(sys.argv.pop(1))
    sys.argv[0] = "besskge"
    run(plan)
