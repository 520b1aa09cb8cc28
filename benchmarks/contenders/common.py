"""What all contenders share: the request that they read, graphs, clocks, memory, and the answer.

A contender is run by the interpreter of its own system, from the repository's root:

    python -m benchmarks.contenders.pykeen '{"what": "step", "model": "distmult", ...}'

and its last line is one JSON object. Only NumPy and torch are needed here, which each system has.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import platform
import resource
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.multiprocessing as mp

Answer = Dict[str, Any]


class Unsupported(Exception):
    """This system has no such thing; the message says what is missing."""


class Enough(Exception):
    """As many steps as were asked for are done; ends a training loop that is not ours."""


class StepRequest(NamedTuple):
    """One whole training step: sampling, scores, gradients, update.

    Attributes:
        model: transe_l1, transe_l2, distmult, complex or rotate.
        layout: "shared", a list of negatives for all positives (or for a chunk of them, where the
            system has chunks), or "per_triple", a list of its own for each positive.
        optimizer: adagrad or adam; "lazy_adam" is besskge_core's alone.
        sparse: gradients of the touched rows only, where a system leaves the choice.
        dim: real numbers of an entity; models of complex numbers have half as many.
        processes: of training without locks, with `threads` shared among them.
        seconds: after which no more than three steps are timed; of one process only.
    """

    model: str
    layout: str = "shared"
    optimizer: str = "adagrad"
    sparse: bool = True
    dim: int = 200
    batch: int = 1024
    n_negative: int = 256
    n_entity: int = 14_541
    n_relation: int = 237
    n_triple: int = 272_115
    threads: int = 2
    processes: int = 1
    warmup: int = 5
    steps: int = 30
    seconds: float = 20.0
    seed: int = 0

    def triples(self) -> np.ndarray:
        """The graph: int64 (n_triple, 3) of head, relation, tail, equal for all contenders."""
        rng = np.random.default_rng(self.seed)
        sizes = (self.n_entity, self.n_relation, self.n_entity)
        return np.stack([rng.integers(n, size=self.n_triple) for n in sizes], axis=1)

    def clock(self) -> Clock:
        return Clock(self.warmup, self.steps, self.seconds)

    def only(self, **choices: List[str]) -> None:
        """Raises Unsupported for a value of a field that is not among the system's."""
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise Unsupported(f"{field} {getattr(self, field)}")


class Graph(NamedTuple):
    """What `benchmarks.graphs` stored: int64 (n, 3) by part."""

    triples: Dict[str, np.ndarray]
    n_entity: int
    n_relation: int

    @classmethod
    def read(cls, folder: str) -> Graph:
        parts = {part: np.load(f"{folder}/{part}.npy") for part in ("train", "valid", "test")}
        return cls(parts, *json.loads(Path(folder, "sizes.json").read_text()))


class Clock:
    """Times of the steps of a loop that calls :meth:`tick` at the end of each.

    The first `warmup` (at least one) are dropped. `Enough` is raised after `steps` more, or when
    `seconds` are over and three are timed.
    """

    def __init__(self, warmup: int, steps: int, seconds: float) -> None:
        self.warmup, self.steps, self.seconds = max(warmup, 1), steps, seconds
        self.begin = time.perf_counter()
        self.ends: List[float] = []
        self.losses: List[float] = []

    def tick(self, loss: float) -> None:
        self.ends.append(time.perf_counter())
        self.losses.append(float(loss))
        late = self.ends[-1] - self.begin > self.seconds
        if len(self.ends) == 1 and late:
            self.warmup = 1
        if len(self.ends) >= self.warmup + (min(self.steps, 3) if late else self.steps):
            raise Enough

    def run(self, loop: Callable[[Clock], Any]) -> Clock:
        """Run a loop to its last tick."""
        try:
            loop(self)
        except Enough:
            return self
        raise RuntimeError(f"the loop ended after {len(self.ends)} steps")

    def answer(self, **more: Any) -> Answer:
        """Milliseconds a step, first and last loss, and peak memory."""
        times = 1e3 * np.diff(self.ends[self.warmup - 1 :])
        return {
            "ms": statistics.median(times),
            "ms_min": float(times.min()),
            "ms_mean": float(times.mean()),
            "n_step": len(times),
            "losses": [self.losses[0], self.losses[-1]],
            "peak_mb": peak_mb(),
            **more,
        }


class Snapshots:
    """Tables of a model in training, stored at growing times; storing does not count.

    Args:
        folder: of entity-0.npy, relation-0.npy and so on, float32 (n, dim).
        budget: seconds of training, after which `Enough` is raised; the times before are half of
            it, a quarter, and so on, seven in all.
    """

    def __init__(self, folder: str, budget: float) -> None:
        self.folder, self.budget = Path(folder), budget
        self.folder.mkdir(parents=True, exist_ok=True)
        self.due = [budget / 2**i for i in range(7)]
        self.marks: List[float] = []
        self.seconds = 0.0
        self.since = time.perf_counter()

    def tick(self, tables: Callable[[], Tuple[torch.Tensor, torch.Tensor]]) -> None:
        """After each step: store what `tables` gives, of entities and relations, if it is time."""
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        if self.seconds >= self.due[-1]:
            while self.due and self.seconds >= self.due[-1]:
                self.due.pop()
            for name, table in zip(("entity", "relation"), tables()):
                table = torch.view_as_real(table).mT.flatten(1) if table.is_complex() else table
                path = self.folder / f"{name}-{len(self.marks)}.npy"
                np.save(path, table.detach().float().numpy())
            self.marks.append(self.seconds)
            self.since = time.perf_counter()
        if not self.due:
            raise Enough

    def run(self, loop: Callable[[], Any], **more: Any) -> Answer:
        """Run a loop to its last tick."""
        self.since = time.perf_counter()
        with contextlib.suppress(Enough):
            loop()
        return {"marks": self.marks, "peak_mb": peak_mb(), **more}


def time_steps(request: StepRequest, step: Callable[[], float], **more: Any) -> Answer:
    """Answer for a step that returns its loss, one process."""

    def loop(clock: Clock) -> None:
        while True:
            clock.tick(step())

    return request.clock().run(loop).answer(**more)


def time_hogwild(
    request: StepRequest, make_step: Callable[[int], Callable[[], float]], **more: Any
) -> Answer:
    """Answer for processes that update shared tables without locks; or for one, without a fork.

    The time of a step is that of the slowest process over all steps of all processes.

    Args:
        make_step: makes the step of a process, given its rank, in that process.
    """
    if request.processes == 1:
        return time_steps(request, make_step(0), **more)
    start = mp.get_context("fork").Barrier(request.processes)
    found = torch.zeros(request.processes, 4, dtype=torch.float64).share_memory_()

    def work(rank: int) -> None:
        torch.set_num_threads(max(request.threads // request.processes, 1))
        step = make_step(rank)
        first, *_ = [step() for _ in range(max(request.warmup, 1))]
        start.wait()
        begin = time.perf_counter()
        last = [step() for _ in range(request.steps)][-1]
        seconds = time.perf_counter() - begin
        found[rank] = torch.tensor([seconds, first, last, peak_mb()], dtype=torch.float64)

    mp.start_processes(work, nprocs=request.processes, start_method="fork")
    seconds, _, _, peak = found.amax(dim=0).tolist()
    ms = 1e3 * seconds / (request.steps * request.processes)
    losses = found[0, 1:3].tolist()
    return {"ms": ms, "ms_min": ms, "ms_mean": ms, "losses": losses, "peak_mb": peak, **more}


def time_once(run: Callable[[], Any], **more: Any) -> Answer:
    """Seconds of one call, by the clock and of processors, and peak memory of the process."""
    begin, cpu = time.perf_counter(), time.process_time()
    run()
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_mb(), **more}


def seconds_an_epoch(answer: Answer, n_triple: int, batch: int) -> Answer:
    """Scale the time of a step to those of an epoch."""
    return {**answer, "seconds": answer["ms"] / 1e3 * math.ceil(n_triple / batch)}


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MiB.

    From Linux, whose `getrusage` also counts that of the process which started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def split_names(model: str) -> Dict[str, Any]:
    """transe_l1 -> name transe, p 1; distmult -> name distmult, p None."""
    name, _, p = model.partition("_l")
    return {"name": name, "p": int(p) if p else None}


def versions(*packages: str) -> Dict[str, Optional[str]]:
    """Of packages, torch and Python."""
    found: Dict[str, Optional[str]] = {}
    for package in (*packages, "torch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {**found, "python": platform.python_version()}


def keep_freed_memory() -> None:
    """Tune the allocator as besskge_core does, of which its own file is enough."""
    path = Path(__file__).parents[2] / "besskge_core" / "runtime" / "memory.py"
    spec = importlib.util.spec_from_file_location("memory", path)
    assert spec is not None and spec.loader is not None
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    memory.keep_freed_memory()


def serve(packages: List[str], **measure: Callable[..., Answer]) -> None:
    """Answer the request on the command line: what to measure, and the arguments for it.

    With "tuned", the C library keeps freed memory: to see how much of a time is page faults.
    """
    request = json.loads(sys.argv[1])
    what, tuned = request.pop("what"), request.pop("tuned", False)
    if tuned:
        keep_freed_memory()
    torch.set_num_threads(request.get("threads", 2))
    torch.manual_seed(request.get("seed", 0))
    try:
        if what not in measure:
            raise Unsupported(what)
        answer = measure[what](**request)
    except Unsupported as reason:
        answer = {"unsupported": str(reason)}
    answer["versions"] = versions(*packages)
    print("\n" + json.dumps(answer), flush=True)
