"""Triples to train on, as PyKEEN's users pass them: IDs in a tensor, and how many there are.

Axes:
    N: triples
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError, ShapeError


@dataclass(frozen=True, eq=False)
class TriplesFactory:
    """Triples of one part of a graph.

    Attributes:
        mapped_triples: int64 (N, 3): head, relation, tail.
        num_entities: entities of the graph.
        num_relations: relations of the graph, without inverse ones.
        create_inverse_triples: whether models learn each relation in both directions; the inverse
            of relation r is `num_relations` + r.

    Raises:
        ShapeError: triples of another shape.
        ConfigError: IDs outside of the graph.
    """

    mapped_triples: Tensor
    num_entities: int
    num_relations: int
    create_inverse_triples: bool = False

    def __post_init__(self) -> None:
        triples = self.mapped_triples
        if triples.dim() != 2 or triples.shape[1] != 3 or triples.dtype.is_floating_point:
            raise ShapeError(
                f"mapped_triples is {triples.dtype} {tuple(triples.shape)}, expected integers (N, 3)"
            )
        bounds = (("head", self.num_entities), ("relation", self.num_relations))
        for i, (name, n) in enumerate((*bounds, ("tail", self.num_entities))):
            column = triples[:, i]
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < n:
                raise ConfigError(
                    f"{name} IDs run from {int(column.min())} to {int(column.max())}, expected"
                    f" [0, {n})"
                )

    @classmethod
    def from_dataset(
        cls, dataset: KGDataset, part: str = "train", create_inverse_triples: bool = False
    ) -> TriplesFactory:
        """The triples of a part of a data set."""
        triples = torch.from_numpy(dataset.triples[part].astype(np.int64))
        return cls(triples, dataset.n_entity, dataset.n_relation_type, create_inverse_triples)

    @classmethod
    def of(cls, given: Any, part: str = "train") -> TriplesFactory:
        """From a data set's part, or anything with `mapped_triples`, such as one of PyKEEN's.

        Raises:
            ConfigError: something else, or relations that PyKEEN has interleaved with inverse ones.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, KGDataset):
            return cls.from_dataset(given, part)
        try:
            triples, n_entity = given.mapped_triples, int(given.num_entities)
        except AttributeError:
            raise ConfigError(
                f"triples_factory is {type(given).__name__}, expected a KGDataset, a TriplesFactory,"
                " or an object with mapped_triples, num_entities and num_relations"
            ) from None
        inverse = bool(getattr(given, "create_inverse_triples", False))
        # With PyKEEN `num_relations` counts inverse relations, too.
        n_relation = int(getattr(given, "real_num_relations", given.num_relations))
        return cls(torch.as_tensor(triples).long(), n_entity, n_relation, inverse)

    @property
    def sizes(self) -> Tuple[int, int]:
        """Entities and relations."""
        return self.num_entities, self.num_relations

    @property
    def triples(self) -> NDArray[np.int32]:
        """int32 (N, 3)."""
        ids: NDArray[np.int32] = self.mapped_triples.cpu().numpy().astype(np.int32)
        return ids

    def as_dataset(self, part: str = "train") -> KGDataset:
        """A data set with these triples as one part."""
        row = np.arange(len(self.mapped_triples))
        return KGDataset(self.num_entities, self.num_relations, {part: self.triples}, {part: row})
