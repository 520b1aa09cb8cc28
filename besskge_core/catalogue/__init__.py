"""Data sets by name: benchmarks from the literature, and `family`, which is made on the spot.

`benchmarks` says which there are and finds them, `download` fetches them, `family` is the generator.
"""

from __future__ import annotations

from besskge_core.catalogue.benchmarks import (
    ARCHIVES,
    BENCHMARKS,
    GENERATORS,
    cache_folder,
    hard_negatives,
    load_dataset,
)

__all__ = ["ARCHIVES", "BENCHMARKS", "GENERATORS", "cache_folder", "hard_negatives", "load_dataset"]
