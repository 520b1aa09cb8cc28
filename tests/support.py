"""What tests build again and again: graphs, models, batches in global IDs, shards as threads."""

from __future__ import annotations

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from besskge_core.bess import ScoreMovingBessKGE
from besskge_core.embedding import unshard_rows
from besskge_core.scoring import SCORE_FUNCTIONS, BaseScoreFunction
from besskge_core.sharding import Sharding

SHARDS = (1, 2, 4, 7)


def _multiplies_halves() -> bool:
    try:
        torch.zeros(1, 1, 1, dtype=torch.float16).bmm(torch.zeros(1, 1, 1, dtype=torch.float16))
    except RuntimeError:
        return False
    return True


#: For tests in float16, which torch 2.0 does not multiply on the CPU.
needs_half = pytest.mark.skipif(
    not _multiplies_halves(), reason="this torch has no float16 products on the CPU"
)

#: For tests of what native operations tell torch about themselves.
needs_opcheck = pytest.mark.skipif(
    not hasattr(torch.library, "opcheck"), reason="this torch has no opcheck"
)


def random_triples(n_entity: int, n_relation: int, n: int, seed: int) -> np.ndarray:
    """Distinct (h, r, t); a quarter of the tails are entity 5."""
    rng = np.random.default_rng(seed)
    size = 3 * n
    rows = np.stack([rng.integers(m, size=size) for m in (n_entity, n_relation, n_entity)], 1)
    rows[rng.random(size) < 0.25, 2] = min(5, n_entity - 1)
    distinct = np.unique(rows, axis=0)
    return rng.permutation(distinct)[:n]


#: Arguments that a score function must be given besides those of all, by `dim`.
EXTRA: Dict[str, Callable[[int], Dict[str, Any]]] = {
    "conve": lambda dim: dict(
        embedding_height=2, embedding_width=dim // 2, kernel_height=2, kernel_width=2,
        output_channels=4,
    ),
}  # fmt: skip


def make_score(
    name: str,
    sharding: Sharding,
    n_relation: int,
    dim: int = 6,
    p: int = 1,
    sharing: bool = False,
    inverse: bool = False,
    dtype: torch.dtype = torch.float64,
    fill: Optional[Callable[[Tensor], Tensor]] = None,
    **changes: Any,
) -> BaseScoreFunction:
    """A registered score function with N(0, 1) tables, the same by entity ID for any sharding.

    In evaluation mode: without dropout, and with the same statistics for every batch.
    """
    cls = SCORE_FUNCTIONS[name]
    options: Dict[str, Any] = dict(
        negative_sample_sharing=sharing, sharding=sharding, n_relation_type=n_relation,
        embedding_size=dim, inverse_relations=inverse, **EXTRA.get(name, lambda dim: {})(dim),
    )  # fmt: skip
    parameters = inspect.signature(cls.__init__).parameters
    if "scoring_norm" in parameters:
        options["scoring_norm"] = p
    generator = torch.Generator().manual_seed(0)
    fill = fill or (lambda table: table.normal_(generator=generator))
    for table in ("entity", "relation"):
        n_part = len(getattr(cls, f"{table}_initializers"))
        options[f"{table}_initializer"] = [fill] * n_part
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for what a formula learns besides the tables
        return cls(**{**options, **changes}).to(dtype).eval()


def by_entity(score_fn: BaseScoreFunction, table: Optional[Tensor] = None) -> Tensor:
    """The entity table, or its gradient, (n_entity, D)."""
    sharded = score_fn.entity_embedding.detach() if table is None else table
    return unshard_rows(sharded.to_dense() if sharded.is_sparse else sharded, score_fn.sharding)


# -- a batch in global IDs ---------------------------------------------------------------------


class GlobalBatch(NamedTuple):
    """What a batch (S, ...) means: triples (Q, 3), candidates (Q, C), sides (Q,), Q = S * B."""

    triples: Tensor
    candidates: Tensor
    heads: Tensor


def global_triples(batch: Dict[str, Tensor], sharding: Sharding) -> Tensor:
    """(S, S, P, 3), [s, s'] with the head on shard s."""
    shard = np.arange(sharding.n_shard)[:, None, None]
    head, tail = (sharding.entity_of(shard, batch[x].numpy()) for x in ("head", "tail"))
    columns = (head, batch["relation"].numpy(), tail.swapaxes(0, 1))
    return torch.from_numpy(np.stack(columns, axis=-1)).long()


def side_of_queries(batch: Dict[str, Tensor], scheme: str) -> Tensor:
    """bool (S * B,): whether the head of each positive is replaced."""
    if scheme == "either":
        return batch["heads_replaced"].flatten()
    n_shard, _, n_positive = batch["head"].shape
    heads = torch.full((n_positive,), scheme == "h")
    if scheme == "ht":
        heads[: n_positive // 2] = True
    return heads.repeat(n_shard * n_shard)


def columns(x: Tensor, batch: Dict[str, Tensor], model: nn.Module) -> Tensor:
    """x (source, destination, A, N) -> (S * B, C), in the order of the model's scores."""
    sampler, n_shard = model.negative_sampler, x.shape[0]
    flat = sampler.flat_negative_format
    pooled = model.score_fn.negative_sample_sharing and not sampler.given
    everyones = isinstance(model, ScoreMovingBessKGE) and (flat or pooled) and not sampler.given
    heads = side_of_queries(batch, sampler.corruption_scheme).view(n_shard, -1)
    if sampler.corruption_scheme == "either":  # one list for both sides
        heads = torch.zeros_like(heads)
    rows = []
    for d in range(n_shard):
        for q, head in enumerate(heads[d]):
            blocks = [q]
            if flat:
                blocks = [1 if sampler.corruption_scheme == "ht" and not head else 0]
            elif pooled:
                blocks = torch.nonzero(heads[d] == head).flatten().tolist()
            if sampler.local_sampling:
                rows.append(rearrange(x[d][:, blocks], "t a n -> (t a n)"))
            elif everyones:
                rows.append(rearrange(x[:, :, blocks], "s t a n -> (s t a n)"))
            else:
                rows.append(rearrange(x[:, d, blocks], "s a n -> (s a n)"))
    return torch.stack(rows)


def negative_ids(batch: Dict[str, Tensor], sharding: Sharding) -> Tensor:
    """IDs of the negatives (source, destination, A, N)."""
    to_entity = torch.from_numpy(sharding.shard_and_idx_to_entity).long()
    source = torch.arange(sharding.n_shard)[:, None, None, None]
    return to_entity[source, batch["negative"].long()]


def global_batch(batch: Dict[str, Tensor], model: nn.Module) -> GlobalBatch:
    """The triples and the candidates that the model must have scored, in the order of its scores."""
    sharding, scheme = model.score_fn.sharding, model.negative_sampler.corruption_scheme
    triples = rearrange(global_triples(batch, sharding), "s t p c -> (s t p) c")
    candidates = columns(negative_ids(batch, sharding), batch, model)
    return GlobalBatch(triples, candidates, side_of_queries(batch, scheme))


def direct_scores(score_fn: BaseScoreFunction, found: GlobalBatch) -> Tuple[Tensor, Tensor]:
    """Scores of the triples (Q,) and of their corruptions (Q, C), one triple at a time."""
    n_padding = score_fn.entity_embedding[..., 0].numel() - score_fn.sharding.n_entity
    table = nn.functional.pad(by_entity(score_fn), (0, 0, 0, n_padding))  # padding rows are zero
    h, r, t = (x[:, None].expand_as(found.candidates) for x in found.triples.T)
    heads = found.heads[:, None]
    h, t = torch.where(heads, found.candidates, h), torch.where(heads, t, found.candidates)
    with torch.no_grad():
        negative = score_fn.score_triple(table[h.flatten()], r.flatten(), table[t.flatten()])
        h, r, t = found.triples.T
        return score_fn.score_triple(table[h], r, table[t]), negative.view(found.candidates.shape)


# -- a batch from global IDs -------------------------------------------------------------------


def batch_of(
    triples: np.ndarray, negatives: np.ndarray, heads: np.ndarray, sharding: Sharding, scheme: str
) -> Tuple[Dict[str, Tensor], Tensor, Tensor]:
    """The one batch in which each triple has just its own negatives, for any sharding.

    Args:
        triples: (T, 3) IDs.
        negatives: (T, K) IDs.
        heads: bool (T,), whose heads are replaced.
        sharding: of the entities.
        scheme: "ht" puts these in the first half of each bucket.

    Returns:
        batch (S, ...) with masks; (Q,) place of each triple or -1; (Q, C) negative IDs or -1.
    """
    n_shard, n_half = sharding.n_shard, 2 if scheme == "ht" else 1
    shard, row = sharding.entity_to_shard, sharding.entity_to_idx
    buckets: Dict[Tuple[int, int, int], List[int]] = {}
    for i, (h, _, t) in enumerate(triples):
        half = 0 if n_half == 1 or heads[i] else 1
        buckets.setdefault((shard[h], shard[t], half), []).append(i)
    half_width = max(map(len, buckets.values()))
    n_positive = half_width * n_half
    n_negative = max(int((shard[negatives] == s).sum(1).max()) for s in range(n_shard))
    place = np.full((n_shard, n_shard, n_positive), -1)
    for (i, j, half), members in buckets.items():
        place[i, j, half * half_width :][: len(members)] = members
    kept = place >= 0
    stand_in = triples[place]  # triple -1 stands in where there is none
    columns = {
        "head": np.where(kept, row[stand_in[..., 0]], 0),
        "relation": stand_in[..., 1],
        "tail": np.where(kept, row[stand_in[..., 2]], 0).swapaxes(0, 1),
        "triple_mask": kept,
    }
    flat_place = place.reshape(n_shard, -1)
    n_query = flat_place.shape[1]
    negative = np.zeros((n_shard, n_shard, n_query, n_negative), dtype=np.int64)
    mask = np.zeros((n_shard, n_query, n_shard, n_negative), dtype=bool)
    ids = np.full((n_shard, n_query, n_shard, n_negative), -1)
    for d in range(n_shard):
        for q, i in enumerate(flat_place[d]):
            for s in range(n_shard):
                own = negatives[i][shard[negatives[i]] == s] if i >= 0 else negatives[0][:0]
                negative[s, d, q, : len(own)] = row[own]
                mask[d, q, s, : len(own)] = True
                ids[d, q, s, : len(own)] = own
    columns.update(negative=negative, negative_mask=mask)
    batch = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in columns.items()}
    batch = {k: x if x.dtype == torch.bool else x.int() for k, x in batch.items()}
    return (
        batch,
        torch.from_numpy(place.ravel()),
        torch.from_numpy(rearrange(ids, "d q s n -> (d q) (s n)")),
    )


# -- shards as threads -------------------------------------------------------------------------


class ThreadExchange:
    """The collectives of one shard of `n_shard`, each in a thread of its own, L = 1."""

    def __init__(self, shards: Shards, rank: int) -> None:
        self.n_shard = self.n_rank = shards.n_shard
        self.rank, self.hosted = rank, range(rank, rank + 1)
        self._shards, self._rank = shards, rank

    def all_to_all(self, blocks: Tensor) -> Tensor:
        return torch.stack([sent[0, self._rank] for sent in self._all(blocks)])[None]

    def all_gather(self, block: Tensor) -> Tensor:
        return torch.stack([sent[0] for sent in self._all(block)])[None]

    def all_reduce(self, block: Tensor) -> Tensor:
        return torch.stack(self._all(block)).sum(0)

    def sum_ranks(self, x: Tensor) -> Tensor:
        return self.all_reduce(x.detach()[None])[0]

    def gather_ranks(self, x: Tensor) -> Tensor:
        return self.all_gather(x.detach()[None])[0]

    def _all(self, sent: Tensor) -> List[Tensor]:
        assert sent.shape[0] == 1, f"one shard a thread, got {tuple(sent.shape)}"
        self._shards.outbox[self._rank] = sent
        self._shards.barrier.wait()
        received = list(self._shards.outbox)
        self._shards.barrier.wait()
        return received


class Shards:
    """`n_shard` shards in lockstep; `run(fn)` calls fn(rank, exchange) on each."""

    def __init__(self, n_shard: int) -> None:
        self.n_shard, self.outbox = n_shard, [torch.empty(0)] * n_shard
        self.barrier = threading.Barrier(n_shard, timeout=30)

    def run(self, fn: Callable[[int, ThreadExchange], Any]) -> List[Any]:
        with ThreadPoolExecutor(self.n_shard) as pool:
            return list(pool.map(lambda i: self._one(fn, i), range(self.n_shard)))

    def _one(self, fn: Callable[[int, ThreadExchange], Any], rank: int) -> Any:
        try:
            return fn(rank, ThreadExchange(self, rank))
        except BaseException:
            self.barrier.abort()  # let the others fail too, rather than wait
            raise
