"""How a step is compiled and driven."""

from __future__ import annotations

from besskge_core.runtime.local import LocalRuntime, Planned

__all__ = ["LocalRuntime", "Planned"]
