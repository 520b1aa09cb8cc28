"""`besskge plan`: what a training would need and take, on hardware that need not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import click
from rich.table import Table
from rich.text import Text

from besskge_core import config as configuration
from besskge_core.catalogue import benchmarks
from besskge_core.errors import ConfigError
from besskge_core.planning.hardware import HARDWARE, Hardware, find_hardware
from besskge_core.planning.plan import Plan, gigabytes, plan, split_over
from besskge_core.report import Row, echo_json, echo_tsv, make_console
from besskge_core.training.config import TrainingConfig, read_config

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COLUMNS = [
    "hardware", "n_worker", "n_shard", "batch_size", "n_candidate", "fits", "memory_total",
    "memory_of_worker", "bytes_sent_total", "operations", "compute", "memory", "exchange",
    "sampling", "overhead", "bound", "step_seconds", "epoch_seconds", "positives_per_second",
    "most_entities", "problems",
]  # fmt: skip


class Graph(NamedTuple):
    """Sizes of a graph; `n_triple` is of the triples to train on."""

    n_entity: int
    n_relation: int
    n_triple: int


class _Count(click.ParamType):  # type: ignore[type-arg]
    """A whole number, which may be written as 1e9."""

    name = "number"

    def convert(
        self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]
    ) -> int:
        try:
            number = float(value)
            if number.is_integer():
                return int(value) if isinstance(value, int) else int(number)
        except (OverflowError, ValueError):
            pass
        self.fail(f"{value!r} is not a whole number, such as 1000000 or 1e6", param, ctx)


@click.command(cls=configuration.SectionCommand)
@click.option("--config", "file", type=FILE, help="TOML, YAML or JSON file; flags override it")
@click.option("--entities", type=_Count(), help="of a graph that is not there, such as 1e9")
@click.option("--relations", type=_Count(), help="likewise")
@click.option("--triples", type=_Count(), help="likewise; those to train on")
@click.option("--hardware", default="cpu", show_default=True,
              help=f"what a worker is: {', '.join(HARDWARE)}")  # fmt: skip
@click.option("--hardware-file", type=FILE,
              help="file of one's own figures, in the place of those of --hardware")  # fmt: skip
@click.option("--set", "figures", multiple=True, metavar="KEY=VALUE",
              help="one of these figures, such as memory_gb=80")  # fmt: skip
@click.option("--workers", "n_worker", type=click.IntRange(min=1),
              help="processes, devices or chips; several have a shard each  [default: the hardware's]")  # fmt: skip
@click.option("--imbalance", type=float,
              help="largest shard pair over the mean  [default: that of random triples]")  # fmt: skip
@click.option("--compare", is_flag=True, help="a row for each known hardware")
@configuration.click_options(TrainingConfig, leave_out=["workers"])
def plan_command(
    file: Optional[Path], entities: Optional[int], relations: Optional[int], triples: Optional[int],
    hardware: str, hardware_file: Optional[Path], figures: Sequence[str], n_worker: Optional[int],
    imbalance: Optional[float], compare: bool, form: str, **flags: Any,
) -> None:  # fmt: skip
    """Predict memory, bytes sent, and time of a training, without any of it."""
    config = read_config(file, flags)
    graph = _graph(config, entities, relations, triples)
    own = find_hardware(hardware, hardware_file, _figures(figures))
    keeps_shards = flags.get("n_shard") is not None
    plans, refused = [], {}
    for x in (own, *(x for x in HARDWARE.values() if x.name != own.name)) if compare else (own,):
        try:
            plans.append(_plan(config, graph, x, n_worker, keeps_shards, imbalance))
        except ConfigError as error:  # such as too small a batch for so many shards
            refused[x.name] = error
    if not plans:
        raise refused[own.name]
    if form == "json":
        described: List[Row] = [{**graph._asdict(), **x.as_dict()} for x in plans]
        described += [{"hardware": name, "problems": [str(x)]} for name, x in refused.items()]
        echo_json(described if compare else described[0])
    elif form == "tsv":
        nothing = dict.fromkeys(COLUMNS, "")
        rows = [{**nothing, "hardware": name, "problems": x} for name, x in refused.items()]
        echo_tsv([*(_flat(x) for x in plans), *rows], COLUMNS)
    else:
        _show(config, graph, plans, compare)
        for name, reason in refused.items():
            click.echo(f"{name}: {reason}")


def _plan(
    config: TrainingConfig, graph: Graph, hardware: Hardware, n_worker: Optional[int],
    keeps_shards: bool, imbalance: Optional[float],
) -> Plan:  # fmt: skip
    """With a shard for each worker, unless their number was given."""
    n_worker = hardware.n_worker if n_worker is None else n_worker
    if not keeps_shards:
        config = split_over(config, n_worker)
    return plan(config, *graph, hardware, n_worker, imbalance)


def _graph(
    config: TrainingConfig, entities: Optional[int], relations: Optional[int],
    triples: Optional[int],
) -> Graph:  # fmt: skip
    """As given; as published, for a named benchmark; else as counted."""
    given = entities, relations, triples
    if any(x is not None for x in given):
        if entities is None or relations is None or triples is None:
            raise ConfigError("give --entities, --relations and --triples together")
        return Graph(entities, relations, triples)
    name = config.data.dataset.lower()
    for known in (benchmarks.BENCHMARKS, benchmarks.ARCHIVES):
        counts: Tuple[Optional[int], ...] = known[name].counts if name in known else ()
        if counts and None not in counts[:3]:
            return Graph(*(int(x) for x in counts[:3] if x is not None))
    dataset = benchmarks.load_dataset(config.data.dataset, **config.data.dataset_options)
    return Graph(dataset.n_entity, dataset.n_relation_type, len(dataset.triples["train"]))


def _figures(pairs: Sequence[str]) -> Dict[str, str]:
    """KEY=VALUE each."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"--set {pair!r} is not of the form KEY=VALUE")
        found[key] = value
    return found


# -- output ----------------------------------------------------------------------------------------


def _flat(found: Plan) -> Row:
    """A row of TSV."""
    described = found.as_dict()
    seconds = {name: f"{x:.6g}" for name, x in found.seconds.items()}
    sums = ("step_seconds", "epoch_seconds", "positives_per_second", "memory_total",
            "memory_of_worker", "operations")  # fmt: skip
    shown = {name: f"{described[name]:.6g}" for name in sums}
    return {**described, **seconds, **shown, "problems": "; ".join(found.problems)}


def _show(config: TrainingConfig, graph: Graph, plans: Sequence[Plan], compare: bool) -> None:
    console = make_console()
    model, batch = config.model, config.batch
    console.print(
        f"{model.score_function} {model.dim} wide, scheme {batch.scheme},"
        f" {config.optimizer.optimizer}; {graph.n_entity:,} entities, {graph.n_relation:,}"
        f" relations, {graph.n_triple:,} triples. Predicted, not measured.",
        markup=False,
    )
    if compare:
        console.print(_comparison(plans))
    for found in plans[:1] if not compare else []:
        console.print(_details(found))
        for title, lines in (("note", found.notes), ("problem", found.problems),
                             ("would fit with", found.remedies)):  # fmt: skip
            for line in lines:
                console.print(f"{title}: {line}", markup=False)


def _comparison(plans: Sequence[Plan]) -> Table:
    table = Table()
    table.add_column("hardware")
    columns = ("workers", "memory a worker", "of", "sent a step", "step", "epoch", "positives/s",
               "bound", "most entities", "runs")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name in ("bound", "runs") else "right")
    for found in plans:
        table.add_row(
            found.hardware.name, f"{found.n_worker:,}", gigabytes(sum(found.memory.values())),
            gigabytes(found.memory_of_worker), gigabytes(sum(found.bytes_sent.values())),
            duration(found.step_seconds), duration(found.epoch_seconds),
            f"{found.positives_per_second:,.0f}", found.bound, f"{found.most_entities:,}",
            Text("; ".join(found.problems) or "yes"),
        )  # fmt: skip
    return table


def _details(found: Plan) -> Table:
    """Memory, bytes and seconds, line by line."""
    shards = "" if found.n_worker == found.n_shard else f", {found.n_shard} shards in it"
    table = Table(
        title=f"{found.n_worker:,} x {found.hardware.name}{shards}: {found.batch_size:,} positives a"
        f" step, {found.n_candidate:,} candidates each, {found.n_step:,} steps an epoch",
        title_justify="left", show_header=False, box=None, padding=(0, 1),
    )  # fmt: skip
    for justify in ("left", "left", "right", "right"):
        table.add_column(justify=justify)
    groups: List[Tuple[str, Dict[str, float], Any]] = [
        ("memory a worker", found.memory, gigabytes),
        ("sent a step", {**found.bytes_sent}, gigabytes),
        ("time of a step", found.seconds, duration),
    ]
    for title, parts, shown in groups:
        whole = sum(parts.values())
        for name, x in parts.items():
            if x:
                table.add_row(Text(title, style="cyan"), name, shown(x), f"{x / whole:.0%}")
                title = ""
        table.add_row(Text(title, style="cyan"), "all", shown(whole), "", style="bold")
    fits = "fits" if found.fits else "does not fit"
    lines = {
        "memory": f"{fits} into {gigabytes(found.memory_of_worker)}; full with"
        f" {found.most_entities:,} entities",
        "epoch": f"{duration(found.epoch_seconds)}, {found.positives_per_second:,.0f} positives a"
        " second",
        "bound": found.bound,
        "operations": f"{found.operations:.3g} a step and worker",
    }
    if found.host_memory:
        lines["host"] = (
            f"{gigabytes(found.host_memory)} a worker for triples, batches and making the tables"
        )
    for name, text in lines.items():
        table.add_row(Text(name, style="cyan"), Text(text))
    return table


def duration(seconds: float) -> str:
    """With three digits and the unit that suits.

    >>> duration(0.00123), duration(45.6), duration(7200), duration(1e6)
    ('1.23 ms', '45.6 s', '2 h', '11.6 d')
    """
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
