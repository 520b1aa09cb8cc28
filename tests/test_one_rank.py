"""One rank over a real process group does what one process does: gloo here, NCCL where there is a GPU."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch
import torch.distributed as dist
from ranks import RankPool
from support import make_score
from test_distributed import sampler_of
from torch.testing import assert_close

from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE
from besskge_core.errors import ConfigError
from besskge_core.exchange import LocalExchange
from besskge_core.loss import LogSigmoidLoss
from besskge_core.optim import Adagrad
from besskge_core.runtime import DistributedRuntime, LocalRuntime, join, leave
from besskge_core.runtime import ranks as module

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SCHEMES = {"embedding": EmbeddingMovingBessKGE, "score": ScoreMovingBessKGE}
COLLECTIVES = ("all_to_all", "all_gather", "all_reduce")
N_SHARD = 4


def joined(device: str) -> Any:
    """This process as one rank of a group, though it is alone."""
    module.launched = lambda: True
    return join(device)


def collectives(device: str) -> Dict[str, Any]:
    """Each collective of all shards, and its gradient."""
    ranks = joined(device)
    exchange, found = ranks.exchange(N_SHARD), {"backend": dist.get_backend()}
    for dtype in (torch.float32, torch.bfloat16, torch.int32):
        for name in COLLECTIVES:
            x = torch.arange(N_SHARD * N_SHARD * 3).view(N_SHARD, N_SHARD, 3).to(device, dtype)
            found[f"{name} {dtype}"] = getattr(exchange, name)(x).cpu()
            if dtype == torch.float32:
                leaf = x.clone().requires_grad_()
                (getattr(exchange, name)(leaf) * (x + 1.0)).sum().backward()
                found[f"gradient of {name}"] = leaf.grad.cpu()
    found["flags"] = list(ranks.any(True, False))
    found["beside"] = ranks.exchange(N_SHARD, beside=True).sum_ranks(torch.ones(2))
    leave(ranks)
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_collectives_of_one_rank_are_those_of_one_process(device):
    found = on_one_rank(collectives, device)
    assert found.pop("backend") == ("gloo" if device == "cpu" else "nccl")
    assert found.pop("flags") == [True, False] and found.pop("beside").tolist() == [1.0, 1.0]
    local = LocalExchange(N_SHARD)
    for name in COLLECTIVES:
        x = torch.arange(N_SHARD * N_SHARD * 3).view(N_SHARD, N_SHARD, 3)
        for dtype in (torch.float32, torch.bfloat16, torch.int32):
            expected = getattr(local, name)(x.to(dtype))
            # In bfloat16 sums are rounded once more.
            assert_close(found[f"{name} {dtype}"], expected, rtol=1e-2, atol=0.0)
        leaf = x.float().requires_grad_()
        (getattr(local, name)(leaf) * (x + 1.0)).sum().backward()
        assert_close(found[f"gradient of {name}"], leaf.grad)


def parts(scheme: str) -> Any:
    sampler = sampler_of(N_SHARD)
    score_fn = make_score("complex", sampler.triple_set.sharding, 4, dtype=torch.float32)
    model = SCHEMES[scheme](sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True))
    return model, sampler


def trained(runtime: Any, sampler: Any) -> List[torch.Tensor]:
    optimizer = Adagrad(runtime.model.parameters(), lr=0.1)
    step = runtime.training_step(optimizer)
    losses = [
        step(batch)["loss"] for epoch in range(2) for batch in runtime.dataloader(sampler, epoch)
    ]
    return [torch.stack(losses).cpu(), *(p.detach().cpu() for p in runtime.model.parameters())]


def trained_on_one_rank(device: str) -> Dict[str, List[torch.Tensor]]:
    ranks, found = joined(device), {}
    for scheme in SCHEMES:
        model, sampler = parts(scheme)
        found[scheme] = trained(DistributedRuntime(model, ranks), sampler)
    leave(ranks)
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_training_on_one_rank_is_that_of_one_process(device):
    found = on_one_rank(trained_on_one_rank, device)
    for scheme in SCHEMES:
        model, sampler = parts(scheme)
        for x, y in zip(found[scheme], trained(LocalRuntime(model), sampler)):
            assert_close(x, y, rtol=1e-3, atol=1e-4)


def refused(*arguments: str) -> str:
    try:
        joined(*arguments)
    except ConfigError as error:
        return str(error)
    return "joined"


def test_ranks_on_gpus_that_are_not_there_are_refused_by_name():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "device is 'cuda:0', but this torch" in on_one_rank(refused, "cuda")


def on_one_rank(fn: Any, *arguments: Any) -> Any:
    pool = RankPool(1)
    try:
        (found,) = pool.run(fn, *arguments)
    finally:
        pool.close()
    return found
