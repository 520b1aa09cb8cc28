"""Embedding tables: how they are made, laid out on shards, and moved to another sharding.

A table is initialised in the order of entity IDs and then dealt to the shards, so that one seed
gives the same embeddings for every number of shards. Padding rows are zero.

Axes:
    S: shards, of which L are hosted      M: rows of a shard's table, padding included      D: width of a row
"""

from __future__ import annotations

import functools
import math
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.registry import Registry
from besskge_core.sharding import Sharding

Initializer = Callable[[Tensor], Tensor]
#: A table, or one initialiser for each part of a row.
Initializers = Union[Tensor, Sequence[Initializer]]

INITIALIZERS: Registry[Initializer] = Registry("initializer")

#: Numbers drawn at a time where only some of the rows are kept.
CHUNK = 2**22

_HOSTED: ContextVar[Optional[Tuple[int, ...]]] = ContextVar("hosted", default=None)


@contextmanager
def hosting(shards: Sequence[int]) -> Iterator[None]:
    """While this lasts, entity tables are made with the rows of these shards alone.

    They are the rows that one worker with all shards would have. Tables are drawn a part at a time,
    so that no worker holds more than its own (but of initialisers that are not known to fill each
    row for itself, which are given the whole table).
    """
    token = _HOSTED.set(tuple(shards))
    try:
        yield
    finally:
        _HOSTED.reset(token)


def hosted_shards(sharding: Sharding, hosted: Optional[Sequence[int]] = None) -> Tuple[int, ...]:
    """The shards whose rows a table is to have: these, or those of :func:`hosting`, or all.

    Raises:
        ConfigError: no such shards.
    """
    found = hosted if hosted is not None else _HOSTED.get()
    shards = tuple(range(sharding.n_shard)) if found is None else tuple(found)
    known = set(range(sharding.n_shard))
    if not shards or not set(shards) <= known or len(set(shards)) < len(shards):
        raise ConfigError(
            f"hosted is {shards}, expected different shards of [0, {sharding.n_shard})"
        )
    return shards


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


#: Initialisers that fill each row for itself.
BY_ROW = (
    init_uniform_norm, init_xavier_norm, init_uniform_rotation, init_KGE_uniform, init_KGE_normal,
    nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.zeros_, nn.init.ones_,
)  # fmt: skip


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
        (L, M, D), float32 or the dtype of the table given; L = S, but in :func:`hosting`.

    Raises:
        ConfigError: a table of another shape, or functions that do not match `row_size`.
    """
    shards = list(hosted_shards(sharding))
    if not isinstance(initializer, Tensor):
        _check_parts(initializer, "entity", row_size)
        parts = [
            _hosted_rows(make, size, sharding, shards)
            for make, size in zip(initializer, row_size or [])
        ]
        return nn.Parameter(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
    if initializer.dim() == 3:
        shapes = [(n, sharding.max_entity_per_shard) for n in (sharding.n_shard, len(shards))]
        if tuple(initializer.shape[:2]) not in shapes:
            raise ConfigError(
                f"the entity table has shape {tuple(initializer.shape)},"
                f" expected {(*shapes[0], 'D')} for this sharding"
            )
        _check_width(initializer, "entity", row_size)
        table = initializer.detach()
        return nn.Parameter(table[shards] if len(table) > len(shards) else table.clone())
    table = _table(sharding.n_entity, "entity", initializer, row_size)
    return nn.Parameter(shard_rows(table, sharding, shards))


def _hosted_rows(make: Initializer, size: int, sharding: Sharding, shards: List[int]) -> Tensor:
    """A part of the rows (L, M, size) of some shards, drawn by entity ID."""
    n_entity, whole = sharding.n_entity, len(shards) == sharding.n_shard
    plain = make.func if isinstance(make, functools.partial) else make
    if whole or plain not in BY_ROW:
        return shard_rows(make(torch.empty(n_entity, size)), sharding, shards)
    # torch draws normal numbers by 16: pieces that are multiples of it have the bits of the whole.
    n_row = max(CHUNK // size // 16, 1) * 16
    bounds = [*range(0, n_entity, n_row), n_entity]
    if len(bounds) > 2 and (bounds[-1] - bounds[-2]) * size < 16:
        del bounds[-2]
    table = torch.zeros(len(shards), sharding.max_entity_per_shard, size)
    here = np.full(sharding.n_shard, -1)
    here[shards] = np.arange(len(shards))
    for first, last in zip(bounds, bounds[1:]):
        drawn = make(torch.empty(last - first, size))
        place = here[sharding.entity_to_shard[first:last]]
        kept = np.flatnonzero(place >= 0)
        row = sharding.entity_to_idx[first:last][kept].astype(np.int64)
        table[torch.from_numpy(place[kept]), torch.from_numpy(row)] = drawn[torch.from_numpy(kept)]
    return table


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
    _check_parts(initializer, what, row_size)
    parts: List[Tensor] = [
        make(torch.empty(n_row, size)) for make, size in zip(initializer, row_size or [])
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _check_parts(
    initializer: Sequence[Initializer], what: str, row_size: Optional[Sequence[int]]
) -> None:
    if row_size is None or len(initializer) != len(row_size):
        raise ConfigError(
            f"{len(initializer)} initializers for the {what} table, whose row has"
            f" {'no sizes' if row_size is None else f'{len(row_size)} parts'}; give one a part"
        )


def _check_width(table: Tensor, what: str, row_size: Optional[Sequence[int]]) -> None:
    if row_size is not None and table.shape[-1] != sum(row_size):
        raise ConfigError(
            f"rows of the {what} table are {table.shape[-1]} wide, expected"
            f" {sum(row_size)} = {' + '.join(map(str, row_size))}"
        )


def shard_rows(
    by_entity: Tensor, sharding: Sharding, shards: Optional[Sequence[int]] = None
) -> Tensor:
    """(n_entity, D) by entity ID -> (L, M, D), of these shards or all, padding rows zero."""
    chosen = list(range(sharding.n_shard) if shards is None else shards)
    ids = torch.from_numpy(sharding.shard_and_idx_to_entity[chosen].astype(np.int64))
    rows = by_entity.new_zeros((*ids.shape, by_entity.shape[1]))
    real = (ids < sharding.n_entity).to(by_entity.device)
    rows[real] = by_entity[ids.to(by_entity.device)[real]]
    return rows


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


def kept_shards(table: nn.Parameter, hosted: Sequence[int], shards: Sequence[int]) -> nn.Parameter:
    """Of the rows (L, M, D) of hosted shards, those of some of them.

    Raises:
        ConfigError: some of these are not here.
    """
    missing = sorted(set(shards) - set(hosted))
    if missing:
        raise ConfigError(f"rows of the shards {missing} are not here; here are {tuple(hosted)}")
    places = [list(hosted).index(shard) for shard in shards]
    return nn.Parameter(table.detach()[places], table.requires_grad)
