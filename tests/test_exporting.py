"""An exported model has the scores of the run to the last bit, whatever its number of shards."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from export_support import N_ENTITY, all_triples, make_run, score, write_graph
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from besskge_core import config as configuration
from besskge_core.cli import cli
from besskge_core.errors import CheckpointError, DatasetNotFoundError
from besskge_core.evaluation import rank_triples
from besskge_core.exporting import (
    export_pykeen,
    export_safetensors,
    exported_dataset,
    load_exported,
)
from besskge_core.known import KnownTriples
from besskge_core.predict import Predictor
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.training import TrainingConfig, load_run
from besskge_core.training.checkpoint import manifest_digest


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("graph"))


# -- one safetensors file --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SCORE_FUNCTIONS))
@pytest.mark.parametrize("inverse", [False, True], ids=["", "inverse"])
def test_what_is_exported_and_loaded_has_the_scores_of_the_run(tmp_path, graph, name, inverse):
    run = make_run(tmp_path / "run", graph, name, inverse, norm=1 + inverse)
    export_safetensors(run, tmp_path / "model.safetensors", labels=False)
    ours, loaded = load_run(run).score_fn, load_exported(tmp_path / "model.safetensors")
    assert not loaded.training
    assert torch.equal(score(loaded, all_triples()), score(ours, all_triples()))
    if inverse:
        assert torch.equal(score(loaded, all_triples(), True), score(ours, all_triples(), True))


def test_the_file_is_the_same_for_any_number_of_shards(tmp_path, graph):
    contents = set()
    for n_shard in (1, 2, 5, N_ENTITY):
        run = make_run(tmp_path / f"{n_shard}", graph, n_shard=n_shard)
        export_safetensors(run, run / "model.safetensors", labels=False)
        contents.add((run / "model.safetensors").read_bytes())
    assert len(contents) == 1


def test_tables_are_by_id_and_other_tools_can_read_them(tmp_path, graph):
    run, path = make_run(tmp_path / "run", graph, "hake"), tmp_path / "out" / "model.safetensors"
    export_safetensors(run, path)
    tensors, ours = load_file(path), load_run(run).score_fn
    table = ours.entity_embedding.flatten(end_dim=1)
    assert torch.equal(tensors["entity"], table[torch.from_numpy(ours.sharding.flat_row)])
    assert torch.equal(tensors["relation"], ours.relation_embedding)
    assert set(tensors) - {"entity", "relation"} == {
        "formula.modulus_weight", "formula.phase_weight"
    }  # fmt: skip
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    expected = dict(
        score_function="hake", dim="6", norm="1", inverse_relations="true", n_entity="23",
        n_relation_type="3", dataset=str(graph), weights="best weights, epoch-00001-step-000000",
        entity_labels="entities.tsv", relation_labels="relations.tsv",
    )  # fmt: skip
    assert {name: metadata[name] for name in expected} == expected
    assert sorted(x.name for x in path.parent.iterdir()) == [
        "entities.tsv", "model.safetensors", "relations.tsv"
    ]  # fmt: skip


def test_labels_and_names_come_back_for_a_predictor(tmp_path, graph):
    run, path = make_run(tmp_path / "run", graph), tmp_path / "model.safetensors"
    export_safetensors(run, path)
    loaded, found = load_run(run), exported_dataset(path)
    assert found.entity_dict == loaded.dataset.entity_dict
    assert found.entity_names == loaded.dataset.entity_names
    assert found.relation_dict == loaded.dataset.relation_dict
    there = Predictor(load_exported(path), found).tails("NA", "20", k=5)
    here = Predictor(loaded.score_fn, loaded.dataset).tails("NA", "20", k=5)
    assert [x.label for x in there] == [x.label for x in here]
    assert_close([x.score for x in there], [x.score for x in here])


def test_ranks_are_those_of_the_run(tmp_path, graph):
    run, path = make_run(tmp_path / "run", graph, "pairre"), tmp_path / "model.safetensors"
    export_safetensors(run, path, labels=False)
    loaded = load_run(run)
    triples, known = loaded.dataset.triples["test"], KnownTriples.of(loaded.dataset)
    found = rank_triples(load_exported(path), triples, known).metrics()
    assert found == rank_triples(loaded.score_fn, triples, known).metrics()


def test_a_file_without_labels_needs_no_data_set(tmp_path, graph):
    run, path = make_run(tmp_path / "run", graph), tmp_path / "model.safetensors"
    config = configuration.load(TrainingConfig, run / "config.toml")
    data = dataclasses.replace(config.data, dataset=str(tmp_path / "gone"))
    configuration.dump(dataclasses.replace(config, data=data), run / "config.toml")
    with pytest.raises(DatasetNotFoundError):
        export_safetensors(run, path)
    assert not path.exists()
    export_safetensors(run, path, labels=False)
    assert exported_dataset(path).entity_dict is None


def test_exporting_and_loading_leave_the_random_numbers_alone(tmp_path, graph):
    run, path = make_run(tmp_path / "run", graph, "conve"), tmp_path / "model.safetensors"
    before = torch.get_rng_state()
    export_safetensors(run, path)
    load_exported(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_last_weights_can_be_had_instead_of_the_best(tmp_path, graph):
    run = make_run(tmp_path / "run", graph)
    make_run(tmp_path / "run", graph, kind="checkpoints", seed=1)
    exported = {}
    for checkpoint in ("best", "last"):
        path = tmp_path / f"{checkpoint}.safetensors"
        export_safetensors(run, path, checkpoint, labels=False)
        ours = load_run(run, checkpoint).score_fn
        exported[checkpoint] = score(load_exported(path), all_triples())
        assert torch.equal(exported[checkpoint], score(ours, all_triples()))
    assert not torch.equal(exported["best"], exported["last"])


# -- what is refused -------------------------------------------------------------------------------


def test_a_damaged_checkpoint_leaves_no_export(tmp_path, graph):
    run, path = make_run(tmp_path / "run", graph), tmp_path / "out" / "model.safetensors"
    (shard,) = run.glob("best/*/shard-00001.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    for export in (export_safetensors, export_pykeen):
        with pytest.raises(CheckpointError, match="its sha256 is not the manifest's"):
            export(run, path)
        assert not list(path.parent.iterdir())


@pytest.mark.parametrize("change", ["lacks a shard", "has a shard twice"])
def test_a_checkpoint_without_every_entity_once_is_refused(tmp_path, graph, change):
    run = make_run(tmp_path / "run", graph)
    (manifest,) = run.glob("best/*/manifest.json")
    content = json.loads(manifest.read_text())
    digest = content["files"].pop("shard-00001.safetensors")
    if change == "has a shard twice":
        content["files"].update({"shard-00001.safetensors": digest, "copy.safetensors": digest})
        (manifest.parent / "copy.safetensors").write_bytes(
            (manifest.parent / "shard-00001.safetensors").read_bytes()
        )
    del content["sha256"]
    content["sha256"] = manifest_digest(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="8 of 23 entities are not stored once"):
        export_safetensors(run, tmp_path / "model.safetensors", labels=False)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_graph_that_has_changed_is_refused(tmp_path, graph):
    run = make_run(tmp_path / "run", graph)
    config = configuration.load(TrainingConfig, run / "config.toml")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.tsv").write_text("a\tr\tb\n")
    data = dataclasses.replace(config.data, dataset=str(tmp_path / "other"))
    configuration.dump(dataclasses.replace(config, data=data), run / "config.toml")
    with pytest.raises(CheckpointError, match="other has 2 and 1: it has changed since"):
        export_safetensors(run, tmp_path / "model.safetensors")


def test_what_is_no_export_is_not_loaded(tmp_path, graph):
    with pytest.raises(CheckpointError, match="no such file; expected one of besskge export"):
        load_exported(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no tensors in here")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_exported(tmp_path / "text")
    run = make_run(tmp_path / "run", graph)
    (shard,) = run.glob("best/*/shard-00001.safetensors")
    with pytest.raises(CheckpointError, match="format None, expected 'besskge_core.model/1'"):
        load_exported(shard)
    export_safetensors(run, tmp_path / "model.safetensors")
    (tmp_path / "entities.tsv").unlink()
    with pytest.raises(DatasetNotFoundError, match="entities.tsv: no such file"):
        exported_dataset(tmp_path / "model.safetensors")


# -- the command -----------------------------------------------------------------------------------


def command(*arguments, expect=0):
    done = CliRunner().invoke(cli, ["export", *map(str, arguments)])
    assert done.exit_code == expect, done.output
    return " ".join(done.output.split())


def test_the_command_exports_both_ways(tmp_path, graph):
    run = make_run(tmp_path / "run", graph, "distmult")
    for form in ("safetensors", "pykeen"):
        out = tmp_path / form
        assert f"written to {out}" in command(run, "--to", form, "--out", out)
        assert "exists; give another place, or --overwrite" in command(
            run, "--to", form, "--out", out, expect=2
        )
        command(run, "--to", form, "--out", out, "--overwrite", "--no-labels")
    assert score(load_exported(tmp_path / "safetensors"), all_triples()).shape == (1587,)
    assert not (tmp_path / "pykeen" / "training_triples" / "entity_to_id.tsv.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--out", "x"], "'onnx' is not one of"),
        (["--to", "safetensors"], "Missing option '--out'"),
        (["--to", "pykeen", "--out", "x", "--checkpoint", "last"], "no last checkpoint"),
        (["--to", "pykeen", "--out", "{graph}", "--overwrite"], "holds no export to overwrite"),
    ],
)
def test_a_bad_export_is_refused(tmp_path, monkeypatch, graph, arguments, message):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", graph)
    filled = [x.format(graph=graph) for x in arguments]
    assert message in command(run, *filled, expect=2)
    assert len(list(tmp_path.iterdir())) == 1 and (graph / "train.tsv").exists()
