"""Bytes that a worker sends to others in a step, one shard a worker.

A collective of n workers moves, from each of them: an all-to-all (n - 1) / n of what it holds, as
its own part stays; an all-gather of a block n - 1 times the block; the sum that comes back as
its gradient the same; a sum over all workers 2 (n - 1) / n of it. What is gathered or exchanged on
the way to the loss is summed or exchanged back with the gradients, so that counts twice.

Letters:
    n: workers, each with one shard      B: positives that a shard scores
    N: rows of negatives that a shard receives, its own ones included
    C: candidates of a positive          D: width of an entity row
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from besskge_core.errors import ConfigError

SCHEMES = ("embedding", "score", "all")


class Traffic(NamedTuple):
    """Bytes that a worker sends in a step.

    Attributes:
        rows: of entities, and their gradients.
        queries: and their gradients.
        scores: and their gradients.
        statistics: sums over all entities, weights, masks: what has no gradient to send.
    """

    rows: int
    queries: int = 0
    scores: int = 0
    statistics: int = 0

    @property
    def total(self) -> int:
        return sum(self)


def traffic(
    scheme: str,
    n_worker: int,
    n_positive: int,
    n_negative: int,
    width: int,
    itemsize: int = 4,
    *,
    query_width: Optional[int] = None,
    n_side: int = 1,
    n_hub: int = 0,
    tails_return: bool = True,
) -> Traffic:
    """What a worker sends in a step, forwards and backwards, but for dense gradients.

    "embedding" sends tails and negatives, and their gradients return:

        2 (B + N) D s (n - 1) / n

    "score" sends tails, all queries to everyone, and the scores of its own negatives:

        2 (B D s (n - 1) / n + (n - 1) B Q s + B C s (n - 1) / n)

    where Q is the width of a query, and N stands for C. "all" sends tails, and for each side
    queries and what the softmax needs: of n B queries the log-sum-exp over its entities, of 4 bytes,
    to everyone; a weight of each of its queries to everyone; a sum of n B counts; and once the
    mask of its tails, a byte each:

        2 B D s (n - 1) / n + sides (n - 1) B (2 Q s + 4 n + 12) + (n - 1) B / n

    where the first term is half as large if nothing depends on the rows of tails (`tails_return`).

    A hub's row goes to everyone, and its gradient returns, 2 (n - 1) hubs D s more; which tails are
    hubs is told in 4 bytes each. What `corruption` "either" and `augment_negative` tell is not
    counted.

    Args:
        scheme: one of :data:`SCHEMES`.
        n_worker: n.
        n_positive: B, a multiple of n.
        n_negative: N for "embedding", C for "score", ignored for "all": candidates of a shard's
            positives, or B times those of one if each has its own (N only).
        width: D.
        itemsize: s, bytes of a number.
        query_width: Q; None: D.
        n_side: sides that scheme "all" asks for.
        n_hub: hubs that live on a shard.
        tails_return: gradients of tails come back in scheme "all": heads are asked for, or there is
            a regulariser or a loss of relations.

    Raises:
        ConfigError: another scheme, or sizes that cannot be.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"unknown scheme {scheme!r}; expected one of {list(SCHEMES)}")
    _at_least_one(n_worker=n_worker, n_positive=n_positive, width=width, itemsize=itemsize)
    n, others = n_worker, n_worker - 1
    row, query = width * itemsize, (query_width or width) * itemsize
    hubs = 2 * others * n_hub * row
    told = 4 * others * n_positive // n if n_hub else 0
    tails = 2 * n_positive * row * others // n
    if scheme == "embedding":
        rows = 2 * (n_positive + n_negative) * row * others // n
        return Traffic(hubs + rows, statistics=told)
    if scheme == "score":
        scores = 2 * n_positive * n_negative * itemsize * others // n
        return Traffic(hubs + tails, 2 * others * n_positive * query, scores, told)
    of_sides = n_side * others * n_positive * (4 * n + 12)
    masks = others * n_positive // n
    tails = tails if tails_return else tails // 2
    return Traffic(tails, n_side * 2 * others * n_positive * query, 0, of_sides + masks)


def bytes_sent(scheme: str, n_worker: int, n_positive: int, n_negative: int, width: int,
               itemsize: int = 4, **more: Any) -> int:  # fmt: skip
    """The sum of :func:`traffic`, whose arguments these are; 0 for one worker.

    >>> bytes_sent("embedding", 4, n_positive=512, n_negative=256, width=200)
    921600
    """
    return traffic(scheme, n_worker, n_positive, n_negative, width, itemsize, **more).total


def all_reduce_bytes(n_number: int, n_worker: int, itemsize: int = 4) -> int:
    """What a worker sends to sum a dense gradient over all: 2 (n - 1) / n of it, by a ring.

    That of relations, and of what else a score function learns besides entities, in each step.

    Args:
        n_number: numbers of the gradient.
        n_worker: n.
        itemsize: bytes of a number.
    """
    _at_least_one(n_worker=n_worker)
    return 2 * (n_worker - 1) * n_number * itemsize // n_worker


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1, got {size}")
