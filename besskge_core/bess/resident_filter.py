"""Which sampled negatives are true triples, found where the model is trained.

The host finds them as a list, whose length depends on what was drawn (see
:mod:`besskge_core.bess.filtering`); here it is a mask of all pairs, so that no shape does. The true
triples are numbers, sorted once, and a pair is looked for among them.

Axes as in the package's docstring; C: candidates of a positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping

import numpy as np
import torch
from torch import Tensor

from besskge_core.known import KnownTriples
from besskge_core.sharding import Sharding

if TYPE_CHECKING:
    from besskge_core.bess.base import BessKGE


def why_no_filter(known: KnownTriples) -> str:
    """Why known triples cannot be looked up on a device; empty if they can."""
    if 2 * known.n_relation_type * (known.n_entity + 1) ** 2 >= 2**63:
        return f"{known.n_entity} entities are too many to number the true triples in 64 bits"
    return ""


class ResidentFilter:
    """Looks true triples up on a device.

    Args:
        known: the true triples.
        sharding: of the entities; all shards are here.
        device: where they are kept: 16 bytes a triple.
    """

    def __init__(self, known: KnownTriples, sharding: Sharding, device: torch.device) -> None:
        # Rows of no entity all count as one more.
        self._n_id, self._n_relation = known.n_entity + 1, known.n_relation_type
        answers = [np.full(1, -1, dtype=np.int64)]  # so that there is one
        for side, (key, answer) in enumerate((known._tails, known._heads)):
            query = key // known.n_entity * self._n_id + key % known.n_entity
            query += side * self._n_relation * self._n_id
            answers.append(query * self._n_id + answer)
        self._keys = torch.tensor(np.sort(np.concatenate(answers)), device=device)
        rows = np.arange(sharding.max_entity_per_shard + _n_hub(sharding))
        shard = np.arange(sharding.n_shard)[:, None]
        ids = np.minimum(sharding.entity_of(shard, rows[None]), known.n_entity)
        self._entity = torch.tensor(ids.astype(np.int64), device=device)  # (S, rows and hubs)

    def kept(self, module: BessKGE, columns: Mapping[str, Tensor]) -> Tensor:
        """bool (L, B, C), in the order of the scores: False where a negative makes a true triple.

        Args:
            module: whose scores they are.
            columns: what its `forward` takes.
        """
        batch_head, n_positive = columns["head"], columns["head"].shape[-1]
        shard = torch.arange(len(batch_head), device=batch_head.device)[:, None, None]
        head = self._entity[shard, batch_head.long()].flatten(1)
        sent = self._entity[shard, columns["tail"].long()]
        tail = module.exchange.all_to_all(sent).flatten(1)
        relation = columns["relation"].flatten(1).long()
        negative = self._entity[shard.unsqueeze(-1), columns["negative"].long()]
        candidate = module.columns(negative, n_positive)  # (L, 1 or B, C)
        replaced = columns.get("heads_replaced")
        heads = _sides(module, batch_head) if replaced is None else replaced.flatten(1)
        given, inverse = torch.where(heads, tail, head), relation >= self._n_relation
        side = (heads != inverse).long()  # (t, inverse of r, ?) asks for the head of (?, r, t)
        query = (side * self._n_relation + relation % self._n_relation) * self._n_id + given
        wanted = (query * self._n_id).unsqueeze(-1) + candidate
        place = torch.searchsorted(self._keys, wanted)
        return self._keys[place.clamp(max=len(self._keys) - 1)] != wanted


def _n_hub(sharding: Sharding) -> int:
    return 0 if sharding.hub_rows is None else int(sharding.hub_rows.size)


def _sides(module: BessKGE, head: Tensor) -> Tensor:
    """bool (L, B): whose head is replaced, by the corruption scheme."""
    heads = torch.zeros_like(head, dtype=torch.bool)
    for side in module._sides(head.shape[-1]):
        heads[..., side.first : side.last] = side.heads
    return heads.flatten(1)
