"""A model in one safetensors file, for any tool that reads the format, and the way back.

::

    model.safetensors    entity (n_entity, D) and relation (n_relation_type or twice as many, R),
                         both by ID, and what the formula has learned besides, as formula.NAME;
                         its metadata say how to score with them
    entities.tsv         ID, label and perhaps name of each entity
    relations.tsv        ID and label of each relation

Parts of a row lie side by side as the score function's docstring has them; complex numbers are
their real parts, then their imaginary ones. The inverse of relation r is n_relation_type + r.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, List, Optional, Union

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from besskge_core.dataset import KGDataset
from besskge_core.errors import CheckpointError, DatasetNotFoundError
from besskge_core.exporting.files import (
    read_table,
    refuse_to_overwrite,
    unfinished,
    write_table,
)
from besskge_core.exporting.tensor_file import TensorFile
from besskge_core.exporting.weights import FORMULA, StoredWeights, load_formula
from besskge_core.scoring import FormulaScoreFunction
from besskge_core.training.checkpoint import sync
from besskge_core.training.config import ModelConfig
from besskge_core.vocabulary import Vocabulary

FORMAT = "besskge_core.model/1"
TABLES = {"entity": "entities.tsv", "relation": "relations.tsv"}


def export_safetensors(
    run: Union[str, Path],
    out: Union[str, Path],
    checkpoint: Optional[str] = None,
    labels: bool = True,
    overwrite: bool = False,
) -> None:
    """Write the model of a run as one file; the same bytes for any number of shards.

    No more than the rows of one shard is held. Without labels the data set is not needed.

    Args:
        run: folder of the run.
        out: the file.
        checkpoint: "best" or "last"; None: the best there is.
        labels: also write what the IDs mean, in files beside it.
        overwrite: files that are there.

    Raises:
        CheckpointError: no such checkpoint, or it is damaged.
        ConfigError: a file is there.
    """
    out = Path(out)
    tables = {kind: out.with_name(name) for kind, name in TABLES.items()} if labels else {}
    refuse_to_overwrite([out, *tables.values()], overwrite)
    weights = StoredWeights.of(Path(run), checkpoint)
    vocabularies = _vocabularies(weights.dataset()) if labels else {}
    with unfinished(out) as partial:
        _write_weights(weights, partial, _metadata(weights, labels))
    for kind, path in tables.items():
        with unfinished(path) as partial:
            _write_labels(vocabularies[kind], partial)


def _write_weights(weights: StoredWeights, path: Path, metadata: Dict[str, str]) -> None:
    whole = {f"{FORMULA}{name}": x for name, x in weights.parameters.items()}
    whole["relation"] = weights.relations
    kinds = {name: (tuple(x.shape), x.dtype) for name, x in whole.items()}
    file: Optional[TensorFile] = None
    for ids, rows in weights.entities():
        if file is None:
            kinds["entity"] = ((weights.n_entity, rows.shape[1]), rows.dtype)
            file = TensorFile(path, kinds, metadata)
        file.put("entity", rows, ids)
    assert file is not None  # a graph has entities, so there are shards
    for name, x in whole.items():
        file.put(name, x)
    file.close()
    sync(path)


def _metadata(weights: StoredWeights, labels: bool) -> Dict[str, str]:
    """All is text; options are JSON."""
    model = weights.config.model
    return {
        "format": FORMAT,
        "score_function": model.score_function.lower(),
        "dim": str(model.dim),
        "norm": str(model.norm),
        "score_options": json.dumps(model.score_options),
        "inverse_relations": json.dumps(model.inverse_relations),
        "n_entity": str(weights.n_entity),
        "n_relation_type": str(weights.n_relation_type),
        "dataset": weights.config.data.dataset,
        "weights": weights.description,
        **({f"{kind}_labels": name for kind, name in TABLES.items()} if labels else {}),
    }


def _vocabularies(dataset: KGDataset) -> Dict[str, Vocabulary]:
    return {
        "entity": Vocabulary("entity", dataset.n_entity, dataset.entity_dict, dataset.entity_names),
        "relation": Vocabulary("relation", dataset.n_relation_type, dataset.relation_dict),
    }


def _write_labels(words: Vocabulary, path: Path) -> None:
    named = words.n > 0 and words.name(0) is not None
    header = ["id", "label", "name"] if named else ["id", "label"]
    rows = ([i, words.label(i), words.name(i)][: len(header)] for i in range(words.n))
    write_table(path, header, rows)


# -- the way back -----------------------------------------------------------------------------------


def load_exported(path: Union[str, Path]) -> FormulaScoreFunction:
    """The score function that :func:`export_safetensors` wrote, in one shard, ready to score.

    Its scores are those of the run to the last bit.

    Raises:
        CheckpointError: something else, or damaged.
    """
    metadata = read_metadata(path)
    tensors: Dict[str, Tensor] = load_file(path)
    model = ModelConfig(
        score_function=metadata["score_function"],
        dim=int(metadata["dim"]),
        norm=json.loads(metadata["norm"]),
        inverse_relations=json.loads(metadata["inverse_relations"]),
        score_options=json.loads(metadata["score_options"]),
    )
    entities, relations = tensors.pop("entity"), tensors.pop("relation")
    parameters = {name[len(FORMULA) :]: x for name, x in tensors.items()}
    return load_formula(model, parameters, entities, relations)


def exported_dataset(path: Union[str, Path]) -> KGDataset:
    """The graph of an exported model without triples, for :class:`~besskge_core.predict.Predictor`.

    Args:
        path: of the model; the files of labels are beside it, if it was exported with labels.

    Raises:
        CheckpointError: something else, or damaged.
        DatasetNotFoundError: the files of labels are gone.
    """
    metadata = read_metadata(path)
    columns: Dict[str, List[List[str]]] = {}
    for kind in TABLES:
        if f"{kind}_labels" in metadata:
            table = Path(path).with_name(metadata[f"{kind}_labels"])
            if not table.is_file():
                raise DatasetNotFoundError(f"{table}: no such file; it was written with {path}")
            columns[kind] = read_table(table)
    entity, relation = columns.get("entity", []), columns.get("relation", [])
    return KGDataset(
        int(metadata["n_entity"]),
        int(metadata["n_relation_type"]),
        {"train": np.empty((0, 3), dtype=np.int32)},
        {"train": np.empty(0, dtype=np.int64)},
        entity_dict=entity[1] if entity else None,
        relation_dict=relation[1] if relation else None,
        entity_names=entity[2] if len(entity) > 2 else None,
    )


def read_metadata(path: Union[str, Path]) -> Dict[str, str]:
    """What the header of an exported model says.

    Raises:
        CheckpointError: something else, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Dict[str, str] = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected one of besskge export") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {metadata.get('format')!r}, expected {FORMAT!r}, as besskge export"
            " writes it"
        )
    return metadata
