"""The weights of a run, a shard at a time: what is exported.

Axes:
    K: entities of a shard      D, R: widths of entity and relation rows
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Mapping, Optional, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from besskge_core import config as configuration
from besskge_core.catalogue import load_dataset
from besskge_core.dataset import KGDataset
from besskge_core.errors import CheckpointError
from besskge_core.scoring import FormulaScoreFunction
from besskge_core.scoring.formula import ScoreFormula
from besskge_core.sharding import Sharding
from besskge_core.training import TrainingConfig
from besskge_core.training.build import make_score_function
from besskge_core.training.checkpoint import REPLICATED, read_manifest, read_tensors
from besskge_core.training.config import ModelConfig
from besskge_core.training.loaded import chosen_checkpoint

ENTITY, RELATION, FORMULA = "entity_embedding", "relation_embedding", "formula."


@dataclass(frozen=True)
class StoredWeights:
    """A checkpoint of a run, of which rows of entities stay on the disk until they are asked for.

    Attributes:
        config: of the run.
        path: of the checkpoint.
        description: which weights these are.
        n_entity: entities of the graph.
        relations: (n_relation_type or twice as many, R), by ID, inverse ones last.
        parameters: what the formula has learned besides, by the names in its `state_dict`.
        files: names and sha256 of the shards' files.
    """

    config: TrainingConfig
    path: Path
    description: str
    n_entity: int
    relations: Tensor
    parameters: Dict[str, Tensor]
    files: Dict[str, str]

    @classmethod
    def of(cls, run: Path, checkpoint: Optional[str] = None) -> StoredWeights:
        """The best or last weights of a run; by default the best there are.

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        config = configuration.load(TrainingConfig, run / "config.toml")
        path, description = chosen_checkpoint(run, checkpoint)
        manifest = read_manifest(path)
        files = dict(manifest["files"])
        shared = read_tensors(path / REPLICATED, files.pop(REPLICATED), with_optimizer=False)
        relations = shared.pop(RELATION)
        parameters = {name[len(FORMULA) :]: x for name, x in shared.items()}
        n_entity = int(manifest["n_entity"])
        return cls(config, path, description, n_entity, relations, parameters, files)

    @property
    def n_relation_type(self) -> int:
        """Relations of the graph, without inverse ones."""
        return len(self.relations) // (2 if self.config.model.inverse_relations else 1)

    def formula(self) -> ScoreFormula:
        """The formula, with what it has learned."""
        return load_formula(self.config.model, self.parameters).formula

    def dataset(self) -> KGDataset:
        """The graph of the run.

        Raises:
            CheckpointError: it has changed since.
        """
        dataset = load_dataset(self.config.data.dataset, **self.config.data.dataset_options)
        sizes = dataset.n_entity, dataset.n_relation_type
        if sizes != (self.n_entity, self.n_relation_type):
            raise CheckpointError(
                f"{self.path}: of {self.n_entity} entities and {self.n_relation_type} relations, but"
                f" {self.config.data.dataset} has {sizes[0]} and {sizes[1]}: it has changed since"
            )
        return dataset

    def entities(self) -> Iterator[Tuple[NDArray[np.int64], Tensor]]:
        """IDs (K,) and rows (K, D) of the entities of each shard; one file is held at a time.

        Raises:
            CheckpointError: a file is missing or damaged, or they are not all entities.
        """
        n_found = np.zeros(self.n_entity, dtype=np.int64)
        for name, digest in self.files.items():
            content = read_tensors(self.path / name, digest, with_optimizer=False)
            ids = content["entity_id"].numpy().astype(np.int64)
            n_found[ids] += 1
            yield ids, content[ENTITY]
        if not (n_found == 1).all():
            raise CheckpointError(
                f"{self.path}: {int((n_found != 1).sum())} of {self.n_entity} entities are not"
                " stored once; it is damaged"
            )


def load_formula(
    model: ModelConfig,
    parameters: Mapping[str, Tensor],
    entities: Optional[Tensor] = None,
    relations: Optional[Tensor] = None,
) -> FormulaScoreFunction:
    """A score function with these weights, in one shard.

    Args:
        model: its settings.
        parameters: of the formula, by the names in its `state_dict`.
        entities: (n_entity, D) by ID; None: one entity, for the formula's sake.
        relations: (n_relation_type or twice as many, R); None: one relation.
    """
    tables, n_relation = {}, 1
    if entities is not None and relations is not None:
        tables = {"entity_initializer": entities.unsqueeze(0), "relation_initializer": relations}
        n_relation = len(relations) // (2 if model.inverse_relations else 1)
    n_entity = 1 if entities is None else len(entities)
    with torch.random.fork_rng(devices=[]):  # whoever exports may be drawing numbers of their own
        made = make_score_function(model, Sharding.create(n_entity, 1, 0), n_relation, **tables)
    assert isinstance(made, FormulaScoreFunction)  # as all that have a name
    made.formula.load_state_dict(dict(parameters))
    made.eval()
    return made
