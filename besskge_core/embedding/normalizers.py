"""Normalisers: functions of what was looked up, with a gradient.

:class:`~besskge_core.embedding.Embedding` calls each with (N, ...), one representation a row,
whatever the shape of the indices: axis 1 is the first of the representation, always. Whoever
writes one for (rows, dim) tensors, such as torch's normalize along axis 1, has the right axis
for (B, K) indices and for scalar ones, too.
"""

from __future__ import annotations

from typing import Callable

from torch import Tensor

from besskge_core.embedding.norms import normalize
from besskge_core.embedding.resolving import LooseRegistry

Normalizer = Callable[..., Tensor]

NORMALIZERS: LooseRegistry[Normalizer] = LooseRegistry("normalizer")

NORMALIZERS.register("normalize")(normalize)


@NORMALIZERS.register("softmax")
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Positive entries with sum 1 along the last axis of a representation, or along `dim`."""
    if x.dim() == 1:
        return x.unsqueeze(1).softmax(1).squeeze(1)
    return x.softmax(dim)
