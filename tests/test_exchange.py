"""A collective means the same in one process and on shards apart, gradients included."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange, reduce, repeat
from support import SHARDS, Shards
from torch.testing import assert_close

from besskge_core.errors import ShapeError
from besskge_core.exchange import LocalExchange

SPECIFICATION = {
    "all_to_all": lambda x: rearrange(x, "source destination d -> destination source d"),
    "all_gather": lambda x: repeat(x, "source s d -> destination source s d", destination=len(x)),
    "all_reduce": lambda x: repeat(reduce(x, "l s d -> s d", "sum"), "s d -> l s d", l=len(x)),
}


@pytest.fixture(params=SPECIFICATION)
def collective(request):
    return request.param


@pytest.fixture(params=["one process", "threads"])
def run(request):
    """(name, x (S, S, D)) -> what every shard has afterwards, (S, ...)."""
    if request.param == "one process":
        return lambda name, x: getattr(LocalExchange(len(x)), name)(x)
    return lambda name, x: torch.cat(
        Shards(len(x)).run(lambda rank, exchange: getattr(exchange, name)(x[rank : rank + 1]))
    )


def sent(n_shard):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_shard, n_shard, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_shard", SHARDS)
def test_collectives_are_their_specification(run, collective, n_shard):
    x = sent(n_shard)
    assert_close(run(collective, x), SPECIFICATION[collective](x))


@pytest.mark.parametrize("n_shard", SHARDS)
def test_gradients_travel_back(run, collective, n_shard):
    x = sent(n_shard).requires_grad_()
    out, expected = run(collective, x), SPECIFICATION[collective](x)
    weight = torch.arange(1.0, out.numel() + 1, dtype=x.dtype).view(out.shape)
    (grad,) = torch.autograd.grad(out, x, weight)
    assert_close(grad, torch.autograd.grad(expected, x, weight)[0])


def test_an_exchange_there_and_back_changes_nothing(run):
    x = sent(4)
    assert_close(run("all_to_all", run("all_to_all", x)), x)


def test_integers_and_masks_are_exchanged_too(collective):
    x = torch.arange(48).view(4, 4, 3) % 5
    exchange = LocalExchange(4)
    assert torch.equal(getattr(exchange, collective)(x), SPECIFICATION[collective](x))
    assert torch.equal(exchange.all_gather(x > 2)[1], x > 2)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4, 2), (1, 4, 2)])
def test_blocks_of_other_shapes_are_refused(shape):
    message = r"all_to_all expects \(L, S, ...\) with L=S=4 in one process, got \("
    with pytest.raises(ShapeError, match=message):
        LocalExchange(4).all_to_all(torch.zeros(shape))


@pytest.mark.parametrize("name", ["all_gather", "all_reduce"])
def test_another_number_of_hosted_shards_is_refused(name):
    message = r"expected a leading axis L=4 in one process, got \(3, 2\)"
    with pytest.raises(ShapeError, match=message):
        getattr(LocalExchange(4), name)(torch.zeros(3, 2))
