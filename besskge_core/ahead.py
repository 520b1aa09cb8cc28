"""Work that threads do ahead, but that comes in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Deque, Iterable, Iterator, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[T], R],
    items: Iterable[T],
    ahead: int,
    cancel: bool = True,
) -> Iterator[R]:
    """Results of a function, computed by threads, `ahead` of them at most waiting.

    Args:
        pool: the threads.
        function: of one item.
        items: asked for one at a time.
        ahead: how many.
        cancel: who leaves early does not wait for what nobody wants.
    """
    waiting: Deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting if cancel else ():
            future.cancel()
