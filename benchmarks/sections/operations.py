"""Each operation against torch's own and against the machine's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from benchmarks.peers import Peers


def measure(peers: Peers, quick: bool, out: Path) -> Dict[str, Any]:
    """Nothing yet."""
    return {}


def as_markdown(found: Dict[str, Any]) -> List[str]:
    return []
