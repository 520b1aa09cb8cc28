"""The results of a run, as JSON and in words; written anew after each section."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Dict, List


def name_of(device: str) -> str:
    """Of the files: 'NVIDIA H200' -> 'gpu-nvidia-h200'."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write(
    folder: Path, name: str, report: Dict[str, Any], in_words: Dict[str, Callable[..., List[str]]]
) -> None:
    """`name`.json and `name`.md.

    Args:
        folder: of both.
        name: see :func:`name_of`.
        report: what was found.
        in_words: of each section, what makes Markdown of its findings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = _heading(report)
    for section, found in report["sections"].items():
        lines += ["", f"## {found['title']}", ""]
        if "error" in found:
            lines.append(f"Failed: {found['error']}")
        else:
            lines += in_words[section](found["found"])
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def _heading(report: Dict[str, Any]) -> List[str]:
    if report["rehearsal"]:
        first = (
            "# A rehearsal on a CPU\n\n**Tiny sizes: no number here says anything about a GPU.**"
        )
    else:
        first = f"# Measured on one {report['device']}"
    versions = ", ".join(f"{name} {x}" for name, x in report["versions"].items())
    lines = [
        first,
        "",
        f"{versions}; {report['seconds']:.0f} s in all. `make gpu` makes this page.",
    ]
    if report["missing"]:
        lines += ["", "Missing, so left out: " + "; ".join(report["missing"]) + "."]
    return lines
