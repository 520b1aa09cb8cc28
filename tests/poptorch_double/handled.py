"""Which of torch's operations PopTorch 3.3 and 3.4 lower; others end compilation."""

from __future__ import annotations

from pathlib import Path

#: Names without overload and trailing underscore.
HANDLED = frozenset((Path(__file__).parent / "handled.txt").read_text().split())

#: What torch makes of handled operations, or of constants, before a tracer sees them.
PARTS = frozenset(
    [
        "_to_copy",
        "alias",
        "empty",
        "empty_like",
        "empty_strided",
        "lift_fresh",
        "new_empty",
        "scalar_tensor",
    ]
)
