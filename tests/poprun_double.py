"""A stand-in for poprun, for tests on machines that have none: `poprun [options] program [arguments]`.

It knows the options that Graphcore documents for poprun of SDK 3.3, refuses what cannot be, and
starts all instances on this machine with what MPI sets for each. Those that `--host` places on
another host than the first get no environment but what `--mpi-local-args` forwards. What was asked
for is added as a line of JSON to the file that $POPRUN_RECORD names. It is no part of the package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from typing import Any, Dict, List

NUMBERS = ("num-replicas", "num-instances", "ipus-per-replica", "num-ilds", "vipu-server-port",
           "vipu-server-timeout", "vipu-partition-attempts", "only-output-from-instance")  # fmt: skip
SWITCHES = ("numa-aware", "print-topology", "offline-mode", "update-partition", "reset-partition",
            "remove-partition", "overwrite-config")  # fmt: skip
NAMES = ("vipu-server-host", "vipu-partition", "vipu-allocation", "vipu-cluster", "sync-type",
         "executable-cache-path", "mpi-global-args", "mpi-local-args", "import-config",
         "export-config")  # fmt: skip


def parsed(arguments: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="poprun", allow_abbrev=False)
    parser.add_argument("-H", "--host")
    parser.add_argument("-v", action="count")
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int)
    for name in SWITCHES:
        parser.add_argument(f"--{name}", choices=("yes", "no"))
    for name in NAMES:
        parser.add_argument(f"--{name}")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    parser.set_defaults(num_instances=1, num_replicas=1, ipus_per_replica=1)
    given = parser.parse_args(arguments)
    n_ipu = given.num_replicas * given.ipus_per_replica
    if given.num_replicas % given.num_instances:
        parser.error("replicas cannot be dealt to the instances evenly")
    if n_ipu & (n_ipu - 1):
        parser.error(f"partitions have a power of two of IPUs, not {n_ipu}")
    if not given.program:
        parser.error("a program to start is missing")
    return given


def environment(given: argparse.Namespace, instance: int) -> Dict[str, str]:
    """Of an instance; hosts have equally many, one after the other."""
    known = dict(os.environ)
    n_host = len(given.host.split(",")) if given.host else 1
    if instance >= given.num_instances // n_host:
        forwarded = re.findall(r"-x (\w+)", given.mpi_local_args or "")
        known = {name: os.environ[name] for name in forwarded}
    return dict(
        known,
        OMPI_COMM_WORLD_RANK=str(instance),
        OMPI_COMM_WORLD_SIZE=str(given.num_instances),
    )


def main() -> int:
    given = parsed(sys.argv[1:])
    if "POPRUN_RECORD" in os.environ:
        asked: Dict[str, Any] = {k: x for k, x in vars(given).items() if x is not None}
        with open(os.environ["POPRUN_RECORD"], "a") as file:
            file.write(json.dumps(asked) + "\n")
    processes = [
        subprocess.Popen(given.program, env=environment(given, i))
        for i in range(given.num_instances)
    ]
    return max(abs(process.wait()) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
