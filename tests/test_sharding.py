"""Every entity has one shard and row, every triple one bucket."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SHARDS, random_triples

from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError, DataError
from besskge_core.sharding import PARTITION_MODES, PartitionedTripleSet, Sharding

SIZES = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@st.composite
def typed_shardings(draw):
    n_entity, n_shard = draw(SIZES)
    inner = draw(st.sets(st.integers(1, n_entity), max_size=4)) - {n_entity}
    offsets = np.array([0, *sorted(inner)])
    sharding = Sharding.create(n_entity, n_shard, draw(st.integers(0, 99)), offsets)
    return sharding, offsets


@pytest.fixture(params=SHARDS)
def sharding(request, graph):
    offsets = list(graph.type_offsets.values())
    return Sharding.create(graph.n_entity, request.param, seed=1, type_offsets=offsets)


@pytest.fixture(params=PARTITION_MODES)
def mode(request):
    return request.param


def equal(a, b):
    """Whether two objects have the same fields, arrays compared with their dtype."""
    for name, x in vars(a).items():
        y = getattr(b, name)
        if isinstance(x, Sharding):
            equal(x, y)
        elif isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and (x == y).all(), name
        else:
            assert x == y and type(x) is type(y), name


# -- entities ----------------------------------------------------------------------------------


@given(typed_shardings())
def test_entities_and_places_correspond_one_to_one(made):
    sharding, _ = made
    entity = np.arange(sharding.n_entity)
    shard, row = sharding.entity_to_shard, sharding.entity_to_idx
    assert (sharding.shard_and_idx_to_entity[shard, row] == entity).all()
    assert sorted(sharding.shard_and_idx_to_entity.ravel()) == list(range(
        sharding.n_shard * sharding.max_entity_per_shard))  # fmt: skip
    assert (sharding.flat_row == shard * sharding.max_entity_per_shard + row).all()


@given(typed_shardings())
def test_shards_are_balanced_and_padded_at_their_ends(made):
    sharding, _ = made
    counts = sharding.shard_counts
    assert counts.sum() == sharding.n_entity and counts.max() - counts.min() <= 1
    assert (counts == np.bincount(sharding.entity_to_shard, minlength=sharding.n_shard)).all()
    assert counts.max() == sharding.max_entity_per_shard
    padding = sharding.shard_and_idx_to_entity >= sharding.n_entity
    assert (padding == (np.arange(counts.max()) >= counts[:, None])).all()


@given(typed_shardings())
def test_entities_of_a_type_lie_together_on_each_shard(made):
    sharding, offsets = made
    bounds = np.append(offsets, sharding.n_entity)
    for s, row in enumerate(sharding.shard_and_idx_to_entity):
        for k in range(len(offsets)):
            first = sharding.entity_type_offsets[s, k]
            members = row[first : first + sharding.entity_type_counts[s, k]]
            own = row[(row >= bounds[k]) & (row < bounds[k + 1])]
            assert members.tolist() == own.tolist()


def test_the_seed_decides_the_split():
    a, b, c = (Sharding.create(99, 4, seed) for seed in (0, 0, 1))
    equal(a, b)
    assert (a.entity_to_shard != c.entity_to_shard).any()


def test_the_split_is_random():
    sharding = Sharding.create(10_000, 4, seed=0)
    low = sharding.entity_to_shard[:5000]
    assert abs(np.bincount(low) - 1250).max() < 200  # no shard is preferred by low IDs
    assert (sharding.entity_to_shard != np.arange(10_000) % 4).any()


@pytest.mark.parametrize("typed", [True, False])
def test_a_sharding_is_loaded_as_it_was_saved(tmp_path, typed):
    sharding = Sharding.create(13, 3, seed=0, type_offsets=[0, 5] if typed else None)
    for name in ("sharding.npz", "any name"):
        sharding.save(tmp_path / name)
        equal(Sharding.load(tmp_path / name), sharding)


@pytest.mark.parametrize("n_shard", [0, -1, 14])
def test_as_many_shards_as_there_are_entities_at_most(n_shard):
    with pytest.raises(
        ConfigError, match=rf"n_shard must be in \[1, 13\] for 13 .*, got {n_shard}"
    ):
        Sharding.create(13, n_shard, seed=0)


# -- files -------------------------------------------------------------------------------------


@pytest.fixture(params=["sharding", "partitioned triple set"])
def stored(request, graph, tmp_path):
    """Class, name and path of a stored object."""
    sharding = Sharding.create(graph.n_entity, 2, seed=0)
    path = tmp_path / "stored.npz"
    if request.param == "sharding":
        sharding.save(path)
        return Sharding, request.param, path
    PartitionedTripleSet.create_from_dataset(graph, "train", sharding).save(path)
    return PartitionedTripleSet, request.param, path


def test_stored_files_hold_no_pickle(stored):
    with np.load(stored[2], allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_file_is_refused(stored, damage):
    cls, what, path = stored
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-100], "foreign": b"h\tr\tt\n", "empty": b""}[damage])
    with pytest.raises(DataError, match=rf"stored.npz: not a stored {what} \(.*\); write it again"):
        cls.load(path)


class Malice:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_in_a_file_is_not_run(stored):
    cls, _, path = stored
    np.savez(path, n_shard=np.array([Malice(path.with_name("malice"))], dtype=object))
    with pytest.raises(DataError, match="Object arrays cannot be loaded when allow_pickle=False"):
        cls.load(path)
    assert not path.with_name("malice").exists()


@pytest.mark.parametrize("missing", ["n_shard", "entity_to_shard"])
def test_an_archive_of_something_else_is_refused(stored, missing):
    cls, what, path = stored
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files if not name.endswith(missing)}
    np.savez(path, **kept)
    with pytest.raises(DataError, match=f"stored.npz: not a stored {what}"):
        cls.load(path)


def test_an_archive_with_more_in_it_is_refused(stored):
    cls, what, path = stored
    with np.load(path) as arrays:
        np.savez(path.with_name("more.npz"), weights=np.zeros(3), **dict(arrays))
    with pytest.raises(DataError, match=f"more.npz: not a stored {what}"):
        cls.load(path.with_name("more.npz"))


def test_a_missing_file_is_a_file_not_found(stored):
    with pytest.raises(FileNotFoundError):
        stored[0].load(stored[2].with_name("nothing.npz"))


# -- triples -----------------------------------------------------------------------------------


def global_ids(triple_set):
    """Triples in entity IDs, and the bucket of each."""
    sharding, mode = triple_set.sharding, triple_set.partition_mode
    counts = triple_set.triple_counts
    bucket = np.repeat(np.arange(counts.size), counts.ravel())
    head_shard, tail_shard = bucket, bucket
    if mode == "ht_shardpair":
        head_shard, tail_shard = bucket // sharding.n_shard, bucket % sharding.n_shard
    triples = triple_set.triples.copy()
    if mode != "t_shard":
        triples[:, 0] = sharding.shard_and_idx_to_entity[head_shard, triples[:, 0]]
        assert (sharding.entity_to_shard[triples[:, 0]] == head_shard).all()
    if mode != "h_shard":
        triples[:, 2] = sharding.shard_and_idx_to_entity[tail_shard, triples[:, 2]]
        assert (sharding.entity_to_shard[triples[:, 2]] == tail_shard).all()
    return triples, bucket


def test_every_triple_is_once_in_its_bucket(graph, sharding, mode):
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode)
    triples, _ = global_ids(triple_set)
    order = triple_set.triple_sort_idx
    assert sorted(order.tolist()) == list(range(200))
    assert (triples == graph.triples["train"][order]).all()
    assert triple_set.triples.dtype == np.int32
    shape = (sharding.n_shard,) * (2 if mode == "ht_shardpair" else 1)
    assert triple_set.triple_counts.shape == triple_set.triple_offsets.shape == shape


def test_triples_of_a_bucket_keep_their_order(graph, sharding, mode):
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode)
    for first, n in zip(triple_set.triple_offsets.ravel(), triple_set.triple_counts.ravel()):
        assert (np.diff(triple_set.triple_sort_idx[first : first + n]) > 0).all()


@given(SIZES, st.sampled_from(PARTITION_MODES), st.integers(0, 50))
def test_offsets_and_counts_tile_the_triples(size, mode, n):
    n_entity, n_shard = size
    triples = np.random.default_rng(n).integers(n_entity, size=(n, 3))
    sharding = Sharding.create(n_entity, n_shard, seed=0)
    local, counts, offsets, order = PartitionedTripleSet.partition_triples(triples, sharding, mode)
    assert counts.sum() == len(local) == len(order) == n
    assert (offsets.ravel() == np.cumsum(counts.ravel()) - counts.ravel()).all()


def test_inverse_triples_double_and_swap(graph, sharding, mode):
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode, True)
    triples, _ = global_ids(triple_set)
    by_source = np.empty_like(triples)
    by_source[triple_set.triple_sort_idx] = triples
    plain, inverse = by_source[:200], by_source[200:]
    assert triple_set.inverse_triples and (plain == graph.triples["train"]).all()
    assert (inverse == plain[:, ::-1] + [0, graph.n_relation_type, 0]).all()


def test_types_follow_their_triples(graph, sharding, mode):
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode, True)
    triples, _ = global_ids(triple_set)
    offsets = list(graph.type_offsets.values())
    expected = np.searchsorted(offsets, triples[:, [0, 2]], side="right") - 1
    assert (triple_set.types == expected).all() and triple_set.types.dtype == np.int32


def with_negatives(graph, n_row=200, **parts):
    rng = np.random.default_rng(0)
    lists = {side: {"train": rng.integers(37, size=(n_row, 4))} for side in ("heads", "tails")}
    return KGDataset(
        37, 4, {"train": graph.triples["train"]}, {"train": range(200)},
        neg_heads=lists["heads"], neg_tails=lists["tails"],
    )  # fmt: skip


def test_given_negatives_follow_their_triples(graph, sharding, mode):
    dataset = with_negatives(graph)
    triple_set = PartitionedTripleSet.create_from_dataset(dataset, "train", sharding, mode)
    order = triple_set.triple_sort_idx
    assert (triple_set.neg_heads == dataset.neg_heads["train"][order]).all()
    assert (triple_set.neg_tails == dataset.neg_tails["train"][order]).all()


def test_given_negatives_of_inverse_triples_swap_sides(graph, sharding):
    dataset = with_negatives(graph)
    triple_set = PartitionedTripleSet.create_from_dataset(
        dataset, "train", sharding, add_inverse_triples=True
    )
    heads, tails = dataset.neg_heads["train"], dataset.neg_tails["train"]
    order = triple_set.triple_sort_idx
    assert (triple_set.neg_heads == np.concatenate([heads, tails])[order]).all()
    assert (triple_set.neg_tails == np.concatenate([tails, heads])[order]).all()


def test_one_list_for_all_triples_stays_one(graph, sharding):
    dataset = with_negatives(graph, n_row=1)
    triple_set = PartitionedTripleSet.create_from_dataset(dataset, "train", sharding)
    assert (triple_set.neg_heads == dataset.neg_heads["train"]).all()
    with pytest.raises(ConfigError, match="'train' need given negatives per triple, not one row"):
        PartitionedTripleSet.create_from_dataset(dataset, "train", sharding, "h_shard", True)


def test_inverse_triples_need_negatives_of_both_sides(graph, sharding):
    dataset = with_negatives(graph)
    dataset.neg_tails = None
    with pytest.raises(ConfigError, match="'train' need neg_heads and neg_tails with equally many"):
        PartitionedTripleSet.create_from_dataset(dataset, "train", sharding, "h_shard", True)


def test_imbalance_is_the_largest_bucket_over_the_mean(graph):
    sharding = Sharding.create(graph.n_entity, 4, seed=0)
    triple_set = PartitionedTripleSet.create_from_dataset(graph, "train", sharding)
    assert triple_set.imbalance == triple_set.triple_counts.max() / (200 / 16)
    one = PartitionedTripleSet.create_from_dataset(graph, "train", Sharding.create(37, 1, seed=0))
    assert one.imbalance == 1.0


@pytest.mark.parametrize("full", [True, False])
def test_a_partitioned_set_is_loaded_as_it_was_saved(graph, tmp_path, full):
    dataset = with_negatives(graph) if full else graph
    triple_set = PartitionedTripleSet.create_from_dataset(
        dataset, "train", Sharding.create(37, 3, seed=0), add_inverse_triples=full
    )
    triple_set.save(tmp_path / "set.npz")
    equal(PartitionedTripleSet.load(tmp_path / "set.npz"), triple_set)


def test_a_partition_does_not_change_the_graph(graph, sharding, mode):
    before = {part: rows.copy() for part, rows in graph.triples.items()}
    PartitionedTripleSet.create_from_dataset(graph, "train", sharding, mode, True)
    assert all((graph.triples[part] == rows).all() for part, rows in before.items())


# -- queries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("query_mode", ["hr", "rt"])
@pytest.mark.parametrize("answered", [True, False])
def test_queries_are_partitioned_by_the_entity_that_is_known(graph, sharding, query_mode, answered):
    tails_asked, test = query_mode == "hr", graph.triples["test"]
    queries = test[:, :2] if tails_asked else test[:, 1:]
    answer = test[:, 2 if tails_asked else 0]
    triple_set = PartitionedTripleSet.create_from_queries(
        graph, sharding, queries, query_mode, answer if answered else None
    )
    triples, _ = global_ids(triple_set)
    asked = triples[:, :2] if tails_asked else triples[:, 1:]
    assert (asked == queries[triple_set.triple_sort_idx]).all()
    assert triple_set.partition_mode == ("h_shard" if tails_asked else "t_shard")
    if answered:
        assert (triples == test[triple_set.triple_sort_idx]).all() and triple_set.dummy == "none"
        assert triple_set.types is not None
    else:
        assert triple_set.dummy == ("tail" if tails_asked else "head") and triple_set.types is None


def candidates(graph, query_mode="hr", n_query=5, **options):
    sharding = Sharding.create(37, 2, seed=0)
    triple_set = PartitionedTripleSet.create_from_queries(
        graph, sharding, np.zeros((n_query, 2), int), query_mode, **options
    )
    lists = [triple_set.neg_heads, triple_set.neg_tails]
    asked = lists.pop(1 if query_mode == "hr" else 0)
    assert lists == [None]
    return asked, triple_set


@pytest.mark.parametrize("query_mode", ["hr", "rt"])
@pytest.mark.parametrize("kind, first, last", [("a", 0, 10), ("b", 11, 33), ("c", 34, 36)])
def test_candidates_of_a_type_are_all_its_entities(graph, query_mode, kind, first, last):
    asked, _ = candidates(graph, query_mode, negative_type=kind)
    assert asked.tolist() == [list(range(first, last + 1))]


@pytest.mark.parametrize("n_query", [1, 5])
def test_candidates_are_all_entities_unless_given(graph, n_query):
    assert candidates(graph, n_query=n_query)[0].tolist() == [list(range(37))]


def test_given_candidates_follow_their_queries(graph):
    queries = graph.triples["test"][:, :2]
    lists = np.arange(60).reshape(30, 2) % 37
    triple_set = PartitionedTripleSet.create_from_queries(
        graph, Sharding.create(37, 4, seed=0), queries, "hr", negative=lists
    )
    assert (triple_set.neg_tails == lists[triple_set.triple_sort_idx]).all()


def test_one_list_of_candidates_may_be_flat(graph):
    assert candidates(graph, negative=np.array([3, 4]))[0].tolist() == [[3, 4]]


# -- errors ------------------------------------------------------------------------------------


def test_an_unknown_partition_mode_is_refused(graph, sharding):
    with pytest.raises(
        ConfigError, match=r"unknown partition mode 'r_shard'; expected one of \('h"
    ):
        PartitionedTripleSet.create_from_dataset(graph, "train", sharding, "r_shard")


def test_an_unknown_part_is_refused(graph, sharding):
    with pytest.raises(ConfigError, match=r"no part 'dev'; the data set has \['test', 'train'"):
        PartitionedTripleSet.create_from_dataset(graph, "dev", sharding)


def test_a_sharding_of_another_graph_is_refused(graph):
    other, queries = Sharding.create(36, 2, seed=0), np.zeros((1, 2), int)
    message = "of 36 entities, the data set has 37; create it with Sharding.create"
    with pytest.raises(ConfigError, match=message):
        PartitionedTripleSet.create_from_dataset(graph, "train", other)
    with pytest.raises(ConfigError, match=message):
        PartitionedTripleSet.create_from_queries(graph, other, queries, "hr")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(query_mode="ht"), "query_mode must be 'hr' or 'rt', got 'ht'"),
        (dict(negative_type="d"), r"no entity type 'd'; expected one of \['a', 'b', 'c'\]"),
        (
            dict(negative_type="a", negative=[[1]]),
            "by `negative` or by `negative_type`, not by both",
        ),
    ],
)
def test_queries_that_make_no_sense_are_refused(graph, options, message):
    with pytest.raises(ConfigError, match=message):
        candidates(graph, **options)


def test_an_untyped_graph_has_no_candidates_of_a_type():
    graph = KGDataset.from_triples(random_triples(9, 2, 9, seed=0))
    queries = np.zeros((1, 2), int)
    with pytest.raises(ConfigError, match=r"no entity type 'a'; expected one of \[\]"):
        PartitionedTripleSet.create_from_queries(
            graph, Sharding.create(graph.n_entity, 2, seed=0), queries, "hr", negative_type="a"
        )
