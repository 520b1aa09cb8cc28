"""What a training run is: one frozen dataclass, made of one for each part.

The command line and TOML or YAML files are doors to the same dataclass
(:mod:`besskge_core.config`).
Field names are unique over all parts, so that each is a flag of its own. Relative choices that
belong together are checked when the dataclass is made.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from besskge_core import config as configuration
from besskge_core.errors import ConfigError
from besskge_core.loss import LOSSES, LabelledLoss, labelled_losses
from besskge_core.optim import OPTIMIZERS
from besskge_core.registry import Registry
from besskge_core.regularizer import REGULARIZERS
from besskge_core.runtime import IPUSettings
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.training.schedule import SCHEDULES

#: Optimisers that IPUs have, and nothing else here.
ONLY_ON_IPUS = ("adamw", "lamb", "rmsprop")

#: Arguments of score functions and losses that other settings, or the graph, decide.
GIVEN = {
    "negative_sample_sharing", "scoring_norm", "sharding", "n_relation_type", "embedding_size",
    "inverse_relations", "entity_initializer", "relation_initializer", "margin", "n_entity",
    "negative_adversarial_sampling", "negative_adversarial_scale", "loss_scale", "reduction",
}  # fmt: skip


def option(default: Any, help: str, **choice: Any) -> Any:
    """A field with a default, one line of help and, if it names something, its registry."""
    return field(default=default, metadata={"help": help, **choice})


@dataclass(frozen=True)
class DataConfig:
    """Which graph."""

    dataset: str = option("family", "benchmark name, `family`, or path of a folder or file")
    dataset_options: Dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the data set, such as n_person=5000"}
    )


@dataclass(frozen=True)
class ModelConfig:
    """Which score function, and how its tables begin."""

    score_function: str = option("complex", "how triples are scored", registry=SCORE_FUNCTIONS)
    dim: int = option(128, "width of one part of an embedding (complex numbers for ComplEx)")
    norm: int = option(1, "p of the norm, for score functions that measure a distance")
    inverse_relations: bool = option(
        True, "learn each relation in both directions, and answer (?, r, t) by the inverse of r"
    )
    score_options: Dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "further arguments of the score function, such as embedding_height=8"},
    )
    init_scale: Optional[float] = option(
        None, "standard deviation of initial embeddings; default: the score function's own"
    )
    table_dtype: str = option(
        "float32", "type of the weights; sums, losses and optimiser state are float32",
        choices=("float32", "bfloat16", "float16"),
    )  # fmt: skip


@dataclass(frozen=True)
class BatchConfig:
    """What a step looks at."""

    n_shard: int = option(4, "parts that the entity table is split into")
    scheme: str = option(
        "score", "what travels between shards: embedding, score, or all: sums of the scores of all"
        " entities, which need no negatives",
        choices=("embedding", "score", "all"),
    )  # fmt: skip
    batch_size: int = option(512, "positives of a step, over all shards")
    n_negative: int = option(4096, "negatives that each positive is scored against")
    corruption: str = option(
        "t", "sides that negatives replace: h, t, ht (half the batch each), or either (drawn for"
        " each triple by the statistics of its relation)",
        choices=("h", "t", "ht", "either"),
    )  # fmt: skip
    negatives: str = option(
        "uniform", "how negatives are drawn: uniform, degree (by a power of their frequency), or"
        " typed (of the type of the entity that they replace)",
        choices=("uniform", "degree", "typed"),
    )  # fmt: skip
    degree_exponent: float = option(0.75, "the power of the frequency, for degree")
    filter_negatives: bool = option(False, "leave true training triples out of the negatives")
    replicate_hubs: int = option(
        0, "most frequent entities that all shards know, so that their triples fill shard pairs up"
    )
    shared_negatives: bool = option(True, "one list of negatives for all positives of a shard")
    augment_negative: bool = option(False, "also use the other positives of a shard as negatives")
    sampler: str = option(
        "rigid", "rigid: each triple once an epoch; random: with replacement",
        choices=("random", "rigid"),
    )  # fmt: skip


@dataclass(frozen=True)
class LossConfig:
    """What scores and embeddings cost; the mean over the positives of a step."""

    loss: str = option("sampledsoftmax", "loss", registry=LOSSES)
    margin: Optional[float] = option(
        None, "margin of the losses that have one; default: the loss's own, or 1"
    )
    loss_options: Dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "further arguments of the loss, such as log_adversarial_temperature=-1"},
    )
    adversarial: bool = option(False, "weigh negatives by the softmax of their scores")
    adversarial_scale: float = option(1.0, "factor of the scores in that softmax")
    label_smoothing: float = option(0.0, "share of a label that goes to the others, for scheme all")
    relation_weight: float = option(
        0.0, "factor of the loss of predicting relations, for scheme all; 0: none"
    )
    regularizer: str = option("lp", "penalty of the embeddings of a batch", registry=REGULARIZERS)
    regularization: float = option(0.0, "factor of the penalty; 0: none")
    regularizer_p: float = option(3.0, "exponent of the penalty lp; 3 is N3")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights change."""

    optimizer: str = option(
        "adagrad", f"optimiser; {', '.join(ONLY_ON_IPUS)}: for device ipu",
        registry=OPTIMIZERS, also=ONLY_ON_IPUS,
    )  # fmt: skip
    lr: float = option(0.1, "learning rate")
    weight_decay: float = option(0.0, "decoupled weight decay of the rows touched")
    stochastic_rounding: bool = option(
        True, "round weights of 16 bits up or down at random, so that small updates count; of"
        " float16 on IPUs alone",
    )  # fmt: skip
    schedule: str = option("constant", "course of the learning rate", registry=SCHEDULES)
    warmup: float = option(0.0, "share of the run in which the learning rate rises to its value")


@dataclass(frozen=True)
class EvaluationConfig:
    """When to look at the validation triples, and when to stop."""

    evaluate_every: int = option(5, "epochs between validations; 0: only at the end")
    metric: str = option("mrr", "metric that decides which weights are best")
    patience: int = option(0, "validations without improvement before stopping; 0: never stop")
    max_valid: int = option(0, "validation triples to rank, evenly spaced; 0: all")


@dataclass(frozen=True)
class RunConfig:
    """How long, where, and how often to store."""

    epochs: int = option(20, "passes over the triples")
    seed: int = option(0, "of sharding, initial embeddings and batches")
    device: str = option("cpu", "cpu, cuda, cuda:0, or ipu: one IPU a shard")
    threads: int = option(0, "threads of torch; 0: torch decides")
    workers: int = option(1, "threads that make batches ahead")
    max_scores: int = option(2**25, "scores held at a time, for scheme all")
    score_dtype: str = option(
        "float32", "type in which all entities are scored, for scheme all; sums are in float32",
        choices=("float32", "bfloat16"),
    )  # fmt: skip
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints; 0: after every step")
    timeout: float = option(
        300.0, "seconds that a process waits for the others, under torchrun, before it gives up"
    )
    trackers: str = option("jsonl,csv", "files to log to: jsonl, csv, tensorboard; comma-separated")


@dataclass(frozen=True)
class IPUConfig:
    """How programs for device ipu are compiled."""

    ipu_target: str = option(
        "best", "hardware; model: the SDK's, in software; emulate: this CPU under an IPU's rules,"
        " without SDK; best: the best that is there",
        choices=("best", "hardware", "model", "emulate"),
    )  # fmt: skip
    device_iterations: int = option(1, "updates that the device makes for each call")
    gradient_accumulation: int = option(1, "batches whose gradients make one update")
    state_dtype: str = option(
        "float32", "type of the first moment or the velocity", choices=("float32", "float16")
    )
    half_partials: bool = option(False, "sum products up in float16")
    available_memory: Optional[float] = option(
        None, "share of an IPU's memory that products and gathers may take for a while"
    )
    executable_cache: Optional[str] = option(None, "folder for compiled programs")
    ipu_library: Optional[str] = option(
        None, "library of native operations, as `make ipu-ops` builds it; default: those of"
        " poptorch_experimental_addons",
    )  # fmt: skip
    independent: bool = option(
        False, "under poprun, each of several instances is a run of its own, with its own --out"
    )


@dataclass(frozen=True)
class TrainingConfig:
    """A training run.

    Raises:
        ConfigError: a value out of its range, or parts that cannot work together.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    ipu: IPUConfig = field(default_factory=IPUConfig)

    @property
    def on_ipus(self) -> bool:
        return self.run.device == "ipu"

    def ipu_settings(self) -> IPUSettings:
        """How the runtime of device ipu compiles this run."""
        ipu, target = self.ipu, self.ipu.ipu_target
        return IPUSettings(
            gradient_accumulation=ipu.gradient_accumulation,
            half_partials=ipu.half_partials,
            stochastic_rounding=(
                self.optimizer.stochastic_rounding and self.model.table_dtype == "float16"
            ),
            available_memory=ipu.available_memory,
            executable_cache=ipu.executable_cache,
            target=None if target == "best" else target,
            seed=self.run.seed,
            library=ipu.ipu_library,
            independent=ipu.independent,
        )

    def __post_init__(self) -> None:
        for section in (getattr(self, name) for name in self.__dataclass_fields__):
            _check_choices(section)
        _at_least(1, dim=self.model.dim, n_shard=self.batch.n_shard, workers=self.run.workers)
        _at_least(1, batch_size=self.batch.batch_size, n_negative=self.batch.n_negative)
        _at_least(0, epochs=self.run.epochs, evaluate_every=self.evaluation.evaluate_every)
        _at_least(0, patience=self.evaluation.patience, max_valid=self.evaluation.max_valid)
        _at_least(0, regularization=self.loss.regularization, threads=self.run.threads)
        _at_least(0, relation_weight=self.loss.relation_weight)
        _at_least(1, max_scores=self.run.max_scores)
        _at_least(0, seed=self.run.seed, checkpoint_seconds=self.run.checkpoint_seconds)
        if not self.run.timeout > 0.0:
            raise ConfigError(f"timeout must be above 0 seconds, got {self.run.timeout}")
        if not 0.0 <= self.optimizer.warmup <= 1.0:
            raise ConfigError(f"warmup is a share of the run, got {self.optimizer.warmup}")
        _at_least(0, replicate_hubs=self.batch.replicate_hubs)
        _check_options(
            "score_options",
            self.model.score_function,
            SCORE_FUNCTIONS[self.model.score_function],
            self.model.score_options,
        )
        _check_options(
            "loss_options", self.loss.loss, LOSSES[self.loss.loss], self.loss.loss_options
        )
        self._check_negatives()
        self._check_device()

    def _check_device(self) -> None:
        ipu, name = self.ipu, self.optimizer.optimizer
        _at_least(
            1,
            device_iterations=ipu.device_iterations,
            gradient_accumulation=ipu.gradient_accumulation,
        )
        if self.on_ipus:
            self.ipu_settings()  # which check themselves
            if name == "adam" and self.optimizer.weight_decay:
                raise ConfigError("adam on IPUs adds weight decay to gradients: give adamw")
        elif (ipu.device_iterations, ipu.gradient_accumulation) != (1, 1):
            raise ConfigError("device_iterations and gradient_accumulation are for device 'ipu'")

    def _check_all_entities(self) -> None:
        batch, loss = self.batch, self.loss.loss
        if loss != "sampledsoftmax" and not issubclass(LOSSES[loss], LabelledLoss):
            raise ConfigError(
                f"scheme 'all' needs a loss of scores with labels, one of {labelled_losses()} (or"
                f" 'sampledsoftmax', which without samples is 'crossentropy'), got {loss!r}"
            )
        given = {
            "corruption": batch.corruption == "either",
            "filter_negatives": batch.filter_negatives,
            "replicate_hubs": batch.replicate_hubs > 0,
            "negatives": batch.negatives != "uniform",
        }
        wrong = sorted(name for name, is_given in given.items() if is_given)
        if wrong:
            raise ConfigError(
                f"scheme 'all' has no sampled negatives, so that {wrong} mean nothing"
            )

    def _check_negatives(self) -> None:
        batch = self.batch
        if batch.scheme == "all":
            self._check_all_entities()
        elif self.loss.label_smoothing or self.loss.relation_weight:
            raise ConfigError("label_smoothing and relation_weight need scheme 'all'")
        if batch.augment_negative and batch.scheme != "embedding":
            raise ConfigError(f"augment_negative needs scheme 'embedding', got {batch.scheme!r}")
        if batch.augment_negative and batch.corruption == "either":
            raise ConfigError("augment_negative needs corruption 'h', 't' or 'ht', got 'either'")
        if batch.corruption == "either" and batch.negatives != "uniform":
            raise ConfigError(
                f"corruption 'either' draws uniform negatives, got negatives {batch.negatives!r}"
            )
        if batch.negatives == "typed" and batch.shared_negatives:
            raise ConfigError(
                "negatives 'typed' belong to their triples: give shared_negatives = false"
            )


def read_config(file: Optional[Path], flags: Mapping[str, Any]) -> TrainingConfig:
    """From a file, else the defaults; then flags, those that are None left out.

    Options of the data set and of the score function in the file belong to what they were given
    with: flags that name another one leave them behind.

    Raises:
        ConfigError: see :func:`besskge_core.config.load` and `replace_flags`.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    config = TrainingConfig() if file is None else configuration.load(TrainingConfig, file)
    if given.get("dataset", config.data.dataset) != config.data.dataset:
        config = replace(config, data=replace(config.data, dataset_options={}))
    if given.get("score_function", config.model.score_function) != config.model.score_function:
        config = replace(config, model=replace(config.model, score_options={}))
    return configuration.replace_flags(config, given)


def _check_options(option_name: str, name: str, make: type, options: Dict[str, Any]) -> None:
    """Further arguments of a class: those that it must have, and no others."""
    parameters = inspect.signature(make).parameters
    own = {k: v for k, v in parameters.items() if k not in GIVEN}
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise ConfigError(
            f"{option_name} has {unknown}, which {name} does not take; it takes {sorted(own)}"
        )
    missing = [k for k, v in own.items() if v.default is v.empty and k not in options]
    if missing:
        given = ", ".join(f"{k}=..." for k in missing)
        raise ConfigError(f"{name} needs {option_name}: {given}")


def _check_choices(section: Any) -> None:
    for name, spec in section.__dataclass_fields__.items():
        value, registry = getattr(section, name), spec.metadata.get("registry")
        if isinstance(registry, Registry) and value not in spec.metadata.get("also", ()):
            registry[value]  # raises, and says which names there are
        choices = spec.metadata.get("choices")
        if choices is not None and value not in choices:
            raise ConfigError(f"{name} is {value!r}, expected one of {list(choices)}")


def _at_least(bound: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= bound:
            raise ConfigError(f"{name} must be at least {bound}, got {value}")
