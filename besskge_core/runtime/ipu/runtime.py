"""Steps, batches and weights of a program that PopTorch compiles."""

from __future__ import annotations

from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from besskge_core.batch_sampler import Draw, ShardedBatchSampler
from besskge_core.errors import ConfigError, NonFiniteLossError, ShapeError
from besskge_core.exchange import PopTorchExchange
from besskge_core.ops.tracing import tracing
from besskge_core.runtime.base import Model, Planned, Runtime
from besskge_core.runtime.ipu.checks import check_model
from besskge_core.runtime.ipu.optimizers import check_optimizer, hyper_parameters
from besskge_core.runtime.ipu.settings import IPUSettings, make_options

#: Host memory that a batch may be made in ahead, in batches.
BUFFER_SIZE = 3

#: Columns of batches; what a step does not take is left behind.
COLUMNS = (
    "relation", "head", "tail", "negative", "triple_mask", "triple_weight", "negative_mask",
    "heads_replaced", "hub",
)  # fmt: skip


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
        check_model(model, n_shard)
        super().__init__(model, PopTorchExchange(n_shard, self.settings.library), "cpu", n_worker)
        self._options: Dict[Tuple[bool, int], Any] = {}
        self._executors: Dict[bool, Any] = {}
        self._shapes: Dict[bool, int] = {}

    # -- steps -------------------------------------------------------------------------------------

    def training_step(
        self,
        optimizer: torch.optim.Optimizer,
        before_update: Optional[Callable[[], None]] = None,
    ) -> Callable[[Mapping[str, Tensor] | Sequence[Planned]], Dict[str, Tensor]]:
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
        check_optimizer(optimizer, self.model)
        if True in self._executors:
            raise ConfigError("this runtime trains already; close it, and make the step anew")
        before: List[List[Dict[str, Any]]] = []

        def step(batch: Mapping[str, Tensor] | Sequence[Planned]) -> Dict[str, Tensor]:
            self.model.train()
            groups = hyper_parameters(optimizer)
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
    ) -> Callable[[Mapping[str, Tensor] | Sequence[Planned]], Dict[str, Tensor]]:
        """A function that takes a batch and returns the model's outputs, stacked.

        Raises (the function):
            ShapeError: a batch of other shapes than the first.
        """

        def step(batch: Mapping[str, Tensor] | Sequence[Planned]) -> Dict[str, Tensor]:
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
        batch: Mapping[str, Tensor] | Sequence[Planned],
        optimizer: Optional[torch.optim.Optimizer] = None,
    ) -> Tuple[Any, Dict[str, Tensor]]:
        """The program, with the IPUs to itself, and the columns (M * S, ...) that it takes."""
        if not isinstance(batch, Mapping):
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
