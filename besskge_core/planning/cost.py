"""Seconds of a step, by what takes them.

Parts follow each other: nothing is overlapped but, on accelerators, the host's drawing of batches.

    compute    8 operations a pair and number for distances, 6 (three products) for dot products;
               and the loss of each score
    memory     rows where the tables lie, at random places; buffers between operations, streamed
    exchange   bytes sent over links and network, and the latency of each collective
    sampling   the host's drawing and grouping of look-ups
    overhead   calls, launches, waiting
"""

from __future__ import annotations

from typing import Dict, NamedTuple

from besskge_core.planning.hardware import Hardware
from besskge_core.planning.memory import memory_needed
from besskge_core.planning.workload import Workload

#: Operations a pair and number, forwards and backwards. "other" stands for plain broadcasting.
OPERATIONS = {"dot": 6.0, "l1": 8.0, "l2": 8.0, "modulus": 24.0, "other": 100.0}

#: Times that scores of 4 bytes are read or written by losses that are no single operation, and by
#: cross-entropy against all entities.
SCORE_PASSES, SOFTMAX_PASSES = 16.0, 4.0

#: How many times as long the loss of a score takes in several operations as in one; and, of the
#: latter, a number of a row that is regularised. Measured on a CPU, where one takes 2 nanoseconds.
SEVERAL, REGULARIZED = 5.0, 2.0

#: Calls of which a regulariser takes the time, beside that of a shard and side.
REGULARIZER_CALLS = 1.5


class Moved(NamedTuple):
    """Bytes read or written in a step by a worker.

    Attributes:
        rows: at random places of tables.
        buffers: between operations.
    """

    rows: float
    buffers: float


def operations(work: Workload) -> float:
    """Floating-point operations of scores and their gradients, of a worker in a step."""
    of_pair = OPERATIONS[work.model.comparison]
    if work.scheme == "all" and work.tile.n_row < work.n_row:
        of_pair *= 4.0 / 3.0  # scored again for the gradient
    return of_pair * work.n_host * work.n_pair * work.model.entity_width


def rate(work: Workload, hardware: Hardware) -> float:
    """Operations a second; candidates of each positive make no matrix product."""
    if work.per_triple:
        return 1e12 * hardware.list_tflops
    if work.model.comparison != "dot":
        return 1e12 * hardware.l1_tflops
    return 1e12 * (hardware.half_tflops if work.half_scores else hardware.dot_tflops)


def compute_seconds(work: Workload, hardware: Hardware) -> float:
    """Scores, losses and their gradients."""
    several = not (work.is_fused or work.scheme == "all")
    scores = work.n_host * work.n_pair * (SEVERAL if several else 1.0)
    if work.is_regularized:
        scores += REGULARIZED * 3 * work.n_host * work.n_positive * work.model.entity_width
    return operations(work) / rate(work, hardware) + 1e-9 * hardware.pair_ns * scores


def overhead_seconds(work: Workload, hardware: Hardware) -> float:
    """Of the step, and of its calls."""
    n_call = 0.0 if work.is_fused else float(work.n_host * work.n_side)
    n_call += REGULARIZER_CALLS * work.is_regularized
    return 1e-6 * (hardware.overhead_us + n_call * hardware.call_overhead_us)


def moved(work: Workload, hardware: Hardware) -> Moved:
    """Bytes that memory sees."""
    width, n_host, lookups = work.model.entity_width, work.n_host, work.n_lookup
    row, gradient = width * work.itemsize, 4 * width
    state = 4 * (work.state.of_entry * width + work.state.of_row)
    dense = 4.0 * work.n_dense * (5 + 2 * work.state.of_entry)
    if hardware.dense_updates or work.scheme == "all":
        changed, summed = float(n_host * work.n_row), 0.0
    else:
        changed, summed = n_host * work.n_unique, float(n_host * lookups * gradient)
    update = changed * (2 * row + 2 * state + gradient)
    if work.scheme == "all":
        n_block = work.n_side * -(-work.n_query // work.tile.n_query)
        table = (n_block + 1) * (row + 2 * gradient)
        scores = SOFTMAX_PASSES * 4.0 * work.n_pair
        return Moved(
            2.0 * n_host * lookups * row, update + n_host * (work.n_row * table + scores) + dense
        )
    gathered = float(n_host * lookups * row)
    if work.is_fused and work.per_triple:  # gradients are of distinct rows, found row by row
        return Moved(gathered + update, changed * gradient + dense)
    if work.is_fused:
        return Moved(gathered + update, 2 * summed + dense)
    copies = 2 * gathered + 2 * work.traffic.total + 2 * summed
    scores = n_host * SCORE_PASSES * 4.0 * work.n_pair
    return Moved(gathered + update, copies + scores + dense)


def exchange_seconds(work: Workload, hardware: Hardware) -> float:
    """All collectives of a step; those within a host by its links, the rest by the network."""
    n = work.n_worker
    if n == 1:
        return 0.0
    near = min(n, hardware.workers_per_host)
    sent = work.traffic.total + work.dense_traffic
    inside = sent * (near - 1) / (n - 1)
    n_collective = {"embedding": 2, "score": 6, "all": 2 + 5 * work.n_side}[work.scheme] + 1
    latency = 1e-6 * (hardware.latency_us + (n - near) * hardware.peer_latency_us)
    return (
        inside / (1e9 * hardware.link_gb_s)
        + (sent - inside) / (1e9 * hardware.network_gb_s)
        + n_collective * latency
    )


def memory_seconds(work: Workload, hardware: Hardware) -> float:
    """Rows and buffers; as much of them from the cache as fits into it."""
    found = moved(work, hardware)
    needed = memory_needed(work, hardware)
    tables = needed["entity table"] + needed["optimizer state"]
    step = needed["row gradients"] + needed["activations"]

    def seconds(n_byte: float, size: float, slow: float) -> float:
        near = min(1e9 * hardware.cache_gb / max(size, 1.0), 1.0)
        fast = max(hardware.cache_bandwidth_gb_s, slow)
        return n_byte / 1e9 * (near / fast + (1.0 - near) / slow)

    return seconds(found.rows, tables, hardware.row_bandwidth_gb_s) + seconds(
        found.buffers, step, hardware.bandwidth_gb_s
    )


def step_seconds(work: Workload, hardware: Hardware) -> Dict[str, float]:
    """Seconds of the parts of a step; their sum is the step's time."""
    parts = {
        "compute": compute_seconds(work, hardware),
        "memory": memory_seconds(work, hardware),
        "exchange": exchange_seconds(work, hardware),
        "overhead": overhead_seconds(work, hardware),
    }
    sampling = 1e-9 * hardware.sample_ns * work.n_host * work.n_lookup
    if not hardware.host_tables:  # made meanwhile by the host, which may be the slower one
        sampling = max(sampling - sum(parts.values()), 0.0)
    return {**parts, "sampling": sampling}
