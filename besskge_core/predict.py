"""Answers to (h, r, ?), (?, r, t) and (h, ?, t) by label: the best k, with what is known of them.

Scores of all entities are walked through in tiles; of each tile only its best k go on, so that
nothing of the size queries x entities is held beyond `max_scores`. Equal scores are ordered by
ID, and a candidate whose score is not a number, or -inf, is no answer.

Axes:
    Q: queries      T: entities of a tile      K: answers of a query
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from besskge_core.all_entities import SIDES, AllEntityScorer, evaluating, marked_rows
from besskge_core.counting import triple_keys
from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange
from besskge_core.known import KnownTriples
from besskge_core.ops import Filter
from besskge_core.scoring import BaseScoreFunction
from besskge_core.top_k import BestSoFar, TopK
from besskge_core.vocabulary import Label, Vocabulary

__all__ = ["Answer", "Predictor", "TopK"]


@dataclass(frozen=True)
class Answer:
    """One candidate for the missing part of a triple.

    Attributes:
        rank: from 1.
        id: of the entity or relation.
        label: its identifier in the source, or its ID if there are none.
        name: of the entity, for people to read, if there is one.
        score: higher is more plausible.
        known: part of the data set that has the triple, or None.
    """

    rank: int
    id: int
    label: str
    name: Optional[str]
    score: float
    known: Optional[str]


class Predictor:
    """Answers queries with a trained model.

    Args:
        score_fn: the model; it is put in evaluation mode while it answers.
        dataset: its graph, which gives labels and marks known answers.
        known: the triples that `filter_known` takes out; by default those of all parts.
        max_scores: scores held at a time; bounds the memory, never changes an answer.
        exchange: of the ranks that have the rows, all of which ask the same and get the same
            answers; None: all are here.
    """

    def __init__(
        self,
        score_fn: BaseScoreFunction,
        dataset: KGDataset,
        known: Optional[KnownTriples] = None,
        max_scores: int = 2**25,
        exchange: Optional[Exchange] = None,
    ) -> None:
        sizes = score_fn.sharding.n_entity, score_fn.n_relation_type
        if sizes != (dataset.n_entity, dataset.n_relation_type):
            raise ConfigError(
                f"the model has {sizes[0]} entities and {sizes[1]} relations, the data set"
                f" {dataset.n_entity} and {dataset.n_relation_type}"
            )
        self.score_fn, self.dataset = score_fn, dataset
        self.entity_vocabulary = Vocabulary(
            "entity", dataset.n_entity, dataset.entity_dict, dataset.entity_names
        )
        self.relation_vocabulary = Vocabulary(
            "relation", dataset.n_relation_type, dataset.relation_dict
        )
        self._scorer = AllEntityScorer(score_fn, max_scores, exchange)
        self._known = known

    # -- by label ----------------------------------------------------------------------------------

    def tails(
        self, head: Label, relation: Label, k: int = 10, filter_known: bool = False
    ) -> List[Answer]:
        """The best answers of (head, relation, ?); labels are identifiers, names or IDs.

        Raises:
            ConfigError: an unknown or ambiguous label, or k below 1.
        """
        return self.answers([(head, relation, None)], k, filter_known)[0]

    def heads(
        self, relation: Label, tail: Label, k: int = 10, filter_known: bool = False
    ) -> List[Answer]:
        """The best answers of (?, relation, tail); see :meth:`tails`."""
        return self.answers([(None, relation, tail)], k, filter_known)[0]

    def relations(
        self, head: Label, tail: Label, k: int = 10, filter_known: bool = False
    ) -> List[Answer]:
        """The best answers of (head, ?, tail); see :meth:`tails`."""
        return self.answers([(head, None, tail)], k, filter_known)[0]

    def answers(
        self,
        queries: Sequence[Tuple[Optional[Label], Optional[Label], Optional[Label]]],
        k: int = 10,
        filter_known: bool = False,
    ) -> List[List[Answer]]:
        """Answers of many queries at once.

        Args:
            queries: head, relation and tail, of which just one is None.
            k: answers to each.
            filter_known: leave out answers that make a known triple.

        Raises:
            ConfigError: an unknown or ambiguous label, a query of another form, or k below 1.
        """
        by_side: Dict[str, List[int]] = defaultdict(list)
        ids = np.zeros((len(queries), 3), dtype=np.int64)
        words = (self.entity_vocabulary, self.relation_vocabulary, self.entity_vocabulary)
        for i, query in enumerate(queries):
            missing = [j for j, label in enumerate(query) if label is None]
            if len(missing) != 1:
                raise ConfigError(
                    f"a query has two of head, relation and tail, got {3 - len(missing)}"
                )
            by_side[("head", "relation", "tail")[missing[0]]].append(i)
            for j, label in enumerate(query):
                ids[i, j] = -1 if label is None else words[j].id(label)
        answers: List[List[Answer]] = [[] for _ in queries]
        for side, rows in by_side.items():
            of_side = ids[rows]
            if side == "relation":
                found = self.top_relations(of_side[:, 0], of_side[:, 2], k, filter_known)
            else:
                given = of_side[:, 2 if side == "head" else 0]
                found = self.top_k(side, given, of_side[:, 1], k, filter_known)
            for i, answer in zip(rows, self._labelled(side, of_side, found)):
                answers[i] = answer
        return answers

    # -- by ID -------------------------------------------------------------------------------------

    def top_k(
        self,
        side: str,
        entities: ArrayLike,
        relations: ArrayLike,
        k: int = 10,
        filter_known: bool = False,
        candidates: Optional[ArrayLike] = None,
    ) -> TopK:
        """The best entities for one side of triples.

        Args:
            side: the side asked for, "head" or "tail".
            entities: (Q,), IDs of the entities on the other side.
            relations: (Q,), IDs.
            k: answers to each query; fewer if there are fewer entities.
            filter_known: leave out answers that make a known triple.
            candidates: IDs of the entities that may be answers; by default all.

        Raises:
            ConfigError: an ID out of range, another side, or k below 1.
        """
        if side not in SIDES:
            raise ConfigError(f"unknown side {side!r}; expected one of {SIDES}")
        entity, relation = self._checked_ids(k, entity=entities, relation=relations)
        allowed = self._allowed_rows(candidates)
        size = self._scorer.batch_size
        with evaluating(self.score_fn):
            found = [
                self._best_entities(side, entity[i : i + size], relation[i : i + size], k, allowed,
                                    filter_known)
                for i in range(0, len(entity), size)
            ]  # fmt: skip
        return _joined(found, k)

    def top_relations(
        self, heads: ArrayLike, tails: ArrayLike, k: int = 10, filter_known: bool = False
    ) -> TopK:
        """The best relations of pairs, without inverse ones; see :meth:`top_k`."""
        head, tail = self._checked_ids(k, head=heads, tail=tails)
        with evaluating(self.score_fn):
            found = [
                self._best_relations(h, t, k, filter_known)
                for h, t in zip(head.tolist(), tail.tolist())
            ]
        return _joined(found, k)

    def known_part(self, triples: NDArray[np.integer]) -> List[Optional[str]]:
        """Part of the data set that has each triple of (n, 3), the first of several, or None."""
        keys, part_of_key = self._parts
        if not len(keys):
            return [None] * len(triples)
        names = list(self.dataset.triples)
        wanted = triple_keys(triples, self.dataset.n_entity, self.dataset.n_relation_type)
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        hit = keys[place] == wanted
        return [names[part_of_key[p]] if found else None for p, found in zip(place, hit)]

    # -- one batch ---------------------------------------------------------------------------------

    def _best_entities(
        self,
        side: str,
        entity: NDArray[np.int64],
        relation: NDArray[np.int64],
        k: int,
        allowed: Optional[Tensor],
        filter_known: bool,
    ) -> TopK:
        table, sharding = self.score_fn.entity_embedding, self.score_fn.sharding
        entity_of_row = torch.from_numpy(sharding.shard_and_idx_to_entity.ravel()).to(table.device)
        given = torch.from_numpy(sharding.flat_row[entity]).to(table.device)
        known = self._known_rows(side, entity, relation) if filter_known else None
        best = BestSoFar(len(entity), table)
        for first, scores in self._scorer.tiles(
            side, given, torch.from_numpy(relation).to(table.device)
        ):
            tile = slice(first, first + scores.shape[1])
            if allowed is not None:
                scores = scores.masked_fill(~allowed[tile], -math.inf)
            best.add(scores, entity_of_row[tile], k, known, first)
        return best.of_ranks(self._scorer.exchange, k).result()

    def _best_relations(self, head: int, tail: int, k: int, filter_known: bool) -> TopK:
        table, flat_row = self.score_fn.entity_embedding, self.score_fn.sharding.flat_row
        every = np.arange(self.dataset.n_relation_type)
        rows = self._scorer.rows(torch.from_numpy(flat_row[[head, tail]]).to(table.device))
        h, t = (x.expand(len(every), -1) for x in self.score_fn.entities(rows))
        relation = torch.from_numpy(every).to(table.device)
        known = None
        if filter_known:
            found, known_tail = self._known_triples.tails(np.full_like(every, head), every)
            here = torch.from_numpy(found[known_tail == tail]).to(table.device)
            known = Filter.of(torch.zeros_like(here), here, 1)
        best = BestSoFar(1, table)
        best.add(self.score_fn.score_triple(h, relation, t)[None], relation, k, known)
        return best.result()

    def _known_rows(
        self, side: str, entity: NDArray[np.int64], relation: NDArray[np.int64]
    ) -> Filter:
        """Flat rows of the entities that are known to answer the queries."""
        known = self._known_triples
        query, answer = known.answers(side, entity, relation)
        device, rows = self.score_fn.entity_embedding.device, self.score_fn.sharding.flat_row
        row = torch.from_numpy(rows[answer]).to(device)
        return Filter.of(torch.from_numpy(query).to(device), row, len(entity))

    def _allowed_rows(self, candidates: Optional[ArrayLike]) -> Optional[Tensor]:
        """bool, by flat row: whether the entity may be an answer."""
        if candidates is None:
            return None
        (entity,) = self._checked_ids(1, candidate=candidates)
        allowed = marked_rows(self.score_fn.sharding, entity)
        return allowed.to(self.score_fn.entity_embedding.device)

    def _checked_ids(self, k: int, **ids: ArrayLike) -> List[NDArray[np.int64]]:
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        arrays = [np.asarray(x, dtype=np.int64).reshape(-1) for x in ids.values()]
        if len({len(array) for array in arrays}) > 1:
            counts = " and ".join(f"{len(x)} {name} IDs" for name, x in zip(ids, arrays))
            raise ConfigError(f"got {counts}, expected one of each for a query")
        for name, array in zip(ids, arrays):
            n = self.relation_vocabulary.n if name == "relation" else self.entity_vocabulary.n
            if len(array) and not 0 <= array.min() <= array.max() < n:
                raise ConfigError(
                    f"{name} IDs run from {array.min()} to {array.max()}, expected some of [0, {n})"
                )
        return arrays

    @cached_property
    def _known_triples(self) -> KnownTriples:
        return self._known or KnownTriples.of(self.dataset)

    @cached_property
    def _parts(self) -> Tuple[NDArray[np.generic], NDArray[np.intp]]:
        """Rising keys of all triples, and the number of the first part that has each."""
        sizes = self.dataset.n_entity, self.dataset.n_relation_type
        keys = [triple_keys(triples, *sizes) for triples in self.dataset.triples.values()]
        part = np.repeat(np.arange(len(keys)), [len(x) for x in keys])
        unique, first = np.unique(np.concatenate(keys), return_index=True)
        return unique, part[first]

    def _labelled(
        self, side: str, queries: NDArray[np.int64], found: TopK
    ) -> Iterator[List[Answer]]:
        column = ("head", "relation", "tail").index(side)
        words = self.relation_vocabulary if side == "relation" else self.entity_vocabulary
        for query, ids, scores in zip(queries, found.id, found.score):
            triples = np.tile(query, (len(ids), 1))
            triples[:, column] = ids
            real = ids >= 0
            pairs = zip(ids[real].tolist(), scores[real].tolist(), self.known_part(triples[real]))
            yield [
                Answer(rank, i, words.label(i), words.name(i), score, part)
                for rank, (i, score, part) in enumerate(pairs, start=1)
            ]


def _joined(found: List[TopK], k: int) -> TopK:
    if not found:
        return TopK(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))
    return TopK(*(np.concatenate(column) for column in zip(*found)))
