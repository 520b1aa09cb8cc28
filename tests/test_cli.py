"""The command does what the library does, and says in one line what it cannot do."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from besskge_core import config as configuration
from besskge_core.catalogue import load_dataset
from besskge_core.cli import cli
from besskge_core.evaluation import METRICS, rank_candidates, rank_triples
from besskge_core.ops.native import operations
from besskge_core.predict import Predictor
from besskge_core.training import TrainingConfig, load_run

SMALL = (
    "--dataset-options", "n_person=64", "--dim", "8", "--n-negative", "64", "--batch-size", "128",
    "--threads", "1", "--init-scale", "0.1",
)  # fmt: skip


def run(*arguments, expect=0):
    """Output of `besskge`, standard error mixed in."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if done.exit_code != expect:
        raise AssertionError(f"exit status {done.exit_code}: {done.output}") from done.exception
    return done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    run("train", *SMALL, "--epochs", 3, "--evaluate-every", 1, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def loaded(trained):
    return load_run(trained)


@pytest.fixture
def triple(loaded):
    """Labels of a test triple."""
    h, r, t = loaded.dataset.triples["test"][0].tolist()
    entity, relation = loaded.dataset.entity_dict, loaded.dataset.relation_dict
    return entity[h], relation[r], entity[t]


# -- train -----------------------------------------------------------------------------------------


def test_training_prints_settings_results_and_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = run("train", *SMALL, "--epochs", 1)
    assert "dataset=family" in text
    assert "dim=8" in text
    for part in ("valid", "test"):
        assert f"{part}, filtered, realistic ranks" in text
    for title in ("MRR", "Hits@1", "Hits@3", "Hits@10", "MR", "AMRI", "head", "tail"):
        assert title in text
    assert "written to runs/family-complex-1: best, checkpoints, config.toml" in text
    run("train", *SMALL, "--epochs", 0, "--score-function", "TransE")
    run("train", *SMALL, "--epochs", 0)
    assert sorted(os.listdir("runs")) == ["family-complex-1", "family-complex-2", "family-transe-1"]


def test_flags_override_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "model: {dim: 4, init_scale: 1e-1}\nbatch: {batch_size: 128, n_negative: 64}\n"
        "data: {dataset_options: {n_person: 64, seed: 1}}\nrun: {epochs: 0, threads: 1}\n"
    )
    run("train", "--config", tmp_path / "c.yaml", "--dim", 6, "--dataset-options", "seed=2",
        "--out", tmp_path / "run")  # fmt: skip
    config = configuration.load(TrainingConfig, tmp_path / "run" / "config.toml")
    assert (config.model.dim, config.model.init_scale, config.batch.n_negative) == (6, 0.1, 64)
    assert config.data.dataset_options == {"n_person": 64, "seed": 2}


def test_options_of_a_file_do_not_apply_to_another_data_set(tmp_path, monkeypatch):
    graph = tmp_path / "my graph.tsv"
    graph.write_text("".join(f"a{i}\tr\ta{i * 7 % 20}\n" for i in range(20)))
    (tmp_path / "c.toml").write_text("[data]\ndataset_options = {n_person = 64}\n")
    monkeypatch.chdir(tmp_path)
    run("train", "--config", "c.toml", "--dataset", graph, *SMALL[2:], "--epochs", 0)
    config = configuration.load(TrainingConfig, Path("runs/my_graph_tsv-complex-1/config.toml"))
    assert config.data.dataset_options == {}


def test_a_run_can_be_taken_up_again_with_more_epochs(tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    run("train", *SMALL, "--epochs", 2, "--out", once)
    run("train", *SMALL, "--epochs", 1, "--out", twice)
    text = run("train", "--resume", "--epochs", 2, "--out", twice)
    assert "resumed from epoch-00001" in text
    assert (once / "metrics.json").read_text() == (twice / "metrics.json").read_text()


def test_a_run_can_be_overwritten(tmp_path):
    for seed in (1, 2):
        run("train", *SMALL, "--epochs", 0, "--seed", seed, "--overwrite", "--out", tmp_path / "x")
    assert configuration.load(TrainingConfig, tmp_path / "x" / "config.toml").run.seed == 2


REFUSED = {
    "occupied": (["--out", "{trained}"], "is not empty; .* resume the run that is in it"),
    "resume nothing": (["--resume"], "--resume needs --out FOLDER"),
    "resume anew": (["--resume", "--overwrite", "--out", "x"], "--resume needs .* no --overwrite"),
    "overwrite other": (["--overwrite", "--out", "{trained}/.."], "holds no run to overwrite"),
    "resume empty": (["--resume", "--out", "new"], "holds no run to resume"),
    "resume other": (["--resume", "--out", "{trained}", "--lr", "9"], "was trained with lr=0.1"),
    "data set": (["--dataset", "famly"], "no data set 'famly': .* did you mean 'family'"),
    "bad value": (["--dim", "0"], "dim must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_one_line_and_status_2(trained, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, message = REFUSED[case]
    text = run("train", *(x.format(trained=trained) for x in arguments), expect=2)
    (line,) = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert re.search(message, line)
    assert "Traceback" not in text


def test_an_unknown_key_of_a_file_is_named_with_the_nearest(tmp_path):
    (tmp_path / "c.toml").write_text("[model]\ndimm = 4\n")
    text = run("train", "--config", tmp_path / "c.toml", expect=2)
    assert "c.toml: unknown key 'dimm' in [model] (did you mean 'dim'?)" in text


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where_an_error_arose(place):
    flags = ["--debug", "train"] if place == "before" else ["train", "--debug"]
    done = CliRunner().invoke(cli, [*flags, "--resume"])
    assert type(done.exception).__name__ == "ConfigError"


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "besskge_core", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, **options,
    )  # fmt: skip


def test_ctrl_c_stores_a_checkpoint_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    process = start("train", *SMALL, "--epochs", 100000, "--evaluate-every", 0,
                    "--checkpoint-seconds", 0, "--out", folder)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/epoch-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"interrupted; go on with: besskge train --out {folder} --resume" in errors
    assert list(folder.glob("checkpoints/epoch-*"))


def test_the_module_is_the_command(tmp_path):
    process = start("predict", tmp_path / "nowhere", "--head", "x")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "does not exist" in errors


def test_warnings_about_data_are_one_line(tmp_path):
    (tmp_path / "g.tsv").write_text(
        "a\tr\tb\na\tr\tb\n" + "".join(f"x{i}\tr\ty\n" for i in range(9))
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "besskge_core", "train", "--dataset", tmp_path / "g.tsv", *SMALL[2:],
         "--epochs", "0", "--out", tmp_path / "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
    )  # fmt: skip
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.startswith("Warning: train: 1 of 11 triples are repeated")
    assert errors.count("\n") == 1


# -- evaluate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("mode", ["realistic", "optimistic", "pessimistic"])
@pytest.mark.parametrize("raw", [False, True])
def test_evaluation_is_that_of_the_library(trained, loaded, part, mode, raw):
    flags = ["--raw"] if raw else []
    found = json.loads(run("evaluate", trained, "--part", part, "--mode", mode, *flags,
                           "--format", "json"))  # fmt: skip
    ranking = rank_triples(
        loaded.score_fn, loaded.dataset.triples[part], None if raw else loaded.known
    )
    for side in ("both", "head", "tail"):
        assert found["side"][side] == ranking.metrics(mode, side)
    assert (found["part"], found["mode"], found["filtered"]) == (part, mode, not raw)
    assert found["n_triple"] == len(loaded.dataset.triples[part])
    assert found["weights"].startswith("best weights, epoch-")


def test_evaluation_agrees_with_training(trained):
    text = run("evaluate", trained, "--format", "json")
    stored = json.loads((trained / "metrics.json").read_text())
    assert json.loads(text)["side"] == stored["metrics"]["test"]


def test_evaluation_by_relation_has_a_row_for_each(trained, loaded):
    text = run("evaluate", trained, "--by-relation", "--format", "tsv")
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert list(rows[0]) == ["relation", "n_triple", *METRICS]
    relations = np.unique(loaded.dataset.triples["test"][:, 1])
    assert [row["relation"] for row in rows] == [loaded.dataset.relation_dict[r] for r in relations]
    assert sum(int(row["n_triple"]) for row in rows) == len(loaded.dataset.triples["test"])


def test_evaluation_as_a_table_and_as_tsv(trained):
    text = run("evaluate", trained)
    assert "test (" in text
    assert "filtered, realistic ranks" in text
    assert "best weights, epoch-" in text
    assert "relation" in run("evaluate", trained, "--by-relation", "--raw")
    rows = run("evaluate", trained, "--format", "tsv").splitlines()
    assert [row.split("\t")[0] for row in rows] == ["side", "both", "head", "tail"]


def test_evaluation_among_given_candidates_is_that_of_the_library(tmp_path):
    graph = load_dataset("family", n_person=64)
    n = len(graph.triples["test"])
    lists = np.random.default_rng(0).integers(graph.n_entity, size=(n, 5))
    graph.neg_heads, graph.neg_tails = {"test": lists}, {"test": lists[:, ::-1]}
    graph.save(tmp_path / "graph.npz")
    run("train", *SMALL[2:], "--dataset", tmp_path / "graph.npz", "--epochs", 1,
        "--out", tmp_path / "run")  # fmt: skip
    found = json.loads(run("evaluate", tmp_path / "run", "--given", "--format", "json"))
    loaded = load_run(tmp_path / "run")
    expected = rank_candidates(
        loaded.score_fn, loaded.dataset.triples["test"], {"head": lists, "tail": lists[:, ::-1]}
    )
    assert found["side"]["both"]["mrr"] == pytest.approx(expected.metrics()["mrr"])
    assert found["candidates"] == "given" and not found["filtered"]
    assert "given candidates, realistic ranks" in run("evaluate", tmp_path / "run", "--given")
    text = run("evaluate", tmp_path / "run", "--given", "--part", "valid", expect=2)
    assert "gives no candidates for 'valid'" in text


def test_options_of_a_score_function_are_given_by_name(tmp_path):
    folder = tmp_path / "run"
    run("train", *SMALL, "--epochs", 1, "--out", folder, "--score-function", "triplere",
        "--score-options", "u=0.5")  # fmt: skip
    assert load_run(folder).score_fn.formula.u == 0.5
    run("train", *SMALL, "--config", folder / "config.toml", "--epochs", 0, "--out",
        tmp_path / "other", "--score-function", "transe")  # fmt: skip
    assert load_run(tmp_path / "other").config.model.score_options == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "dev"], "no part 'dev'; the data set has ['train', 'valid', 'test']"),
        (["--mode", "median"], "'median' is not one of"),
    ],
)
def test_a_bad_evaluation_is_refused(trained, arguments, message):
    assert message in run("evaluate", trained, *arguments, expect=2)


def test_a_folder_without_a_run_is_refused(tmp_path):
    assert "config.toml: no such file" in run("evaluate", tmp_path, expect=2)


# -- predict ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["head", "relation", "tail"])
@pytest.mark.parametrize("filter_known", [False, True])
def test_predictions_are_those_of_the_library(trained, loaded, triple, side, filter_known):
    query = dict(zip(("head", "relation", "tail"), triple))
    del query[side]
    flags = [x for name, label in query.items() for x in (f"--{name}", label)]
    flags += ["--filter-known"] if filter_known else []
    found = json.loads(run("predict", trained, *flags, "--k", 4, "--format", "json"))
    predictor = Predictor(loaded.score_fn, loaded.dataset)
    asked = tuple(query.get(name) for name in ("head", "relation", "tail"))
    (expected,) = predictor.answers([asked], 4, filter_known)
    assert [answer["label"] for answer in found[0]["answers"]] == [x.label for x in expected]
    assert [answer["known"] for answer in found[0]["answers"]] == [x.known for x in expected]
    assert found[0]["query"] == {**query, side: None}


def test_a_file_of_queries_is_answered_in_its_order(trained, loaded, triple, tmp_path):
    h, r, t = triple
    (tmp_path / "q.tsv").write_text(f"{h}\t{r}\t?\n\n?\t{r}\t{t}\n{h}\t?\t{t}\n")
    text = run("predict", trained, "--queries", tmp_path / "q.tsv", "--k", 3, "--format", "tsv")
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert [row["query"] for row in rows] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 3
    assert {(row["head"], row["relation"]) for row in rows[:3]} == {(h, r)}
    assert {(row["relation"], row["tail"]) for row in rows[3:6]} == {(r, t)}
    predictor = Predictor(loaded.score_fn, loaded.dataset)
    assert [row["tail"] for row in rows[:3]] == [x.label for x in predictor.tails(h, r, 3)]
    assert [row["relation"] for row in rows[6:]] == [x.label for x in predictor.relations(h, t, 3)]


def test_predictions_as_a_table_mark_what_is_known(trained, triple):
    h, r, t = triple
    text = run("predict", trained, "--head", h, "--relation", r, "--k", 1000)
    assert f"({h}, {r}, ?)" in text
    (line,) = [line for line in text.splitlines() if f" {t} " in line and "(" not in line]
    assert " test " in line
    assert "relation" in run("predict", trained, "--head", h, "--tail", t)


def test_names_are_shown_and_understood(tmp_path):
    graph = tmp_path / "graph"
    graph.mkdir()
    rows = [f"Q{i}\tlikes\tQ{(i + 1) % 6}\n" for i in range(6)]
    (graph / "train.tsv").write_text("".join(rows))
    (graph / "test.tsv").write_text("Q0\tlikes\tQ2\n")
    names = ["Ann", "Bob", "Cy [c]", "Dan", "Eve", "Eve"]
    (graph / "entity_labels.tsv").write_text(
        "".join(f"Q{i}\t{name}\n" for i, name in enumerate(names))
    )
    folder = tmp_path / "run"
    run("train", "--dataset", graph, *SMALL[2:], "--epochs", 0, "--out", folder)
    text = run("predict", folder, "--head", "Ann", "--relation", "likes")
    assert "Cy [c]" in text
    assert "name" in text
    found = json.loads(run("predict", folder, "--head", "Cy [c]", "--relation", "likes",
                           "--format", "json"))  # fmt: skip
    assert {answer["name"] for answer in found[0]["answers"]} == set(names)
    text = run("predict", folder, "--head", "Eve", "--relation", "likes", expect=2)
    assert "entity 'Eve' is the name of 2: Q4, Q5; use one of these identifiers" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give two of --head, --relation and --tail, or --queries FILE"),
        (["--head", "x"], "give two of --head, --relation and --tail, the third is predicted"),
        (["--head", "x", "--relation", "y", "--tail", "z"], "the third is predicted"),
        (["--head", "x", "--queries", "{queries}"], "or --queries FILE"),
        (["--head", "nobody", "--relation", "spouse_of"], "unknown entity 'nobody'"),
        (["--head", "x", "--relation", "spouse"], "unknown entity 'x'"),
        (["--queries", "{queries}"], "q.tsv:2: expected head, relation and tail with a tab"),
        (["--queries", "{latin}"], "latin.tsv: not UTF-8"),
    ],
)
def test_a_bad_query_is_refused(trained, tmp_path, arguments, message):
    files = {"queries": tmp_path / "q.tsv", "latin": tmp_path / "latin.tsv"}
    files["queries"].write_text("a\tb\t?\na\t?\t?\n")
    files["latin"].write_bytes(b"\xff\tr\t?\n")
    text = run("predict", trained, *(x.format(**files) for x in arguments), expect=2)
    assert message in text


# -- info ------------------------------------------------------------------------------------------


def test_info_tells_versions_operations_and_where_data_is(tmp_path, monkeypatch):
    (tmp_path / "data" / "UMLS").mkdir(parents=True)
    monkeypatch.setenv("BESSKGE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BESSKGE_CACHE", str(tmp_path / "cache"))
    text = run("info")
    for word in ("python", "torch", "numpy", "threads", "devices", "native operations", "poptorch",
                 "instruction set", *operations()):  # fmt: skip
        assert word in text
    (umls,) = [line for line in text.splitlines() if "umls" in line]
    assert "UMLS" in umls
    (nations,) = [line for line in text.splitlines() if "nations" in line]
    assert "fetched when it is first used" in nations
    assert "family" in text


def test_info_of_a_run_tells_settings_metrics_and_checkpoints(trained):
    text = run("info", trained)
    assert "dim=8" in text
    assert "test, filtered, realistic ranks" in text
    assert "best/epoch-0000" in text.replace("\\", "/")
    assert "checkpoints/epoch-00003-step-000000" in text.replace("\\", "/")


def test_info_of_a_run_that_has_not_begun(tmp_path):
    configuration.dump(TrainingConfig(), tmp_path / "config.toml")
    assert "no checkpoints" in run("info", tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    assert "metrics.json: damaged" in run("info", tmp_path, expect=2)
