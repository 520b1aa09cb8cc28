"""Which shard owns an entity, and which shard pair a triple belongs to.

BESS (arXiv 2211.12281) splits the entities over `n_shard` workers at random (`entities`), and sorts
the triples into buckets by the shards of head and tail (`triples`). A bucket is a shard pair (i, j)
for "ht_shardpair", or one shard for "h_shard" and "t_shard". Hubs, entities that every shard knows,
let the buckets be even (`balance`).

Words: an *entity ID* is global; its *row* is the place in its shard's table. Arrays keep
upstream's names, in which a row is called `idx`.
"""

from __future__ import annotations

from besskge_core.sharding.balance import entity_degree, most_frequent_entities
from besskge_core.sharding.entities import Sharding
from besskge_core.sharding.triples import PARTITION_MODES, PartitionedTripleSet

__all__ = [
    "PARTITION_MODES",
    "PartitionedTripleSet",
    "Sharding",
    "entity_degree",
    "most_frequent_entities",
]
