"""What training left behind, loaded to be evaluated and queried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

from besskge_core import config as configuration
from besskge_core.catalogue import load_dataset
from besskge_core.dataset import KGDataset
from besskge_core.embedding import hosting
from besskge_core.errors import CheckpointError
from besskge_core.exchange import Exchange
from besskge_core.known import KnownTriples
from besskge_core.runtime import Ranks
from besskge_core.scoring import BaseScoreFunction
from besskge_core.training.build import build_score_function
from besskge_core.training.checkpoint import find_checkpoints, load_checkpoint
from besskge_core.training.config import TrainingConfig


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with its graph.

    Attributes:
        config: of the run.
        dataset: the graph.
        score_fn: with the stored weights.
        known: triples of all parts, for filtering.
        description: which weights these are.
        exchange: of the ranks that have the rows; None: all are here.
    """

    config: TrainingConfig
    dataset: KGDataset
    score_fn: BaseScoreFunction
    known: KnownTriples
    description: str
    exchange: Optional[Exchange] = None


def load_on_all(config: TrainingConfig, ranks: Ranks) -> KGDataset:
    """On the first rank before the others, for it may have to be fetched."""
    found: List[KGDataset] = []

    def load() -> None:
        if not found:
            found.append(load_dataset(config.data.dataset, **config.data.dataset_options))

    ranks.first(load)
    ranks.each(load)
    return found[0]


def chosen_checkpoint(folder: Path, checkpoint: Optional[str] = None) -> Tuple[Path, str]:
    """The newest checkpoint of a run that is "best" or "last", None: the best there is.

    Returns:
        Its path, and which weights these are.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if checkpoint not in (None, "best", "last"):
        raise CheckpointError(f"checkpoint must be 'best' or 'last', got {checkpoint!r}")
    best, last = find_checkpoints(folder / "best"), find_checkpoints(folder / "checkpoints")
    kind = checkpoint or ("best" if best else "last")
    found = best if kind == "best" else last
    if not found:
        raise CheckpointError(f"{folder}: no {kind} checkpoint; train first")
    return found[-1], f"{kind} weights, {found[-1].name}"


def load_run(
    folder: Path, checkpoint: Optional[str] = None, ranks: Optional[Ranks] = None
) -> LoadedRun:
    """Load what :func:`train` left behind.

    Args:
        folder: of the run.
        checkpoint: "best" or "last"; by default the best there is.
        ranks: who loads it, each the rows of its shards; None: this process all of them.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    ranks = Ranks() if ranks is None else ranks
    config = configuration.load(TrainingConfig, folder / "config.toml")
    path, description = chosen_checkpoint(folder, checkpoint)
    dataset = load_on_all(config, ranks)
    with hosting(ranks.hosted(config.batch.n_shard)):
        score_fn = build_score_function(config, dataset)
    score_fn.to(ranks.device)
    load_checkpoint(path, score_fn, ranks=ranks)
    exchange = ranks.exchange(config.batch.n_shard) if ranks.n_rank > 1 else None
    return LoadedRun(config, dataset, score_fn, KnownTriples.of(dataset), description, exchange)
