"""BESS: distributed scoring of triples and of their negatives, as SPMD programs.

In training, a triple is scored on the shard of its head. What travels is the tails and either the
negatives (:class:`EmbeddingMovingBessKGE`) or the queries and the scores
(:class:`ScoreMovingBessKGE`). Every shard sends and receives equally much, because each step takes
equally many triples of each shard pair. :class:`OneVsAllBessKGE` and :class:`LCWABessKGE` train
against all entities instead of sampled ones, of which none moves. Queries alone, (h, r, ?) or (?, r, t), are answered by
:class:`TopKQueryBessKGE` and :class:`AllScoresBESS`.

Axes, of what the shards hosted by one worker hold:
    L: hosted shard         S: peer shard, *to* or *from* which a block goes
    P: positives of a shard pair             B = S * P: positives that one shard scores
    A: blocks of negatives: 1 for all positives (2 for the scheme "ht"), or B, one a positive
    N: negatives of a block from one peer    C: all negatives of a positive
    E: rows of a shard's table               D: width of an entity row
    H: hubs that live on a shard             K: excluded negatives of a shard

One replica or rank hosts one shard, L = 1; one process may host them all, L = S.
"""

from __future__ import annotations

from besskge_core.bess.against_all import AllEntitiesBessKGE
from besskge_core.bess.base import BessKGE
from besskge_core.bess.grouped import LCWABessKGE
from besskge_core.bess.moving import EmbeddingMovingBessKGE, ScoreMovingBessKGE
from besskge_core.bess.one_vs_all import OneVsAllBessKGE
from besskge_core.bess.queries import AllScoresBESS, TopKQueryBessKGE

__all__ = [
    "AllEntitiesBessKGE",
    "AllScoresBESS",
    "BessKGE",
    "EmbeddingMovingBessKGE",
    "LCWABessKGE",
    "OneVsAllBessKGE",
    "ScoreMovingBessKGE",
    "TopKQueryBessKGE",
]
