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

from besskge_core.batch_sampler import Draw, ShardedBatchSampler
from besskge_core.errors import ConfigError, NonFiniteLossError, ShapeError
from besskge_core.exchange import Exchange, LocalExchange, PopTorchExchange
from besskge_core.exchange.poptorch import NativeLibrary
from besskge_core.ops.tracing import tracing
from besskge_core.runtime.base import Model, Planned, Runtime
from besskge_core.runtime.ipu.batches import COLUMNS, DeviceBatches, flattened
from besskge_core.runtime.ipu.checks import check_model
from besskge_core.runtime.ipu.optimizers import check_optimizer, hyper_parameters
from besskge_core.runtime.ipu.settings import IPUSettings, make_options

#: Host memory that a batch may be made in ahead, in batches.
BUFFER_SIZE = 3

#: What a program does with columns (M * S, ...).
Run = Callable[[Dict[str, Tensor]], Dict[str, Tensor]]


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
        super().__init__(model, self._exchange_of(n_shard), "cpu", n_worker)
        self._optimizer: Optional[torch.optim.Optimizer] = None
        self._options: Dict[Tuple[bool, int], Any] = {}
        self._executors: Dict[bool, Any] = {}
        self._shapes: Dict[bool, Dict[str, Tuple[int, ...]]] = {}

    def _exchange_of(self, n_shard: int) -> Exchange:
        library = self.settings.library
        return PopTorchExchange(n_shard, None if library is None else NativeLibrary(library))

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
        run = self._training_program(optimizer)

        def step(batch: Mapping[str, Tensor] | Sequence[Planned]) -> Dict[str, Tensor]:
            self.model.train()
            out = run(self._columns_of(True, batch))
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

        run = self._inference_program()

        def step(batch: Mapping[str, Tensor] | Sequence[Planned]) -> Dict[str, Tensor]:
            self.model.eval()
            return run(self._columns_of(False, batch))

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
            dataset=DeviceBatches(sampler, self._columns_taken),
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

    @property
    def host_exchange(self) -> Exchange:
        return LocalExchange(self.n_shard)

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

    def _columns_of(
        self, training: bool, batch: Mapping[str, Tensor] | Sequence[Planned]
    ) -> Dict[str, Tensor]:
        """The columns (M * S, ...) that a program takes, of the shapes that it was made for."""
        if not isinstance(batch, Mapping):
            raise ConfigError("batches of another runtime's dataloader; use that of IPURuntime")
        columns = flattened(batch, self._columns_taken, self.n_shard, self.model.paired)
        shapes = {name: tuple(x.shape) for name, x in columns.items()}
        if self._shapes.setdefault(training, shapes) != shapes:
            raise ShapeError(
                f"a batch of shapes {shapes}, but the program was compiled for"
                f" {self._shapes[training]}; every batch must have the same"
            )
        return columns

    def _n_micro(self, training: bool) -> int:
        return self._shapes[training]["relation"][0] // self.n_shard

    def _training_program(self, optimizer: torch.optim.Optimizer) -> Run:
        """Takes columns, updates the weights of the device, and gives outputs (M, ...)."""
        if True in self._executors and optimizer is not self._optimizer:
            raise ConfigError(
                "this runtime trains with another optimizer already; close it, and make the step anew"
            )
        self._optimizer = optimizer
        before: List[List[Dict[str, Any]]] = []

        def run(columns: Dict[str, Tensor]) -> Dict[str, Tensor]:
            groups = hyper_parameters(optimizer)
            executor = self._ready(True, optimizer)
            if before and before[0] != groups:
                executor.setOptimizer(optimizer)
            before[:] = [groups]
            return self._outputs(executor(**columns), self._n_micro(True))

        return run

    def _inference_program(self) -> Run:
        def run(columns: Dict[str, Tensor]) -> Dict[str, Tensor]:
            return self._outputs(self._ready(False)(**columns), self._n_micro(False))

        return run

    def _ready(self, training: bool, optimizer: Optional[torch.optim.Optimizer] = None) -> Any:
        """PopTorch's program, with the IPUs to itself."""
        other = self._executors.get(not training)
        if other is not None and other.isAttachedToDevice():
            other.detachFromDevice()  # which brings its weights to the host
        executor = self._executors.get(training)
        if executor is None:
            executor = self._wrap(training, self._n_micro(training), optimizer)
            self._executors[training] = executor
        elif executor.isCompiled() and not executor.isAttachedToDevice():
            executor.attachToDevice()
        return executor

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
        assert isinstance(self.model.exchange, PopTorchExchange)
        with tracing(self.model.exchange.library):
            out: Dict[str, Tensor] = self.model(**columns)
            if self._has_loss:
                out["loss"] = poptorch.identity_loss(out["loss"], "none")
        return out
