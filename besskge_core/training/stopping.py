"""Signals that ask a run to end."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping

#: Seconds in which one request may come twice: from a terminal, which tells all its processes, and
#: from torchrun, which passes on what it was told.
SAME_REQUEST = 3.0


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Set an event on the first SIGINT or SIGTERM, so that the step under way can finish."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: Dict[int, Any] = {}
    first: List[float] = []

    def on_signal(number: int, frame: Any) -> None:
        if not stopping.is_set():
            first.append(time.monotonic())
            stopping.set()
        elif time.monotonic() - first[0] > SAME_REQUEST:  # the second one ends the process at once
            _restore_signals(before)
            signal.raise_signal(number)

    for number in signals:
        before[number] = signal.signal(number, on_signal)
    try:
        yield stopping
    finally:
        _restore_signals(before)


def _restore_signals(before: Mapping[int, Callable[..., Any]]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
