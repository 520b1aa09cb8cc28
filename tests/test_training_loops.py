"""Training loops: what `train` promises, whatever the loop."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from support import by_entity
from torch.testing import assert_close

from besskge_core.dataset import KGDataset
from besskge_core.errors import (
    ConfigError,
    NonFiniteLossError,
    NoTrainingBatchError,
    SubBatchingNotSupportedError,
)
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.model import KGEModel
from besskge_core.optim import LazyAdam
from besskge_core.philox import Position
from besskge_core.training import (
    EarlyStopper,
    LCWATrainingLoop,
    SLCWATrainingLoop,
    SymmetricLCWATrainingLoop,
    TrainingCallback,
)
from besskge_core.triples_factory import TriplesFactory

LOOPS = (SymmetricLCWATrainingLoop, LCWATrainingLoop, SLCWATrainingLoop)
ALL_ENTITIES = LOOPS[:2]


@pytest.fixture(scope="module")
def triples():
    """A graph with a rule: the tail is the head plus twice the relation plus one, modulo 30."""
    h, r = np.divmod(np.arange(120), 4)
    rows = np.stack([h, r, (h + 2 * r + 1) % 30], axis=1)
    return TriplesFactory(torch.from_numpy(rows), 30, 4)


def make_model(triples, n_shard=1, **options):
    options = {
        "loss": "crossentropy", "entity_representations_kwargs": dict(embedding_dim=8),
        "interaction": "distmult", "random_seed": 0, **options,
    }  # fmt: skip
    return KGEModel(triples_factory=triples, n_shard=n_shard, **options)


def trained(loop_class, triples, n_shard=1, model=None, loop=None, **options):
    torch.manual_seed(0)
    model = make_model(triples, n_shard, **(model or {}))
    loop = loop_class(model, triples, **{"optimizer_kwargs": dict(lr=0.05), **(loop or {})})
    losses = loop.train(**{"num_epochs": 3, "batch_size": 32, "use_tqdm": False, **options})
    return loop, losses


def weights(loop):
    return weights_of(loop.model)


def weights_of(model):
    score_fn = model.score_fn
    return torch.cat(
        [by_entity(score_fn).flatten(), score_fn.relation_embedding.detach().flatten()]
    )


def ranked(loop, triples):
    known = KnownTriples([triples.triples], triples.num_entities, triples.num_relations)
    return rank_triples(loop.model.score_fn, triples.triples, known).metrics()["mrr"]


@pytest.mark.parametrize("loop_class", LOOPS)
def test_training_learns_the_graph(loop_class, triples):
    more = (
        {} if loop_class in ALL_ENTITIES else {"negative_sampler_kwargs": {"num_negs_per_pos": 8}}
    )
    loop, losses = trained(
        loop_class, triples, num_epochs=40, model=dict(interaction="complex"), loop=more
    )
    assert len(losses) == 40 and losses[-1] < 0.5 * losses[0]
    assert ranked(loop, triples) > 0.6


@pytest.mark.parametrize("loop_class", LOOPS)
def test_one_seed_gives_one_training(loop_class, triples):
    first, again = (trained(loop_class, triples) for _ in range(2))
    assert first[1] == again[1]
    assert torch.equal(weights(first[0]), weights(again[0]))


@pytest.mark.parametrize("loop_class", ALL_ENTITIES)
@pytest.mark.parametrize("loss", ["crossentropy", "bcewithlogits", "nssa", "marginranking"])
def test_one_batch_of_all_triples_is_the_same_on_any_number_of_shards(loop_class, triples, loss):
    found = [
        trained(loop_class, triples, n, model=dict(loss=loss), batch_size=1000, num_epochs=4)
        for n in (1, 2, 4, 7)
    ]
    for loop, losses in found[1:]:
        assert_close(torch.tensor(losses), torch.tensor(found[0][1]), rtol=1e-4, atol=1e-5)
        assert_close(weights(loop), weights(found[0][0]), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("loop_class", ALL_ENTITIES)
@pytest.mark.parametrize("sizes", [(1, None), (5, None), (None, 7), (3, 4), (1000, 1000)])
def test_parts_of_a_batch_do_not_change_the_numbers(loop_class, triples, sizes):
    model = dict(
        loss="crossentropy", loss_kwargs=dict(reduction="sum"),
        relation_representations_kwargs=dict(regularizer="lp"),
    )  # fmt: skip
    options = dict(model=model, loop=dict(optimizer_kwargs=dict(lr=1e-3)), num_epochs=2)
    whole, losses = trained(loop_class, triples, **options)
    sub_batch_size, slice_size = sizes
    parts, found = trained(
        loop_class, triples, sub_batch_size=sub_batch_size, slice_size=slice_size, **options
    )
    assert_close(found, losses, rtol=1e-5, atol=0)
    assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loop_class", ALL_ENTITIES)
def test_looking_for_a_tile_changes_no_numbers_and_no_random_state(
    loop_class, triples, monkeypatch
):
    model = dict(entity_representations_kwargs=dict(embedding_dim=8, dropout=0.2))
    without, losses = trained(
        loop_class, triples, model=model, loop=dict(automatic_memory_optimization=False)
    )
    with_it, found = trained(loop_class, triples, model=model)
    assert found == losses and torch.equal(weights(with_it), weights(without))


def test_the_largest_tile_that_fits_is_found(triples, monkeypatch):
    limit, tried = 500, []
    from besskge_core.bess.against_all import AllEntitiesBessKGE

    score = AllEntitiesBessKGE._against_all

    def short_of_memory(self, *arguments):
        tried.append(self.max_scores)
        if self.max_scores > limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return score(self, *arguments)

    monkeypatch.setattr(AllEntitiesBessKGE, "_against_all", short_of_memory)
    loop, losses = trained(SymmetricLCWATrainingLoop, triples, num_epochs=1)
    assert tried[0] == 32 * 30 and tried[-1] == 480
    monkeypatch.setattr(AllEntitiesBessKGE, "_against_all", score)
    _, expected = trained(SymmetricLCWATrainingLoop, triples, num_epochs=1)
    assert_close(losses, expected)


def test_probing_only_trains_nothing(triples):
    loop, losses = trained(SymmetricLCWATrainingLoop, triples, only_size_probing=True)
    fresh = make_model(triples)
    assert losses == [] and torch.equal(weights(loop), weights_of(fresh))


# -- inverse relations -------------------------------------------------------------------------------


@pytest.mark.parametrize("loop_class", LOOPS)
def test_inverse_relations_are_trained_and_help_to_predict_heads(loop_class, triples):
    graph = TriplesFactory(
        triples.mapped_triples, triples.num_entities, triples.num_relations, True
    )
    more = (
        {} if loop_class in ALL_ENTITIES else {"negative_sampler_kwargs": {"num_negs_per_pos": 8}}
    )
    loop, _ = trained(loop_class, graph, num_epochs=60, loop=more)
    score_fn = loop.model.score_fn
    assert score_fn.inverse_relations and len(score_fn.relation_embedding) == 8
    untrained = make_model(graph)
    changed = score_fn.relation_embedding != untrained.score_fn.relation_embedding
    assert changed.all()
    known = KnownTriples([graph.triples], 30, 4)
    heads = rank_triples(score_fn, graph.triples, known).metrics(side="head")["mrr"]
    before = rank_triples(untrained.score_fn, graph.triples, known).metrics(side="head")["mrr"]
    assert heads > before + 0.3


def test_heads_are_asked_for_by_the_inverse_relation(triples):
    graph = TriplesFactory(triples.mapped_triples[:16], 30, 4, True)
    model = make_model(graph)
    loop = SymmetricLCWATrainingLoop(model, graph)
    module = loop.make_module(graph, 0.0)
    batch = loop.make_sampler(graph, module, 16).batch(Position(0, 0), shuffle=False)
    columns = {k: batch[k][0] for k in ("head", "relation", "tail")}
    h, r, t = graph.mapped_triples.T
    tails = model.score_t(torch.stack([h, r], 1))
    heads = model.score_t(torch.stack([t, r + 4], 1))
    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(tails, t) + cross_entropy(heads, h)
    assert_close(module(**columns)["loss"], expected)
    assert_close(model.score_h(torch.stack([r, t], 1)), heads)


def test_the_objective_has_the_regularizer_of_each_direction(triples):
    graph = TriplesFactory(triples.mapped_triples[:16], 30, 4, True)
    n3 = dict(regularizer="lp", regularizer_kwargs=dict(weight=0.1, p=3.0))
    model = make_model(graph, interaction="complex", **n3)
    loop = SymmetricLCWATrainingLoop(model, graph)
    module = loop.make_module(graph, 0.0)
    batch = loop.make_sampler(graph, module, 16).batch(Position(0, 0), shuffle=False)
    columns = {k: batch[k][0] for k in ("head", "relation", "tail")}
    with_it = module(**columns)["loss"]
    module.regularizer = None
    h, r, t = graph.mapped_triples.T
    rows = by_entity(model.score_fn)
    table = torch.view_as_complex(rows.view(30, 8, 2))
    relations = torch.view_as_complex(model.score_fn.relation_embedding.detach().view(8, 8, 2))
    parts = [table[h], relations[r], table[t], table[t], relations[r + 4], table[h]]
    n3_of_batch = sum((x.abs() ** 3).sum(-1).mean() for x in parts)
    assert_close(with_it - module(**columns)["loss"], 0.1 * n3_of_batch, rtol=1e-4, atol=1e-5)


def test_relations_are_predicted_as_an_option(triples):
    _, without = trained(SymmetricLCWATrainingLoop, triples)
    loop, losses = trained(SymmetricLCWATrainingLoop, triples, loop=dict(relation_weight=0.5))
    assert losses[0] > without[0]
    h, r, t = triples.mapped_triples.T
    scores = loop.model.score_r(torch.stack([h, t], 1))
    assert scores.shape == (120, 4)


# -- beginning, going on, stopping ---------------------------------------------------------------------


@pytest.mark.parametrize("loop_class", LOOPS)
def test_training_goes_on_or_begins_anew(loop_class, triples):
    at_once, losses = trained(loop_class, triples, num_epochs=4)
    loop, first = trained(loop_class, triples, num_epochs=2)
    both = loop.train(num_epochs=4, batch_size=32, continue_training=True, use_tqdm=False)
    assert both[:2] == first and both == losses
    assert torch.equal(weights(loop), weights(at_once))
    anew = loop.train(num_epochs=1, batch_size=32, use_tqdm=False)
    assert len(anew) == 1 and anew[0] > both[-1]


def test_weights_that_a_model_comes_with_stay(triples):
    source, _ = trained(SymmetricLCWATrainingLoop, triples, num_epochs=30)
    model = make_model(triples)
    model.load_state_dict(source.model.state_dict())
    loop = SymmetricLCWATrainingLoop(model, triples, optimizer_kwargs=dict(lr=0.05))
    first = loop.train(num_epochs=1, batch_size=32, use_tqdm=False)[0]
    assert first < 0.6 * source.losses_per_epochs[0]


def test_what_has_not_begun_cannot_go_on(triples):
    loop = SymmetricLCWATrainingLoop(make_model(triples), triples)
    with pytest.raises(ConfigError, match="cannot continue_training that has not begun"):
        loop.train(continue_training=True)


class Recorder(TrainingCallback):
    def __init__(self):
        self.rates, self.calls = [], []

    def pre_step(self, loop):
        self.calls.append("pre_step")

    def post_batch(self, loop, epoch, loss):
        self.calls.append(("post_batch", epoch))
        self.rates.append(loop.optimizer.param_groups[0]["lr"])

    def post_epoch(self, loop, epoch, loss):
        self.calls.append(("post_epoch", epoch))

    def post_train(self, loop, losses):
        self.calls.append("post_train")


def test_callbacks_are_called_in_order(triples):
    recorder = Recorder()
    trained(SymmetricLCWATrainingLoop, triples, num_epochs=1, batch_size=60, callbacks=recorder)
    batch = ["pre_step", ("post_batch", 1)]
    assert recorder.calls == [*batch, *batch, ("post_epoch", 1), "post_train"]


@pytest.mark.parametrize(
    "name, options, rates",
    [
        ("exponential", dict(gamma=0.5), [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]),
        ("StepLR", dict(step_size=1, gamma=0.1), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        ("linear", dict(start_factor=0.5, total_iters=2), [0.05, 0.05, 0.075, 0.075, 0.1, 0.1]),
        ("constant", dict(factor=0.5, total_iters=1), [0.05, 0.05, 0.1, 0.1, 0.1, 0.1]),
        ("lambda", dict(lr_lambda=lambda epoch: 1 / (epoch + 1)), [0.1, 0.1, 0.05, 0.05, 0.1 / 3, 0.1 / 3]),
        ("reduce_lr_on_plateau", dict(patience=0, threshold=1e9), [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3]),
    ],
)  # fmt: skip
def test_the_learning_rate_follows_its_course_by_epoch(triples, name, options, rates):
    recorder = Recorder()
    loop = dict(
        optimizer_kwargs=dict(lr=0.1), lr_scheduler=name.replace("_", ""),
        lr_scheduler_kwargs=options,
    )  # fmt: skip
    trained(SymmetricLCWATrainingLoop, triples, loop=loop, batch_size=60, callbacks=[recorder])
    assert_close(recorder.rates, rates)


@pytest.mark.parametrize(
    "name, options", [("onecycle", dict(max_lr=0.1)), ("cyclic", dict(base_lr=0.01, max_lr=0.1))]
)
@pytest.mark.parametrize("optimizer", [None, "adamw"])
def test_some_courses_go_by_batch(triples, name, options, optimizer):
    recorder = Recorder()
    loop = dict(optimizer=optimizer, lr_scheduler=name, lr_scheduler_kwargs=options)
    if name == "cyclic":
        loop["lr_scheduler_kwargs"] = {**options, "cycle_momentum": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(SymmetricLCWATrainingLoop, triples, loop=loop, callbacks=[recorder])
    assert len(set(recorder.rates)) == len(recorder.rates) == 12


def test_clipping_bounds_the_gradients(triples):
    norms = []

    class Look(TrainingCallback):
        def pre_step(self, loop):
            grads = [p.grad.to_dense().flatten() for p in loop.model.parameters()]
            norms.append(torch.cat(grads))

    for loop_class in LOOPS:
        trained(
            loop_class, triples, num_epochs=1, gradient_clipping_max_norm=1e-3,
            callbacks=[_After(Look())],
        )  # fmt: skip
    assert norms and all(x.norm() <= 1.01e-3 for x in norms)
    norms.clear()
    trained(
        SymmetricLCWATrainingLoop, triples, num_epochs=1, gradient_clipping_max_abs_value=1e-4,
        callbacks=[_After(Look())],
    )  # fmt: skip
    assert norms and all(0 < x.abs().max() <= 1e-4 for x in norms)


class _After(TrainingCallback):
    """Looks at gradients when all other callbacks are done with them."""

    def __init__(self, look):
        self.look = look

    def post_batch(self, loop, epoch, loss):
        self.look.pre_step(loop)


def test_early_stopping_keeps_the_best_weights(triples):
    stopper = EarlyStopper(
        triples, triples, frequency=1, patience=3, metric="mrr", relative_delta=0
    )
    model = make_model(triples)
    loop = SymmetricLCWATrainingLoop(model, triples, optimizer_kwargs=dict(lr=0.05))
    losses = loop.train(num_epochs=200, batch_size=32, stopper=stopper, use_tqdm=False)
    assert len(losses) < 200 and stopper.best_epoch == len(losses) - 3
    assert ranked(loop, triples) == pytest.approx(max(stopper.results))


def test_the_best_weights_are_kept_though_epochs_run_out_first(triples):
    stopper = EarlyStopper(triples, triples, frequency=1, patience=100, metric="mrr")
    loop = SymmetricLCWATrainingLoop(
        make_model(triples), triples, optimizer="adam", optimizer_kwargs=dict(lr=1.0)
    )
    loop.train(num_epochs=8, batch_size=8, stopper=stopper, use_tqdm=False)
    assert stopper.results[-1] < max(stopper.results)
    assert ranked(loop, triples) == pytest.approx(stopper.best)


# -- checkpoints -----------------------------------------------------------------------------------------


OPTIMIZERS = ("adam", "adamw", "adagrad", "rmsprop", "asgd", "nadam", "adamax", torch.optim.SGD)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("loop_class", [SymmetricLCWATrainingLoop, SLCWATrainingLoop])
def test_a_training_resumes_from_its_checkpoint(loop_class, triples, tmp_path, optimizer):
    options = dict(
        loop=dict(
            optimizer=optimizer, lr_scheduler="exponential", lr_scheduler_kwargs=dict(gamma=0.5)
        )
    )
    whole, losses = trained(loop_class, triples, num_epochs=4, **options)
    stored = dict(checkpoint_directory=tmp_path, checkpoint_name="run", checkpoint_frequency=0)
    _, first = trained(loop_class, triples, num_epochs=2, **stored, **options)
    resumed, found = trained(loop_class, triples, num_epochs=4, **stored, **options)
    assert first == losses[:2] and found == losses
    assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert trained(loop_class, triples, num_epochs=4, **stored, **options)[1] == losses


def test_a_checkpoint_holds_the_stopper_and_the_best_weights(triples, tmp_path):
    def run(n_epoch, **stored):
        stopper = EarlyStopper(triples, triples, frequency=1, patience=100, metric="mrr")
        loop = SymmetricLCWATrainingLoop(
            make_model(triples), triples, optimizer="adam", optimizer_kwargs=dict(lr=1.0)
        )
        loop.train(num_epochs=n_epoch, batch_size=8, stopper=stopper, use_tqdm=False, **stored)
        return loop, stopper

    stored = dict(checkpoint_directory=tmp_path, checkpoint_name="run", checkpoint_frequency=0)
    whole, expected = run(8)
    run(5, **stored)
    resumed, found = run(8, **stored)
    assert found.results == expected.results and found.best_epoch == expected.best_epoch
    assert torch.equal(weights(resumed), weights(whole))


def test_a_failing_training_leaves_its_last_epoch(triples, tmp_path):
    class Fail(TrainingCallback):
        def post_batch(self, loop, epoch, loss):
            if epoch == 3:
                raise KeyboardInterrupt("in the middle of an epoch")

    stored = dict(checkpoint_directory=tmp_path, checkpoint_name="run")
    with pytest.raises(KeyboardInterrupt, match="in the middle"):
        trained(
            SymmetricLCWATrainingLoop, triples, callbacks=Fail, checkpoint_on_failure=True, **stored
        )
    _, losses = trained(SymmetricLCWATrainingLoop, triples)
    assert trained(SymmetricLCWATrainingLoop, triples, **stored)[1] == losses


def test_a_training_that_stopped_early_does_not_go_on_when_resumed(triples, tmp_path):
    def run():
        stopper = EarlyStopper(triples, triples, 1, patience=2, metric="mrr", relative_delta=0.9)
        return trained(
            SymmetricLCWATrainingLoop, triples, num_epochs=50, stopper=stopper,
            checkpoint_directory=tmp_path, checkpoint_name="run",
        )  # fmt: skip

    (first, losses), (again, found) = run(), run()
    assert len(losses) < 50 and found == losses
    assert torch.equal(weights(first), weights(again))


# -- batches ---------------------------------------------------------------------------------------------


def test_the_last_batch_may_be_left_out(triples):
    recorder = Recorder()
    trained(
        SymmetricLCWATrainingLoop, triples, num_epochs=1, batch_size=50, drop_last=True,
        callbacks=recorder,
    )  # fmt: skip
    assert len(recorder.rates) == 2
    with pytest.raises(NoTrainingBatchError, match="drop_last leaves no batch: 120 triples"):
        trained(SymmetricLCWATrainingLoop, triples, batch_size=121, drop_last=True)


def test_the_loss_of_an_epoch_is_the_mean_over_its_triples(triples):
    """A small last batch does not weigh too much."""
    still = dict(optimizer="sgd", optimizer_kwargs=dict(lr=0.0))
    for loop_class in ALL_ENTITIES:
        losses = [
            trained(loop_class, triples, loop=still, num_epochs=1, batch_size=size)[1][0]
            for size in (1000, 50, 7)
        ]
        assert_close(losses, [losses[0]] * 3, rtol=1e-5, atol=0)


def test_optimizers_by_name_class_and_instance(triples):
    model = make_model(triples)
    made = torch.optim.Adam(model.parameters(), lr=0.05)
    for choice, kwargs in (("adam", dict(lr=0.05, betas=(0.9, 0.99))), (LazyAdam, dict(lr=0.05)),
                           ("AdamW", dict(lr=0.05)), (torch.optim.SGD, dict(lr=0.05)),
                           (None, None)):  # fmt: skip
        loop = SymmetricLCWATrainingLoop(model, triples, choice, kwargs)
        assert isinstance(loop.optimizer, torch.optim.Optimizer)
    loop = SymmetricLCWATrainingLoop(model, triples, made)
    assert loop.optimizer is made
    first = loop.train(num_epochs=3, batch_size=32, use_tqdm=False)
    assert loop.train(num_epochs=3, batch_size=32, use_tqdm=False)[0] < 1.5 * first[0]
    assert loop.optimizer is made


def test_trackers_are_told_each_epoch(triples, tmp_path):
    loop, losses = trained(SymmetricLCWATrainingLoop, triples, loop=dict(result_tracker="python"))
    assert loop.result_tracker.history == [(i + 1, {"loss": x}) for i, x in enumerate(losses)]
    options = dict(result_tracker="csv", result_tracker_kwargs=dict(folder=tmp_path))
    trained(SymmetricLCWATrainingLoop, triples, loop=options)
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "epoch,loss"


def test_a_model_by_name_and_a_data_set_are_enough():
    rows = np.array([[0, 0, 1], [1, 0, 2], [2, 0, 0], [0, 1, 2], [1, 1, 0]])
    dataset = KGDataset(3, 2, {"train": rows}, {"train": np.arange(5)})
    loop = SLCWATrainingLoop("transe", dataset)
    assert len(loop.train(num_epochs=2, batch_size=4, use_tqdm=False)) == 2


class OfPyKEEN:
    """What PyKEEN's TriplesFactory looks like, with inverse triples."""

    mapped_triples = torch.tensor([[0, 0, 1], [1, 2, 2], [2, 0, 0]])
    num_entities, num_relations, real_num_relations = 3, 8, 4
    create_inverse_triples = True


def test_factories_of_pykeen_are_understood():
    factory = TriplesFactory.of(OfPyKEEN())
    assert (factory.num_entities, factory.num_relations) == (3, 4)
    assert factory.create_inverse_triples


@pytest.mark.parametrize("sampler", ["basic", "bernoulli"])
@pytest.mark.parametrize("n_shard", [1, 3])
def test_sampled_negatives_may_be_filtered(triples, sampler, n_shard):
    options = dict(
        negative_sampler=sampler, negative_sampler_kwargs=dict(num_negs_per_pos=6, filtered=True)
    )
    loop, losses = trained(SLCWATrainingLoop, triples, n_shard, loop=options, num_epochs=10)
    assert losses[-1] < losses[0]
    module = loop.make_module(triples, 0.0)
    batch = loop.make_sampler(triples, module, 32).batch(Position(0, 0))
    columns = {k: x[0] for k, x in batch.items() if k in module.inputs}
    assert (module.prepare(columns)["negative_filter"] >= 0).any()


@pytest.mark.parametrize("n_shard", [1, 3])
@pytest.mark.parametrize("loop_class", ALL_ENTITIES)
def test_leaving_the_last_batch_out_loses_no_more_than_that(triples, loop_class, n_shard):
    recorder = Recorder()
    trained(
        loop_class,
        triples,
        n_shard,
        num_epochs=1,
        batch_size=18,
        drop_last=True,
        callbacks=recorder,
    )
    assert len(recorder.rates) >= 120 // 18 - 1


@pytest.mark.parametrize("n_shard", [2, 3])
def test_a_sum_over_sampled_negatives_is_one_over_all_shards(triples, n_shard):
    options = dict(model=dict(loss="mse", loss_kwargs=dict(reduction="sum")), num_epochs=1)
    still = dict(optimizer="sgd", optimizer_kwargs=dict(lr=0.0))
    more = dict(**still, negative_sampler_kwargs=dict(num_negs_per_pos=6))
    one, several = (
        trained(SLCWATrainingLoop, triples, n, batch_size=1000, loop=more, **options)[1][0]
        for n in (1, n_shard)
    )
    assert several == pytest.approx(one, rel=0.1)  # other negatives are drawn


def test_scores_taken_before_training_leave_no_penalty_behind(triples):
    model = dict(entity_representations_kwargs=dict(embedding_dim=8, regularizer="lp"))
    _, losses = trained(SymmetricLCWATrainingLoop, triples, model=model)
    for search in (False, True):
        scored = make_model(triples, **model)
        scored.score_hrt(triples.mapped_triples).sum().backward()
        torch.manual_seed(0)
        loop = SymmetricLCWATrainingLoop(
            scored, triples, optimizer_kwargs=dict(lr=0.05), automatic_memory_optimization=search
        )
        assert loop.train(num_epochs=3, batch_size=32, use_tqdm=False) == losses


def test_a_scheduler_that_is_made_already_begins_anew_too(triples):
    model, recorder = make_model(triples), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    loop = SymmetricLCWATrainingLoop(model, triples, optimizer, None, scheduler)
    for _ in range(2):
        loop.train(num_epochs=3, batch_size=1000, callbacks=recorder, use_tqdm=False)
    assert_close(recorder.rates, [0.1, 0.1, 0.01] * 2)


def test_triples_of_another_graph_are_refused(triples):
    loop = SymmetricLCWATrainingLoop(make_model(triples), triples)
    other = TriplesFactory(triples.mapped_triples[:, :] % 3, 30, 3)
    with pytest.raises(
        ConfigError, match="triples are of 30 entities and 3 relations, the model of"
    ):
        loop.train(other)
    with pytest.raises(ConfigError, match="give both the numbers of the whole graph"):
        LCWATrainingLoop(make_model(triples), other)


# -- what cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loop, message",
    [
        (dict(mode="training"), "mode 'training' is for inductive models.*Leave mode out"),
        (dict(mode="inductive"), "mode 'inductive' is none of"),
        (dict(optimizer="adamm"), "unknown optimizer 'adamm'.*adam"),
        (dict(optimizer=3), "expected a name, a class or an optimizer"),
        (
            dict(optimizer="sparseadam"),
            "'sparseadam' cannot be used here: it takes no dense gradients",
        ),
        (dict(optimizer="lbfgs"), "it takes several losses a step"),
        (dict(lr_scheduler="optimizer"), "unknown lr_scheduler 'optimizer'"),
        (dict(lr_scheduler="expo"), "unknown lr_scheduler 'expo'; expected one of"),
        (dict(lr_scheduler_kwargs=dict(gamma=1)), "of no lr_scheduler"),
        (dict(result_tracker="wandb2"), "unknown result_tracker 'wandb2'"),
        (dict(result_tracker=3), "neither log_metrics nor log"),
    ],
)
@pytest.mark.parametrize("loop_class", LOOPS)
def test_choices_that_there_are_not(triples, loop_class, loop, message):
    loop = {"optimizer_kwargs": None, **loop}
    with pytest.raises(ConfigError, match=message):
        trained(loop_class, triples, loop=loop)


def test_other_things_that_cannot_work(triples):
    other = make_model(triples)
    with pytest.raises(ConfigError, match="holds none of the model's parameters"):
        SymmetricLCWATrainingLoop(
            make_model(triples), triples, torch.optim.SGD(other.parameters(), 1)
        )
    with pytest.raises(ConfigError, match="model is Linear, expected a KGEModel"):
        SymmetricLCWATrainingLoop(torch.nn.Linear(1, 1), triples)
    with pytest.raises(ConfigError, match="triples_factory is list, expected a KGDataset"):
        SymmetricLCWATrainingLoop("distmult", [])
    with pytest.raises(ConfigError, match="target is 'relation', expected 'tail' or 'head'"):
        LCWATrainingLoop(make_model(triples), triples, target="relation")
    with pytest.raises(
        ConfigError, match="queries have many answers; give a regularizer to the rep"
    ):
        LCWATrainingLoop(
            make_model(triples, regularizer="lp", regularizer_kwargs=dict(weight=1)), triples
        )
    with pytest.raises(SubBatchingNotSupportedError, match="lower batch_size"):
        trained(SLCWATrainingLoop, triples, sub_batch_size=4)
    with pytest.raises(ConfigError, match="sizes start at 1"):
        trained(SymmetricLCWATrainingLoop, triples, sub_batch_size=0)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got -3"):
        trained(SymmetricLCWATrainingLoop, triples, batch_size=-3)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        trained(SymmetricLCWATrainingLoop, triples, batch_size=0)
    with pytest.raises(ConfigError, match="checkpoints need a checkpoint_name"):
        trained(SymmetricLCWATrainingLoop, triples, checkpoint_frequency=0)
    with pytest.raises(
        ConfigError, match="gradient_clipping_norm_type is of gradient_clipping_max"
    ):
        trained(SymmetricLCWATrainingLoop, triples, gradient_clipping_norm_type=1.0)
    with pytest.raises(ConfigError, match=r"callback_kwargs \['a'\] are of classes"):
        trained(SymmetricLCWATrainingLoop, triples, callback_kwargs=dict(a=1))
    with pytest.raises(ConfigError, match="callback 'checkpoint' is no TrainingCallback"):
        trained(SymmetricLCWATrainingLoop, triples, callbacks="checkpoint")
    with pytest.raises(ConfigError, match="unknown metric 'hits'"):
        EarlyStopper(triples, metric="hits")
    with pytest.raises(ConfigError, match="sampler 'schlichtkrull' is for graph networks"):
        trained(SymmetricLCWATrainingLoop, triples, sampler="schlichtkrull")
    with pytest.raises(ConfigError, match="unknown negative_sampler 'pseudo'"):
        trained(SLCWATrainingLoop, triples, loop=dict(negative_sampler="pseudo"))
    with pytest.raises(
        ConfigError, match="num_negs_per_pos must be an integer of at least 1, got 0"
    ):
        trained(
            SLCWATrainingLoop, triples, loop=dict(negative_sampler_kwargs=dict(num_negs_per_pos=0))
        )
    with pytest.raises(NonFiniteLossError):
        trained(
            SymmetricLCWATrainingLoop,
            triples,
            loop=dict(optimizer="sgd", optimizer_kwargs=dict(lr=1e30)),
        )


def test_batch_normalisation_needs_full_batches(triples):
    options = dict(
        interaction="conve", entity_representations_kwargs=dict(embedding_dim=16),
        interaction_kwargs=dict(embedding_height=4, embedding_width=4, output_channels=2),
    )  # fmt: skip
    graph = TriplesFactory(triples.mapped_triples, 30, 4, True)
    recorder = Recorder()
    trained(
        SymmetricLCWATrainingLoop, graph, model=options, num_epochs=1, batch_size=50,
        callbacks=recorder,
    )  # fmt: skip
    assert len(recorder.rates) == 2
    with pytest.raises(ConfigError, match="batch normalisation needs a batch_size above 1"):
        trained(SymmetricLCWATrainingLoop, graph, model=options, batch_size=1)
