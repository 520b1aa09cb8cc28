"""Regularisers of representations: what it costs that those just looked up are large.

An :class:`~besskge_core.embedding.Embedding` updates its regulariser with what each forward
returns before dropout; the terms add up until the training loop pops them and adds them to its
loss. That is PyKEEN's manner: one term a call, each a mean over the rows of that call.

:mod:`besskge_core.regularizer` is the manner of BESS: a function of a batch's triples, without
state, on squared moduli, weighted by triple; its "lp" is ||x||_p^p of the paper, here "powersum".
Use one or the other, not both.

Axes:
    ...: axes of look-ups and of representations; norms go along the last one, D, unless told
"""

from __future__ import annotations

import abc
import math
from typing import Any, Callable, Dict, Iterable, Optional

import torch
from torch import Tensor, nn

from besskge_core.embedding.norms import widen
from besskge_core.embedding.resolving import Choice, LooseRegistry, resolve
from besskge_core.errors import ConfigError

EMBEDDING_REGULARIZERS: LooseRegistry[Any] = LooseRegistry(
    "embedding regularizer", suffix="regularizer"
)


class EmbeddingRegularizer(nn.Module, abc.ABC):
    """Base of the regularisers of representations.

    The weight is a buffer, so that state dictionaries of PyKEEN fit. The terms so far are not: they
    belong to one step, and a saved one is ignored.

    Args:
        weight: factor of the sum of terms.
        apply_only_once: only the first update after a pop counts.
    """

    weight: Tensor
    #: Of several ranks, each of which sees some of the rows; set by their runtime.
    n_rank: int = 1
    sum_ranks: Callable[[Tensor], Tensor]

    def __init__(self, weight: float = 1.0, apply_only_once: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", torch.as_tensor(float(weight)))
        self.apply_only_once = apply_only_once
        self.reset()

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Representations (..., D), real or complex -> their term, a scalar without the weight."""

    def update(self, *tensors: Tensor) -> None:
        """Add the terms of some tensors; in training, and where gradients are made."""
        if self.is_active():
            for x in tensors:
                self._add(self(widen(x)))

    def mean(self, x: Tensor) -> Tensor:
        """Over the rows of all ranks: numbers (...) of the rows here -> a scalar.

        Like a loss, it is the mean over ranks of what each of them returns.
        """
        if self.n_rank == 1:
            return x.mean()
        count = self.sum_ranks(torch.full((), float(x.numel()), device=x.device))
        return x.sum() * (self.n_rank / count.clamp(min=1.0))

    def total(self, x: Tensor) -> Tensor:
        """The sum over the rows of all ranks; see :meth:`mean`."""
        return x.sum() * self.n_rank

    def is_active(self) -> bool:
        """Whether an update now would count."""
        done = self.apply_only_once and self.updated
        return self.training and torch.is_grad_enabled() and not done

    @property
    def term(self) -> Tensor:
        """The weighted sum of the terms since the last pop, a scalar."""
        return self.weight * self.regularization_term

    def pop_regularization_term(self) -> Tensor:
        """The weighted sum of the terms since the last pop, a scalar; begins anew at zero."""
        term = self.term
        self.reset()
        return term

    def reset(self) -> None:
        """Forget the terms so far."""
        self.regularization_term = torch.zeros((), device=self.weight.device)
        self.updated = False

    def _add(self, term: Tensor) -> None:
        self.regularization_term = self.regularization_term.to(term.device) + term
        self.updated = True

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        state_dict.pop(f"{prefix}regularization_term", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@EMBEDDING_REGULARIZERS.register("no")
class NoRegularizer(EmbeddingRegularizer):
    """Costs nothing."""

    def update(self, *tensors: Tensor) -> None:
        return

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros((), dtype=x.abs().dtype)


@EMBEDDING_REGULARIZERS.register("lp")
class LpNorm(EmbeddingRegularizer):
    """Mean of ||x||_p over all rows.

    Args:
        weight, apply_only_once: see the base class.
        dim: axis of the norm.
        normalize: divide by the norm expected of N(0, 1) entries, for one weight at every width.
        p: of the norm.
    """

    def __init__(
        self,
        weight: float = 1.0,
        dim: int = -1,
        normalize: bool = False,
        p: float = 2.0,
        apply_only_once: bool = False,
    ) -> None:
        super().__init__(weight, apply_only_once)
        if normalize and math.isinf(p):
            raise ConfigError("normalize needs a finite p, there is no formula for the maximum")
        self.dim, self.normalize, self.p = dim, normalize, p

    def forward(self, x: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, self.p, self.dim)
        if self.normalize:
            norms = norms / _expected_norm(self.p, x.shape[self.dim])
        return self.mean(norms)


def _expected_norm(p: float, dim: int) -> float:
    """(E ||x||_p^p)^(1/p) of N(0, 1)^dim, which is near E ||x||_p."""
    log_moment = 0.5 * p * math.log(2.0) + math.lgamma((p + 1.0) / 2.0) - math.lgamma(0.5)
    return math.exp((math.log(dim) + log_moment) / p)


@EMBEDDING_REGULARIZERS.register("powersum")
class PowerSum(EmbeddingRegularizer):
    """Mean of sum_d |x_d|^p over all rows, whose gradient is smooth at zero.

    Args:
        weight, apply_only_once: see the base class.
        dim: axis of the sum.
        normalize: divide by the number of entries.
        p: the exponent.
    """

    def __init__(
        self,
        weight: float = 1.0,
        dim: int = -1,
        normalize: bool = False,
        p: float = 2.0,
        apply_only_once: bool = False,
    ) -> None:
        super().__init__(weight, apply_only_once)
        self.dim, self.normalize, self.p = dim, normalize, p

    def forward(self, x: Tensor) -> Tensor:
        sums = x.abs().pow(self.p).sum(self.dim)
        mean = self.mean(sums)
        return mean / x.shape[self.dim] if self.normalize else mean


@EMBEDDING_REGULARIZERS.register("normlimit")
class NormLimit(EmbeddingRegularizer):
    """Sum over rows of max(||x|| - max_norm, 0).

    Args:
        weight, apply_only_once: see the base class.
        dim: axis of the norm.
        p: of the norm.
        power_norm: ||x||_p^p rather than ||x||_p.
        max_norm: what is free.
    """

    def __init__(
        self,
        weight: float = 1.0,
        dim: int = -1,
        p: float = 2.0,
        power_norm: bool = True,
        max_norm: float = 1.0,
        apply_only_once: bool = False,
    ) -> None:
        super().__init__(weight, apply_only_once)
        self.dim, self.p, self.power_norm, self.max_norm = dim, p, power_norm, max_norm

    def forward(self, x: Tensor) -> Tensor:
        if self.power_norm:
            norms = x.abs().pow(self.p).sum(self.dim)
        else:
            norms = torch.linalg.vector_norm(x, self.p, self.dim)
        return self.total((norms - self.max_norm).relu())


@EMBEDDING_REGULARIZERS.register("orthogonality")
class Orthogonality(EmbeddingRegularizer):
    """Sum over rows of max(cos(a, b)^2 - epsilon, 0), of two tensors; no embedding has both.

    Like the others it is silent in evaluation; PyKEEN's is not.

    Args:
        weight, apply_only_once: see the base class.
        epsilon: what is free.
    """

    def __init__(
        self, weight: float = 1.0, epsilon: float = 1e-5, apply_only_once: bool = False
    ) -> None:
        super().__init__(weight, apply_only_once)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("orthogonality is of two tensors; call update(a, b)")

    def update(self, *tensors: Tensor) -> None:
        if len(tensors) != 2:
            raise ConfigError(
                f"orthogonality is of two tensors, got {len(tensors)}; call update(a, b)"
            )
        if self.is_active():
            cosine = torch.cosine_similarity(widen(tensors[0]), widen(tensors[1]), dim=-1)
            self._add(self.total((cosine.square() - self.epsilon).relu()))


@EMBEDDING_REGULARIZERS.register("combined")
class Combined(EmbeddingRegularizer):
    """total_weight * sum of w_i r_i(x) / sum of w_i.

    Args:
        regularizers: with their weights; or names or classes, then all of weight 1.
        total_weight: see the formula.
        apply_only_once: see the base class.
    """

    normalization_factor: Tensor

    def __init__(
        self,
        regularizers: Iterable[Choice],
        total_weight: float = 1.0,
        apply_only_once: bool = False,
    ) -> None:
        super().__init__(total_weight, apply_only_once)
        parts = [make_regularizer(part) for part in regularizers]
        if not parts or any(isinstance(part, (NoRegularizer, Orthogonality)) for part in parts):
            raise ConfigError(
                "combined needs regularizers of one tensor each, and none that is 'no', got"
                f" {[type(part).__name__ for part in parts]}"
            )
        self.regularizers = nn.ModuleList(parts)
        total = sum(float(part.weight) for part in parts)
        self.register_buffer("normalization_factor", torch.as_tensor(1.0 / total))

    def forward(self, x: Tensor) -> Tensor:
        terms = torch.stack([part.weight * part(x) for part in self.regularizers])
        return self.normalization_factor * terms.sum()


class FunctionRegularizer(EmbeddingRegularizer):
    """weight * function(x), of the rows of one process: how to sum over ranks is not known."""

    def __init__(self, function: Callable[[Tensor], Tensor], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def make_regularizer(choice: Optional[Choice], **options: Any) -> Any:
    """A regulariser by name, class or function; one that is made already stays what it is."""
    if isinstance(choice, EmbeddingRegularizer):
        if options:
            raise ConfigError(
                f"the regularizer is made already, options {sorted(options)} are late"
            )
        return choice
    if callable(choice) and not isinstance(choice, type):
        return FunctionRegularizer(choice, **options)
    return resolve(EMBEDDING_REGULARIZERS, choice, options)
