"""A row optimiser does to the touched rows what the formula says, and nothing to any other."""

from __future__ import annotations

import sys

import pytest
import torch
from support import make_score, random_triples
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from besskge_core.batch_sampler import RandomShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import RandomShardedNegativeSampler
from besskge_core.ops import gather, plan_rows
from besskge_core.optim import OPTIMIZERS, SGD, Adagrad, LazyAdam, RowWiseAdagrad
from besskge_core.runtime import LocalRuntime
from besskge_core.sharding import PartitionedTripleSet, Sharding

LR = 0.1
N_SHARD, N_ROW, WIDTH = 2, 6, 3
#: Look-ups of three steps on each shard: duplicates, rows that rest, a row touched late.
STEPS = [[[0, 0, 3, 0], [1, 5, 5, 2]], [[3, 3, 3, 3], [0, 0, 1, 1]], [[5, 0, 2, 2], [4, 4, 4, 0]]]
UNTOUCHED = [(0, 1), (0, 4), (1, 3)]


@pytest.fixture(params=sorted(OPTIMIZERS))
def optimizer_class(request):
    return OPTIMIZERS[request.param]


def table(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(N_SHARD, N_ROW, WIDTH, generator=generator, dtype=torch.float64)
    return torch.nn.Parameter(start.to(dtype))


def cost_of(parameter, index, sparse=True):
    """A loss of the rows looked up, by the sparse or the dense way."""
    shard = torch.arange(N_SHARD)[:, None]
    rows = gather(parameter, index) if sparse else parameter[shard, index]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    weight = torch.arange(1.0, 5.0, dtype=rows.dtype)[:, None]
    return (weight * rows.sin()).sum()


def train(make, sparse=True, dtype=torch.float64, planned=False, steps=STEPS):
    parameter = table(dtype)
    optimizer = make([parameter])
    for index in map(torch.tensor, steps):
        optimizer.zero_grad()
        cost_of(parameter, index, sparse).backward()
        plan = plan_rows((index + N_ROW * torch.arange(2)[:, None]).flatten(), 2 * N_ROW)
        optimizer.step(**(dict(plans={parameter: plan}) if planned else {}))
    return parameter.detach(), optimizer.state[parameter]


# -- against torch -----------------------------------------------------------------------------

TORCH = {
    SGD: lambda p: torch.optim.SGD(p, lr=LR),
    Adagrad: lambda p: torch.optim.Adagrad(p, lr=LR, initial_accumulator_value=0.5),
    LazyAdam: lambda p: torch.optim.Adam(p, lr=LR),
}
OURS = {
    SGD: lambda p: SGD(p, lr=LR),
    Adagrad: lambda p: Adagrad(p, lr=LR, initial_accumulator_value=0.5),
    LazyAdam: lambda p: LazyAdam(p, lr=LR),
}


@pytest.mark.parametrize("rule", TORCH)
def test_dense_gradients_are_applied_as_torch_does(rule):
    ours, _ = train(OURS[rule], sparse=False)
    theirs, _ = train(TORCH[rule], sparse=False)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [SGD, Adagrad])
def test_sparse_gradients_are_applied_as_torch_applies_dense_ones(rule):
    ours, _ = train(OURS[rule], sparse=True)
    theirs, _ = train(TORCH[rule], sparse=False)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_momentum_is_that_of_torch_where_every_row_is_touched():
    dense = [train(cls, False) for cls in (
        lambda p: SGD(p, LR, momentum=0.9), lambda p: torch.optim.SGD(p, LR, momentum=0.9))]  # fmt: skip
    assert_close(dense[0][0], dense[1][0])


def test_momentum_of_a_resting_row_waits():
    with_momentum, _ = train(lambda p: SGD(p, LR, momentum=0.9))
    plain, _ = train(lambda p: SGD(p, LR))
    for shard, row in UNTOUCHED:
        assert torch.equal(with_momentum[shard, row], table()[shard, row].detach())
    once = [(0, 5), (1, 2), (1, 4)]  # touched in one step
    for shard, row in once:
        assert_close(with_momentum[shard, row], plain[shard, row])
    assert not torch.allclose(with_momentum[0, 0], plain[0, 0])
    with pytest.raises(ConfigError, match=r"momentum must be in \[0, 1\), got 1.0"):
        SGD([table()], momentum=1.0)


def test_lazy_adam_is_sparse_adam_of_torch():
    # SparseAdam knows one sparse axis, so the shards are laid end to end, and divides eps by the
    # correction of the bias, so eps is nothing.
    flat = torch.nn.Parameter(table().detach().flatten(end_dim=1))
    optimizer = torch.optim.SparseAdam([flat], lr=LR, eps=1e-30)
    for index in map(torch.tensor, STEPS):
        optimizer.zero_grad()
        rows = torch.nn.functional.embedding(
            index + N_ROW * torch.arange(2)[:, None], flat, sparse=True
        )
        (torch.arange(1.0, 5.0, dtype=rows.dtype)[:, None] * rows.sin()).sum().backward()
        optimizer.step()
    ours, _ = train(lambda p: LazyAdam(p, lr=LR, eps=1e-30))
    assert_close(ours.flatten(end_dim=1), flat.detach(), rtol=1e-12, atol=1e-12)


def test_row_wise_adagrad_keeps_the_mean_square_of_a_row():
    weight, state = train(lambda p: RowWiseAdagrad(p, lr=LR, initial_accumulator_value=0.5))
    expected, total = table().detach(), torch.full((N_SHARD, N_ROW, 1), 0.5, dtype=torch.float64)
    for index in map(torch.tensor, STEPS):
        leaf = expected.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cost_of(leaf, index, sparse=False), leaf)
        total += grad.square().mean(-1, keepdim=True)
        expected = expected - LR * grad / (total.sqrt() + 1e-10)
    assert_close((weight, state["sum"]), (expected, total), rtol=1e-12, atol=1e-12)
    assert state["sum"].shape == (N_SHARD, N_ROW, 1)


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_untouched_rows_and_their_state_keep_their_bits(optimizer_class, weight_decay):
    weight, state = train(lambda p: optimizer_class(p, lr=LR, weight_decay=weight_decay))
    _, fresh = train(optimizer_class, steps=STEPS[:1])
    for shard, row in UNTOUCHED:
        assert torch.equal(weight[shard, row], table()[shard, row])
        for name, x in state.items():
            if isinstance(x, torch.Tensor):
                assert torch.equal(x[shard, row], fresh[name][shard, row])
    assert (weight != table()).any(-1).sum() == N_SHARD * N_ROW - len(UNTOUCHED)


def test_the_state_of_a_resting_row_keeps_its_bits(optimizer_class):
    (_, once), (_, twice) = (train(optimizer_class, steps=STEPS[:n]) for n in (1, 2))
    for name, x in once.items():
        if isinstance(x, torch.Tensor):  # row 5 of shard 1 rests in the second step
            assert x[1, 5].abs().sum() > 0
            assert torch.equal(x[1, 5], twice[name][1, 5])


def test_weight_decay_takes_its_share_of_touched_rows_alone(optimizer_class):
    weight, _ = train(lambda p: optimizer_class(p, lr=LR, weight_decay=0.3), steps=STEPS[:1])
    plain, _ = train(lambda p: optimizer_class(p, lr=LR), steps=STEPS[:1])
    touched = torch.zeros(N_SHARD, N_ROW, 1, dtype=torch.bool)
    touched[torch.arange(2)[:, None], torch.tensor(STEPS[0])] = True
    expected = plain - torch.where(touched, LR * 0.3 * table().detach(), 0.0)
    assert_close(weight, expected, rtol=1e-12, atol=1e-12)


def test_weight_decay_of_a_dense_gradient_is_decoupled():
    ours, _ = train(lambda p: LazyAdam(p, lr=LR, weight_decay=0.3), sparse=False)
    theirs, _ = train(lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.3), sparse=False)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_duplicates_are_summed_once(optimizer_class):
    one_row = [[[3, 3, 3, 3], [0, 0, 0, 0]]]
    sparse, _ = train(optimizer_class, sparse=True, steps=one_row)
    dense, _ = train(optimizer_class, sparse=False, steps=one_row)
    assert_close(sparse[0, 3], dense[0, 3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_plan_made_ahead_gives_the_same_bits(optimizer_class, dtype):
    (a, state_a), (b, state_b) = (train(optimizer_class, True, dtype, p) for p in (False, True))
    assert torch.equal(a, b) and a.dtype == dtype
    for name, x in state_a.items():
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(state_b[name]))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables_are_updated_in_single_precision(optimizer_class, dtype, sparse):
    half, state = train(optimizer_class, sparse, dtype)
    exact, _ = train(optimizer_class, sparse, torch.float64)
    assert_close(half.double(), exact, rtol=0.02, atol=0.02)
    kept = [x for x in state.values() if isinstance(x, torch.Tensor)]
    assert half.dtype == dtype and all(x.dtype == torch.float32 for x in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stored_state_goes_on_with_the_same_bits(optimizer_class, dtype):
    whole, _ = train(optimizer_class, dtype=dtype)
    parameter = table(dtype)
    first = optimizer_class([parameter])
    for i, index in enumerate(map(torch.tensor, STEPS)):
        if i == 2:
            stored = first.state_dict()
            first = optimizer_class([parameter])
            first.load_state_dict(stored)
        first.zero_grad()
        cost_of(parameter, index).backward()
        first.step()
    assert torch.equal(parameter.detach(), whole)


def test_no_look_ups_change_nothing(optimizer_class):
    parameter = table()
    optimizer = optimizer_class([parameter])
    gather(parameter, torch.empty(2, 0, dtype=torch.long)).sum().backward()
    optimizer.step()
    assert torch.equal(parameter, table())


def test_parameters_without_gradient_stay(optimizer_class):
    parameter = table()
    optimizer = optimizer_class([parameter])
    optimizer.step()
    assert torch.equal(parameter, table()) and not optimizer.state


def test_groups_have_their_own_learning_rate():
    fast, slow = table(), table()
    optimizer = SGD([dict(params=[fast], lr=1.0), dict(params=[slow])], lr=0.0)
    for parameter in (fast, slow):
        cost_of(parameter, torch.tensor(STEPS[0])).backward()
    optimizer.step()
    assert torch.equal(slow, table()) and not torch.equal(fast, table())


# -- cost --------------------------------------------------------------------------------------


class Written(TorchDispatchMode):
    """Counts the numbers that operations write: outputs that are no views of their inputs."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if func.__name__.startswith("scatter_update"):  # of the rows named
            table, state, _, rows = args[:4]
            n_row = table.shape[:-1].numel() if rows is None else len(rows)
            self.n += n_row * sum(x.shape[-1] for x in (table, *state))
            return out
        if func._schema.is_mutable:
            by_row = func.__name__.startswith("index")  # writes its source, not all of its target
            self.n += tensors[-1 if by_row else 0].numel()
            return out
        before = {place for x in tensors for place in storages(x)}
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and not set(storages(x)) <= before:
                self.n += sum(part.numel() for part in parts(x))
        return out


def parts(x):
    return (x._indices(), x._values()) if x.is_sparse else (x,)


def storages(x):
    return [part.untyped_storage().data_ptr() for part in parts(x)]


def written_by_a_step(optimizer_class, mover, n_entity, planned):
    # The same 64 triples of 500 entities, whatever the table holds besides.
    triples = random_triples(500, 3, 64, seed=0)
    graph = KGDataset(n_entity, 3, {"train": triples}, {"train": range(64)})
    sharding = Sharding.create(n_entity, 2, seed=0)
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    negatives = RandomShardedNegativeSampler(5, sharding, 0, "t", flat_negative_format=True)
    sampler = RandomShardedBatchSampler(triple_set, negatives, 8, 1, seed=0)
    score_fn = make_score("transe", sharding, 3, dim=4, dtype=torch.float32)
    runtime = LocalRuntime(mover(negatives, score_fn, LogSigmoidLoss(1.0, True)))
    optimizer = optimizer_class(score_fn.parameters())
    step = runtime.training_step(optimizer)
    step(sampler[0])  # the state is made once
    batch = next(runtime.dataloader(sampler)) if planned else sampler[0]
    with Written() as written:
        step(batch)
    return written.n


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("mover", [EmbeddingMovingBessKGE, ScoreMovingBessKGE])
def test_the_cost_of_a_step_does_not_grow_with_the_table(optimizer_class, mover, planned):
    few, many = (written_by_a_step(optimizer_class, mover, n, planned) for n in (1000, 100_000))
    assert 0 < few < 20_000
    assert many <= few * 1.05  # a few more distinct rows among more entities


def test_the_counter_sees_what_a_dense_optimiser_writes():
    few, many = (
        written_by_a_step(lambda p: Dense(p, lr=0.1), EmbeddingMovingBessKGE, n, False)
        for n in (1000, 100_000)
    )
    assert many - few >= 99_000 * 4


class Dense(torch.optim.SGD):
    """Makes the gradient of the table a table, as an ordinary optimiser does."""

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.grad.to_dense()
        super().step()


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_work_is_refused(optimizer_class, lr):
    with pytest.raises(ConfigError, match=f"lr must be finite and not negative, got {lr}"):
        optimizer_class([table()], lr=lr)


def test_negative_weight_decay_is_refused(optimizer_class):
    with pytest.raises(ConfigError, match="weight_decay must not be negative, got -1.0"):
        optimizer_class([table()], weight_decay=-1.0)


def test_betas_of_one_are_refused():
    with pytest.raises(ConfigError, match=r"betas must be in \[0, 1\), got 0.9 and 1.0"):
        LazyAdam([table()], beta2=1.0)


def test_closures_are_refused(optimizer_class):
    with pytest.raises(NotImplementedError, match="take one gradient, not a closure"):
        optimizer_class([table()]).step(lambda: None)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("shape", [(), (7,), (3, 0), (2, 3, 4)], ids=str)
def test_parameters_of_any_shape_are_updated_as_if_at_once(name, shape, monkeypatch):
    found = []
    for block in (2**16, 5):
        monkeypatch.setattr(sys.modules["besskge_core.ops.scatter_update"], "BLOCK", block)
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(shape, generator=generator, dtype=torch.float64)
        parameter = torch.nn.Parameter(start)
        optimizer = OPTIMIZERS[name]([parameter])
        for _ in range(2):
            parameter.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
            optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(*found)


def test_a_parameter_that_lies_transposed_is_updated_in_place():
    table = torch.randn(4, 3, generator=torch.manual_seed(0))
    parameters = torch.nn.Parameter(table.T), torch.nn.Parameter(table.T.contiguous())
    for parameter in parameters:
        parameter.grad = torch.ones(3, 4)
        OPTIMIZERS["adam"]([parameter]).step()
    assert not parameters[0].is_contiguous() and torch.equal(*parameters)
