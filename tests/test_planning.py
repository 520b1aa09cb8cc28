"""Predictions: formulas hold, they scale as they must, and nothing of the graph's size is made."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import time
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from besskge_core.batch_sampler import RandomShardedBatchSampler, RigidShardedBatchSampler
from besskge_core.bess import fused
from besskge_core.bess.layout import MicroBatch
from besskge_core.catalogue import load_dataset
from besskge_core.cli import cli
from besskge_core.config import replace_flags
from besskge_core.errors import ConfigError
from besskge_core.exchange import LocalExchange
from besskge_core.optim import OPTIMIZERS
from besskge_core.planning import (
    HARDWARE,
    all_reduce_bytes,
    bytes_sent,
    find_hardware,
    memory_needed,
    most_entities,
    plan,
    split_over,
    traffic,
    workload,
)
from besskge_core.planning.workload import even_imbalance, state_of
from besskge_core.runtime.ipu.sram import PUBLISHED_CAPACITIES, sram_capacity
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.training import TrainingConfig
from besskge_core.training.build import build

GRAPH = (1_000_000, 100, 10_000_000)


def config_of(**flags):
    return replace_flags(TrainingConfig(), flags)


def planned(n_worker=1, hardware="h200", graph=GRAPH, **flags):
    config = split_over(config_of(**flags), n_worker)
    return plan(config, *graph, HARDWARE[hardware], n_worker)


# -- bytes sent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["embedding", "score", "all"])
def test_one_worker_sends_nothing(scheme):
    assert bytes_sent(scheme, 1, 512, 256, 200, n_hub=3) == 0
    assert all_reduce_bytes(1000, 1) == 0


@pytest.mark.parametrize("n", [2, 4, 64])
def test_embeddings_that_move_are_as_many_as_the_formula_says(n):
    b, negatives, d, s = 64 * n, 32 * n, 200, 4
    assert bytes_sent("embedding", n, b, negatives, d, s) * n == 2 * (b + negatives) * d * s * (
        n - 1
    )


def test_scores_that_move_cost_queries_and_scores():
    found = traffic("score", 4, n_positive=64, n_negative=256, width=20, query_width=30)
    assert found == (2 * 64 * 20 * 4 * 3 // 4, 2 * 3 * 64 * 30 * 4, 2 * 64 * 256 * 4 * 3 // 4, 0)


def test_a_sum_over_workers_is_that_of_a_ring():
    assert all_reduce_bytes(1000, 4) == 2 * 3 * 1000 * 4 // 4


class CountingExchange(LocalExchange):
    """Counts the bytes that leave the first shard, forwards and, where there is a way, back."""

    def __init__(self, n_shard):
        super().__init__(n_shard)
        self.sent = 0

    def _count(self, x, n_byte, back):
        self.sent += n_byte
        if x.requires_grad and back:
            x.register_hook(self._count_back(n_byte))
        return x

    def _count_back(self, n_byte):
        def hook(grad):
            self.sent += n_byte

        return hook

    def all_to_all(self, blocks):
        n_byte = blocks[0].numel() * blocks.element_size() * (self.n_shard - 1) // self.n_shard
        return self._count(super().all_to_all(blocks), n_byte, True)

    def all_gather(self, block):
        n_byte = block[0].numel() * block.element_size() * (self.n_shard - 1)
        return self._count(super().all_gather(block), n_byte, True)

    def all_reduce(self, block):
        n_byte = 2 * block[0].numel() * block.element_size() * (self.n_shard - 1) // self.n_shard
        return self._count(super().all_reduce(block), n_byte, False)


STEPS = {
    "embedding, shared": dict(scheme="embedding"),
    "embedding, both sides": dict(scheme="embedding", corruption="ht"),
    "embedding, each triple": dict(scheme="embedding", shared_negatives=False, n_negative=16),
    "embedding, hubs": dict(scheme="embedding", replicate_hubs=8),
    "score, shared": dict(scheme="score"),
    "score, both sides": dict(scheme="score", corruption="ht"),
    "score, each triple": dict(scheme="score", shared_negatives=False, n_negative=16),
    "score, wide queries": dict(scheme="score", score_function="pairre", loss="logsigmoid"),
    "all, tails": dict(scheme="all"),
    "all, N3": dict(scheme="all", regularization=0.1),
    "all, heads": dict(scheme="all", corruption="h", inverse_relations=False),
    "all, both sides": dict(scheme="all", corruption="ht", inverse_relations=False),
}


@pytest.fixture(scope="module")
def family():
    return load_dataset("family", n_person=64)


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("n", [2, 4])
def test_a_step_sends_what_is_predicted(family, case, n):
    flags = dict(n_shard=n, dim=8, batch_size=64, n_negative=64)
    config = config_of(**{**flags, **STEPS[case]})
    parts = build(config, family)
    sizes = (family.n_entity, family.n_relation_type, len(family.triples["train"]))
    work = workload(config, *sizes, n)
    exchange = parts.model.exchange = CountingExchange(n)
    batch = {k: x[0] for k, x in parts.sampler[0].items() if k in parts.model.inputs}
    for _ in range(2):  # what the first step alone sends does not count
        exchange.sent = 0
        parts.model(**batch)["loss"].backward()
    weights = 8 if case == "all, N3" else 1  # whose sum is a number more
    assert 0 <= exchange.sent - work.traffic.total < weights


# -- sizes of a step -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["rigid", "random"])
@pytest.mark.parametrize("case", STEPS)
def test_a_step_is_as_large_as_samplers_make_it(family, case, sampler):
    config = config_of(
        **{
            **dict(n_shard=4, dim=8, batch_size=100, n_negative=50),
            **STEPS[case],
            "sampler": sampler,
        }
    )
    parts = build(config, family)
    sizes = (family.n_entity, family.n_relation_type, len(family.triples["train"]))
    imbalance = parts.sampler.triple_set.imbalance
    work = workload(config, *sizes, 1, imbalance=imbalance)
    assert isinstance(parts.sampler, (RigidShardedBatchSampler, RandomShardedBatchSampler))
    assert work.n_positive == parts.sampler.shard_bs
    assert work.n_step == parts.sampler.n_step
    assert work.n_row == parts.model.entity_embedding.shape[1]
    batch = {k: x[0] for k, x in parts.sampler[0].items() if k in parts.model.inputs}
    if "negative" in batch:
        assert work.n_negative_row == batch["negative"][0].numel()
        parts.model.return_scores = True
        assert work.n_candidate == parts.model(**batch)["negative_score"].shape[1]


ONE_OPERATION = {
    "usual": dict(),
    "margin": dict(loss="marginranking", loss_options={"activation_function": "relu"}),
    "embedding": dict(scheme="embedding", score_function="transe"),
    "N3": dict(regularization=0.1),
    "both sides": dict(corruption="ht"),
    "Bernoulli": dict(corruption="either"),
    "filtered": dict(filter_negatives=True),
    "augmented": dict(scheme="embedding", augment_negative=True),
    "hubs": dict(replicate_hubs=4),
    "broadcast": dict(score_function="hake"),
    "no rule": dict(loss="focal"),
}


@pytest.mark.parametrize("case", ONE_OPERATION)
def test_a_step_is_one_operation_where_the_module_makes_it_one(family, case):
    config = config_of(n_shard=2, dim=8, batch_size=64, n_negative=64, **ONE_OPERATION[case])
    parts = build(config, family)
    batch = {k: torch.as_tensor(x[0]) for k, x in parts.sampler[0].items()}
    found = {k: x for k, x in batch.items() if k in MicroBatch._fields}
    with mock.patch.object(fused, "serves", return_value=True):  # with a build or without
        how = fused.fused(parts.model, MicroBatch(**found))
    sizes = (family.n_entity, family.n_relation_type, len(family.triples["train"]))
    assert workload(config, *sizes, 1).is_fused is (how is not None)
    assert not workload(config, *sizes, 2).is_fused


@pytest.mark.parametrize(("n_triple", "n_shard"), [(10_000, 4), (100_000, 16), (20_000, 64)])
def test_shard_pairs_of_random_triples_are_about_as_even_as_they_are_taken_to_be(n_triple, n_shard):
    pairs = np.random.default_rng(0).integers(n_shard**2, size=n_triple)
    largest = np.bincount(pairs).max() / (n_triple / n_shard**2)
    assert 0.9 < even_imbalance(n_triple, n_shard) / largest < 1.2
    assert even_imbalance(n_triple, 1) == 1.0


@pytest.mark.parametrize("name", sorted(SCORE_FUNCTIONS))
def test_every_score_function_has_its_sizes(family, name):
    options = {"embedding_height": 2, "embedding_width": 4} if name == "conve" else {}
    config = config_of(score_function=name, dim=8, score_options=options)
    before = torch.random.get_rng_state()
    work = workload(config, family.n_entity, family.n_relation_type, 1000)
    assert torch.equal(before, torch.random.get_rng_state())
    score_fn = build(config, family).model.score_fn
    learned = sum(x.numel() for x in score_fn.parameters())
    table = score_fn.entity_embedding
    assert work.model.entity_width == table.shape[-1]
    assert work.n_dense == learned - table.numel()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_has_its_state(family, name):
    config = config_of(optimizer=name, dim=8, scheme="all")
    model, optimizer = build(config, family)[1:]
    model(**{k: x[0] for k, x in build(config, family).sampler[0].items() if k in model.inputs})[
        "loss"
    ].backward()
    optimizer.step()
    state = optimizer.state[model.entity_embedding].values()
    per_row = [x[0, 0].numel() for x in state if isinstance(x, torch.Tensor)]
    width, found = model.entity_embedding.shape[-1], state_of(name)
    assert sum(per_row) == found.of_entry * width + found.of_row


# -- memory ----------------------------------------------------------------------------------------


def test_twice_the_workers_have_half_the_table_each():
    one, two = (planned(n).memory for n in (8, 16))
    assert one["entity table"] == 2 * two["entity table"]
    assert one["relations"] == two["relations"]


@pytest.mark.parametrize("hardware", sorted(HARDWARE))
@pytest.mark.parametrize("scheme", ["embedding", "score", "all"])
def test_more_of_anything_needs_no_less_memory_or_time(hardware, scheme):
    base = planned(4, hardware, scheme=scheme, optimizer="sgd")
    more = [
        planned(4, hardware, (2_000_000, *GRAPH[1:]), scheme=scheme, optimizer="sgd"),
        planned(4, hardware, scheme=scheme, optimizer="sgd", dim=256),
        planned(4, hardware, scheme=scheme, optimizer="sgd", batch_size=1024),
        planned(4, hardware, scheme=scheme, optimizer="adam"),
    ]
    for other in more:
        assert sum(other.memory.values()) >= sum(base.memory.values())
        assert other.step_seconds >= base.step_seconds
    assert base.step_seconds > 0.0 and base.bound in base.seconds


@pytest.mark.parametrize("hardware", sorted(HARDWARE))
def test_the_most_entities_are_those_that_just_fit(hardware):
    work = workload(config_of(n_shard=4), *GRAPH, 4)
    most = most_entities(work, HARDWARE[hardware])
    for n_entity, fits in ((most, True), (most + 5, False)):
        needed = memory_needed(dataclasses.replace(work, n_entity=n_entity), HARDWARE[hardware])
        assert (sum(needed.values()) <= HARDWARE[hardware].memory) is fits


@pytest.mark.parametrize("published", PUBLISHED_CAPACITIES)
def test_what_fits_on_ipus_is_what_was_published(published):
    for n_chip, entities in published.entities.items():
        found = sram_capacity(n_chip, published.width, published.state, published.accumulator)
        assert found == pytest.approx(entities, rel=0.15)


def test_a_whole_step_on_an_ipu_holds_no_more_than_its_tables_alone():
    config = config_of(
        n_shard=4, score_function="distmult", optimizer="adam", table_dtype="float16"
    )
    work = workload(config, *GRAPH, 4)
    ipu = HARDWARE["ipu-pod4"]
    alone = sram_capacity(4, 128, state=8, accumulator=0)
    assert 0.8 * alone < most_entities(work, ipu) < alone


def test_what_makes_it_fit_fits():
    graph = (400_000_000, 1000, 10**9)
    found = planned(4, graph=graph, optimizer="adagrad")
    assert not found.fits and "needs 206 GB of memory a worker" in found.problems[0]
    assert found.remedies[0].startswith("8 workers: ")
    assert planned(8, graph=graph).fits
    (dim,) = [text for text in found.remedies if text.startswith("dim ")]
    dim = int(dim.split(":")[0].split()[1])
    assert planned(4, graph=graph, dim=dim).fits
    assert not planned(4, graph=graph, dim=dim + 8).fits
    assert any(text.startswith("optimizer rowwise_adagrad") for text in found.remedies)
    assert planned(4, graph=graph, optimizer="rowwise_adagrad").fits


def test_as_few_workers_as_it_takes_are_proposed():
    graph = (1_500_000_000, 1000, 10**9)
    (workers,) = [x for x in planned(2, graph=graph).remedies if "workers:" in x]
    assert workers.startswith("32 workers: ")
    assert planned(32, graph=graph).fits and not planned(16, graph=graph).fits


def test_an_ipu_may_keep_its_state_off_the_chip_and_refuses_adagrad():
    found = planned(4, "ipu-pod4", optimizer="adam")
    assert any("off the chip" in text for text in found.remedies)
    assert any("no adagrad" in text for text in planned(4, "ipu-pod4").problems)
    assert not planned(16, "ipu-pod16", optimizer="sgd").problems


# -- time ------------------------------------------------------------------------------------------


def test_a_faster_part_makes_only_its_part_faster():
    config = config_of(n_shard=4)
    slow, fast = (
        plan(config, *GRAPH, find_hardware("h200", None, {"l1_tflops": x, "dot_tflops": x}), 4)
        for x in (1.0, 2.0)
    )
    assert slow.seconds["compute"] == pytest.approx(2 * fast.seconds["compute"])
    rest = [{**x.seconds, "compute": 0.0} for x in (slow, fast)]
    assert rest[0] == rest[1]


def test_candidates_of_each_positive_make_no_matrix_product():
    config = config_of(n_shard=4, shared_negatives=False, n_negative=64, score_dtype="bfloat16")
    usual = plan(config, *GRAPH, HARDWARE["h200"], 4).seconds["compute"]
    for figure, same in (("dot_tflops", True), ("half_tflops", True), ("list_tflops", False)):
        hardware = find_hardware("h200", None, {figure: 1.0})
        found = plan(config, *GRAPH, hardware, 4).seconds["compute"]
        assert (found == usual) is same


def test_what_fits_into_the_cache_is_faster():
    figures = {"cache_bandwidth_gb_s": 1e6}
    seconds = [
        plan(config_of(n_shard=4), *GRAPH, find_hardware("h200", None, {**figures, "cache_gb": x}))
        for x in (0.0, 0.5, 100.0)
    ]
    times = [x.seconds["memory"] for x in seconds]
    assert times[0] > times[1] > times[2]


def test_the_bound_is_what_is_slowest():
    slow = dict(compute="dot_tflops", exchange="link_gb_s", memory="row_bandwidth_gb_s")
    for bound, figure in slow.items():
        hardware = find_hardware("h200", None, {figure: 1e-4})
        assert plan(config_of(n_shard=4), *GRAPH, hardware, 4).bound == bound
    assert planned().bound == "overhead"


def test_a_thousand_million_entities_over_thousands_of_workers_take_no_time():
    begin = time.perf_counter()
    found = planned(4096, graph=(10**9, 1000, 10**10), scheme="embedding", batch_size=4096**2)
    assert time.perf_counter() - begin < 1.0
    assert found.fits and found.n_shard == 4096
    assert found.memory["entity table"] == -(-(10**9) // 4096) * 256 * 4


def test_hubs_and_uneven_shard_pairs_make_epochs_longer():
    config = config_of(n_shard=8)
    even, uneven = (
        plan(config, *GRAPH, HARDWARE["h200"], 8, imbalance=x).epoch_seconds for x in (1.0, 3.0)
    )
    assert uneven == pytest.approx(3 * even, rel=1e-3)


# -- the command -----------------------------------------------------------------------------------


def run(*arguments, expect=0):
    done = CliRunner().invoke(cli, ["plan", *map(str, arguments)])
    if done.exit_code != expect:
        raise AssertionError(f"exit status {done.exit_code}: {done.output}") from done.exception
    return done.output


SIZES = ("--entities", "1e9", "--relations", 1000, "--triples", "1e10")


def test_json_has_all_of_a_plan():
    found = json.loads(run(*SIZES, "--hardware", "h200", "--workers", 64, "--dim", 64,
                           "--format", "json"))  # fmt: skip
    assert found["predicted"] is True
    assert (found["n_entity"], found["n_worker"], found["n_shard"]) == (10**9, 64, 64)
    assert set(found["seconds"]) == {"compute", "memory", "exchange", "overhead", "sampling"}
    assert set(found["bytes_sent"]) == {"rows", "queries", "scores", "statistics", "relations"}
    assert found["memory_total"] == pytest.approx(sum(found["memory"].values()))
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["epoch_seconds"] == pytest.approx(found["n_step"] * found["step_seconds"])
    for name in ("fits", "bound", "most_entities", "operations", "notes", "problems", "remedies"):
        assert name in found


def test_a_table_says_that_it_predicts_and_what_holds():
    text = run("--dataset", "wn18rr", "--scheme", "embedding")
    assert "40,943 entities, 11 relations, 86,835 triples. Predicted, not measured." in text
    for word in ("entity table", "optimizer state", "compute", "bound", "fits into"):
        assert word in text
    text = run(*SIZES, "--hardware", "h200", "--workers", 4)
    assert "problem: needs " in text and "would fit with: " in text


def test_a_named_benchmark_is_not_loaded():
    with mock.patch("besskge_core.catalogue.benchmarks.load_dataset", side_effect=AssertionError):
        found = json.loads(run("--dataset", "FB15k-237", "--format", "json"))
    assert [found[name] for name in ("n_entity", "n_relation", "n_triple")] == [14541, 237, 272115]


def test_comparing_shows_a_row_for_each_hardware():
    rows = list(
        csv.DictReader(io.StringIO(run(*SIZES, "--compare", "--format", "tsv")), delimiter="\t")
    )
    assert sorted(row["hardware"] for row in rows) == sorted(HARDWARE)
    text = run("--compare")
    assert all(name in text for name in HARDWARE)


def test_comparing_goes_on_where_one_hardware_cannot_be_used():
    arguments = ("--compare", "--corruption", "ht")
    found = json.loads(run(*arguments, "--format", "json"))
    (refused,) = [x for x in found if "step_seconds" not in x]
    assert refused["hardware"] == "ipu-pod64" and "'ht' needs two" in refused["problems"][0]
    assert "ipu-pod64: a batch of 512" in run(*arguments)
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "tsv")), delimiter="\t"))
    assert len(rows) == len(HARDWARE)
    assert "ipu-pod16" in run(*arguments, "--workers", 3)
    assert "needs two" in run(*arguments, "--workers", 64, expect=2)


def test_own_figures_take_the_place_of_known_ones(tmp_path):
    (tmp_path / "mine.toml").write_text("memory_gb = 80\nlink_gb_s = 7.0\n")
    found = run("--hardware", "h200", "--hardware-file", tmp_path / "mine.toml", "--format", "json",
                "--set", "memory_gb=70")  # fmt: skip
    found = json.loads(found)
    assert found["hardware"] == "mine" and found["memory_of_worker"] == 70e9


REFUSED = {
    "hardware": (["--hardware", "h20"], "unknown hardware 'h20'.*did you mean 'h200'"),
    "figure": (["--set", "memroy_gb=1"], "unknown option 'memroy_gb' .did you mean 'memory_gb'"),
    "no pair": (["--set", "memory_gb"], "not of the form KEY=VALUE"),
    "no number": (["--set", "memory_gb=much"], "memory_gb is 'much' .str., expected a number"),
    "negative": (["--set", "memory_gb=-1"], "memory_gb must be above 0, got -1"),
    "infinite": (["--set", "link_gb_s=inf"], "link_gb_s must be above 0, got inf"),
    "sizes": (["--entities", "1e9"], "give --entities, --relations and --triples together"),
    "half": (["--entities", "1.5"], "'1.5' is not a whole number"),
    "nothing": ([*SIZES[:5], "0"], "triples must be at least 1, got 0"),
    "shards": ([*SIZES, "--workers", "3", "--n-shard", "4"], "4 shards cannot be split over 3"),
    "too many": (
        ["--dataset", "kinship", "--n-shard", "200"],
        "104 entities cannot be split into 200",
    ),
    "halves": (["--n-shard", "64", "--corruption", "ht"], "'ht' needs two: give batch_size = 8192"),
    "imbalance": (["--imbalance", "0.5"], "imbalance must be at least 1, got 0.5"),
    "data set": (["--dataset", "famly"], "no data set 'famly'"),
    "dim": (["--dim", "0"], "dim must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_planned_is_one_line_and_status_2(case):
    arguments, message = REFUSED[case]
    text = run(*arguments, expect=2)
    (line,) = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert re.search(message, line)
    assert "Traceback" not in text


def test_unknown_schemes_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="unknown scheme 'rows'"):
        bytes_sent("rows", 4, 64, 64, 8)
    with pytest.raises(ConfigError, match="n_worker must be at least 1, got 0"):
        bytes_sent("all", 0, 64, 64, 8)
    with pytest.raises(ConfigError, match="table_dtype is 'int8', expected one of"):
        config_of(table_dtype="int8")
