"""Real processes that form a process group, and do what a test tells them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from typing import Any, Callable, List

import torch
from support import random_triples

from besskge_core.dataset import KGDataset

#: Ranks and shards; the last but one has more shards than ranks.
WORLDS = [(1, 4), (2, 2), (2, 4), (4, 4)]


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(rank: int, n_rank: int, port: int) -> dict:
    """What torchrun sets."""
    return dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n_rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip


class RankPool:
    """`n_rank` processes; `run(fn, *arguments)` is what fn gives on each of them, in order.

    Functions are those of test modules, by name; they may call `join()`, and all collectives.
    """

    def __init__(self, n_rank: int) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        self.n_rank, self._pipes, self._processes = n_rank, [], []
        for rank in range(n_rank):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, environment(rank, n_rank, port)), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, fn: Callable[..., Any], *arguments: Any) -> List[Any]:
        for pipe in self._pipes:
            pipe.send((fn, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(120), f"rank {rank} of {self.n_rank} does not answer"
            answers.append(pipe.recv())
        wrong = [f"rank {rank}: {found}" for rank, (ok, found) in enumerate(answers) if not ok]
        assert not wrong, "\n".join(wrong)
        return [found for _, found in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def _serve(pipe: Any, variables: dict) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    while True:
        fn, arguments = pipe.recv()
        try:
            pipe.send((True, fn(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def small_graph() -> KGDataset:
    triples = random_triples(37, 4, 260, seed=0)
    return KGDataset.from_triples(
        triples, (200 / 260, 30 / 260, 30 / 260), type_offsets={"a": 0, "b": 12, "c": 30}
    )
