"""What kernels are written in: Triton, or names that keep modules importable where it is missing.

Kernels run compiled on a GPU. With TRITON_INTERPRET=1 in the environment before Triton is first
imported they run in Triton's interpreter, on the CPU.
"""

from __future__ import annotations

from typing import Any, Callable

#: The oldest version of Triton that compiles the kernels.
OLDEST = (3, 3)

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:
    triton = tl = constexpr = None

#: Whether kernels can run.
HAS_TRITON = triton is not None and tuple(map(int, triton.__version__.split(".")[:2])) >= OLDEST

__all__ = [
    "HAS_TRITON", "OLDEST", "constexpr", "jit", "jit_for_any", "n_warps", "power_of_two", "tl",
    "triton",
]  # fmt: skip


def jit(function: Callable[..., Any]) -> Any:
    """Make a kernel, or a function that kernels call."""
    return triton.jit(function) if HAS_TRITON else function


def jit_for_any(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """:func:`jit`, compiled once for all values of these integers, which change every step."""
    if not HAS_TRITON:
        return lambda function: function
    decorate: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=list(names))
    return decorate


def power_of_two(n: int) -> int:
    """The least power of two that is not below n, 1 at least."""
    return 1 << max(n - 1, 0).bit_length()


def n_warps(n: int) -> int:
    """Warps for a block of n numbers: 8 of them a thread, two loads of 16 bytes in float32."""
    return min(max(power_of_two(n) // 256, 1), 16)
