"""A program written for besskge runs under the new name, but for what differs on purpose."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest
import torch
from support import by_entity, make_score
from torch.testing import assert_close

from besskge_core import bess, embedding, loss, metric, negative_sampler, utils
from besskge_core.batch_sampler import (
    RandomShardedBatchSampler,
    RigidShardedBatchSampler,
    frequency_weight,
)
from besskge_core.bess import EmbeddingMovingBessKGE, ScoreMovingBessKGE, TopKQueryBessKGE
from besskge_core.dataset import KGDataset
from besskge_core.embedding import init_KGE_normal, init_KGE_uniform, refactor_embedding_sharding
from besskge_core.errors import ConfigError
from besskge_core.loss import BaseLossFunction, LogSigmoidLoss, SampledSoftmaxCrossEntropyLoss
from besskge_core.metric import Evaluation
from besskge_core.negative_sampler import (
    PlaceholderNegativeSampler,
    RandomShardedNegativeSampler,
    TripleBasedShardedNegativeSampler,
    TypeBasedShardedNegativeSampler,
)
from besskge_core.optim import SGD
from besskge_core.pipeline import AllScoresPipeline
from besskge_core.scoring import ComplEx, DistanceBasedScoreFunction, TransE
from besskge_core.sharding import PartitionedTripleSet, Sharding

ROOT = Path(__file__).parent.parent

# -- names, arguments and defaults ---------------------------------------------------------------

_DISTANCE = "negative_sample_sharing, scoring_norm, sharding, n_relation_type, embedding_size"
_PRODUCT = "negative_sample_sharing, sharding, n_relation_type, embedding_size"
_UNIFORM = "entity_initializer=[init_KGE_uniform], relation_initializer=[init_KGE_uniform]"
_SAMPLER = (
    "partitioned_triple_set, negative_sampler, shard_bs, batches_per_step, seed,"
    " hrt_freq_weighting=False, weight_smoothing=0.0, duplicate_batch=False,"
    " return_triple_idx=False"
)
_MODULE = (
    "negative_sampler, score_fn, loss_fn=None, evaluation=None, return_scores=False,"
    " augment_negative=False"
)
_STEP = "head, relation, tail, negative, triple_mask=None, triple_weight=None, negative_mask=None"
_MARGIN = "margin, negative_adversarial_sampling, negative_adversarial_scale=1.0, loss_scale=1.0"

#: What besskge at 1fedeac offers: module to calls, without `self` and `cls`.
UPSTREAM: Dict[str, List[str]] = {
    "dataset": [
        "KGDataset(n_entity, n_relation_type, triples, original_triple_ids, entity_dict=None,"
        " relation_dict=None, type_offsets=None, neg_heads=None, neg_tails=None)",
        "KGDataset.from_triples(data, split=(0.7, 0.15, 0.15), seed=1234, entity_dict=None,"
        " relation_dict=None, type_offsets=None)",
        "KGDataset.from_dataframe(df, head_column, relation_column, tail_column,"
        " entity_types=None, split=(0.7, 0.15, 0.15), seed=1234)",
        "KGDataset.build_ogbl_biokg(root)",
        "KGDataset.build_ogbl_wikikg2(root)",
        "KGDataset.build_yago310(root)",
        "KGDataset.build_openbiolink(root)",
        "KGDataset.save(out_file)",
        "KGDataset.load(path)",
    ],
    "sharding": [
        "Sharding(n_shard, entity_to_shard, entity_to_idx, shard_and_idx_to_entity, shard_counts,"
        " entity_type_counts, entity_type_offsets)",
        "Sharding.create(n_entity, n_shard, seed, type_offsets=None)",
        "Sharding.save(out_file)",
        "Sharding.load(path)",
        "PartitionedTripleSet(sharding, inverse_triples, partition_mode, dummy, triples,"
        " triple_counts, triple_offsets, triple_sort_idx, types, neg_heads, neg_tails)",
        "PartitionedTripleSet.partition_triples(triples, sharding, partition_mode)",
        "PartitionedTripleSet.create_from_dataset(dataset, part, sharding,"
        " partition_mode='ht_shardpair', add_inverse_triples=False)",
        "PartitionedTripleSet.create_from_queries(dataset, sharding, queries, query_mode,"
        " ground_truth=None, negative=None, negative_type=None)",
    ],
    "negative_sampler": [
        "ShardedNegativeSampler.__call__(sample_idx)",
        "RandomShardedNegativeSampler(n_negative, sharding, seed, corruption_scheme,"
        " local_sampling, flat_negative_format=False)",
        "TypeBasedShardedNegativeSampler(triple_types, n_negative, sharding, corruption_scheme,"
        " local_sampling, seed)",
        "TripleBasedShardedNegativeSampler(negative_heads, negative_tails, sharding,"
        " corruption_scheme, seed, mask_on_gather=False, return_sort_idx=False)",
        "PlaceholderNegativeSampler(corruption_scheme, seed=0)",
    ],
    "batch_sampler": [
        f"ShardedBatchSampler({_SAMPLER})",
        "ShardedBatchSampler.sample_triples(idx)",
        "ShardedBatchSampler.get_dataloader_sampler(shuffle)",
        "ShardedBatchSampler.get_dataloader(options, shuffle=True, num_workers=0,"
        " persistent_workers=False, buffer_size=16)",
        "ShardedBatchSampler.worker_init_fn(worker_id)",
        f"RigidShardedBatchSampler({_SAMPLER})",
        f"RandomShardedBatchSampler({_SAMPLER})",
        "RandomShardedBatchSampler.get_dataloader_sampler(shuffle=True)",
    ],
    "embedding": [
        "init_uniform_norm(embedding_table)",
        "init_xavier_norm(embedding_table, gain=1.0)",
        "init_uniform_rotation(embedding_table)",
        "init_KGE_uniform(embedding_table, b=1.0, divide_by_embedding_size=True)",
        "init_KGE_normal(embedding_table, std=1.0, divide_by_embedding_size=True)",
        "initialize_entity_embedding(sharding, initializer, row_size=None)",
        "initialize_relation_embedding(n_relation_type, inverse_relations, initializer,"
        " row_size=None)",
        "refactor_embedding_sharding(entity_embedding, old_sharding, new_sharding)",
    ],
    "scoring": [
        "BaseScoreFunction.score_triple(head_emb, relation_id, tail_emb)",
        "BaseScoreFunction.score_heads(head_emb, relation_id, tail_emb)",
        "BaseScoreFunction.score_tails(head_emb, relation_id, tail_emb)",
        "BaseScoreFunction.forward(head_emb, relation_id, tail_emb)",
        "BaseScoreFunction.update_sharding(new_sharding)",
        "DistanceBasedScoreFunction(negative_sample_sharing, scoring_norm)",
        "DistanceBasedScoreFunction.reduce_embedding(v)",
        "DistanceBasedScoreFunction.broadcasted_distance(v1, v2)",
        "MatrixDecompositionScoreFunction(negative_sample_sharing)",
        "MatrixDecompositionScoreFunction.reduce_embedding(v)",
        "MatrixDecompositionScoreFunction.broadcasted_dot_product(v1, v2)",
        f"TransE({_DISTANCE}, {_UNIFORM}, inverse_relations=False)",
        f"RotatE({_DISTANCE}, entity_initializer=[init_KGE_uniform],"
        " relation_initializer=[init_uniform_rotation], inverse_relations=False)",
        f"PairRE({_DISTANCE}, {_UNIFORM}, normalize_entities=True, inverse_relations=False)",
        f"TripleRE({_DISTANCE}, {_UNIFORM}, normalize_entities=True, u=0.0,"
        " inverse_relations=False)",
        f"DistMult({_PRODUCT}, {_UNIFORM}, inverse_relations=False)",
        f"ComplEx({_PRODUCT}, entity_initializer=[init_KGE_normal],"
        " relation_initializer=[init_KGE_normal], inverse_relations=False)",
        f"ConvE({_PRODUCT}, embedding_height, embedding_width,"
        " entity_initializer=[init_xavier_norm, zeros_], relation_initializer=[init_xavier_norm],"
        " inverse_relations=True, input_channels=1, output_channels=32, kernel_height=3,"
        " kernel_width=3, input_dropout=0.2, feature_map_dropout=0.2, hidden_dropout=0.3,"
        " batch_normalization=True)",
        f"BoxE({_DISTANCE}, entity_initializer=[uniform_],"
        " relation_initializer=[uniform_, init_uniform_norm], apply_tanh=True,"
        " dist_func_per_dim=True, eps=1e-6, inverse_relations=False)",
        f"InterHT({_DISTANCE}, {_UNIFORM}, normalize_entities=True, offset=1.0,"
        " inverse_relations=False)",
        f"TranS({_DISTANCE}, {_UNIFORM}, normalize_entities=True, offset=1.0,"
        " inverse_relations=False)",
    ],
    "loss": [
        "BaseLossFunction.get_negative_weights(negative_score)",
        "BaseLossFunction.forward(positive_score, negative_score, triple_weight)",
        f"MarginBasedLossFunction({_MARGIN})",
        f"LogSigmoidLoss({_MARGIN})",
        f"MarginRankingLoss({_MARGIN}, activation_function='relu')",
        "SampledSoftmaxCrossEntropyLoss(n_entity, loss_scale=1.0)",
    ],
    "metric": [
        "BaseMetric.__call__(prediction_rank)",
        "METRICS_DICT",
        "ReciprocalRank()",
        "ReciprocalRank.__call__(prediction_rank)",
        "HitsAtK(k)",
        "HitsAtK.__call__(prediction_rank)",
        "Evaluation(metric_list, mode='average', worst_rank_infty=False, reduction='none',"
        " return_ranks=False)",
        "Evaluation.ranks_from_scores(pos_score, candidate_score)",
        "Evaluation.ranks_from_indices(ground_truth, candidate_indices)",
        "Evaluation.dict_metrics_from_ranks(batch_rank, triple_mask=None)",
        "Evaluation.stacked_metrics_from_ranks(batch_rank, triple_mask=None)",
    ],
    "bess": [
        "BAD_NEGATIVE_SCORE",
        f"BessKGE({_MODULE})",
        f"BessKGE.forward({_STEP})",
        "BessKGE.score_batch(head, relation, tail, negative)",
        f"EmbeddingMovingBessKGE({_MODULE})",
        f"ScoreMovingBessKGE({_MODULE})",
        "TopKQueryBessKGE(k, candidate_sampler, score_fn, evaluation=None, return_scores=False,"
        " window_size=100)",
        "TopKQueryBessKGE.forward(relation, head=None, tail=None, negative=None,"
        " triple_mask=None, negative_mask=None)",
        "AllScoresBESS(candidate_sampler, score_fn, window_size=1000)",
        "AllScoresBESS.forward(step, relation, head=None, tail=None)",
    ],
    "pipeline": [
        "AllScoresPipeline(batch_sampler, corruption_scheme, score_fn, evaluation=None,"
        " filter_triples=None, candidate_ents=None, return_scores=False, return_topk=False, k=10,"
        " window_size=1000, use_ipu_model=False)",
        "AllScoresPipeline.forward()",
    ],
    "utils": [
        "gather_indices(x, index)",
        "get_entity_filter(triples, filter_triples, filter_mode)",
        "complex_multiplication(v1, v2)",
        "complex_rotation(v, r)",
    ],
}  # fmt: skip

#: What objects of besskge have besides methods; what only serves its own methods is left out.
ATTRIBUTES: Dict[str, str] = {
    "KGDataset": "ht_types",
    "Sharding": "n_entity max_entity_per_shard",
    "RandomShardedNegativeSampler": "n_negative sharding corruption_scheme local_sampling seed"
    " flat_negative_format rng",
    "TypeBasedShardedNegativeSampler": "n_negative sharding corruption_scheme local_sampling seed"
    " flat_negative_format rng triple_types type_offsets type_counts",
    "TripleBasedShardedNegativeSampler": "n_negative sharding corruption_scheme local_sampling"
    " flat_negative_format rng padded_shard_length mask_on_gather return_sort_idx",
    "PlaceholderNegativeSampler": "corruption_scheme local_sampling flat_negative_format seed rng",
    "RigidShardedBatchSampler": "n_shard triples dummy triple_counts triple_offsets"
    " triple_partition_mode negative_sampler shard_bs batches_per_step duplicate_batch"
    " positive_per_partition partition_sample_size hrt_freq_weighting return_triple_idx seed rng",
    "TransE": "negative_sample_sharing sharding entity_embedding relation_embedding scoring_norm"
    " embedding_size",
    "ComplEx": "negative_sample_sharing sharding entity_embedding relation_embedding"
    " embedding_size",
    "LogSigmoidLoss": "negative_adversarial_sampling negative_adversarial_scale loss_scale margin",
    "Evaluation": "metrics mode worst_rank_infty reduction return_ranks",
    "EmbeddingMovingBessKGE": "sharding negative_sampler score_fn loss_fn evaluation return_scores"
    " augment_negative entity_embedding entity_embedding_size n_embedding_parameters",
    "TopKQueryBessKGE": "sharding negative_sampler score_fn evaluation return_scores k window_size"
    " entity_embedding entity_embedding_size",
    "AllScoresBESS": "sharding negative_sampler score_fn window_size entity_embedding n_step"
    " entity_embedding_size",
    "AllScoresPipeline": "batch_sampler candidate_sampler score_fn evaluation return_scores"
    " return_topk k window_size corruption_scheme bess_module",
}

_EXCLUSION = "what is excluded scores -inf, so there is no number to export"
_PHILOX = "random numbers are addressed by seed, epoch and step; there is no stream to re-seed"
_DRAWN = "a batch is drawn at a position, not from a stream"

#: All that is not as in besskge, and why.
DEVIATIONS: Dict[str, str] = {
    "bess.BAD_NEGATIVE_SCORE is missing": _EXCLUSION,
    "batch_sampler.ShardedBatchSampler.sample_triples(idx) is (position, shuffle)": _DRAWN,
    "RandomShardedNegativeSampler.rng is missing": _PHILOX,
    "TypeBasedShardedNegativeSampler.rng is missing": _PHILOX,
    "TripleBasedShardedNegativeSampler.rng is missing": _PHILOX,
    "PlaceholderNegativeSampler.rng is missing": _PHILOX,
    "RigidShardedBatchSampler.rng is missing": _PHILOX,
    "scoring.BoxE: default of relation_initializer": "box sizes are not all 1",
}


def resolve(module: str, name: str) -> Any:
    found = importlib.import_module(f"besskge_core.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return found


def value_of(node: ast.expr) -> Any:
    """A default of the table: a literal, or a list of initialisers by name."""
    if isinstance(node, ast.List):
        return [getattr(embedding, x.id, getattr(torch.nn.init, x.id, None)) for x in node.elts]
    return ast.literal_eval(node)


def same_default(owner: Any, name: str, ours: Any, upstream: Any) -> bool:
    if name.endswith("_initializer"):  # ours is None, and the class says what it stands for
        parts = list(getattr(owner, name + "s"))
        return ours is None and (parts == upstream or parts == upstream * len(parts))
    return bool(ours == upstream)


def signature_deviations(module: str, line: str) -> Iterator[str]:
    name, _, arguments = line.partition("(")
    try:
        owner = resolve(module, name)
    except AttributeError:
        yield f"{module}.{name} is missing"
        return
    if not arguments:
        return
    if name == "RandomShardedBatchSampler":  # passes on what the base class takes
        owner = owner.__base__
    parsed = ast.parse(f"def f({arguments}: pass").body[0].args
    expected = [x.arg for x in parsed.args]
    call = owner.__init__ if inspect.isclass(owner) else owner
    ours = [x for x in inspect.signature(call).parameters.values() if x.name != "self"]
    names, extra = [x.name for x in ours[: len(expected)]], ours[len(expected) :]
    if names != expected or any(x.default is x.empty and x.kind < 2 for x in extra):
        yield f"{module}.{name}({', '.join(expected)}) is ({', '.join(x.name for x in ours)})"
        return
    first = len(expected) - len(parsed.defaults)
    for parameter, default in zip(ours[first:], parsed.defaults):
        if not same_default(owner, parameter.name, parameter.default, value_of(default)):
            yield f"{module}.{name}: default of {parameter.name}"


def one_of_each(graph: KGDataset) -> Dict[str, Any]:
    types = np.array(list(graph.type_offsets.values()))
    sharding = Sharding.create(graph.n_entity, 4, 0, type_offsets=types)
    train = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    test = PartitionedTripleSet.create_from_dataset(graph, "test", sharding, "h_shard")
    lists = np.zeros((len(train.triples), 5), dtype=np.int32)
    random = RandomShardedNegativeSampler(3, sharding, 0, "t", False)
    placeholder = PlaceholderNegativeSampler("t")
    transe = TransE(False, 1, sharding, 4, 6)
    evaluation = Evaluation(["mrr"])
    queries = RigidShardedBatchSampler(test, placeholder, 8, 1, 0)
    objects = [
        graph, sharding, train, random, placeholder, transe, ComplEx(False, sharding, 4, 6),
        TypeBasedShardedNegativeSampler(train.types, 3, sharding, "t", False, 0),
        TripleBasedShardedNegativeSampler(lists, lists, sharding, "ht", 0),
        RigidShardedBatchSampler(train, random, 16, 1, 0), LogSigmoidLoss(1.0, True), evaluation,
        EmbeddingMovingBessKGE(random, transe, return_scores=True),
        TopKQueryBessKGE(3, placeholder, transe), bess.AllScoresBESS(placeholder, transe),
        AllScoresPipeline(queries, "t", transe, evaluation),
    ]  # fmt: skip
    return {type(x).__name__: x for x in objects}


def test_names_arguments_and_defaults_are_upstreams_but_for_the_deviations_listed(graph):
    found = [
        deviation
        for module, lines in UPSTREAM.items()
        for line in lines
        for deviation in signature_deviations(module, line)
    ]
    objects = one_of_each(graph)
    for name, attributes in ATTRIBUTES.items():
        missing = [x for x in attributes.split() if not hasattr(objects[name], x)]
        found += [f"{name}.{x} is missing" for x in missing]
    assert sorted(found) == sorted(DEVIATIONS)


# -- shapes and dtypes ---------------------------------------------------------------------------

#: Micro-batches, shards, positives of a shard pair, negatives, their given number.
M, S, P, N, K = 2, 4, 4, 3, 9
INT, LONG, BOOL, FLOAT = torch.int32, torch.int64, torch.bool, torch.float32


def partition(graph, mode="ht_shardpair", part="train", n_shard=S, seed=0):
    types = np.array(list(graph.type_offsets.values()))
    sharding = Sharding.create(graph.n_entity, n_shard, seed, type_offsets=types)
    return PartitionedTripleSet.create_from_dataset(graph, part, sharding, mode)


def given_lists(triple_set, scheme, n_list=None, **options):
    size = (len(triple_set.triples) if n_list is None else n_list, K)
    lists = [
        np.random.default_rng(i).integers(triple_set.sharding.n_entity, size=size) for i in (1, 2)
    ]
    return TripleBasedShardedNegativeSampler(*lists, triple_set.sharding, scheme, 0, **options)


def forms(batch):
    return {name: (tuple(x.shape), x.dtype) for name, x in batch.items()}


@pytest.mark.parametrize(
    "scheme, flat, n_block", [("t", False, S * P), ("ht", True, 2), ("h", True, 1)]
)
def test_a_batch_of_shard_pairs_has_upstreams_shapes_and_dtypes(graph, scheme, flat, n_block):
    triple_set = partition(graph)
    sampler = RandomShardedNegativeSampler(N, triple_set.sharding, 0, scheme, False, flat)
    batches = RigidShardedBatchSampler(
        triple_set, sampler, S * P, M, 0, hrt_freq_weighting=True, return_triple_idx=True
    )
    of_triples = (M, S, S, P)
    assert forms(batches[0]) == {
        "head": (of_triples, INT), "relation": (of_triples, INT), "tail": (of_triples, INT),
        "negative": ((M, S, S, n_block, N), INT), "triple_mask": (of_triples, BOOL),
        "triple_weight": ((M, S, S * P), FLOAT), "triple_idx": (of_triples, LONG),
    }  # fmt: skip


@pytest.mark.parametrize("mode, scheme", [("h_shard", "t"), ("t_shard", "h")])
@pytest.mark.parametrize("on_gather", [False, True])
def test_a_batch_of_one_side_with_given_lists_has_upstreams_shapes_and_dtypes(
    graph, mode, scheme, on_gather
):
    triple_set = partition(graph, mode)
    sampler = given_lists(triple_set, scheme, mask_on_gather=on_gather, return_sort_idx=True)
    batches = RigidShardedBatchSampler(triple_set, sampler, P, M, 0)
    width = sampler.padded_shard_length
    of_triples, of_negatives = (M, S, P), (M, S, S, P, width)
    mask = of_negatives if on_gather else (M, S, P, S, width)
    assert forms(batches[0]) == {
        "head": (of_triples, INT), "relation": (of_triples, INT), "tail": (of_triples, INT),
        "negative": (of_negatives, INT), "negative_mask": (mask, BOOL),
        "negative_sort_idx": ((M, S, P, K), INT), "triple_mask": (of_triples, BOOL),
    }  # fmt: skip


def test_a_random_batch_has_no_mask_and_weights_only_for_its_buckets(graph):
    triple_set = partition(graph)
    sampler = RandomShardedNegativeSampler(N, triple_set.sharding, 0, "t", False)
    ours = RandomShardedBatchSampler(triple_set, sampler, S * P, M, 0)
    upstreams = RandomShardedBatchSampler(triple_set, sampler, S * P, M, 0, bucket_weighting=False)
    assert sorted(upstreams[0]) == ["head", "negative", "relation", "tail"]
    assert set(ours[0]) - set(upstreams[0]) == {"triple_weight"}


def test_positions_of_a_step_are_a_list_as_upstreams_sampler_is_indexed(graph):
    triple_set = partition(graph)
    sampler = RandomShardedNegativeSampler(N, triple_set.sharding, 0, "t", False)
    batches = RigidShardedBatchSampler(triple_set, sampler, S * P, M, 0)
    assert batches.positive_per_partition == P and batches.partition_sample_size == M * P
    assert batches[list(range(M * P))]["head"].shape == (M, S, S, P)
    (index, *_) = batches.get_dataloader_sampler(shuffle=True)
    (first, *_) = batches.get_dataloader(None, True, 0, False, 16)
    assert forms(batches[index]) == forms(first)


#: Candidates of a positive, for S = 4, 4 positives of a shard pair and 3 negatives of a block.
WIDTHS = {
    (EmbeddingMovingBessKGE, "per triple", "t"): 12,
    (EmbeddingMovingBessKGE, "shared", "t"): 192,
    (EmbeddingMovingBessKGE, "shared", "ht"): 96,
    (EmbeddingMovingBessKGE, "flat", "t"): 12,
    (EmbeddingMovingBessKGE, "flat", "ht"): 12,
    (ScoreMovingBessKGE, "per triple", "t"): 12,
    (ScoreMovingBessKGE, "shared", "t"): 768,
    (ScoreMovingBessKGE, "flat", "t"): 48,
}  # fmt: skip


def step(graph, mover=EmbeddingMovingBessKGE, form="per triple", scheme="t", **options):
    """A module and one micro-batch, as upstream's callers flatten it."""
    triple_set = partition(graph)
    sharding = triple_set.sharding
    sampler = RandomShardedNegativeSampler(N, sharding, 0, scheme, False, form == "flat")
    batches = RigidShardedBatchSampler(triple_set, sampler, S * P, 1, 0)
    score_fn = make_score("transe", sharding, 4, sharing=form != "per triple", dtype=FLOAT)
    model = mover(sampler, score_fn, **options)
    return model, {k: v.flatten(end_dim=1) for k, v in batches[0].items()}


@pytest.mark.parametrize("mover, form, scheme", WIDTHS)
@pytest.mark.parametrize("reduction, of_metrics", [("none", (1, 2, S * S * P)), ("sum", (1, 2))])
def test_outputs_of_a_step_have_upstreams_shapes(graph, mover, form, scheme, reduction, of_metrics):
    evaluation = Evaluation(["mrr", "hits@3"], reduction=reduction, return_ranks=True)
    model, batch = step(
        graph, mover, form, scheme, loss_fn=LogSigmoidLoss(1.0, True), evaluation=evaluation,
        return_scores=True,
    )  # fmt: skip
    n_positive = S * S * P
    assert forms(model(**batch)) == {
        "positive_score": ((n_positive,), FLOAT), "loss": ((), FLOAT),
        "negative_score": ((n_positive, WIDTHS[mover, form, scheme]), FLOAT),
        "ranks": ((n_positive,), FLOAT), "metrics": (of_metrics, FLOAT),
    }  # fmt: skip


def test_answers_to_queries_have_upstreams_shapes_and_dtypes(graph):
    triple_set = partition(graph, "h_shard", "test")
    sampler, score_fn = (
        PlaceholderNegativeSampler("t"),
        make_score("transe", triple_set.sharding, 4),
    )
    batches = RigidShardedBatchSampler(triple_set, sampler, P, 1, 0)
    batch = {k: v.flatten(end_dim=1) for k, v in batches[0].items()}
    top = TopKQueryBessKGE(5, sampler, score_fn, Evaluation(["mrr"], return_ranks=True), True)
    assert forms(top(**batch)) == {
        "topk_global_id": ((S * P, 5), INT), "topk_scores": ((S * P, 5), torch.float64),
        "ranks": ((S * P,), FLOAT), "metrics": ((1, 1, S * P), FLOAT),
    }  # fmt: skip
    module = bess.AllScoresBESS(sampler, score_fn, window_size=6)
    assert module.n_step == 2  # windows of ten rows
    scores = module(torch.zeros(S, 1, dtype=INT), batch["relation"], batch["head"])
    assert scores.shape == (S * P, S * 6)


def test_the_pipeline_returns_what_upstreams_returns(graph):
    triple_set = partition(graph, "h_shard", "test")
    score_fn = make_score("transe", triple_set.sharding, 4, dtype=FLOAT)
    batches = RigidShardedBatchSampler(
        triple_set, PlaceholderNegativeSampler("t"), P, M, 0, return_triple_idx=True
    )
    out = AllScoresPipeline(
        batches, "t", score_fn, Evaluation(["mrr"], return_ranks=True),
        [torch.from_numpy(graph.triples["train"]), graph.triples["test"]],
        torch.arange(30), True, True, 5, 4,
    )()  # fmt: skip
    metrics, average = out.pop("metrics"), out.pop("metrics_avg")
    assert forms(out) == {
        "scores": ((30, 37), FLOAT), "topk_global_id": ((30, 5), LONG),
        "topk_scores": ((30, 5), FLOAT), "triple_idx": ((30,), LONG), "ranks": ((30,), FLOAT),
    }  # fmt: skip
    assert forms(metrics) == {"mrr": ((30,), FLOAT)} and forms(average) == {"mrr": ((), FLOAT)}
    assert out["scores"][:, 30:].isneginf().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("weight", [torch.tensor(1.0), torch.tensor([0.5]), torch.ones(6)])
def test_losses_are_one_float32_number_and_a_sum(dtype, weight):
    positive, negative = torch.zeros(6, dtype=dtype), torch.ones(6, 5, dtype=dtype)
    for loss_fn in (
        LogSigmoidLoss(margin=1.0, negative_adversarial_sampling=True),
        loss.MarginRankingLoss(margin=1.0, negative_adversarial_sampling=False),
        SampledSoftmaxCrossEntropyLoss(n_entity=50),
    ):
        found = loss_fn(positive, negative, weight)
        assert found.shape == () and found.dtype == FLOAT
        assert_close(
            found, weight.expand(6).sum() * loss_fn(positive[:1], negative[:1], torch.ones(1))
        )


def test_metrics_and_ranks_are_float32_and_hits_come_first():
    evaluation = Evaluation(["mrr", "hits@3"])
    ranks = evaluation.ranks_from_scores(torch.zeros(6), torch.ones(6, 5))
    listed = evaluation.ranks_from_indices(torch.zeros(6, dtype=LONG), torch.ones(6, 5, dtype=INT))
    assert ranks.dtype == listed.dtype == FLOAT and ranks.shape == listed.shape == (6,)
    assert list(evaluation.metrics) == ["hits@3", "mrr"]
    mask = torch.arange(6) < 2
    assert forms(evaluation.dict_metrics_from_ranks(ranks, mask)) == {
        "hits@3": ((6,), FLOAT), "mrr": ((6,), FLOAT),
    }  # fmt: skip
    assert evaluation.stacked_metrics_from_ranks(ranks, mask).shape == (1, 2, 6)


def test_tables_have_upstreams_shapes_and_are_float32(graph):
    sharding = partition(graph).sharding
    make = [init_KGE_uniform, init_KGE_normal]
    table = embedding.initialize_entity_embedding(sharding, make, [3, 2])
    assert table.shape == (S, 10, 5) and table.dtype == FLOAT and table.requires_grad
    flat = embedding.initialize_entity_embedding(sharding, torch.zeros(37, 5))
    assert flat.shape == (S, 10, 5)
    assert embedding.initialize_relation_embedding(4, True, make, [3, 2]).shape == (8, 5)
    other = Sharding.create(37, 3, seed=5)
    assert refactor_embedding_sharding(table, sharding, other).shape == (3, 13, 5)
    for name in ("uniform_norm", "xavier_norm", "uniform_rotation", "KGE_uniform", "KGE_normal"):
        filled = getattr(embedding, f"init_{name}")(torch.empty(7, 5))
        assert filled.shape == (7, 5) and filled.dtype == FLOAT


def test_small_functions_have_upstreams_shapes():
    x, index = torch.arange(6.0).view(2, 3), torch.tensor([[2, 0], [1, 1]])
    assert utils.gather_indices(x, index).tolist() == [[2.0, 0.0], [4.0, 4.0]]
    assert utils.gather_indices(x[:1], index).shape == utils.gather_indices(x, index[:1]).shape
    triples = torch.tensor([[0, 0, 1], [2, 0, 1]])
    assert utils.get_entity_filter(triples, triples, "h").tolist() == [
        [0, 0],
        [0, 2],
        [1, 0],
        [1, 2],
    ]
    v = torch.ones(3, 8)
    assert utils.complex_multiplication(v, v).shape == utils.complex_rotation(v, v[:, :4]).shape


# -- as the tutorials write it -------------------------------------------------------------------


def test_the_table_is_unsharded_and_ranked_by_hand_as_in_the_second_tutorial(graph):
    sharding, triples = partition(graph).sharding, graph.triples["test"]
    score_fn = make_score("complex", sharding, 4, sharing=True)
    table = score_fn.entity_embedding.detach()[sharding.entity_to_shard, sharding.entity_to_idx]
    assert torch.equal(table, by_entity(score_fn))
    scores = score_fn.score_tails(
        table[triples[:, 0]], torch.from_numpy(triples[:, 1]), table.unsqueeze(0)
    )
    top = torch.topk(scores, dim=-1, k=10)
    evaluation = Evaluation(["mrr"], worst_rank_infty=True, reduction="sum")
    ranks = evaluation.ranks_from_indices(torch.from_numpy(triples[:, 2]), top.indices.squeeze())
    place = (scores > scores.gather(1, torch.from_numpy(triples[:, 2:]).long())).sum(1) + 1
    expected = place.float().masked_fill(place > 10, torch.inf).reciprocal().sum()
    assert_close(evaluation.dict_metrics_from_ranks(ranks)["mrr"], expected)


def test_half_tables_are_trained_with_augmentation_as_in_the_third_tutorial(graph):
    triple_set = partition(graph)
    sampler = RandomShardedNegativeSampler(
        n_negative=32, sharding=triple_set.sharding, seed=0, corruption_scheme="t",
        local_sampling=False, flat_negative_format=True,
    )  # fmt: skip
    batches = RandomShardedBatchSampler(
        partitioned_triple_set=triple_set, negative_sampler=sampler, shard_bs=16,
        batches_per_step=3, seed=0,
    )  # fmt: skip
    score_fn = TransE(
        negative_sample_sharing=True, scoring_norm=1, sharding=triple_set.sharding,
        n_relation_type=4, embedding_size=10, entity_initializer=[init_KGE_normal],
        relation_initializer=[init_KGE_normal],
    )  # fmt: skip
    model = EmbeddingMovingBessKGE(
        negative_sampler=sampler, score_fn=score_fn,
        loss_fn=SampledSoftmaxCrossEntropyLoss(n_entity=37), augment_negative=True,
    )  # fmt: skip
    model.half()
    optimizer, losses = SGD(model.parameters(), lr=0.1), []
    for batch in [*batches.get_dataloader(options=None)] * 4:
        for i in range(3):
            optimizer.zero_grad()
            found = model(**{k: v[i] for k, v in batch.items()})["loss"]
            found.backward()
            optimizer.step()
            losses.append(found.item())
    assert found.dtype == FLOAT and score_fn.entity_embedding.dtype == torch.float16
    assert np.mean(losses[-6:]) < 0.98 * np.mean(losses[:6])


class OwnTransE(DistanceBasedScoreFunction):
    """Written out as upstream's score functions are."""

    def __init__(self, sharing, norm, sharding, n_relation, size):
        super().__init__(sharing, norm)
        self.sharding = sharding
        self.entity_embedding = embedding.initialize_entity_embedding(
            sharding, [init_KGE_uniform], [size]
        )
        self.relation_embedding = embedding.initialize_relation_embedding(
            n_relation, False, [init_KGE_uniform], [size]
        )

    def score_triple(self, head_emb, relation_id, tail_emb):
        moved = head_emb + torch.index_select(self.relation_embedding, 0, relation_id)
        return -self.reduce_embedding(moved - tail_emb)

    def score_heads(self, head_emb, relation_id, tail_emb):
        moved = tail_emb - torch.index_select(self.relation_embedding, 0, relation_id)
        return -self.broadcasted_distance(moved, head_emb)

    def score_tails(self, head_emb, relation_id, tail_emb):
        moved = head_emb + torch.index_select(self.relation_embedding, 0, relation_id)
        return -self.broadcasted_distance(moved, tail_emb)


@pytest.mark.parametrize("mover", [EmbeddingMovingBessKGE, ScoreMovingBessKGE])
@pytest.mark.parametrize("sharing", [False, True])
def test_a_score_function_written_for_upstream_is_a_score_function(graph, mover, sharing):
    triple_set = partition(graph)
    sampler = RandomShardedNegativeSampler(N, triple_set.sharding, 0, "ht", False)
    batch = RigidShardedBatchSampler(triple_set, sampler, S * P, 1, 0)[0]
    own, ours = (make(sharing, 1, triple_set.sharding, 4, 6) for make in (OwnTransE, TransE))
    ours.load_state_dict(own.state_dict())
    found, expected = (
        mover(sampler, x, return_scores=True)(**{k: v[0] for k, v in batch.items()})
        for x in (own, ours)
    )
    assert_close(found, expected)


# -- what upstream gets wrong, as far as no other file of tests says it --------------------------


def test_a_random_batch_survives_empty_partitions_at_the_end():
    triples = np.array([[0, 0, 1], [0, 1, 1]])
    sharding = Sharding.create(8, 4, seed=0)
    graph = KGDataset(8, 2, {"train": triples}, {"train": np.arange(2)})
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    sampler = RandomShardedNegativeSampler(1, sharding, 0, "t", False)
    batch = RandomShardedBatchSampler(triple_set, sampler, 4, 1, 0, return_triple_idx=True)[0]
    kept = batch["triple_mask"][0].numpy()
    assert (kept == (triple_set.triple_counts > 0)[..., None]).all() and kept.sum() == 1
    assert (batch["triple_weight"].view(kept.shape).numpy() > 0).tolist() == kept.tolist()


def test_frequencies_of_the_largest_graphs_are_not_pooled():
    # In int32, entity 3 of relation 2 would have the key of entity 1 of relation 0.
    n_entity, triples = 2**31 - 1, np.array([[3, 2, 5], [1, 0, 7], [3, 2, 6]])
    stub = SimpleNamespace(entity_ids=lambda: triples, sharding=SimpleNamespace(n_entity=n_entity))
    weight = frequency_weight(stub, 0.0)
    expected = 1 / np.sqrt([3.0, 2.0, 3.0])  # n(h, r) + n(r, t)
    np.testing.assert_allclose(weight, expected / expected.mean(), rtol=1e-12)


def test_frequency_weights_are_the_same_for_any_size_of_batch(graph):
    triple_set = partition(graph)
    sampler = RandomShardedNegativeSampler(N, triple_set.sharding, 0, "t", False)
    of_triple: Dict[int, float] = {}
    for shard_bs in (S * P, S * P - 3, 7 * S):
        batch = RigidShardedBatchSampler(
            triple_set, sampler, shard_bs, 1, 0, hrt_freq_weighting=True, return_triple_idx=True
        )[0]
        for i, weight in zip(
            batch["triple_idx"][batch["triple_mask"]].tolist(),
            batch["triple_weight"][batch["triple_mask"].flatten(2)],
        ):
            assert of_triple.setdefault(i, float(weight)) == float(weight)


def test_the_angles_of_rotations_are_as_exact_as_their_dtype():
    generator = torch.Generator().manual_seed(0)
    v, angle = torch.randn(9, 12, generator=generator), 1e3 * torch.randn(9, 6, generator=generator)
    turned = torch.complex(*utils.complex_rotation(v, angle).double().chunk(2, -1))
    expected = torch.complex(*v.double().chunk(2, -1)) * torch.exp(1j * angle.double())
    assert_close(turned, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheme", ["h", "ht"])
def test_conve_is_not_asked_for_heads(graph, scheme):
    sharding = partition(graph).sharding
    sampler = RandomShardedNegativeSampler(N, sharding, 0, scheme, False)
    with pytest.raises(ConfigError, match="ConvE has no query for heads"):
        EmbeddingMovingBessKGE(sampler, make_score("conve", sharding, 4), return_scores=True)


def test_conve_runs_its_network_once_a_shard_for_positives_and_negatives(graph):
    triple_set, calls = partition(graph), []
    sampler = RandomShardedNegativeSampler(N, triple_set.sharding, 0, "t", False)
    score_fn = make_score("conve", triple_set.sharding, 4, dtype=FLOAT).train()
    (convolution,) = (x for x in score_fn.modules() if isinstance(x, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda *_: calls.append(1))
    batch = RigidShardedBatchSampler(triple_set, sampler, S * P, 1, 0)[0]
    model = EmbeddingMovingBessKGE(sampler, score_fn, return_scores=True)
    model(**{k: v[0] for k, v in batch.items()})
    assert len(calls) == S


@pytest.mark.parametrize(
    "name", ["transe", "rotate", "pairre", "triplere", "boxe", "interht", "trans"]
)
@pytest.mark.parametrize("sharing", [False, True])
def test_distances_take_strided_tensors(graph, name, sharing):
    score_fn = make_score(name, partition(graph).sharding, 4, sharing=sharing)
    rows = score_fn.entity_embedding.detach()[:3, :5]
    relation = torch.tensor([0, 1, 2])
    strided = rows.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    found = score_fn.score_tails(strided[:, 0], relation, strided)
    assert_close(found, score_fn.score_tails(rows[:, 0].contiguous(), relation, rows.contiguous()))


def test_answers_of_queries_are_no_dummies(graph):
    sharding, triples = partition(graph).sharding, graph.triples["test"]
    triple_set = PartitionedTripleSet.create_from_queries(
        graph, sharding, triples[:, :2], "hr", ground_truth=triples[:, 2]
    )
    assert triple_set.dummy == partition(graph, part="test").dummy == "none"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = RigidShardedBatchSampler(
            triple_set, PlaceholderNegativeSampler("t"), P, 1, 0, hrt_freq_weighting=True
        )
    assert "tail" in batches[0]


@pytest.mark.parametrize("mode, scheme", [("h_shard", "t"), ("t_shard", "h")])
def test_the_pipeline_filters_without_places_of_triples(graph, mode, scheme):
    triple_set = partition(graph, mode, "test")
    score_fn = make_score("complex", triple_set.sharding, 4)
    train = graph.triples["train"]
    known, found = {tuple(x) for x in train.tolist()}, []
    for options in (dict(), dict(return_triple_idx=True)):
        batches = RigidShardedBatchSampler(
            triple_set, PlaceholderNegativeSampler(scheme), P, 1, 0, **options
        )
        pipeline = AllScoresPipeline(
            batches, scheme, score_fn, filter_triples=[train], return_topk=True
        )
        found.append(pipeline())
    without, with_places = found
    assert torch.equal(without["topk_global_id"], with_places["topk_global_id"])
    for place, answers in zip(with_places["triple_idx"], without["topk_global_id"].tolist()):
        h, r, t = triple_set.entity_ids()[place].tolist()
        made = {(h, r, x) if scheme == "t" else (x, r, t) for x in answers}
        assert not made & known - {(h, r, t)}


def test_a_module_made_before_trains_the_table_of_another_sharding(graph):
    model, _ = step(graph, loss_fn=LogSigmoidLoss(1.0, False))
    triple_set = partition(graph, seed=1)
    model.score_fn.update_sharding(triple_set.sharding)
    batch = RigidShardedBatchSampler(triple_set, model.negative_sampler, S * P, 1, 0)[0]
    model(**{k: v[0] for k, v in batch.items()})["loss"].backward()
    assert model.entity_embedding is model.score_fn.entity_embedding
    assert model.score_fn.entity_embedding.grad.to_dense().any()


def test_the_filter_of_entities_is_that_of_comparing_all_pairs_without_their_memory():
    rng = np.random.default_rng(0)
    shape, limits = (20_000, 2_000), (300, 5, 300)
    known, asked = (
        torch.from_numpy(np.stack([rng.integers(x, size=n) for x in limits], 1)) for n in shape
    )
    tracemalloc.start()
    found = utils.get_entity_filter(asked, known, "t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 2_000 / 2  # bytes: half of one of upstream's three matrices
    some = asked[:50]
    pairs = (some[:, None, :2] == known[None, :, :2]).all(-1).nonzero()
    expected = {(i, int(known[j, 2])) for i, j in pairs.tolist()}
    assert {tuple(x) for x in found.tolist() if x[0] < 50} == expected


# -- what differs on purpose, as far as no other file of tests says it ---------------------------


def test_the_loss_of_a_step_is_the_mean_over_shards(graph):
    loss_fn = LogSigmoidLoss(1.0, True)
    model, batch = step(graph, loss_fn=loss_fn, return_scores=True)
    del batch["triple_mask"]  # as upstream's callers pop it
    out = model(**batch)
    positive, negative = out["positive_score"].view(S, -1), out["negative_score"].view(S, S * P, -1)
    of_shards = [loss_fn(p, n, torch.tensor([1.0])) for p, n in zip(positive, negative)]
    assert_close(out["loss"], torch.stack(of_shards).mean())


def test_given_lists_and_flat_ones_need_no_switch_of_negative_sharing(graph):
    triple_set = partition(graph)
    flat = RandomShardedNegativeSampler(N, triple_set.sharding, 0, "t", False, True)
    for sampler in (given_lists(triple_set, "t"), given_lists(triple_set, "t", 1), flat):
        batch = RigidShardedBatchSampler(triple_set, sampler, S * P, 1, 0)[0]
        found = []
        for sharing in (False, True):
            score_fn = make_score("transe", triple_set.sharding, 4, sharing=sharing)
            model = ScoreMovingBessKGE(sampler, score_fn, return_scores=True)
            found.append(model(**{k: v[0] for k, v in batch.items()}))
        assert_close(*found)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_the_gradient_of_the_entity_table_is_sparse_and_some_optimisers_of_torch_take_it(graph):
    model, batch = step(graph, loss_fn=LogSigmoidLoss(1.0, False))
    model(**batch)["loss"].backward()
    assert model.entity_embedding.grad.is_sparse
    for name in ("SGD", "Adagrad"):
        getattr(torch.optim, name)(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        torch.optim.AdamW(model.parameters()).step()


def test_initialisers_are_called_with_a_row_for_each_entity_and_its_part(graph):
    shapes = []

    def note(table):
        shapes.append(tuple(table.shape))
        return table.zero_()

    ComplEx(False, partition(graph).sharding, 4, 6, [note], [note])
    embedding.initialize_entity_embedding(partition(graph).sharding, [note, note], [3, 2])
    assert shapes == [(37, 12), (4, 12), (37, 3), (37, 2)]


def test_sharding_has_the_dtypes_that_upstream_documents(graph):
    sharding = partition(graph).sharding
    arrays = {name: x for name, x in vars(sharding).items() if isinstance(x, np.ndarray)}
    assert len(arrays) == 6 and {x.dtype for x in arrays.values()} == {np.dtype(np.int32)}


def test_the_ipu_model_is_refused(graph):
    triple_set = partition(graph, "h_shard", "test")
    batches = RigidShardedBatchSampler(triple_set, PlaceholderNegativeSampler("t"), P, 1, 0)
    score_fn = make_score("complex", triple_set.sharding, 4)
    with pytest.raises(ConfigError, match="use_ipu_model is not supported"):
        AllScoresPipeline(batches, "t", score_fn, return_scores=True, use_ipu_model=True)


def test_a_negative_sampler_of_ones_own_defines_what_is_drawn_at_a_position(graph):
    class Zeros(negative_sampler.ShardedNegativeSampler):
        def draw(self, sample_idx, position):
            shape = (*sample_idx.shape[:2], S, self.n_block(sample_idx), 2)
            return {"negative_entities": np.zeros(shape, dtype=np.int32)}

    triple_set = partition(graph)
    batch = RigidShardedBatchSampler(triple_set, Zeros("t", seed=0), S * P, 1, 0)[0]
    assert batch["negative"].shape == (1, S, S, S * P, 2)


# -- traps of the old and of the new ---------------------------------------------------------------


def test_no_false_positive_is_trained_on_even_without_the_mask():
    triples = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 1]])
    graph = KGDataset(8, 2, {"train": triples}, {"train": np.arange(3)})
    sharding = Sharding.create(8, 4, seed=0)
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    sampler = RandomShardedNegativeSampler(1, sharding, 0, "t", False)
    batch = {k: v[0] for k, v in RigidShardedBatchSampler(triple_set, sampler, 4, 1, 0)[0].items()}
    del batch["triple_mask"]
    shard = np.arange(4)[:, None, None]
    head, tail = (sharding.entity_of(shard, batch[x].numpy()) for x in ("head", "tail"))
    found = np.stack([head, batch["relation"].numpy(), tail.swapaxes(0, 1)], -1).reshape(-1, 3)
    weight = batch.get("triple_weight", torch.ones(4, 4)).flatten().tolist()
    trained = {tuple(x) for x, w in zip(found.tolist(), weight) if w > 0}
    assert trained <= {tuple(x) for x in triples.tolist()}


def test_a_module_made_before_answers_with_the_ids_of_another_sharding(graph):
    sampler, found = PlaceholderNegativeSampler("t"), []
    score_fn = make_score("complex", partition(graph).sharding, 4)
    model = TopKQueryBessKGE(5, sampler, score_fn)
    for seed in (0, 1):
        triple_set = partition(graph, "h_shard", "test", seed=seed)
        score_fn.update_sharding(triple_set.sharding)
        size = int(triple_set.triple_counts.max())
        batches = RigidShardedBatchSampler(triple_set, sampler, size, 1, 0, return_triple_idx=True)
        batch = {k: v[0] for k, v in batches[range(size)].items()}
        kept = batch["triple_mask"].flatten()
        place = triple_set.triple_sort_idx[batch.pop("triple_idx").flatten()[kept].numpy()]
        found.append(model(**batch)["topk_global_id"][kept][np.argsort(place)])
    assert torch.equal(*found)


def test_a_loss_written_for_upstream_is_a_loss():
    class Difference(BaseLossFunction):
        def __init__(self):
            super().__init__()
            self.negative_adversarial_sampling = False
            self.negative_adversarial_scale = torch.tensor(0.0)
            self.loss_scale = torch.tensor(1.0)

        def forward(self, positive_score, negative_score, triple_weight):
            weight = self.get_negative_weights(negative_score)
            difference = (weight * negative_score).sum(-1) - positive_score
            return self.loss_scale * (triple_weight * difference).sum()

    assert Difference()(torch.zeros(3), torch.ones(3, 2), torch.tensor([1.0])) == 3.0


def test_hits_come_in_the_order_given():
    names = list(Evaluation(["mrr", "hits@1", "hits@5", "hits@10"]).metrics)
    assert names == ["hits@1", "hits@5", "hits@10", "mrr"]


def test_hits_are_found_in_the_dictionary_of_metrics():
    assert metric.METRICS_DICT["hits@k"](k=3)(torch.tensor([3.0])) == 1.0


def test_a_random_batch_is_had_for_a_list_of_one_step(graph):
    triple_set = partition(graph)
    sampler = RandomShardedNegativeSampler(N, triple_set.sharding, 0, "t", False)
    batches = RandomShardedBatchSampler(triple_set, sampler, S * P, M, 0)
    assert batches[[0]]["head"].shape == (M, S, S, P)


# -- the page that tells all this ------------------------------------------------------------------

PAGE = ROOT / "docs" / "migrate-from-besskge.md"


def rows() -> List[str]:
    """Rows of the page's tables, without their heads."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    bodies = [
        line for line, after in itertools.zip_longest(lines, lines[1:], fillvalue="")
        if line.startswith("|") and not after.startswith("|--")
    ]  # fmt: skip
    return [line for line in bodies if not line.startswith("|--")]


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"tests/(test_\w+\.py)::(\w+)", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 50
    for file, name in sorted(set(named)):
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}, (file, name)


def test_every_row_of_the_page_names_a_test():
    assert [row for row in rows() if "tests/test_" not in row] == []


def test_the_page_goes_through_all_wrong_results_of_upstream():
    numbers = [int(x) for x in re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.M)]
    assert numbers == list(range(1, 17))


def test_the_page_tells_every_deviation_on_purpose():
    text = PAGE.read_text(encoding="utf-8")
    for deviation in DEVIATIONS:
        name = re.search(r"(\w+)(\(| is |: default of (\w+))", deviation)
        assert name is not None
        assert f"`{name[3] or name[1]}" in text, deviation
