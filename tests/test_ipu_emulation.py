"""Without an SDK a step runs under the rules of IPUs: each has a step that breaks it.

None of this has run on an IPU.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
from pathlib import Path

import poptorch_double
import pytest
import torch
from ipu_programs import CASES, PAGE, page, program_of, ran
from support import make_score, needs_half
from test_distributed import sampler_of
from torch import nn
from torch.testing import assert_close

from besskge_core import bess
from besskge_core.bess import EmbeddingMovingBessKGE
from besskge_core.errors import ConfigError, ProgramError, ShapeError
from besskge_core.loss import LogSigmoidLoss
from besskge_core.negative_sampler import RandomShardedNegativeSampler
from besskge_core.runtime import IPURuntime, IPUSettings, LocalRuntime, make_ipu_runtime
from besskge_core.runtime.ipu import (
    EmulatedIPURuntime,
    chosen_target,
    compile_program,
    make_optimizer,
)
from besskge_core.runtime.ipu.emulated_optimizers import in_float32
from besskge_core.runtime.ipu.operators import HANDLED, PARTS
from besskge_core.runtime.ipu.program import check_memory
from besskge_core.runtime.ipu.rules import trace
from besskge_core.runtime.ipu.sram import PUBLISHED_CAPACITIES, SRAM, TILE
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import Sharding

NAMED = {f"{kind}: {name}": case for kind, cases in CASES.items() for name, case in cases.items()}

#: What cannot be compiled, and words of the reason.
REFUSED = {
    "Modules: AllScoresBESS": "driven by AllScoresPipeline; ask TopKQueryBessKGE",
    "Modules: OneVsAllBessKGE": "makes its gradients a tile at a time",
    "Modules: LCWABessKGE": "makes its gradients a tile at a time",
    "Score functions: conve": "BatchNorm2d keeps statistics",
    "Score functions: hole": "Fourier transforms, which PopTorch has not",
    "Score functions, scores moving: conve": "BatchNorm2d keeps statistics",
    "Score functions, scores moving: hole": "Fourier transforms",
    "Negative samplers: without true triples": "whose length differs from batch to batch",
    **{
        f"Entity representations: {name}": "constrainer changes weights between steps"
        for name in CASES["Entity representations"]
        if name.startswith("constrainer")
    },
    **{
        f"Entity representations: {name}": "takes rows by a mask, so many as there are"
        for name in CASES["Entity representations"]
        if name.startswith("regularizer")
    },
}


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    monkeypatch.setitem(os.environ, "BESSKGE_IPU", "emulate")


def runtime_of(score="complex", n_shard=2, negatives="flat", **settings):
    sampler = sampler_of(n_shard, negatives)
    score_fn = make_score(score, sampler.triple_set.sharding, 4, dtype=torch.float32)
    model = EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, LogSigmoidLoss(1.0, True))
    return sampler, make_ipu_runtime(model, IPUSettings(**settings))


def sgd(runtime, **options):
    return make_optimizer("sgd", list(runtime.model.parameters()), **{"lr": 0.1, **options})


# -- what passes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_part_can_be_compiled_or_is_listed(name):
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]):
            program_of(NAMED[name])
        return
    program = program_of(NAMED[name])
    assert program.fits and set(program.trace.operators) - PARTS - {"all_to_all"} <= HANDLED


@pytest.mark.skipif(importlib.util.find_spec("poptorch") is None, reason="no Poplar SDK")
@pytest.mark.parametrize("kind", sorted(CASES))
def test_every_part_runs_on_the_model_of_an_ipu(kind, monkeypatch):
    monkeypatch.setitem(os.environ, "BESSKGE_IPU", "model")
    dropping = {"dropout", "conve without batch normalization"}  # by the device's random numbers
    for name in sorted(set(CASES[kind]) - dropping):
        if f"{kind}: {name}" not in REFUSED:
            assert ran(CASES[kind][name]) == pytest.approx(
                ran(CASES[kind][name], "emulate"), rel=1e-3
            )


def test_every_module_has_a_case():
    concrete = [
        name
        for name in bess.__all__
        if not inspect.isabstract(getattr(bess, name)) and name != "AllEntitiesBessKGE"
    ]
    assert set(concrete) <= set(CASES["Modules"])


@pytest.mark.skipif(torch.__version__ < "2.13", reason="older torch has other parts of operators")
def test_the_page_lists_what_is_traced():
    assert PAGE.read_text(encoding="utf-8") == page(), "run tests/ipu_programs.py"


def test_the_supported_operators_are_those_of_the_source():
    spec = os.environ.get("BESSKGE_IPU_CHECK")
    listed = Path(spec or "").parent / "spec" / "supported_aten_ops.json"
    if spec is None or not listed.is_file():
        pytest.skip("no list beside the folder that BESSKGE_IPU_CHECK names")
    handlers = json.loads(listed.read_text())["aten_handlers"]
    assert {name.partition("::")[2] for name in handlers} == HANDLED


# -- what does not: a step for each rule -------------------------------------------------------


class Wrong(nn.Module):
    """A loss that breaks a rule, in the line that a message must name."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, positive, negative, weight):
        return self.function(positive, negative).sum()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def by_branch(p, n):
    if p.sum() > 0:
        return p
    return n


CONSTANT = torch.ones(3)

RULES = {
    "an operator without handler": (
        lambda p, n: p.nan_to_num(),
        r"nan_to_num: PopTorch has no handler of it; use torch.where\(torch.isnan\(x\), ...\)",
    ),
    "another one": (lambda p, n: torch.hypot(p, p), r"hypot: PopTorch has no handler .*\(a \* a"),
    "a handler that raises": (
        lambda p, n: torch.as_strided(p, (2,), (1,)), "as_strided: PopTorch's handler .* raises",
    ),
    "a size that hangs on values": (
        lambda p, n: p[torch.nonzero(p > 0).squeeze(-1)], "nonzero: the size .* fixed shapes",
    ),
    "unique": (lambda p, n: p.unique(), "_unique2?: the size of its result hangs on values"),
    "a mask that is read through": (lambda p, n: p[p > 0], "index.Tensor: reading through a mask"),
    "int64": (lambda p, n: p * torch.arange(2, device=p.device).long().sum(), None),
    "a cast to int64": (
        lambda p, n: p.long().float(), "_to_copy: IPUs have no torch.int64; ask for torch.int32",
    ),
    "int64 made": (
        lambda p, n: p + torch.zeros(len(p), dtype=torch.int64, device=p.device),
        "zeros.*: IPUs have no torch.int64",
    ),
    "float64": (lambda p, n: p.double(), "_to_copy: IPUs have no torch.float64; .* torch.float32"),
    "bfloat16": (lambda p, n: p.bfloat16(), "makes torch.bfloat16"),
    "complex": (lambda p, n: torch.complex(p, p).real, "complex: PopTorch has no handler"),
    "control flow": (by_branch, r"bool: control flow hangs on .*: if p.sum\(\) > 0:"),
    "a value": (lambda p, n: p * p.sum().item(), "item: a tensor's value is asked for"),
    "a value as a number": (lambda p, n: p * float(p.sum()), "__float__: a tensor's value"),
    "a move to the host": (lambda p, n: p.cpu(), "cpu: a tensor's value is asked for"),
    "another device": (lambda p, n: p.to("cpu"), "_to_copy: a tensor on cpu in the program"),
    "a tensor of the host": (lambda p, n: p + CONSTANT[:1], "a tensor .1,. of the host; make it a"),
    "nothing": (lambda p, n: p[:0], r"slice.Tensor: it makes a tensor \(0,\).* no empty ones"),
    "a gradient that PopART has not": (
        lambda p, n: nn.functional.pad(p[None, None], (1, 1), mode="reflect"),
        "reflection_pad1d: PopART has no gradient of it",
    ),
    "a gradient of one's own": (
        lambda p, n: Doubled.apply(p), "DoubledBackward: PopTorch does not see the backward pass",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", [name for name, (_, message) in RULES.items() if message])
def test_a_step_that_breaks_a_rule_is_refused(rule):
    function, message = RULES[rule]
    sampler = sampler_of(2)
    score_fn = make_score("distmult", sampler.triple_set.sharding, 4, dtype=torch.float32)
    model = EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, Wrong(function))
    runtime = make_ipu_runtime(model)
    before = score_fn.entity_embedding.detach().clone()
    with pytest.raises(ProgramError, match=message) as refused:
        runtime.training_step(sgd(runtime))(sampler[0])
    assert torch.equal(score_fn.entity_embedding, before)
    if "backward pass" not in str(refused.value):
        line = inspect.getsourcelines(function)[1]
        named = int(str(refused.value).partition(f"{__file__}:")[2].partition(":")[0])
        assert line <= named <= line + 3, refused.value


def test_what_torch_counts_in_int64_is_int32_on_the_device():
    def program():
        x = torch.ones(3, 4, requires_grad=True)
        places = x.topk(2, dim=1).indices
        assert places.dtype == torch.int32
        return (x.gather(1, places) + (x > 0).sum(1, keepdim=True)).sum()

    assert trace(program, {}, True).operators["topk"] == 1


def test_weights_and_buffers_are_of_dtypes_that_ipus_have():
    for name, message in (("weight", "float64.*torch.float32"), ("buffer", "int64.*torch.int32")):
        sampler = sampler_of(2)
        score_fn = make_score("distmult", sampler.triple_set.sharding, 4, dtype=torch.float32)
        if name == "weight":
            score_fn.double()
            message = f"entity_embedding is torch.{message}"
        else:
            score_fn.register_buffer("places", torch.arange(1))
            message = f"score_fn.places is torch.{message}"

            def function(p, n, places=None, own=score_fn):
                return p[own.places]

        loss = Wrong(function) if name == "buffer" else LogSigmoidLoss(1.0, True)
        model = EmbeddingMovingBessKGE(sampler.negative_sampler, score_fn, loss)
        runtime = make_ipu_runtime(model)
        with pytest.raises(ProgramError, match=message):
            runtime.training_step(sgd(runtime))(sampler[0])


def test_shapes_stay_what_they_were():
    sampler, runtime = runtime_of()
    step = runtime.training_step(sgd(runtime))
    step(sampler[0])
    with pytest.raises(ShapeError, match="every batch must have the same"):
        step({name: x[:1] for name, x in sampler[0].items()})
    other = {name: x[..., :-1] for name, x in sampler[0].items()}
    with pytest.raises(ShapeError, match=r"every batch must have the same"):
        step(other)


# -- memory ------------------------------------------------------------------------------------


def meta_model(n_entity, width, n_shard, dtype=torch.float16, batch=8):
    """Of a table that is as large as it says, without its memory; and the columns of a replica."""
    sharding = Sharding.create(n_shard, n_shard, 0)
    sampler = RandomShardedNegativeSampler(4, sharding, 0, "t", False, flat_negative_format=True)
    score_fn = make_score("distmult", sharding, 2, dim=width, dtype=dtype)
    shape = (n_shard, -(-n_entity // n_shard), width)
    table = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
    score_fn.entity_embedding = table
    model = EmbeddingMovingBessKGE(sampler, score_fn, LogSigmoidLoss(1.0, True))
    whole = torch.zeros(1, n_shard, batch, dtype=torch.int32)
    return model, {
        "head": whole, "relation": whole, "tail": whole, "negative": whole[:, :, None, :4]
    }  # fmt: skip


@pytest.mark.parametrize("n_ipu", [4, 16])
@pytest.mark.parametrize("published", PUBLISHED_CAPACITIES)
def test_as_many_entities_fit_as_were_published(published, n_ipu):
    def fits(n_entity):
        model, columns = meta_model(int(n_entity), published.width, n_ipu)
        halves = [torch.float16] if published.state == 6 else []
        name = {4: "sgd", 6: "adam"}[published.state]
        options = {"momentum": 0.9} if name == "sgd" else {}
        optimizer = make_optimizer(
            name, list(model.parameters()), 0.1, state_dtypes=halves, **options
        )
        return compile_program(model, columns, optimizer, published.accumulator).fits

    assert fits(0.85 * published.entities[n_ipu])
    assert not fits(1.15 * published.entities[n_ipu])


def test_a_program_that_does_not_fit_is_refused_with_what_would_help():
    model, columns = meta_model(4_000_000, 256, 4, torch.float32)
    optimizer = make_optimizer("adam", list(model.parameters()), 0.1)
    program = compile_program(model, columns, optimizer)
    with pytest.raises(ProgramError, match=r"needs \d+ KiB a tile, and there are 624;") as refused:
        check_memory(program)
    assert "most of it is for optimizer state, 2048 MB" in str(refused.value)
    (n_ipu,) = (int(x) for x in str(refused.value).partition("helps: ")[2].split(" ", 1)[:1])
    for n, enough in ((n_ipu, True), (n_ipu // 2, False)):
        model, columns = meta_model(4_000_000, 256, n, torch.float32)
        optimizer = make_optimizer("adam", list(model.parameters()), 0.1)
        assert compile_program(model, columns, optimizer).fits is enough


def test_a_step_that_does_not_fit_is_not_run(monkeypatch):
    sampler, runtime = runtime_of()
    monkeypatch.setattr("besskge_core.runtime.ipu.program.TILE", 1024)
    with pytest.raises(ProgramError, match="and there are 1"):
        runtime.training_step(sgd(runtime))(sampler[0])


def test_memory_is_what_tensors_take():
    model, columns = meta_model(4000, 64, 4)
    parameters = list(model.parameters())
    plain = compile_program(model, columns, make_optimizer("sgd", parameters, 0.1)).memory
    assert plain["entity table"] == 1000 * 64 * 2 == plain["gradients"] - 2 * 64 * 2
    assert plain["optimizer state"] == 0 and plain["other weights"] == 2 * 64 * 2
    for name, options, of_number in [
        ("sgd", dict(momentum=0.9), 4), ("sgd", dict(momentum=0.9, state_dtypes=[torch.half]), 2),
        ("adam", dict(), 8), ("adamw", dict(state_dtypes=[torch.half]), 6), ("lamb", dict(), 8),
        ("rmsprop", dict(), 4), ("rmsprop", dict(momentum=0.9, centered=True), 12),
    ]:  # fmt: skip
        optimizer = make_optimizer(name, parameters, 0.1, **options)
        found = compile_program(model, columns, optimizer, accumulator=4).memory
        assert found["optimizer state"] == of_number * 1002 * 64
        assert found["gradients"] == 1002 * 64 * 6
    inference = compile_program(model, columns).memory
    assert "gradients" not in inference and inference["entity table"] == plain["entity table"]
    assert inference["activations"] < plain["activations"]
    larger, more = meta_model(4000, 64, 4, batch=16)
    found = compile_program(larger, more, make_optimizer("sgd", list(larger.parameters()), 0.1))
    assert found.memory["activations"] > 1.5 * plain["activations"]
    # Tails of 4 peers and 4 negatives for each, to and fro.
    assert plain["exchange buffers"] == 2 * (4 * 8 + 4 * 4) * 64 * 2


def test_distances_hold_no_row_for_each_pair():
    """As with the operation that the device has for them."""
    kept = {}
    for score in ("transe", "rotate"):
        for library in (None, "native"):
            sampler, runtime = runtime_of(score)
            columns = {k: x[0, :1] for k, x in sampler[0].items() if k in runtime.model.inputs}
            kept[score, library] = compile_program(
                runtime.model, columns, sgd(runtime), is_native=library is not None
            ).trace.kept
    assert kept["transe", None] == kept["transe", "native"]
    assert kept["rotate", "native"] < kept["rotate", None]


def test_a_program_says_what_it_is():
    sampler, runtime = runtime_of()
    runtime.training_step(sgd(runtime))(sampler[0])
    told = str(runtime.programs[True])
    assert told.startswith("2 IPUs (POD4), predicted memory of each:")
    assert "entity table" in told and "KiB a tile" in told and "index_select" in told
    assert SRAM == 1472 * TILE
    runtime.close()
    assert not runtime.programs


# -- what the emulation computes ---------------------------------------------------------------


OPTIONS = [
    ("sgd", dict(lr=0.1, momentum=0.9, weight_decay=0.01)),
    ("adam", dict(lr=0.01, weight_decay=0.1)),
    ("adamw", dict(lr=0.01, weight_decay=0.1)),
    ("rmsprop", dict(lr=0.01, momentum=0.5)),
    ("lamb", dict(lr=0.1, weight_decay=0.1)),
]


@pytest.mark.parametrize("dtypes", [(), (torch.float16,)])
@pytest.mark.parametrize("name,options", OPTIONS, ids=[name for name, _ in OPTIONS])
def test_emulated_optimisers_are_those_of_ipus(name, options, dtypes):
    found = []
    for target in ("emulate", "hardware"):
        with poptorch_double.installed():
            sampler, runtime = runtime_of(target=target, gradient_accumulation=2)
            parameters = list(runtime.model.parameters())
            optimizer = make_optimizer(
                name, parameters, state_dtypes=dtypes, target=target, **options
            )
            step = runtime.training_step(optimizer)
            losses = [step(batch)["loss"] for batch in runtime.dataloader(sampler)]
            runtime.to_host()
            assert type(runtime) is (EmulatedIPURuntime if target == "emulate" else IPURuntime)
            found.append((losses, runtime.model.score_fn.entity_embedding.detach().clone()))
            runtime.close()
    assert len(found[0][0]) > 2
    exact = not dtypes  # else the last bit of a half moment tips
    assert_close(*found, rtol=1e-4 if exact else 1e-2, atol=1e-5 if exact else 1e-3)


@pytest.mark.parametrize("at_random", [False, True])
def test_updates_below_the_last_bit_are_kept_on_average(at_random):
    x = nn.Parameter(torch.ones(4096, dtype=torch.float16))
    wide = nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("sgd", [x, wide], lr=1e-4)
    for own in (x, wide):
        own.grad = torch.ones_like(own)
    with in_float32([x, wide], at_random):
        optimizer.step()
    assert x.dtype == torch.float16 and torch.equal(wide, torch.full((2,), 1.0 - 1e-4))
    # Below 1 the last bit is 4.9e-4: a fifth of the weights moves by it, or none.
    mean = x.detach().double().mean()
    assert mean == (pytest.approx(1.0 - 1e-4, abs=2e-5) if at_random else 1.0)


@needs_half
def test_half_precision_tables_are_trained():
    sampler, runtime = runtime_of("distmult", stochastic_rounding=True)
    runtime.model.half()
    table = runtime.model.score_fn.entity_embedding
    before = table.detach().clone()
    found = runtime.training_step(sgd(runtime))(sampler[0])
    assert table.dtype == torch.float16 and not torch.equal(before, table)
    assert found["loss"].dtype == torch.float32 and found["loss"].isfinite().all()


@pytest.mark.parametrize("score", sorted(set(SCORE_FUNCTIONS) - {"conve", "hole"}))
def test_steps_are_those_of_one_process(score):
    sampler, runtime = runtime_of(score)
    step = runtime.training_step(sgd(runtime, lr=0.01))
    found = [step(batch)["loss"] for batch in runtime.dataloader(sampler)]
    sampler, other = runtime_of(score)
    local = LocalRuntime(other.model)
    step = local.training_step(torch.optim.SGD(local.model.parameters(), lr=0.01))
    expected = [step(batch)["loss"] for batch in local.dataloader(sampler)]
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_accumulation_must_divide_the_micro_batches():
    sampler, runtime = runtime_of(gradient_accumulation=4)
    with pytest.raises(ConfigError, match="batches_per_step is 2, expected a multiple of .* = 4"):
        runtime.training_step(sgd(runtime))(sampler[0])


# -- the choice --------------------------------------------------------------------------------


def test_the_best_that_is_there_is_chosen(monkeypatch):
    monkeypatch.delitem(os.environ, "BESSKGE_IPU")
    monkeypatch.setitem(sys.modules, "poptorch", None)
    assert chosen_target() == "emulate"
    monkeypatch.delitem(sys.modules, "poptorch")
    for n_ipu, target in ((4, "hardware"), (0, "model")):
        with poptorch_double.installed(n_ipu=n_ipu):
            assert chosen_target() == target
            assert type(runtime_of()[1]) is IPURuntime
            assert type(runtime_of(target="emulate")[1]) is EmulatedIPURuntime
    monkeypatch.setitem(os.environ, "BESSKGE_IPU", "simulate")
    with pytest.raises(ConfigError, match="the target is 'simulate', expected one of .*'emulate'"):
        chosen_target()
