"""All shards on one GPU, which draws its batches itself: the host only says "next".

The triples and the sampler are on the device, beside the tables and the optimiser's state. Batches
are those of the host's sampler, integer for integer, so that a run gives the same on either. A step
is one CUDA graph: it takes the next micro-batch of a window, scores it, and updates. Nothing in it
waits for the device, and no shape depends on what is drawn.

The loss is looked at now and then, not at each step: once it is not finite no later step changes
a weight, and :class:`NonFiniteLossError` comes some steps late.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from besskge_core.batch_sampler import (
    ResidentBatches,
    ShardedBatchSampler,
    bytes_on_device,
    why_not_resident,
)
from besskge_core.bess import AllEntitiesBessKGE, BessKGE
from besskge_core.bess.resident_filter import why_no_filter
from besskge_core.embedding import Embedding
from besskge_core.errors import NonFiniteLossError
from besskge_core.ops import RowPlan
from besskge_core.optim import RowOptimizer, RuleOptimizer
from besskge_core.runtime.base import (
    AFTER_NO_LOSS,
    Model,
    Planned,
    StepBatch,
    nothing,
    stack_outputs,
)
from besskge_core.runtime.clock import DeviceClock
from besskge_core.runtime.devices import checked_device
from besskge_core.runtime.graphs import Replayed
from besskge_core.runtime.local import LocalRuntime
from besskge_core.runtime.memory import available_memory
from besskge_core.runtime.window import Window

#: Micro-batches between two looks at the loss; the one that is not finite is at most twice as far back.
LOOK_EVERY = 64


class Turn(Sequence[Planned]):
    """A step of a window: its micro-batches, taken when they are asked for."""

    def __init__(self, drawing: Drawing, epoch: int, step: int) -> None:
        self.drawing, self.epoch, self.step = drawing, epoch, step

    def __len__(self) -> int:
        return self.drawing.window.n_micro

    def __iter__(self) -> Iterator[Planned]:
        return (self[micro] for micro in range(len(self)))

    def __getitem__(self, micro: Union[int, slice]) -> Planned:  # type: ignore[override]
        if not isinstance(micro, int) or not 0 <= micro < len(self):
            raise IndexError(f"micro-batch {micro} of a step of {len(self)}")
        self.turn_to(micro)
        return self.drawing.window.take()

    def turn_to(self, micro: int) -> None:
        """Have the window take one of them next."""
        self.drawing.window.turn_to(self.epoch, self.step, micro, self.drawing.fill)


class Drawing(NamedTuple):
    """The window of a sampler, and how it is filled."""

    sampler: ShardedBatchSampler
    shuffle: bool
    window: Window
    fill: Replayed[None]


class _Program(NamedTuple):
    """The step of a window and an optimiser."""

    drawing: Drawing
    tensors: Tuple[int, ...]
    clock: DeviceClock
    run: Replayed[Dict[str, Tensor]]


class ResidentRuntime(LocalRuntime):
    """Runs steps on one GPU, with batches drawn there.

    What cannot be drawn there is made on the host as in :class:`LocalRuntime`, and copied; why,
    :attr:`reason` says. So it is with given negatives, with a sampler that draws in a way of its own,
    and with a model whose batches the host completes. Optimisers of torch, or a
    `before_update`, get each step launched by itself.

    Args:
        model, n_worker: see :class:`LocalRuntime`.
        device: of the tables. "cpu" does the same in plain torch, step by step, for tests.

    Attributes:
        reason: why the last batches were made on the host; empty if they were not.

    Raises:
        ConfigError: there is no such device.
        MemoryError: the tables do not fit on it.
    """

    losses_at_once = LOOK_EVERY

    def __init__(self, model: Model, device: str = "cuda", n_worker: int = 1) -> None:
        own = [*model.parameters(), *model.buffers()]
        at = checked_device(device)
        away = sum(x.numel() * x.element_size() for x in own if x.device != at)
        _check_fits("the tables take", away, at)
        super().__init__(model, device, n_worker)
        self.reason = ""
        self._drawing: Optional[Drawing] = None
        self._programs: List[_Program] = []
        self._is_finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._clock: Optional[DeviceClock] = None
        self._n_since, self._seen = 0, _Seen()

    def dataloader(
        self, sampler: ShardedBatchSampler, epoch: int = 0, first_step: int = 0,
        shuffle: bool = True,
    ) -> Iterator[Sequence[Planned]]:  # fmt: skip
        """The batches of an epoch from `first_step` on, in order, drawn when a step needs them."""
        reason = self._why_on_host(sampler)
        if reason != self.reason:
            self.reason = reason
            if reason:
                logging.getLogger("besskge_core").warning(
                    "batches are made on the host and copied to %s: %s", self.device, reason
                )
        if reason:
            yield from super().dataloader(sampler, epoch, first_step, shuffle)
            return
        drawing = self._drawing_of(sampler, shuffle)
        for step in range(first_step, sampler.n_step):
            yield Turn(drawing, epoch, step)

    def training_step(
        self,
        optimizer: torch.optim.Optimizer,
        before_update: Callable[[], None] = nothing,
    ) -> Callable[[StepBatch], Dict[str, Tensor]]:
        """See the base class.

        Raises (the function):
            NonFiniteLossError: the loss of a step was not finite, at most 2 * 64 micro-batches
                before; of these the first that was so has not been applied, nor any since.
        """
        one_by_one = super().training_step(optimizer, before_update)
        if not isinstance(optimizer, RowOptimizer) or before_update is not nothing:
            return one_by_one
        if isinstance(optimizer, RuleOptimizer) and not optimizer.state:
            _check_fits("the optimiser's state takes", optimizer.bytes_of_state(), self.device)

        def step(batch: StepBatch) -> Dict[str, Tensor]:
            if not isinstance(batch, Turn):
                return one_by_one(batch)
            if not self.model.training:
                self.model.train()
            program = self._program(batch.drawing, optimizer)
            program.clock.set()
            found = []
            for micro in range(len(batch)):
                batch.turn_to(micro)
                out = program.run()  # which the next run overwrites
                found.append(out if len(batch) == 1 else {k: x.clone() for k, x in out.items()})
                program.clock.count()
                self._look()
            return stack_outputs(found)

        return step

    # -- batches -------------------------------------------------------------------------------------

    def _why_on_host(self, sampler: ShardedBatchSampler) -> str:
        reason = why_not_resident(sampler)
        completed = getattr(type(self.model), "prepare", None)
        if not reason and completed not in (BessKGE.prepare, AllEntitiesBessKGE.prepare):
            reason = f"the host completes the batches of {type(self.model).__name__}"
        if not reason and sampler.negative_sampler.known is not None:
            reason = why_no_filter(sampler.negative_sampler.known)
        if not reason and self._constrained():
            reason = "an embedding has a constrainer, which is told the rows that changed"
        known = self._drawing is not None and self._drawing.sampler is sampler
        if not reason and not known:
            needed, free = bytes_on_device(sampler), available_memory(self.device)
            if needed > free:
                reason = f"the triples take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        return reason

    def _constrained(self) -> bool:
        modules = self.model.modules()
        return any(isinstance(x, Embedding) and x.constrainer is not None for x in modules)

    def _drawing_of(self, sampler: ShardedBatchSampler, shuffle: bool) -> Drawing:
        known = self._drawing
        if known is not None and known.sampler is sampler and known.shuffle == shuffle:
            return known
        self._programs.clear()
        batches = ResidentBatches(sampler, self.device, 1, shuffle)
        window = Window(batches, self.model)
        self._drawing = Drawing(sampler, shuffle, window, Replayed(window.fill, self.device))
        return self._drawing

    # -- steps -----------------------------------------------------------------------------------------

    def _program(self, drawing: Drawing, optimizer: RowOptimizer) -> _Program:
        tensors = self._tensors(optimizer)
        for program in self._programs:
            if program.drawing is drawing and program.tensors == tensors:
                return program
        clock = DeviceClock(optimizer, self.device)

        def run() -> Dict[str, Tensor]:
            # Here alone, so that other steps of the optimiser read what the host says.
            optimizer.clock = self._clock = clock
            try:
                return self._train(drawing.window.take(), optimizer, nothing)
            finally:
                optimizer.clock = self._clock = None

        program = _Program(drawing, tensors, clock, Replayed(run, self.device))
        # The state is made by the first step, and is then another.
        self._programs[:] = [program]
        return program

    def _tensors(self, optimizer: RowOptimizer) -> Tuple[int, ...]:
        """Where weights and state lie, which a graph has by heart."""
        own = list(self.model.parameters())
        state = [x for p in own for x in optimizer.state.get(p, {}).values()]
        places = [x.data_ptr() for x in (*own, *state) if isinstance(x, Tensor)]
        return (id(optimizer), *places)

    def _checked(self, loss: Tensor, plan: Optional[RowPlan]) -> Optional[RowPlan]:
        if self._clock is None:
            return super()._checked(loss, plan)
        goes_on = self._is_finite.logical_and_(torch.isfinite(loss))
        self._clock.hold(goes_on)
        table = self.model.entity_embedding
        for parameter in self.model.parameters():
            grad = parameter.grad
            if grad is None or (grad.is_sparse and parameter is table and plan is not None):
                continue  # of rows that are named below
            (grad._values() if grad.is_sparse else grad).masked_fill_(~goes_on, 0.0)
        if plan is None:
            return None
        none = table[..., 0].numel()  # padding, which changes nothing
        return plan._replace(unique_rows=torch.where(goes_on, plan.unique_rows, none))

    def _look(self) -> None:
        self._n_since += 1
        if self._n_since < LOOK_EVERY:
            return
        self._n_since = 0
        if self._seen.is_false():
            self._seen = _Seen()
            self._is_finite.fill_(True)
            raise NonFiniteLossError(
                f"a loss was not finite, {LOOK_EVERY} to {2 * LOOK_EVERY} micro-batches ago, and no"
                f" step since has changed a weight; {AFTER_NO_LOSS}"
            )
        self._seen.copy(self._is_finite)


def runtime_alone(
    model: Model, device: Union[str, torch.device] = "cpu", n_worker: int = 1
) -> LocalRuntime:
    """The runtime of one process, by its device."""
    make = ResidentRuntime if torch.device(device).type == "cuda" else LocalRuntime
    return make(model, str(device), n_worker)


class _Seen:
    """What a flag on the device was, a while ago."""

    def __init__(self) -> None:
        self._flag: Optional[Tensor] = None
        self._copied: Optional[torch.cuda.Event] = None

    def copy(self, flag: Tensor) -> None:
        """Remember what it will be when the device comes to this."""
        if flag.device.type == "cpu":
            self._flag = flag.clone()
            return
        self._flag = torch.ones((), dtype=torch.bool, pin_memory=True)
        self._flag.copy_(flag, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    def is_false(self) -> bool:
        """Whether it was; waits for the device to have come there, as it long has."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._flag is not None and not bool(self._flag)


def _check_fits(what: str, n_byte: int, device: torch.device) -> None:
    free = available_memory(device)
    if n_byte > free:
        raise MemoryError(
            f"{what} {n_byte / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free on {device}: take"
            " bfloat16 tables, a smaller dim, the optimiser 'rowwise_adagrad', or more GPUs with"
            " torchrun"
        )
