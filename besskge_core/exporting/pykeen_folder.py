"""A model in a folder of which PyKEEN can make its own; no pickle is written.

::

    model.json                  the interaction and the representations, as ERModel takes them
    state_dict.safetensors      weights by PyKEEN's names and in its layout
    training_triples/           as TriplesFactory.to_path_binary writes them, but for base.pth
    load.py                     :mod:`besskge_core.exporting.pykeen_loader`, which makes the model
                                where there is PyKEEN, and no besskge_core

Axes:
    n: entities or relations      W: width of a row      *shape: axes of a representation
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Union

import numpy as np
import torch
from torch import Tensor

from besskge_core.dataset import KGDataset
from besskge_core.embedding.layout import Layout
from besskge_core.errors import ConfigError
from besskge_core.exporting import pykeen_loader
from besskge_core.exporting.files import refuse_to_overwrite, unfinished, write_table
from besskge_core.exporting.pykeen_forms import PykeenForm, pykeen_form
from besskge_core.exporting.tensor_file import Kind, TensorFile
from besskge_core.exporting.weights import StoredWeights
from besskge_core.scoring.comparators import widened
from besskge_core.training.checkpoint import sync

FORMAT = "besskge_core.pykeen/1"


def export_pykeen(
    run: Union[str, Path],
    out: Union[str, Path],
    checkpoint: Optional[str] = None,
    labels: bool = True,
    overwrite: bool = False,
) -> None:
    """Write the model of a run as a folder for PyKEEN, which need not be here.

    Args:
        run: folder of the run.
        out: the folder to make.
        checkpoint: "best" or "last"; None: the best there is.
        labels: also write what the IDs mean.
        overwrite: an export that is there, but no other folder.

    Raises:
        CheckpointError: no such checkpoint, or it is damaged.
        ConfigError: something is there, or PyKEEN has no such score function.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        refuse_to_overwrite([out], overwrite)
        if not (out / "model.json").is_file():
            raise ConfigError(f"{out} holds no export to overwrite; give another --out")
    weights = StoredWeights.of(Path(run), checkpoint)
    formula = weights.formula()
    form = pykeen_form(weights.config.model.score_function.lower(), formula)
    width = sum(formula.widths(formula.entity_parts))
    dataset = weights.dataset()
    with unfinished(out) as partial, torch.no_grad():
        partial.mkdir()
        _write_weights(weights, form, width, partial)
        _write_triples(dataset, labels, partial / "training_triples")
        loader = inspect.getsource(pykeen_loader)
        (partial / "load.py").write_text(loader, encoding="utf-8")


def _write_weights(weights: StoredWeights, form: PykeenForm, width: int, folder: Path) -> None:
    """The files model.json and state_dict.safetensors; `width` is that of an entity row."""
    relations = form.relations(_interleaved(widened(weights.relations), weights))
    empty = {
        "entity": form.entities(widened(weights.relations.new_empty(0, width))),
        "relation": [x[:0] for x in relations],
    }
    n_row = {"entity": weights.n_entity, "relation": len(weights.relations)}
    layouts = {kind: [Layout(tuple(x.shape[1:]), x.dtype) for x in empty[kind]] for kind in empty}
    _write_model(weights, form, layouts, folder / "model.json")
    parameters = {f"interaction.{name}": x for name, x in form.parameters.items()}
    kinds: Dict[str, Kind] = {name: (tuple(x.shape), x.dtype) for name, x in parameters.items()}
    for kind, its_layouts in layouts.items():
        for i, layout in enumerate(its_layouts):
            kinds[_name(kind, i)] = (n_row[kind], layout.width), layout.real_dtype
    path = folder / "state_dict.safetensors"
    file = TensorFile(path, kinds, {"format": FORMAT})
    for name, x in parameters.items():
        file.put(name, x)
    for i, (layout, x) in enumerate(zip(layouts["relation"], relations)):
        file.put(_name("relation", i), layout.rows(x))
    for ids, rows in weights.entities():
        for i, (layout, x) in enumerate(zip(layouts["entity"], form.entities(widened(rows)))):
            file.put(_name("entity", i), layout.rows(x), ids)
    file.close()
    sync(path)


def _name(kind: str, i: int) -> str:
    """PyKEEN's, of the i-th representation of entities or relations."""
    return f"{kind}_representations.{i}._embeddings.weight"


def _interleaved(rows: Tensor, weights: StoredWeights) -> Tensor:
    """Relations (n, W) in the order of PyKEEN: r is 2 r and its inverse 2 r + 1, if it has one."""
    n, width = weights.n_relation_type, rows.shape[1]
    return rows.view(-1, n, width).transpose(0, 1).reshape(-1, width)


def _write_model(
    weights: StoredWeights, form: PykeenForm, layouts: Mapping[str, List[Layout]], path: Path
) -> None:
    units = {"entity": form.unit_entities, "relation": False}
    unit = {"normalizer": "normalize", "normalizer_kwargs": {"p": 2, "dim": -1}}
    model = {
        "format": FORMAT,
        "interaction": form.interaction,
        "interaction_kwargs": form.options,
        **{
            f"{kind}_representations": [
                {
                    "shape": layout.shape,
                    "dtype": str(layout.dtype(layout.real_dtype)).replace("torch.", ""),
                    **(unit if units[kind] else {}),
                }
                for layout in its_layouts
            ]
            for kind, its_layouts in layouts.items()
        },
        "num_entities": weights.n_entity,
        "num_relations": weights.n_relation_type,
        "create_inverse_triples": weights.config.model.inverse_relations,
        "dataset": weights.config.data.dataset,
        "weights": weights.description,
    }
    path.write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")


def _write_triples(dataset: KGDataset, labels: bool, folder: Path) -> None:
    """What we train on, which PyKEEN's evaluator filters by."""
    folder.mkdir()
    triples = dataset.triples["train"]
    columns = ["head", "relation", "tail"]
    write_table(folder / "numeric_triples.tsv.gz", columns, map(np.ndarray.tolist, triples))
    known = {"entity": dataset.entity_dict, "relation": dataset.relation_dict}
    if labels and all(words is not None for words in known.values()):
        for kind, words in known.items():
            write_table(folder / f"{kind}_to_id.tsv.gz", ["id", "label"], enumerate(words or []))
