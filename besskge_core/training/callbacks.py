"""What may be done between the steps of a training loop, and when to stop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.metric import make_metric
from besskge_core.model import KGEModel
from besskge_core.triples_factory import TriplesFactory

if TYPE_CHECKING:
    from besskge_core.training.loop import TrainingLoop


class TrainingCallback:
    """Called by a training loop; does nothing."""

    def pre_step(self, loop: TrainingLoop) -> None:
        """Gradients are there, the update is not."""

    def post_batch(self, loop: TrainingLoop, epoch: int, loss: float) -> None:
        """A batch has been learnt."""

    def post_epoch(self, loop: TrainingLoop, epoch: int, loss: float) -> None:
        """An epoch, counted from 1, is over."""

    def post_train(self, loop: TrainingLoop, losses: Sequence[float]) -> None:
        """Training is over."""


class GradientNormClipping(TrainingCallback):
    """Scale all gradients down together if their norm exceeds a bound.

    Args:
        max_norm: the bound.
        norm_type: p of the norm.
    """

    def __init__(self, max_norm: float, norm_type: Optional[float] = None) -> None:
        if not max_norm > 0.0:
            raise ConfigError(f"gradient_clipping_max_norm must be above 0, got {max_norm}")
        self.max_norm, self.norm_type = max_norm, 2.0 if norm_type is None else norm_type

    def pre_step(self, loop: TrainingLoop) -> None:
        grads = _gradients(loop.model)
        if not grads:
            return
        norms = torch.stack([torch.linalg.vector_norm(x, self.norm_type) for x in grads])
        total = torch.linalg.vector_norm(norms, self.norm_type)
        scale = (self.max_norm / (total + 1e-6)).clamp(max=1.0)
        for x in grads:
            x.mul_(scale)


class GradientAbsClipping(TrainingCallback):
    """Bound each entry of the gradients.

    Args:
        clip_value: the bound of its absolute value.
    """

    def __init__(self, clip_value: float) -> None:
        if not clip_value > 0.0:
            raise ConfigError(f"gradient_clipping_max_abs_value must be above 0, got {clip_value}")
        self.clip_value = clip_value

    def pre_step(self, loop: TrainingLoop) -> None:
        for x in _gradients(loop.model):
            x.clamp_(-self.clip_value, self.clip_value)


def _gradients(model: nn.Module) -> List[Tensor]:
    """The gradients to change in place; of sparse ones the values, each row once."""
    found = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                found.append(parameter.grad._values())
            else:
                found.append(parameter.grad)
    return found


#: PyKEEN's names of metrics, of which both sides and realistic ranks are meant.
METRIC_NAMES = {"mean_reciprocal_rank": "mrr", "inverse_harmonic_mean_rank": "mrr",
                "hits_at_k": "hits@10", "hits_at_1": "hits@1", "hits_at_3": "hits@3",
                "hits_at_10": "hits@10", "arithmetic_mean_rank": "mean_rank"}  # fmt: skip


def clipping(
    max_norm: Optional[float], norm_type: Optional[float], max_abs_value: Optional[float]
) -> List[TrainingCallback]:
    """The clipping that is asked for.

    Raises:
        ConfigError: bounds that are none, or the type of a norm that is not bounded.
    """
    if norm_type is not None and max_norm is None:
        raise ConfigError("gradient_clipping_norm_type is of gradient_clipping_max_norm: give both")
    found: List[TrainingCallback] = []
    if max_norm is not None:
        found.append(GradientNormClipping(max_norm, norm_type))
    if max_abs_value is not None:
        found.append(GradientAbsClipping(max_abs_value))
    return found


def copy_of(model: KGEModel) -> Dict[str, Tensor]:
    """The weights of a model, copied."""
    return {name: x.detach().clone() for name, x in model.score_fn.state_dict().items()}


class NopStopper:
    """Never stops."""

    has_stopped = False

    def should_evaluate(self, epoch: int) -> bool:
        return False

    def should_stop(self, model: Any, epoch: int) -> bool:
        return False


class EarlyStopper:
    """Stops when the ranking of validation triples no longer improves; remembers the best weights.

    It is an improvement if the metric is better by more than `relative_delta` of the larger of the
    two values. The best weights are put back when training ends, stopped or not.

    Args:
        evaluation_triples_factory: triples to rank, filtered.
        training_triples_factory: triples to filter with, besides those; None: those trained on.
        frequency: epochs between evaluations.
        patience: evaluations without improvement before stopping.
        metric: "mrr", "hits@k", "mean_rank" or "amri", or PyKEEN's name.
        relative_delta: see above.
        larger_is_better: whether more of the metric is better.

    Raises:
        ConfigError: no such metric, or counts below 1.

    Attributes:
        results: the metric, an evaluation each.
        best_epoch: the epoch of the best one, from 1; None before the first.
        best_state: the weights then.
    """

    def __init__(
        self,
        evaluation_triples_factory: Any,
        training_triples_factory: Any = None,
        frequency: int = 10,
        patience: int = 2,
        metric: str = "hits_at_k",
        relative_delta: float = 0.01,
        larger_is_better: bool = True,
    ) -> None:
        if frequency < 1 or patience < 1:
            raise ConfigError(f"frequency and patience start at 1, got {frequency} and {patience}")
        self.evaluation = TriplesFactory.of(evaluation_triples_factory, "valid")
        self.training = training_triples_factory
        self.frequency, self.patience = frequency, patience
        self.metric = METRIC_NAMES.get(metric, metric)
        if self.metric not in ("mean_rank", "amri"):
            make_metric(self.metric)  # raises, and says which there are
        self._known: Optional[KnownTriples] = None
        self.relative_delta, self.larger_is_better = relative_delta, larger_is_better
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.results: List[float] = []
        self.best: Optional[float] = None
        self.best_epoch: Optional[int] = None
        self.best_state: Optional[Dict[str, Tensor]] = None
        self.remaining = self.patience

    def filter_with(self, triples: TriplesFactory) -> None:
        """Filter with the triples trained on, if no others were given."""
        training = triples if self.training is None else TriplesFactory.of(self.training)
        parts = [training.triples, self.evaluation.triples]
        self._known = KnownTriples(parts, *training.sizes)

    @property
    def has_stopped(self) -> bool:
        """Whether patience has run out."""
        return self.remaining <= 0

    def should_evaluate(self, epoch: int) -> bool:
        return epoch % self.frequency == 0

    def should_stop(self, model: Any, epoch: int) -> bool:
        """Evaluate after an epoch, and say whether that was enough."""
        if self._known is None:
            self.filter_with(model.triples_factory)
        ranking = rank_triples(model.score_fn, self.evaluation.triples, self._known)
        value = ranking.metrics(names=[self.metric])[self.metric]
        self.results.append(value)
        if self._improved(value):
            self.best, self.best_epoch, self.remaining = value, epoch, self.patience
            self.best_state = {
                k: x.detach().clone() for k, x in model.score_fn.state_dict().items()
            }
            return False
        self.remaining -= 1
        return self.has_stopped

    def _improved(self, value: float) -> bool:
        if self.best is None:
            return True
        better = value > self.best if self.larger_is_better else value < self.best
        return better and not math.isclose(value, self.best, rel_tol=self.relative_delta)

    def restore_best(self, model: Any) -> None:
        """Put the best weights back, if there are any."""
        if self.best_state is not None:
            model.score_fn.load_state_dict(self.best_state)

    def summary(self) -> Mapping[str, Any]:
        """What JSON can hold."""
        return dict(
            results=self.results, best=self.best, best_epoch=self.best_epoch,
            remaining=self.remaining,
        )  # fmt: skip

    def load_summary(self, summary: Mapping[str, Any]) -> None:
        """Go on from a summary; weights are apart."""
        self.results, self.best = list(summary["results"]), summary["best"]
        self.best_epoch, self.remaining = summary["best_epoch"], summary["remaining"]


def make_callbacks(given: Any, options: Optional[Mapping[str, Any]]) -> List[TrainingCallback]:
    """Callbacks from one or several classes or instances.

    Raises:
        ConfigError: something else.
    """
    several = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    if options and not any(isinstance(x, type) for x in several):
        raise ConfigError(
            f"callback_kwargs {sorted(options)} are of classes, of which none is given"
        )
    made = [x(**(options or {})) if isinstance(x, type) else x for x in several]
    for callback in made:
        if not isinstance(callback, TrainingCallback):
            raise ConfigError(f"callback {callback!r} is no TrainingCallback")
    return made
