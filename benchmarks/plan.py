"""How well `besskge plan` predicts steps on this machine: measure it, predict, then measure steps.

    python -m benchmarks.plan [--threads 2] [--rounds 3] [--write my.toml] [--quick]

First a few operations and one empty step are timed, which makes a hardware file (`--write`, for
`besskge plan --hardware-file`); then steps of other configurations are predicted from it and run in one
process. Results go to `benchmarks/results/plan.md`. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import torch

from benchmarks import roof
from benchmarks.contenders.common import peak_mb
from besskge_core import config as configuration
from besskge_core.dataset import KGDataset
from besskge_core.environment import describe
from besskge_core.ops import gather, plan_rows, scatter_update
from besskge_core.ops.rules import Rule
from besskge_core.ops.sampled_loss import LossRule, Pairing, sampled_loss
from besskge_core.planning import HARDWARE, Hardware, Plan, find_hardware, plan
from besskge_core.planning.command import duration
from besskge_core.planning.cost import OPERATIONS
from besskge_core.planning.plan import gigabytes
from besskge_core.runtime import LocalRuntime
from besskge_core.runtime.ipu.sram import PUBLISHED_CAPACITIES, sram_capacity
from besskge_core.runtime.memory import available_memory, keep_freed_memory
from besskge_core.training.build import build
from besskge_core.training.config import TrainingConfig, read_config

RESULT = Path(__file__).parent / "results" / "plan.md"
#: Relations and triples of all graphs that steps are measured on.
N_RELATION, N_TRIPLE = 237, 300_000


class Case(NamedTuple):
    """A configuration, by what differs from the default, and its graph."""

    name: str
    n_entity: int
    flags: Dict[str, Any]

    @property
    def config(self) -> TrainingConfig:
        usual = dict(
            n_shard=1, scheme="embedding", batch_size=1024, n_negative=256, sampler="random",
            inverse_relations=False, dim=128, loss="logsigmoid", margin=12.0,
            loss_options={}, score_function="distmult",
        )  # fmt: skip
        return read_config(None, {**usual, **self.flags})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="hardware file to write")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--cpu-time", action="store_true",
                        help="of the processor, one thread: where the machine is not left alone")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few and short steps: a trial")
    options = parser.parse_args()
    if options.cpu_time:
        options.threads, roof.clock = 1, time.process_time
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    noise = [roof.noise_check()]
    hardware = calibrate(options.threads, options.quick)
    if options.write:
        configuration.dump(hardware, options.write)
    cases = list(all_cases())[:: 8 if options.quick else 1]
    predicted = [predict(case, hardware) for case in cases]
    rounds: List[List[float]] = []
    for _ in range(1 if options.quick else options.rounds):
        rounds.append([measure(case, options.quick) for case in cases])
        noise.append(roof.noise_check())
    measured = [statistics.median(times) for times in zip(*rounds)]
    lines = [*heading(options, noise), *of_steps(cases, predicted, measured),
             *of_memory(cases, hardware), *of_hardware(hardware), *of_capacities(), *of_published()]  # fmt: skip
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())


# -- what is predicted from ------------------------------------------------------------------------


def calibrate(threads: int, quick: bool = False) -> Hardware:
    """Figures of this machine; those of links stay as they are."""
    empty = dict(batch_size=32, n_negative=16, dim=8)
    overhead = 1e6 * measure(Case("", 1000, empty), quick)
    sides = dict(**empty, corruption="ht")
    one, four = (1e6 * measure(Case("", 1000, {**sides, "n_shard": n}), quick) for n in (1, 4))
    peaks = [roof.gemm_rate(torch.float32, quick), roof.onednn_rate(quick) or 0.0]
    l1_peak = roof.l1_rate(threads, quick)
    half = roof.gemm_rate(torch.bfloat16, quick)
    (dot, pair_ns), (l1, _) = (operation_rate(x) for x in ("dot", "l1"))
    figures = dict(
        name="cpu", source="measured by benchmarks/plan.py; network assumed",
        memory_gb=available_memory(torch.device("cpu")) / 1e9,
        bandwidth_gb_s=roof.copy_rate(quick),
        row_bandwidth_gb_s=row_rate(1_000_000 // (50 if quick else 1), 50_000),
        cache_bandwidth_gb_s=row_rate(2000, 2000),
        dot_peak_tflops=max(peaks) / 1e3, dot_tflops=dot / 1e12,
        half_peak_tflops=half / 1e3, half_tflops=half / 1e3 * dot / (1e9 * max(peaks)),
        l1_peak_tflops=0.008 * (l1_peak or l1 / 8e9), l1_tflops=l1 / 1e12,
        list_tflops=list_rate() / 1e12,
        pair_ns=pair_ns, overhead_us=overhead, call_overhead_us=(four - one) / 6,
        sample_ns=sample_ns(quick) / threads,
    )  # fmt: skip
    return find_hardware("cpu", None, {k: _rounded(x) for k, x in figures.items()})


def _rounded(figure: Any) -> Any:
    return float(f"{figure:.3g}") if isinstance(figure, float) else figure


def operation_rate(comparison: str) -> Tuple[float, float]:
    """Of shared negatives: operations a second, and nanoseconds a score whatever the width."""
    n_positive = n_candidate = 1024
    narrow, wide = 64, 512
    times = [loss_seconds(comparison, n_positive, n_candidate, d, False) for d in (narrow, wide)]
    of_number = (times[1] - times[0]) / (wide - narrow)
    n_pair = n_positive * n_candidate
    pair_ns = 1e9 * max(times[0] - narrow * of_number, 0.0) / n_pair
    return OPERATIONS[comparison] * n_pair / of_number, pair_ns


def list_rate() -> float:
    """Operations a second where each positive has candidates of its own."""
    seconds = loss_seconds("dot", 1024, 128, 128, True)
    return OPERATIONS["dot"] * 1024 * 128 * 128 / seconds


def loss_seconds(
    comparison: str, n_positive: int, n_candidate: int, width: int, per_triple: bool
) -> float:
    """Of a loss with its gradients, with a table of a few thousand rows."""
    table = torch.randn(1, 4096, width, requires_grad=True)
    relation = torch.randn(10, width)
    n_list = n_positive if per_triple else 1
    index = torch.randint(4096, (1, 2 * n_positive + n_list * n_candidate))
    ids = torch.randint(10, (1, n_positive))
    move = "scaling" if comparison == "dot" else "translation"
    pairing = Pairing(n_candidate, per_triple, False, move, comparison)
    found = plan_rows(index[0], 4096) if per_triple else None
    rule = LossRule("pointwise", margin=1.0)
    return usual_seconds(
        lambda: sampled_loss(table, index, relation, ids, pairing, rule, None, found)
    )


def usual_seconds(run: Callable[[], object], repeats: int = 15) -> float:
    """The median of some calls, as steps are measured; the roof takes the fastest."""
    run()
    times = []
    for _ in range(repeats):
        begin = roof.clock()
        run()
        times.append(roof.clock() - begin)
    return statistics.median(times)


def row_rate(n_row: int, n_changed: int) -> float:
    """GB/s of looking rows up and of changing them by Adagrad, at random places."""
    width = 200
    table, state = torch.randn(n_row, width), torch.ones(n_row, width)
    rows = torch.randint(n_row, (n_changed,))
    found = plan_rows(rows, n_row)
    grad, rule = torch.randn(n_changed, width), Rule("adagrad", 0.1, eps=1e-10)
    read = usual_seconds(lambda: gather(table[None], rows[None]))
    change = usual_seconds(lambda: scatter_update(table, [state], grad, rule, 1, *found))
    n_byte = 4 * width * (n_changed + 4 * len(found.unique_rows) + n_changed)
    return n_byte / (read + change) / 1e9


def sample_ns(quick: bool) -> float:
    """Nanoseconds of one thread for a look-up: drawing a batch, and grouping its rows."""
    case = Case("", 10_000, dict(shared_negatives=False, n_negative=64 if quick else 256))
    sampler, runtime, _ = _parts(case)
    batches = runtime.dataloader(sampler)
    next(batches)
    begin, n_step = roof.clock(), 5
    for _ in range(n_step):
        next(batches)
    n_lookup = case.config.batch.batch_size * (2 + case.config.batch.n_negative)
    return 1e9 * (roof.clock() - begin) / n_step / n_lookup


# -- what is predicted -----------------------------------------------------------------------------


def all_cases() -> Iterator[Case]:
    """Widths, batches, negatives, graphs, shards, losses and schemes, one or two at a time."""
    models = {
        "DistMult": dict(score_function="distmult"),
        "TransE, L1": dict(score_function="transe"),
    }
    for name, model in models.items():
        for dim in (64, 128, 256, 512):
            yield Case(f"{name}, dim {dim}", 14_541, {**model, "dim": dim})
        for batch_size in (256, 4096):
            yield Case(f"{name}, batch {batch_size}", 14_541, {**model, "batch_size": batch_size})
        for n_negative in (1024, 4096):
            flags = {**model, "n_negative": n_negative}
            yield Case(f"{name}, {n_negative:,} negatives", 14_541, flags)
        for n_entity in (10_000, 100_000, 1_000_000):
            yield Case(f"{name}, {n_entity:,} entities", n_entity, model)
        each = {**model, "shared_negatives": False}
        for n_entity in (10_000, 1_000_000):
            yield Case(f"{name}, of each triple, {n_entity:,} entities", n_entity, each)
        yield Case(f"{name}, of each triple, batch 256", 14_541, {**each, "batch_size": 256})
        yield Case(f"{name}, of each triple, dim 64", 14_541, {**each, "dim": 64})
        yield Case(f"{name}, both sides", 14_541, {**model, "corruption": "ht"})
        yield Case(
            f"{name}, both sides, 4 shards", 14_541, {**model, "corruption": "ht", "n_shard": 4}
        )
        yield Case(f"{name}, 4 shards", 14_541, {**model, "n_shard": 4})
    yield from _further_cases()


def _further_cases() -> Iterator[Case]:
    yield Case("RotatE", 14_541, dict(score_function="rotate", dim=64))
    yield Case("TransE, L2", 14_541, dict(score_function="transe", norm=2))
    yield Case("ComplEx, the default, but one shard", 14_541, dict(
        score_function="complex", loss="sampledsoftmax", margin=None, batch_size=512,
        n_negative=4096, scheme="score"))  # fmt: skip
    yield Case("ComplEx, N3", 14_541, dict(score_function="complex", regularization=0.01))
    yield Case("ComplEx, scores move, 4 shards, N3", 14_541, dict(
        score_function="complex", scheme="score", n_shard=4, regularization=0.01,
        n_negative=4096, batch_size=512))  # fmt: skip
    yield Case("DistMult, Adam, 1,000,000 entities", 1_000_000, dict(optimizer="adam"))
    yield Case("DistMult, row-wise Adagrad, 1,000,000 entities", 1_000_000, dict(
        optimizer="rowwise_adagrad"))  # fmt: skip
    everyone = dict(scheme="all", loss="crossentropy", margin=None, n_negative=1)
    for n_entity in (14_541, 100_000):
        for batch_size in (256, 1024):
            name = f"DistMult, all entities, {n_entity:,} of them, batch {batch_size:,}"
            yield Case(name, n_entity, {**everyone, "batch_size": batch_size})
    yield Case("ComplEx, all entities, dim 256", 14_541, dict(
        **everyone, score_function="complex", dim=256))  # fmt: skip
    yield Case("DistMult, all entities, 16-bit products", 14_541, dict(
        **everyone, score_dtype="bfloat16"))  # fmt: skip


def predict(case: Case, hardware: Hardware) -> Plan:
    return plan(case.config, case.n_entity, N_RELATION, N_TRIPLE, hardware)


def measure(case: Case, quick: bool) -> float:
    """Median seconds of a step, batch and update included."""
    sampler, runtime, step = _parts(case)
    batches = _forever(runtime, sampler)
    most, limit = (5, 1.0) if quick else (50, 2.5)
    for _ in range(3):
        step(next(batches))
    times: List[float] = []
    begin = before = roof.clock()
    while len(times) < 3 or (len(times) < most and before - begin < limit):
        step(next(batches))
        now = roof.clock()
        times.append(now - before)
        before = now
    return statistics.median(times)


def measure_peak(case: Case) -> float:
    """Bytes of a process that makes a few steps, and nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, case, torch.get_num_threads()).result()


def _peak(case: Case, threads: int) -> float:
    torch.set_num_threads(threads)
    keep_freed_memory()
    measure(case, quick=True)
    return 2**20 * peak_mb()


def _parts(case: Case) -> Tuple[Any, LocalRuntime, Callable[[Any], Any]]:
    rng = np.random.default_rng(0)
    sizes = case.n_entity, N_RELATION, case.n_entity
    triples = np.stack([rng.integers(n, size=N_TRIPLE) for n in sizes], axis=1).astype(np.int32)
    ids = {"train": np.arange(N_TRIPLE)}
    dataset = KGDataset(case.n_entity, N_RELATION, {"train": triples}, ids)
    parts = build(case.config, dataset)
    runtime = LocalRuntime(parts.model, n_worker=1)
    return parts.sampler, runtime, runtime.training_step(parts.optimizer)


def _forever(runtime: LocalRuntime, sampler: Any) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from runtime.dataloader(sampler, epoch)
        epoch += 1


# -- the report ------------------------------------------------------------------------------------


def heading(options: argparse.Namespace, noise: List[Dict[str, float]]) -> List[str]:
    machine = describe()
    spread = {
        name: 100 * (max(x[name] for x in noise) / min(x[name] for x in noise) - 1)
        for name in noise[0]
    }
    return [
        "# Predicted and measured steps",
        "",
        f"`python -m benchmarks.plan` on {machine['cpu']}, {machine['n_cpu']} processors,"
        f" {options.threads} threads, torch {machine['torch']}, Python {machine['python']}; medians of"
        f" {options.rounds} rounds." + (" **A trial.**" * options.quick),
        "",
        *_of_clock(options),
        "Predictions are made from the figures below, which are measured first, in other ways: an empty"
        " step, and single operations. Between rounds the same product varied by"
        f" {spread['gemm_ms']:.0f} %, the same copy by {spread['copy_ms']:.0f} % (largest over"
        " smallest).",
        "",
        "Steps over several processes, on GPUs and on IPUs were not measured: there `besskge plan` has data"
        " sheets, published runs and estimates.",
        "",
    ]


def _of_clock(options: argparse.Namespace) -> List[str]:
    if not options.cpu_time:
        return []
    return [
        "Times are those of the processor, not of the clock, of one thread with that which makes batches:"
        " other programs ran meanwhile. They took some of the caches and of the memory's bandwidth, too.",
        "",
    ]


def of_steps(cases: List[Case], predicted: List[Plan], measured: List[float]) -> List[str]:
    ratios = [x.step_seconds / y for x, y in zip(predicted, measured)]
    off = sorted(max(x, 1 / x) for x in ratios)
    within = [sum(x <= most for x in off) for most in (1.5, 2.0)]
    lines = [
        "## Steps in one process",
        "",
        f"{len(cases)} configurations on random graphs of {N_TRIPLE:,} triples and {N_RELATION}"
        " relations; batch 1024, 256 shared negatives, tails, dim 128, Adagrad and 14,541 entities"
        " unless the row says otherwise. The ratio is predicted over measured, off by the median factor"
        f" **{statistics.median(off):.2f}**, by at most {off[-1]:.2f}; {within[0]} of {len(off)} are"
        f" within 1.5 times, {within[1]} within 2 times.",
        "",
        "| | predicted | measured | ratio | predicted bound |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {case.name} | {duration(x.step_seconds)} | {duration(y)} | {ratio:.2f} | {x.bound} |"
        for case, x, y, ratio in zip(cases, predicted, measured, ratios)
    ]
    return [*lines, ""]


def of_memory(cases: List[Case], hardware: Hardware) -> List[str]:
    lines = [
        "## Memory",
        "",
        "Predicted: all of the process, and without what the program takes. Measured: the peak of a process"
        " of its own, which also prepares the triples.",
        "",
        "| | predicted | without program | measured | ratio |",
        "|---|---|---|---|---|",
    ]
    for case in cases:
        if case.n_entity >= 100_000:
            needed = sum(predict(case, hardware).memory.values())
            peak = measure_peak(case)
            lines.append(
                f"| {case.name} | {gigabytes(needed)} | {gigabytes(needed - hardware.program)}"
                f" | {gigabytes(peak)} | {needed / peak:.2f} |"
            )
    return [*lines, ""]


def of_hardware(hardware: Hardware) -> List[str]:
    lines = ["## What was predicted from", "", "| figure | |", "|---|---|"]
    for name, value in dataclasses.asdict(hardware).items():
        lines.append(f"| {name} | {value} |")
    return [*lines, ""]


def of_capacities() -> List[str]:
    """Entities that fit into the SRAM of IPUs, beside what BESS-KGE's README states."""
    lines = [
        "## Entities that fit on IPUs",
        "",
        "Weights of 16 bits, one shard a chip. Published: estimates in the README of BESS-KGE. The share"
        " of SRAM for program and temporary memory, 24.5 %, is fitted to these rows, the rest is"
        " arithmetic. No IPU was used.",
        "",
        "| numbers an entity | state, accumulator: bytes a number | chips | published | computed | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in PUBLISHED_CAPACITIES:
        for n_chip, published in row.entities.items():
            found = sram_capacity(n_chip, row.width, row.state, row.accumulator)
            lines.append(
                f"| {row.width} | {row.state}, {row.accumulator} | {n_chip} | {published / 1e6:.3g} M"
                f" | {found / 1e6:.3g} M | {found / published:.2f} |"
            )
    return [*lines, ""]


def of_published() -> List[str]:
    """A published step on IPUs that no figure was fitted to."""
    flags = dict(
        score_function="transe", dim=256, batch_size=16 * 512, n_negative=1536, n_shard=16,
        optimizer="adam", inverse_relations=False, scheme="embedding", table_dtype="float16",
    )  # fmt: skip
    config = read_config(None, flags)
    found = plan(config, 91_230_610, 1_387, 601_062_811, HARDWARE["ipu-pod16"], 16)
    return [
        "## A published step",
        "",
        "TransE on WikiKG90Mv2 (arXiv 2211.12281), 16 IPUs of the Bow generation, batch 512 and 1,536"
        " negatives each, 256 numbers of 16 bits, tables in streaming memory: 6.5 ms. Predicted for the"
        f" older GC200: compute {duration(found.seconds['compute'])}, at the rate that TransE had in"
        f" another published run, exchange {duration(found.seconds['exchange'])}, overhead"
        f" {duration(found.seconds['overhead'])}. Rows in streaming memory are not part of the model.",
    ]


if __name__ == "__main__":
    main()
