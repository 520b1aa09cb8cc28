"""From a configuration to the objects that it names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from torch import nn

from besskge_core.batch_sampler import (
    RandomShardedBatchSampler,
    RigidShardedBatchSampler,
    ShardedBatchSampler,
)
from besskge_core.bess import (
    BessKGE,
    EmbeddingMovingBessKGE,
    OneVsAllBessKGE,
    ScoreMovingBessKGE,
)
from besskge_core.dataset import KGDataset
from besskge_core.embedding import Initializer, init_KGE_normal, init_KGE_uniform
from besskge_core.errors import ConfigError, DataWarning
from besskge_core.known import KnownTriples
from besskge_core.loss import LOSSES, BaseLossFunction, CrossEntropyLoss, LabelledLoss, Loss
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    DegreeWeightedShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    ShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.optim import OPTIMIZERS
from besskge_core.preparation import prepared_triple_set
from besskge_core.prepared import is_prepared
from besskge_core.regularizer import REGULARIZERS, Regularizer
from besskge_core.runtime.ipu import make_optimizer as make_ipu_optimizer
from besskge_core.scoring import SCORE_FUNCTIONS, BaseScoreFunction
from besskge_core.scoring.representations import Table
from besskge_core.sharding import (
    PartitionedTripleSet,
    Sharding,
    entity_degree,
    most_frequent_entities,
)
from besskge_core.training.config import ONLY_ON_IPUS, ModelConfig, TrainingConfig


class Parts(NamedTuple):
    """What a training run is made of."""

    sampler: ShardedBatchSampler
    model: Union[BessKGE, OneVsAllBessKGE]
    optimizer: torch.optim.Optimizer


def build(config: TrainingConfig, dataset: KGDataset) -> Parts:
    """Sampler, model and optimiser of a run; tables are drawn from torch's seeded generator."""
    batch, seed = config.batch, config.run.seed
    score_fn = build_score_function(config, dataset)
    triples = _partitioned(config, dataset, score_fn.sharding)
    negatives = _build_negative_sampler(config, dataset, triples)
    make_sampler = (
        RigidShardedBatchSampler if batch.sampler == "rigid" else RandomShardedBatchSampler
    )
    shard_bs = -(-batch.batch_size // batch.n_shard)
    n_micro = config.ipu.device_iterations * config.ipu.gradient_accumulation
    sampler = make_sampler(triples, negatives, shard_bs, n_micro, seed)
    model = _build_model(config, dataset, score_fn, negatives, sampler.shard_bs)
    return Parts(sampler, model, _build_optimizer(config, model))


def _build_optimizer(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    settings, parameters = config.optimizer, list(model.parameters())
    if config.on_ipus:
        return make_ipu_optimizer(
            settings.optimizer,
            parameters,
            settings.lr,
            settings.weight_decay,
            state_dtypes=[getattr(torch, config.ipu.state_dtype)],
            target=config.ipu_settings().target,
        )
    if settings.optimizer in ONLY_ON_IPUS:
        raise ConfigError(
            f"optimizer {settings.optimizer!r} is for device 'ipu', got {config.run.device!r}"
        )
    optimizer: torch.optim.Optimizer = OPTIMIZERS[settings.optimizer](
        parameters,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        stochastic_rounding=settings.stochastic_rounding,
        seed=config.run.seed,
    )
    return optimizer


def _partitioned(
    config: TrainingConfig, dataset: KGDataset, sharding: Sharding
) -> PartitionedTripleSet:
    """The training triples in buckets; of a prepared folder that has them, mapped into memory."""
    folder, batch = config.data.dataset, config.batch
    # Who asks for heads of all entities asks by the inverse relation, of the triples as they are.
    asks_heads = batch.scheme == "all" and "h" in batch.corruption
    inverse = config.model.inverse_relations and not asks_heads
    if is_prepared(folder) and sharding.hub_rows is None:
        try:
            found = prepared_triple_set(folder, config.run.seed, sharding.n_shard, inverse)
            return dataclasses.replace(found, sharding=sharding)
        except ConfigError as error:
            warnings.warn(f"triples are sorted in memory: {error}", DataWarning, stacklevel=2)
    return PartitionedTripleSet.create_from_dataset(
        dataset, "train", sharding, add_inverse_triples=inverse
    )


def build_score_function(config: TrainingConfig, dataset: KGDataset) -> BaseScoreFunction:
    """The score function with fresh tables, on `n_shard` shards."""
    torch.manual_seed(config.run.seed)
    offsets = dataset.type_offsets
    sharding = Sharding.create(
        dataset.n_entity,
        config.batch.n_shard,
        config.run.seed,
        None if offsets is None else np.array(list(offsets.values())),
        most_frequent_entities(
            dataset.triples["train"], dataset.n_entity, config.batch.replicate_hubs
        ),
    )
    return make_score_function(config.model, sharding, dataset.n_relation_type)


def make_score_function(
    model: ModelConfig, sharding: Sharding, n_relation_type: int, **initializers: Table
) -> BaseScoreFunction:
    """The score function of these settings, with tables of this size.

    Args:
        model: the settings.
        sharding: of the entities.
        n_relation_type: relations of the graph, without inverse ones.
        initializers: `entity_initializer` and `relation_initializer`, if not the settings'.
    """
    make = SCORE_FUNCTIONS[model.score_function]
    tables: Dict[str, Any] = {
        f"{table}_initializer": _scaled(getattr(make, f"{table}_initializers"), model.init_scale)
        for table in ("entity", "relation")
    }
    score_fn: BaseScoreFunction = _construct(
        make,
        negative_sample_sharing=False,
        scoring_norm=model.norm,
        sharding=sharding,
        n_relation_type=n_relation_type,
        embedding_size=model.dim,
        inverse_relations=model.inverse_relations,
        **{**tables, **initializers},
        **model.score_options,
    )
    return score_fn.to(getattr(torch, model.table_dtype))


def build_loss(config: TrainingConfig, n_entity: int, n_positive: int) -> Loss:
    """The loss, a mean over the positives of a shard's micro-batch."""
    settings = config.loss
    make = LOSSES[settings.loss]
    arguments = dict(
        negative_adversarial_sampling=settings.adversarial,
        negative_adversarial_scale=settings.adversarial_scale,
        n_entity=n_entity,
        **settings.loss_options,
    )
    margin = inspect.signature(make).parameters.get("margin")
    if settings.margin is not None:
        arguments["margin"] = settings.margin
    elif margin is not None and margin.default is margin.empty:
        arguments["margin"] = 1.0
    if issubclass(make, BaseLossFunction):  # a sum; others are means already
        arguments["loss_scale"] = 1.0 / n_positive
    loss: Loss = _construct(make, **arguments)
    return loss


def _build_model(
    config: TrainingConfig,
    dataset: KGDataset,
    score_fn: BaseScoreFunction,
    negatives: ShardedNegativeSampler,
    n_positive: int,
) -> Union[BessKGE, OneVsAllBessKGE]:
    batch, regularizer = config.batch, _build_regularizer(config)
    if batch.scheme == "all":
        sides = {"h": ("head",), "t": ("tail",), "ht": ("head", "tail")}[batch.corruption]
        sampled = config.loss.loss == "sampledsoftmax"  # which without samples is cross-entropy
        loss_fn = (
            CrossEntropyLoss() if sampled else build_loss(config, dataset.n_entity, n_positive)
        )
        assert isinstance(loss_fn, LabelledLoss)  # as the configuration has checked
        return OneVsAllBessKGE(
            score_fn,
            loss_fn,
            sides,
            config.loss.label_smoothing,
            regularizer,
            config.run.max_scores,
            getattr(torch, config.run.score_dtype),
            config.loss.relation_weight,
        )
    make_model = EmbeddingMovingBessKGE if batch.scheme == "embedding" else ScoreMovingBessKGE
    return make_model(
        negatives,
        score_fn,
        build_loss(config, dataset.n_entity, n_positive),
        augment_negative=batch.augment_negative,
        regularizer=regularizer,
    )


def _build_negative_sampler(
    config: TrainingConfig, dataset: KGDataset, triples: PartitionedTripleSet
) -> ShardedNegativeSampler:
    batch, sharding, seed = config.batch, triples.sharding, config.run.seed
    if batch.scheme == "all":
        return PlaceholderNegativeSampler("t", seed)  # no half of a bucket stands for heads
    n_negative, flat = negatives_per_pair(config), batch.shared_negatives
    known = None
    if batch.filter_negatives:
        sizes = dataset.n_entity, dataset.n_relation_type
        known = KnownTriples([dataset.triples["train"]], *sizes)
    if batch.corruption == "either":
        return BernoulliShardedNegativeSampler(
            triples, n_negative, seed, flat_negative_format=flat, known=known
        )
    if batch.negatives == "typed":
        if triples.types is None:
            raise ConfigError(
                f"negatives 'typed' need entity types, which {config.data.dataset} has not; see"
                " dataset_options.types"
            )
        return TypeBasedShardedNegativeSampler(
            triples.types, n_negative, sharding, batch.corruption, False, seed, known
        )
    if batch.negatives == "degree":
        degree = entity_degree(dataset.triples["train"], dataset.n_entity)
        return DegreeWeightedShardedNegativeSampler(
            degree, n_negative, sharding, seed, batch.corruption, False, flat, known,
            batch.degree_exponent,
        )  # fmt: skip
    return RandomShardedNegativeSampler(
        n_negative, sharding, seed, batch.corruption, False, flat, known
    )


def _build_regularizer(config: TrainingConfig) -> Optional[Regularizer]:
    loss = config.loss
    if loss.regularization == 0.0:
        return None
    regularizer: Regularizer = _construct(
        REGULARIZERS[loss.regularizer], weight=loss.regularization, p=loss.regularizer_p
    )
    return regularizer


def negatives_per_pair(config: TrainingConfig) -> int:
    """Negatives that one shard gives another, for `n_negative` candidates of each positive.

    Moving scores pools the shared lists of all pairs, so each list is shorter.
    """
    batch = config.batch
    pooled = batch.scheme == "score" and batch.shared_negatives
    return -(-batch.n_negative // (batch.n_shard**2 if pooled else batch.n_shard))


def _scaled(initializers: Sequence[Initializer], scale: Optional[float]) -> List[Initializer]:
    """Normal initialisers of this scale in the place of those whose scale is a free choice."""
    if scale is None:
        return list(initializers)
    normal: Initializer = functools.partial(nn.init.normal_, std=scale)
    free = (init_KGE_normal, init_KGE_uniform)
    return [normal if make in free else make for make in initializers]


def _construct(make: Callable[..., Any], **arguments: Any) -> Any:
    """Call with those of the arguments that it takes."""
    taken = inspect.signature(make).parameters
    return make(**{name: value for name, value in arguments.items() if name in taken})
