"""Which sampled negatives are true triples: found on the host as a sparse list, and excluded."""

from __future__ import annotations

import math
from typing import List, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from besskge_core.bess.layout import Scored
from besskge_core.known import KnownTriples


def known_candidates(
    known: KnownTriples,
    triples: NDArray[np.integer],
    heads: NDArray[np.bool_],
    candidates: NDArray[np.integer],
) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places where a candidate makes a known triple.

    Args:
        known: the true triples.
        triples: (B, 3) IDs; relations from `n_relation_type` on are inverse ones.
        heads: bool (B,), whose heads are replaced.
        candidates: (1 or B, C) IDs; 1 where all triples have the same.

    Returns:
        triple (K,) and column (K,), each pair once.
    """
    query, answer = _answers(known, triples, heads)
    if len(candidates) == 1 and len(triples) != 1:
        order = np.argsort(candidates[0], kind="stable")
        ids = candidates[0][order]
        first = np.searchsorted(ids, answer, side="left")
        count = np.searchsorted(ids, answer, side="right") - first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(query, count), order[np.repeat(first, count) + within]
    keys = np.sort(query * known.n_entity + answer)
    wanted = np.arange(len(triples))[:, None] * known.n_entity + candidates
    place = np.searchsorted(keys, wanted)
    found = np.append(keys, -1)[place] == wanted
    triple, column = np.nonzero(found)
    return triple, column


def pad_pairs(pairs: List[Tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Tensor:
    """The pairs of each shard -> int32 (L, K, 2), -1 where a shard has fewer."""
    width = max(len(query) for query, _ in pairs)
    padded = np.full((len(pairs), width, 2), -1, dtype=np.int32)
    for row, (query, column) in zip(padded, pairs):
        row[: len(query), 0], row[: len(query), 1] = query, column
    return torch.from_numpy(padded)


def _answers(
    known: KnownTriples, triples: NDArray[np.integer], heads: NDArray[np.bool_]
) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Known answers of the queries: which query, and the entity."""
    n_relation = known.n_relation_type
    head, relation, tail = np.asarray(triples, dtype=np.int64).T
    given, inverse = np.where(heads, tail, head), relation >= n_relation
    asks_heads = heads != inverse  # (t, inverse of r, ?) asks for the head of (?, r, t)
    found = []
    for look_up, chosen in ((known.heads, asks_heads), (known.tails, ~asks_heads)):
        places = np.flatnonzero(chosen)
        query, answer = look_up(given[places], relation[places] % n_relation)
        found.append((places[query], answer))
    query, answer = (np.concatenate(column) for column in zip(*found))
    return query, answer


def exclude_pairs(scored: Scored, pairs: Tensor) -> Scored:
    """Take out the negatives at (L, K, 2)."""
    shard, entry = (pairs[..., 0] >= 0).nonzero(as_tuple=True)
    query, column = pairs[shard, entry].long().unbind(-1)
    place = (shard, query, column)
    never = scored.negative.new_full((), -math.inf)
    if scored.mask is not None:
        mask = scored.mask.index_put(place, torch.zeros_like(scored.mask[0, 0, 0]))
        return scored._replace(negative=scored.negative.index_put(place, never), mask=mask)
    n_negative = torch.full_like(scored.positive, scored.negative.shape[-1], dtype=torch.int64)
    n_negative.index_put_(place[:2], torch.full_like(query, -1), accumulate=True)
    # In place: these scores are nobody else's, and a copy of them is dear.
    return scored._replace(negative=scored.negative.index_put_(place, never), n_negative=n_negative)
