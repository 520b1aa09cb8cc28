"""All answers of a query against all entities: the local closed world assumption.

Axes as in the package's docstring, without peers: P queries of a shard, K answers of all queries
that live on a shard.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional

import numpy as np
import torch
from torch import Tensor

from besskge_core.bess.against_all import AllEntitiesBessKGE
from besskge_core.bess.tiled import rows_and_table
from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.loss import LabelledLoss
from besskge_core.loss.entries import wide
from besskge_core.scoring import BaseScoreFunction
from besskge_core.shapes import match_shapes


class LCWABessKGE(AllEntitiesBessKGE):
    """Queries (h, r, ?) or (?, r, t), each once, with all of their answers, against all entities.

    What is not known to be true counts as false (Dettmers et al., AAAI 2018, call it 1-N scoring).
    Batches are of queries partitioned by the shard of the entity that is known.

    Args:
        score_fn: score function, which owns the tables.
        known: the triples that answer the queries.
        loss_fn: loss of scores with labels; None: cross-entropy.
        side: what is asked for, "head" or "tail".
        label_smoothing, max_scores, score_dtype: see the base class. A regulariser of triples has
            none here; that of an :class:`~besskge_core.embedding.Embedding` serves.

    Raises:
        ConfigError: a side that there is not, or that the score function cannot be asked for.
    """

    paired = False

    def __init__(
        self,
        score_fn: BaseScoreFunction,
        known: KnownTriples,
        loss_fn: Optional[LabelledLoss] = None,
        side: str = "tail",
        label_smoothing: float = 0.0,
        max_scores: int = 2**25,
        score_dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(score_fn, loss_fn, label_smoothing, None, max_scores, score_dtype)
        if side not in ("head", "tail"):
            raise ConfigError(f"side is {side!r}, expected 'head' or 'tail'")
        if side == "head" and not score_fn.scores_heads:
            raise ConfigError(
                f"{type(score_fn).__name__} has no query for heads; add inverse triples and ask"
                " for tails"
            )
        self.known, self.side = known, side
        given = "head" if side == "tail" else "tail"
        self.inputs = (given, "relation", "triple_mask", "answer")

    def prepare(self, columns: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Add the answers to a micro-batch of the hosted shards; runs on the host."""
        if "answer" in columns:
            return dict(columns)
        sharding, given = self.score_fn.sharding, columns[self.inputs[0]]
        shard = np.array(self.exchange.hosted)[:, None]
        own = sharding.entity_of(shard, given.cpu().numpy())
        relations = columns["relation"].cpu()
        entity, relation = (  # of everyone's queries, one answer to all
            self.exchange.all_gather(x)[0].flatten().numpy()
            for x in (torch.from_numpy(own), relations)
        )
        query, answer = self.known.answers(self.side, entity, relation)
        place = np.stack([query, sharding.entity_to_idx[answer]], axis=1)
        owner = sharding.entity_to_shard[answer]
        of_shards = [torch.from_numpy(place[owner == i]) for i in self.exchange.hosted]
        most = max(len(x) for x in of_shards)
        padded = torch.full((len(of_shards), most, 2), -1, dtype=torch.int64)
        for into, x in zip(padded, of_shards):
            into[: len(x)] = x
        return {**columns, "answer": padded.to(given.device)}

    def forward(
        self,
        relation: Tensor,
        head: Optional[Tensor] = None,
        tail: Optional[Tensor] = None,
        triple_mask: Optional[Tensor] = None,
        answer: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        """Loss of a micro-batch.

        Args:
            relation: (L, P), relation IDs of the queries.
            head, tail: (L, P), rows here of what is known.
            triple_mask: bool (L, P), False leaves a query out.
            answer: int64 (L, K, 2), everyone's queries, those of the first shard first, with the
                rows here of their answers; -1 is no entry. None: see :meth:`prepare`.

        Returns:
            "loss" (): see :meth:`OneVsAllBessKGE.forward`.

        Raises:
            ShapeError: on other shapes.
        """
        known = head if self.side == "tail" else tail
        if known is None:
            raise ConfigError(f"{self.inputs[0]} is missing: queries for {self.side}s need it")
        if answer is None:
            answer = self.prepare({self.inputs[0]: known, "relation": relation})["answer"]
        match_shapes(known=(known, "L P"), relation=(relation, "L P"), answer=(answer, "L K 2"))
        rows, table = rows_and_table(self.entity_embedding, known)
        rows = self.score_fn.entities(rows, True if triple_mask is None else triple_mask)
        weight = torch.ones_like(relation, dtype=wide(rows))
        if triple_mask is not None:
            weight = weight * triple_mask
        heads = self.side == "head"
        query = self._queries(rows, relation, heads)
        answers: List[Tensor] = [x[x[:, 0] >= 0] for x in answer.unbind()]
        places = [(x[:, 0], x[:, 1]) for x in answers]
        loss = self._against_all(query, heads, places, weight, table)
        return self._outputs(loss, [relation], triple_mask)
