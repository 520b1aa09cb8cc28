"""The three training loops; what they have in common is in `loop`."""

from __future__ import annotations

import copy
from typing import Any, Type, Union

import numpy as np

from besskge_core.batch_sampler import RigidShardedBatchSampler, ShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, LCWABessKGE, OneVsAllBessKGE
from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.negative_sampler import (
    BernoulliShardedNegativeSampler,
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    ShardedNegativeSampler,
)
from besskge_core.sharding import PartitionedTripleSet
from besskge_core.training.choices import Options
from besskge_core.training.loop import Module, TrainingLoop
from besskge_core.triples_factory import TriplesFactory

#: Columns of a triple by name.
TARGETS = ("head", "relation", "tail")


class SymmetricLCWATrainingLoop(TrainingLoop):
    """Each triple's tail among all entities, and its head; the two losses are added.

    With `loss="crossentropy"` it is the objective of Lacroix et al., ICML 2018: 1vsAll. If the
    model has inverse relations (`create_inverse_triples`), heads are asked for as tails of those,
    as they do, in training and in prediction alike; PyKEEN trains relations that it does not
    predict with. A regularizer of the model is theirs, too: of the factors of the batch's triples.
    True triples other than the one asked for count as false.

    Args:
        relation_weight: factor of the loss of predicting relations (Chen et al., AKBC 2021).
        arguments, options: see the base class.
    """

    def __init__(
        self,
        *arguments: Any,
        relation_weight: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.relation_weight = relation_weight

    def make_module(self, triples: TriplesFactory, label_smoothing: float) -> Module:
        model = self.model
        return OneVsAllBessKGE(
            model.score_fn,
            model.loss,
            label_smoothing=label_smoothing,
            regularizer=model.regularizer,
            relation_weight=self.relation_weight,
        )

    def make_sampler(
        self, triples: TriplesFactory, module: Module, batch_size: int
    ) -> ShardedBatchSampler:
        sharding = self.model.score_fn.sharding
        partitioned = PartitionedTripleSet.create_from_dataset(
            triples.as_dataset(), "train", sharding
        )
        seed = self.model.random_seed or 0
        placeholder = PlaceholderNegativeSampler("t", seed)
        shard_bs = max(-(-batch_size // sharding.n_shard), sharding.n_shard)
        return RigidShardedBatchSampler(partitioned, placeholder, shard_bs, 1, seed)


class LCWATrainingLoop(TrainingLoop):
    """Each query once, with all of its answers among all entities.

    A batch is of queries, (h, r) if tails are the target. With inverse relations, the queries of
    the inverse triples are asked, too.

    Args:
        target: what is asked for, "tail" or "head", or its column.
        arguments, options: see the base class.
    """

    def __init__(
        self,
        *arguments: Any,
        target: Union[str, int, None] = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        if target is None:
            target = "tail"
        elif isinstance(target, int) and 0 <= target < len(TARGETS):
            target = TARGETS[target]
        if target not in ("head", "tail"):
            raise ConfigError(
                f"target is {target!r}, expected 'tail' or 'head'; relations are predicted beside"
                " tails and heads with relation_weight of the SymmetricLCWATrainingLoop"
            )
        self.target = str(target)
        if self.model.regularizer is not None:
            raise ConfigError(
                "the model's regularizer is of triples, and queries have many answers; give a"
                " regularizer to the representations instead"
            )

    def make_module(self, triples: TriplesFactory, label_smoothing: float) -> Module:
        model = self.model
        n_relation = model.num_relations * (2 if model.score_fn.inverse_relations else 1)
        known = KnownTriples([self._asked(triples)], model.num_entities, n_relation)
        return LCWABessKGE(model.score_fn, known, model.loss, self.target, label_smoothing)

    def make_sampler(
        self, triples: TriplesFactory, module: Module, batch_size: int
    ) -> ShardedBatchSampler:
        sharding, seed = self.model.score_fn.sharding, self.model.random_seed or 0
        columns = [0, 1] if self.target == "tail" else [1, 2]
        queries = np.unique(self._asked(triples)[:, columns], axis=0)
        mode = "hr" if self.target == "tail" else "rt"
        partitioned = PartitionedTripleSet.create_from_queries(
            triples.as_dataset(), sharding, queries, mode
        )
        placeholder = PlaceholderNegativeSampler("t", seed)
        shard_bs = -(-batch_size // sharding.n_shard)
        return RigidShardedBatchSampler(partitioned, placeholder, shard_bs, 1, seed)

    def _asked(self, triples: TriplesFactory) -> np.ndarray:
        """The triples, with their inverse ones if the model has them."""
        own = triples.triples
        if not self.model.score_fn.inverse_relations:
            return own
        return np.concatenate([own, own[:, ::-1] + [[0, self.model.num_relations, 0]]])


NEGATIVE_SAMPLERS = ("basic", "bernoulli")


class SLCWATrainingLoop(TrainingLoop):
    """Each triple against sampled negatives.

    Args:
        negative_sampler: "basic" corrupts heads of one half of the triples and tails of the other,
            uniformly; "bernoulli" chooses the side of each triple by the statistics of its relation
            (Wang et al., AAAI 2014); or a class of :mod:`besskge_core.negative_sampler`, or an
            instance. None: "basic".
        negative_sampler_kwargs: of a name: `num_negs_per_pos` (1; over several shards a multiple of
            their number), and `filtered` (False), which leaves true triples of the training set out.
        arguments, options: see the base class.
    """

    def __init__(
        self,
        *arguments: Any,
        negative_sampler: Union[
            str, Type[ShardedNegativeSampler], ShardedNegativeSampler, None
        ] = None,
        negative_sampler_kwargs: Options = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._sampler_choice = negative_sampler
        self._sampler_kwargs = dict(negative_sampler_kwargs or {})

    def make_module(self, triples: TriplesFactory, label_smoothing: float) -> Module:
        if label_smoothing:
            raise ConfigError("labels of sampled negatives are not smoothed here; leave it out")
        negatives = self._negatives(triples)
        model, loss = self.model, self.model.loss
        if loss.reduction == "sum":
            # BESS takes the mean over shards.
            loss = copy.copy(loss)
            loss.loss_scale *= model.score_fn.sharding.n_shard
        return EmbeddingMovingBessKGE(
            negatives, model.score_fn, loss, regularizer=model.regularizer
        )

    def make_sampler(
        self, triples: TriplesFactory, module: Module, batch_size: int
    ) -> ShardedBatchSampler:
        sharding, seed = self.model.score_fn.sharding, self.model.random_seed or 0
        assert isinstance(module, EmbeddingMovingBessKGE)
        least = sharding.n_shard * (2 if module.negative_sampler.corruption_scheme == "ht" else 1)
        shard_bs = max(-(-batch_size // sharding.n_shard), least)
        partitioned = self._partitioned(triples)
        return RigidShardedBatchSampler(partitioned, module.negative_sampler, shard_bs, 1, seed)

    def _partitioned(self, triples: TriplesFactory) -> PartitionedTripleSet:
        inverse = self.model.score_fn.inverse_relations
        return PartitionedTripleSet.create_from_dataset(
            triples.as_dataset(), "train", self.model.score_fn.sharding, add_inverse_triples=inverse
        )

    def _negatives(self, triples: TriplesFactory) -> ShardedNegativeSampler:
        choice, options = self._sampler_choice, dict(self._sampler_kwargs)
        if isinstance(choice, ShardedNegativeSampler):
            if options:
                raise ConfigError(
                    f"the sampler is made already, options {sorted(options)} are late"
                )
            return choice
        if isinstance(choice, type):
            made: ShardedNegativeSampler = choice(**options)
            return made
        n_negative = _positive_int("num_negs_per_pos", options.pop("num_negs_per_pos", 1))
        filtered = options.pop("filtered", False)
        if options:
            raise ConfigError(
                f"negative_sampler_kwargs has {sorted(options)}; expected num_negs_per_pos, filtered"
            )
        sharding, seed = self.model.score_fn.sharding, self.model.random_seed or 0
        per_pair = -(-n_negative // sharding.n_shard)
        known = None
        if filtered:
            sizes = triples.num_entities, self.model.num_relations
            known = KnownTriples([triples.triples], *sizes)
        if choice == "bernoulli":
            return BernoulliShardedNegativeSampler(
                self._partitioned(triples), per_pair, seed, flat_negative_format=False, known=known
            )
        if choice not in (None, "basic"):
            raise ConfigError(
                f"unknown negative_sampler {choice!r}; expected one of {NEGATIVE_SAMPLERS}, a class"
                " or an instance"
            )
        scheme = "t" if self.model.score_fn.inverse_relations else "ht"
        return RandomShardedNegativeSampler(per_pair, sharding, seed, scheme, False, False, known)


def _positive_int(name: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
    return value
