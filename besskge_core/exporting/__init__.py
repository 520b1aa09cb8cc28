"""Trained models for other programs: one safetensors file, or a folder that PyKEEN loads.

Rows are copied from a checkpoint a shard at a time, so that a model may be larger than the memory
that exports it. No pickle is written.
"""

from __future__ import annotations

from besskge_core.exporting.pykeen_folder import export_pykeen
from besskge_core.exporting.pykeen_forms import FORMS as PYKEEN_FORMS
from besskge_core.exporting.pykeen_loader import pykeen_model, pykeen_triples
from besskge_core.exporting.single_file import export_safetensors, exported_dataset, load_exported

__all__ = [
    "PYKEEN_FORMS",
    "export_pykeen",
    "export_safetensors",
    "exported_dataset",
    "load_exported",
    "pykeen_model",
    "pykeen_triples",
]
