"""What cannot be a program of static shapes is refused by name, before it is compiled."""

from __future__ import annotations

from torch import nn

from besskge_core.bess import AllEntitiesBessKGE
from besskge_core.embedding import Embedding, EmbeddingRegularizer
from besskge_core.errors import ConfigError
from besskge_core.runtime.base import Model
from besskge_core.scoring.operators import CircularConvolution

#: IPUs of one process, at most.
MOST_IPUS = 64


def check_model(model: Model, n_shard: int) -> None:
    """Refuse, by name, what cannot be a program of static shapes."""
    if n_shard & (n_shard - 1) or not 1 <= n_shard <= MOST_IPUS:
        raise ConfigError(
            f"{n_shard} shards, but IPUs come in powers of two, up to {MOST_IPUS} for one process;"
            f" give n_shard = {min(1 << (n_shard - 1).bit_length(), MOST_IPUS)}"
        )
    if isinstance(model, AllEntitiesBessKGE):
        raise ConfigError(
            f"{type(model).__name__} makes its gradients a tile at a time, which PopTorch cannot; on"
            " IPUs train with sampled negatives, or use another runtime"
        )
    if "step" in model.inputs:
        raise ConfigError(
            f"{type(model).__name__} is driven by AllScoresPipeline; ask TopKQueryBessKGE on IPUs, or"
            " use another runtime"
        )
    if getattr(model.negative_sampler, "known", None) is not None:
        raise ConfigError(
            "negatives that are true triples are found as a list, whose length differs from batch to"
            " batch; on IPUs, sample without `known`"
        )
    for module in model.modules():
        _check_part(module)


def _check_part(module: nn.Module) -> None:
    if isinstance(module, EmbeddingRegularizer):
        raise ConfigError(
            "the regularizer of an embedding takes rows by a mask, so many as there are; on IPUs give"
            " the model one of besskge_core.regularizer"
        )
    if isinstance(module, Embedding):
        if module.constrainer is not None and module.weight.requires_grad:
            raise ConfigError(
                "a constrainer changes weights between steps, which are on the device; on IPUs use a"
                " normalizer"
            )
        if module.unique:
            raise ConfigError("unique=True makes as many rows as there are; leave it out on IPUs")
        if module.dtype.is_complex:
            raise ConfigError(
                f"representations are {module.dtype}, and IPUs have no complex numbers; use a score"
                " function whose rows are real and imaginary parts"
            )
    if isinstance(module, CircularConvolution):
        raise ConfigError(
            "HolE is computed with Fourier transforms, which PopTorch has not; ComplEx has the same"
            " scores, and is cheaper"
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
        raise ConfigError(
            f"{type(module).__name__} keeps statistics, which differ between replicas, and PopTorch"
            " does not say whose come back; on IPUs leave it out, or use another runtime"
        )
