"""What the notebooks show with: a loss curve that grows, and what a step would take on PODs."""

from __future__ import annotations

from typing import Any, List

import matplotlib.pyplot as plt
from IPython.display import display

from besskge_core.dataset import KGDataset
from besskge_core.planning import HARDWARE, plan, split_over
from besskge_core.training.config import read_config


class LossCurve:
    """The loss of each epoch, drawn anew below the cell that trains.

    Args:
        epochs: that will come.
        title: of the plot.
    """

    def __init__(self, epochs: int, title: str = "training") -> None:
        self.losses: List[float] = []
        self.figure, self._axes = plt.subplots(figsize=(6, 2.5))
        (self._line,) = self._axes.plot([], [], marker=".")
        self._axes.set(xlim=(0, epochs + 1), xlabel="epoch", ylabel="loss", title=title)
        self._shown = display(self.figure, display_id=True)
        plt.close(self.figure)  # else it is drawn once more at the end of the cell

    def add(self, loss: float) -> None:
        self.losses.append(loss)
        self._line.set_data(range(1, len(self.losses) + 1), self.losses)
        self._axes.relim()
        self._axes.autoscale_view(scalex=False)
        self._axes.set_title(f"epoch {len(self.losses)}: loss {loss:.4f}")
        self._shown.update(self.figure)


def print_pods(graph: KGDataset, shard_bs: int, **settings: Any) -> None:
    """Print what the planner predicts of PODs.

    Args:
        graph: to train on.
        shard_bs: positives of a step, of each IPU.
        settings: flags of `besskge train`.
    """
    sizes = graph.n_entity, graph.n_relation_type, len(graph.triples["train"])
    print("predicted, not measured:")
    for n_ipu in (4, 16):
        config = read_config(None, {**settings, "batch_size": n_ipu * shard_bs})
        found = plan(split_over(config, n_ipu), *sizes, HARDWARE[f"ipu-pod{n_ipu}"], n_ipu)
        print(
            f"POD{n_ipu:<3} a step of {found.batch_size:,} positives {1e6 * found.step_seconds:.0f} us,"
            f" most of it {found.bound}; an epoch {found.epoch_seconds:.3g} s;"
            f" SRAM is full with {found.most_entities:,} entities"
        )
