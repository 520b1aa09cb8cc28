"""Contenders in environments of their own: who is there, and how one is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

ROOT = Path(__file__).parents[1]

#: Names for people to read, by module of `benchmarks.contenders`.
NAMES = {
    "besskge": "besskge_core",
    "pykeen": "PyKEEN",
    "dglke": "DGL-KE",
    "biggraph": "PyTorch-BigGraph",
    "libkge": "LibKGE",
    "pyg": "torch_geometric",
}


class Peers(NamedTuple):
    """Where the environments are, and what all contenders share.

    Attributes:
        folder: holds an environment for each peer, named like its module: FOLDER/pykeen/bin/python.
        threads: of every contender.
    """

    folder: Optional[Path]
    threads: int = 2

    def interpreter(self, contender: str) -> Optional[str]:
        """The Python of a contender, or None where it is not installed."""
        if contender == "besskge":
            return sys.executable
        found = self.folder / contender / "bin" / "python" if self.folder else None
        return str(found) if found and found.exists() else None

    def missing(self) -> Dict[str, str]:
        """Peers that cannot be measured, and why."""
        names = (name for name in NAMES if self.interpreter(name) is None)
        return {NAMES[name]: "not installed" for name in names}

    def ask(self, contender: str, request: Dict[str, Any], timeout: float = 7200) -> Dict[str, Any]:
        """The answer of a contender, in a process of its own.

        One that is not there, fails, or takes too long answers with what was wrong.
        """
        python = self.interpreter(contender)
        if python is None:
            return {"missing": "not installed"}
        count = str(self.threads)
        threads = {f"{x}_NUM_THREADS": count for x in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
        request = {"threads": self.threads, **request}
        try:
            done = subprocess.run(
                [python, "-W", "ignore", "-m", f"benchmarks.contenders.{contender}", json.dumps(request)],
                cwd=ROOT, env={**os.environ, **threads}, timeout=timeout, text=True,
                capture_output=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"not done in {timeout:.0f} s"}
        if done.returncode:
            return {"failed": without_paths(done.stderr.strip().splitlines()[-1:])}
        answer: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer


def without_paths(lines: Any) -> str:
    """The last words of a process that failed, fit for a report."""
    return re.sub(r"/[\w./-]+", "...", " ".join(lines))[:200] or "killed"
