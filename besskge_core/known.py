"""Known answers of queries: (h, r) to tails, (r, t) to heads, as sparse lists.

Filtering takes the known answers of a query out of a ranking. Looked up in sorted keys, that
costs time and memory in the number of answers found, never in queries times entities.
"""

from __future__ import annotations

from typing import Iterable, Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.dataset import KGDataset

#: Triples looked at together.
PIECE = 2**20


class KnownTriples:
    """Answers that are known to be true.

    Args:
        triples: arrays (n, 3) of entity and relation IDs; duplicates count once.
        n_entity: entities of the graph.
        n_relation_type: relations of the graph.
    """

    def __init__(
        self, triples: Iterable[NDArray[np.integer]], n_entity: int, n_relation_type: int
    ) -> None:
        stacked = np.concatenate([np.asarray(part, dtype=np.int64) for part in triples])
        self.n_entity, self.n_relation_type = n_entity, n_relation_type
        self._tails = self._sorted_answers(stacked[:, 0], stacked[:, 1], stacked[:, 2])
        self._heads = self._sorted_answers(stacked[:, 2], stacked[:, 1], stacked[:, 0])

    @classmethod
    def of(cls, dataset: KGDataset) -> KnownTriples:
        """The triples of all parts of a data set."""
        return cls(dataset.triples.values(), dataset.n_entity, dataset.n_relation_type)

    @classmethod
    def answering(cls, dataset: KGDataset, asked: Iterable[NDArray[np.integer]]) -> KnownTriples:
        """Of all triples of a data set, those that answer queries of some triples.

        That is all that filtering the ranking of these triples needs. The others are looked at a
        piece at a time, so that they may lie in files mapped into memory.

        Args:
            dataset: the graph.
            asked: arrays (n, 3) of the triples that are ranked, on both sides.
        """

        def queries(rows: NDArray[np.integer]) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
            """Keys of (h, r) and of (r, t)."""
            head, relation, tail = np.asarray(rows, np.int64).T
            return relation * dataset.n_entity + head, relation * dataset.n_entity + tail

        wanted = [np.unique(np.concatenate(side)) for side in zip(*map(queries, asked))]
        kept = [np.empty((0, 3), np.int32)]
        for part in dataset.triples.values():
            for first in range(0, len(part), PIECE):
                rows = np.asarray(part[first : first + PIECE])
                answers = [np.isin(keys, side) for keys, side in zip(queries(rows), wanted)]
                kept.append(rows[np.logical_or.reduce(answers)] if answers else rows[:0])
        return cls(kept, dataset.n_entity, dataset.n_relation_type)

    def tails(
        self, head: NDArray[np.integer], relation: NDArray[np.integer]
    ) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Known answers of queries (h, r, ?), each (n_query,).

        Returns:
            query (n_answer,), which query, rising; entity (n_answer,), its ID.
        """
        return self._look_up(self._tails, head, relation)

    def heads(
        self, tail: NDArray[np.integer], relation: NDArray[np.integer]
    ) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Known answers of queries (?, r, t); see :meth:`tails`."""
        return self._look_up(self._heads, tail, relation)

    def answers(
        self, side: str, entity: NDArray[np.integer], relation: NDArray[np.integer]
    ) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
        """:meth:`heads` or :meth:`tails`, whichever `side`, "head" or "tail", is asked for."""
        return (self.tails if side == "tail" else self.heads)(entity, relation)

    def _key(self, entity: NDArray[np.integer], relation: NDArray[np.integer]) -> NDArray[np.int64]:
        key: NDArray[np.int64] = np.asarray(relation, np.int64) * self.n_entity + entity
        return key

    def _sorted_answers(
        self, entity: NDArray[np.int64], relation: NDArray[np.int64], answer: NDArray[np.int64]
    ) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
        key = self._key(entity, relation)
        order = np.lexsort((answer, key))
        key, answer = key[order], answer[order]
        first = np.ones(len(key), dtype=bool)
        first[1:] = (key[1:] != key[:-1]) | (answer[1:] != answer[:-1])
        return key[first], answer[first]

    def _look_up(
        self,
        answers: Tuple[NDArray[np.int64], NDArray[np.int64]],
        entity: NDArray[np.integer],
        relation: NDArray[np.integer],
    ) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
        keys, entities = answers
        wanted = self._key(entity, relation)
        first = np.searchsorted(keys, wanted, side="left")
        count = np.searchsorted(keys, wanted, side="right") - first
        query = np.repeat(np.arange(len(wanted)), count)
        within = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
        return query, entities[first[query] + within]
