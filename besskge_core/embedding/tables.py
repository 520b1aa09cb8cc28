"""Embedding tables: how they are made, laid out on shards, and moved to another sharding.

A table is initialised in the order of entity IDs and then dealt to the shards, so that one seed
gives the same embeddings for every number of shards. Padding rows are zero.

Axes:
    S: shard      M: rows of a shard's table, padding included      D: width of a row
"""

from __future__ import annotations

import math
from typing import Callable, List, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.registry import Registry
from besskge_core.sharding import Sharding

Initializer = Callable[[Tensor], Tensor]
#: A table, or one initialiser for each part of a row.
Initializers = Union[Tensor, Sequence[Initializer]]

INITIALIZERS: Registry[Initializer] = Registry("initializer")


@INITIALIZERS.register("uniform_norm")
def init_uniform_norm(embedding_table: Tensor) -> Tensor:
    """U[0, 1) entries, then rows of Euclidean norm 1."""
    return nn.functional.normalize(nn.init.uniform_(embedding_table), dim=-1)


@INITIALIZERS.register("xavier_norm")
def init_xavier_norm(embedding_table: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, gain^2 * 2 / D). Glorot and Bengio, AISTATS 2010, with the row as its one fan."""
    return nn.init.normal_(embedding_table, std=gain * math.sqrt(2.0 / embedding_table.shape[-1]))


@INITIALIZERS.register("uniform_rotation")
def init_uniform_rotation(embedding_table: Tensor) -> Tensor:
    """Phases, uniform in [0, 2 pi)."""
    return nn.init.uniform_(embedding_table, 0.0, 2.0 * math.pi)


@INITIALIZERS.register("kge_uniform")
def init_KGE_uniform(
    embedding_table: Tensor, b: float = 1.0, divide_by_embedding_size: bool = True
) -> Tensor:
    """U(-b, b), or U(-b / D, b / D)."""
    bound = b / embedding_table.shape[-1] if divide_by_embedding_size else b
    return nn.init.uniform_(embedding_table, -bound, bound)


@INITIALIZERS.register("kge_normal")
def init_KGE_normal(
    embedding_table: Tensor, std: float = 1.0, divide_by_embedding_size: bool = True
) -> Tensor:
    """N(0, std^2), or N(0, (std / D)^2)."""
    scale = std / embedding_table.shape[-1] if divide_by_embedding_size else std
    return nn.init.normal_(embedding_table, std=scale)


def initialize_entity_embedding(
    sharding: Sharding, initializer: Initializers, row_size: Optional[Sequence[int]] = None
) -> nn.Parameter:
    """The sharded entity table.

    Args:
        sharding: of the entities.
        initializer: a table, (n_entity, D) by entity ID or (S, M, D) as sharded, which is copied;
            or a list with one function for each entry of `row_size`, called with an empty
            (n_entity, size) tensor.
        row_size: widths of the parts of a row; needed with functions.

    Returns:
        (S, M, D), float32 or the dtype of the table given.

    Raises:
        ConfigError: a table of another shape, or functions that do not match `row_size`.
    """
    sharded_shape = (sharding.n_shard, sharding.max_entity_per_shard)
    if isinstance(initializer, Tensor) and initializer.dim() == 3:
        if initializer.shape[:2] != sharded_shape:
            raise ConfigError(
                f"the entity table has shape {tuple(initializer.shape)},"
                f" expected {(*sharded_shape, 'D')} for this sharding"
            )
        _check_width(initializer, "entity", row_size)
        return nn.Parameter(initializer.detach().clone())
    table = _table(sharding.n_entity, "entity", initializer, row_size)
    return nn.Parameter(shard_rows(table, sharding))


def initialize_relation_embedding(
    n_relation_type: int,
    inverse_relations: bool,
    initializer: Initializers,
    row_size: Optional[Sequence[int]] = None,
) -> nn.Parameter:
    """The relation table, replicated on all shards.

    Args:
        n_relation_type: R, relations of the graph.
        inverse_relations: also make embeddings for the R inverse relations.
        initializer: as for entities; a table has shape (R or 2 R, D).
        row_size: as for entities.

    Returns:
        (R or 2 R, D), float32 or the dtype of the table given.
    """
    n_row = 2 * n_relation_type if inverse_relations else n_relation_type
    return nn.Parameter(_table(n_row, "relation", initializer, row_size))


def _table(
    n_row: int, what: str, initializer: Initializers, row_size: Optional[Sequence[int]]
) -> Tensor:
    if isinstance(initializer, Tensor):
        if initializer.dim() != 2 or initializer.shape[0] != n_row:
            raise ConfigError(
                f"the {what} table has shape {tuple(initializer.shape)}, expected ({n_row}, D)"
            )
        _check_width(initializer, what, row_size)
        return initializer.detach().clone()
    if row_size is None or len(initializer) != len(row_size):
        raise ConfigError(
            f"{len(initializer)} initializers for the {what} table, whose row has"
            f" {'no sizes' if row_size is None else f'{len(row_size)} parts'}; give one a part"
        )
    parts: List[Tensor] = [
        make(torch.empty(n_row, size)) for make, size in zip(initializer, row_size)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _check_width(table: Tensor, what: str, row_size: Optional[Sequence[int]]) -> None:
    if row_size is not None and table.shape[-1] != sum(row_size):
        raise ConfigError(
            f"rows of the {what} table are {table.shape[-1]} wide, expected"
            f" {sum(row_size)} = {' + '.join(map(str, row_size))}"
        )


def shard_rows(by_entity: Tensor, sharding: Sharding) -> Tensor:
    """(n_entity, D) by entity ID -> (S, M, D) as sharded, padding rows zero."""
    shape = (sharding.n_shard * sharding.max_entity_per_shard, by_entity.shape[1])
    rows = torch.from_numpy(sharding.flat_row)
    flat = by_entity.new_zeros(shape).index_copy_(0, rows.to(by_entity.device), by_entity)
    return flat.view(sharding.n_shard, sharding.max_entity_per_shard, -1)


def unshard_rows(sharded: Tensor, sharding: Sharding) -> Tensor:
    """(S, M, D) as sharded -> (n_entity, D) by entity ID."""
    rows = torch.from_numpy(sharding.flat_row).to(sharded.device)
    return sharded.flatten(end_dim=1).index_select(0, rows)


def refactor_embedding_sharding(
    entity_embedding: nn.Parameter, old_sharding: Sharding, new_sharding: Sharding
) -> nn.Parameter:
    """The same embeddings, laid out for another sharding, in the same dtype.

    Args:
        entity_embedding: (S, M, D) for `old_sharding`.
        old_sharding: of the table.
        new_sharding: to lay it out for.
    """
    by_entity = unshard_rows(entity_embedding.detach(), old_sharding)
    return nn.Parameter(shard_rows(by_entity, new_sharding), entity_embedding.requires_grad)
