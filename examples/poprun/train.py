"""A training run, by whatever started it: `python`, `torchrun` or `poprun`.

    python examples/poprun/train.py --out runs/one
    torchrun --nproc-per-node 4 examples/poprun/train.py --out runs/ranks
    IPUS=4 bash examples/poprun/one_instance.sh --out runs/pod4
    IPUS=4 INSTANCES=2 bash examples/poprun/several_instances.sh --out runs/seeds

Under torchrun all ranks train one model. Under poprun an instance trains one over all of its IPUs;
several instances train a model each, of another seed and, if so many are given, of another file of
settings. Flags are those of `besskge train`. Nothing here has run on an IPU.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Sequence, Tuple

import click

from besskge_core.config import SectionCommand, click_options
from besskge_core.report import make_console
from besskge_core.runtime import join, leave
from besskge_core.training import TrainingConfig, train
from besskge_core.training.config import read_config

SETTINGS = Path(__file__).parent / "run.toml"


def instance() -> Tuple[int, int]:
    """Which instance of poprun this process is, of how many; of none, 0 of 0.

    poprun starts instances through MPI, whose variables PopTorch reads as well.
    """
    rank, size = (os.environ.get(f"OMPI_COMM_WORLD_{name}", "0") for name in ("RANK", "SIZE"))
    return int(rank), int(size)


def settings_of(files: Sequence[Path], index: int, flags: Any) -> TrainingConfig:
    """Of an instance: its file in turn, with a seed of its own."""
    config = read_config(files[index % len(files)], flags)
    return replace(config, run=replace(config.run, seed=config.run.seed + index))


@click.command(cls=SectionCommand)
@click.option("--config", "files", multiple=True, type=Path, default=[SETTINGS],
              help="settings; of several files each instance takes one, in turn")  # fmt: skip
@click.option("--out", type=Path, required=True, help="folder; of several instances one in it each")
@click.option("--resume", is_flag=True, help="go on with what has begun")
@click_options(TrainingConfig)
def main(files: Sequence[Path], out: Path, resume: bool, **flags: Any) -> None:
    """Train, and rank the test triples."""
    index, n_instance = instance()
    if n_instance and flags["device"] is None:
        flags["device"] = "ipu"
    config = settings_of(files, index, flags)
    if n_instance > 1:
        config = replace(config, ipu=replace(config.ipu, independent=True))
        out = out / f"instance-{index}"
    ranks = join(config.run.device, config.run.timeout)
    begun = resume and (out / "config.toml").is_file()
    result = train(config, out, begun, make_console(), ranks)
    if ranks.rank == 0:
        run, found = config.run, result.metrics["test"]["mrr"]
        print(f"device {run.device}, seed {run.seed}: test MRR {found:.4f}, {out}")
    leave(ranks)


if __name__ == "__main__":
    main()
