"""Bytes of memory that a worker needs, by what needs them.

On an IPU all of it is SRAM, and gradients and updates are of whole tables; see
:mod:`besskge_core.runtime.ipu.sram`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict

from besskge_core.planning.hardware import Hardware
from besskge_core.planning.workload import Workload
from besskge_core.runtime.memory import BYTES_PER_SCORE

#: Bytes that a score takes on its way to a gradient in cross-entropy of inner products with all
#: entities, where it is kept once; 4.4 measured.
BYTES_PER_PRODUCT = 5

#: Copies of the scores of a step that the losses keep, where they are no single operation.
SCORE_COPIES = 6

#: Bytes of a look-up in a batch: its index in 4 and in 8 bytes, and its place in the row plan.
LOOKUP_BYTES = 4 + 8 + 16

#: Batches that exist at once: two made ahead, one being made, one in use.
BATCHES_AHEAD = 4


def memory_needed(work: Workload, hardware: Hardware) -> Dict[str, float]:
    """Bytes of a worker's memory by kind, the program included.

    Kinds: "entity table"; "optimizer state", of all tables; "relations", with their gradient and
    what else is learned; "row gradients", of entities; "activations"; "exchange buffers";
    "batches", "triples" and "initialization", in which a table is there twice, where they are in
    the same memory; "program".
    """
    float32, rows, width = 4, work.n_host * work.n_row, work.model.entity_width
    of_row = float32 * (work.state.of_entry * width + work.state.of_row)
    needed = {
        "entity table": float(rows * width * work.itemsize),
        "optimizer state": rows * of_row + _dense_state(work),
        "relations": float(2 * work.n_dense * float32),
        "row gradients": _gradients(work, hardware),
        "activations": _activations(work, hardware),
        "exchange buffers": _buffers(work),
    }
    if hardware.host_tables:
        needed["batches"] = _batches(work)
        needed["triples"] = _triples(work)
        needed["initialization"] = needed["entity table"]
    needed["program"] = hardware.program
    return needed


def host_needed(work: Workload) -> float:
    """Bytes in the memory of the host for each worker: triples, places, batches, first tables."""
    table = 2.0 * work.n_host * work.n_row * work.model.entity_width * work.itemsize
    return _batches(work) + _triples(work) + table


def most_entities(work: Workload, hardware: Hardware) -> int:
    """Entities of all shards with which a worker's memory is just full; 0 if none fit."""

    def fits(n_entity: int) -> bool:
        needed = memory_needed(replace(work, n_entity=n_entity), hardware)
        return sum(needed.values()) <= hardware.memory

    most = work.n_shard
    if not fits(most):
        return 0
    while fits(2 * most):
        most *= 2
    step = most
    while step > 1:
        step //= 2
        if fits(most + step):
            most += step
    return most


def _dense_state(work: Workload) -> float:
    """Of relations, and of what else is learned."""
    return 4.0 * work.state.of_entry * work.n_dense


def _gradients(work: Workload, hardware: Hardware) -> float:
    width = work.model.entity_width
    if hardware.dense_updates:
        return float(work.n_host * work.n_row * width * work.itemsize)
    if work.scheme == "all":
        return 4.0 * work.n_host * work.n_row * width
    rows = work.n_unique if work.is_fused and work.per_triple else float(work.n_lookup)
    return 4.0 * work.n_host * rows * width


def _activations(work: Workload, hardware: Hardware) -> float:
    """Rows and scores on their way."""
    size, width = work.itemsize, work.model.entity_width
    queries = float(work.n_query * work.model.query_width * size)
    if work.scheme == "all":
        held = work.tile.n_query * work.tile.n_row * work.n_host
        of_score = BYTES_PER_PRODUCT if work.is_softmax else BYTES_PER_SCORE
        return work.n_host * 2 * queries + of_score * held
    if work.is_fused:  # one group of positives after the other
        n_group = 1 if work.scheme == "score" or work.per_triple else work.n_host
        positives = work.n_host * work.n_positive / n_group
        packed = 2 * positives + (0 if work.per_triple else 4 * work.n_candidate)
        return 4.0 * (positives * work.n_candidate + packed * width)
    gathered = 2.0 * work.n_lookup * width * size
    scores = SCORE_COPIES * 4.0 * work.n_pair
    broadcast = 0.0
    if work.model.comparison == "other" and work.per_triple:
        broadcast = 3.0 * work.n_pair * width * size
    one_by_one = max(scores, broadcast) if hardware.dense_updates else scores + broadcast
    return work.n_host * (gathered + 2 * queries) + work.n_host * one_by_one


def _buffers(work: Workload) -> float:
    """What is sent and received, in the larger of the two directions."""
    return 0.0 if work.n_worker == 1 else float(work.traffic.total)


def _batches(work: Workload) -> float:
    return float(BATCHES_AHEAD * LOOKUP_BYTES * work.n_host * work.n_lookup)


def _triples(work: Workload) -> float:
    """Three IDs and a place in the order of each triple of a worker, three IDs of each entity."""
    return (12.0 + 8.0) * work.n_triple / work.n_worker + 12.0 * work.n_entity
