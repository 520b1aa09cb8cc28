"""The command `besskge`: train, prepare, plan, evaluate, predict, export, info.

A thin door: flags and files become a frozen dataclass, and what comes back becomes a table, TSV
or JSON on standard output. Errors that besskge_core raises on purpose, and those of files, are one
line and exit status 2; an interrupted command ends with 130.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple, TypeVar

import click
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from besskge_core import config as configuration
from besskge_core.catalogue import benchmarks
from besskge_core.cli_prepare import prepare_command
from besskge_core.environment import describe, version_of
from besskge_core.errors import BessError, CheckpointError, ConfigError, DataError, DataWarning
from besskge_core.evaluation import METRICS, Ranking, rank_candidates, rank_triples
from besskge_core.exporting.command import export
from besskge_core.ops.native import MISSING, NATIVE, operations
from besskge_core.planning.command import plan_command
from besskge_core.predict import Predictor
from besskge_core.report import (
    Query,
    Row,
    answer_lists,
    answer_rows,
    answer_table,
    echo_json,
    echo_tsv,
    facts_table,
    make_console,
    metrics_table,
    settings_table,
)
from besskge_core.runtime import join, launched, leave, restarted, restarts_allowed
from besskge_core.training import LoadedRun, TrainingConfig, load_run
from besskge_core.training import train as train_run
from besskge_core.training.config import read_config

__all__ = ["cli", "main"]

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130
FORMATS = click.Choice(["table", "tsv", "json"])
RUN = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


# -- what all commands share -----------------------------------------------------------------------


class _OneLine(click.ClickException):
    """An error of ours, without a traceback."""

    exit_code = 2


class _Commands(click.Group):
    """Turns errors of the BessError tree and of files into one line, unless --debug is given."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BessError, OSError) as error:
            if ctx.meta.get("debug") or isinstance(error, BrokenPipeError):
                raise
            told = f" [told by rank {os.environ['RANK']}]" if launched() else ""
            raise _OneLine(f"{error}{told}") from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _debug(command: Command) -> Command:
    """Flag --debug, on the command itself and on each of its parts."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta["debug"] = ctx.meta.get("debug") or value

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember,
        help="show where in the code an error arose",
    )(command)  # fmt: skip


def _format(command: Command) -> Command:
    return click.option(
        "--format", "form", type=FORMATS, default="table", show_default=True, help="of the output"
    )(command)


@click.group(cls=_Commands)
@click.version_option(package_name="besskge_core", prog_name="besskge")
@_debug
def cli() -> None:
    """Train, evaluate and query knowledge-graph embeddings with BESS."""


cli.add_command(_debug(export))


def main() -> NoReturn:
    """Entry point of `besskge`."""
    usual = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, DataWarning):
            click.echo(f"Warning: {message}", err=True)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
    try:
        cli()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        if not launched():
            raise
        traceback.print_exc()
        code = 1
    if code and launched():
        _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> NoReturn:
    """Without waiting for threads: one may be in a collective for which other ranks do not come."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


cli.add_command(_debug(prepare_command))


# -- train -----------------------------------------------------------------------------------------


@cli.command(cls=configuration.SectionCommand)
@click.option("--config", "file", type=FILE, help="TOML, YAML or JSON file; flags override it")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="folder of the run  [default: runs/DATASET-SCORE_FUNCTION-NUMBER]")  # fmt: skip
@click.option("--resume", is_flag=True, help="go on with the run in --out")
@click.option("--overwrite", is_flag=True, help="remove the run that is in --out first")
@configuration.click_options(TrainingConfig)
@_debug
def train(
    file: Optional[Path], out: Optional[Path], resume: bool, overwrite: bool, **flags: Any
) -> None:
    """Train a model, keep the weights that validate best, and rank the test triples."""
    if resume and (out is None or overwrite):
        raise ConfigError("--resume needs --out FOLDER, the run to go on with, and no --overwrite")
    if out is None and restarts_allowed():
        raise ConfigError("a run that torchrun may start again needs --out FOLDER, to find itself")
    config = _configuration(file, out if resume else None, flags)
    ranks = join(config.run.device, config.run.timeout)
    console = make_console() if ranks.rank == 0 else Console(quiet=True)
    try:
        folder = Path(ranks.first(lambda: str(out or _new_folder(config))))
        # Killed before it had begun, a run begins again.
        again = ranks.any(restarted())[0] and ranks.first((folder / "config.toml").is_file)
        if overwrite and not again:
            ranks.first(lambda: _remove_run(folder))
        console.print(settings_table(config))
        result = train_run(config, folder, resume or again, console, ranks)
    except KeyboardInterrupt:
        if ranks.rank == 0:
            click.echo(f"interrupted; go on with: besskge train --out {folder} --resume", err=True)
        sys.exit(INTERRUPTED)
    _report(folder, result.stopped_because, console)
    leave(ranks)


def _report(folder: Path, stopped_because: str, console: Console) -> None:
    """What a run came to."""
    console.print(f"stopped: {stopped_because}", markup=False)
    for part, by_side in _stored_metrics(folder).items():
        console.print(metrics_table(f"{part}, filtered, realistic ranks", "side", by_side))
    console.print(f"written to {folder}: {', '.join(sorted(os.listdir(folder)))}", markup=False)
    console.print(f"next: besskge predict {folder} --head ... --relation ...", markup=False)


def _configuration(
    file: Optional[Path], run: Optional[Path], flags: Mapping[str, Any]
) -> TrainingConfig:
    """From a file, else from the run to resume, else the defaults; then the flags."""
    if file is None and run is not None and (run / "config.toml").is_file():
        file = run / "config.toml"
    return read_config(file, flags)


def _new_folder(config: TrainingConfig) -> Path:
    """runs/DATASET-SCORE_FUNCTION-NUMBER with the first number that is free."""
    dataset = re.sub(r"[^a-z0-9_-]+", "_", Path(config.data.dataset).name.lower()) or "graph"
    number = 1
    while True:
        folder = Path("runs", f"{dataset}-{config.model.score_function.lower()}-{number}")
        if not folder.exists() or not any(folder.iterdir()):
            return folder
        number += 1


def _remove_run(folder: Path) -> None:
    """Remove a run, but no other folder."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "config.toml").is_file():
            raise ConfigError(f"{folder} holds no run to overwrite; give another --out")
        shutil.rmtree(folder)


def _stored_metrics(run: Path) -> Dict[str, Dict[str, Dict[str, float]]]:
    """Part to side to metrics, as training left them; nothing if it has not ended."""
    try:
        stored = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        metrics: Dict[str, Dict[str, Dict[str, float]]] = stored["metrics"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run / 'metrics.json'}: damaged ({error})") from error
    return metrics


cli.add_command(_debug(_format(plan_command)), "plan")


# -- evaluate --------------------------------------------------------------------------------------


@cli.command()
@click.argument("run", type=RUN)
@click.option("--part", default="test", show_default=True, help="triples to rank")
@click.option("--mode", type=click.Choice(["realistic", "optimistic", "pessimistic"]),
              default="realistic", show_default=True, help="how ties are broken")  # fmt: skip
@click.option("--by-relation", is_flag=True, help="a row for each relation")
@click.option("--raw", is_flag=True, help="do not take out other known answers")
@click.option("--given", is_flag=True,
              help="rank among the candidates that the data set gives, as OGB's evaluator does")  # fmt: skip
@_format
@_debug
def evaluate(
    run: Path, part: str, mode: str, by_relation: bool, raw: bool, given: bool, form: str
) -> None:
    """Rank the triples of a part among all entities, with the best weights of RUN."""
    ranks = join()
    loaded = load_run(run, ranks=ranks)
    if part not in loaded.dataset.triples:
        raise ConfigError(f"no part {part!r}; the data set has {list(loaded.dataset.triples)}")
    triples = loaded.dataset.triples[part]
    ranking = _rank_given(loaded, part) if given else _rank(loaded, triples, raw)
    leave(ranks)
    if ranks.rank > 0:
        return
    if by_relation:
        key, rows = "relation", _relation_rows(ranking, loaded, mode)
    else:
        key, rows = "side", {
            side: ranking.metrics(mode, side) for side in ("both", "head", "tail")
        }  # fmt: skip
    facts = {
        "part": part,
        "n_triple": len(triples),
        "filtered": not (raw or given),
        "candidates": "given" if given else "all entities",
        "mode": mode,
        "weights": loaded.description,
    }
    if form == "json":
        echo_json({**facts, key: rows})
    elif form == "tsv":
        columns = [key, *(["n_triple"] if by_relation else []), *METRICS]
        echo_tsv([{key: name, **metrics} for name, metrics in rows.items()], columns)
    else:
        among = "given candidates" if given else "raw" if raw else "filtered"
        how = f"{part} ({len(triples):,} triples), {among}, {mode} ranks"
        console = make_console()
        console.print(metrics_table(how, key, rows))
        console.print(loaded.description, markup=False)


def _rank(loaded: LoadedRun, triples: Any, raw: bool) -> Ranking:
    """Rank, with a bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    known = None if raw else loaded.known
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("ranking", total=2 * len(triples))
        return rank_triples(
            loaded.score_fn,
            triples,
            known,
            progress=lambda n_query: bar.advance(task, n_query),
            exchange=loaded.exchange,
        )


def _rank_given(loaded: LoadedRun, part: str) -> Ranking:
    dataset = loaded.dataset
    sides = {"head": dataset.neg_heads or {}, "tail": dataset.neg_tails or {}}
    candidates = {side: lists[part] for side, lists in sides.items() if part in lists}
    if not candidates:
        raise ConfigError(
            f"the data set gives no candidates for {part!r}, as ogbl-biokg and ogbl-wikikg2 do;"
            " leave out --given to rank among all entities"
        )
    return rank_candidates(
        loaded.score_fn, dataset.triples[part], candidates, exchange=loaded.exchange
    )


def _relation_rows(ranking: Ranking, loaded: LoadedRun, mode: str) -> Dict[str, Dict[str, float]]:
    labels = loaded.dataset.relation_dict
    return {
        str(relation) if labels is None else labels[relation]: {
            "n_triple": int((ranking.relation == relation).sum()),
            **metrics,
        }
        for relation, metrics in ranking.by_relation(mode).items()
    }


# -- predict ---------------------------------------------------------------------------------------


@cli.command()
@click.argument("run", type=RUN)
@click.option("--head", help="identifier or name of an entity")
@click.option("--relation", help="identifier of a relation")
@click.option("--tail", help="identifier or name of an entity")
@click.option("--queries", type=FILE, help="TSV of head, relation, tail; ? for the unknown one")
@click.option("--k", default=10, show_default=True, type=click.IntRange(min=1), help="answers")
@click.option("--filter-known", is_flag=True, help="leave out answers that are known")
@_format
@_debug
def predict(
    run: Path,
    head: Optional[str],
    relation: Optional[str],
    tail: Optional[str],
    queries: Optional[Path],
    k: int,
    filter_known: bool,
    form: str,
) -> None:
    """The best answers of (h, r, ?), (?, r, t) or (h, ?, t): give any two of the three."""
    given = (head, relation, tail)
    if (queries is None) == all(label is None for label in given):
        raise ConfigError("give two of --head, --relation and --tail, or --queries FILE")
    asked = [given] if queries is None else _read_queries(queries)
    if any(query.count(None) != 1 for query in asked):
        raise ConfigError("give two of --head, --relation and --tail, the third is predicted")
    ranks = join()
    loaded = load_run(run, ranks=ranks)
    predictor = Predictor(loaded.score_fn, loaded.dataset, loaded.known, exchange=loaded.exchange)
    answers = predictor.answers(asked, k, filter_known)
    leave(ranks)
    if ranks.rank > 0:
        return
    if form == "json":
        echo_json(answer_lists(asked, answers))
    elif form == "tsv":
        columns = ["query", "head", "relation", "tail", "rank", "score", "known", "name"]
        echo_tsv(answer_rows(asked, answers), columns)
    else:
        console = make_console()
        for query, found in zip(asked, answers):
            console.print(answer_table(query, found))


def _read_queries(path: Path) -> List[Query]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); convert it") from error
    queries: List[Query] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        labels = [None if label == "?" else label for label in line.split("\t")]
        if len(labels) != 3 or labels.count(None) != 1:
            raise DataError(
                f"{path}:{number}: expected head, relation and tail with a tab between them, one of"
                f" them ?, got {line!r}"
            )
        queries.append((labels[0], labels[1], labels[2]))
    return queries


# -- info ------------------------------------------------------------------------------------------


@cli.command()
@click.argument("run", type=RUN, required=False)
@_debug
def info(run: Optional[Path]) -> None:
    """What is installed and found here; or, of a RUN, its configuration, metrics, checkpoints."""
    console = make_console()
    if run is None:
        console.print(facts_table({**describe(), **_abilities()}))
        console.print(_benchmark_table())
        return
    config = configuration.load(TrainingConfig, run / "config.toml")
    console.print(settings_table(config))
    for part, by_side in _stored_metrics(run).items():
        console.print(metrics_table(f"{part}, filtered, realistic ranks", "side", by_side))
    kinds = {"best": "best weights", "checkpoints": "checkpoint"}
    found = {
        path.relative_to(run): title
        for kind, title in kinds.items()
        for path in sorted((run / kind).glob("epoch-*"))
    }
    console.print(facts_table({str(path): title for path, title in found.items()}))
    if not found:
        console.print("no checkpoints")


def _abilities() -> Row:
    missing = f"reference (plain torch): {MISSING}"
    return {
        "native operations": ", ".join(operations()) or missing,
        "instruction set": torch.ops.besskge.instruction_set() if NATIVE else "-",
        "poptorch": "importable" if importlib.util.find_spec("poptorch") else "not installed",
        "tensorboard": version_of("tensorboard") or "not installed",
    }


def _benchmark_table() -> Table:
    table = Table(title="data sets", title_justify="left")
    for column in ("name", "entities", "relations", "train", "valid", "test", "found"):
        table.add_column(column, justify="left" if column in ("name", "found") else "right")
    published: Dict[str, Tuple[Sequence[Optional[int]], str]] = {
        name: (b.counts, b.folder) for name, b in benchmarks.BENCHMARKS.items()
    }
    published.update({name: (a.counts, a.home) for name, a in benchmarks.ARCHIVES.items()})
    for name, (counts, folder) in sorted(published.items()):
        shown = ["" if n is None else f"{n:,}" for n in counts]
        table.add_row(name, *shown, Text(_where(folder)))
    for name in benchmarks.GENERATORS:
        table.add_row(name, *[""] * 5, "generated, any size")
    return table


def _where(folder: str) -> str:
    """Where a benchmark is, or that it would be fetched."""
    given = os.environ.get("BESSKGE_DATA")
    places = [*([given] if given else []), benchmarks.cache_folder()]
    found = [place for place in places if os.path.isdir(os.path.join(place, folder))]
    return os.path.join(found[0], folder) if found else "fetched when it is first used"
