"""Whether a training fits, how long it should take, and what holds it back: predicted, not measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from besskge_core.errors import ConfigError
from besskge_core.ops.rules import PER_ROW
from besskge_core.planning.cost import operations, step_seconds
from besskge_core.planning.hardware import Hardware
from besskge_core.planning.memory import host_needed, memory_needed, most_entities
from besskge_core.planning.workload import Workload, workload
from besskge_core.runtime.ipu.optimizers import OPTIMIZERS as ON_IPUS
from besskge_core.training.config import TrainingConfig

#: Workers beyond which no more are tried to make a table fit.
MOST_WORKERS = 2**20


@dataclass(frozen=True)
class Plan:
    """A prediction of a training run.

    Attributes:
        hardware: whose figures were used.
        n_worker, n_shard: workers, and shards over all of them.
        batch_size: positives of a step over all shards, as samplers round it.
        n_candidate: candidates of each.
        n_step: steps of an epoch.
        memory: bytes of a worker by kind; see :func:`memory_needed`.
        memory_of_worker: bytes that it has.
        host_memory: bytes of the host a worker, where triples do not lie with the tables: triples,
            batches, and the tables while they are made.
        bytes_sent: of a worker in a step, by what is sent; see :class:`Traffic`; "relations":
            what sums dense gradients.
        operations: floating-point operations of a worker in a step.
        seconds: of a step, by part; see :mod:`besskge_core.planning.cost`.
        most_entities: with which memory would be just full.
        notes: what to know about these numbers.
        problems: why it cannot run so.
        remedies: what would make it fit.
    """

    hardware: Hardware
    n_worker: int
    n_shard: int
    batch_size: int
    n_candidate: int
    n_step: int
    memory: Dict[str, float]
    memory_of_worker: float
    host_memory: float
    bytes_sent: Dict[str, int]
    operations: float
    seconds: Dict[str, float]
    most_entities: int
    notes: Tuple[str, ...] = ()
    problems: Tuple[str, ...] = ()
    remedies: Tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether memory suffices."""
        return sum(self.memory.values()) <= self.memory_of_worker

    @property
    def bound(self) -> str:
        """The part that takes most of a step."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def epoch_seconds(self) -> float:
        return self.n_step * self.step_seconds

    @property
    def positives_per_second(self) -> float:
        return self.batch_size / self.step_seconds

    def as_dict(self) -> Dict[str, Any]:
        """Everything by name, for JSON; times in seconds, sizes in bytes."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found["hardware"] = self.hardware.name
        for name in ("fits", "bound", "step_seconds", "epoch_seconds", "positives_per_second"):
            found[name] = getattr(self, name)
        found["memory_total"] = sum(self.memory.values())
        found["bytes_sent_total"] = sum(self.bytes_sent.values())
        lists = {name: list(x) for name, x in found.items() if isinstance(x, tuple)}
        return {"predicted": True, **found, **lists}


def plan(
    config: TrainingConfig,
    n_entity: int,
    n_relation: int,
    n_triple: int,
    hardware: Hardware,
    n_worker: int = 1,
    imbalance: Optional[float] = None,
) -> Plan:
    """Predict a training run. Nothing of the graph's size is made.

    Args:
        config: of the run. One worker hosts all its shards; several have one each.
        n_entity, n_relation: of the graph.
        n_triple: to train on, without inverse ones.
        hardware: what a worker is.
        n_worker: workers; 1 or `config.batch.n_shard`.
        imbalance: largest shard pair over the mean; None: that of triples spread at random.

    Raises:
        ConfigError: sizes that cannot be, or a configuration that cannot be split so.
    """
    sizes = n_entity, n_relation, n_triple
    work = workload(config, *sizes, n_worker, imbalance)
    problems = list(_problems(config, work, hardware))
    remedies: List[str] = []
    memory = memory_needed(work, hardware)
    if sum(memory.values()) > hardware.memory:

        def tried(**changes: Any) -> Optional[float]:
            return _need(config, sizes, hardware, n_worker, changes)

        remedies = list(_remedies(config, work, hardware, tried))
    return Plan(
        hardware=hardware, n_worker=n_worker, n_shard=work.n_shard, batch_size=work.batch_size,
        n_candidate=work.n_row * work.n_shard if work.scheme == "all" else work.n_candidate,
        n_step=work.n_step, memory=memory, memory_of_worker=hardware.memory,
        host_memory=0.0 if hardware.host_tables else host_needed(work),
        bytes_sent={**work.traffic._asdict(), "relations": work.dense_traffic},
        operations=operations(work), seconds=step_seconds(work, hardware),
        most_entities=most_entities(work, hardware), notes=tuple(_notes(config, work, hardware)),
        problems=tuple(problems), remedies=tuple(remedies),
    )  # fmt: skip


def split_over(config: TrainingConfig, n_worker: int) -> TrainingConfig:
    """The same run with one shard for each of several workers; for one worker as it is."""
    if n_worker == 1 or config.batch.n_shard == n_worker:
        return config
    return replace(config, batch=replace(config.batch, n_shard=n_worker))


def _problems(config: TrainingConfig, work: Workload, hardware: Hardware) -> Iterator[str]:
    needed = sum(memory_needed(work, hardware).values())
    if needed > hardware.memory:
        yield (
            f"needs {gigabytes(needed)} of memory a worker, {hardware.name} has"
            f" {gigabytes(hardware.memory)}"
        )
    name = config.optimizer.optimizer
    if hardware.dense_updates and name not in ON_IPUS:
        yield f"PopTorch has no {name}: give one of {sorted(ON_IPUS)}"


def _notes(config: TrainingConfig, work: Workload, hardware: Hardware) -> Iterator[str]:
    asked = config.batch
    if work.batch_size > 1.05 * asked.batch_size:
        yield (
            f"each of {work.n_shard**2:,} shard pairs has as many positives, at least one, so that a"
            f" batch of {asked.batch_size:,} becomes {work.batch_size:,}"
        )
    if work.scheme != "all" and work.n_candidate > 1.05 * asked.n_negative:
        yield (
            f"every shard gives at least one negative, so that {asked.n_negative:,} become"
            f" {work.n_candidate:,}"
        )
    if work.rigid and work.imbalance > 1.05:
        yield f"the largest shard pair is taken as {work.imbalance:.2f} x the mean; hubs make it larger"
    if not (hardware.host_tables or hardware.dense_updates):
        yield "no step of this version has run on a GPU: rates are those its design hopes for"
    if work.model.comparison == "other":
        yield "this score function is computed by broadcasting, whose cost is guessed roughly"


def _need(
    config: TrainingConfig, sizes: Tuple[int, int, int], hardware: Hardware, n_worker: int,
    changes: Dict[str, Any],
) -> Optional[float]:  # fmt: skip
    """Bytes of a worker with other workers, table_dtype, optimizer or dim; None: cannot be."""
    n_worker = changes.get("n_worker", n_worker)
    of_model = {key: changes[key] for key in ("dim", "table_dtype") if key in changes}
    model = replace(config.model, **of_model)
    name = changes.get("optimizer", config.optimizer.optimizer)
    config = replace(config, model=model, optimizer=replace(config.optimizer, optimizer=name))
    try:
        work = workload(split_over(config, n_worker), *sizes, n_worker)
    except ConfigError:
        return None
    return sum(memory_needed(work, hardware).values())


def _remedies(
    config: TrainingConfig,
    work: Workload,
    hardware: Hardware,
    tried: Callable[..., Optional[float]],
) -> Iterator[str]:
    """Changes with which it fits, each computed."""

    def fits(**changes: Any) -> Optional[float]:
        needed = tried(**changes)
        return needed if needed is not None and needed <= hardware.memory else None

    found = False
    for text in _off_chip(work, hardware):
        found = True
        yield text
    for text, changes in _changes(config, work, hardware, fits):
        needed = fits(**changes)
        if needed is not None:
            found = True
            yield f"{text}: {gigabytes(needed)} a worker"
    if not found:
        yield "more than one change: more workers, numbers of 16 bits, a smaller dim"


def _off_chip(work: Workload, hardware: Hardware) -> Iterator[str]:
    """The optimiser's state in streaming memory, all of it read and written in each step."""
    memory = memory_needed(work, hardware)
    state = memory["optimizer state"]
    needed = sum(memory.values()) - state
    if hardware.state_gb_s and state and needed <= hardware.memory:
        seconds = 2.0 * state / (1e9 * hardware.state_gb_s)
        yield (
            f"optimizer state off the chip: {gigabytes(needed)} a worker, and a step"
            f" {1e3 * seconds:.3g} ms longer"
        )


def _changes(
    config: TrainingConfig, work: Workload, hardware: Hardware, fits: Callable[..., Optional[float]]
) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """What might help: more workers, less state, narrower numbers, a smaller dim."""
    n_worker = 2 * work.n_worker
    while n_worker < min(MOST_WORKERS, work.n_entity) and fits(n_worker=n_worker) is None:
        n_worker *= 2
    yield f"{n_worker:,} workers", {"n_worker": n_worker}
    name = config.optimizer.optimizer
    if f"rowwise_{name}" in PER_ROW and not hardware.dense_updates:
        row_wise = {"optimizer": f"rowwise_{name}"}
        yield f"optimizer rowwise_{name}", row_wise
        if work.itemsize == 4:
            both = {**row_wise, "table_dtype": "bfloat16"}
            yield f"optimizer rowwise_{name} and tables of bfloat16", both
    if hardware.dense_updates and name != "sgd":
        yield "optimizer sgd", {"optimizer": "sgd"}
    if work.itemsize == 4:
        dtype = "float16" if hardware.dense_updates else "bfloat16"
        yield f"tables of {dtype}", {"table_dtype": dtype}
    low, high = 0, -(-config.model.dim // 8)
    while high - low > 1:  # fits with 8 low, or low is 0; does not fit with 8 high
        middle = (low + high) // 2
        low, high = (middle, high) if fits(dim=8 * middle) is not None else (low, middle)
    if low:
        yield f"dim {8 * low}", {"dim": 8 * low}


def gigabytes(n_byte: float) -> str:
    """With three digits and the unit that suits.

    >>> gigabytes(12_345_678), gigabytes(2.5e12)
    ('12.3 MB', '2.5 TB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_byte >= size:
            return f"{n_byte / size:.3g} {unit}"
    return f"{n_byte:.0f} B"
