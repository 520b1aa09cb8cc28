"""What a machine can do: figures that predictions are made of, and where they come from.

Peaks are what a vendor states; attainable figures are what a step is predicted with. Units are in
the names; G is 1e9.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, get_type_hints

from besskge_core import config as configuration
from besskge_core.errors import ConfigError
from besskge_core.registry import nearest
from besskge_core.runtime.ipu.sram import PROGRAM, SRAM


@dataclass(frozen=True)
class Hardware:
    """A kind of worker: a process with a device, or with the cores of a machine.

    Attributes:
        name: how it is called.
        source: where the figures come from.
        n_worker: workers, where nobody says how many.
        workers_per_host: workers joined by links; further ones by the network.
        memory_gb: for tables, their gradients and a step.
        program_gb: of it, what program, code and libraries take.
        host_tables: triples and batches lie in the same memory.
        dense_updates: gradient and update are of the whole table in each step.
        bandwidth_gb_s: of memory, read and written together.
        row_bandwidth_gb_s: of rows read or changed at random places.
        cache_gb: that share of what is read or changed moves at `cache_bandwidth_gb_s`.
        cache_bandwidth_gb_s: see there.
        link_gb_s: sent by a worker to those of its host.
        network_gb_s: sent by a worker to other hosts.
        latency_us: of a collective.
        peer_latency_us: more, for each worker of another host.
        dot_peak_tflops, dot_tflops: of matrix products in float32; peak and attainable.
        half_peak_tflops, half_tflops: the same in 16 bits.
        l1_peak_tflops, l1_tflops: of absolute differences, with 8 operations a pair and number:
            2 forwards, 3 for each of the gradients.
        list_tflops: attainable where each positive has candidates of its own.
        pair_ns: of the loss of a score and its gradient, where they are one operation.
        overhead_us: of a step: calls, launches, waiting.
        call_overhead_us: more, for each hosted shard and side, where they are several operations.
        sample_ns: of the host, to draw and to group a look-up.
        state_gb_s: to memory off the chip, where the optimiser's state may be moved; 0: none.
    """

    name: str
    source: str
    n_worker: int
    workers_per_host: int
    memory_gb: float
    bandwidth_gb_s: float
    row_bandwidth_gb_s: float
    link_gb_s: float
    network_gb_s: float
    latency_us: float
    peer_latency_us: float
    dot_peak_tflops: float
    dot_tflops: float
    half_peak_tflops: float
    half_tflops: float
    l1_peak_tflops: float
    l1_tflops: float
    list_tflops: float
    pair_ns: float
    overhead_us: float
    call_overhead_us: float
    sample_ns: float
    program_gb: float = 0.0
    cache_gb: float = 0.0
    cache_bandwidth_gb_s: float = 0.0
    state_gb_s: float = 0.0
    host_tables: bool = False
    dense_updates: bool = False

    def __post_init__(self) -> None:
        may_be_zero = {"program_gb", "cache_gb", "cache_bandwidth_gb_s", "state_gb_s",
                       "latency_us", "peer_latency_us", "overhead_us", "call_overhead_us", "pair_ns",
                       "sample_ns"}  # fmt: skip
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, (str, bool)):
                continue
            if not 0.0 <= value < float("inf") or (value == 0.0 and name not in may_be_zero):
                least = "at least 0" if name in may_be_zero else "above 0"
                raise ConfigError(f"hardware {self.name}: {name} must be {least}, got {value:g}")

    @property
    def memory(self) -> float:
        """Bytes of a worker."""
        return 1e9 * self.memory_gb

    @property
    def program(self) -> float:
        """Bytes of it that the program takes."""
        return 1e9 * self.program_gb


def _ipu_pod(n_ipu: int) -> Hardware:
    """GC200 chips, one a worker, tables in SRAM."""
    return Hardware(
        name=f"ipu-pod{n_ipu}",
        # Sheets: 1472 tiles x 624 KiB; 47.5 TB/s; 320 GB/s of links, both ways together; per machine of
        # four, gateways of 2 x 100 Gb/s; 250 (float16) and 62.5 (float32) TFLOP/s; about 20 GB/s of
        # streaming memory. Attainable: ComplEx on YAGO3-10 (2.91 M triples/s of 1440 negatives and
        # 256 numbers) and TransE on ogbl-wikikg2 (4.26 M, 639, 100) in the notebooks of BESS-KGE on
        # four chips, all of the step included. Program: fitted to the capacities that its authors
        # publish, see `runtime.ipu.sram`. Latencies and overhead: guesses.
        source="data sheets; rates from published runs of BESS-KGE; latencies guessed",
        n_worker=n_ipu, workers_per_host=n_ipu,
        memory_gb=SRAM / 1e9, program_gb=PROGRAM / 1e9, dense_updates=True, state_gb_s=20.0,
        bandwidth_gb_s=47_500.0, row_bandwidth_gb_s=8_000.0,
        link_gb_s=160.0, network_gb_s=6.25, latency_us=10.0, peer_latency_us=2.0,
        dot_peak_tflops=62.5, dot_tflops=0.8, half_peak_tflops=250.0, half_tflops=1.65,
        l1_peak_tflops=7.8, l1_tflops=0.54, list_tflops=0.41,
        pair_ns=0.0, overhead_us=50.0, call_overhead_us=0.0, sample_ns=20.0,
    )  # fmt: skip


HARDWARE: Dict[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        _ipu_pod(4),
        _ipu_pod(16),
        _ipu_pod(64),
        Hardware(
            name="h200",
            # Sheet: 141 GB, 4.8 TB/s, 989 (bf16) and 67 (float32) TFLOP/s, NVLink 450 GB/s a way.
            # Attainable: memory 0.85 of 139 GiB; copies at 4.3 TB/s and bf16 products at 790
            # TFLOP/s were reported for such a machine; half of that for short ones with a loss;
            # rows, links, latencies and L1 (132 x 128 lanes x 1.755 GHz x 0.6) are estimates; lists
            # read rows twice. Overhead: some fifty launches of a step that is no CUDA graph.
            source="data sheet; attainable figures are estimates",
            n_worker=1, workers_per_host=8,
            memory_gb=126.9, program_gb=1.0,
            bandwidth_gb_s=4_300.0, row_bandwidth_gb_s=2_800.0,
            link_gb_s=350.0, network_gb_s=40.0, latency_us=25.0, peer_latency_us=1.5,
            dot_peak_tflops=67.0, dot_tflops=45.0, half_peak_tflops=989.0, half_tflops=400.0,
            l1_peak_tflops=29.6, l1_tflops=17.8, list_tflops=2.1,
            pair_ns=0.0, overhead_us=200.0, call_overhead_us=150.0, sample_ns=3.0,
        ),
        Hardware(
            name="a100",
            # Sheet (SXM, 80 GB): 2.04 TB/s, 312 (bf16) and 19.5 (float32) TFLOP/s, NVLink 300 GB/s
            # a way, HDR InfiniBand 25 GB/s. Attainable: the shares assumed for the H200.
            source="data sheet; attainable figures are estimates",
            n_worker=1, workers_per_host=8,
            memory_gb=72.0, program_gb=1.0,
            bandwidth_gb_s=1_830.0, row_bandwidth_gb_s=1_190.0,
            link_gb_s=235.0, network_gb_s=22.0, latency_us=25.0, peer_latency_us=1.5,
            dot_peak_tflops=19.5, dot_tflops=13.0, half_peak_tflops=312.0, half_tflops=126.0,
            l1_peak_tflops=9.7, l1_tflops=5.8, list_tflops=0.9,
            pair_ns=0.0, overhead_us=200.0, call_overhead_us=150.0, sample_ns=3.0,
        ),
        Hardware(
            name="cpu",
            # One core of an AMD EPYC with AVX-512, in processor time, by `python -m benchmarks.plan`, whose
            # results/plan.md says how well steps are predicted with it. Links: gloo between processes of
            # one machine, measured; network: assumed to be as fast. Other machines: measure there, and
            # give the file.
            source="one core of an AMD EPYC, measured; network assumed",
            n_worker=1, workers_per_host=1,
            memory_gb=22.0, program_gb=0.4, host_tables=True,
            bandwidth_gb_s=19.6, row_bandwidth_gb_s=8.89,
            cache_gb=0.008, cache_bandwidth_gb_s=31.1,
            link_gb_s=1.2, network_gb_s=1.2, latency_us=300.0, peer_latency_us=30.0,
            dot_peak_tflops=0.0921, dot_tflops=0.0766,
            half_peak_tflops=0.181, half_tflops=0.151,
            l1_peak_tflops=0.229, l1_tflops=0.0722, list_tflops=0.0157,
            pair_ns=1.24, overhead_us=472.0, call_overhead_us=490.0,
            sample_ns=44.2,
        ),
    )
}  # fmt: skip


def find_hardware(
    name: str = "cpu", file: Optional[Path] = None, figures: Optional[Mapping[str, Any]] = None
) -> Hardware:
    """A known kind of hardware, with one's own figures in the place of some of its own.

    Args:
        name: a key of :data:`HARDWARE`.
        file: TOML, YAML or JSON with some of the attributes of :class:`Hardware`.
        figures: attribute to value; a number may be written out. They override the file.

    Raises:
        ConfigError: unknown name or attribute, or a figure that cannot be.
    """
    if name not in HARDWARE:
        raise ConfigError(
            f"unknown hardware {name!r}; expected one of {list(HARDWARE)}{nearest(name, HARDWARE)}"
        )
    given = {} if file is None else _read(file)
    if file is not None and "name" not in given:
        given["name"] = file.stem
    given.update(figures or {})
    return configuration.replace_flags(HARDWARE[name], given)


def _read(file: Path) -> Dict[str, Any]:
    """What a file says, of any of the attributes."""
    hints = get_type_hints(Hardware)
    fields = [
        (field.name, Optional[hints[field.name]], dataclasses.field(default=None))
        for field in dataclasses.fields(Hardware)
    ]
    some = dataclasses.make_dataclass("Figures", fields, frozen=True)
    return configuration.to_mapping(configuration.load(some, file))
