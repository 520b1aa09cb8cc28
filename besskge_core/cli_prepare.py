"""The command `besskge prepare`: files of labelled triples to a prepared folder."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple, Union

import click

from besskge_core.errors import ConfigError
from besskge_core.preparation import add_buckets, prepare
from besskge_core.prepared import Manifest, is_prepared

__all__ = ["prepare_command"]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
ANY = click.Path(exists=True, path_type=Path)


@click.command("prepare")
@click.argument("source", nargs=-1, type=ANY)
@click.option("--train", multiple=True, type=ANY, help="file or folder of training triples; may be "
              "given again, likewise the next two")  # fmt: skip
@click.option("--valid", multiple=True, type=ANY, help="of validation triples")
@click.option("--test", multiple=True, type=ANY, help="of test triples")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="folder to write")  # fmt: skip
@click.option("--n-shard", default=8, show_default=True, type=click.IntRange(min=0),
              help="shards that the training triples are sorted for; 0 for none")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0),
              help="of the sharding")  # fmt: skip
@click.option("--no-inverse", is_flag=True, help="do not sort inverse triples too")
@click.option("--memory", default="1GiB", show_default=True, metavar="SIZE",
              help="for labels and pieces of the sources")  # fmt: skip
@click.option("--columns", metavar="H,R,T", help="names or positions of head, relation and tail; "
              "names stand in the first line  [default: three columns, no header]")  # fmt: skip
@click.option("--delimiter", help="another separator than the tab, or the comma of .csv")
@click.option("--threads", type=click.IntRange(min=1), help="[default: processors, 8 at most]")
@click.option("--resume", is_flag=True,
              help="go on where it was killed; check a folder that is complete")  # fmt: skip
def prepare_command(
    source: Tuple[Path, ...],
    train: Tuple[Path, ...],
    valid: Tuple[Path, ...],
    test: Tuple[Path, ...],
    out: Path,
    n_shard: int,
    seed: int,
    no_inverse: bool,
    memory: str,
    columns: Optional[str],
    delimiter: Optional[str],
    threads: Optional[int],
    resume: bool,
) -> None:
    """Turn labelled triples, more than fit in memory, into a folder to train from.

    SOURCE is a folder of train, valid and test, or files of training triples (TSV, CSV, Parquet).
    Without any, buckets for --n-shard are added to the prepared folder --out.
    """
    parts = {"train": train, "valid": valid, "test": test}
    sources = _sources(source, {part: files for part, files in parts.items() if files})
    told = _Progress()
    buckets = (seed, not no_inverse, _n_byte(memory))
    if sources is not None:
        manifest = prepare(
            sources, out, n_shard or None, *buckets, _columns(columns), delimiter, threads, resume,
            told,
        )  # fmt: skip
    elif is_prepared(out) and n_shard:
        manifest = add_buckets(out, n_shard, *buckets, threads, told)
    else:
        raise ConfigError("give a SOURCE or --train FILE; see besskge prepare --help")
    told.end()
    _report(out, manifest)


def _sources(
    source: Tuple[Path, ...], parts: Dict[str, Tuple[Path, ...]]
) -> Optional[Union[Path, Dict[str, Tuple[Path, ...]]]]:
    if source and parts:
        raise ConfigError(f"give SOURCE or --{next(iter(parts))}, not both")
    if len(source) == 1:
        return source[0]
    return ({"train": source} if source else parts) or None


def _n_byte(text: str) -> int:
    """A size such as 4GB, 512MiB or 1000000."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(|[KMG]I?)B?", text.upper())
    n = int(float(found.group(1)) * UNITS[found.group(2)]) if found else 0
    if not n:
        raise ConfigError(f"--memory {text!r} is not a size such as 4GB, 512MiB or 1000000")
    return n


def _columns(text: Optional[str]) -> Optional[Sequence[Union[int, str]]]:
    """Positions if all are numbers, else names."""
    if text is None:
        return None
    names = text.split(",")
    return [int(name) for name in names] if all(x.isdigit() for x in names) else names


class _Progress:
    """A line for each stage on standard error, which grows if that is a terminal."""

    def __init__(self) -> None:
        self.stage: Optional[str] = None
        self.n, self.start = 0, time.monotonic()

    def __call__(self, stage: str, n: int) -> None:
        if stage != self.stage:
            self.end()
            self.stage, self.n = stage, 0
        self.n += n
        if sys.stderr.isatty():
            click.echo(f"\r{self.stage}: {self.n:,}", nl=False, err=True)

    def end(self) -> None:
        """Close the line of the present stage."""
        if self.stage is not None:
            seconds = time.monotonic() - self.start
            back = "\r" if sys.stderr.isatty() else ""
            click.echo(f"{back}{self.stage}: {self.n:,}, after {seconds:.1f} s", err=True)
        self.stage = None


def _report(out: Path, manifest: Manifest) -> None:
    parts = ", ".join(f"{n:,} {part}" for part, n in manifest.parts.items())
    click.echo(
        f"{manifest.n_entity:,} entities, {manifest.n_relation_type:,} relations, triples: {parts}"
    )
    for buckets in manifest.buckets:
        click.echo(
            f"{buckets.folder}: {buckets.n_triple:,} triples for {buckets.n_shard} shards, seed"
            f" {buckets.seed}, {'with' if buckets.inverse_triples else 'without'} inverse ones"
        )
    click.echo(f"next: besskge train --dataset {out}")
