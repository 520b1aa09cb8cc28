"""What a run ran on, for its folder and for `besskge info`: no host names, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any, Dict, List, Optional

import torch

__all__ = ["describe", "version_of"]

PACKAGES = ("numpy", "scipy", "einops", "safetensors", "pyarrow")


def describe() -> Dict[str, Any]:
    """Versions, platform, processor, threads, devices, and the commit of the working directory."""
    return {
        "besskge_core": version_of("besskge_core"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: version_of(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "n_cpu": _n_cpu(),
        "threads": torch.get_num_threads(),
        "cuda": str(torch.version.cuda) if torch.version.cuda else None,
        "devices": _devices(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def version_of(package: str) -> Optional[str]:
    """Its version, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> Optional[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return next(iter(names), platform.processor() or None)


def _n_cpu() -> Optional[int]:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _devices() -> List[str]:
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(n_cuda))]


def _git(*arguments: str) -> Optional[str]:
    """Output of git, or None where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
