"""Whether a step is being traced for another device, whose compiler makes the gradients.

While it is, operations are plain torch that PopTorch can lower: no native kernels, no sparse
gradients, no `torch.autograd.Function`, whose backward pass a tracer does not see.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator

_TRACED: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def tracing() -> Iterator[None]:
    """While this lasts, :func:`is_traced` is true; in this thread alone."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def is_traced() -> bool:
    """Whether a step is being traced."""
    return _TRACED.get()
