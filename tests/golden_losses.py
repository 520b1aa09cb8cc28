"""PyKEEN's stored losses: read them, replay one with a loss of ours, and name the deviations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

import besskge_core.loss
from besskge_core.loss import pairwise

GOLDEN = os.environ.get("BESSKGE_GOLDEN")
Case = Dict[str, Any]

#: Where we are not as PyKEEN, on purpose, and in how many records.
DEVIATIONS = {
    "smoothing with a filter is over the columns that are left, so it is not infinite": 78,
    "a temperature of 0 weighs the negatives that count equally, so it is not NaN": 18,
    "weights are not refused": 408,
}
SMOOTHING, TEMPERATURE, WEIGHTS = DEVIATIONS


class Outcome(NamedTuple):
    """What a loss did with a record."""

    error: Optional[str] = None
    value: float = 0.0
    grads: Tuple[Tensor, ...] = ()


def read() -> Tuple[List[Case], Dict[str, Tensor]]:
    """All records, and all arrays by name; nothing without the folder."""
    if not GOLDEN:
        return [], {}
    folder = Path(GOLDEN) / "pykeen"
    cases = json.loads((folder / "oracle_losses.json").read_text())["cases"]
    with np.load(folder / "oracle_losses.npz") as stored:
        return cases, {name: torch.from_numpy(stored[name]) for name in stored.files}


def loss_class(name: str) -> type:
    """Our class of what PyKEEN calls `name`."""
    return getattr(pairwise if name == "MarginRankingLoss" else besskge_core.loss, name)


def deviation(case: Case) -> Optional[str]:
    """Why we are not as this record says, None where we are."""
    kind, filtered = case["loss"], case.get("filter") == "partial"
    if case.get("value") == "inf":
        assert kind in ("InfoNCELoss", "CrossEntropyLoss") and filtered and case["label_smoothing"]
        return SMOOTHING
    if case.get("value") == "nan":
        assert kind == "NSSALoss" and case["kwargs"]["adversarial_temperature"] == 0.0
        return TEMPERATURE
    if case.get("error") == "NoSampleWeightSupportError":
        # One cost a row has no weights of negatives; that is refused here, too.
        return None if kind in ("InfoNCELoss", "CrossEntropyLoss") else WEIGHTS
    return None


def replay(case: Case, stored: Dict[str, Tensor]) -> Outcome:
    """Value and gradients of a record's arguments, or the name of the error."""
    loss = loss_class(case["loss"])(**case["kwargs"])
    inputs = {
        name.split("/")[2]: x.clone()
        for name, x in stored.items()
        if name.startswith(f"in/{case['seed']}/")
    }
    smoothing = dict(label_smoothing=case["label_smoothing"], num_entities=case.get("num_entities"))
    weighted = bool(case.get("weights"))
    try:
        if case["path"] == "slcwa":
            leaves = inputs["pos"].requires_grad_(), inputs["neg"].requires_grad_()
            negative, mask = leaves[1], None
            if case["filter"] == "partial":
                mask = inputs["mask"]
                negative = negative[mask]
            weights = dict(pos_weights=inputs["pw"], neg_weights=inputs["nw"]) if weighted else {}
            value = loss.process_slcwa_scores(
                leaves[0], negative, batch_filter=mask, **smoothing, **weights
            )
        else:
            leaves = (inputs["pred"].requires_grad_(),)
            value = loss.process_lcwa_scores(
                leaves[0],
                inputs[case["labels"]],
                weights=inputs["lw"] if weighted else None,
                **smoothing,
            )
    except RuntimeError as error:
        return Outcome(error=type(error).__name__)
    return Outcome(value=value.item(), grads=torch.autograd.grad(value, leaves))


def stored_grads(case: Case, stored: Dict[str, Tensor]) -> List[Tensor]:
    """The gradients of a record."""
    names = ("g_pos", "g_neg") if case["path"] == "slcwa" else ("g_pred",)
    return [stored[f"{case['id']}/{name}"] for name in names]
