"""Who is to blame when a collective fails.

A collective that fails says that a connection was closed, or that time ran out, but not whose fault
it was. So each rank writes to the store of the process group, once a second, how many collectives it
has begun; and those who see one fail look who is silent, or behind, or has said why it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional

import torch.distributed as dist

from besskge_core.errors import WorkerLostError

#: Seconds between two signs of life, and until a rank without any is taken for dead.
INTERVAL, SILENCE = 1.0, 3.5


class Watch:
    """Signs of life of this rank, and a look at those of the others.

    Args:
        rank, n_rank: which rank this is, of how many.
        host, port: of the store; None: those of the environment that torchrun sets.
    """

    def __init__(
        self, rank: int, n_rank: int, host: Optional[str] = None, port: Optional[int] = None
    ) -> None:
        self.rank, self.n_rank = rank, n_rank
        self._address = (
            host or os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"] if port is None else port),
        )
        self._begun, self._failure, self._ended = 0, "", threading.Event()
        # Of each start of the ranks one, so that a restart does not read what was before.
        self._prefix = f"besskge/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._thread = threading.Thread(target=self._beat, name="besskge-watch", daemon=True)
        self._thread.start()

    def guard(self, collective: Callable[[], None]) -> None:
        """Call a collective.

        Raises:
            WorkerLostError: it failed; says which rank is to blame.
        """
        self._begun += 1
        try:
            collective()
        except RuntimeError as error:
            raise WorkerLostError(self._explain(error)) from error

    def fail(self, reason: str) -> None:
        """Tell the others why this rank ends."""
        self._failure = reason
        # If the store is gone, so is whoever could read.
        with contextlib.suppress(RuntimeError, ValueError):
            self._write(self._connect(), "failed")

    def close(self) -> None:
        """No more signs of life."""
        self._ended.set()
        self._thread.join(timeout=2 * INTERVAL)

    def _connect(self) -> Any:
        host, port = self._address
        return dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
        )

    def _beat(self) -> None:
        # If the store is gone, collectives will fail, too.
        with contextlib.suppress(RuntimeError, ValueError):
            store = self._connect()
            while not self._ended.is_set():
                self._write(store, "failed" if self._failure else "runs")
                self._ended.wait(INTERVAL)

    def _write(self, store: Any, state: str) -> None:
        record = {"begun": self._begun, "at": time.time(), "state": state, "why": self._failure}
        store.set(f"{self._prefix}/{self.rank}", json.dumps(record))

    def _read(self, store: Any) -> List[Optional[Dict[str, Any]]]:
        keys = [f"{self._prefix}/{rank}" for rank in range(self.n_rank)]
        return [json.loads(store.get(key)) if store.check([key]) else None for key in keys]

    def _explain(self, error: RuntimeError) -> str:
        """What is known of the ranks, after a collective failed."""
        what = str(error).strip().split("\n")[0]
        advice = "; resume the run to go on from its last checkpoint"
        try:
            store = self._connect()
            before = self._read(store)
            time.sleep(SILENCE)
            after = self._read(store)
        except (RuntimeError, ValueError):
            return f"rank 0, or the agent that keeps the store, is gone{advice} ({what})"
        others = [rank for rank in range(self.n_rank) if rank != self.rank]
        failed = {rank: found["why"] for rank in others if (found := after[rank]) and found["why"]}
        if failed:
            told = "; ".join(f"rank {rank} failed: {why}" for rank, why in failed.items())
            return f"{told}{advice}"
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            return (
                f"rank {_listed(silent)} died or cannot be reached: no sign of life for"
                f" {SILENCE:g} s{advice} ({what})"
            )
        begun = {rank: found["begun"] for rank in others if (found := after[rank])}
        least = min(begun.values(), default=self._begun)
        behind = [rank for rank, n in begun.items() if n == least < self._begun]
        if behind:
            return (
                f"rank {_listed(behind)} hangs, {self._begun - least} collectives behind rank"
                f" {self.rank}{advice} ({what})"
            )
        return (
            f"a collective failed on rank {self.rank}, no rank is silent or behind{advice} ({what})"
        )


def _listed(ranks: List[int]) -> str:
    return ", ".join(map(str, ranks))
