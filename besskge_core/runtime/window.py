"""The next steps' micro-batches, on the device, one of which each step takes.

Making one costs many small operations, making some tens at once hardly more: they are drawn and
planned together, and lie in one tensor for each dtype, so that a step takes its own by one copy of
each. The position is a tensor, and nothing waits for the device.

Axes:
    W: steps of the window      M: micro-batches of a step      Q = W * M: micro-batches
    K: look-ups of a micro-batch
"""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.batch_sampler import ResidentBatches
from besskge_core.bess import BessKGE
from besskge_core.bess.resident_filter import ResidentFilter
from besskge_core.ops import RowPlan
from besskge_core.ops.rows import plan_rows_padded
from besskge_core.runtime.base import Model, Planned

#: What the window may take on the device; while it is made there is a few times as much.
WINDOW_BYTES = 2**27

#: More steps at once gain nothing.
MOST_STEPS = 128

#: Columns begin at multiples of so many bytes.
ALIGNMENT = 16

#: Names of a micro-batch's rows and of their plan, beside its columns.
ROWS, PLAN = "rows", ("unique_rows", "run_offsets", "order")


class _Place(NamedTuple):
    """Where a column lies in the tensor of its dtype."""

    name: str
    first: int
    last: int
    shape: Tuple[int, ...]


class Window:
    """Micro-batches of successive steps of an epoch.

    Args:
        batches: of the epoch.
        model: what takes them.
        n_byte: about as large as it may be.

    Attributes:
        n_step: W.
    """

    def __init__(self, batches: ResidentBatches, model: Model, n_byte: int = WINDOW_BYTES) -> None:
        self.batches, self.model = batches, model
        known = batches.sampler.negative_sampler.known
        self._filter: Optional[ResidentFilter] = None
        if known is not None:
            self._filter = ResidentFilter(known, model.score_fn.sharding, batches.device)
        self.n_micro = batches.sampler.batches_per_step
        self._epoch, self._first, self._slot = (
            torch.zeros((), dtype=torch.int64, device=batches.device) for _ in range(3)
        )
        self._at = (-1, -1)  # epoch and first step, as the host knows them
        self._begun = -1
        self._next = 0
        batches.n_step = 1
        batches.begin(0)
        sample = self._made()
        of_step = sum(x.numel() * x.element_size() for x in sample.values())
        batches.n_step = max(min(n_byte // max(of_step, 1), MOST_STEPS, batches.sampler.n_step), 1)
        self.n_step = batches.n_step
        self._places = _places(sample)
        self._parts = {
            dtype: torch.zeros(
                (self.n_step * self.n_micro, _width(places)), dtype=dtype, device=batches.device
            )
            for dtype, places in self._places.items()
        }

    # -- for the host --------------------------------------------------------------------------------

    def turn_to(self, epoch: int, step: int, micro: int, fill: Callable[[], object]) -> None:
        """Have :meth:`take` take a micro-batch of a step; what is in place already costs nothing.

        Args:
            epoch, step, micro: which.
            fill: calls :meth:`fill`, perhaps as a captured graph.
        """
        first = step - step % self.n_step
        if self._at != (epoch, first):
            if self._begun != epoch:
                self.batches.begin(epoch)
                self._begun = epoch
            self._epoch.fill_(epoch)
            self._first.fill_(first)
            fill()
            self._at = (epoch, first)
        slot = (step - first) * self.n_micro + micro
        if slot != self._next:
            self._slot.fill_(slot)
        self._next = slot + 1

    # -- on the device -------------------------------------------------------------------------------

    def fill(self) -> None:
        """Draw and plan the micro-batches."""
        made = self._made()
        for dtype, places in self._places.items():
            for x in places:
                self._parts[dtype][:, x.first : x.last].copy_(made[x.name].flatten(1))

    def take(self) -> Planned:
        """The next micro-batch; a copy, so that the window may be filled anew."""
        found: Dict[str, Tensor] = {}
        for dtype, places in self._places.items():
            own = self._parts[dtype].index_select(0, self._slot.view(1)).squeeze(0)
            found.update({x.name: own[x.first : x.last].view(x.shape) for x in places})
        self._slot.add_(1)
        if ROWS not in found:
            return Planned(found)
        rows, plan = found.pop(ROWS), RowPlan(*(found.pop(name) for name in PLAN))
        return Planned(found, rows, plan)

    def _made(self) -> Dict[str, Tensor]:
        """(Q, ...) of each column, and of rows (Q, K) and their plans."""
        batch, model = self.batches.draw(self._epoch, self._first), self.model
        columns = {name: x.flatten(0, 1) for name, x in batch.items() if name in model.inputs}
        if not isinstance(model, BessKGE):
            return columns
        of_columns = zip(*(x.unbind() for x in columns.values()))
        micros = [dict(zip(columns, micro)) for micro in of_columns]
        rows = [model.rows_read(micro) for micro in micros]
        if self._filter is not None:
            kept = [self._filter.kept(model, micro) for micro in micros]
            columns["negative_kept"] = torch.stack(kept)
        known = [x for x in rows if x is not None]
        if len(known) < len(rows):
            return columns
        together = torch.stack(known)
        plan = plan_rows_padded(together, model.entity_embedding[..., 0].numel())
        return {**columns, ROWS: together, **dict(zip(PLAN, plan))}


def _places(columns: Dict[str, Tensor]) -> Dict[torch.dtype, List[_Place]]:
    """Columns (Q, ...) of a dtype side by side, each beginning at a multiple of 16 bytes.

    That is what kernels load vectors from; a view that begins elsewhere would be slower.
    """
    places: Dict[torch.dtype, List[_Place]] = {}
    for name, x in sorted(columns.items()):
        of_dtype = places.setdefault(x.dtype, [])
        unit = max(ALIGNMENT // x.element_size(), 1)
        first = -(-of_dtype[-1].last // unit) * unit if of_dtype else 0
        of_dtype.append(_Place(name, first, first + x.shape[1:].numel(), tuple(x.shape[1:])))
    return places


def _width(places: List[_Place]) -> int:
    """Of a micro-batch; the next one, too, begins at a multiple of 16 bytes, whatever the dtype."""
    return -(-places[-1].last // ALIGNMENT) * ALIGNMENT
