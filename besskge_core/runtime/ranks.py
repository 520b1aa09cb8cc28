"""The processes of a run: who they are, and how they agree.

torchrun starts one process a rank and tells each its number; without it a run is one process. What a
rank does alone, such as writing a file, may fail on that rank alone: :meth:`Ranks.first` and
:meth:`Ranks.each` let all know, so that nobody waits for who has stopped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional, Sequence, TypeVar

import torch
import torch.distributed as dist

from besskge_core.errors import ConfigError, WorkerLostError
from besskge_core.exchange import DistributedExchange, Exchange, LocalExchange
from besskge_core.exchange.distributed import dealt
from besskge_core.runtime.devices import checked_device
from besskge_core.runtime.watch import Watch

T = TypeVar("T")

#: Seconds that a rank waits for another, unless told.
TIMEOUT = 300.0

#: Those that this process has joined: groups and the watch are of the whole process.
_joined: List[Ranks] = []


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; by default, one.

    Attributes:
        rank, n_rank: which this is, of how many.
        device: where it computes.
        timeout: seconds that it waits for others.
        watch: finds out who failed; None in a run of one process.
    """

    rank: int = 0
    n_rank: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: float = TIMEOUT
    watch: Optional[Watch] = None
    _talk: Exchange = field(default_factory=lambda: LocalExchange(1))
    _beside: Optional[dist.ProcessGroup] = None

    def hosted(self, n_shard: int) -> range:
        """The shards of this rank.

        Raises:
            ConfigError: they cannot be dealt evenly.
        """
        return dealt(n_shard, self.rank, self.n_rank)

    def exchange(self, n_shard: int, beside: bool = False) -> Exchange:
        """The collectives of so many shards.

        Args:
            n_shard: of all ranks.
            beside: for tensors of the host, from one thread beside that which runs the steps.
        """
        if self.watch is None:
            return LocalExchange(n_shard)
        if beside:
            return DistributedExchange(n_shard, self._beside, self.watch.guard("beside"))
        return DistributedExchange(n_shard, None, self.watch.guard())

    # -- agreeing ----------------------------------------------------------------------------------

    def any(self, *flags: bool) -> Sequence[bool]:
        """Of each flag, whether some rank has raised it; the same on all."""
        raised = self._talk.sum_ranks(torch.tensor(flags, dtype=torch.int32))
        return (raised > 0).tolist()

    def gather(self, value: Any) -> List[Any]:
        """Of every rank something that JSON can hold, in order."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self._talk.gather_ranks(torch.tensor(len(data))).tolist()
        padded = torch.nn.functional.pad(data, (0, max(sizes) - len(data)))
        gathered = self._talk.gather_ranks(padded)
        return [json.loads(bytes(x[:n].tolist())) for x, n in zip(gathered, sizes)]

    def first(self, act: Callable[[], T]) -> T:
        """What the first rank's `act` gives, on all ranks; JSON must be able to hold it.

        Raises:
            WorkerLostError: it failed there; on the first rank, the error itself.
        """
        result: T = self.each(lambda: act() if self.rank == 0 else None)[0]  # type: ignore[assignment]
        return result

    def each(self, act: Callable[[], T]) -> List[T]:
        """What `act` gives on every rank, in order; JSON must be able to hold it.

        Raises:
            WorkerLostError: it failed on another rank; where it failed, the error itself.
        """
        if self.n_rank == 1:
            return [act()]
        error: Optional[Exception] = None
        found: Any = None
        try:
            found = act()
        except Exception as own:
            error = own
        told = None if error is None else f"{type(error).__name__}: {error}"
        answers = self.gather([found, told])
        if error is not None:
            raise error
        failed = [f"rank {i}: {why}" for i, (_, why) in enumerate(answers) if why is not None]
        if failed:
            raise WorkerLostError("; ".join(failed))
        return [value for value, _ in answers]


def launched() -> bool:
    """Whether torchrun, or another launcher that sets what it sets, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def restarted() -> bool:
    """Whether torchrun started this rank again; on other hosts it may not have counted that."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def restarts_allowed() -> bool:
    """Whether torchrun would start the ranks again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def join(device: str = "cpu", timeout: float = TIMEOUT) -> Ranks:
    """Join the other processes, if there are any: over gloo on CPUs, NCCL on GPUs.

    Who has joined gets what they got, until they leave.

    Args:
        device: "cuda" is the GPU of this process's place on its host.
        timeout: seconds to wait for another rank until it is taken for lost.

    Raises:
        ConfigError: there is no such device here.
        WorkerLostError: not all of them came.
    """
    if not launched():
        return Ranks(device=checked_device(device), timeout=timeout)
    if _joined:
        return _joined[0]
    chosen, wait = torch.device(device), timedelta(seconds=timeout)
    if chosen.type == "cuda":
        chosen = checked_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        if not dist.is_nccl_available():
            raise ConfigError(
                f"device is {device!r} in several processes, but this torch has no NCCL, over which GPUs"
                " talk; give device 'cpu', or one process"
            )
        torch.cuda.set_device(chosen)
    try:
        if not dist.is_initialized():
            backend = "nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=wait, **_store_of_restart(wait))
        rank, n_rank = dist.get_rank(), dist.get_world_size()
        group, beside = (dist.new_group(backend="gloo", timeout=wait) for _ in range(2))
        # The first rank names this start. Agents of several hosts count restarts differently.
        name = torch.tensor(int.from_bytes(os.urandom(7), "big"))
        start = DistributedExchange(n_rank, group).gather_ranks(name)[0]
        watch = Watch(rank, n_rank, f"{int(start):x}")
        dist.barrier(group)
    except RuntimeError as error:
        raise WorkerLostError(
            f"not all of {os.environ['WORLD_SIZE']} ranks have come within {timeout:g} s, or one"
            f" died at once ({str(error).strip().splitlines()[0]})"
        ) from error
    talk = DistributedExchange(n_rank, group, watch.guard())
    _joined.append(Ranks(rank, n_rank, chosen, timeout, watch, talk, beside))
    return _joined[0]


def _store_of_restart(wait: timedelta) -> Dict[str, Any]:
    """Where ranks that an agent has started again find each other; else torch decides.

    The agent's store may still have the addresses of those that have ended, and torch 2.13 would try
    to connect to them.
    """
    if not restarted() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
        wait_for_workers=False, timeout=wait,
    )  # fmt: skip
    prefix = f"besskge/restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    return dict(
        store=dist.PrefixStore(prefix, store),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def leave(ranks: Ranks) -> None:
    """End what :func:`join` began."""
    if ranks.watch is not None:
        _joined.clear()
        ranks.watch.close()
        dist.destroy_process_group()
