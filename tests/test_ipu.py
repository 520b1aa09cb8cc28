"""The IPU runtime's own: options, optimisers, loader, exchange, and what it refuses.

The machine is the double in `poptorch_double`; none of this has run on an IPU.
"""

from __future__ import annotations

import ctypes.util
import inspect
import os

import poptorch_double
import pytest
import torch
from poptorch_double.replicas import Lockstep
from ranks import small_graph
from support import make_score, needs_half
from test_distributed import sampler_of
from torch.testing import assert_close

from besskge_core.bess import (
    AllScoresBESS,
    EmbeddingMovingBessKGE,
    LCWABessKGE,
    OneVsAllBessKGE,
    ScoreMovingBessKGE,
)
from besskge_core.embedding import Embedding
from besskge_core.errors import ConfigError, NonFiniteLossError, ShapeError
from besskge_core.exchange import LocalExchange, PopTorchExchange
from besskge_core.exchange.poptorch import NativeLibrary
from besskge_core.known import KnownTriples
from besskge_core.loss import LOSSES, LogSigmoidLoss
from besskge_core.negative_sampler import PlaceholderNegativeSampler
from besskge_core.ops.tracing import tracing
from besskge_core.optim import OPTIMIZERS
from besskge_core.philox import Position
from besskge_core.runtime import IPURuntime, IPUSettings, LocalRuntime
from besskge_core.runtime.ipu import make_optimizer, make_options
from besskge_core.scoring import SCORE_FUNCTIONS, tiles


@pytest.fixture(autouse=True)
def poptorch():
    with poptorch_double.installed() as module:
        yield module


def prepare(n_shard=4, mover=EmbeddingMovingBessKGE, score="complex", n_worker=1, **options):
    """A sampler and a runtime; each call begins with the same weights."""
    settings = {k: options.pop(k) for k in list(options) if k in IPUSettings.__annotations__}
    sampler = sampler_of(n_shard, options.pop("negatives", "flat"))
    loss = options.pop("loss", LogSigmoidLoss(1.0, True))
    score_fn = make_score(score, sampler.triple_set.sharding, 4, dtype=torch.float32, **options)
    model = mover(sampler.negative_sampler, score_fn, loss)
    return sampler, IPURuntime(model, IPUSettings(**settings), n_worker)


def sgd(runtime, **options):
    return make_optimizer("sgd", list(runtime.model.parameters()), **{"lr": 0.1, **options})


# -- the exchange ------------------------------------------------------------------------------

COLLECTIVES = ["all_to_all", "all_gather", "all_reduce"]


def exchanged(n_shard, name, x, weight):
    """Of every replica, and the gradient of all together."""
    exchange, parts = PopTorchExchange(n_shard), [None] * n_shard

    def program(rank):
        parts[rank] = x[rank : rank + 1].clone().requires_grad_(x.is_floating_point())
        with tracing():
            return getattr(exchange, name)(parts[rank])

    outs = Lockstep(n_shard).run(program)
    if x.is_floating_point():
        (torch.cat(outs) * weight).sum().backward()
    return torch.cat([out.detach() for out in outs]), [part.grad for part in parts]


@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("n_shard", [1, 2, 4])
def test_collectives_are_those_of_one_process(n_shard, name, generator):
    x = torch.randn(n_shard, n_shard, 3, 2, generator=generator).requires_grad_()
    expected = getattr(LocalExchange(n_shard), name)(x)
    weight = torch.randn(expected.shape, generator=generator)
    (expected * weight).sum().backward()
    found, grads = exchanged(n_shard, name, x.detach(), weight)
    assert torch.equal(found, expected)
    assert_close(torch.cat(grads), x.grad)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_every_dtype_travels(dtype):
    x = (torch.arange(16).view(2, 2, 4) % 5 * 0.5).to(dtype)
    found, _ = exchanged(2, "all_to_all", x, torch.ones(1))
    assert found.dtype == dtype and torch.equal(found, x.transpose(0, 1))


def test_sums_over_replicas_have_no_gradient():
    exchange, x = PopTorchExchange(2), torch.ones(3, requires_grad=True)

    def program(rank):
        with tracing():
            return exchange.sum_ranks(x), exchange.gather_ranks(x)

    outs = Lockstep(2).run(program)
    assert all(torch.equal(sums, 2 * torch.ones(3)) for sums, _ in outs)
    assert all(torch.equal(rows, torch.ones(2, 3)) for _, rows in outs)
    assert not any(x.requires_grad for out in outs for x in out)


def test_an_exchange_outside_a_program_is_refused():
    with pytest.raises(ConfigError, match="in a step that PopTorch traces; run this model with"):
        PopTorchExchange(2).all_to_all(torch.zeros(1, 2, 3))
    with pytest.raises(ShapeError, match=r"expects leading axes L=1, S=2 on a replica, got \(2, 2"):
        PopTorchExchange(2).all_to_all(torch.zeros(2, 2, 3))


def test_the_operation_of_our_own_library_is_asked_for(monkeypatch):
    with pytest.raises(ConfigError, match="no-such-library.so cannot be loaded .* build it"):
        NativeLibrary("no-such-library.so")
    library = ctypes.util.find_library("m")
    sampler, runtime = prepare(library=library)
    with pytest.raises(poptorch_double.Error, match=r"no op besskge_core\.Gather"):
        runtime.training_step(sgd(runtime))(sampler[0])
    poptorch_double.library_is_loaded()
    called = set()

    def noting(name, operation):
        def noted(*inputs, **attributes):
            called.add(name)
            return operation(*inputs, **attributes)

        return noted

    for key, operation in list(poptorch_double.OPERATIONS.items()):
        poptorch_double.OPERATIONS[key] = noting(key[1], operation)
    for score, asked in [
        ("complex", {"AllToAll", "Gather"}),
        ("transe", {"AllToAll", "Gather", "Pairwise"}),
        ("rotate", {"AllToAll", "Gather", "Pairwise"}),
    ]:
        losses = []
        for own in (library, None):
            sampler, runtime = prepare(score=score, library=own)
            losses.append(runtime.training_step(sgd(runtime))(sampler[0])["loss"])
            runtime.close()
            assert called == (asked if own else set())
            called.clear()
        assert_close(*losses)


# -- options -----------------------------------------------------------------------------------


def test_settings_become_options(poptorch, tmp_path):
    settings = IPUSettings(
        gradient_accumulation=3, half_partials=True, stochastic_rounding=True, available_memory=0.4,
        executable_cache=tmp_path, seed=5, patterns=("RemoveAllReducePattern",),
    )  # fmt: skip
    options = make_options(settings, 4, 6, training=True)
    assert (options.replication_factor, options.device_iterations) == (4, 2)
    assert options.output_mode is poptorch.OutputMode.All and options.random_seed == 5
    assert options.Training.gradient_accumulation == 3
    assert options.Training.reduction is poptorch.ReductionType.Mean
    assert options.Precision.partials == torch.half and options.Precision.stochastic_rounding
    assert options.memory_proportion == {"IPU0": 0.4}
    assert options.executable_cache == str(tmp_path) and not options.use_ipu_model
    assert options._Popart.patterns == {"RemoveAllReducePattern": True}
    options = make_options(settings, 4, 6, training=False)
    assert (options.device_iterations, options.Training.gradient_accumulation) == (6, 1)
    assert options._Popart.patterns == {}


def test_the_target_is_chosen_by_settings_or_environment(monkeypatch, tmp_path):
    assert not make_options(IPUSettings(), 2, 1, True).use_ipu_model
    monkeypatch.setitem(os.environ, "BESSKGE_IPU", "model")
    options = make_options(IPUSettings(executable_cache=tmp_path), 2, 1, True)
    assert options.use_ipu_model and options.executable_cache is None
    assert not make_options(IPUSettings(target="hardware"), 2, 1, True).use_ipu_model
    monkeypatch.setitem(os.environ, "BESSKGE_IPU", "gpu")
    with pytest.raises(ConfigError, match="the target is 'gpu', expected one of"):
        IPUSettings()


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(gradient_accumulation=0), "gradient_accumulation must be at least 1, got 0"),
        (dict(available_memory=0.0), r"available_memory must be in \(0, 1\], got 0.0"),
        (dict(available_memory=1.5), "got 1.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        IPUSettings(**options)


def test_several_instances_are_refused_or_independent(poptorch, monkeypatch):
    made = poptorch.Options()
    made.Distributed.configureProcessId(1, 2)
    monkeypatch.setattr(poptorch, "Options", lambda: made)
    with pytest.raises(ConfigError, match="poprun started 2 instances.*--num-instances=1"):
        make_options(IPUSettings(), 2, 1, True)
    alone = make_options(IPUSettings(independent=True), 2, 1, True).Distributed
    assert (alone.processId, alone.numProcesses) == (0, 1)


# -- optimisers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,advice",
    [
        ("adagrad", "use 'rmsprop', whose mean of squares forgets, or 'adam'"),
        ("rowwise_adagrad", "'rmsprop' with float16 state"),
        ("rowwise_adam", "'adam', with float16 for the first moment"),
        ("lbfgs", "PopTorch has SGD, Adam, AdamW, RMSprop and LAMB"),
    ],
)
def test_optimisers_that_ipus_have_not_are_refused_by_name(name, advice):
    with pytest.raises(ConfigError, match=f"no optimiser '{name}' on IPUs; PopTorch has SGD"):
        make_optimizer(name, [torch.nn.Parameter(torch.ones(2))], 0.1)
    with pytest.raises(ConfigError, match=advice):
        make_optimizer(name, [torch.nn.Parameter(torch.ones(2))], 0.1)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_row_optimisers_are_refused_by_name(name):
    _, runtime = prepare(2)
    optimizer = OPTIMIZERS[name](list(runtime.model.parameters()), lr=0.1)
    advice = {"sgd": "use 'sgd'", "adam": "use 'adam'", "rowwise_adam": "use 'adam'"}
    message = f"{type(optimizer).__name__} updates rows apart, .*{advice.get(name, 'rmsprop')}"
    with pytest.raises(ConfigError, match=message):
        runtime.training_step(optimizer)


def test_torch_optimisers_that_ipus_have_not_are_refused_by_name():
    _, runtime = prepare(2)
    parameters = list(runtime.model.parameters())
    for optimizer, message in [
        (torch.optim.Adagrad(parameters), "no optimiser Adagrad on IPUs; .*'rmsprop'"),
        (torch.optim.SparseAdam(parameters), "no optimiser SparseAdam .*all rows in every step"),
        (torch.optim.Adadelta(parameters), "no optimiser Adadelta on IPUs; PopTorch has"),
        (torch.optim.Adam(parameters, amsgrad=True), "no amsgrad on IPUs; use Adam without"),
        (torch.optim.SGD(parameters[:1], lr=0.1), r"lacks \['score_fn.relation_embedding'\]"),
    ]:
        with pytest.raises(ConfigError, match=message):
            runtime.training_step(optimizer)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "lamb"])
def test_state_may_be_kept_in_half_precision(name):
    found = []
    for dtypes in ((), (torch.float16,), (torch.float32, torch.float16)):
        if name == "sgd" and len(dtypes) == 2:
            with pytest.raises(ConfigError, match="at most 1"):
                make_optimizer(
                    name, [torch.nn.Parameter(torch.ones(2))], 0.1, 0.0, *[torch.half, dtypes]
                )
            continue
        sampler, runtime = prepare(2)
        options = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
        optimizer = make_optimizer(
            name, list(runtime.model.parameters()), 0.01, state_dtypes=dtypes, **options
        )
        step = runtime.training_step(optimizer)
        for batch in runtime.dataloader(sampler):
            step(batch)
        runtime.to_host()
        found.append(runtime.model.score_fn.entity_embedding.detach().clone())
    for other in found[1:]:
        assert not torch.equal(other, found[0])


def test_other_dtypes_of_state_are_refused():
    with pytest.raises(
        ConfigError, match="torch.bfloat16.* expected torch.float32 or torch.float16"
    ):
        make_optimizer(
            "sgd", [torch.nn.Parameter(torch.ones(2))], 0.1, state_dtypes=[torch.bfloat16]
        )


def test_lamb_scales_by_the_norm_of_each_shard():
    sampler, runtime = prepare(2)
    table = runtime.model.score_fn.entity_embedding
    before = table.detach().clone()
    optimizer = make_optimizer("lamb", list(runtime.model.parameters()), lr=0.1)
    runtime.training_step(optimizer)({k: x[:1] for k, x in sampler[0].items()})
    runtime.to_host()
    for shard in range(2):
        assert_close((table[shard] - before[shard]).norm(), 0.1 * before[shard].norm())


# -- steps -------------------------------------------------------------------------------------


def test_host_weights_are_what_they_were_until_they_are_brought_back():
    sampler, runtime = prepare(2)
    table = runtime.model.score_fn.entity_embedding
    before = table.detach().clone()
    runtime.training_step(sgd(runtime))(sampler[0])
    assert torch.equal(table, before)
    runtime.to_host()
    assert not torch.equal(table, before) and table.shape == before.shape


def test_training_goes_on_after_validation_on_the_same_ipus():
    with poptorch_double.installed(n_ipu=2):
        sampler, runtime = prepare(2)
        train, infer = runtime.training_step(sgd(runtime)), runtime.inference_step()
        found = [infer(sampler[0]), train(sampler[0]), infer(sampler[0]), train(sampler[1])]
        runtime.close()
        assert poptorch_double.MACHINE["held"] == 0
    sampler, other = prepare(2)
    local = LocalRuntime(other.model)
    optimizer = torch.optim.SGD(local.model.parameters(), lr=0.1)
    train, infer = local.training_step(optimizer), local.inference_step()
    expected = [infer(sampler[0]), train(sampler[0]), infer(sampler[0]), train(sampler[1])]
    assert_close(found, expected)
    ours, theirs = (x.model.score_fn.entity_embedding for x in (runtime, local))
    assert_close(ours, theirs)


def test_a_closed_runtime_leaves_a_model_for_others():
    sampler, runtime = prepare(2)
    runtime.training_step(sgd(runtime))(sampler[0])
    with pytest.raises(ConfigError, match="trains with another optimizer already; close it"):
        runtime.training_step(sgd(runtime))
    runtime.close()
    again = runtime.training_step(sgd(runtime))(sampler[1])["loss"]
    runtime.close()
    local = LocalRuntime(runtime.model)
    assert again.shape == (2,)
    assert not local.inference_step()(sampler[1])["loss"].equal(again)


def test_flattened_batches_are_those_that_are_not():
    found = []
    for flat in (True, False):
        sampler, runtime = prepare()
        batch = sampler[0]
        if flat:
            batch = {name: x.flatten(end_dim=1) for name, x in batch.items()}
        found.append(runtime.training_step(sgd(runtime))(batch)["loss"])
    assert torch.equal(*found) and found[0].shape == (2,)


def test_wide_columns_are_made_narrow_on_the_host():
    found = []
    for wide in (False, True):
        sampler, runtime = prepare(2)
        batch = sampler[0]
        if wide:  # the double warns of int64, and warnings are errors
            batch = {k: x.long() if x.dtype == torch.int32 else x for k, x in batch.items()}
            batch["triple_weight"] = batch["triple_weight"].double()
        found.append(runtime.training_step(sgd(runtime))(batch)["loss"])
    assert torch.equal(*found)


@pytest.mark.parametrize("mover", [EmbeddingMovingBessKGE, ScoreMovingBessKGE])
@pytest.mark.parametrize("score", sorted(SCORE_FUNCTIONS))
def test_score_functions_can_be_compiled(score, mover):
    refused = {"conve": "BatchNorm.* keeps statistics", "hole": "ComplEx has the same scores"}
    if score in refused:
        with pytest.raises(ConfigError, match=refused[score]):
            prepare(2, mover, score)
        return
    sampler, runtime = prepare(2, mover, score)
    found = runtime.training_step(sgd(runtime, lr=0.01))(sampler[0])["loss"]
    sampler, other = prepare(2, mover, score)
    local = LocalRuntime(other.model)
    step = local.training_step(torch.optim.SGD(local.model.parameters(), lr=0.01))
    assert_close(found, step(sampler[0])["loss"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_can_be_compiled(name):
    parameters = inspect.signature(LOSSES[name]).parameters
    given = dict(n_entity=37, margin=1.0, negative_adversarial_sampling=True)
    needed = [k for k, x in parameters.items() if k in given and x.default is x.empty]
    found = []
    for local in (False, True):
        sampler, runtime = prepare(2, loss=LOSSES[name](**{k: given[k] for k in needed}))
        optimizer = None if local else sgd(runtime)
        if local:
            runtime = LocalRuntime(runtime.model)
            optimizer = torch.optim.SGD(runtime.model.parameters(), lr=0.1)
        found.append(runtime.training_step(optimizer)(sampler[0])["loss"])
    assert_close(*found, check_dtype=False)


@needs_half
def test_half_precision_tables_can_be_trained():
    sampler, runtime = prepare(2, stochastic_rounding=True)
    runtime.model.half()
    found = runtime.training_step(sgd(runtime, state_dtypes=[torch.half], momentum=0.9))(sampler[0])
    runtime.to_host()
    assert found["loss"].dtype == torch.float32 and found["loss"].isfinite().all()
    assert runtime.model.score_fn.entity_embedding.dtype == torch.float16


def test_a_loss_that_is_not_finite_is_said_to_be_applied():
    sampler, runtime = prepare(2)
    with torch.no_grad():
        runtime.model.score_fn.relation_embedding[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"the loss is \[nan, nan\], and has been applied"):
        runtime.training_step(sgd(runtime))(sampler[0])


def test_batches_of_other_shapes_are_refused():
    sampler, runtime = prepare(2)
    step = runtime.training_step(sgd(runtime))
    step(sampler[0])
    with pytest.raises(ShapeError, match=r"\(2, 2, 8\).* compiled for .*\(4, 2, 8\)"):
        step({name: x[:1] for name, x in sampler[0].items()})
    with pytest.raises(ShapeError, match=r"expected \(M \* S, ...\) with S=2"):
        step({name: x.flatten(end_dim=1)[:-1] for name, x in sampler[0].items()})
    _, runtime = prepare(2, gradient_accumulation=4)
    with pytest.raises(ConfigError, match="batches_per_step is 2, expected a multiple of .* = 4"):
        runtime.training_step(sgd(runtime))(sampler[0])
    local = LocalRuntime(runtime.model)
    with pytest.raises(ConfigError, match="batches of another runtime's dataloader"):
        runtime.inference_step()(next(local.dataloader(sampler)))


def test_there_is_no_host_before_the_update():
    _, runtime = prepare(2)
    with pytest.raises(ConfigError, match="before_update: the update follows on the device"):
        runtime.training_step(sgd(runtime), lambda: None)


# -- the loader --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_worker", [0, 2])
def test_the_loader_gives_the_batches_of_the_sampler_in_order(n_worker):
    sampler, runtime = prepare(2, n_worker=n_worker)
    sampler.return_triple_idx = True
    steps = range(1, sampler.n_step)
    for step, batch in zip(steps, runtime.dataloader(sampler, 2, first_step=1)):
        expected = sampler.batch(Position(2, step))
        assert set(batch) == set(expected) - {"triple_idx"}
        for name, x in batch.items():
            assert torch.equal(x, expected[name].flatten(end_dim=1)) and x.dtype != torch.int64
    assert len(steps) == sum(1 for _ in runtime.dataloader(sampler, 2, first_step=1)) > 0
    assert list(runtime.dataloader(sampler, first_step=sampler.n_step)) == []


def test_a_loader_may_be_left_early():
    sampler, runtime = prepare(2)
    loader = runtime.dataloader(sampler)
    first = {name: x.clone() for name, x in next(loader).items()}
    loader.close()
    again = next(runtime.dataloader(sampler))
    assert all(torch.equal(x, again[name]) for name, x in first.items())


def test_a_loader_that_is_left_ends_its_processes(poptorch, monkeypatch):
    loaders, make = [], poptorch.DataLoader
    monkeypatch.setattr(
        poptorch, "DataLoader", lambda **x: loaders.append(make(**x)) or loaders[-1]
    )
    sampler, runtime = prepare(2)
    batches = runtime.dataloader(sampler)
    next(batches)
    assert not loaders[0]._ended
    batches.close()
    assert loaders[0]._ended


# -- refused models ----------------------------------------------------------------------------


def embedded(**options):
    def make():
        sampler = sampler_of(2)
        sharding = sampler.triple_set.sharding
        options.setdefault("shape", 12)
        embedding = Embedding(sharding=sharding, **options)
        score_fn = make_score("complex", sharding, 4, dtype=None, entity_initializer=embedding)
        return EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True))

    return make


def over_all(make):
    return lambda: make(make_score("complex", sampler_of(2).triple_set.sharding, 4))


def filtered():
    sampler = sampler_of(2)
    sampler.negative_sampler.known = KnownTriples.of(small_graph())
    score_fn = make_score("complex", sampler.triple_set.sharding, 4)
    return EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True))


def of_shards(n):
    def make():
        sampler = sampler_of(n)
        score_fn = make_score("complex", sampler.triple_set.sharding, 4)
        return EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True))

    return make


@pytest.mark.parametrize(
    "make,message",
    [
        (of_shards(3), "3 shards, but IPUs come in powers of two, .*give n_shard = 4"),
        (filtered, "whose length differs from batch to batch; on IPUs, sample without `known`"),
        (over_all(OneVsAllBessKGE), "OneVsAllBessKGE makes its gradients a tile at a time"),
        (
            over_all(lambda s: LCWABessKGE(s, KnownTriples.of(small_graph()))),
            "LCWABessKGE .* train with sampled negatives",
        ),
        (
            over_all(lambda s: AllScoresBESS(PlaceholderNegativeSampler("t"), s)),
            "AllScoresBESS is driven by AllScoresPipeline; ask TopKQueryBessKGE",
        ),
        (embedded(regularizer="lp"), "give the model one of besskge_core.regularizer"),
        (embedded(constrainer="normalize"), "on IPUs use a normalizer"),
        (embedded(unique=True), "unique=True makes as many rows as there are"),
        (embedded(shape=6, dtype=torch.complex64), "IPUs have no complex numbers"),
    ],
)
def test_models_that_cannot_be_compiled_are_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        IPURuntime(make())


def test_dropout_is_of_training_alone():
    model, batch = embedded(dropout=0.5)(), sampler_of(2)[0]
    runtime = IPURuntime(model)
    trained = runtime.training_step(sgd(runtime, lr=0.0))(batch)["loss"]
    found = runtime.inference_step()(batch)["loss"]
    runtime.close()
    assert_close(found, LocalRuntime(model).inference_step()(batch)["loss"])
    assert not torch.allclose(trained, found)


def test_a_frozen_table_is_refused():
    _, runtime = prepare(2)
    runtime.model.score_fn.entity_embedding.requires_grad_(False)
    with pytest.raises(ConfigError, match="a frozen entity table"):
        runtime.training_step(torch.optim.SGD(runtime.model.parameters(), lr=0.1))


def test_tiles_are_computed_once_in_a_program(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_SIZE", 64)
    monkeypatch.setattr(tiles, "checkpoint", None)  # what to compute again, a compiler decides
    sampler, runtime = prepare(2, score="boxe")
    found = runtime.training_step(sgd(runtime, lr=0.01))(sampler[0])["loss"]
    monkeypatch.undo()
    with poptorch_double.installed():
        sampler, runtime = prepare(2, score="boxe")
        assert_close(found, runtime.training_step(sgd(runtime, lr=0.01))(sampler[0])["loss"])
