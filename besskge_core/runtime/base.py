"""How a step is driven, whoever else takes part in it.

A step of M micro-batches is M forward passes, each with its backward pass and update. Batches and
their row plans are made ahead by worker threads; since a batch is a pure function of its
position, who makes it does not matter.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import (
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Union,
)

import torch
from torch import Tensor

from besskge_core.ahead import in_order
from besskge_core.batch_sampler import Batch, ShardedBatchSampler
from besskge_core.bess import AllEntitiesBessKGE, BessKGE
from besskge_core.bess.queries import QueryBESS
from besskge_core.errors import NonFiniteLossError, ShapeError
from besskge_core.exchange import Exchange
from besskge_core.ops import RowPlan, plan_rows, prefer_huge_pages, sparse_rows
from besskge_core.optim import RowOptimizer
from besskge_core.philox import Position
from besskge_core.runtime.devices import checked_device

#: Optimisers of torch that take sparse gradients, unless they decay weights.
TAKE_SPARSE = (torch.optim.SGD, torch.optim.SparseAdam, torch.optim.Adagrad)

AFTER_NO_LOSS = (
    "lower the learning rate or the initial scale, or start again from the last checkpoint"
)

Model = Union[BessKGE, AllEntitiesBessKGE, QueryBESS]


class Planned(NamedTuple):
    """A micro-batch with leading axis L, the rows that it reads, and their grouping, if known."""

    columns: Dict[str, Tensor]
    rows: Optional[Tensor] = None
    plan: Optional[RowPlan] = None


#: What a step takes: columns of a sampler, or what :meth:`Runtime.dataloader` gives.
StepBatch = Union[Mapping[str, Tensor], Sequence[Planned]]


def nothing() -> None:
    """Done before an update, unless something else is."""


class Runtime:
    """Runs steps of the shards that an exchange says are hosted here.

    Args:
        model: the module of `besskge_core.bess`; it is moved to the device, and its exchange is
            set.
        exchange: the collectives.
        device: where tables live and steps run.
        n_worker: threads that make batches ahead; 0: batches are made when they are asked for.

    Attributes:
        losses_at_once: steps after which their losses are worth looking at; to look sooner is to wait
            for the device.

    Raises:
        ConfigError: there is no such device.
    """

    losses_at_once = 1

    def __init__(
        self, model: Model, exchange: Exchange, device: Union[str, torch.device], n_worker: int
    ) -> None:
        self.device, self.n_worker = checked_device(device), n_worker
        self.exchange, self.n_shard = exchange, exchange.n_shard
        self.model = model.to(self.device)
        self.model.exchange = exchange
        #: Prepares batches in another thread; it may have an exchange of its own.
        self._planner = self.model

    def training_step(
        self,
        optimizer: torch.optim.Optimizer,
        before_update: Callable[[], None] = nothing,
    ) -> Callable[[StepBatch], Dict[str, Tensor]]:
        """A function that takes a batch, updates the model, and returns its outputs.

        A batch is what a sampler or :meth:`dataloader` gives, its first two axes flattened or
        not. Outputs of the micro-batches are stacked, "loss" (M,).

        Args:
            optimizer: of the model's parameters. Those of torch that take no sparse gradients are
                given dense ones, as large as the table.
            before_update: called when gradients are there.

        Raises (the function):
            NonFiniteLossError: the loss is not finite; that micro-batch has not been applied.
        """

        kept = (x for state in optimizer.state.values() for x in state.values())
        for x in (*self.model.parameters(), *kept):
            if isinstance(x, Tensor):
                prefer_huge_pages(x)

        def step(batch: StepBatch) -> Dict[str, Tensor]:
            if not self.model.training:
                self.model.train()
            micros = self._micro_batches(batch)
            return stack_outputs([self._train(micro, optimizer, before_update) for micro in micros])

        return step

    def inference_step(
        self,
    ) -> Callable[[StepBatch], Dict[str, Tensor]]:
        """A function that takes a batch and returns the model's outputs, stacked."""

        @torch.no_grad()
        def step(batch: StepBatch) -> Dict[str, Tensor]:
            self.model.eval()
            return stack_outputs(
                [self.model(**micro.columns) for micro in self._micro_batches(batch)]
            )

        return step

    def dataloader(
        self, sampler: ShardedBatchSampler, epoch: int = 0, first_step: int = 0,
        shuffle: bool = True,
    ) -> Iterator[Sequence[Planned]]:  # fmt: skip
        """The batches of an epoch from `first_step` on, planned, in order."""

        def make(step: int) -> List[Planned]:
            batch = self._draw(sampler, Position(epoch, step), shuffle)
            return [self._moved(self._plan(columns)) for columns in self._split(batch)]

        steps = iter(range(first_step, sampler.n_step))
        if self.n_worker == 0:
            yield from map(make, steps)
            return
        # Of several ranks all make the batches that were asked for: they exchange parts of them.
        alone = self.exchange.n_rank == 1
        with ThreadPoolExecutor(self.n_worker) as pool:
            yield from in_order(pool, make, steps, 2 * self.n_worker, cancel=alone)

    @property
    def host_exchange(self) -> Exchange:
        """The collectives of those who have the rows on the host, outside of steps."""
        return self.exchange

    # -- weights -----------------------------------------------------------------------------------

    def to_host(self) -> None:
        """Have the model's parameters hold what was trained; here they do."""

    def to_device(self) -> None:
        """Have steps use what the model's parameters hold; here they do."""

    def description(self) -> str:
        """What is known of the programs that steps are, for people; here nothing."""
        return ""

    def close(self) -> None:
        """Give back what is held besides the model; here nothing."""

    # -- what depends on who else takes part -------------------------------------------------------

    def any_rank(self, *flags: bool) -> Sequence[bool]:
        """Of each flag, whether some rank has raised it; the same on all."""
        return flags

    def _draw(self, sampler: ShardedBatchSampler, position: Position, shuffle: bool) -> Batch:
        """The hosted shards' part of a batch."""
        return sampler.batch(position, shuffle)

    def _reduce(self, loss: Tensor) -> Tensor:
        """Sum the gradients of what every rank has, and the loss of each into the loss of all."""
        return loss

    # -- steps -------------------------------------------------------------------------------------

    def _micro_batches(self, batch: StepBatch) -> Sequence[Planned]:
        if not isinstance(batch, Mapping):
            return batch
        return [self._moved(Planned(columns)) for columns in self._split(batch)]

    def _split(self, batch: Mapping[str, Tensor]) -> List[Dict[str, Tensor]]:
        """Columns (M, S or L, ...) or (M * S, ...) -> M times columns (L, ...)."""
        columns = {x: batch[x] for x in self.model.inputs if x in batch}
        n_axis = 4 if self.model.paired else 3  # of (M, S, [S,] P)
        if batch["relation"].dim() == n_axis - 1:
            if batch["relation"].shape[0] % self.n_shard:
                raise ShapeError(
                    f"relation has shape {tuple(batch['relation'].shape)}, expected (M * S, ...)"
                    f" with S={self.n_shard}"
                )
            columns = {k: x.unflatten(0, (-1, self.n_shard)) for k, x in columns.items()}
        hosted = self.exchange.hosted
        if columns["relation"].shape[1] == self.n_shard > len(hosted):
            columns = {k: x[:, hosted.start : hosted.stop] for k, x in columns.items()}
        return [dict(zip(columns, micro)) for micro in zip(*(x.unbind() for x in columns.values()))]

    def _plan(self, columns: Dict[str, Tensor]) -> Planned:
        planner = self._planner
        if isinstance(planner, QueryBESS):
            return Planned(columns)
        columns = planner.prepare(columns)
        if isinstance(planner, AllEntitiesBessKGE):
            return Planned(columns)
        rows = planner.rows_read(columns)
        if rows is None:
            return Planned(columns)
        return Planned(columns, rows, plan_rows(rows, self.model.entity_embedding[..., 0].numel()))

    def _moved(self, micro: Planned) -> Planned:
        """Where steps run; from pinned memory, so that nobody waits for a GPU."""

        def moved(x: Tensor) -> Tensor:
            if x.device == self.device or self.device.type == "cpu":
                return x
            return x.pin_memory().to(self.device, non_blocking=True)

        plan = None if micro.plan is None else RowPlan(*map(moved, micro.plan))
        rows = None if micro.rows is None else moved(micro.rows)
        return Planned({name: moved(x) for name, x in micro.columns.items()}, rows, plan)

    def _train(
        self, micro: Planned, optimizer: torch.optim.Optimizer, before_update: Callable[[], None]
    ) -> Dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        # Only sampled negatives have a plan, and a batch without one needs none.
        planned = {} if micro.plan is None else {"rows": micro.rows, "plan": micro.plan}
        out = self.model(**micro.columns, **planned)
        # The loss of all ranks is the mean of theirs.
        share = 1.0 / self.exchange.n_rank
        (out["loss"] if share == 1.0 else out["loss"] * share).backward()
        out["loss"] = self._reduce(out["loss"].detach())
        plan = self._checked(out["loss"], micro.plan)
        decays = any(group.get("weight_decay") for group in optimizer.param_groups)
        takes_sparse = isinstance(optimizer, TAKE_SPARSE) and not decays
        if not (takes_sparse or isinstance(optimizer, RowOptimizer)):
            make_dense(self.model.parameters())
        before_update()
        if isinstance(optimizer, RowOptimizer):
            optimizer.step(plans=None if plan is None else {self.model.entity_embedding: plan})
        else:
            optimizer.step()
        self.model.score_fn.post_parameter_update(self._changed_rows(optimizer, plan))
        return {name: value.detach() for name, value in out.items()}

    def _checked(self, loss: Tensor, plan: Optional[RowPlan]) -> Optional[RowPlan]:
        """The rows to update, if the loss is finite.

        Raises:
            NonFiniteLossError: it is not.
        """
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {loss.item()}; {AFTER_NO_LOSS}")
        return plan

    def _changed_rows(
        self, optimizer: torch.optim.Optimizer, plan: Optional[RowPlan]
    ) -> Optional[Tensor]:
        """Entity rows (U,) that an update changed, in tables laid end to end; None: all."""
        grad = self.model.entity_embedding.grad
        # The momentum of torch's SGD goes on moving rows of earlier steps.
        lags = isinstance(optimizer, torch.optim.SGD) and any(
            group["momentum"] for group in optimizer.param_groups
        )
        if grad is None or not grad.is_sparse or lags:
            return None
        return sparse_rows(grad) if plan is None else plan.unique_rows


def make_dense(parameters: Iterable[Tensor]) -> None:
    """Replace sparse gradients by dense ones."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


def stack_outputs(outputs: List[Dict[str, Tensor]]) -> Dict[str, Tensor]:
    """Outputs of micro-batches -> (M, ...)."""
    return {name: torch.stack([out[name] for out in outputs]) for name in outputs[0]}
