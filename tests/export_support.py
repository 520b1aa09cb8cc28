"""Runs to export: random weights on a small graph, laid out as training leaves them."""

from __future__ import annotations

import numpy as np
import torch

from besskge_core import config as configuration
from besskge_core.training import TrainingConfig
from besskge_core.training.build import build_score_function
from besskge_core.training.checkpoint import save_checkpoint
from besskge_core.training.config import BatchConfig, DataConfig, ModelConfig
from besskge_core.training.loaded import load_dataset

N_ENTITY, N_RELATION = 23, 3
OPTIONS = {
    "conve": dict(embedding_height=2, embedding_width=3, output_channels=2, kernel_height=2,
                  kernel_width=2),
}  # fmt: skip


def write_graph(folder):
    """A folder of labelled triples, with names, and labels that a table could stumble over."""
    entities = [f"Q{i}" for i in range(N_ENTITY - 4)] + ["NA", "7", 'a "b', "null"]
    ids = np.random.default_rng(0).integers(N_ENTITY, size=(2, 80))
    ids[:, :N_ENTITY] = np.arange(N_ENTITY)
    relations = [str(10 * (1 + i % N_RELATION)) for i in range(80)]
    lines = [f"{entities[h]}\t{r}\t{entities[t]}\n" for (h, t), r in zip(ids.T, relations)]
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
