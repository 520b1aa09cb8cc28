"""One shard a replica, on IPUs: the step as a program that PopTorch compiles.

The module that is compiled is the one that other runtimes call. Each replica holds the rows of its
own shard, as a variable that differs between replicas; relations, and whatever else all have, are
one variable, whose gradients PopTorch adds up and divides by the replicas. A call runs all the
micro-batches of a batch on the device.

What differs from the other runtimes, because the device decides on it alone:

- an optimiser updates all rows of a table in every step, with gradients as large as the table;
- a loss that is not finite is found after the call, when its weights have been updated;
- weights are on the device until :meth:`IPURuntime.to_host` brings them back.

Axes:
    M: micro-batches of a step, device iterations times accumulated ones      S: shards, replicas
    L: shards of a replica, 1
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from besskge_core.batch_sampler import Draw, ShardedBatchSampler
from besskge_core.bess import AllEntitiesBessKGE
from besskge_core.embedding import Embedding, EmbeddingRegularizer
from besskge_core.errors import ConfigError, NonFiniteLossError, ShapeError
from besskge_core.exchange import PopTorchExchange
from besskge_core.ops.tracing import tracing
from besskge_core.optim import LazyAdam, RowOptimizer
from besskge_core.runtime.base import Model, Planned, Runtime
from besskge_core.scoring.operators import CircularConvolution

#: Says where the program runs, unless the settings do.
TARGET = "BESSKGE_IPU"
TARGETS = ("hardware", "model")
#: IPUs of one process, at most.
MOST_IPUS = 64
#: Host memory that a batch may be made in ahead, in batches.
BUFFER_SIZE = 3

#: Columns of batches; what a step does not take is left behind.
COLUMNS = (
    "relation", "head", "tail", "negative", "triple_mask", "triple_weight", "negative_mask",
    "heads_replaced", "hub",
)  # fmt: skip


@dataclass(frozen=True)
class IPUSettings:
    """How a program is compiled.

    Attributes:
        gradient_accumulation: micro-batches whose gradients make one update; needs one more tensor
            as large as each parameter.
        half_partials: sum matrix products up in float16, which is faster and less exact.
        stochastic_rounding: round float16 weights at random; for hardware.
        available_memory: share of an IPU's memory that products and gathers may take for a while,
            in (0, 1]; None: PopTorch's, which is 0.6.
        executable_cache: a folder for compiled programs, for hardware; it grows without bound.
        target: "hardware", or "model", the SDK's model of an IPU in software; None: what the
            environment variable BESSKGE_IPU says, or hardware.
        seed: of the device's random numbers.
        library: of native operations for PopART; None: those of poptorch_experimental_addons.
        patterns: names of compiler patterns to switch on besides the default ones in training, such
            as one of the library that removes sums over a single replica.

    Raises:
        ConfigError: values that cannot work.
    """

    gradient_accumulation: int = 1
    half_partials: bool = False
    stochastic_rounding: bool = False
    available_memory: Optional[float] = None
    executable_cache: Optional[Union[str, Path]] = None
    target: Optional[str] = None
    seed: Optional[int] = None
    library: Optional[Union[str, Path]] = None
    patterns: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.gradient_accumulation < 1:
            raise ConfigError(
                f"gradient_accumulation must be at least 1, got {self.gradient_accumulation}"
            )
        if self.available_memory is not None and not 0.0 < self.available_memory <= 1.0:
            raise ConfigError(f"available_memory must be in (0, 1], got {self.available_memory}")
        if self.where not in TARGETS:
            raise ConfigError(
                f"the target is {self.where!r}, expected one of {TARGETS}, from the settings or from"
                f" {TARGET}"
            )

    @property
    def where(self) -> str:
        """The target that is chosen."""
        return self.target or os.environ.get(TARGET, "hardware")


class IPURuntime(Runtime):
    """Runs steps on as many IPUs as the model has shards.

    Args:
        model: :class:`BessKGE` or :class:`TopKQueryBessKGE`; its exchange is set.
        settings: how it is compiled.
        n_worker: 0: batches are made when they are asked for, else ahead, by that many processes and
            one that gathers them.

    Raises:
        ConfigError: what cannot be compiled, by name, with what to use instead.
    """

    def __init__(
        self, model: Model, settings: Optional[IPUSettings] = None, n_worker: int = 1
    ) -> None:
        self.settings = settings or IPUSettings()
        n_shard = model.score_fn.sharding.n_shard
        _check_model(model, n_shard)
        super().__init__(model, PopTorchExchange(n_shard, self.settings.library), "cpu", n_worker)
        self._options: Dict[Tuple[bool, int], Any] = {}
        self._executors: Dict[bool, Any] = {}
        self._shapes: Dict[bool, int] = {}

    # -- steps -------------------------------------------------------------------------------------

    def training_step(
        self,
        optimizer: torch.optim.Optimizer,
        before_update: Optional[Callable[[], None]] = None,
    ) -> Callable[[Mapping[str, Tensor] | List[Planned]], Dict[str, Tensor]]:
        """A function that takes a batch, updates the model on the device, and returns its outputs.

        A batch is what a sampler or :meth:`dataloader` gives, its first two axes flattened or not;
        all batches have the same shapes. Outputs are those of the other runtimes, "loss" float32
        (M,). Hyper-parameters of the optimiser are read anew before each call.

        Args:
            optimizer: see :func:`make_optimizer`; of the model's parameters.
            before_update: must be None: there is no host between gradient and update.

        Raises:
            ConfigError: an optimiser that PopTorch has not, or a function before the update; (of
                the function) a number of micro-batches that cannot be accumulated.

        Raises (the function):
            ShapeError: a batch of other shapes than the first.
            NonFiniteLossError: a loss is not finite; it has been applied.
        """
        if before_update is not None:
            raise ConfigError(
                "before_update: the update follows on the device, where no function of the host can"
                " be called; use a regularizer in the loss, or another runtime"
            )
        if self.model.score_fn.entity_embedding.requires_grad is False:
            raise ConfigError("a frozen entity table: train with another runtime, or unfreeze it")
        _check_optimizer(optimizer, self.model)
        if True in self._executors:
            raise ConfigError("this runtime trains already; close it, and make the step anew")
        before: List[List[Dict[str, Any]]] = []

        def step(batch: Mapping[str, Tensor] | List[Planned]) -> Dict[str, Tensor]:
            self.model.train()
            groups = _hyper_parameters(optimizer)
            executor, columns = self._ready(True, batch, optimizer)
            if before and before[0] != groups:
                executor.setOptimizer(optimizer)
            before[:] = [groups]
            out = self._outputs(executor(**columns), self._shapes[True])
            if not bool(out["loss"].isfinite().all()):
                raise NonFiniteLossError(
                    f"the loss is {out['loss'].tolist()}, and has been applied; start again from the"
                    " last checkpoint with a lower learning rate or initial scale"
                )
            return out

        return step

    def inference_step(
        self,
    ) -> Callable[[Mapping[str, Tensor] | List[Planned]], Dict[str, Tensor]]:
        """A function that takes a batch and returns the model's outputs, stacked.

        Raises (the function):
            ShapeError: a batch of other shapes than the first.
        """

        def step(batch: Mapping[str, Tensor] | List[Planned]) -> Dict[str, Tensor]:
            self.model.eval()
            executor, columns = self._ready(False, batch)
            return self._outputs(executor(**columns), self._shapes[False])

        return step

    def dataloader(  # type: ignore[override]
        self, sampler: ShardedBatchSampler, epoch: int = 0, first_step: int = 0,
        shuffle: bool = True,
    ) -> Iterator[Dict[str, Tensor]]:  # fmt: skip
        """The batches of an epoch from `first_step` on, in order, as steps take them.

        Axes M and S are one, int32 instead of int64. Tensors live in memory that is shared with the
        process that makes them, and are overwritten: clone what is to outlive its turn.
        """
        import poptorch

        draws = [Draw(epoch, step, shuffle) for step in range(first_step, sampler.n_step)]
        if not draws:
            return
        ahead = dict(early_preload=True, buffer_size=BUFFER_SIZE)
        loader = poptorch.DataLoader(
            options=self._options_of(True, sampler.batches_per_step),
            dataset=_DeviceBatches(sampler, self._columns_taken),
            batch_size=None,
            sampler=draws,
            drop_last=False,
            num_workers=self.n_worker,
            auto_distributed_partitioning=False,
            **(
                dict(mode=poptorch.DataLoaderMode.Async, async_options=ahead)
                if self.n_worker
                else {}
            ),
        )
        try:
            yield from loader
        finally:
            if self.n_worker:
                loader.terminate()

    # -- weights -----------------------------------------------------------------------------------

    def to_host(self) -> None:
        """Bring the weights of the device to the model's parameters, (S, E, D) of all shards."""
        training = self._executors.get(True)
        if training is not None and training.isAttachedToDevice():
            training.copyWeightsToHost()

    def to_device(self) -> None:
        """Send the model's parameters to the device; for after a checkpoint was loaded."""
        for executor in self._executors.values():
            if executor.isAttachedToDevice():
                executor.copyWeightsToDevice()

    def close(self) -> None:
        """Bring the weights back, and give the IPUs back."""
        self.to_host()
        for executor in self._executors.values():
            executor.destroy()
        self._executors.clear()

    # -- programs ----------------------------------------------------------------------------------

    @property
    def _columns_taken(self) -> Tuple[str, ...]:
        return tuple(x for x in COLUMNS if x in self.model.inputs)

    def _ready(
        self,
        training: bool,
        batch: Mapping[str, Tensor] | List[Planned],
        optimizer: Optional[torch.optim.Optimizer] = None,
    ) -> Tuple[Any, Dict[str, Tensor]]:
        """The program, with the IPUs to itself, and the columns (M * S, ...) that it takes."""
        if isinstance(batch, list):
            raise ConfigError("batches of another runtime's dataloader; use that of IPURuntime")
        columns, n_micro = _flattened(batch, self._columns_taken, self.n_shard, self.model.paired)
        if self._shapes.setdefault(training, n_micro) != n_micro:
            raise ShapeError(
                f"a batch of {n_micro} micro-batches, but the program was compiled for"
                f" {self._shapes[training]}; every batch must have the same shapes"
            )
        other = self._executors.get(not training)
        if other is not None and other.isAttachedToDevice():
            other.detachFromDevice()  # which brings its weights to the host
        executor = self._executors.get(training)
        if executor is None:
            executor = self._executors[training] = self._wrap(training, n_micro, optimizer)
        elif executor.isCompiled() and not executor.isAttachedToDevice():
            executor.attachToDevice()
        return executor, columns

    def _wrap(
        self, training: bool, n_micro: int, optimizer: Optional[torch.optim.Optimizer]
    ) -> Any:
        import poptorch

        options, step = self._options_of(training, n_micro), _Step(self.model, training)
        if training:
            executor = poptorch.trainingModel(step, options=options, optimizer=optimizer)
        else:
            executor = poptorch.inferenceModel(step, options=options)
        table = self.model.score_fn.entity_embedding
        (name,) = (name for name, x in step.named_parameters() if x is table)
        # Each replica is a group of its own, with its part of the first axis.
        executor.per_replica_params[name] = (
            poptorch.CommGroupType.NoGrouping,
            0,
            poptorch.VariableRetrievalMode.OnePerGroup,
        )
        return executor

    def _options_of(self, training: bool, n_micro: int) -> Any:
        """PopTorch's options, the same object for a loader and a program."""
        if (training, n_micro) not in self._options:
            made = make_options(self.settings, self.n_shard, n_micro, training)
            self._options[training, n_micro] = made
        return self._options[training, n_micro]

    def _outputs(self, found: Mapping[str, Tensor], n_micro: int) -> Dict[str, Tensor]:
        """What replicas gave, one after another, as one process gives it for each micro-batch."""
        n_shard, outputs = self.n_shard, {}
        for name, x in found.items():
            if name == "loss":
                outputs[name] = x.reshape(n_micro, n_shard).mean(1)
            elif name == "metrics":  # (M * S, n_metric[, B])
                of_shards = x.unflatten(0, (n_micro, n_shard))
                if of_shards.dim() == 3:
                    outputs[name] = of_shards.sum(1, keepdim=True)
                else:
                    outputs[name] = of_shards.transpose(1, 2).flatten(2).unsqueeze(1)
            else:
                outputs[name] = x.unflatten(0, (n_micro, -1))
        return outputs


class _Step(nn.Module):
    """The module that PopTorch wraps: a model, whose loss is what training starts from."""

    def __init__(self, model: Model, training: bool) -> None:
        super().__init__()
        self.model, self._has_loss = model, training

    def forward(
        self,
        relation: Tensor,
        head: Optional[Tensor] = None,
        tail: Optional[Tensor] = None,
        negative: Optional[Tensor] = None,
        triple_mask: Optional[Tensor] = None,
        triple_weight: Optional[Tensor] = None,
        negative_mask: Optional[Tensor] = None,
        heads_replaced: Optional[Tensor] = None,
        hub: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        """A micro-batch of one replica, L = 1; see the model's own forward."""
        import poptorch

        given = (
            relation, head, tail, negative, triple_mask, triple_weight, negative_mask,
            heads_replaced, hub,
        )  # fmt: skip
        columns = {name: x for name, x in zip(COLUMNS, given) if x is not None}
        with tracing():
            out: Dict[str, Tensor] = self.model(**columns)
            if self._has_loss:
                out["loss"] = poptorch.identity_loss(out["loss"], "none")
        return out


class _DeviceBatches(Dataset[Dict[str, Tensor]]):
    """A sampler's batches, as a device takes them."""

    def __init__(self, sampler: ShardedBatchSampler, columns: Sequence[str]) -> None:
        self.sampler, self.columns = sampler, columns

    def __len__(self) -> int:
        return self.sampler.n_step

    def __getitem__(self, draw: Draw) -> Dict[str, Tensor]:
        n_shard, paired = self.sampler.n_shard, self.sampler.paired
        return _flattened(self.sampler[draw], self.columns, n_shard, paired)[0]


def _flattened(
    batch: Mapping[str, Tensor], names: Sequence[str], n_shard: int, paired: bool
) -> Tuple[Dict[str, Tensor], int]:
    """Columns (M, S, ...) or (M * S, ...) -> (M * S, ...), and M; of dtypes that a device has.

    Raises:
        ShapeError: the axes are not those.
    """
    columns = {name: batch[name] for name in names if name in batch}
    relation = columns["relation"]
    if relation.dim() == (4 if paired else 3):  # (M, S, [S,] P)
        columns = {name: x.flatten(end_dim=1) for name, x in columns.items()}
    n_row = columns["relation"].shape[0]
    if n_row % n_shard:
        raise ShapeError(
            f"relation has shape {tuple(relation.shape)}, expected (M * S, ...) with S={n_shard}"
        )
    narrow = {torch.int64: torch.int32, torch.float64: torch.float32}
    columns = {k: x.to(narrow.get(x.dtype, x.dtype)).contiguous() for k, x in columns.items()}
    return columns, n_row // n_shard


def make_options(settings: IPUSettings, n_shard: int, n_micro: int, training: bool) -> Any:
    """PopTorch's options of a program.

    Args:
        settings: of its compilation.
        n_shard: S, replicas.
        n_micro: M, micro-batches of a call.
        training: or else inference, which accumulates nothing.

    Returns:
        poptorch.Options, not frozen.

    Raises:
        ConfigError: micro-batches that cannot be accumulated, or several processes of poprun.
    """
    import poptorch

    accumulated = settings.gradient_accumulation if training else 1
    if n_micro % accumulated:
        raise ConfigError(
            f"batches_per_step is {n_micro}, expected a multiple of gradient_accumulation ="
            f" {accumulated}"
        )
    options = poptorch.Options()
    if options.Distributed.numProcesses > 1:
        raise ConfigError(
            f"poprun started {options.Distributed.numProcesses} processes, but the replicas that"
            " exchange are those of one; start it with --num-instances=1"
        )
    options.replicationFactor(n_shard)
    options.deviceIterations(n_micro // accumulated)
    options.outputMode(poptorch.OutputMode.All)
    options.showCompilationProgressBar(False)
    options.Training.gradientAccumulation(accumulated)
    # Losses of replicas are means over shards: the whole is their mean.
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.Precision.setPartialsType(torch.half if settings.half_partials else torch.float)
    options.Precision.enableStochasticRounding(settings.stochastic_rounding)
    if settings.available_memory is not None:
        options.setAvailableMemoryProportion({"IPU0": settings.available_memory})
    if settings.seed is not None:
        options.randomSeed(settings.seed)
    if settings.where == "model":
        options.useIpuModel(True)
    elif settings.executable_cache is not None:  # on the model it only warns
        options.enableExecutableCaching(str(settings.executable_cache))
    if training and settings.patterns:
        options._Popart.setPatterns(dict.fromkeys(settings.patterns, True))
    return options


class _Choice(NamedTuple):
    """An optimiser of PopTorch, and what it calls the dtypes of its state."""

    name: str
    state_dtypes: Tuple[str, ...]


_MOMENTS = ("first_order_momentum_accum_type", "second_order_momentum_accum_type")
OPTIMIZERS: Dict[str, _Choice] = {
    "sgd": _Choice("SGD", ("velocity_accum_type",)),
    "adam": _Choice("Adam", _MOMENTS),
    "adamw": _Choice("AdamW", _MOMENTS),
    "rmsprop": _Choice("RMSprop", _MOMENTS),
    "lamb": _Choice("LAMB", _MOMENTS),
}

_HAS = "PopTorch has SGD, Adam, AdamW, RMSprop and LAMB"
#: What others have that PopTorch has not, and what comes near.
INSTEAD = {
    "adagrad": "use 'rmsprop', whose mean of squares forgets, or 'adam'",
    "rowwise_adagrad": "use 'rmsprop' with float16 state, or 'adam'",
    "rowwise_adam": "use 'adam', with float16 for the first moment",
    "sparse_adam": "use 'adam', which updates all rows in every step",
}


def make_optimizer(
    name: str,
    parameters: Sequence[nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
    accumulator_dtype: torch.dtype = torch.float32,
    state_dtypes: Sequence[torch.dtype] = (),
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimiser of PopTorch.

    Args:
        name: "sgd", "adam", "adamw", "rmsprop" or "lamb". Of weight decay Adam makes an L2 term in
            the gradient; AdamW's is decoupled.
        parameters: of the model.
        lr: learning rate; may be changed between steps, as by torch's schedulers.
        weight_decay: its factor.
        accumulator_dtype: of gradients that are accumulated.
        state_dtypes: float32 or float16 for each moment: the velocity of SGD; the first and the
            second moment of the others. Those left out are float32.
        options: more of the optimiser, such as `momentum` or `betas`.

    Raises:
        ConfigError: PopTorch has no such optimiser, or no such dtypes.
    """
    import poptorch

    key = name.lower().replace("-", "_")
    if key not in OPTIMIZERS:
        raise ConfigError(f"no optimiser {name!r} on IPUs; {_instead(key)}")
    choice = OPTIMIZERS[key]
    dtypes = (accumulator_dtype, *state_dtypes)
    if len(state_dtypes) > len(choice.state_dtypes) or {*dtypes} - {torch.float32, torch.float16}:
        raise ConfigError(
            f"dtypes {tuple(map(str, dtypes))} of {choice.name}'s accumulator and state, expected"
            f" torch.float32 or torch.float16 for 1 and at most {len(choice.state_dtypes)}"
        )
    named = dict(zip(choice.state_dtypes, state_dtypes))
    made: torch.optim.Optimizer = getattr(poptorch.optim, choice.name)(
        parameters,
        lr=lr,
        weight_decay=weight_decay,
        accum_type=accumulator_dtype,
        **named,
        **options,
    )
    return made


def _instead(key: str) -> str:
    return f"{_HAS}; {INSTEAD[key]}" if key in INSTEAD else _HAS


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse what PopTorch has not."""
    import poptorch

    kind, known = type(optimizer).__name__, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    if isinstance(optimizer, RowOptimizer):
        key = str(getattr(optimizer, "name", "sgd"))
        near = "'adam', whose moments decay in every step, " if type(optimizer) is LazyAdam else ""
        near = near or ("'sgd' " if key == "sgd" else "")
        advice = f"{_HAS}; use {near}of make_optimizer" if near else _instead(key)
        raise ConfigError(f"{kind} updates rows apart, which IPUs do not; {advice}")
    if not isinstance(optimizer, (*known, torch.optim.RMSprop, poptorch.optim.LAMB)):
        key = {"SparseAdam": "sparse_adam"}.get(kind, kind.lower())
        raise ConfigError(f"no optimiser {kind} on IPUs; {_instead(key)}")
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise ConfigError(f"no amsgrad on IPUs; use {kind} without it")
    held = {id(x) for group in optimizer.param_groups for x in group["params"]}
    missing = [
        name for name, x in model.named_parameters() if x.requires_grad and id(x) not in held
    ]
    if missing:
        raise ConfigError(f"the optimiser lacks {missing}; make it of model.parameters()")


def _hyper_parameters(optimizer: torch.optim.Optimizer) -> List[Dict[str, Any]]:
    return [{k: x for k, x in group.items() if k != "params"} for group in optimizer.param_groups]


def _check_model(model: Model, n_shard: int) -> None:
    """Refuse, by name, what cannot be a program of static shapes."""
    if n_shard & (n_shard - 1) or not 1 <= n_shard <= MOST_IPUS:
        raise ConfigError(
            f"{n_shard} shards, but IPUs come in powers of two, up to {MOST_IPUS} for one process;"
            f" give n_shard = {min(1 << (n_shard - 1).bit_length(), MOST_IPUS)}"
        )
    if isinstance(model, AllEntitiesBessKGE):
        raise ConfigError(
            f"{type(model).__name__} makes its gradients a tile at a time, which PopTorch cannot; on"
            " IPUs train with sampled negatives, or use another runtime"
        )
    if "step" in model.inputs:
        raise ConfigError(
            f"{type(model).__name__} is driven by AllScoresPipeline; ask TopKQueryBessKGE on IPUs, or"
            " use another runtime"
        )
    if getattr(model.negative_sampler, "known", None) is not None:
        raise ConfigError(
            "negatives that are true triples are found as a list, whose length differs from batch to"
            " batch; on IPUs, sample without `known`"
        )
    for module in model.modules():
        _check_part(module)


def _check_part(module: nn.Module) -> None:
    if isinstance(module, EmbeddingRegularizer):
        raise ConfigError(
            "the regularizer of an embedding takes rows by a mask, so many as there are; on IPUs give"
            " the model one of besskge_core.regularizer"
        )
    if isinstance(module, Embedding):
        if module.constrainer is not None and module.weight.requires_grad:
            raise ConfigError(
                "a constrainer changes weights between steps, which are on the device; on IPUs use a"
                " normalizer"
            )
        if module.unique:
            raise ConfigError("unique=True makes as many rows as there are; leave it out on IPUs")
        if module.dtype.is_complex:
            raise ConfigError(
                f"representations are {module.dtype}, and IPUs have no complex numbers; use a score"
                " function whose rows are real and imaginary parts"
            )
    if isinstance(module, CircularConvolution):
        raise ConfigError(
            "HolE is computed with Fourier transforms, which PopTorch has not; ComplEx has the same"
            " scores, and is cheaper"
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
        raise ConfigError(
            f"{type(module).__name__} keeps statistics, which differ between replicas, and PopTorch"
            " does not say whose come back; on IPUs leave it out, or use another runtime"
        )
