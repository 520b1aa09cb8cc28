"""The double splits batches as PopTorch does, and refuses what PopTorch refuses."""

from __future__ import annotations

import poptorch_double as poptorch
import pytest
import torch
from poptorch_double import MACHINE, Error, OutputMode
from torch import nn


@pytest.fixture(autouse=True)
def machine():
    with poptorch.installed(n_ipu=4):
        yield


def made(d=1, g=1, r=1, mode=None, reduction=None):
    options = poptorch.Options().replicationFactor(r).deviceIterations(d)
    options.Training.gradientAccumulation(g)
    if mode is not None:
        options.outputMode(mode)
    if reduction is not None:
        options.Training.accumulationAndReplicationReductionType(reduction)
    return options


class Seen(nn.Module):
    """Gives what it sees, times a weight."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x, y=None):
        out = x * self.w if y is None else x * self.w + y
        return {"seen": out, "loss": poptorch.identity_loss(out.sum(), "none")}


class Of(nn.Module):
    """A function of an input and a parameter."""

    def __init__(self, function, constant=None):
        super().__init__()
        self.w, self.function, self.constant = nn.Parameter(torch.ones(2)), function, constant

    def forward(self, x):
        out = self.function(x * self.w) if self.constant is None else x * self.w + self.constant
        return poptorch.identity_loss(out.sum(), "none")


def rows(n):
    return torch.arange(n * 3.0).view(n, 3)


# -- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode,kept",
    [(OutputMode.All, range(8)), (OutputMode.Final, range(6, 8)), (OutputMode.Default, range(8))],
)
def test_replicas_come_fastest_but_for_rows(mode, kept):
    model = poptorch.inferenceModel(Seen(), made(d=4, r=2, mode=mode))
    out = model(rows(16))
    assert torch.equal(out["seen"], rows(16).view(8, 2, 3)[list(kept)].flatten(end_dim=1))
    assert torch.equal(out["loss"], rows(16).view(8, 6).sum(1)[list(kept)])


def test_sums_and_periods_of_outputs():
    found = poptorch.inferenceModel(Seen(), made(d=4, r=2, mode=OutputMode.Sum))(rows(8))["seen"]
    assert torch.equal(found, rows(8).view(4, 2, 3).sum(0))
    options = made(d=4, r=2).outputMode(OutputMode.EveryN, 2)
    found = poptorch.inferenceModel(Seen(), options)(rows(8))["seen"]
    assert torch.equal(found, rows(8).view(4, 2, 3)[[1, 3]].flatten(end_dim=1))


def test_training_gives_the_last_micro_batch_unless_told():
    user = Seen()
    model = poptorch.trainingModel(user, made(d=2, r=2), torch.optim.SGD(user.parameters(), 0.0))
    assert torch.equal(model(rows(4))["loss"], rows(4).sum(1)[2:])


@pytest.mark.parametrize(
    "reduction,share", [(poptorch.ReductionType.Mean, 0.25), (poptorch.ReductionType.Sum, 1.0)]
)
def test_gradients_are_divided_by_replicas_and_accumulated_steps(reduction, share):
    user = Seen()
    options = made(d=1, g=2, r=2, reduction=reduction)
    model = poptorch.trainingModel(user, options, poptorch.optim.SGD(user.parameters(), lr=1.0))
    model(rows(4))
    model.copyWeightsToHost()
    assert torch.equal(user.w, 1.0 - share * rows(4).sum(0))


def test_device_iterations_are_updates_of_their_own():
    user = Seen()
    model = poptorch.trainingModel(user, made(d=2), poptorch.optim.SGD(user.parameters(), lr=1.0))
    out = model(rows(2))["seen"]  # only the last
    assert torch.equal(out, rows(2)[1:] * (1.0 - rows(2)[:1]))


def test_weights_stay_on_the_device_until_they_are_asked_for():
    user = Seen()
    model = poptorch.trainingModel(user, made(), poptorch.optim.SGD(user.parameters(), lr=1.0))
    model(rows(1))
    assert torch.equal(user.w, torch.ones(3))
    model.copyWeightsToHost()
    assert torch.equal(user.w, 1.0 - rows(1)[0])
    with torch.no_grad():
        user.w.zero_()
    assert not torch.equal(model(rows(1))["seen"], torch.zeros(1, 3))
    model.copyWeightsToDevice()
    assert torch.equal(model(rows(1))["seen"], torch.zeros(1, 3))


class Table(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.table = nn.Parameter(rows(n))

    def forward(self, x):
        return self.table + x


def test_a_grouped_variable_has_a_part_for_each_replica():
    model = poptorch.inferenceModel(Table(4), made(r=4))
    grouping = poptorch.CommGroupType.NoGrouping, 0, poptorch.VariableRetrievalMode.OnePerGroup
    model.table.replicaGrouping(*grouping)
    assert torch.equal(model(torch.zeros(4, 1)), rows(4))
    for n, name, message in ((3, "table", "first axis of 4 groups"), (4, "other", "no parameters")):
        model = poptorch.inferenceModel(Table(n), made(r=4))
        model.per_replica_params[name] = grouping
        with pytest.raises(Error, match=message):
            model(torch.zeros(4, 1))


# -- refusals ----------------------------------------------------------------------------------


def test_options_are_frozen_by_whoever_takes_them():
    options = made()
    with pytest.raises(AttributeError, match="no attribute 'replication'"):
        options.replication = 2
    poptorch.inferenceModel(Seen(), options)
    poptorch.inferenceModel(Seen(), options)
    for change in (
        lambda: options.deviceIterations(2),
        lambda: options.Training.gradientAccumulation(2),
    ):
        with pytest.raises(AttributeError, match="frozen"):
            change()
    assert options.clone().deviceIterations(2).device_iterations == 2


def test_inference_accumulates_nothing():
    with pytest.raises(Error, match="gradientAccumulation to 1"):
        poptorch.inferenceModel(Seen(), made(g=2))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m: m(rows(4), z=rows(4)), "unexpected keyword argument 'z'"),
        (lambda m: m(rows(3)), "multiple of .* = 4"),
        (lambda m: m(rows(8)), "do not match"),
        (lambda m: m(rows(4).half()), "do not match"),
        (lambda m: m(rows(4), rows(4)), "do not match"),
        (lambda m: m(torch.zeros(4, 3, dtype=torch.complex64)), "unsupported input"),
    ],
)
def test_programs_take_one_kind_of_inputs(call, message):
    model = poptorch.inferenceModel(Seen(), made(d=2, r=2))
    model(rows(4))
    with pytest.raises(Error, match=message):
        call(model)


def test_inputs_that_are_converted_are_warned_of():
    with pytest.warns(UserWarning, match="int64"):
        poptorch.inferenceModel(Seen())(torch.ones(1, 3, dtype=torch.int64))
    with pytest.warns(UserWarning, match="not contiguous"):
        poptorch.inferenceModel(Seen())(torch.ones(3, 2).T[:1])


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize(
    "function,message",
    [
        (lambda x: x * x.sum().item(), "_local_scalar_dense|item"),
        (lambda x: x if x.sum() > 0 else -x, "_local_scalar_dense|nonzero|bool"),
        (lambda x: x[x > 0], "no fixed shape|nonzero|Unsupported"),
        (lambda x: x.nonzero().float(), "nonzero"),
        (lambda x: x.nan_to_num(0.0), r"Unsupported ops .*nan_to_num"),
        (lambda x: x.masked_fill(x.isneginf(), 0.0), r"Unsupported ops .*isneginf"),
        (lambda x: torch.view_as_complex(x.view(-1, 2)).abs(), "Unsupported ops|complex"),
        (lambda x: Double.apply(x), "autograd.Function"),
    ],
)
def test_what_cannot_be_traced_is_refused(function, message):
    with pytest.raises((Error, RuntimeError), match=message):
        poptorch.inferenceModel(Of(function))(torch.ones(1, 2))


def test_tensors_of_the_host_are_refused():
    with pytest.raises(RuntimeError, match="device"):
        poptorch.inferenceModel(Of(None, torch.ones(2)))(torch.ones(1, 2))


class Losses(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w, self.n = nn.Parameter(torch.ones(2)), n

    def forward(self, x):
        return [poptorch.identity_loss((x * self.w).sum(), "none") for _ in range(self.n)]


@pytest.mark.parametrize("n", [0, 2])
def test_training_needs_one_loss(n):
    with pytest.raises(Error, match=f"one final loss, found {n}"):
        poptorch.trainingModel(Losses(n))(torch.ones(1, 2))


def test_a_module_is_wrapped_once_for_training():
    user = Seen()
    model = poptorch.trainingModel(user)
    with pytest.raises(Error, match="already been wrapped"):
        poptorch.trainingModel(user)
    model.destroy()
    poptorch.trainingModel(user)


def test_optimisers_that_are_not_there_are_refused():
    user = Seen()
    with pytest.raises(TypeError, match="Adagrad"):
        poptorch.trainingModel(user, None, torch.optim.Adagrad(user.parameters()))
    with pytest.raises(ValueError, match="must be torch.float32 or torch.float16"):
        poptorch.optim.SGD(user.parameters(), lr=0.1, velocity_accum_type=torch.float64)
    with pytest.raises(TypeError, match="unexpected arguments"):
        poptorch.optim.SGD(user.parameters(), lr=0.1, first_order_momentum_accum_type=torch.half)


def test_ipus_are_counted():
    first = poptorch.inferenceModel(Seen(), made(r=4))
    first(rows(4))
    second = poptorch.inferenceModel(Seen(), made(r=2))
    with pytest.raises(Error, match="Failed to acquire 2"):
        second(rows(2))
    first.detachFromDevice()
    with pytest.raises(Error, match="not attached"):
        first(rows(4))
    second(rows(2))
    assert MACHINE["held"] == 2
    with pytest.raises(Error, match="no power of two"):
        poptorch.inferenceModel(Seen(), made(r=3))(rows(3))


def test_operations_need_their_library():
    def swapped(x):
        return poptorch.custom_op([x], "AllToAll", "besskge_core", 1, [x])[0]

    assert torch.equal(swapped(torch.ones(2)), torch.zeros(2))  # on the host, silently
    with pytest.raises(Error, match="no op besskge_core.AllToAll"):
        poptorch.inferenceModel(Of(swapped))(torch.ones(1, 2))


class Swapped(nn.Module):
    """Sends its row to everyone."""

    def forward(self, x):
        (out,) = poptorch.custom_op(
            [x.expand(2, 3)], "AllToAll", "besskge_core", 1, [x.expand(2, 3)]
        )
        return out


def test_an_exchange_swaps_what_replicas_send():
    poptorch.library_is_loaded()
    found = poptorch.inferenceModel(Swapped(), made(r=2))(rows(2))
    assert torch.equal(found, rows(2).repeat(2, 1))


def test_an_asynchronous_loader_overwrites_what_it_gave():
    data = [torch.ones(2) * i for i in range(3)]
    options = dict(batch_size=None, mode=poptorch.DataLoaderMode.Async)
    loader = poptorch.DataLoader(made(), [{"x": x} for x in data], drop_last=False, **options)
    assert [float(x["x"].sum()) for x in loader] == [0.0, 2.0, 4.0]
    assert [float(x["x"].sum()) for x in list(loader)] == [0.0, 0.0, 4.0]
    loader.terminate()
    with pytest.raises(Error, match="terminated"):
        next(iter(loader))
    with pytest.raises(Error, match="smaller has no program"):
        poptorch.DataLoader(made(d=2), data, batch_size=1, drop_last=False)
