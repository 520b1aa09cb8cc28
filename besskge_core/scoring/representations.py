"""Embeddings as the tables of a score function.

Axes:
    ...: axes of look-ups      D: width of a row, as a formula reads it
"""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from besskge_core.embedding import Embedding, Initializers
from besskge_core.errors import ConfigError
from besskge_core.sharding import Sharding

#: What a table is, or begins with.
Table = Union[Embedding, Initializers]


def as_rows(x: Tensor, n_index: int) -> Tensor:
    """Representations with `n_index` axes of look-ups, (..., *shape) -> (..., D).

    Complex numbers become their real parts, then their imaginary ones, which is how formulas read
    them; in the weight the two of an entry are side by side.
    """
    index, n_entry = x.shape[:n_index], x.shape[n_index:].numel()
    x = x.reshape(*index, n_entry)
    if not x.is_complex():
        return x
    return torch.view_as_real(x.resolve_conj()).transpose(-1, -2).reshape(*index, 2 * n_entry)


def check_entities(embedding: Embedding, sharding: Sharding, width: int, is_complex: bool) -> None:
    """Refuse an embedding that cannot be the entity table.

    Args:
        embedding: as given.
        sharding: of the score function.
        width: D.
        is_complex: whether rows are complex numbers.

    Raises:
        ConfigError: it has another sharding or width, or a dtype that the rows have not.
    """
    own = embedding.sharding
    if own is None or not own.same_rows(sharding):
        raise ConfigError(
            f"the entity embedding has {_described(own)}, the score function {_described(sharding)};"
            " make it with the same: Embedding(sharding=sharding, ...)"
        )
    _check_rows(embedding, "entity", width, is_complex)


def _described(sharding: Optional[Sharding]) -> str:
    if sharding is None:
        return "no sharding"
    return f"one of {sharding.n_entity} entities on {sharding.n_shard} shards"


def check_relations(
    embedding: Embedding, n_relation_type: int, inverse: bool, width: int, is_complex: bool
) -> None:
    """Refuse an embedding that cannot be the relation table.

    Args:
        embedding: as given.
        n_relation_type: relations of the graph.
        inverse: whether there are inverse ones, too.
        width: R.
        is_complex: whether rows are complex numbers.

    Raises:
        ConfigError: it is sharded, is of another number or width, or has a dtype that the rows
            have not.
    """
    n_row = 2 * n_relation_type if inverse else n_relation_type
    of_both = f": {n_relation_type} relations and their inverse ones" if inverse else ""
    if embedding.sharding is not None:
        raise ConfigError(
            "the relation embedding has a sharding, but every shard has all relations; make it"
            f" without: Embedding(max_id={n_row}, ...)"
        )
    if embedding.max_id != n_row:
        raise ConfigError(
            f"the relation embedding has max_id={embedding.max_id}, expected {n_row}{of_both}"
        )
    _check_rows(embedding, "relation", width, is_complex)


def _check_rows(embedding: Embedding, what: str, width: int, is_complex: bool) -> None:
    if embedding.dtype.is_complex and not is_complex:
        raise ConfigError(
            f"the {what} embedding is {embedding.dtype}, but {what} rows of this score function are"
            f" no complex numbers; give a real dtype, and {width} numbers a row"
        )
    found = embedding.weight.shape[-1]
    if found != width:
        wanted = f"shape={width}"
        if is_complex:
            wanted += f", or complex ones with shape={width // 2}"
        raise ConfigError(
            f"the {what} embedding has {found} numbers a row, shape={embedding.shape} of"
            f" {embedding.dtype}, expected {width}: real ones with {wanted}"
        )
