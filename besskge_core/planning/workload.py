"""What a step of a configuration consists of, in numbers: nothing of the graph's size is made.

Letters, of one shard:
    n: shards      B: positives that it scores      C: candidates of each
    N: rows of negatives that it holds or receives      D, R: widths of entity and relation rows
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

import torch

from besskge_core.bess.tiled import TileShape
from besskge_core.errors import ConfigError
from besskge_core.loss import LOSSES, CrossEntropyLoss
from besskge_core.loss.rules import rule_of
from besskge_core.ops.rules import PER_ROW, STATES
from besskge_core.planning.traffic import Traffic, all_reduce_bytes, traffic
from besskge_core.scoring.native_form import native_form
from besskge_core.sharding import Sharding
from besskge_core.training.build import build_loss, make_score_function, negatives_per_pair
from besskge_core.training.config import ONLY_ON_IPUS, TrainingConfig

#: Bytes of a number of the tables.
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Model(NamedTuple):
    """Sizes of a score function, whatever the graph.

    Attributes:
        entity_width, relation_width: D, R.
        query_width: numbers of a query, which may travel.
        n_relation_table: rows of relations for each relation of the graph.
        n_other: numbers learned besides the tables.
        comparison: how candidates are compared: "dot", "l1", "l2", "modulus"; or "other", which is
            computed by broadcasting.
        is_native: one operation computes scores, loss and gradients where all shards are here.
    """

    entity_width: int
    relation_width: int
    query_width: int
    n_relation_table: int
    n_other: int
    comparison: str
    is_native: bool


class State(NamedTuple):
    """Numbers of float32 that an optimiser keeps: for each entry of a table, and for each row."""

    of_entry: int
    of_row: int


@dataclass(frozen=True)
class Workload:
    """A step, as seen by one worker, and the tables behind it.

    Attributes:
        model: sizes of the score function.
        scheme: what travels; see :mod:`besskge_core.planning.traffic`.
        n_worker: workers.
        n_shard: n.
        n_entity, n_relation: of the graph.
        n_triple: trained on, with the inverse ones.
        n_hub: hubs that live on a shard.
        n_positive: B.
        n_candidate: C.
        n_negative_row: N.
        n_side: sides that are asked for, one after the other.
        tails_return: whether gradients of tails are sent back, for scheme "all".
        per_triple: each positive has its own candidates.
        is_fused: scores, loss and gradients are one operation.
        state: numbers of optimiser state of an entry, and of a row besides.
        itemsize: bytes of a number of the tables.
        is_softmax: all entities are scored by inner products for cross-entropy.
        is_regularized: there is a penalty of the rows of positives.
        half_scores: candidates are scored in 16 bits.
        max_scores: held at a time, for scheme "all".
        rigid: each triple once an epoch.
        imbalance: largest shard pair over the mean.
    """

    model: Model
    scheme: str
    n_worker: int
    n_shard: int
    n_entity: int
    n_relation: int
    n_triple: int
    n_hub: int
    n_positive: int
    n_candidate: int
    n_negative_row: int
    n_side: int
    tails_return: bool
    per_triple: bool
    is_fused: bool
    state: State
    itemsize: int
    is_softmax: bool
    is_regularized: bool
    half_scores: bool
    max_scores: int
    rigid: bool
    imbalance: float

    @property
    def n_host(self) -> int:
        """Shards that a worker hosts."""
        return self.n_shard // self.n_worker

    @property
    def n_row(self) -> int:
        """Rows of a shard's table; where there are hubs, one of them is padding."""
        return -(-self.n_entity // self.n_shard) + (self.n_hub > 0)

    @property
    def n_dense(self) -> int:
        """Numbers that every worker has and sums the gradients of."""
        rows = self.n_relation * self.model.n_relation_table
        return rows * self.model.relation_width + self.model.n_other

    @property
    def n_lookup(self) -> int:
        """Rows that a shard looks up in a step."""
        return 2 * self.n_positive + self.n_negative_row + self.n_hub

    @property
    def n_unique(self) -> float:
        """Rows of a shard that a step changes, if all are as frequent."""
        if self.scheme == "all":
            return float(self.n_row)
        return -self.n_row * math.expm1(-self.n_lookup / self.n_row)

    @property
    def n_pair(self) -> int:
        """Queries times candidates of a shard in a step."""
        if self.scheme == "all":
            return self.n_side * self.n_query * self.n_row
        return self.n_positive * self.n_candidate

    @property
    def n_query(self) -> int:
        """Queries of a side that a shard scores."""
        return self.n_positive * (1 if self.scheme == "embedding" else self.n_shard)

    @property
    def tile(self) -> TileShape:
        """Queries and rows that scheme "all" scores at once."""
        held = 1 if self.model.comparison == "dot" else 2 if self.model.is_native else 8
        most = max(self.max_scores // held, 1)
        return TileShape.of(self.n_query, self.n_row, self.n_host, most)

    @property
    def batch_size(self) -> int:
        """Positives of a step, over all shards."""
        return self.n_positive * self.n_shard

    @property
    def n_step(self) -> int:
        """Steps of an epoch."""
        of_pair = self.n_positive // self.n_shard
        if not self.rigid:
            return -(-self.n_triple // self.batch_size)
        largest = self.imbalance * self.n_triple / self.n_shard**2
        return max(math.ceil(largest / of_pair), 1)

    @property
    def traffic(self) -> Traffic:
        """Bytes that a worker sends, but for dense gradients; see there."""
        of_scores = self.n_candidate if self.scheme == "score" else self.n_negative_row
        return traffic(
            self.scheme, self.n_worker, self.n_positive, of_scores, self.model.entity_width,
            self.itemsize, query_width=self.model.query_width, n_side=self.n_side,
            n_hub=self.n_hub, tails_return=self.tails_return,
        )  # fmt: skip

    @property
    def dense_traffic(self) -> int:
        """Bytes that a worker sends to sum dense gradients, in float32."""
        return all_reduce_bytes(self.n_dense, self.n_worker)


def state_of(optimizer: str) -> State:
    """Of an optimiser by its name; SGD here has no momentum."""
    if optimizer in ONLY_ON_IPUS:  # of RMSprop without momentum
        return State(1 if optimizer == "rmsprop" else 2, 0)
    parts = len(STATES[optimizer])
    return State(parts - 1, 1) if optimizer in PER_ROW else State(parts, 0)


def workload(
    config: TrainingConfig,
    n_entity: int,
    n_relation: int,
    n_triple: int,
    n_worker: int = 1,
    imbalance: Optional[float] = None,
) -> Workload:
    """What a step of a configuration is.

    Args:
        config: of the run; one worker hosts all its shards, several have one each.
        n_entity, n_relation, n_triple: of the graph.
        n_worker: workers.
        imbalance: largest shard pair over the mean; None: that of triples spread evenly at random,
            which hubs make worse.

    Raises:
        ConfigError: sizes that cannot be, or that cannot be split so.
    """
    batch, n = config.batch, config.batch.n_shard
    _check(config, n_entity, n_relation, n_triple, n_worker, imbalance)
    model = model_of(config)
    n_positive = _positives(config)
    shared = batch.shared_negatives or batch.scheme == "all"
    of_pair = 0 if batch.scheme == "all" else negatives_per_pair(config)
    n_list = (2 if batch.corruption == "ht" else 1) if shared else n_positive
    n_candidate = n * of_pair * (n if shared and batch.scheme == "score" else 1)
    n_triple = n_triple * (2 if config.model.inverse_relations else 1)
    return Workload(
        model=model, scheme=batch.scheme, n_worker=n_worker, n_shard=n,
        n_entity=n_entity, n_relation=n_relation, n_triple=n_triple,
        n_hub=-(-batch.replicate_hubs // n),
        n_positive=n_positive,
        n_candidate=n_candidate + (n_positive if batch.augment_negative else 0),
        n_negative_row=n * n_list * of_pair,
        n_side=2 if batch.corruption == "ht" else 1,
        tails_return="h" in batch.corruption
        or config.loss.regularization > 0.0
        or config.loss.relation_weight > 0.0,
        per_triple=not shared,
        is_fused=n_worker == 1
        and model.is_native
        and _may_be_fused(config)
        and rule_of(build_loss(config, max(n_entity, 2), n_positive), 1) is not None,
        state=state_of(config.optimizer.optimizer),
        itemsize=ITEMSIZES[config.model.table_dtype],
        is_softmax=batch.scheme == "all" and model.comparison == "dot" and _is_softmax(config),
        is_regularized=config.loss.regularization > 0.0,
        half_scores=config.run.score_dtype != "float32" or config.model.table_dtype != "float32",
        max_scores=config.run.max_scores,
        rigid=batch.sampler == "rigid",
        imbalance=even_imbalance(n_triple, n) if imbalance is None else imbalance,
    )  # fmt: skip


def even_imbalance(n_triple: int, n_shard: int) -> float:
    """Largest over mean of n_shard^2 shard pairs, of triples that fall into them at random.

    Of m pairs with mean u the largest is taken as u + sqrt(2 u log m) + log(m) / 3, which by
    Bernstein's inequality a pair exceeds with a chance of at most 1 / m.
    """
    mean, spread = n_triple / n_shard**2, 2.0 * math.log(n_shard)
    return 1.0 + (math.sqrt(2.0 * mean * spread) + spread / 3.0) / mean


def _check(
    config: TrainingConfig, n_entity: int, n_relation: int, n_triple: int, n_worker: int,
    imbalance: Optional[float],
) -> None:  # fmt: skip
    sizes = dict(entities=n_entity, relations=n_relation, triples=n_triple, workers=n_worker)
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1, got {size}")
    if imbalance is not None and not imbalance >= 1.0:
        raise ConfigError(f"imbalance must be at least 1, got {imbalance}")
    n = config.batch.n_shard
    if n > n_entity:
        raise ConfigError(f"{n_entity} entities cannot be split into {n} shards")
    if n_worker not in (1, n):
        raise ConfigError(
            f"{n} shards cannot be split over {n_worker} workers: each has one shard, or one worker"
            f" all; leave out n_shard, or give n_shard = {n_worker}"
        )


def _positives(config: TrainingConfig) -> int:
    """B, as batch samplers round it."""
    batch = config.batch
    of_shard = -(-batch.batch_size // batch.n_shard)
    of_pair = -(-of_shard // batch.n_shard)
    if batch.corruption == "ht" and batch.scheme != "all":
        of_pair -= of_pair % 2
    if of_pair < 1:
        raise ConfigError(
            f"a batch of {batch.batch_size} has one positive for each of the {batch.n_shard**2} shard"
            " pairs, and corruption 'ht' needs two: give batch_size ="
            f" {2 * batch.n_shard**2}, or fewer shards"
        )
    return of_pair * batch.n_shard


def _may_be_fused(config: TrainingConfig) -> bool:
    """Whether nothing that is asked for keeps the step from being one operation.

    Not seen here: a shard without entities of some type, which typed negatives mask.
    """
    batch = config.batch
    return (
        batch.scheme != "all"
        and batch.corruption in ("h", "t")
        and not (batch.filter_negatives or batch.augment_negative or batch.replicate_hubs)
        and config.loss.regularization == 0.0
    )


def _is_softmax(config: TrainingConfig) -> bool:
    loss = config.loss
    sampled = loss.loss == "sampledsoftmax"  # which without samples is cross-entropy
    return not loss.label_smoothing and (sampled or issubclass(LOSSES[loss.loss], CrossEntropyLoss))


def model_of(config: TrainingConfig) -> Model:
    """Of a score function made for a graph of one entity; torch's generator is left as it is."""
    model = replace(config.model, table_dtype="float32")  # which every torch computes with
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        score_fn = make_score_function(model, Sharding.create(1, 1, 0), 1).eval()
        entity, relation = score_fn.entity_embedding, score_fn.relation_embedding
        query = score_fn.query(entity[0], torch.zeros(1, dtype=torch.long), False)
    form = native_form(score_fn)
    comparison = "dot" if score_fn.is_inner_product else form.comparison if form else "other"
    tables = entity.numel() + relation.numel()
    return Model(
        entity_width=entity.shape[-1],
        relation_width=relation.shape[-1],
        query_width=sum(x[0].numel() for x in query if x.is_floating_point()),
        n_relation_table=len(relation),
        n_other=sum(x.numel() for x in score_fn.parameters()) - tables,
        comparison=comparison,
        is_native=form is not None,
    )
