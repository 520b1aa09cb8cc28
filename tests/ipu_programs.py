"""Every part that a step on IPUs may be made of, each in a step of its own.

``PYTHONPATH=. python tests/ipu_programs.py`` writes docs/ipu-operators.md anew.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
import torch
from ranks import small_graph
from support import make_score
from test_distributed import NEGATIVES, sampler_of

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import (
    AllScoresBESS,
    EmbeddingMovingBessKGE,
    LCWABessKGE,
    OneVsAllBessKGE,
    ScoreMovingBessKGE,
    TopKQueryBessKGE,
)
from besskge_core.embedding import CONSTRAINERS, EMBEDDING_REGULARIZERS, NORMALIZERS, Embedding
from besskge_core.errors import ConfigError
from besskge_core.known import KnownTriples
from besskge_core.loss import LOSSES, BCEWithLogitsLoss, CrossEntropyLoss, LogSigmoidLoss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    TripleBasedShardedNegativeSampler,
)
from besskge_core.regularizer import REGULARIZERS
from besskge_core.runtime.ipu import IPUSettings, Program, make_ipu_runtime, make_optimizer
from besskge_core.scoring import SCORE_FUNCTIONS
from besskge_core.sharding import PartitionedTripleSet, Sharding

N_SHARD = 2
PAGE = Path(__file__).parent.parent / "docs" / "ipu-operators.md"

#: Of each kind a name, and what makes a model and its sampler; a model without a loss is asked.
Case = Callable[[], Tuple[Any, Any]]


def trained(
    mover: Any = EmbeddingMovingBessKGE,
    score: str = "distmult",
    negatives: str = "flat",
    loss: Any = None,
    embedding: Optional[Dict[str, Any]] = None,
    hubs: bool = False,
    known: bool = False,
    changes: Optional[Dict[str, Any]] = None,
    **options: Any,
) -> Tuple[Any, Any]:
    """A model that is trained, and its sampler; `changes` are of the score function."""
    sampler = sampler_of(N_SHARD, negatives, hubs=hubs)
    sharding, entities = sampler.triple_set.sharding, {}
    if embedding is not None:
        entities["entity_initializer"] = Embedding(shape=6, sharding=sharding, **embedding)
    if known:
        sampler.negative_sampler.known = KnownTriples.of(small_graph())
    score_fn = make_score(score, sharding, 4, dtype=torch.float32, **entities, **(changes or {}))
    loss = LogSigmoidLoss(1.0, True) if loss is None else loss
    return mover(sampler.negative_sampler, score_fn, loss, **options), sampler


def against_all(make: Any, loss: Any) -> Tuple[Any, Any]:
    sampler = sampler_of(N_SHARD, "none")
    score_fn = make_score("distmult", sampler.triple_set.sharding, 4, dtype=torch.float32)
    return make(score_fn, loss), sampler


def asked(make: Any, given: bool = False) -> Tuple[Any, Any]:
    graph = small_graph()
    sharding = Sharding.create(graph.n_entity, N_SHARD, 0)
    triples = PartitionedTripleSet.create_from_dataset(graph, "valid", sharding, "h_shard")
    candidates: Any = PlaceholderNegativeSampler("t")
    if given:
        every = np.arange(graph.n_entity)[None]
        candidates = TripleBasedShardedNegativeSampler(
            None, every, sharding, "t", 0, mask_on_gather=True
        )
    score_fn = make_score("distmult", sharding, 4, dtype=torch.float32)
    if make is AllScoresBESS:
        model = make(candidates, score_fn, 4)
    else:
        evaluation = Evaluation(["mrr", "hits@3"], return_ranks=True)
        model = make(3, candidates, score_fn, evaluation, True, window_size=4)
    return model, RigidShardedBatchSampler(triples, candidates, 3, 2, seed=0)


def loss_of(name: str) -> Any:
    parameters = inspect.signature(LOSSES[name]).parameters
    given = dict(n_entity=37, margin=1.0, negative_adversarial_sampling=True)
    needed = [k for k, x in parameters.items() if k in given and x.default is x.empty]
    return LOSSES[name](**{k: given[k] for k in needed})


#: What constrainers need.
ARGUMENTS = {"clamp": dict(min=-1.0), "clamp_norm": dict(maxnorm=1.0)}


def of(make: Callable[..., Tuple[Any, Any]], *arguments: Any, **options: Any) -> Case:
    return lambda: make(*arguments, **options)


CASES: Dict[str, Dict[str, Case]] = {
    "Modules": {
        "EmbeddingMovingBessKGE": of(trained),
        "ScoreMovingBessKGE": of(trained, ScoreMovingBessKGE),
        "TopKQueryBessKGE": of(asked, TopKQueryBessKGE),
        "TopKQueryBessKGE, candidates given": of(asked, TopKQueryBessKGE, given=True),
        "AllScoresBESS": of(asked, AllScoresBESS),
        "OneVsAllBessKGE": of(against_all, OneVsAllBessKGE, CrossEntropyLoss()),
        "LCWABessKGE": of(against_all, LCWABessKGE, BCEWithLogitsLoss()),
    },
    "Score functions": {x: of(trained, score=x) for x in sorted(SCORE_FUNCTIONS)},
    "Score functions, scores moving": {
        x: of(trained, ScoreMovingBessKGE, x) for x in sorted(SCORE_FUNCTIONS)
    },
    "Options of score functions": {
        "conve without batch normalization": of(
            trained, score="conve", changes=dict(batch_normalization=False)
        ),
        **{
            f"{x}, p = 2": of(trained, score=x, changes=dict(p=2))
            for x in ("rotate", "toruse", "transe")
        },
    },
    "Losses": {x: of(trained, loss=loss_of(x)) for x in sorted(LOSSES)},
    "Negative samplers": {
        **{x: of(trained, negatives=x) for x in sorted(NEGATIVES) if x != "none"},
        "without true triples": of(trained, known=True),
    },
    "Regularizers of a model": {
        x: of(trained, regularizer=REGULARIZERS[x](weight=0.1)) for x in sorted(REGULARIZERS)
    },
    "Entity representations": {
        **{
            f"normalizer {x}": of(trained, embedding=dict(normalizer=x))
            for x in sorted(NORMALIZERS)
        },
        **{
            f"constrainer {x}": of(
                trained,
                embedding=dict(constrainer=x, constrainer_kwargs=ARGUMENTS.get(x)),
            )
            for x in sorted(CONSTRAINERS)
        },
        **{
            f"regularizer {x}": of(trained, embedding=dict(regularizer=x))
            for x in sorted(EMBEDDING_REGULARIZERS)
            if x not in ("combined", "orthogonality")  # of several
        },
        "dropout": of(trained, embedding=dict(dropout=0.1)),
    },
    "Other": {
        "metrics, ranks and scores": of(
            trained, evaluation=Evaluation(["mrr", "hits@3"], return_ranks=True), return_scores=True
        ),
        "negatives of the batch besides": of(trained, augment_negative=True),
        "hubs": of(trained, hubs=True),
    },
}


def stepped(case: Case, target: Optional[str]) -> Tuple[Any, Dict[str, torch.Tensor]]:
    """The runtime and the outputs of a case, after a step of it has run."""
    torch.manual_seed(0)
    model, sampler = case()
    runtime = make_ipu_runtime(model, IPUSettings(target=target), n_worker=0)
    if getattr(model, "loss_fn", None) is None:
        step = runtime.inference_step()
    else:
        parameters = list(model.parameters())
        step = runtime.training_step(make_optimizer("sgd", parameters, 0.01, target=target))
    return runtime, step(next(iter(runtime.dataloader(sampler))))


def program_of(case: Case) -> Program:
    """Of a case.

    Raises:
        ConfigError: it cannot be compiled.
    """
    runtime, _ = stepped(case, "emulate")
    (program,) = runtime.programs.values()
    return program


def ran(case: Case, target: Optional[str] = None) -> Any:
    """The losses of a step, or the answers' scores."""
    runtime, found = stepped(case, target)
    runtime.close()
    return found["loss" if "loss" in found else "topk_scores"].numpy()


def page() -> str:
    """docs/ipu-operators.md"""
    lines = [
        "# Operators of steps on IPUs",
        "",
        "What each part makes of a training step (of `TopKQueryBessKGE`, of a query) as it is traced for a"
        " replica, in the forward pass; PopART makes the backward pass. All of them have a handler in PopTorch"
        " 3.3 and 3.4. Parts that cannot be compiled are listed with the reason that their users are given."
        " Traced without an SDK, by `tests/ipu_programs.py`: nothing here has run on an IPU. Where not said"
        " otherwise: DistMult, shared negatives, `EmbeddingMovingBessKGE`, `LogSigmoidLoss`.",
    ]
    for kind, cases in CASES.items():
        lines += ["", f"## {kind}", "", "| | operators, or why not |", "|---|---|"]
        for name, case in cases.items():
            try:
                told = ", ".join(f"`{x}`" for x in sorted(program_of(case).trace.operators))
            except ConfigError as error:
                told = f"refused: {error}".replace("|", "\\|")
            lines.append(f"| {name} | {told} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
