"""Who is to blame when a collective fails.

A collective that fails says that a connection was closed, or that time ran out, but not whose fault
it was. So each rank writes to the store of the process group, once a second, how many collectives it
has begun; and those who see one fail look who is silent, or behind, or has said why it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional

import torch.distributed as dist

from besskge_core.errors import WorkerLostError
from besskge_core.exchange.distributed import Guard

#: Seconds between two signs of life, until a rank without any is taken for dead, and that a look at
#: the others may take.
INTERVAL, SILENCE, PATIENCE = 1.0, 3.5, 6.0
ADVICE = "; resume the run to go on from its last checkpoint"

Records = List[Dict[str, Any]]


class Watch:
    """Signs of life of this rank, and a look at those of the others, once all have a watch.

    Args:
        rank, n_rank: which rank this is, of how many.
        start: names this start of the ranks, the same on all; what ranks wrote before they were
            started again is under another name.
        host, port: of the store; None: those of the environment that torchrun sets.
    """

    def __init__(
        self, rank: int, n_rank: int, start: str, host: Optional[str] = None,
        port: Optional[int] = None,
    ) -> None:  # fmt: skip
        self.rank, self.n_rank = rank, n_rank
        self._store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            host or os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"] if port is None else port),
            is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5),
        )  # fmt: skip
        self._begun: Counter[str] = Counter()
        self._lost, self._failed = "", False  # what is known of another rank; whether this one ends
        self._n_silent = 0
        self._prefix, self._ended = f"besskge/{start}", threading.Event()
        self._sign()
        self._thread = threading.Thread(target=self._beat, name="besskge-watch", daemon=True)
        self._thread.start()

    def guard(self, order: str = "steps") -> Guard:
        """Calls collectives.

        Args:
            order: names those that all ranks begin in the same order.

        Raises (the guard):
            WorkerLostError: it failed; says which rank is to blame. Once one has failed, none is
                begun any more: a thread that makes batches would wait for each of its own.
        """

        def call(collective: Callable[[], None]) -> None:
            if self._failed:
                raise WorkerLostError(self._lost + ADVICE)
            self._begun[order] += 1
            try:
                collective()
            except RuntimeError as error:
                self._lost = self._explain(order, _brief(error))
                self._failed = True
                raise WorkerLostError(self._lost + ADVICE) from error

        return call

    def fail(self, error: BaseException) -> None:
        """Tell the others why this rank ends; what another did is told as it was found."""
        self._failed, why = True, str(error).split(ADVICE)[0]
        if not isinstance(error, WorkerLostError):
            why = f"rank {self.rank} failed: {type(error).__name__}: {error}"

        def tell() -> None:
            self._store.set(f"{self._prefix}/lost", why)
            ended = self._add_ended(1)
            # The store may end with the first rank: let the others read it.
            until = time.monotonic() + 1.5 * INTERVAL
            others = self.n_rank - self._n_silent
            while self.rank == 0 and ended < others and time.monotonic() < until:
                time.sleep(INTERVAL / 10)
                ended = self._add_ended(0)

        if self._thread.is_alive():  # else the store is gone
            _within(2 * INTERVAL, tell)

    def close(self) -> None:
        """No more signs of life."""
        self._ended.set()
        self._thread.join(2 * INTERVAL)

    def _beat(self) -> None:
        # If the store is gone, collectives will fail, too.
        with contextlib.suppress(RuntimeError, ValueError):
            while not self._ended.is_set():
                self._sign()
                self._listen()
                self._ended.wait(INTERVAL)

    def _sign(self) -> None:
        record = {"begun": self._begun, "at": time.time()}
        self._store.set(f"{self._prefix}/{self.rank}", json.dumps(record))

    def _listen(self) -> bool:
        """Whether some rank has told why it ends."""
        if not self._lost and self._add_ended(0):
            self._lost = self._store.get(f"{self._prefix}/lost").decode()
        return bool(self._lost)

    def _add_ended(self, n: int) -> int:
        return int(self._store.add(f"{self._prefix}/ended", n))

    def _read(self) -> Records:
        return [json.loads(self._store.get(f"{self._prefix}/{x}")) for x in range(self.n_rank)]

    def _explain(self, order: str, what: str) -> str:
        """What is known of the ranks, after a collective failed."""
        # A store on a host or in a process that hangs would not answer, either.
        found = None if self._lost else _within(PATIENCE, self._look)
        if self._lost:
            return self._lost
        if found is None:
            return f"rank 0, or the agent that keeps the store, is gone or hangs ({what})"
        before, after = found
        others = [rank for rank in range(self.n_rank) if rank != self.rank]
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            self._n_silent = len(silent)
            return (
                f"rank {_listed(silent)} died or cannot be reached: no sign of life for"
                f" {SILENCE:g} s ({what})"
            )
        own = self._begun[order]
        begun = {rank: record["begun"].get(order, 0) for rank, record in enumerate(after)}
        least = min(begun.values())
        behind = [rank for rank, n in begun.items() if n == least < own]
        if behind:
            return (
                f"rank {_listed(behind)} hangs, {own - least} collective(s) behind rank"
                f" {self.rank}, or needs a longer --timeout ({what})"
            )
        return f"a collective failed on rank {self.rank}, no rank is silent or behind ({what})"

    def _look(self) -> List[Records]:
        """What the ranks last wrote: at first, and when the silent ones are known."""
        before, until = self._read(), time.monotonic() + SILENCE
        while not self._listen() and time.monotonic() < until:
            time.sleep(INTERVAL / 5)
        return [before, self._read()]


def _within(seconds: float, act: Callable[[], Any]) -> Any:
    """What `act` gives; None if it fails, or takes longer."""
    found: List[Any] = [None]

    def run() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            found[0] = act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0]


def _brief(error: RuntimeError) -> str:
    """The first sentence of what torch says, without the place in its source."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^\[[^]]*\]\s*", "", line).split(". This is")[0]


def _listed(ranks: List[int]) -> str:
    return ", ".join(map(str, ranks))
