"""An exported model has the scores of the run: here to the last bit, in PyKEEN to 1e-6."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from besskge_core import config as configuration
from besskge_core.cli import cli
from besskge_core.errors import CheckpointError, ConfigError, DatasetNotFoundError
from besskge_core.evaluation import rank_triples
from besskge_core.exporting import (
    PYKEEN_FORMS,
    export_pykeen,
    export_safetensors,
    exported_dataset,
    load_exported,
    pykeen_model,
    pykeen_triples,
)
from besskge_core.known import KnownTriples
from besskge_core.predict import Predictor
from besskge_core.reading.folders import read_folder
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.training import TrainingConfig, load_run
from besskge_core.training.build import build_score_function
from besskge_core.training.checkpoint import save_checkpoint
from besskge_core.training.config import BatchConfig, DataConfig, ModelConfig
from besskge_core.training.loaded import load_dataset

N_ENTITY, N_RELATION = 23, 3
OPTIONS = {
    "conve": dict(embedding_height=2, embedding_width=3, output_channels=2, kernel_height=2,
                  kernel_width=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A folder of labelled triples, with names, and labels that a table could stumble over."""
    folder = tmp_path_factory.mktemp("graph")
    entities = [f"Q{i}" for i in range(N_ENTITY - 4)] + ["NA", "7", 'a "b', "null"]
    ids = np.random.default_rng(0).integers(N_ENTITY, size=(2, 80))
    ids[:, :N_ENTITY] = np.arange(N_ENTITY)
    lines = [f"{entities[h]}\tr{i % N_RELATION}\t{entities[t]}\n" for i, (h, t) in enumerate(ids.T)]
    (folder / "train.tsv").write_text("".join(lines[:70]))
    (folder / "test.tsv").write_text("".join(lines[70:]))
    names = [f"{label}\tname of {label}\n" for label in entities]
    (folder / "entity_labels.tsv").write_text("".join(names))
    return folder


def make_run(folder, graph, name="complex", inverse=True, n_shard=3, kind="best", seed=0, **model):
    """A run with random weights, as training leaves it."""
    options = {**OPTIONS.get(name, {}), **model.pop("score_options", {})}
    config = TrainingConfig(
        data=DataConfig(dataset=str(graph)),
        model=ModelConfig(
            score_function=name, dim=6, inverse_relations=inverse, score_options=options, **model
        ),
        batch=BatchConfig(n_shard=n_shard),
    )
    folder.mkdir(exist_ok=True)
    configuration.dump(config, folder / "config.toml")
    score_fn = build_score_function(config, load_dataset(str(graph)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, x in score_fn.formula.state_dict().items():
            if x.is_floating_point():
                noise = torch.rand(x.shape, generator=generator)
                x.copy_(noise + 0.5 if "running_var" in key else 0.4 * noise - 0.2)
        by_id = torch.randn(N_ENTITY, score_fn.entity_embedding.shape[2], generator=generator)
        by_id = 0.4 * by_id
        score_fn.relation_embedding.normal_(0.0, 0.4, generator=generator)
        place = torch.from_numpy(score_fn.sharding.flat_row)
        score_fn.entity_embedding.flatten(end_dim=1)[place] = by_id
    # The optimiser's state lies in the same files, and is no weight.
    optimizer = torch.optim.Adam(score_fn.parameters())
    optimizer.state.update({x: {"exp_avg": torch.ones_like(x)} for x in score_fn.parameters()})
    save_checkpoint(folder / kind / "epoch-00001-step-000000", score_fn, optimizer)
    return folder


def all_triples():
    ids = np.indices((N_ENTITY, N_RELATION, N_ENTITY)).reshape(3, -1).T
    return torch.from_numpy(np.ascontiguousarray(ids))


@torch.no_grad()
def score(score_fn, triples, inverse=False):
    """Triples (n, 3) by ID -> (n)."""
    h, r, t = triples.T
    table = score_fn.entity_embedding.flatten(end_dim=1)
    place = torch.from_numpy(score_fn.sharding.flat_row)
    r = r + score_fn.n_relation_type if inverse else r
    return score_fn.eval().score_triple(table[place[h]], r, table[place[t]])


# -- one safetensors file --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SCORE_FUNCTIONS))
@pytest.mark.parametrize("inverse", [False, True], ids=["", "inverse"])
def test_what_is_exported_and_loaded_has_the_scores_of_the_run(tmp_path, graph, name, inverse):
    run = make_run(tmp_path / "run", graph, name, inverse)
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
    there = Predictor(load_exported(path), found).tails("NA", "r1", k=5)
    here = Predictor(loaded.score_fn, loaded.dataset).tails("NA", "r1", k=5)
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


# -- a folder for PyKEEN ---------------------------------------------------------------------------

VARIANTS = {
    **{name: {} for name in PYKEEN_FORMS},
    "transe": dict(norm=2),
    "transe p=1": dict(norm=1),
    "rotate": dict(norm=2),
    "toruse": dict(norm=2),
    "toruse p=1": dict(norm=1),
    "pairre raw": dict(norm=2, score_options=dict(normalize_entities=False)),
    "triplere": dict(norm=2, score_options=dict(u=0.5)),
    "transr": dict(norm=2, score_options=dict(relation_size=4)),
    "transd": dict(norm=2, score_options=dict(relation_size=4)),
    "transd wide": dict(norm=1, score_options=dict(relation_size=9)),
    "boxe p=2": dict(norm=2, score_options=dict(apply_tanh=False)),
    "boxe thin": dict(score_options=dict(eps=0.5)),  # which most widths are below
    "tucker": dict(score_options=dict(relation_size=4)),
    "tucker normalized": dict(score_options=dict(batch_normalization=True)),
    "conve plain": dict(score_options=dict(batch_normalization=False)),
}
IMPOSSIBLE = {
    "hake": ({}, "hake cannot be exported to PyKEEN: no interaction of PyKEEN's has these scores"),
    "interht": ({}, "interht cannot be exported"),
    "trans": ({}, "trans cannot be exported"),
    "rotate": (dict(norm=1), "rotate with norm 1 cannot .* takes norm 2, whatever is asked"),
    "boxe": (dict(score_options=dict(dist_func_per_dim=False)), "looks at each dimension alone"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_pykeen_does_not_have_is_refused_with_what_it_has(tmp_path, graph, name):
    model, message = IMPOSSIBLE[name]
    run = make_run(tmp_path / "run", graph, name, **model)
    with pytest.raises(ConfigError, match=f"{message}.*what can be: boxe, complex, conve, cp"):
        export_pykeen(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_score_function_is_exported_or_refused():
    assert set(PYKEEN_FORMS) | {"hake", "interht", "trans"} == set(SCORE_FUNCTIONS)


def test_a_folder_for_pykeen_holds_weights_by_its_names_and_the_triples(tmp_path, graph):
    run, out = make_run(tmp_path / "run", graph), tmp_path / "out"
    export_pykeen(run, out)
    model = json.loads((out / "model.json").read_text())
    assert model["interaction"] == "ComplExInteraction" and model["num_relations"] == 3
    expected = [{"shape": [6], "dtype": "complex64"}]
    assert model["entity_representations"] == expected
    tensors, ours = load_file(out / "state_dict.safetensors"), load_run(run).score_fn
    relations = tensors["relation_representations.0._embeddings.weight"]
    assert tensors["entity_representations.0._embeddings.weight"].shape == (23, 12)
    inverse_of_2 = ours.relation_embedding[3 + 2]  # real half first
    assert torch.equal(relations[2 * 2 + 1], inverse_of_2.view(2, 6).T.flatten())
    (out / "training_triples").rename(out / "training")
    stored = read_folder(str(out))
    dataset = load_dataset(str(graph))
    assert np.array_equal(stored["triples"]["train"], dataset.triples["train"])
    plain = [i for i, label in enumerate(dataset.entity_dict) if '"' not in label]
    assert [stored["entity_dict"][i] for i in plain] == [dataset.entity_dict[i] for i in plain]


def test_who_looks_for_torchs_optimisers_does_not_find_ours():
    def found(base):  # as class_resolver does, which PyKEEN imports, and which refuses two Adagrads
        for cls in base.__subclasses__():
            yield from found(cls)
            if cls.__module__.split(".")[0] == base.__module__.split(".")[0]:
                yield cls

    assert {cls.__module__.split(".")[0] for cls in found(torch.optim.Optimizer)} == {"torch"}


@pytest.fixture(scope="module")
def pykeen():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("pykeen", reason="PyKEEN is not installed")


@pytest.fixture(params=[False, True], ids=["", "inverse"])
def exported(request, tmp_path, graph, pykeen):
    """Exports a run, and returns its score function and PyKEEN's model."""

    def export(variant):
        name = variant.split()[0]
        run = make_run(tmp_path / "run", graph, name, request.param, **VARIANTS[variant])
        export_pykeen(run, tmp_path / "out")
        return load_run(run).score_fn, pykeen_model(tmp_path / "out")

    return export


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_pykeen_scores_as_we_do(exported, variant):
    ours, model = exported(variant)
    triples, inverse = all_triples(), ours.inverse_relations
    expected, close = score(ours, triples), dict(rtol=1e-6, atol=1e-6)
    own = triples * torch.tensor([1, 1 + inverse, 1])  # relations as PyKEEN numbers them
    assert_close(model.predict_hrt(triples)[:, 0], expected, **close)
    assert_close(model.score_hrt(own)[:, 0], expected, **close)
    pairs = triples.view(N_ENTITY, N_RELATION, N_ENTITY, 3)
    by_tail = expected.view(N_ENTITY, N_RELATION, N_ENTITY)
    assert_close(model.predict_t(pairs[:, :, 0, :2].reshape(-1, 2)).view(by_tail.shape), by_tail,
                 **close)  # fmt: skip
    by_head = by_tail
    if inverse:
        assert_close(
            model.score_hrt(own + torch.tensor([0, 1, 0]))[:, 0],
            score(ours, triples, True),
            **close,
        )
        by_head = score(ours, triples, True).view(by_tail.shape).permute(2, 1, 0)
    heads = model.predict_h(pairs[0, :, :, 1:].reshape(-1, 2))
    assert_close(heads.view(N_RELATION, N_ENTITY, N_ENTITY), by_head.permute(1, 2, 0), **close)


@pytest.mark.filterwarnings("ignore")
def test_pykeen_gets_the_labels_and_triples(tmp_path, graph, pykeen):
    run, dataset = make_run(tmp_path / "run", graph), load_dataset(str(graph))
    for labels in (True, False):
        export_pykeen(run, tmp_path / "out", labels=labels, overwrite=True)
        triples = pykeen_triples(tmp_path / "out")
        assert np.array_equal(triples.mapped_triples.numpy(), dataset.triples["train"])
        assert triples.create_inverse_triples and triples.real_num_relations == N_RELATION
        if labels:
            assert [triples.entity_to_id[x] for x in dataset.entity_dict] == [*range(N_ENTITY)]


@pytest.mark.filterwarnings("ignore")
def test_weights_that_do_not_fit_are_refused(tmp_path, graph, pykeen):
    export_pykeen(make_run(tmp_path / "run", graph), tmp_path / "out")
    path = tmp_path / "out" / "state_dict.safetensors"
    tensors = load_file(path)
    tensors["entities"] = tensors.pop("entity_representations.0._embeddings.weight")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"\['entity_rep.*are not in the export.*\['entities'\]"):
        pykeen_model(tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_the_folder_makes_pykeens_own_pickles_without_besskge_core(tmp_path, graph, pykeen):
    run = make_run(tmp_path / "run", graph, "quate")
    export_pykeen(run, tmp_path / "out")
    text = (tmp_path / "out" / "load.py").read_text()
    assert "import besskge_core" not in text and "from besskge_core" not in text
    path = f"import sys; sys.path[:] = {[x for x in sys.path if 'packages' in x or 'lib' in x]}"
    program = (
        f"{path}; sys.argv[1:] = []; import runpy; runpy.run_path('load.py', None, '__main__')"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path / "out", check=True
    )
    model = torch.load(tmp_path / "out" / "trained_model.pkl", weights_only=False)
    ours = score(load_run(run).score_fn, all_triples())
    assert_close(model.predict_hrt(all_triples())[:, 0], ours, rtol=1e-6, atol=1e-6)
    triples = type(pykeen_triples(tmp_path / "out")).from_path_binary(
        Path(tmp_path, "out", "training_triples")
    )
    assert triples.num_entities == N_ENTITY and triples.create_inverse_triples
