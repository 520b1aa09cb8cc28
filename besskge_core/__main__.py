"""``python -m besskge_core`` is the command ``besskge``."""

from __future__ import annotations

from besskge_core.cli import main

if __name__ == "__main__":
    main()
