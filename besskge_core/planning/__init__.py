"""Planning: memory, bytes sent, time and bound of a training run, before anything is bought or run.

`workload` says what a step consists of, `traffic` what workers send, `memory` what they hold, `cost`
how long it takes on some `hardware`; `plan` puts it together, and `command` is `besskge plan`. All
figures are predictions; how well they hold is in `benchmarks/results/plan.md`.
"""

from __future__ import annotations

from besskge_core.planning.hardware import HARDWARE, Hardware, find_hardware
from besskge_core.planning.memory import memory_needed, most_entities
from besskge_core.planning.plan import Plan, plan, split_over
from besskge_core.planning.traffic import Traffic, all_reduce_bytes, bytes_sent, traffic
from besskge_core.planning.workload import Workload, workload

__all__ = [
    "HARDWARE",
    "Hardware",
    "Plan",
    "Traffic",
    "Workload",
    "all_reduce_bytes",
    "bytes_sent",
    "find_hardware",
    "memory_needed",
    "most_entities",
    "plan",
    "split_over",
    "traffic",
    "workload",
]
