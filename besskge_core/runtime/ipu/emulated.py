"""Steps of the local runtime under the rules of IPUs, for machines without them and without an SDK.

The first batch of a step is traced as the program of a replica, which must keep the rules of
:mod:`besskge_core.runtime.ipu.rules` and fit into an IPU's memory. Then all replicas run here, as one
process runs its shards: updates are of whole tables, gradients are accumulated, shapes stay what they
were. What it cannot show: time, random numbers of the device, and how float16 rounds on it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, Iterator, List, Optional

import torch
from torch import Tensor

from besskge_core.ahead import in_order
from besskge_core.batch_sampler import Draw, ShardedBatchSampler
from besskge_core.exchange import Exchange, LocalExchange
from besskge_core.runtime.base import Model, make_dense, stack_outputs
from besskge_core.runtime.ipu.batches import DeviceBatches
from besskge_core.runtime.ipu.emulated_optimizers import LAMB, in_float32
from besskge_core.runtime.ipu.program import Program, check_memory, compile_program
from besskge_core.runtime.ipu.runtime import IPURuntime, Run
from besskge_core.runtime.ipu.settings import (
    N_INSTANCE,
    IPUSettings,
    check_instances,
    updates_of,
)

#: Bytes of a number of accumulated gradients.
ACCUMULATOR = 4


class EmulatedIPURuntime(IPURuntime):
    """Runs steps as so many IPUs as the model has shards would; arguments of :class:`IPURuntime`.

    Attributes:
        programs: what was found of the step of training (True) and of inference (False).

    Raises:
        ConfigError: what cannot be compiled, by name, with what to use instead.
        ProgramError: (of steps) the program breaks a rule, or does not fit.
    """

    def __init__(
        self, model: Model, settings: Optional[IPUSettings] = None, n_worker: int = 1
    ) -> None:
        super().__init__(model, settings, n_worker)
        self.programs: Dict[bool, Program] = {}

    def _exchange_of(self, n_shard: int) -> Exchange:
        check_instances(self.settings, int(os.environ.get(N_INSTANCE, "1")))
        return LocalExchange(n_shard)

    def dataloader(  # type: ignore[override]
        self, sampler: ShardedBatchSampler, epoch: int = 0, first_step: int = 0,
        shuffle: bool = True,
    ) -> Iterator[Dict[str, Tensor]]:  # fmt: skip
        """The batches of an epoch from `first_step` on, in order, as steps take them."""
        batches = DeviceBatches(sampler, self._columns_taken)
        draws = (Draw(epoch, step, shuffle) for step in range(first_step, sampler.n_step))
        if not self.n_worker:
            yield from map(batches.__getitem__, draws)
            return
        with ThreadPoolExecutor(self.n_worker) as pool:
            yield from in_order(pool, batches.__getitem__, draws, 2 * self.n_worker)

    def to_host(self) -> None:
        """Weights are here."""

    def to_device(self) -> None:
        """Weights are here."""

    def description(self) -> str:
        return "".join(f"{program}\n" for program in self.programs.values())

    def close(self) -> None:
        """Forget the programs; there is no device to give back."""
        self.programs.clear()
        self._shapes.clear()

    def _compile(
        self, columns: Dict[str, Tensor], optimizer: Optional[torch.optim.Optimizer] = None
    ) -> None:
        training = optimizer is not None
        if training in self.programs:
            return
        accumulates = training and self.settings.gradient_accumulation > 1
        of_replica = {name: x[:1] for name, x in columns.items()}
        program = compile_program(
            self.model, of_replica, optimizer, ACCUMULATOR if accumulates else 0,
            self.settings.library is not None,
        )  # fmt: skip
        check_memory(program)
        self.programs[training] = program

    def _training_program(self, optimizer: torch.optim.Optimizer) -> Run:
        n_sum, table = self.settings.gradient_accumulation, self.model.score_fn.entity_embedding
        parameters = [x for group in optimizer.param_groups for x in group["params"]]
        if isinstance(optimizer, LAMB):
            optimizer.shards = table

        def run(columns: Dict[str, Tensor]) -> Dict[str, Tensor]:
            self._compile(columns, optimizer)
            micros = self._split(columns)
            updates_of(self.settings, len(micros))
            outputs: List[Dict[str, Tensor]] = []
            for micro in micros:
                out = self.model(**micro)
                (out["loss"] / n_sum).backward()
                outputs.append({name: x.detach() for name, x in out.items()})
                if len(outputs) % n_sum == 0:
                    self._update(optimizer, parameters)
            return stack_outputs(outputs)

        return run

    def _update(self, optimizer: torch.optim.Optimizer, parameters: List[Tensor]) -> None:
        make_dense(parameters)
        with in_float32(parameters, self.settings.stochastic_rounding):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _inference_program(self) -> Run:
        @torch.no_grad()
        def run(columns: Dict[str, Tensor]) -> Dict[str, Tensor]:
            self._compile(columns)
            return stack_outputs([self.model(**micro) for micro in self._split(columns)])

        return run
