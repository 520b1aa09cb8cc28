"""An exported model has the scores of the run in PyKEEN to 1e-6; where it is not, its files are right.

Developed against PyKEEN 1.11.1; what needs it is skipped where it is not installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from export_support import N_ENTITY, N_RELATION, all_triples, make_run, score, write_graph
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from besskge_core.errors import ConfigError
from besskge_core.exporting import PYKEEN_FORMS, export_pykeen, pykeen_model, pykeen_triples
from besskge_core.reading.folders import read_folder
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.training import load_run
from besskge_core.training.loaded import load_dataset

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


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("graph"))


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
            assert [triples.relation_to_id[x] for x in dataset.relation_dict] == [0, 1, 2]


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
        tmp_path / "out" / "training_triples"
    )
    assert triples.num_entities == N_ENTITY and triples.create_inverse_triples
