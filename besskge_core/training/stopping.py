"""Signals that ask a run to end."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Set an event on the first SIGINT or SIGTERM, so that the step under way can finish."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: Dict[int, Any] = {}

    def on_signal(number: int, frame: Any) -> None:
        stopping.set()
        _restore_signals(before)  # the second one ends the process at once

    for number in signals:
        before[number] = signal.signal(number, on_signal)
    try:
        yield stopping
    finally:
        _restore_signals(before)


def _restore_signals(before: Mapping[int, Callable[..., Any]]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
