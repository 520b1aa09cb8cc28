"""Embedding tables: how they are made, laid out on shards, and looked up.

`tables` makes and shards the bare tables that score functions hold. `module` is :class:`Embedding`,
a table with what belongs to it, in the manner of torch.nn.Embedding and of PyKEEN: `storage` keeps
its rows, and `initializers`, `constrainers`, `normalizers` and `penalties` are what it is given by
name, looked up as `resolving` says; `norms` is the arithmetic that they share.
"""

from __future__ import annotations

from besskge_core.embedding.constrainers import CONSTRAINERS
from besskge_core.embedding.initializers import TABLE_INITIALIZERS, PretrainedInitializer
from besskge_core.embedding.module import Counted, Embedding
from besskge_core.embedding.normalizers import NORMALIZERS
from besskge_core.embedding.penalties import (
    EMBEDDING_REGULARIZERS,
    Combined,
    EmbeddingRegularizer,
    FunctionRegularizer,
    LpNorm,
    NoRegularizer,
    NormLimit,
    Orthogonality,
    PowerSum,
)
from besskge_core.embedding.tables import (
    INITIALIZERS,
    Initializer,
    Initializers,
    hosted_shards,
    hosting,
    init_KGE_normal,
    init_KGE_uniform,
    init_uniform_norm,
    init_uniform_rotation,
    init_xavier_norm,
    initialize_entity_embedding,
    initialize_relation_embedding,
    kept_shards,
    refactor_embedding_sharding,
    shard_rows,
    unshard_rows,
)

__all__ = [
    "CONSTRAINERS",
    "EMBEDDING_REGULARIZERS",
    "INITIALIZERS",
    "NORMALIZERS",
    "TABLE_INITIALIZERS",
    "Combined",
    "Counted",
    "Embedding",
    "EmbeddingRegularizer",
    "FunctionRegularizer",
    "Initializer",
    "Initializers",
    "LpNorm",
    "NoRegularizer",
    "NormLimit",
    "Orthogonality",
    "PowerSum",
    "PretrainedInitializer",
    "hosted_shards",
    "hosting",
    "init_KGE_normal",
    "init_KGE_uniform",
    "init_uniform_norm",
    "init_uniform_rotation",
    "init_xavier_norm",
    "initialize_entity_embedding",
    "initialize_relation_embedding",
    "kept_shards",
    "refactor_embedding_sharding",
    "shard_rows",
    "unshard_rows",
]
