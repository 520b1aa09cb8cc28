"""besskge_core: knowledge-graph embeddings with Balanced Entity Sampling and Sharing (BESS).

Entities are split over shards; each step takes equally many triples of every shard pair, and one
balanced exchange brings together what is scored. The same program runs in one process for any
number of shards, and is written so that every worker of a cluster can run it.

Start with ``examples/train.py``, :mod:`besskge_core.bess` and :mod:`besskge_core.scoring`.
"""

__version__ = "0.1.0"
