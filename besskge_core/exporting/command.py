"""The command `besskge export`."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from besskge_core.exporting.pykeen_folder import export_pykeen
from besskge_core.exporting.single_file import export_safetensors

EXPORTS = {"safetensors": export_safetensors, "pykeen": export_pykeen}


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", "form", type=click.Choice(list(EXPORTS)), required=True,
              help="safetensors: one file, for any tool; pykeen: a folder that PyKEEN loads")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="file or folder to make")  # fmt: skip
@click.option("--checkpoint", type=click.Choice(["best", "last"]),
              help="which weights  [default: the best there are]")  # fmt: skip
@click.option("--labels/--no-labels", default=True, show_default=True,
              help="also write what the IDs mean; a safetensors file without needs no data set")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="replace an export that is there")
def export(
    run: Path, form: str, out: Path, checkpoint: Optional[str], labels: bool, overwrite: bool
) -> None:
    """Write the model of RUN for other programs, whatever its number of shards."""
    EXPORTS[form](run, out, checkpoint, labels, overwrite)
    click.echo(f"written to {out}")
    if form == "pykeen":
        click.echo(f"next, where PyKEEN is installed: python {out / 'load.py'}")
