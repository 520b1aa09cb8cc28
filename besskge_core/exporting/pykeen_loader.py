"""Make a PyKEEN model of a folder that besskge_core has exported; needs PyKEEN and safetensors.

A copy of this file lies in each such folder, so that PyKEEN needs no besskge_core beside it::

    python FOLDER/load.py               # writes trained_model.pkl and training_triples/base.pth,
                                        # as PyKEEN's PipelineResult.save_to_directory does

    from load import pykeen_model       # or the model itself, without a pickle
    model = pykeen_model("FOLDER")
    model.predict_t(torch.tensor([[head_id, relation_id]]))
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def pykeen_triples(folder: Any) -> Any:
    """The training triples, a `pykeen.triples.TriplesFactory`, or without labels a core one."""
    import pandas
    from pykeen.triples import CoreTriplesFactory, TriplesFactory

    model = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    tables = Path(folder) / "training_triples"
    ids = pandas.read_csv(tables / "numeric_triples.tsv.gz", sep="\t", dtype="int64")
    triples, inverse = torch.tensor(ids.to_numpy()), model["create_inverse_triples"]
    if not (tables / "entity_to_id.tsv.gz").is_file():
        sizes = model["num_entities"], model["num_relations"]
        return CoreTriplesFactory(triples, *sizes, create_inverse_triples=inverse)
    maps = [
        pandas.read_csv(tables / f"{kind}_to_id.tsv.gz", sep="\t", dtype=str, keep_default_na=False)
        for kind in ("entity", "relation")
    ]
    to_id = [{label: int(i) for i, label in zip(x["id"], x["label"])} for x in maps]
    return TriplesFactory(triples, *to_id, create_inverse_triples=inverse)


def pykeen_model(folder: Any, **options: Any) -> Any:
    """The model, a `pykeen.models.ERModel` in evaluation mode.

    Its relation IDs are PyKEEN's: `predict_t` and its like take those of the graph, `score_t` and
    its like 2 r for r and 2 r + 1 for the inverse of r where there are inverse relations.

    Args:
        folder: what besskge_core has exported.
        options: further ones of `ERModel`, such as a loss to go on training with.
    """
    import pykeen.nn.modules
    from pykeen.models import ERModel
    from pykeen.utils import NoRandomSeedNecessary

    model = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    arguments = {
        f"{kind}_representations_kwargs": [
            {**representation, "dtype": getattr(torch, representation["dtype"])}
            for representation in model[f"{kind}_representations"]
        ]
        for kind in ("entity", "relation")
    }
    made = ERModel(
        triples_factory=pykeen_triples(folder),
        interaction=getattr(pykeen.nn.modules, model["interaction"]),
        interaction_kwargs=_with_tuples(model["interaction_kwargs"]),
        **arguments,
        **{"random_seed": NoRandomSeedNecessary, **options},
    )
    stored = load_file(str(Path(folder) / "state_dict.safetensors"))
    missing, unexpected = made.load_state_dict(stored, strict=False)
    missing = sorted(set(missing) & {name for name, _ in made.named_parameters()})  # not constants
    if missing or unexpected:
        raise ValueError(f"this PyKEEN has other parameters: {missing} are not in the export, and"
                         f" it knows nothing of {unexpected}; use 1.11.1")  # fmt: skip
    return made.eval()


def _with_tuples(x: Any) -> Any:
    """JSON has lists alone, and PyKEEN keeps what it is given in sets."""
    if isinstance(x, dict):
        return {name: _with_tuples(value) for name, value in x.items()}
    return tuple(map(_with_tuples, x)) if isinstance(x, list) else x


def main() -> None:
    """Write what PyKEEN keeps as pickles."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    folder = folder if folder.is_dir() else folder.parent
    torch.save(pykeen_model(folder), folder / "trained_model.pkl")
    pykeen_triples(folder).to_path_binary(folder / "training_triples")


if __name__ == "__main__":
    main()
